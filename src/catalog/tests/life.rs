//! Snapshots, resets, expiry, and taking things back.

use super::*;
use crate::catalog::rehead::Reheaded;
use crate::catalog::undo::Undo;
use crate::catalog::{NewSnapshot, ReheadPlan, SnapshotName, SnapshotPlan, SnapshotRow};

const BY: Actor<'static> = Actor { uid: 7, command: "test" };

fn snap(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

impl Place {
    /// A snapshot that seals the open layer; `next` becomes the head.
    fn snapshot(
        &self,
        of: &BranchRow,
        called: &str,
        next: u64,
    ) -> Result<SnapshotRow, CatalogError> {
        let open = self.head(of);
        let (name, command) = (snap(called), "snapshot".to_owned());
        self.catalog.snapshot(&SnapshotPlan {
            branch: of.id,
            new: NewSnapshot { name, expires_ms: None, uid: 7, command },
            seal: Some(SealPlan { open, parent_next: LayerId(next) }),
            base: Some(open),
        })
    }

    fn rehead(&self, branch: &BranchRow, base: u64, head: u64, keep_as: Option<&str>) -> Reheaded {
        let keep_as = keep_as.map(name);
        let plan = ReheadPlan {
            branch: branch.id,
            base: LayerId(base),
            head: LayerId(head),
            origin: "fork:main@s".to_owned(),
            keep_as: keep_as.as_ref(),
        };
        self.catalog.rehead(&plan, BY).unwrap()
    }

    fn sound(&self) {
        assert_eq!(self.catalog.self_check().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_snapshot_keeps_its_layers_until_it_is_deleted() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    let first = place.snapshot(&main, "first", 2).unwrap();
    assert_eq!((first.layer, first.branch, first.created_by), (LayerId(1), main.id, 7));
    let taken = place.snapshot(&main, "first", 3).unwrap_err();
    assert!(matches!(taken, CatalogError::SnapshotExists { .. }), "{taken}");
    assert_eq!(place.head(&main), LayerId(2), "nothing of what was refused happened");
    place.rehead(&main, 1, 10, None);
    let kept = place.catalog.deleted_branches().unwrap();
    place.purge(kept[0].id);
    assert_eq!(place.catalog.reachable_layers().unwrap(), HashSet::from([1, 10].map(LayerId)));
    let dev =
        place.catalog.create_branch_from_snapshot(&new_branch("dev"), &first, LayerId(20)).unwrap();
    assert_eq!((dev.parent, dev.hygiene_pending), (Some(main.id), true));
    assert_eq!(place.catalog.delete_snapshots(&[first.id, 99], None, BY).unwrap(), 1);
    assert_eq!(ids(&place.catalog.chain(dev.head).unwrap()), [20, 1], "its branches keep it");
    let gone = place.catalog.create_branch_from_snapshot(&new_branch("x"), &first, LayerId(21));
    assert!(matches!(gone, Err(CatalogError::SnapshotNotFound { .. })), "{gone:?}");
    place.sound();
}

#[test]
fn a_snapshot_needs_something_to_keep() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    let new = NewSnapshot { name: snap("s"), expires_ms: None, uid: 0, command: String::new() };
    let plan = SnapshotPlan { branch: main.id, new, seal: None, base: None };
    let refused = place.catalog.snapshot(&plan).unwrap_err();
    assert!(matches!(refused, CatalogError::NothingToKeep { .. }), "{refused}");
    assert_eq!(place.catalog.snapshots().unwrap(), []);
}

#[test]
fn snapshots_go_with_their_branch_and_come_back_with_it() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    place.snapshot(&main, "s", 2).unwrap();
    place.catalog.delete_branch(main.id, 0, "delete").unwrap();
    let (operation, undo) = place.catalog.last_undoable(None).unwrap().unwrap();
    assert_eq!(undo, Undo::Delete { branch: main.id });
    let undone = place.catalog.undo(operation.id, BY).unwrap();
    assert_eq!(undone.row.name, name("main"));
    assert_eq!(place.catalog.snapshots_of(main.id).unwrap().len(), 1);
    place.catalog.delete_branch(main.id, 0, "delete").unwrap();
    place.purge(main.id);
    assert_eq!(place.catalog.snapshots().unwrap(), []);
    assert_eq!(place.catalog.reachable_layers().unwrap(), HashSet::new());
    let operation = place.catalog.last_undoable(None).unwrap().unwrap().0;
    let gone = place.catalog.undo(operation.id, BY).unwrap_err();
    assert!(matches!(gone, CatalogError::BranchGone { .. }), "{gone}");
    place.sound();
}

#[test]
fn a_reset_is_taken_back_and_that_too() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    place.snapshot(&main, "s", 2).unwrap();
    let dev = place.fork(&main, "dev", 10).unwrap();
    let before = place.catalog.branch_by_id(dev.id).unwrap().unwrap();
    let done = place.rehead(&dev, 1, 30, None);
    assert_eq!((done.row.id, done.row.head, done.row.parent), (dev.id, LayerId(30), Some(main.id)));
    assert!(done.row.hygiene_pending && done.row.origin == "fork:main@s");
    assert_eq!((done.kept.head, done.kept.deleted_ms.is_some()), (before.head, true));
    for round in 0..4 {
        let (operation, _) = place.catalog.last_undoable(Some(&name("dev"))).unwrap().unwrap();
        let row = place.catalog.undo(operation.id, BY).unwrap().row;
        let wanted = if round % 2 == 0 { before.head } else { LayerId(30) };
        assert_eq!((row.id, row.head, row.deleted_ms), (dev.id, wanted, None), "round {round}");
        let twice = place.catalog.undo(operation.id, BY).unwrap_err();
        assert!(matches!(twice, CatalogError::UndoneAlready { .. }), "{twice}");
        assert_eq!(place.catalog.branches().unwrap().len(), 2);
        place.sound();
    }
    let all = place.catalog.reachable_layers().unwrap();
    assert!(all.contains(&before.head) && all.contains(&LayerId(30)));
}

#[test]
fn what_a_branch_was_can_stay_as_a_branch() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    place.snapshot(&main, "s", 2).unwrap();
    let done = place.rehead(&main, 1, 30, Some("old"));
    assert_eq!((done.kept.name.as_str(), done.kept.head), ("old", LayerId(2)));
    let old = place.catalog.require_branch(&name("old")).unwrap();
    assert_eq!(old.deleted_ms, None);
    let plan = ReheadPlan {
        branch: main.id,
        base: LayerId(1),
        head: LayerId(31),
        origin: String::new(),
        keep_as: Some(&name("old")),
    };
    let taken = place.catalog.rehead(&plan, BY).unwrap_err();
    assert!(matches!(taken, CatalogError::BranchExists { .. }), "{taken}");
    assert_eq!(place.head(&main), LayerId(30), "nothing of what was refused happened");
    place.catalog.undo(done.operation, BY).unwrap();
    assert_eq!(place.head(&main), LayerId(2));
    assert_eq!(place.catalog.branch(&name("old")).unwrap(), None);
    place.sound();
}

#[test]
fn an_undo_that_was_overtaken_is_refused() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    place.catalog.rename_branch(main.id, &name("a"), 0, "rename").unwrap();
    let first = place.catalog.last_undoable(None).unwrap().unwrap().0;
    place.catalog.rename_branch(main.id, &name("b"), 0, "rename").unwrap();
    let overtaken = place.catalog.undo(first.id, BY).unwrap_err();
    assert!(matches!(overtaken, CatalogError::UndoOvertaken { .. }), "{overtaken}");
    let second = place.catalog.last_undoable(None).unwrap().unwrap().0;
    assert_eq!(place.catalog.undo(second.id, BY).unwrap().row.name, name("a"));
    assert_eq!(place.catalog.undo(first.id, BY).unwrap().row.name, name("main"));
    assert!(place.catalog.last_undoable(None).unwrap().is_none());
    // The name of a deleted branch is free at once; then it cannot have it back.
    place.catalog.delete_branch(main.id, 0, "delete").unwrap();
    let deletion = place.catalog.last_undoable(None).unwrap().unwrap().0;
    place.empty_branch("main", 9);
    let taken = place.catalog.undo(deletion.id, BY).unwrap_err();
    assert!(matches!(taken, CatalogError::BranchExists { .. }), "{taken}");
    for (id, wanted) in [(999, "no operation 999"), (1, "cannot be taken back")] {
        let error = place.catalog.undo(id, BY).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn a_protected_branch_is_neither_deleted_nor_given_another_state() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    place.snapshot(&main, "s", 2).unwrap();
    let done = place.rehead(&main, 1, 10, None);
    assert!(place.catalog.set_protected(main.id, true, BY).unwrap().protected);
    let plan = ReheadPlan {
        branch: main.id,
        base: LayerId(1),
        head: LayerId(30),
        origin: String::new(),
        keep_as: None,
    };
    for refused in [
        place.catalog.delete_branch(main.id, 0, "delete").unwrap_err(),
        place.catalog.rehead(&plan, BY).unwrap_err(),
        place.catalog.undo(done.operation, BY).unwrap_err(),
    ] {
        assert!(matches!(refused, CatalogError::Protected { .. }), "{refused}");
    }
    assert_eq!(place.head(&main), LayerId(10));
    place.catalog.set_protected(main.id, false, BY).unwrap();
    place.catalog.delete_branch(main.id, 0, "delete").unwrap();
}

#[test]
fn a_child_and_its_parent_change_places() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    let dev = place.fork(&main, "dev", 10).unwrap();
    let sub = place.fork(&dev, "sub", 20).unwrap();
    let (promoted, former) = place.catalog.promote_branch(sub.id, BY).unwrap();
    assert_eq!((promoted.parent, former.parent), (Some(main.id), Some(sub.id)));
    let (promoted, former) = place.catalog.promote_branch(sub.id, BY).unwrap();
    assert_eq!((promoted.parent, former.id, former.parent), (None, main.id, Some(sub.id)));
    let refused = place.catalog.promote_branch(sub.id, BY).unwrap_err();
    assert!(matches!(refused, CatalogError::NoParent { .. }), "{refused}");
    assert_eq!(place.catalog.detach_branch(main.id, BY).unwrap().parent, None);
    // A parent that was deleted is none.
    place.catalog.delete_branch(sub.id, 0, "delete").unwrap();
    let refused = place.catalog.promote_branch(dev.id, BY).unwrap_err();
    assert!(matches!(refused, CatalogError::NoParent { .. }), "{refused}");
}

#[test]
fn purging_leaves_the_living_alone() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    assert_eq!(place.catalog.purge_branches(&[main.id], BY).unwrap(), 0);
    assert_eq!(place.catalog.set_expiry(main.id, Some(5), BY).unwrap().expires_ms, Some(5));
    assert_eq!(place.catalog.set_expiry(main.id, None, BY).unwrap().expires_ms, None);
    assert!(place.catalog.branch(&name("main")).unwrap().is_some());
}

/// `SQLite` itself says nothing when the end of its log is damaged: the commits there never were.
#[test]
fn a_catalog_that_lost_commits_takes_no_change_and_is_left_as_it_is() {
    let place = Place::new();
    place.empty_branch("one", 1);
    place.catalog.checkpoint().unwrap();
    place.empty_branch("two", 2);
    place.empty_branch("three", 3);
    let Place { _dir, path, catalog } = place;
    drop(catalog);
    let log = path.with_extension("sqlite-wal");
    let good = std::fs::read(&log).unwrap();
    // Header, then frames of a header of 24 bytes and a page of 4096 bytes.
    for at in [20, 32 + 24 + 100, 32 + 5 * 4120 + 50] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&log, &bad).unwrap();
        let _ = std::fs::remove_file(path.with_extension("sqlite-shm"));
        {
            let catalog = Catalog::open(&path).unwrap();
            assert!(catalog.branches().unwrap().len() < 3, "byte {at} is of no commit");
            let older = |result: Result<(), CatalogError>| {
                assert!(matches!(result, Err(CatalogError::WentBack { .. })), "{result:?}");
            };
            older(catalog.require_current());
            older(catalog.mark_layer_used(LayerId(1)));
            older(catalog.checkpoint());
            older(catalog.tend_log());
        }
        assert_eq!(std::fs::read(&log).unwrap(), bad, "what is left of the log must stay");
        std::fs::write(&log, &good).unwrap();
        let _ = std::fs::remove_file(path.with_extension("sqlite-shm"));
        let catalog = Catalog::open(&path).unwrap();
        assert_eq!(catalog.branches().unwrap().len(), 3);
        catalog.require_current().unwrap();
    }
}
