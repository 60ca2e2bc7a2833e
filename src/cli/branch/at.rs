//! A branch as it was at a moment between two snapshots: WAL is replayed from the earlier one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::postgres::fork::like_the_parent;
use super::super::snapshot::{PassingBranch, PassingState};
use super::super::{failure, interrupt, output};
use super::here_or_there::require;
use super::moment::Moment;
use super::window::{States, sentence};
use crate::branch::fork::Requester;
use crate::branch::snapshot::branch_from_layer;
use crate::catalog::{BranchName, BranchPoint, BranchRow, Store};
use crate::format::LayerId;
use crate::history::{History, HistoryError, RESTORE_COMMAND, RESTORED_DIR, Stretch, bring_wal};
use crate::postgres::instance::Wishes;
use crate::postgres::postmaster::StopMode;
use crate::serve::Failure;

/// What Postgres says when the WAL at hand ends before the target.
const NOT_REACHED: &str = "recovery ended before configured recovery target was reached";

/// .. and when the target is one that the state it begins with may have passed.
const TOO_EARLY: &str = "requested recovery stop point is before consistent recovery point";

/// What is asked for.
pub(super) struct At<'a> {
    pub store: &'a Arc<Store>,
    pub parent: &'a BranchName,
    pub child: &'a BranchName,
    pub moment: Moment,
    /// Where the Postgres programs are, if that was said.
    pub pg_bin: Option<PathBuf>,
    /// For each step of the replay.
    pub timeout: Duration,
    pub by: &'a Requester,
}

/// What came of it.
pub(super) struct Reached {
    /// Bytes of WAL that later states lent.
    pub wal_bytes: u64,
    pub took: Duration,
}

/// How one attempt ended.
enum Replay {
    /// The branch is there, with so many bytes of WAL from later states.
    Done(u64),
    /// Nothing was committed between the moment and the later state.
    NotReached,
    /// It stopped where the earlier state may have been already.
    TooEarly,
}

impl At<'_> {
    /// Makes the branch.
    pub fn run(&self) -> Result<Reached, Failure> {
        let begin = Instant::now();
        interrupt::catch();
        if self.store.catalog.branch(self.child).map_err(|e| failure::of_catalog(&e))?.is_some() {
            let name = self.child.clone();
            let exists = crate::catalog::CatalogError::BranchExists { name };
            return Err(failure::of_catalog(&exists));
        }
        let row = require(self.store, self.parent)?;
        let point = BranchPoint { branch: self.parent.clone(), snapshot: None };
        let now = PassingState::of(self.store, &point, "at", self.by)?;
        let reached = self.reach(&row, now.snapshot.created_ms);
        now.forget(self.store, self.by);
        Ok(Reached { wal_bytes: reached?, took: begin.elapsed() })
    }

    fn reach(&self, row: &BranchRow, now_ms: i64) -> Result<u64, Failure> {
        if let Moment::Time(ms) = self.moment
            && ms > now_ms
        {
            let text = format!("{} lies in the future", self.moment);
            return Err(Failure::new("usage", text).exit(2));
        }
        let history = History::of(&self.store.catalog, row);
        let history = history.map_err(|error| failure::of_catalog(&error))?;
        let mut states = States::new(self.store, row, &history);
        let Some(stretch) = self.stretch(&history, &mut states)? else {
            return Err(self.out_of_reach(&history, &mut states));
        };
        let mut path = vec![stretch.to, stretch.from];
        loop {
            if !states.are_joined(&path).map_err(|error| of_history(self.parent, &error))? {
                return Err(self.out_of_reach(&history, &mut states));
            }
            match self.replay(row, &history, &mut states, &path)? {
                Replay::Done(bytes) => return Ok(bytes),
                Replay::NotReached => {
                    let layer = history.states[stretch.to].snapshot.layer;
                    self.make(row, layer)?;
                    return Ok(0);
                }
                Replay::TooEarly => {
                    let earliest = path.last().copied().unwrap_or(stretch.from);
                    let Some(before) = history.before(earliest) else {
                        return Err(self.too_close(&history, earliest));
                    };
                    path.push(before);
                }
            }
        }
    }

    /// The stretch in which the moment lies.
    fn stretch(
        &self,
        history: &History,
        states: &mut States<'_>,
    ) -> Result<Option<Stretch>, Failure> {
        let lsn = match self.moment {
            Moment::Time(ms) => return Ok(history.at(ms)),
            Moment::Lsn(lsn) => lsn,
        };
        for stretch in history.stretches().into_iter().rev() {
            let of_history = |error| of_history(self.parent, &error);
            let to_end = states.wal(stretch.to).map_err(of_history)?.end;
            let from_end = states.wal(stretch.from).map_err(of_history)?.end;
            if from_end <= lsn && lsn <= to_end {
                return Ok(Some(stretch));
            }
        }
        Ok(None)
    }

    fn out_of_reach(&self, history: &History, states: &mut States<'_>) -> Failure {
        let text = format!("{} as of {} cannot be reached", self.parent, self.moment);
        let windows = states.windows(history);
        let hint = if windows.is_empty() {
            format!(
                "it takes a snapshot before that and the WAL since: `cowfs snapshot schedule {} \
                 --every 10m --keep 24h`",
                self.parent
            )
        } else {
            format!("what can be reached: {}", sentence(&windows))
        };
        Failure::new("out_of_reach", text).hint(hint)
    }

    fn too_close(&self, history: &History, earliest: usize) -> Failure {
        let snapshot = &history.states[earliest].snapshot;
        let text = format!(
            "{} as of {} cannot be told from snapshot {}, the first before it",
            self.parent, self.moment, snapshot.name
        );
        Failure::new("out_of_reach", text).hint(format!(
            "`--from {}@{}`, or name a moment some seconds later",
            self.parent, snapshot.name
        ))
    }

    fn make(&self, row: &BranchRow, layer: LayerId) -> Result<BranchRow, Failure> {
        branch_from_layer(self.store, row, layer, self.child.clone(), None, self.by)
            .map_err(|error| failure::of_branch(&error))
    }

    /// Replays from the last of `path` (the earliest state) to the moment, with the WAL of the
    /// others.
    fn replay(
        &self,
        row: &BranchRow,
        history: &History,
        states: &mut States<'_>,
        path: &[usize],
    ) -> Result<Replay, Failure> {
        let Some((&from, later)) = path.split_last() else { return Ok(Replay::TooEarly) };
        let layer = history.states[from].snapshot.layer;
        let child = PassingBranch::called(self.store, row, layer, self.child.clone(), self.by)?;
        match self.replay_on(&child, states, from, later) {
            Ok(Replay::Done(bytes)) => child.keep(self.by).map(|()| Replay::Done(bytes)),
            other => {
                child.delete()?;
                other
            }
        }
    }

    fn replay_on(
        &self,
        child: &PassingBranch<'_>,
        states: &mut States<'_>,
        from: usize,
        later: &[usize],
    ) -> Result<Replay, Failure> {
        let of_history = |error: HistoryError| of_history(self.parent, &error);
        let base = states.wal(from).map_err(of_history)?.clone();
        let opened = child.open()?;
        let brought = {
            let mut sources = Vec::new();
            for &state in later.iter().rev() {
                sources.push(states.both(state).map_err(of_history)?);
            }
            let sources: Vec<_> = sources.iter().map(|(fs, wal)| (&**fs, wal)).collect();
            bring_wal(&opened.fs, &base, &sources)
        };
        opened.close()?;
        let bytes = brought.map_err(of_history)?;
        interrupt::go_on()?;
        let parent = require(self.store, self.parent)?;
        let wishes = Wishes { pg_bin: self.pg_bin.clone(), ..Wishes::default() };
        let mut wishes = like_the_parent(self.store, &parent, wishes);
        wishes.settings = self.targets();
        let server = match child.start(&wishes, self.timeout) {
            Ok(server) => server,
            Err(failure) if failure.message.contains(NOT_REACHED) => return Ok(Replay::NotReached),
            Err(failure) if failure.message.contains(TOO_EARLY) => return Ok(Replay::TooEarly),
            Err(failure) => return Err(failure),
        };
        let restored = std::fs::remove_dir_all(server.data_dir.join(RESTORED_DIR));
        child.stop(StopMode::Fast, self.timeout)?;
        restored.map_err(|error| Failure::caused("host", &error))?;
        Ok(Replay::Done(bytes))
    }

    fn targets(&self) -> Vec<(String, String)> {
        let target = match self.moment {
            // Names of time zones, even Z, are not known so early in its start.
            Moment::Time(ms) => ("recovery_target_time", output::time_ms(ms).replace('Z', "+00")),
            Moment::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
        };
        // A position is where a record ends: the next one begins there.
        let inclusive = if matches!(self.moment, Moment::Lsn(_)) { "off" } else { "on" };
        let settings = [
            target,
            ("recovery_target_inclusive", inclusive.to_owned()),
            ("restore_command", RESTORE_COMMAND.to_owned()),
            ("recovery_target_action", "promote".to_owned()),
            ("recovery_target_timeline", "current".to_owned()),
            // A standby would stop at a change of max_connections and the like.
            ("hot_standby", "off".to_owned()),
            // What it says is read here.
            ("lc_messages", "C".to_owned()),
        ];
        settings.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

pub(super) fn of_history(branch: &BranchName, error: &HistoryError) -> Failure {
    let failure = Failure::caused("history", error);
    let message =
        format!("branch {branch} has no history that could be replayed: {}", failure.message);
    Failure { message, ..failure }
}
