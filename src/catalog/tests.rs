//! Tests of the catalog as a whole.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::error::Damage;
use super::*;
use crate::format::{BranchId, LayerId};

mod life;

struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
    catalog: Catalog,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.sqlite");
        let catalog = Catalog::create(&path).unwrap();
        Place { _dir: dir, path, catalog }
    }

    /// A second connection that trusts the caller: for putting damage into the file.
    fn raw(&self, sql: &str) {
        let connection = Connection::open(&self.path).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON; {sql}"
            ))
            .unwrap();
    }

    fn empty_branch(&self, text: &str, head: u64) -> BranchRow {
        self.catalog
            .create_branch(&new_branch(text), NewLayer { id: LayerId(head), parent: None })
            .unwrap()
    }

    fn purge(&self, id: BranchId) {
        assert_eq!(self.catalog.purge_branches(&[id], Actor::process("test")).unwrap(), 1);
    }

    fn head(&self, branch: &BranchRow) -> LayerId {
        self.catalog.branch_by_id(branch.id).unwrap().unwrap().head
    }

    /// Forks with a seal; the parent's next head is `next`, the child's is `next + 1`.
    fn fork(&self, parent: &BranchRow, child: &str, next: u64) -> Result<BranchRow, CatalogError> {
        self.catalog.fork(&sealing(parent.id, self.head(parent), child, next), &mut |_| Ok(()))
    }
}

fn name(text: &str) -> BranchName {
    text.parse().unwrap()
}

fn new_branch(text: &str) -> NewBranch {
    NewBranch {
        name: name(text),
        origin: "empty".to_owned(),
        uid: 42,
        command: format!("create {text}"),
        expires_ms: None,
    }
}

fn sealing(parent: BranchId, open: LayerId, child: &str, next: u64) -> ForkPlan {
    ForkPlan {
        parent,
        child: new_branch(child),
        seal: Some(SealPlan { open, parent_next: LayerId(next) }),
        child_base: Some(open),
        child_head: LayerId(next + 1),
    }
}

fn ids(chain: &[LayerRow]) -> Vec<u64> {
    chain.iter().map(|row| row.id.0).collect()
}

#[test]
fn an_empty_branch_has_one_open_layer() {
    let place = Place::new();
    let made = place.empty_branch("main", 7);
    let found = place.catalog.require_branch(&name("main")).unwrap();
    assert_eq!(made, found);
    assert_eq!((found.parent, found.head, found.created_by), (None, LayerId(7), 42));
    assert!(!found.hygiene_pending);
    let chain = place.catalog.chain(found.head).unwrap();
    assert_eq!(chain.len(), 1);
    assert_eq!((chain[0].state, chain[0].depth, chain[0].used), (LayerState::Open, 0, false));
    assert_eq!(place.catalog.branch(&name("other")).unwrap(), None);
    let missing = place.catalog.require_branch(&name("other")).unwrap_err();
    assert!(matches!(missing, CatalogError::BranchNotFound { .. }), "{missing}");
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    place.fork(&main, "dev", 2).unwrap();
    place.catalog.mark_layer_used(LayerId(3)).unwrap();
    let before = (place.catalog.branches().unwrap(), place.catalog.all_layers().unwrap());
    // A second process, while the first one lives and after it is gone.
    let other = Catalog::open(&place.path).unwrap();
    assert_eq!((other.branches().unwrap(), other.all_layers().unwrap()), before);
    drop((other, place.catalog));
    let again = Catalog::open(&place.path).unwrap();
    assert_eq!((again.branches().unwrap(), again.all_layers().unwrap()), before);
    assert_eq!(again.self_check().unwrap(), Vec::<String>::new());
    again.checkpoint().unwrap();
    assert_eq!(again.branches().unwrap(), before.0);
}

#[test]
fn a_fork_seals_and_stands_on_what_it_sealed() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    let mut reserved = None;
    let plan = sealing(main.id, LayerId(1), "dev", 2);
    let child = place
        .catalog
        .fork(&plan, &mut |id| {
            reserved = Some(id);
            // Before the commit nobody else sees the child.
            let other = Catalog::open(&place.path).unwrap();
            assert_eq!(other.branch_by_id(id).unwrap(), None);
            Ok(())
        })
        .unwrap();
    assert_eq!(reserved, Some(child.id));
    assert_eq!(child.parent, Some(main.id));
    assert!(child.hygiene_pending);
    assert_eq!(place.head(&main), LayerId(2));
    assert_eq!(ids(&place.catalog.chain(LayerId(2)).unwrap()), [2, 1]);
    assert_eq!(ids(&place.catalog.chain(child.head).unwrap()), [3, 1]);
    let state = |id| place.catalog.layer(LayerId(id)).unwrap().unwrap().state;
    assert_eq!(
        [state(1), state(2), state(3)],
        [LayerState::Sealed, LayerState::Open, LayerState::Open]
    );
    place.catalog.clear_hygiene(child.id).unwrap();
    assert!(!place.catalog.branch_by_id(child.id).unwrap().unwrap().hygiene_pending);
}

#[test]
fn a_fork_of_an_unchanged_parent_seals_nothing() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    place.fork(&main, "a", 2).unwrap();
    let plan = ForkPlan {
        parent: main.id,
        child: new_branch("b"),
        seal: None,
        child_base: Some(LayerId(1)),
        child_head: LayerId(9),
    };
    let b = place.catalog.fork(&plan, &mut |_| Ok(())).unwrap();
    assert_eq!(place.head(&main), LayerId(2));
    assert_eq!(ids(&place.catalog.chain(b.head).unwrap()), [9, 1]);
}

/// Whatever refuses a fork, the catalog must be as before it.
#[test]
fn refused_forks_change_nothing() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    place.fork(&main, "dev", 2).unwrap();
    place.raw(
        "INSERT INTO layers VALUES (50, NULL, 0, 'sealed', 0, NULL, 0);
               INSERT INTO branches (id, name, head, origin, hygiene_pending, created_by, created_ms)
               VALUES (90, 'stuck', 50, 'empty', 0, 0, 0);",
    );
    let snapshot = || {
        let c = &place.catalog;
        let mut layers = c.all_layers().unwrap();
        layers.sort_by_key(|row| row.id);
        (c.branches().unwrap(), layers, c.log(None, 1000).unwrap())
    };
    let before = snapshot();
    let refusal = |plan: &ForkPlan| {
        let error = place.catalog.fork(plan, &mut |_| Ok(())).unwrap_err();
        assert_eq!(snapshot(), before, "after {error}");
        error
    };
    let head = LayerId(2);
    let stuck = refusal(&sealing(BranchId(90), LayerId(50), "x", 60));
    assert!(matches!(
        stuck,
        CatalogError::LayerNotInState { layer: LayerId(50), found: LayerState::Sealed, .. }
    ));
    let moved = refusal(&sealing(main.id, LayerId(1), "x", 60));
    assert!(matches!(moved, CatalogError::HeadMoved { found: LayerId(2), .. }), "{moved}");
    let taken = refusal(&sealing(main.id, head, "dev", 60));
    assert!(matches!(taken, CatalogError::BranchExists { .. }), "{taken}");
    let gone = refusal(&sealing(BranchId(77), head, "x", 60));
    assert!(matches!(gone, CatalogError::BranchGone { id: BranchId(77) }), "{gone}");
    let collision = refusal(&sealing(main.id, head, "x", 50));
    assert!(matches!(collision, CatalogError::LayerExists { layer: LayerId(50) }), "{collision}");
    for base in [None, Some(LayerId(1)), Some(LayerId(50))] {
        let plan = ForkPlan { child_base: base, ..sealing(main.id, head, "x", 60) };
        let wrong = refusal(&plan);
        assert!(matches!(wrong, CatalogError::WrongBase { .. }), "{wrong}");
    }
    let plan = sealing(main.id, head, "x", 60);
    let full = || Err(io::Error::from_raw_os_error(nix::libc::ENOSPC));
    let error = place.catalog.fork(&plan, &mut |_| full()).unwrap_err();
    assert!(matches!(error, CatalogError::Reserve { .. }), "{error}");
    assert_eq!(snapshot(), before);
    // And the catalog is usable after all of them.
    place.catalog.fork(&plan, &mut |_| Ok(())).unwrap();
}

#[test]
fn two_connections_forking_at_once_make_one_chain() {
    const FORKS: u64 = 60;
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    std::thread::scope(|scope| {
        for thread in 0..2_u64 {
            let (path, main) = (&place.path, &main);
            scope.spawn(move || {
                let catalog = Catalog::open(path).unwrap();
                for i in 0..FORKS {
                    let layer = 10 + (i * 2 + thread) * 2;
                    let child = format!("t{thread}-{i}");
                    // The other thread may have moved the head since we looked: plan again.
                    loop {
                        let head = catalog.branch_by_id(main.id).unwrap().unwrap().head;
                        let plan = sealing(main.id, head, &child, layer);
                        match catalog.fork(&plan, &mut |_| Ok(())) {
                            Ok(_) => break,
                            Err(CatalogError::HeadMoved { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                }
            });
        }
    });
    let branches = place.catalog.branches().unwrap();
    assert_eq!(branches.len() as u64, 1 + 2 * FORKS);
    let heads: HashSet<LayerId> = branches.iter().map(|row| row.head).collect();
    assert_eq!(heads.len(), branches.len());
    // Every fork sealed one layer of the parent, so the chain is as deep as there were forks.
    let chain = place.catalog.chain(place.head(&main)).unwrap();
    assert_eq!(chain.len() as u64, 1 + 2 * FORKS);
    assert!(chain.iter().skip(1).all(|row| row.state == LayerState::Sealed));
    assert_eq!(place.catalog.self_check().unwrap(), Vec::<String>::new());
    assert_eq!(place.catalog.log(None, 1000).unwrap().len() as u64, 1 + 2 * FORKS);
}

#[test]
fn of_two_children_with_one_name_exactly_one_comes_into_being() {
    let place = Place::new();
    let parents = [place.empty_branch("p0", 1), place.empty_branch("p1", 2)];
    for round in 0..10_u64 {
        let barrier = std::sync::Barrier::new(2);
        let child = format!("child-{round}");
        let made: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2_u64)
                .map(|i| {
                    let (place, parents, child, barrier) = (&place, &parents, &child, &barrier);
                    scope.spawn(move || {
                        let catalog = Catalog::open(&place.path).unwrap();
                        let parent = &parents[usize::try_from(i).unwrap()];
                        let head = place.head(parent);
                        let plan = sealing(parent.id, head, child, 100 + round * 10 + i * 2);
                        barrier.wait();
                        match catalog.fork(&plan, &mut |_| Ok(())) {
                            Ok(_) => 1,
                            Err(CatalogError::BranchExists { .. }) => 0,
                            Err(other) => panic!("{other}"),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(made, 1);
    }
}

/// The shortest time of 21 calls: what the work itself takes, whatever else the machine does.
fn shortest<T>(mut call: impl FnMut(u64) -> T) -> Duration {
    let timed = |i| {
        let start = Instant::now();
        call(i);
        start.elapsed()
    };
    (0..21).map(timed).min().unwrap()
}

#[test]
fn ten_thousand_branches_do_not_slow_a_fork() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    let few = shortest(|i| place.fork(&main, &format!("few-{i}"), 100 + 2 * i).unwrap());
    place.raw(
        "BEGIN;
         WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)
         INSERT INTO layers SELECT 1000000 + i * 7919, 1, 1, 'open', 0, NULL, 0 FROM n;
         WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)
         INSERT INTO branches (name, parent, head, origin, hygiene_pending, created_by, created_ms)
         SELECT 'many-' || i, 1, 1000000 + i * 7919, 'fork:main', 1, 0, 0 FROM n;
         COMMIT;",
    );
    let many = shortest(|i| place.fork(&main, &format!("then-{i}"), 500 + 2 * i).unwrap());
    // A scan of the tables would take several milliseconds each; syncs vary, so be generous.
    assert!(many < few * 3 + Duration::from_millis(3), "{few:?} with few, {many:?} with 10,000");
    let lookup =
        shortest(|i| place.catalog.require_branch(&name(&format!("many-{}", i * 400))).unwrap());
    assert!(lookup < Duration::from_millis(1), "{lookup:?}");
    assert_eq!(place.catalog.branches().unwrap().len(), 10_000 + 43);
    assert_eq!(
        place.catalog.reachable_layers().unwrap().len(),
        place.catalog.all_layers().unwrap().len()
    );
}

#[test]
fn a_chain_of_a_thousand_layers_is_read_in_a_few_milliseconds() {
    let place = Place::new();
    place.raw(
        "BEGIN;
         WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 999)
         INSERT INTO layers SELECT i + 1, NULLIF(i, 0), i, 'sealed', 1, NULL, 0 FROM n;
         UPDATE layers SET state = 'open' WHERE id = 1000;
         INSERT INTO branches (id, name, head, origin, hygiene_pending, created_by, created_ms)
         VALUES (1, 'main', 1000, 'empty', 0, 0, 0);
         COMMIT;",
    );
    let chain = place.catalog.chain(LayerId(1000)).unwrap();
    assert_eq!(ids(&chain), (1..=1000).rev().collect::<Vec<_>>());
    let time = shortest(|_| place.catalog.chain(LayerId(1000)).unwrap());
    assert!(time < Duration::from_millis(10), "{time:?}");
    let main = place.catalog.require_branch(&name("main")).unwrap();
    let fork = shortest(|i| place.fork(&main, &format!("c{i}"), 5000 + 2 * i).unwrap());
    assert!(fork < Duration::from_millis(100), "{fork:?}");
}

#[test]
fn damaged_chains_are_named_and_end() {
    let rows = |sql: &str| {
        let place = Place::new();
        place.raw(sql);
        place.catalog.chain(LayerId(3)).unwrap_err()
    };
    // A cycle: 3 -> 2 -> 3.
    let cycle = rows(
        "INSERT INTO layers VALUES (2, 3, 1, 'sealed', 1, NULL, 0),
                                               (3, 2, 2, 'open', 1, NULL, 0);",
    );
    let broken = |error: &CatalogError, id: u64, wanted: u64| {
        let CatalogError::Damaged { layer, problem } = error else { panic!("{error}") };
        assert_eq!((layer.0, *problem), (id, Damage::BrokenParent { parent: LayerId(wanted) }));
        assert!(error.to_string().contains(&LayerId(wanted).dir_name()), "{error}");
    };
    broken(&cycle, 2, 3);
    let missing = rows("INSERT INTO layers VALUES (3, 2, 1, 'open', 1, NULL, 0);");
    broken(&missing, 3, 2);
    let gap = rows(
        "INSERT INTO layers VALUES (2, NULL, 0, 'sealed', 1, NULL, 0),
                                             (3, 2, 2, 'open', 1, NULL, 0);",
    );
    broken(&gap, 3, 2);
    let rootless = rows("INSERT INTO layers VALUES (3, NULL, 4, 'open', 1, NULL, 0);");
    assert!(matches!(
        rootless,
        CatalogError::Damaged { problem: Damage::Rootless { depth: 4 }, .. }
    ));
    let deep = rows("INSERT INTO layers VALUES (3, 3, 0, 'open', 1, NULL, 0);");
    assert!(matches!(deep, CatalogError::Damaged { problem: Damage::DeepBase { .. }, .. }));
    assert!(matches!(rows(""), CatalogError::LayerNotFound { layer: LayerId(3) }));
}

#[test]
fn an_import_becomes_a_branch_or_nothing() {
    let place = Place::new();
    let c = &place.catalog;
    c.begin_import(LayerId(1), Some(Path::new("/data/pg"))).unwrap();
    let importing = c.layer(LayerId(1)).unwrap().unwrap();
    assert_eq!((importing.state, importing.used), (LayerState::Importing, true));
    assert_eq!(importing.adopted_from.as_deref(), Some(Path::new("/data/pg")));
    assert!(c.reachable_layers().unwrap().is_empty());
    let row = c.finish_import(LayerId(1), LayerId(2), &new_branch("main")).unwrap();
    assert_eq!(ids(&c.chain(row.head).unwrap()), [2, 1]);
    assert_eq!(c.layer(LayerId(1)).unwrap().unwrap().state, LayerState::Sealed);
    // Neither twice, nor undone once it is a branch.
    let again = c.finish_import(LayerId(1), LayerId(3), &new_branch("x")).unwrap_err();
    assert!(matches!(again, CatalogError::LayerNotInState { .. }), "{again}");
    assert!(c.abort_import(LayerId(1)).is_err());

    c.begin_import(LayerId(5), None).unwrap();
    let taken = c.finish_import(LayerId(5), LayerId(6), &new_branch("main")).unwrap_err();
    assert!(matches!(taken, CatalogError::BranchExists { .. }), "{taken}");
    assert_eq!(c.layer(LayerId(5)).unwrap().unwrap().state, LayerState::Importing);
    c.abort_import(LayerId(5)).unwrap();
    assert_eq!(c.layer(LayerId(5)).unwrap(), None);
}

#[test]
fn paths_that_are_no_text_survive() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let path = Path::new(std::ffi::OsStr::from_bytes(b"/srv/\xff\xfe"));
    place.catalog.begin_import(LayerId(1), Some(path)).unwrap();
    let found = place.catalog.layer(LayerId(1)).unwrap().unwrap();
    assert_eq!(found.adopted_from.as_deref(), Some(path));
}

#[test]
fn a_deleted_parent_leaves_its_children_whole() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    let dev = place.fork(&main, "dev", 2).unwrap();
    let unique = |id| place.catalog.reach().unwrap().only_of_branch(id);
    assert_eq!(unique(main.id), HashSet::from([LayerId(2)]));
    assert_eq!(unique(dev.id), HashSet::from([LayerId(3)]));
    place.catalog.delete_branch(main.id, 42, "delete").unwrap();
    assert_eq!(place.catalog.branch(&name("main")).unwrap(), None);
    assert_eq!(unique(dev.id), HashSet::from([LayerId(3)]), "the deleted one may come back");
    place.purge(main.id);
    let dev = place.catalog.branch_by_id(dev.id).unwrap().unwrap();
    assert_eq!(dev.parent, None);
    assert_eq!(ids(&place.catalog.chain(dev.head).unwrap()), [3, 1]);
    // Now it is the only one that needs what it shared.
    let unique = place.catalog.reach().unwrap().only_of_branch(dev.id);
    assert_eq!(unique, HashSet::from([LayerId(1), LayerId(3)]));
    assert_eq!(place.catalog.reachable_layers().unwrap(), HashSet::from([LayerId(1), LayerId(3)]));
    // An id is never used again: lock files and sockets carry it.
    let next = place.empty_branch("main", 9);
    assert!(next.id > dev.id);
    let gone = place.catalog.delete_branch(main.id, 42, "delete").unwrap_err();
    assert!(matches!(gone, CatalogError::BranchGone { .. }), "{gone}");
}

#[test]
fn gc_removes_rows_from_the_top_and_nothing_that_is_reachable() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    let dev = place.fork(&main, "dev", 2).unwrap();
    place.fork(&dev, "deep", 4).unwrap();
    place.catalog.delete_branch(dev.id, 0, "delete").unwrap();
    let deep = place.catalog.require_branch(&name("deep")).unwrap();
    place.catalog.delete_branch(deep.id, 0, "delete").unwrap();
    let everything = [1, 2, 3, 4, 5].map(LayerId);
    assert_eq!(place.catalog.remove_layers(&everything).unwrap(), 0, "they may come back");
    place.purge(dev.id);
    place.purge(deep.id);
    // Lower layers first, one that does not exist, and two that are in use.
    let asked = [1, 2, 3, 4, 5, 99].map(LayerId);
    assert_eq!(place.catalog.remove_layers(&asked).unwrap(), 3);
    let mut left: Vec<u64> = ids(&place.catalog.all_layers().unwrap());
    left.sort_unstable();
    assert_eq!(left, [1, 2]);
    assert_eq!(place.catalog.remove_layers(&asked).unwrap(), 0);
    assert_eq!(place.catalog.self_check().unwrap(), Vec::<String>::new());
}

#[test]
fn renaming_keeps_everything_else() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    let other = place.empty_branch("other", 2);
    let renamed = place.catalog.rename_branch(main.id, &name("prod"), 1, "rename").unwrap();
    assert_eq!(renamed, BranchRow { name: name("prod"), ..main.clone() });
    assert_eq!(place.catalog.branch_by_id(main.id).unwrap(), Some(renamed));
    assert_eq!(place.catalog.branch(&name("main")).unwrap(), None);
    let taken = place.catalog.rename_branch(other.id, &name("prod"), 1, "rename").unwrap_err();
    assert!(matches!(taken, CatalogError::BranchExists { .. }), "{taken}");
    place.catalog.rename_branch(main.id, &name("prod"), 1, "rename").unwrap();
}

#[test]
fn every_change_is_in_the_operation_log_and_no_refusal_is() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    place.fork(&main, "dev", 2).unwrap();
    assert!(place.fork(&main, "dev", 10).is_err());
    place.catalog.seal(main.id, LayerId(2), LayerId(20)).unwrap();
    place
        .catalog
        .rename_branch(main.id, &name("prod"), 7, "cowfs branch rename main prod")
        .unwrap();
    place.catalog.delete_branch(main.id, 8, "cowfs branch delete prod").unwrap();
    let log = place.catalog.log(None, 10).unwrap();
    let short: Vec<(u32, &str, Option<&str>)> =
        log.iter().map(|row| (row.uid, row.command.as_str(), row.branch.as_deref())).collect();
    let us = nix::unistd::getuid().as_raw();
    assert_eq!(
        short,
        [
            (8, "cowfs branch delete prod", Some("prod")),
            (7, "cowfs branch rename main prod", Some("prod")),
            (us, "seal", Some("main")),
            (42, "create dev", Some("dev")),
            (42, "create main", Some("main")),
        ]
    );
    assert_eq!(place.catalog.log(None, 2).unwrap(), log[..2]);
}

#[test]
fn marking_a_layer_used_is_idempotent() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    for _ in 0..2 {
        place.catalog.mark_layer_used(main.head).unwrap();
        assert!(place.catalog.layer(main.head).unwrap().unwrap().used);
    }
    let missing = place.catalog.mark_layer_used(LayerId(99)).unwrap_err();
    assert!(matches!(missing, CatalogError::LayerNotFound { .. }), "{missing}");
}

#[test]
fn future_foreign_and_missing_files_are_refused_by_name() {
    let place = Place::new();
    place.empty_branch("main", 1);
    place.raw("PRAGMA user_version = 5");
    let future = Catalog::open(&place.path).err().unwrap();
    assert!(matches!(future, CatalogError::UnknownVersion { found: 5, supported: 4, .. }));
    assert!(future.to_string().contains("version 4"), "{future}");
    place.raw("PRAGMA user_version = 4; PRAGMA application_id = 5");
    let foreign = Catalog::open(&place.path).err().unwrap();
    assert!(matches!(foreign, CatalogError::Foreign { .. }), "{foreign}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let missing = Catalog::open(&path).err().unwrap();
    assert!(matches!(missing, CatalogError::Missing { .. }), "{missing}");
    assert!(!path.exists(), "opening made a file");
    std::fs::write(&path, "not a database at all, but long enough to look at ".repeat(40)).unwrap();
    let text = Catalog::open(&path).err().unwrap();
    assert!(matches!(text, CatalogError::Foreign { .. }), "{text}");
    std::fs::write(&path, "").unwrap();
    let empty = Catalog::open(&path).err().unwrap();
    assert!(matches!(empty, CatalogError::Foreign { .. }), "{empty}");
    assert!(matches!(Catalog::create(&path), Err(CatalogError::AlreadyExists { .. })));
}

impl Place {
    fn log_bytes(&self) -> u64 {
        std::fs::metadata(self.path.with_extension("sqlite-wal")).unwrap().len()
    }
}

/// Commands that open, commit once and end, as the command line does.
#[test]
fn the_log_stays_short_however_many_processes_commit_once() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    let Place { _dir, path, catalog } = place;
    drop(catalog);
    let longest = (0..150_u64)
        .map(|i| {
            let catalog = Catalog::open(&path).unwrap();
            let head = catalog.branch_by_id(main.id).unwrap().unwrap().head;
            let plan = sealing(main.id, head, &format!("c{i}"), 10 + 2 * i);
            catalog.fork(&plan, &mut |_| Ok(())).unwrap();
            drop(catalog);
            std::fs::metadata(path.with_extension("sqlite-wal")).unwrap().len()
        })
        .max();
    assert!(longest.unwrap() <= wal::LENGTH, "{longest:?}");
    let again = Catalog::open(&path).unwrap();
    assert_eq!(again.branches().unwrap().len(), 151);
    assert_eq!(again.self_check().unwrap(), Vec::<String>::new());
}

#[test]
fn commits_go_into_what_was_written_ahead() {
    let place = Place::new();
    assert_eq!(place.log_bytes(), wal::LENGTH);
    let main = place.empty_branch("main", 1);
    for i in 0..10_u64 {
        let head = place.catalog.branch_by_id(main.id).unwrap().unwrap().head;
        let plan = sealing(main.id, head, &format!("c{i}"), 10 + 2 * i);
        place.catalog.fork(&plan, &mut |_| Ok(())).unwrap();
        assert_eq!(place.log_bytes(), wal::LENGTH, "fork {i}");
    }
    // As a killed machine leaves it: the files alone, without the shared memory beside them.
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join("catalog.sqlite");
    std::fs::copy(&place.path, &path).unwrap();
    let log = "sqlite-wal";
    std::fs::copy(place.path.with_extension(log), path.with_extension(log)).unwrap();
    let again = Catalog::open(&path).unwrap();
    assert_eq!(again.branches().unwrap().len(), 11);
    assert_eq!(again.self_check().unwrap(), Vec::<String>::new());
}

#[test]
fn a_serving_process_keeps_the_log_short_and_long_enough() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    for i in 0..60_u64 {
        let head = place.catalog.branch_by_id(main.id).unwrap().unwrap().head;
        let plan = sealing(main.id, head, &format!("c{i}"), 10 + 2 * i);
        place.catalog.fork(&plan, &mut |_| Ok(())).unwrap();
        place.catalog.tend_log().unwrap();
        assert_eq!(place.log_bytes(), wal::LENGTH, "fork {i}");
    }
    assert_eq!(place.catalog.branches().unwrap().len(), 61);
    assert_eq!(place.catalog.self_check().unwrap(), Vec::<String>::new());
}

/// A process that lives long must not let it grow either, and nobody waits for a slow reader.
#[test]
fn a_reader_in_the_middle_keeps_the_log_and_nobody_waits_for_it() {
    let place = Place::new();
    let main = place.empty_branch("main", 1);
    let big = "x".repeat(1 << 20);
    let grow = |rounds: usize| {
        for _ in 0..rounds {
            place.catalog.rename_branch(main.id, &name("main"), 0, &big).unwrap();
        }
    };
    grow(40);
    assert!(place.log_bytes() <= wal::BYTES_MAX + (4 << 20), "{}", place.log_bytes());
    let reader = Connection::open(&place.path).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM branches").unwrap();
    let start = Instant::now();
    grow(20);
    assert!(start.elapsed() < BUSY_TIMEOUT / 2, "{:?}", start.elapsed());
    assert!(place.log_bytes() > wal::BYTES_MAX);
    reader.execute_batch("COMMIT").unwrap();
    grow(1);
    assert_eq!(place.log_bytes(), 0);
}
