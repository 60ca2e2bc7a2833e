//! Which moments of a branch can be reached, from its snapshots and the WAL in them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::super::output;
use super::super::postgres::reach;
use crate::branch::{Branch, OpenMode};
use crate::catalog::{BranchRow, Store};
use crate::fs::{Fs, FsOptions};
use crate::history::{History, HistoryError, Mounted, Wal};

/// From one moment to another, in milliseconds since 1970.
pub(in crate::cli) type Window = (i64, i64);

/// The states of a branch, each opened when it is looked at.
pub(super) struct States<'a> {
    store: &'a Arc<Store>,
    row: &'a BranchRow,
    history: &'a History,
    opened: HashMap<usize, Arc<Fs>>,
    wals: HashMap<usize, Wal>,
}

impl<'a> States<'a> {
    pub fn new(store: &'a Arc<Store>, row: &'a BranchRow, history: &'a History) -> States<'a> {
        States { store, row, history, opened: HashMap::new(), wals: HashMap::new() }
    }

    /// The files of a state.
    fn files(&mut self, state: usize) -> Result<Arc<Fs>, HistoryError> {
        if let Some(fs) = self.opened.get(&state) {
            return Ok(fs.clone());
        }
        let layer = self.history.states[state].snapshot.layer;
        let branch = Branch::at_layer(self.store.clone(), self.row.clone(), layer);
        let branch = branch.map_err(|source| HistoryError::Open { source: Box::new(source) })?;
        let fs = Fs::new(branch, FsOptions::default());
        self.opened.insert(state, fs.clone());
        Ok(fs)
    }

    /// What WAL a state has.
    pub fn wal(&mut self, state: usize) -> Result<&Wal, HistoryError> {
        if !self.wals.contains_key(&state) {
            let wal = Wal::of(&*self.files(state)?)?;
            self.wals.insert(state, wal);
        }
        Ok(&self.wals[&state])
    }

    /// Both.
    pub fn both(&mut self, state: usize) -> Result<(Arc<Fs>, Wal), HistoryError> {
        Ok((self.files(state)?, self.wal(state)?.clone()))
    }

    /// Whether the WAL of the states of `path`, the last of which comes first in time, leads from
    /// one end to the other.
    pub fn are_joined(&mut self, path: &[usize]) -> Result<bool, HistoryError> {
        let (Some(&to), Some(&from)) = (path.first(), path.last()) else { return Ok(false) };
        let (from, to) = (self.wal(from)?.clone(), self.wal(to)?.clone());
        if !from.leads_to(&to) {
            return Ok(false);
        }
        let mut there = BTreeSet::new();
        for &state in &path[..path.len() - 1] {
            there.extend(self.wal(state)?.segments.keys().copied());
        }
        Ok(from.needed(&to).all(|segment| there.contains(&segment)))
    }

    /// All that can be reached; states that cannot be understood lead nowhere.
    pub fn windows(&mut self, history: &History) -> Vec<Window> {
        let mut windows: Vec<Window> = Vec::new();
        for stretch in history.stretches() {
            if !self.are_joined(&[stretch.to, stretch.from]).unwrap_or(false) {
                continue;
            }
            let (from, to) = (history.begins_ms(stretch), history.states[stretch.to].at_ms());
            match windows.last_mut() {
                Some(last) if last.1 >= from => last.1 = last.1.max(to),
                _ => windows.push((from, to)),
            }
        }
        windows
    }
}

/// What can be reached of a branch, also from its last snapshot until now.
pub(in crate::cli) fn windows_of(
    store: &Arc<Store>,
    row: &BranchRow,
) -> Result<Vec<Window>, crate::catalog::CatalogError> {
    let history = History::of(&store.catalog, row)?;
    if history.states.is_empty() {
        return Ok(Vec::new());
    }
    let history = history.until_now(&store.catalog, row)?;
    let mut states = States::new(store, row, &history);
    if let Some(wal) = wal_now(store, row) {
        states.wals.insert(history.states.len() - 1, wal);
    }
    Ok(states.windows(&history))
}

/// The WAL of a branch as it is now: at its mount, or in its files if nobody serves it.
fn wal_now(store: &Arc<Store>, row: &BranchRow) -> Option<Wal> {
    if let Some(dir) = reach::mount_point(store, row) {
        return Wal::of(&Mounted(dir)).ok();
    }
    let lock = store.lock_branch(row.id).ok()?;
    let branch = Branch::open(store.clone(), row.clone(), lock, OpenMode::ReadOnly).ok()?;
    Wal::of(&*Fs::new(branch, FsOptions::default())).ok()
}

/// `A to B, and from C to D`, for people.
pub(in crate::cli) fn sentence(windows: &[Window]) -> String {
    let one = |(from, to): &Window| format!("{} to {}", output::time(*from), output::time(*to));
    windows.iter().map(one).collect::<Vec<_>>().join(", and from ")
}
