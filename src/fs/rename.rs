//! rename(2) with `RENAME_NOREPLACE` and `RENAME_EXCHANGE`.

use std::sync::Arc;

use super::names::{check_name, drop_link};
use super::node::Node;
use super::txn::Txn;
use super::{Fs, FsError, now};
use crate::branch::View;
use crate::format::{FileKind, Ino};

/// How a rename treats an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// It makes the rename fail.
    NoReplace,
    /// Both names change places.
    Exchange,
}

/// A directory and a name in it.
pub type Place<'a> = (Ino, &'a [u8]);

impl Fs {
    /// Moves the name `from` to `to`.
    pub fn rename(&self, from: Place<'_>, to: Place<'_>, mode: RenameMode) -> Result<(), FsError> {
        self.writable()?;
        check_name(from.1)?;
        check_name(to.1)?;
        let gate = self.branch.enter();
        let turn = self.names_turn.lock();
        let (ino, _) = self.resolve(&gate, from.0, from.1)?.ok_or(FsError::NotFound)?;
        let target = self.resolve(&gate, to.0, to.1)?;
        let moved = self.node(ino)?;
        let replaced = match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(FsError::Exists),
            (RenameMode::Exchange, None) => return Err(FsError::NotFound),
            // Two names of one file: nothing happens, and both stay.
            (_, Some((target, _))) if target == ino => return Ok(()),
            (_, Some((target, _))) => Some(self.node(target)?),
            (_, None) => None,
        };
        self.refuse_loop(&moved, to.0)?;
        let parents = (self.directory(from.0)?, self.directory(to.0)?);
        match (&replaced, mode) {
            (Some(other), RenameMode::Exchange) => {
                self.refuse_loop(other, from.0)?;
                exchange(&gate, from, to, &moved, other, &parents)?;
            }
            (replaced, _) => {
                if let Some(replaced) = replaced {
                    refuse_mismatch(&gate, &moved, replaced)?;
                }
                replace(&gate, from, to, &moved, replaced.as_deref(), &parents)?;
            }
        }
        self.note_place(&moved, to.0, to.1);
        drop(turn);
        drop(gate);
        if let (Some(replaced), RenameMode::Replace) = (replaced, mode) {
            self.retire_unused(&replaced);
        }
        Ok(())
    }

    /// A directory must not become its own descendant.
    fn refuse_loop(&self, moved: &Node, into: Ino) -> Result<(), FsError> {
        if moved.kind != FileKind::Directory {
            return Ok(());
        }
        let mut at = into;
        while at != Ino::ROOT {
            if at == moved.ino {
                return Err(FsError::Invalid);
            }
            at = self.node(at)?.state.lock().record.parent;
        }
        Ok(())
    }
}

fn refuse_mismatch(view: &View, moved: &Node, replaced: &Node) -> Result<(), FsError> {
    match (moved.kind == FileKind::Directory, replaced.kind == FileKind::Directory) {
        (true, false) => Err(FsError::NotDirectory),
        (false, true) => Err(FsError::IsDirectory),
        (true, true) if !view.is_empty_dir(replaced.ino)? => Err(FsError::NotEmpty),
        _ => Ok(()),
    }
}

/// Moves a subdirectory's `..` from one parent's link count to the other's.
fn move_parent<'a>(txn: &mut Txn<'a>, child: &'a Node, old: &'a Node, new: &'a Node) {
    if child.kind == FileKind::Directory && old.ino != new.ino {
        txn.edit(child).parent = new.ino;
        txn.edit(old).nlink -= 1;
        txn.edit(new).nlink += 1;
    }
}

fn touch_parents<'a>(txn: &mut Txn<'a>, parents: &'a (Arc<Node>, Arc<Node>)) {
    let time = now();
    for parent in [&parents.0, &parents.1] {
        let record = txn.edit(parent);
        record.mtime = time;
        record.ctime = time;
    }
}

fn replace(
    view: &View,
    from: Place<'_>,
    to: Place<'_>,
    moved: &Node,
    replaced: Option<&Node>,
    parents: &(Arc<Node>, Arc<Node>),
) -> Result<(), FsError> {
    let (mut txn, time) = (Txn::default(), now());
    txn.edit(moved).ctime = time;
    if let Some(replaced) = replaced {
        drop_link(txn.edit(replaced), time);
        if replaced.kind == FileKind::Directory {
            txn.edit(&parents.1).nlink -= 1;
        }
    }
    move_parent(&mut txn, moved, &parents.0, &parents.1);
    touch_parents(&mut txn, parents);
    txn.unlink(from.0, from.1);
    txn.link(to.0, to.1, moved.ino, moved.kind);
    txn.commit(&view.open)
}

fn exchange(
    view: &View,
    from: Place<'_>,
    to: Place<'_>,
    moved: &Node,
    other: &Node,
    parents: &(Arc<Node>, Arc<Node>),
) -> Result<(), FsError> {
    let (mut txn, time) = (Txn::default(), now());
    txn.edit(moved).ctime = time;
    txn.edit(other).ctime = time;
    move_parent(&mut txn, moved, &parents.0, &parents.1);
    move_parent(&mut txn, other, &parents.1, &parents.0);
    touch_parents(&mut txn, parents);
    txn.link(from.0, from.1, other.ino, other.kind);
    txn.link(to.0, to.1, moved.ino, moved.kind);
    txn.commit(&view.open)
}
