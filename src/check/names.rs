//! The tree of names of a branch: every name leads to an inode, every inode has as many names as it
//! says, every directory is in one place.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::Report;
use crate::catalog::{LayerRow, Store};
use crate::format::index::Index;
use crate::format::journal::{FrameReader, LogHeader, Record};
use crate::format::{DirentTarget, FileKind, FormatError, Ino, InodeRecord};
use crate::io::host::{open_plain, read_plain};
use crate::io::sys;

/// Findings of one kind that are spelled out; more are counted.
const SPELLED_OUT_MAX: usize = 20;

/// What is kept of an inode.
struct Known {
    kind: FileKind,
    nlink: u32,
    parent: Ino,
    names: u32,
    subdirectories: u32,
}

#[derive(Default)]
struct Tree {
    names: HashMap<(Ino, Box<[u8]>), DirentTarget>,
    inodes: HashMap<Ino, Known>,
    /// Inodes that a newer layer took a name from. The record of a removed file stays below.
    unlinked: HashSet<Ino>,
}

/// Whether the layer has records of its own.
pub(super) fn has_records(store: &Store, row: &LayerRow) -> bool {
    let dir = store.layer_dir(row.id);
    dir.join("index").exists() || dir.join("journal").exists()
}

/// Stacks the records of `chain` (newest first) and checks what they say together. `Err` tells why
/// the records could not be read.
pub(super) fn check_tree(
    store: &Store,
    chain: &[&LayerRow],
    report: &mut Report,
) -> Result<(), String> {
    let mut tree = Tree::default();
    for row in chain {
        tree.put_below(&store.layer_dir(row.id))?;
    }
    report.names += tree.names.len() as u64;
    let Some(newest) = chain.first() else { return Ok(()) };
    let dir = store.layer_dir(newest.id);
    let problems = tree.problems();
    for problem in problems.iter().take(SPELLED_OUT_MAX) {
        report.damaged(dir.clone(), problem);
    }
    if problems.len() > SPELLED_OUT_MAX {
        let more = problems.len() - SPELLED_OUT_MAX;
        report.damaged(dir, format!("{more} more problems of that kind"));
    }
    Ok(())
}

impl Tree {
    /// Adds what the next older layer says and no newer one has said.
    fn put_below(&mut self, dir: &Path) -> Result<(), String> {
        // The index first: a layer that is finalized just now loses its journal after it has one.
        let journal = read_plain(&dir.join("journal"));
        if let Some(index) = open_index(&dir.join("index"))? {
            return self.put_index(&index).map_err(|error| format!("index: {error}"));
        }
        match journal {
            Ok(bytes) => self.put_journal(&bytes).map_err(|error| format!("journal: {error}")),
            Err(error) => Err(format!("neither index nor journal can be read ({error})")),
        }
    }

    fn put_index(&mut self, index: &Index) -> Result<(), FormatError> {
        for entry in index.dirents() {
            let entry = entry?;
            self.put_name((entry.dir, entry.name.into()), entry.target);
        }
        for record in index.inodes() {
            self.put_inode(&record?);
        }
        Ok(())
    }

    fn put_journal(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let mut names = HashMap::new();
        let mut inodes = HashMap::new();
        let body = bytes.get(LogHeader::BYTES..).unwrap_or_default();
        for frame in FrameReader::new(body, 1) {
            for record in frame?.records {
                match record {
                    Record::Inode(inode) => drop(inodes.insert(inode.ino, inode)),
                    Record::Forget(ino) => drop(inodes.remove(&ino)),
                    Record::Dirent { dir, name, target } => {
                        names.insert((dir, name.into_boxed_slice()), target);
                    }
                    Record::Layout(_)
                    | Record::NextIno(_)
                    | Record::Length { .. }
                    | Record::Closed { .. }
                    | Record::Lost { .. } => {}
                }
            }
        }
        for (name, target) in names {
            self.put_name(name, target);
        }
        for inode in inodes.values() {
            self.put_inode(inode);
        }
        Ok(())
    }

    fn put_name(&mut self, name: (Ino, Box<[u8]>), target: DirentTarget) {
        let shown = *self.names.entry(name).or_insert(target);
        if let DirentTarget::Link { ino, .. } = target
            && shown != target
        {
            self.unlinked.insert(ino);
        }
    }

    fn put_inode(&mut self, record: &InodeRecord) {
        let InodeRecord { ino, kind, nlink, parent, .. } = *record;
        let known = Known { kind, nlink, parent, names: 0, subdirectories: 0 };
        self.inodes.entry(ino).or_insert(known);
    }

    fn problems(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        let names = std::mem::take(&mut self.names);
        for ((dir, name), target) in &names {
            let DirentTarget::Link { ino, kind } = *target else { continue };
            let shown =
                || format!("name {:?} in directory {}", String::from_utf8_lossy(name), dir.0);
            match self.inodes.get_mut(dir) {
                Some(parent) if parent.kind == FileKind::Directory && parent.nlink > 0 => {
                    parent.subdirectories += u32::from(kind == FileKind::Directory);
                }
                Some(_) => problems.push(format!("{}: that is no directory any more", shown())),
                None => problems.push(format!("{}: there is no such directory", shown())),
            }
            let Some(child) = self.inodes.get_mut(&ino) else {
                problems.push(format!(
                    "{} leads to inode {}, which does not exist",
                    shown(),
                    ino.0
                ));
                continue;
            };
            child.names += 1;
            if child.kind != kind {
                problems.push(format!("{}: the kind of inode {} differs", shown(), ino.0));
            }
            if kind == FileKind::Directory && child.parent != *dir {
                let parent = child.parent.0;
                problems.push(format!("{}: the directory says that it lies in {parent}", shown()));
            }
        }
        self.names = names;
        for (ino, known) in &self.inodes {
            // The names are all gone, and in the newest layer nothing is left to say so.
            if known.names > 0 || !self.unlinked.contains(ino) {
                problems.extend(count_problem(*ino, known));
            }
        }
        problems.extend(self.cycles());
        problems.sort();
        problems
    }

    /// Directories that do not lead up to the root.
    fn cycles(&self) -> Vec<String> {
        let mut rooted: HashMap<Ino, bool> = HashMap::from([(Ino::ROOT, true)]);
        let mut problems = Vec::new();
        for (ino, known) in &self.inodes {
            if known.kind != FileKind::Directory || known.names == 0 {
                continue;
            }
            let (mut path, mut at) = (Vec::new(), *ino);
            let answer = loop {
                if let Some(answer) = rooted.get(&at) {
                    break *answer;
                }
                // On the way already: what leads in a circle never reaches the root.
                rooted.insert(at, false);
                path.push(at);
                match self.inodes.get(&at) {
                    Some(known) => at = known.parent,
                    None => break false,
                }
            };
            rooted.extend(path.into_iter().map(|step| (step, answer)));
            if !answer {
                problems.push(format!("directory {} cannot be reached from the root", ino.0));
            }
        }
        problems
    }
}

fn count_problem(ino: Ino, known: &Known) -> Option<String> {
    let Known { kind, nlink, names, subdirectories, .. } = *known;
    if nlink == 0 {
        // Unlinked while it was open: its names are counted, its record may stay.
        return (names > 0).then(|| format!("inode {} is unlinked and has {names} names", ino.0));
    }
    if kind != FileKind::Directory {
        let wrong = nlink != names;
        return wrong.then(|| format!("inode {} has {names} names and counts {nlink}", ino.0));
    }
    if names != u32::from(ino != Ino::ROOT) {
        return Some(format!("directory {} has {names} names", ino.0));
    }
    let expected = subdirectories + 2;
    (nlink != expected)
        .then(|| format!("directory {} counts {nlink} links; {expected} are there", ino.0))
}

fn open_index(path: &Path) -> Result<Option<Index>, String> {
    let map = match open_plain(path).and_then(|file| sys::map_immutable(&file)) {
        Ok(map) => map,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("index: {error}")),
    };
    Index::open(Box::new(map)).map(Some).map_err(|error| format!("index: {error}"))
}
