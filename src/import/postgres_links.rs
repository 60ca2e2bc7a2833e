//! The symbolic links of a cluster: what they become, so that a branch is one self-contained tree.
//!
//! **Tablespaces.** `pg_tblspc/<oid>` is a link to a directory outside. A branch that kept it would
//! share the tablespace with its source and with every fork. The contents come into the branch as
//! `cowfs_tblspc/<oid>/`, and the link becomes the relative `../cowfs_tblspc/<oid>`, which holds
//! wherever the branch is mounted (also under another path inside a container).
//!
//! The alternative, a real directory `pg_tblspc/<oid>` ("in-place tablespace"), was tried and
//! rejected. Both forms were run with Postgres 13.23, 15.18 and 18.4:
//!
//! | | relative link | real directory |
//! | --- | --- | --- |
//! | start, read, write, create and drop in it, `DROP TABLESPACE` | works | works |
//! | crash recovery (every live fork begins so) | works | works |
//! | `pg_checksums`, unknown directory in the data directory | works | works |
//! | recovery of a backup, a standby, point-in-time recovery | works | PANIC "unexpected directory entry" unless `allow_in_place_tablespaces` is on |
//! | `pg_basebackup -Ft` | complete in `base.tar` | works |
//! | `pg_basebackup -Fp` | refused by the client ("unsafe path name") | works, but see above |
//!
//! A backup tool that refuses can be replaced (`-Ft`, or a fork); a server that panics when it
//! reaches consistency cannot, and an imported standby would be such a server at once.
//! `pg_tablespace_location()` and thus `pg_dumpall` show the relative path.
//!
//! **`pg_wal`** outside becomes a real directory, as `initdb` without `--waldir` makes it; and so
//! does every other directory in which the server keeps its data (`base`, `pg_xact`, ...).
//!
//! **Within those directories** a link out of them is refused: a server on the branch would write
//! into the files of the cluster that it came from.
//!
//! **Others** that lead out of the tree (certificates, logs, configuration) are kept as they are,
//! with a warning: cowfs cannot know what they are for.

use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::source::{SourceTree, as_path};
use super::walk::{Here, Rule, Walker, os};
use super::{ImportError, Note, refuse_overlap};
use crate::format::{DirentTarget, FileKind, Ino, InodeRecord};

/// Where tablespaces lie in a branch, unless the tree has a file of that name.
const TABLESPACE_ROOT: &str = "cowfs_tblspc";

/// The directories of a cluster that nobody but the server writes to, in Postgres 12 to 18.
const SERVER_DIRECTORIES: [&str; 17] = [
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_multixact",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
];
/// Those without which no server starts, not even one that recovers.
const REQUIRED_DIRECTORIES: [&str; 4] = ["base", "global", "pg_wal", "pg_xact"];

/// Whether the entry `name` of a cluster's root is a directory of the server.
pub(super) fn is_of_the_server(name: &[u8]) -> bool {
    SERVER_DIRECTORIES.iter().any(|known| known.as_bytes() == name)
}

/// A tablespace outside of the tree, brought in after the tree itself was walked.
#[derive(Debug)]
pub(super) struct PendingTablespace {
    /// The name of the link: the oid.
    oid: Vec<u8>,
    /// `pg_tblspc`.
    links: Ino,
    /// The link's own metadata.
    metadata: Metadata,
    /// Where it leads.
    target: PathBuf,
}

/// Where a link of Postgres leads.
enum Leads {
    /// Into the tree: the path there, relative to its root.
    Inside(PathBuf),
    /// Out of it, to this canonical path.
    Outside(PathBuf),
}

impl Walker<'_> {
    /// Adds a symbolic link, or what takes its place. Returns the inode if it stays a link.
    pub(super) fn add_symlink(
        &mut self,
        here: &Here<'_>,
        name: &[u8],
        target: Vec<u8>,
        metadata: &Metadata,
    ) -> Result<Option<Ino>, ImportError> {
        let is_ours = match here.rule {
            Rule::ClusterRoot => is_of_the_server(name),
            Rule::TablespaceLinks | Rule::Data => true,
            Rule::Plain | Rule::Tablespace => false,
        };
        if is_ours {
            let levels = here.path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
            let levels = levels.count();
            match self.resolve(here, name)? {
                Some(Leads::Inside(path)) => {
                    let relative = climb(levels, &path);
                    if relative.as_os_str().as_bytes() != target {
                        self.plan.notes.push(Note::LinkMadeRelative {
                            link: as_path(&here.entry(name)).to_owned(),
                            from: as_path(&target).to_owned(),
                            to: relative.clone(),
                        });
                    }
                    let target = relative.into_os_string().into_encoded_bytes();
                    return Ok(Some(self.add_link(here.ino, name, target, metadata)));
                }
                Some(Leads::Outside(target)) if here.rule == Rule::Data && !self.options.any => {
                    let link = self.plan.trees[here.tree].full_path(&here.entry(name));
                    return Err(ImportError::DataOutside { link, target });
                }
                Some(Leads::Outside(target)) if here.rule != Rule::Data => {
                    self.bring_in(here, name, target, metadata)?;
                    return Ok(None);
                }
                Some(Leads::Outside(_)) | None => {}
            }
        }
        if leads_out(here.path, &target) {
            self.plan.notes.push(Note::OutsideLinkKept {
                link: as_path(&here.entry(name)).to_owned(),
                target: as_path(&target).to_owned(),
            });
        }
        Ok(Some(self.add_link(here.ino, name, target, metadata)))
    }

    /// Where the link leads; `None` to keep it as it is (a broken one, with `--any`).
    fn resolve(&self, here: &Here<'_>, name: &[u8]) -> Result<Option<Leads>, ImportError> {
        let root = self.plan.trees[here.tree].path();
        let link = root.join(as_path(&here.entry(name)));
        let directory = here.rule != Rule::Data;
        match std::fs::canonicalize(&link).and_then(|target| {
            let fits = !directory || target.is_dir();
            if fits { Ok(target) } else { Err(io::ErrorKind::NotADirectory.into()) }
        }) {
            Ok(target) => Ok(Some(match target.strip_prefix(root) {
                Ok(inside) if !inside.as_os_str().is_empty() => Leads::Inside(inside.to_owned()),
                _ => Leads::Outside(target),
            })),
            Err(_) if self.options.any => Ok(None),
            Err(source) => {
                let target = std::fs::read_link(&link).unwrap_or_default();
                Err(ImportError::BrokenLink { link, target, source })
            }
        }
    }

    /// Takes a directory outside of the tree into the branch.
    fn bring_in(
        &mut self,
        here: &Here<'_>,
        name: &[u8],
        target: PathBuf,
        metadata: &Metadata,
    ) -> Result<(), ImportError> {
        let source = self.plan.trees[here.tree].path();
        if self.options.adopt {
            let link = source.join(as_path(&here.entry(name)));
            return Err(ImportError::OutsideWhileAdopting { link, target });
        }
        // A link to a directory above would bring in the cluster itself, again and again.
        if target.starts_with(source) || source.starts_with(&target) {
            let link = source.join(as_path(&here.entry(name)));
            return Err(ImportError::LinkToItself { link, target });
        }
        refuse_overlap(&self.options.store, &target)?;
        if here.rule == Rule::TablespaceLinks {
            self.tablespaces.push(PendingTablespace {
                oid: name.to_owned(),
                links: here.ino,
                metadata: metadata.clone(),
                target,
            });
            return Ok(());
        }
        let tree = open_target(&target, source.join(os(name)))?;
        let directory = as_path(name).to_owned();
        self.plan.notes.push(Note::DirectoryBroughtIn { directory, from: target });
        self.add_tree(tree, Some((here.ino, name)), here.rule.within(name))?;
        Ok(())
    }

    /// Fails if what was walked lacks something that every cluster has.
    pub(super) fn refuse_incomplete(&self) -> Result<(), ImportError> {
        let missing = |name: &&&str| !matches!(self.look_up(Ino::ROOT, name.as_bytes()), Some((_, kind)) if kind != FileKind::Regular);
        match REQUIRED_DIRECTORIES.iter().find(missing) {
            None => Ok(()),
            Some(directory) => {
                let dir = self.plan.trees[0].path().to_owned();
                Err(ImportError::Incomplete { dir, directory })
            }
        }
    }

    /// Gives every tablespace from outside its place in the branch.
    pub(super) fn place_tablespaces(&mut self) -> Result<(), ImportError> {
        let tablespaces = std::mem::take(&mut self.tablespaces);
        if tablespaces.is_empty() {
            return Ok(());
        }
        let (root_name, root) = self.tablespace_root();
        for tablespace in tablespaces {
            let name = self.free_name(root, &tablespace.oid);
            let link = Path::new("pg_tblspc").join(os(&tablespace.oid));
            let inside = Path::new(&root_name).join(os(&name));
            let tree = open_target(&tablespace.target, self.plan.trees[0].path().join(&link))?;
            self.plan.notes.push(Note::TablespaceBroughtIn {
                link,
                from: tablespace.target,
                to: inside.clone(),
            });
            self.add_tree(tree, Some((root, &name)), Rule::Tablespace)?;
            let target = climb(1, &inside).into_os_string().into_encoded_bytes();
            self.add_link(tablespace.links, &tablespace.oid, target, &tablespace.metadata);
        }
        Ok(())
    }

    /// The directory for tablespaces: that of an earlier import, or a new one.
    fn tablespace_root(&mut self) -> (String, Ino) {
        let mut name = TABLESPACE_ROOT.to_owned();
        loop {
            match self.look_up(Ino::ROOT, name.as_bytes()) {
                Some((ino, FileKind::Directory)) => return (name, ino),
                // Something else has the name: the next one.
                Some(_) => name.push('_'),
                None => break,
            }
        }
        // Like the data directory itself: Postgres' own, and nobody else's.
        let like = self.plan.inode(Ino::ROOT).clone();
        let record = InodeRecord { perm: 0o700, nlink: 2, parent: Ino::ROOT, ..like };
        let ino = self.plan.add_inode(record);
        self.plan.add_dirent(Ino::ROOT, name.as_bytes(), ino);
        (name, ino)
    }

    /// `oid`, or `oid` with underscores if that name is taken in `dir`.
    fn free_name(&self, dir: Ino, oid: &[u8]) -> Vec<u8> {
        let mut name = oid.to_owned();
        while self.look_up(dir, &name).is_some() {
            name.push(b'_');
        }
        name
    }

    fn look_up(&self, dir: Ino, name: &[u8]) -> Option<(Ino, FileKind)> {
        let found = self.plan.dirents.iter().find(|d| d.dir == dir && *d.name == *name)?;
        match found.target {
            DirentTarget::Link { ino, kind } => Some((ino, kind)),
            DirentTarget::Whiteout => None,
        }
    }

    /// Whether a name in a tablespace's directory is that of this cluster's contents.
    pub(super) fn is_own_version(&self, name: &[u8]) -> bool {
        let Some(cluster) = self.options.cluster else { return true };
        match cluster.catalog_version {
            Some(catalog) => name == format!("PG_{}_{catalog}", cluster.major).as_bytes(),
            None => name.starts_with(format!("PG_{}_", cluster.major).as_bytes()),
        }
    }
}

fn open_target(target: &Path, link: PathBuf) -> Result<SourceTree, ImportError> {
    SourceTree::open(target).map_err(|source| ImportError::BrokenLink {
        link,
        target: target.to_owned(),
        source,
    })
}

/// `path` below the root, seen from a directory `levels` below the root.
fn climb(levels: usize, path: &Path) -> PathBuf {
    let mut relative = PathBuf::new();
    for _ in 0..levels {
        relative.push("..");
    }
    relative.join(path)
}

/// Whether a link in directory `dir` of the tree leads out of the tree.
///
/// By its text alone: a relative link through another link may be judged wrongly, which costs a
/// warning too many or too few.
fn leads_out(dir: &[u8], target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return true;
    }
    let components = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .map(<[u8]>::to_vec)
            .collect()
    };
    let mut depth = components(dir).len();
    for part in components(target) {
        if part != b".." {
            depth += 1;
        } else if depth == 0 {
            return true;
        } else {
            depth -= 1;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_out_of_the_tree() {
        for (dir, target) in [("", ".."), ("a", "../../x"), ("", "/etc"), ("a/b", "c/../../../..")]
        {
            assert!(leads_out(dir.as_bytes(), target.as_bytes()), "{dir} {target}");
        }
        for (dir, target) in
            [("", "x"), ("a", "../x"), ("a/b", "../../c"), ("", "./a/../b"), ("", "")]
        {
            assert!(!leads_out(dir.as_bytes(), target.as_bytes()), "{dir} {target}");
        }
    }

    #[test]
    fn relative_targets() {
        assert_eq!(climb(1, Path::new("cowfs_tblspc/16400")), Path::new("../cowfs_tblspc/16400"));
        assert_eq!(climb(0, Path::new("wal")), Path::new("wal"));
    }
}
