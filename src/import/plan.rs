//! What an import will put into the layer: names, inodes, and files to copy.

use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;

use nix::fcntl::OFlag;

use super::source::{Identity, SourceTree, join, modified};
use super::{ImportError, Note};
use crate::format::{DirentTarget, FileKind, Ino, InodeRecord, Timestamp};

/// The whole tree, in memory: about 400 bytes per file.
#[derive(Debug, Default)]
pub struct Plan {
    /// The trees it comes from: the source, then tablespaces and WAL from outside of it.
    pub trees: Vec<SourceTree>,
    /// Every directory that was listed.
    pub dirs: Vec<PlannedDir>,
    /// Inode `n` at index `n - 1`.
    pub inodes: Vec<InodeRecord>,
    /// Every name.
    pub dirents: Vec<PlannedDirent>,
    /// One per regular file with contents.
    pub jobs: Vec<CopyJob>,
    /// What was counted.
    pub counts: Counts,
    /// What the user must know.
    pub notes: Vec<Note>,
}

/// A directory of a source tree.
#[derive(Debug)]
pub struct PlannedDir {
    /// Index into [`Plan::trees`].
    pub tree: usize,
    /// Path relative to that tree.
    pub path: Vec<u8>,
    /// Which directory it was.
    pub identity: Identity,
    /// When an entry of it was last made or removed.
    pub mtime: Timestamp,
}

/// A name in the layer.
#[derive(Debug)]
pub struct PlannedDirent {
    /// The directory.
    pub dir: Ino,
    /// The name.
    pub name: Box<[u8]>,
    /// What it leads to; never a whiteout.
    pub target: DirentTarget,
}

/// A file whose contents are to be copied.
#[derive(Debug, Clone, Copy)]
pub struct CopyJob {
    /// Its inode; size and time as in [`Plan::inodes`].
    pub ino: Ino,
    /// Index into [`Plan::dirs`].
    pub dir: usize,
    /// Index into [`Plan::dirents`]: its name.
    pub dirent: usize,
    /// Which file it was.
    pub identity: Identity,
}

/// What a tree holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Regular files (a file with two names counts once).
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// FIFOs and device nodes.
    pub special: u64,
    /// Additional names of files.
    pub hard_links: u64,
    /// Sizes of all regular files together, holes included.
    pub bytes: u64,
}

impl Plan {
    /// The record of an inode that the plan made.
    pub fn inode(&self, ino: Ino) -> &InodeRecord {
        &self.inodes[ino.0 as usize - 1]
    }

    /// The record of an inode that the plan made, to be changed.
    pub fn inode_mut(&mut self, ino: Ino) -> &mut InodeRecord {
        &mut self.inodes[ino.0 as usize - 1]
    }

    /// Whether the tree has no entry at all.
    pub fn is_empty_tree(&self) -> bool {
        self.dirents.is_empty()
    }

    /// Sizes of the files to be copied together.
    pub fn bytes_to_copy(&self) -> u64 {
        self.jobs.iter().map(|job| self.inode(job.ino).size).sum()
    }

    /// Where the file of a job lies on the host.
    pub fn job_path(&self, job: &CopyJob) -> PathBuf {
        let dir = &self.dirs[job.dir];
        let name = &self.dirents[job.dirent].name;
        self.trees[dir.tree].full_path(&join(&dir.path, name))
    }

    /// Takes files that were gone when they were to be copied out of the plan, with all names.
    pub fn forget_vanished(&mut self, vanished: &[CopyJob]) {
        if vanished.is_empty() {
            return;
        }
        let gone: HashSet<Ino> = vanished.iter().map(|job| job.ino).collect();
        for job in vanished {
            self.counts.files -= 1;
            self.counts.bytes -= self.inode(job.ino).size;
            self.inode_mut(job.ino).nlink = 0;
            self.notes.push(Note::Vanished { path: self.job_path(job) });
        }
        self.dirents.retain(|dirent| match dirent.target {
            DirentTarget::Link { ino, .. } => !gone.contains(&ino),
            DirentTarget::Whiteout => true,
        });
        // Jobs name their dirent by position, which has just changed.
        self.jobs.clear();
    }

    /// Fails if an entry was made or removed in any directory since it was listed.
    pub fn verify_directories(&self) -> Result<(), ImportError> {
        for dir in &self.dirs {
            let tree = &self.trees[dir.tree];
            let changed = |change| ImportError::Changed { path: tree.full_path(&dir.path), change };
            let metadata = tree
                .open_at(&dir.path, OFlag::O_PATH)
                .and_then(|fd| File::from(fd).metadata())
                .map_err(|_| changed("it is gone"))?;
            if Identity::of(&metadata) != dir.identity {
                return Err(changed("another directory took its place"));
            }
            if modified(&metadata) != dir.mtime {
                return Err(changed("files were created or removed in it"));
            }
        }
        Ok(())
    }

    /// Adds an inode with the next number; `record.ino` is set here.
    pub(super) fn add_inode(&mut self, mut record: InodeRecord) -> Ino {
        let ino = Ino(self.inodes.len() as u64 + 1);
        record.ino = ino;
        match record.kind {
            FileKind::Regular => {
                self.counts.files += 1;
                self.counts.bytes += record.size;
            }
            FileKind::Directory => self.counts.directories += 1,
            FileKind::Symlink => self.counts.symlinks += 1,
            _ => self.counts.special += 1,
        }
        self.inodes.push(record);
        ino
    }

    /// Adds a name for an inode; returns the position of the name.
    pub(super) fn add_dirent(&mut self, dir: Ino, name: &[u8], ino: Ino) -> usize {
        let kind = self.inode(ino).kind;
        if kind == FileKind::Directory {
            // The ".." of a subdirectory is a name of its parent.
            self.inode_mut(dir).nlink += 1;
        }
        let target = DirentTarget::Link { ino, kind };
        self.dirents.push(PlannedDirent { dir, name: name.into(), target });
        self.dirents.len() - 1
    }
}
