//! A layer that has no index yet: what its journal says of data files, held against them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::Report;
use super::layer::{READS_MAX, REREAD_PAUSE, is_regular};
use crate::catalog::{LayerRow, Store};
use crate::format::journal::{FrameReader, LogHeader, Record};
use crate::format::{Granule, Ino, LayoutDelta};
use crate::io::host::read_plain;

/// What the layer owns of a file without being its only owner.
#[derive(Default)]
struct Owned {
    private: bool,
    ranges: Vec<(Granule, Granule)>,
}

impl Owned {
    fn apply(&mut self, delta: &LayoutDelta) {
        self.ranges.retain(|(start, _)| *start < delta.cut);
        for (_, end) in &mut self.ranges {
            *end = delta.cut.min(*end);
        }
        self.ranges.extend(delta.added.iter().map(|range| (range.start, range.end)));
        self.private |= delta.private;
    }
}

#[derive(Default)]
struct Journal {
    owned: HashMap<Ino, Owned>,
    /// The lengths of all data files, if the layer was left in order.
    lengths: Option<HashMap<Ino, u64>>,
    /// The lengths of data files that were found otherwise.
    lost: HashMap<Ino, u64>,
}

/// What a journal says; `None` for one that is damaged, which is reported elsewhere.
fn read(bytes: &[u8]) -> Option<Journal> {
    let mut journal = Journal::default();
    for frame in FrameReader::new(bytes.get(LogHeader::BYTES..)?, 1) {
        let frame = frame.ok()?;
        journal.lengths = frame.lengths_at_close();
        for record in frame.records {
            match record {
                Record::Layout(delta) => {
                    journal.owned.entry(delta.ino).or_default().apply(&delta);
                }
                Record::Forget(ino) => {
                    journal.owned.remove(&ino);
                    journal.lost.remove(&ino);
                }
                Record::Lost { ino, bytes } => drop(journal.lost.insert(ino, bytes)),
                _ => {}
            }
        }
    }
    Some(journal)
}

/// Compares the data files of a layer without an index with what its journal says of them.
///
/// While a layer is open its journal does not say how long a data file is, and the host may have
/// cut it just before the power went. What is certain: the lengths at an orderly end, until
/// somebody takes the layer up again, and that a data file is there if the journal says that pages
/// of it were written.
pub(super) fn check_data_files(store: &Store, row: &LayerRow, report: &mut Report) {
    let dir = store.layer_dir(row.id);
    for attempts_left in (0..READS_MAX).rev() {
        let state = || {
            let taken_up = dir.join("volatile").exists();
            (read_plain(&dir.join("journal")).ok(), taken_up, dir.join("index").exists())
        };
        let before = state();
        let (Some(bytes), taken_up, false) = &before else { return };
        let Some(journal) = read(bytes) else { return };
        let (compared, problems) = compare(&dir, &journal, *taken_up);
        // Whoever serves the branch may have changed both meanwhile.
        if !problems.is_empty() && attempts_left > 0 && state() != before {
            std::thread::sleep(REREAD_PAUSE);
            continue;
        }
        report.data_files += compared;
        for (path, problem) in problems {
            report.damaged(path, problem);
        }
        return;
    }
}

fn compare(dir: &Path, journal: &Journal, taken_up: bool) -> (u64, Vec<(PathBuf, String)>) {
    let mut problems = Vec::new();
    let length_of = |path: &Path| match std::fs::symlink_metadata(path) {
        Ok(meta) if !is_regular(&meta) => Err("it is no regular file".to_owned()),
        Ok(meta) => Ok(Some(meta.len())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    };
    let left = journal.lengths.as_ref().filter(|_| !taken_up);
    let lengths = left.into_iter().flatten();
    let lost =
        journal.lost.iter().filter(|(ino, _)| !left.is_some_and(|left| left.contains_key(ino)));
    for (ino, left) in lengths.chain(lost) {
        let path = dir.join(ino.data_path());
        let problem = match length_of(&path) {
            Ok(found) if found.unwrap_or(0) == *left => continue,
            Ok(None) => format!("it is missing; it had {left} bytes"),
            Ok(Some(found)) => {
                format!("it has {found} bytes; it had {left} when the branch was unmounted")
            }
            Err(problem) => problem,
        };
        problems.push((path, problem));
    }
    if let Some(left) = left {
        return (left.len() as u64, problems);
    }
    let written = |owned: &Owned| !owned.private && !owned.ranges.is_empty();
    let told = |ino: &Ino| journal.lost.contains_key(ino);
    let files = journal.owned.iter().filter(|(ino, owned)| written(owned) && !told(ino));
    let files: Vec<&Ino> = files.map(|(ino, _)| ino).collect();
    for ino in &files {
        let path = dir.join(ino.data_path());
        match length_of(&path) {
            Ok(Some(_)) => {}
            Ok(None) => problems.push((path, "it is missing; pages of it were written".into())),
            Err(problem) => problems.push((path, problem)),
        }
    }
    (files.len() as u64, problems)
}
