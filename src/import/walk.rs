//! The walk: a directory tree becomes a plan. Reads names and metadata, never contents.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::UNIX_EPOCH;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};

use super::plan::{CopyJob, Plan, PlannedDir};
use super::postgres_links::{self, PendingTablespace};
use super::source::{Identity, SourceTree, as_path, changed, join, modified, open_entry};
use super::{ImportError, Note, interrupted};
use crate::format::id::FILE_BYTES_MAX;
use crate::format::{AdoptedSource, FileKind, Ino, InodeRecord, Timestamp};
use crate::io::sys;
use crate::postgres::hygiene;

/// What the walk must know of a Postgres cluster.
#[derive(Debug, Clone, Copy)]
pub struct ClusterFacts {
    /// Major version.
    pub major: u32,
    /// Catalog version, if the control file is usable.
    pub catalog_version: Option<u32>,
}

/// How to walk.
#[derive(Debug, Clone)]
pub struct WalkOptions {
    /// Set if the tree is a Postgres cluster.
    pub cluster: Option<ClusterFacts>,
    /// Record where contents lie instead of planning to copy them.
    pub adopt: bool,
    /// Files may vanish meanwhile.
    pub any: bool,
    /// The store's canonical path, which must not be reached.
    pub store: PathBuf,
    /// Set from outside to give up.
    pub cancel: Arc<AtomicBool>,
}

/// What is special about the entries of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Nothing.
    Plain,
    /// The root of a Postgres cluster.
    ClusterRoot,
    /// `pg_tblspc`.
    TablespaceLinks,
    /// The directory to which a tablespace's link leads.
    Tablespace,
    /// Within the directories in which Postgres keeps its data: all of it belongs to the cluster.
    Data,
}

impl Rule {
    /// The rule for a directory, by that of the one it lies in and its name there.
    pub(super) fn within(self, name: &[u8]) -> Rule {
        match self {
            Rule::ClusterRoot if name == b"pg_tblspc" => Rule::TablespaceLinks,
            Rule::ClusterRoot if postgres_links::is_of_the_server(name) => Rule::Data,
            // An in-place tablespace is a directory among the links.
            Rule::TablespaceLinks | Rule::Tablespace | Rule::Data => Rule::Data,
            Rule::ClusterRoot | Rule::Plain => Rule::Plain,
        }
    }
}

/// A directory whose entries are still to be visited.
#[derive(Debug, Clone, Copy)]
struct PendingDir {
    planned: usize,
    ino: Ino,
    rule: Rule,
}

/// The state of a walk.
pub(super) struct Walker<'a> {
    pub(super) options: &'a WalkOptions,
    pub(super) plan: Plan,
    pub(super) tablespaces: Vec<PendingTablespace>,
    pending: Vec<PendingDir>,
    /// Files with several names on the host, by what they are.
    links: HashMap<(u64, u64), Ino>,
    attributes: Option<(u64, PathBuf)>,
    is_root: bool,
}

/// The directory whose entries are being visited.
pub(super) struct Here<'a> {
    pub(super) planned: usize,
    pub(super) ino: Ino,
    pub(super) rule: Rule,
    pub(super) tree: usize,
    /// Relative to the tree.
    pub(super) path: &'a [u8],
}

impl Here<'_> {
    /// The path of an entry, relative to the tree.
    pub(super) fn entry(&self, name: &[u8]) -> Vec<u8> {
        join(self.path, name)
    }
}

/// Walks `tree` and, for a cluster, the tablespaces and WAL directory outside of it.
pub fn walk(tree: SourceTree, options: &WalkOptions) -> Result<Plan, ImportError> {
    let mut walker = Walker {
        options,
        plan: Plan::default(),
        tablespaces: Vec::new(),
        pending: Vec::new(),
        links: HashMap::new(),
        attributes: None,
        is_root: nix::unistd::geteuid().is_root(),
    };
    let rule = if options.cluster.is_some() { Rule::ClusterRoot } else { Rule::Plain };
    walker.add_tree(tree, None, rule)?;
    walker.visit_pending()?;
    if rule == Rule::ClusterRoot && !options.any {
        walker.refuse_incomplete()?;
    }
    walker.place_tablespaces()?;
    walker.visit_pending()?;
    let mut plan = walker.plan;
    if let Some((files, first)) = walker.attributes {
        plan.notes.push(Note::AttributesIgnored { files, first });
    }
    Ok(plan)
}

impl Walker<'_> {
    /// Adds the root of a tree: as the root of the branch, or under a name in a directory of it.
    pub(super) fn add_tree(
        &mut self,
        tree: SourceTree,
        place: Option<(Ino, &[u8])>,
        rule: Rule,
    ) -> Result<Ino, ImportError> {
        let path = tree.path().to_owned();
        let metadata = tree
            .open_at(b"", OFlag::O_PATH)
            .and_then(|fd| File::from(fd).metadata())
            .map_err(ImportError::host("reading", path))?;
        self.plan.trees.push(tree);
        let tree = self.plan.trees.len() - 1;
        Ok(self.add_directory(tree, Vec::new(), &metadata, place, rule))
    }

    fn add_directory(
        &mut self,
        tree: usize,
        path: Vec<u8>,
        metadata: &Metadata,
        place: Option<(Ino, &[u8])>,
        rule: Rule,
    ) -> Ino {
        let parent = place.map_or(Ino::ROOT, |(dir, _)| dir);
        let ino = self.plan.add_inode(InodeRecord {
            nlink: 2,
            parent,
            ..record(FileKind::Directory, metadata)
        });
        if let Some((dir, name)) = place {
            self.plan.add_dirent(dir, name, ino);
        }
        let (identity, mtime) = (Identity::of(metadata), modified(metadata));
        self.plan.dirs.push(PlannedDir { tree, path, identity, mtime });
        self.pending.push(PendingDir { planned: self.plan.dirs.len() - 1, ino, rule });
        ino
    }

    fn visit_pending(&mut self) -> Result<(), ImportError> {
        while let Some(dir) = self.pending.pop() {
            interrupted(&self.options.cancel)?;
            self.visit_directory(dir)?;
        }
        Ok(())
    }

    fn visit_directory(&mut self, dir: PendingDir) -> Result<(), ImportError> {
        let planned = &self.plan.dirs[dir.planned];
        let (tree, path, identity) = (planned.tree, planned.path.clone(), planned.identity);
        let full = || self.plan.trees[tree].full_path(&path);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let fd = match self.plan.trees[tree].open_at(&path, flags) {
            Ok(fd) => fd,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.vanished(full()),
            Err(source) => {
                return Err(ImportError::Host { what: "opening", path: full(), source });
            }
        };
        let (fd, metadata) = with_metadata(fd).map_err(ImportError::host("reading", full()))?;
        if Identity::of(&metadata) != identity {
            let change = "another directory took its place";
            return Err(ImportError::Changed { path: full(), change });
        }
        let mut listing = Dir::from_fd(fd).map_err(ImportError::host("listing", full()))?;
        let names = names_in(&mut listing).map_err(ImportError::host("listing", full()))?;
        let here = Here { planned: dir.planned, ino: dir.ino, rule: dir.rule, tree, path: &path };
        for name in names {
            if !self.left_out(&here, &name) {
                self.visit_entry(&here, &listing, &name)?;
            }
        }
        Ok(())
    }

    /// Whether an entry is not to be imported because of its name alone; says so.
    fn left_out(&mut self, here: &Here<'_>, name: &[u8]) -> bool {
        let path = || as_path(&here.entry(name)).to_owned();
        match here.rule {
            Rule::ClusterRoot if hygiene::belongs_to_server(name) => {
                self.plan.notes.push(Note::ServerFileSkipped { path: path() });
                true
            }
            Rule::Tablespace if !self.is_own_version(name) => {
                let path = self.plan.trees[here.tree].full_path(name);
                self.plan.notes.push(Note::TablespaceEntrySkipped { path });
                true
            }
            _ => false,
        }
    }

    fn visit_entry(
        &mut self,
        here: &Here<'_>,
        listing: &Dir,
        name: &[u8],
    ) -> Result<(), ImportError> {
        let full = || self.plan.trees[here.tree].full_path(&here.entry(name));
        let opened = open_entry(listing, name, OFlag::O_PATH).map_err(io::Error::from);
        let (fd, metadata) = match opened.and_then(with_metadata) {
            Ok(both) => both,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.vanished(full()),
            Err(source) => {
                return Err(ImportError::Host { what: "reading", path: full(), source });
            }
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.note_attributes(&fd, here, name);
            let rule = here.rule.within(name);
            let place = Some((here.ino, name));
            self.add_directory(here.tree, here.entry(name), &metadata, place, rule);
            return Ok(());
        }
        if let Some(ino) = self.links.get(&(metadata.dev(), metadata.ino())).copied() {
            self.plan.inode_mut(ino).nlink += 1;
            self.plan.counts.hard_links += 1;
            self.plan.add_dirent(here.ino, name, ino);
            return Ok(());
        }
        let ino = if kind.is_file() {
            self.note_attributes(&fd, here, name);
            Some(self.add_file(here, name, &metadata)?)
        } else if kind.is_symlink() {
            let target =
                readlinkat(&fd, "").map_err(ImportError::host("reading the link", full()))?;
            self.add_symlink(here, name, target.into_vec(), &metadata)?
        } else {
            self.add_special(here, name, &metadata)
        };
        if let Some(ino) = ino
            && metadata.nlink() > 1
        {
            self.links.insert((metadata.dev(), metadata.ino()), ino);
        }
        Ok(())
    }

    fn add_file(
        &mut self,
        here: &Here<'_>,
        name: &[u8],
        metadata: &Metadata,
    ) -> Result<Ino, ImportError> {
        let size = metadata.len();
        if size > FILE_BYTES_MAX {
            let path = self.plan.trees[here.tree].full_path(&here.entry(name));
            return Err(ImportError::TooLarge { path, bytes: size });
        }
        if self.options.adopt {
            let path = self.plan.trees[here.tree].full_path(&here.entry(name));
            if path.as_os_str().len() >= libc::PATH_MAX as usize {
                return Err(ImportError::PathTooLong { path });
            }
        }
        let adopted = self.options.adopt.then(|| AdoptedSource {
            path: here.entry(name),
            host_ino: metadata.ino(),
            size,
            mtime: modified(metadata),
            ctime: changed(metadata),
        });
        let ino = self.plan.add_inode(InodeRecord {
            size,
            adopted,
            ..record(FileKind::Regular, metadata)
        });
        let dirent = self.plan.add_dirent(here.ino, name, ino);
        if size > 0 && !self.options.adopt {
            let identity = Identity::of(metadata);
            self.plan.jobs.push(CopyJob { ino, dir: here.planned, dirent, identity });
        }
        Ok(ino)
    }

    /// Adds a symbolic link with the given target under a name.
    pub(super) fn add_link(
        &mut self,
        dir: Ino,
        name: &[u8],
        target: Vec<u8>,
        metadata: &Metadata,
    ) -> Ino {
        let ino = self.plan.add_inode(InodeRecord {
            size: target.len() as u64,
            symlink: target,
            ..record(FileKind::Symlink, metadata)
        });
        self.plan.add_dirent(dir, name, ino);
        ino
    }

    /// Adds a FIFO or device node; sockets, which mean nothing without their process, are left out.
    fn add_special(&mut self, here: &Here<'_>, name: &[u8], metadata: &Metadata) -> Option<Ino> {
        let path = || as_path(&here.entry(name)).to_owned();
        let file_type = metadata.file_type();
        let kind = if file_type.is_fifo() {
            FileKind::Fifo
        } else if file_type.is_char_device() {
            FileKind::CharDevice
        } else if file_type.is_block_device() {
            FileKind::BlockDevice
        } else {
            self.plan.notes.push(Note::SocketSkipped { path: path() });
            return None;
        };
        if kind != FileKind::Fifo && !self.is_root {
            self.plan.notes.push(Note::DeviceSkipped { path: path() });
            return None;
        }
        // The C library's 64-bit number has the kernel's 32-bit one in its lower half.
        let rdev = if kind == FileKind::Fifo { 0 } else { metadata.rdev() as u32 };
        let ino = self.plan.add_inode(InodeRecord { rdev, ..record(kind, metadata) });
        self.plan.add_dirent(here.ino, name, ino);
        Some(ino)
    }

    fn note_attributes(&mut self, fd: &OwnedFd, here: &Here<'_>, name: &[u8]) {
        if sys::has_portable_xattrs(fd.as_fd()) {
            let first = || (0, as_path(&here.entry(name)).to_owned());
            self.attributes.get_or_insert_with(first).0 += 1;
        }
    }

    /// A file that was listed is gone.
    pub(super) fn vanished(&mut self, path: PathBuf) -> Result<(), ImportError> {
        if !self.options.any {
            return Err(ImportError::Changed { path, change: "it is gone" });
        }
        self.plan.notes.push(Note::Vanished { path });
        Ok(())
    }
}

fn with_metadata(fd: OwnedFd) -> io::Result<(OwnedFd, Metadata)> {
    let file = File::from(fd);
    let metadata = file.metadata()?;
    Ok((file.into(), metadata))
}

/// The names in a directory, sorted, so that the same tree always gives the same inode numbers.
fn names_in(listing: &mut Dir) -> Result<Vec<Box<[u8]>>, Errno> {
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.into());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The record of an inode as the host has it; number, size and what depends on the kind are open.
pub(super) fn record(kind: FileKind, metadata: &Metadata) -> InodeRecord {
    let time = |secs, nanos: i64| Timestamp { secs, nanos: nanos as u32 };
    let ctime = time(metadata.ctime(), metadata.ctime_nsec());
    let born = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let btime = born.map_or(ctime, |since| Timestamp {
        secs: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos(),
    });
    InodeRecord {
        ino: Ino(0),
        kind,
        perm: (metadata.mode() & 0o7777) as u16,
        uid: metadata.uid(),
        gid: metadata.gid(),
        nlink: 1,
        rdev: 0,
        size: 0,
        atime: time(metadata.atime(), metadata.atime_nsec()),
        mtime: modified(metadata),
        ctime,
        btime,
        parent: Ino(0),
        symlink: Vec::new(),
        xattrs: Vec::new(),
        adopted: None,
    }
}

/// A name as the system calls want it.
pub(super) fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}
