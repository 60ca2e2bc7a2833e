//! What differs, file by file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::pages::{self, Side};
use super::tree::Tree;
use super::{DiffError, Exactness};
use crate::format::{FileKind, GRANULE_BYTES, Granule, GranuleRange, Ino, InodeRecord};
use crate::fs::Fs;

/// Bytes compared at a time.
const BUFFER_BYTES: u64 = 1 << 20;

/// What became of a path from the first state to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Only the second has it.
    Added,
    /// Only the first has it.
    Deleted,
    /// The first has it under another name, with at least some of the same contents.
    Renamed,
    /// Other contents, or another kind of file.
    Modified,
    /// The same contents, but other permissions, owner, extended attributes or another target.
    Attributes,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The path, in the second state if that has it.
    pub path: PathBuf,
    /// What became of it.
    pub change: Change,
    /// Whether it is (or was) a directory.
    pub directory: bool,
    /// Its name in the first state, of what was renamed.
    pub from: Option<PathBuf>,
    /// Bytes in the first state.
    pub old_size: Option<u64>,
    /// Bytes in the second.
    pub new_size: Option<u64>,
    /// The granules that differ, also those that only one of the states has.
    pub granules: Vec<GranuleRange>,
}

impl Difference {
    /// Bytes of the second state that the first has not.
    pub fn written_bytes(&self) -> u64 {
        pages::bytes_of(&self.granules, self.new_size.unwrap_or(0))
    }
}

/// Compares two states that nobody changes meanwhile; what they are called stands in errors.
///
/// In the order of the paths. Costs what is known of all names and owners; no contents are read,
/// unless they are to be compared ([`Exactness::Bytes`]).
pub fn diff(
    (before, of_before): (&Fs, &str),
    (after, of_after): (&Fs, &str),
    exactness: Exactness,
) -> Result<Vec<Difference>, DiffError> {
    let (before, after) = (Tree::walk(before, of_before)?, Tree::walk(after, of_after)?);
    Comparison { before, after, exactness }.run()
}

struct Comparison<'a> {
    before: Tree<'a>,
    after: Tree<'a>,
    exactness: Exactness,
}

impl Comparison<'_> {
    fn run(&self) -> Result<Vec<Difference>, DiffError> {
        let mut found = Vec::new();
        let mut gone: HashMap<Ino, (&PathBuf, &InodeRecord)> = HashMap::new();
        for (path, record) in &self.before.entries {
            match self.after.entries.get(path) {
                Some(now) => found.extend(self.both((path, record), (path, now))?),
                None => drop(gone.insert(record.ino, (path, record))),
            }
        }
        let new = |path: &&PathBuf| !self.before.entries.contains_key(*path);
        for path in self.after.entries.keys().filter(new) {
            let record = &self.after.entries[path];
            let renamed = match gone.get(&record.ino) {
                Some(old) => self.renamed(*old, (path, record))?,
                None => None,
            };
            if renamed.is_some() {
                gone.remove(&record.ino);
            }
            found.push(renamed.unwrap_or_else(|| lone(path, record, Change::Added)));
        }
        found.extend(gone.into_values().map(|(path, record)| lone(path, record, Change::Deleted)));
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// What differs between two files, if anything does.
    fn both(
        &self,
        (old_path, old): (&PathBuf, &InodeRecord),
        (path, new): (&PathBuf, &InodeRecord),
    ) -> Result<Option<Difference>, DiffError> {
        let attributes = |record: &InodeRecord| {
            (
                record.perm,
                record.uid,
                record.gid,
                record.rdev,
                record.symlink.clone(),
                record.xattrs.clone(),
            )
        };
        let mut granules = Vec::new();
        if old.kind == FileKind::Regular && new.kind == FileKind::Regular {
            let (was, is) =
                (self.before.owners(old_path, old.ino)?, self.after.owners(path, new.ino)?);
            let before = Side { owners: &was, size: old.size };
            granules = pages::changed(before, Side { owners: &is, size: new.size });
            if self.exactness == Exactness::Bytes {
                granules = self.really((old_path, old), (path, new), &granules)?;
            }
        }
        let change = if !granules.is_empty() || old.kind != new.kind || sizes_differ(old, new) {
            Change::Modified
        } else if attributes(old) != attributes(new) {
            Change::Attributes
        } else if old_path != path {
            Change::Renamed
        } else {
            return Ok(None);
        };
        let renamed = old_path != path;
        Ok(Some(Difference {
            path: path.clone(),
            change: if renamed { Change::Renamed } else { change },
            directory: new.kind == FileKind::Directory,
            from: renamed.then(|| old_path.clone()),
            old_size: size_of(old),
            new_size: size_of(new),
            granules,
        }))
    }

    /// Whether a file that is gone is this new one: it has its number, and something of its contents. Two branches
    /// give the same number to different files, so that alone says nothing.
    fn renamed(
        &self,
        old: (&PathBuf, &InodeRecord),
        new: (&PathBuf, &InodeRecord),
    ) -> Result<Option<Difference>, DiffError> {
        if old.1.kind != FileKind::Regular || new.1.kind != FileKind::Regular {
            return Ok(None);
        }
        let Some(found) = self.both(old, new)? else { return Ok(None) };
        let least = old.1.size.min(new.1.size);
        let shared = least - pages::bytes_of(&found.granules, least);
        Ok((shared > 0).then_some(found))
    }

    /// The granules of `ranges` whose bytes are not the same.
    fn really(
        &self,
        (old_path, old): (&Path, &InodeRecord),
        (path, new): (&Path, &InodeRecord),
        ranges: &[GranuleRange],
    ) -> Result<Vec<GranuleRange>, DiffError> {
        let mut kept: Vec<GranuleRange> = Vec::new();
        let (mut was, mut is) = (vec![0; BUFFER_BYTES as usize], vec![0; BUFFER_BYTES as usize]);
        let both_have = crate::format::id::granules_spanned(old.size.min(new.size));
        for range in ranges {
            let mut start = range.start;
            while start < range.end {
                let at_once = (BUFFER_BYTES / GRANULE_BYTES) as Granule;
                let end = range.end.min(start + at_once);
                let (offset, len) = (
                    u64::from(start) * GRANULE_BYTES,
                    (end - start) as usize * GRANULE_BYTES as usize,
                );
                self.before.read(old_path, old, &mut was[..len], offset)?;
                self.after.read(path, new, &mut is[..len], offset)?;
                let bytes = GRANULE_BYTES as usize;
                let pairs = was[..len].chunks(bytes).zip(is[..len].chunks(bytes));
                for (granule, (was, is)) in (start..end).zip(pairs) {
                    // What only one of them has differs, be it zeros.
                    if was == is && granule < both_have {
                        continue;
                    }
                    match kept.last_mut() {
                        Some(last) if last.end == granule => last.end += 1,
                        _ => kept.push(GranuleRange { start: granule, end: granule + 1 }),
                    }
                }
                start = end;
            }
        }
        Ok(kept)
    }
}

fn sizes_differ(old: &InodeRecord, new: &InodeRecord) -> bool {
    size_of(old) != size_of(new)
}

/// Bytes of a regular file; other kinds have none that count.
fn size_of(record: &InodeRecord) -> Option<u64> {
    (record.kind == FileKind::Regular).then_some(record.size)
}

fn lone(path: &Path, record: &InodeRecord, change: Change) -> Difference {
    let size = size_of(record);
    let end = crate::format::id::granules_spanned(size.unwrap_or(0));
    let (old_size, new_size) = if change == Change::Added { (None, size) } else { (size, None) };
    Difference {
        path: path.to_owned(),
        change,
        directory: record.kind == FileKind::Directory,
        from: None,
        old_size,
        new_size,
        granules: if end == 0 { Vec::new() } else { vec![GranuleRange { start: 0, end }] },
    }
}
