//! Import and adoption of real trees and real clusters, judged by the index and data files.
#![allow(clippy::unwrap_used)]

mod import_support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use cowfs::format::FileKind;
use cowfs::import::{ImportError, Note};
use cowfs::postgres::{DbState, probe};
use import_support::*;

/// A stopped cluster with rows in a tablespace outside and its WAL outside.
///
/// Returns the data directory; beside it lie `ts`, `wal` and `sockets`.
fn cluster(scratch: &Scratch) -> PathBuf {
    let data = scratch.path("data");
    let (ts, wal, sockets) =
        (scratch.make_dir("ts"), scratch.make_dir("wal"), scratch.make_dir("sockets"));
    for dir in [&ts, &wal, &sockets] {
        chown_postgres(dir);
    }
    let parent = scratch.make_dir("parent");
    chown_postgres(&parent);
    let data_in = parent.join("data");
    postgres_ok(
        "initdb",
        &["-k", "-N", "-A", "trust", "-X", wal.to_str().unwrap(), "-D", data_in.to_str().unwrap()],
    );
    fs::rename(&data_in, &data).unwrap();
    let server = Server::start(&data, &sockets);
    server.query(&format!("create tablespace outside location '{}'", ts.display()));
    server
        .query("create table kept tablespace outside as select g from generate_series(1, 20000) g");
    server.query("create table plain as select g from generate_series(1, 1000) g");
    server.stop("fast");
    data
}

fn oid_of(data: &Path) -> String {
    let mut links = fs::read_dir(data.join("pg_tblspc")).unwrap();
    links.next().unwrap().unwrap().file_name().into_string().unwrap()
}

#[test]
fn a_cluster_becomes_self_contained_and_starts() {
    if !postgres_here() {
        return;
    }
    let scratch = Scratch::new();
    let data = cluster(&scratch);
    let oid = oid_of(&data);
    fs::create_dir(scratch.path("ts/PG_14_202107181")).unwrap();
    fs::write(scratch.path("ts/PG_14_202107181/x"), "another version").unwrap();
    fs::write(data.join("postmaster.pid"), "999999999\n/nowhere\n").unwrap();
    let before = listing(&data);

    let control = probe::read_control_file(&data).unwrap();
    let shown = postgres_ok("pg_controldata", &["-D", data.to_str().unwrap()]);
    for line in [
        format!("Database system identifier:           {}", control.system_identifier),
        format!("pg_control version number:            {}", control.control_version),
        format!("Catalog version number:               {}", control.catalog_version),
        format!("Database cluster state:               {}", control.state),
        format!("Data page checksum version:           {}", u8::from(control.data_checksums)),
    ] {
        assert!(shown.contains(&line), "{line} is not in\n{shown}");
    }

    let report = import(&scratch, &scratch.request(&data, "prod")).unwrap();
    assert_eq!(listing(&data), before, "the source was changed");
    assert_eq!(report.postgres_major, Some(15));
    assert_eq!(report.branch.origin, format!("import:{}", data.display()));
    let base = Base::of(&scratch, &report);
    for name in
        ["PG_VERSION", "global/pg_control", "base/1/1259", "postgresql.conf", "pg_xact/0000"]
    {
        base.assert_like(name, &data.join(name));
    }
    for gone in ["postmaster.pid", "postmaster.opts"] {
        assert!(base.look_up(gone.as_bytes()).is_none(), "{gone} was imported");
        assert!(report.notes.contains(&Note::ServerFileSkipped { path: gone.into() }));
    }
    // WAL: a real directory with the segments.
    assert_eq!(base.get("pg_wal").kind, FileKind::Directory);
    base.assert_like(
        "pg_wal/000000010000000000000001",
        &scratch.path("wal/000000010000000000000001"),
    );
    let note = Note::DirectoryBroughtIn { directory: "pg_wal".into(), from: scratch.path("wal") };
    assert!(report.notes.contains(&note));
    // Tablespace: inside, behind a relative link, this version only.
    let link = base.get(&format!("pg_tblspc/{oid}"));
    assert_eq!(link.symlink, format!("../cowfs_tblspc/{oid}").into_bytes());
    let version = format!("PG_15_{}", control.catalog_version);
    assert_eq!(base.get(&format!("cowfs_tblspc/{oid}/{version}")).kind, FileKind::Directory);
    assert!(base.look_up(format!("cowfs_tblspc/{oid}/PG_14_202107181").as_bytes()).is_none());

    // The proof: what a mount would show is a cluster that needs nothing else.
    let copy = scratch.path("copy");
    base.materialize(&copy);
    for elsewhere in ["data", "ts", "wal"] {
        fs::rename(scratch.path(elsewhere), scratch.path(&format!("{elsewhere}.away"))).unwrap();
    }
    postgres_ok("pg_checksums", &["--check", "-D", copy.to_str().unwrap()]);
    let server = Server::start(&copy, &scratch.path("sockets"));
    assert_eq!(server.query("select count(*) from kept"), "20000");
    server.query("create table more tablespace outside as select 1");
    server.stop("immediate");
    let server = Server::start(&copy, &scratch.path("sockets"));
    assert_eq!(server.query("select count(*) from kept, more"), "20000");
    server.query("drop table kept, more");
    server.query("drop tablespace outside");
    server.stop("fast");

    // And it can be imported again: relative links inside are nobody's business.
    let again = import(&scratch, &scratch.request(&copy, "again")).unwrap();
    assert!(!again.notes.iter().any(|note| matches!(note, Note::TablespaceBroughtIn { .. })));
}

#[test]
fn a_branch_of_a_branch_keeps_its_tablespaces() {
    if !postgres_here() {
        return;
    }
    let scratch = Scratch::new();
    let data = cluster(&scratch);
    let oid = oid_of(&data);
    let report = import(&scratch, &scratch.request(&data, "first")).unwrap();
    let copy = scratch.path("copy");
    Base::of(&scratch, &report).materialize(&copy);
    // A link by absolute path into the cluster itself would lead back to the source: made relative.
    let link = copy.join(format!("pg_tblspc/{oid}"));
    fs::remove_file(&link).unwrap();
    symlink(copy.join(format!("cowfs_tblspc/{oid}")), &link).unwrap();
    let report = import(&scratch, &scratch.request(&copy, "second")).unwrap();
    let base = Base::of(&scratch, &report);
    assert_eq!(
        base.get(&format!("pg_tblspc/{oid}")).symlink,
        format!("../cowfs_tblspc/{oid}").into_bytes()
    );
    assert!(report.notes.iter().any(|note| matches!(note, Note::LinkMadeRelative { .. })));
    // The same holds for an adopted one, which has nothing outside.
    let mut request = scratch.request(&copy, "third");
    request.adopt = true;
    let base = Base::of(&scratch, &import(&scratch, &request).unwrap());
    base.assert_like("base/1/1259", &copy.join("base/1/1259"));
}

/// Moves `from` away and puts a link in its place.
fn link_away(from: &Path, to: &Path) {
    fs::rename(from, to).unwrap();
    symlink(to, from).unwrap();
}

#[test]
fn data_of_a_cluster_that_lies_elsewhere() {
    if !postgres_here() {
        return;
    }
    let scratch = Scratch::new();
    let data = cluster(&scratch);
    // A whole directory of the server's comes into the branch, as pg_wal does.
    link_away(&data.join("base"), &scratch.path("base-elsewhere"));
    let report = import(&scratch, &scratch.request(&data, "first")).unwrap();
    let base = Base::of(&scratch, &report);
    assert_eq!(base.get("base").kind, FileKind::Directory);
    base.assert_like("base/1/1259", &data.join("base/1/1259"));
    let note =
        Note::DirectoryBroughtIn { directory: "base".into(), from: scratch.path("base-elsewhere") };
    assert!(report.notes.contains(&note));

    // A link further down would have a server on the branch write to this cluster.
    link_away(&scratch.path("base-elsewhere").join("1"), &scratch.path("one-elsewhere"));
    let error = import(&scratch, &scratch.request(&data, "second")).unwrap_err();
    assert!(
        matches!(&error, ImportError::DataOutside { link, target }
            if link.ends_with("1") && *target == scratch.path("one-elsewhere")),
        "{error}"
    );
    assert!(error.hint().is_some());
    // What the user puts there is another matter: certificates, say.
    fs::remove_file(scratch.path("base-elsewhere").join("1")).unwrap();
    fs::rename(scratch.path("one-elsewhere"), scratch.path("base-elsewhere").join("1")).unwrap();
    symlink("/etc/hostname", data.join("server.crt")).unwrap();
    let report = import(&scratch, &scratch.request(&data, "second")).unwrap();
    assert!(report.notes.iter().any(|note| matches!(note, Note::OutsideLinkKept { .. })));

    // Without WAL no server starts.
    let wal = data.join("pg_wal");
    fs::rename(&wal, scratch.path("wal-away")).unwrap();
    let error = import(&scratch, &scratch.request(&data, "third")).unwrap_err();
    assert!(matches!(error, ImportError::Incomplete { directory: "pg_wal", .. }), "{error}");
    symlink("/", &wal).unwrap();
    let error = import(&scratch, &scratch.request(&data, "third")).unwrap_err();
    assert!(matches!(error, ImportError::LinkToItself { .. }), "{error}");
}

#[test]
fn clusters_that_must_not_be_imported() {
    if !postgres_here() {
        return;
    }
    let scratch = Scratch::new();
    let data = cluster(&scratch);
    let mut request = scratch.request(&data, "prod");

    let server = Server::start(&data, &scratch.path("sockets"));
    let pid: i32 = fs::read_to_string(data.join("postmaster.pid"))
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    request.allow_crashed = true;
    match import(&scratch, &request) {
        Err(ImportError::Running { pid: named, .. }) => assert_eq!(named, pid),
        other => panic!("{other:?}"),
    }
    server.query("insert into plain values (-1)");
    server.stop("immediate");
    request.allow_crashed = false;
    match import(&scratch, &request) {
        Err(ImportError::NotShutDown { state, .. }) => assert_eq!(state, DbState::InProduction),
        other => panic!("{other:?}"),
    }
    let wal = fs::read_link(data.join("pg_wal")).unwrap();
    request.allow_crashed = true;
    request.adopt = true;
    match import(&scratch, &request) {
        Err(ImportError::OutsideWhileAdopting { target, .. }) => {
            assert!(target == wal || target == scratch.path("ts"));
        }
        other => panic!("{other:?}"),
    }
    request.adopt = false;

    let pg_control = data.join("global/pg_control");
    let good = fs::read(&pg_control).unwrap();
    let mut bad = good.clone();
    bad[40] ^= 1;
    fs::write(&pg_control, &bad).unwrap();
    let error = import(&scratch, &request).unwrap_err();
    assert!(matches!(error, ImportError::Probe(probe::ProbeError::Control { .. })), "{error:?}");
    fs::write(&pg_control, &good).unwrap();
    fs::write(data.join("PG_VERSION"), "11\n").unwrap();
    let error = import(&scratch, &request).unwrap_err();
    assert!(matches!(error, ImportError::UnsupportedMajor { major: 11 }), "{error:?}");
    fs::write(data.join("PG_VERSION"), "15\n").unwrap();
    fs::rename(scratch.path("ts"), scratch.path("ts.away")).unwrap();
    let error = import(&scratch, &request).unwrap_err();
    assert!(matches!(error, ImportError::BrokenLink { .. }), "{error:?}");
    fs::rename(scratch.path("ts.away"), scratch.path("ts")).unwrap();
    scratch.assert_untouched();

    // A server that starts while we copy is noticed before anything becomes visible.
    let started = AtPlanned(|| fs::write(data.join("postmaster.pid"), "1\n").unwrap());
    let error = cowfs::import::import(&scratch.store, &request, &started).unwrap_err();
    assert!(matches!(error, ImportError::Running { pid: 1, .. }), "{error:?}");
    fs::remove_file(data.join("postmaster.pid")).unwrap();
    scratch.assert_untouched();

    fs::write(data.join("postgresql.auto.conf"), "recovery_init_sync_method = 'syncfs'\n").unwrap();
    let report = import(&scratch, &request).unwrap();
    assert!(report.notes.contains(&Note::NotShutDown { state: DbState::InProduction }));
    assert!(report.notes.contains(&Note::SyncfsConfigured));
    let copy = scratch.path("copy");
    Base::of(&scratch, &report).materialize(&copy);
    fs::write(copy.join("postgresql.auto.conf"), "").unwrap();
    let server = Server::start(&copy, &scratch.path("sockets"));
    assert_eq!(server.query("select count(*) from plain where g = -1"), "1", "recovery lost a row");
    server.stop("fast");
}

/// A tree with one of everything. Returns its root.
fn menagerie(scratch: &Scratch) -> PathBuf {
    let root = scratch.make_dir("tree");
    fs::create_dir_all(root.join("sub/deep")).unwrap();
    fs::write(root.join("file"), "contents").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(root.join("file"), root.join("sub/other-name")).unwrap();
    let sparse = fs::File::create(root.join("sub/sparse")).unwrap();
    sparse.write_all_at(b"middle", 40 << 20).unwrap();
    sparse.set_len((100 << 20) + 1).unwrap();
    symlink("sub/deep", root.join("inside")).unwrap();
    symlink("../../etc", root.join("sub/outside")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    fs::write(root.join(OsStr::from_bytes(b"not\xff utf8\n")), "x").unwrap();
    fs::write(root.join("sub").join("n".repeat(255)), "long").unwrap();
    fs::write(root.join("postmaster.pid"), "1\n").unwrap();
    root
}

#[test]
fn any_tree_with_one_of_everything() {
    let scratch = Scratch::new();
    let root = menagerie(&scratch);
    for adopt in [false, true] {
        let before = listing(&root);
        let mut request = scratch.request(&root, if adopt { "adopted" } else { "copied" });
        assert!(matches!(
            import(&scratch, &request),
            Err(ImportError::Probe(probe::ProbeError::NotADataDirectory { .. }))
        ));
        request.any = true;
        request.adopt = adopt;
        let report = import(&scratch, &request).unwrap();
        assert_eq!(listing(&root), before, "the source was changed");
        let base = Base::of(&scratch, &report);
        for name in [
            "file",
            "empty",
            "sub",
            "sub/deep",
            "sub/sparse",
            "inside",
            "sub/outside",
            "dangling",
            "fifo",
        ] {
            base.assert_like(name, &root.join(name));
        }
        base.assert_like(
            &format!("sub/{}", "n".repeat(255)),
            &root.join("sub").join("n".repeat(255)),
        );
        assert!(base.look_up(b"not\xff utf8\n").is_some());
        // Not a cluster, so this is a file like any other.
        base.assert_like("postmaster.pid", &root.join("postmaster.pid"));
        assert_eq!(base.get("file").ino, base.get("sub/other-name").ino);
        assert_eq!(base.get("file").nlink, 2);
        assert_eq!(base.get("sub").nlink, 3);
        assert_eq!(base.inodes[&cowfs::format::Ino::ROOT].0.nlink, 3);
        assert_eq!(base.get("fifo").kind, FileKind::Fifo);
        assert!(base.look_up(b"socket").is_none());
        assert!(report.notes.contains(&Note::SocketSkipped { path: "socket".into() }));
        let outside =
            Note::OutsideLinkKept { link: "sub/outside".into(), target: "../../etc".into() };
        assert!(report.notes.contains(&outside));
        assert_eq!(report.counts.hard_links, 1);
        assert_eq!(report.copied.copied_files + report.copied.shared_files > 0, !adopt);
        let sparse = fs::metadata(base.contents(base.get("sub/sparse"))).unwrap();
        assert!(sparse.blocks() * 512 < 1 << 20, "the holes of a sparse file were filled");
        assert_eq!(base.dir.join("data").exists(), !adopt);
        if adopt {
            let source = base.get("sub/sparse").adopted.clone().unwrap();
            assert_eq!(source.path, b"sub/sparse");
            assert_eq!(source.host_ino, fs::metadata(root.join("sub/sparse")).unwrap().ino());
            assert_eq!(report.branch.origin, format!("adopt:{}", root.display()));
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["counts"]["files"], 6);
    }
}

#[test]
fn sources_that_cannot_be_imported() {
    let scratch = Scratch::new();
    let any = |path: &Path| {
        let mut request = scratch.request(path, "b");
        request.any = true;
        import(&scratch, &request).unwrap_err()
    };
    assert!(matches!(any(&scratch.path("missing")), ImportError::Source { .. }));
    assert!(matches!(any(&scratch.make_dir("empty")), ImportError::Empty { .. }));
    fs::write(scratch.path("file"), "x").unwrap();
    assert!(matches!(any(&scratch.path("file")), ImportError::NotADirectory { .. }));
    assert!(matches!(any(&scratch.path("")), ImportError::Overlap { .. }));
    assert!(matches!(any(&scratch.store.root), ImportError::Overlap { .. }));
    assert!(matches!(any(&scratch.store.root.join("layers")), ImportError::Overlap { .. }));
    let without_any = import(&scratch, &scratch.request(&scratch.path("empty"), "b"));
    assert!(matches!(without_any, Err(ImportError::Empty { .. })));
    let huge = scratch.make_dir("huge");
    // One byte more than a branch can hold; the host may refuse such a size by itself.
    let file = fs::File::create(huge.join("file")).unwrap();
    if file.set_len(cowfs::format::id::FILE_BYTES_MAX + 1).is_ok() {
        assert!(matches!(any(&huge), ImportError::TooLarge { .. }));
    }
    scratch.assert_untouched();

    fs::write(scratch.path("empty/x"), "x").unwrap();
    let mut request = scratch.request(&scratch.path("empty"), "b");
    request.any = true;
    import(&scratch, &request).unwrap();
    let twice = import(&scratch, &request).unwrap_err();
    assert!(twice.to_string().contains("branch b exists already"), "{twice}");
    assert_eq!(scratch.store.catalog.all_layers().unwrap().len(), 2);
}

#[test]
fn what_changes_between_walk_and_copy_is_an_error() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 7] = [
        ("its size differs", |root| fs::write(root.join("sub/f"), "longer than before").unwrap()),
        ("it was modified", |root| {
            let file = fs::File::options().write(true).open(root.join("sub/f")).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }),
        ("a symbolic link took its place", |root| {
            fs::remove_file(root.join("sub/f")).unwrap();
            symlink("/etc/passwd", root.join("sub/f")).unwrap();
        }),
        ("another file took its place", |root| {
            fs::write(root.join("new"), "abc").unwrap();
            fs::rename(root.join("new"), root.join("sub/f")).unwrap();
        }),
        ("another file took its place", |root| {
            fs::remove_file(root.join("sub/f")).unwrap();
            nix::unistd::mkfifo(&root.join("sub/f"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
        ("cannot be followed", |root| {
            // The whole directory becomes a link to a like-named tree outside.
            let outside = root.parent().unwrap().join("outside");
            fs::create_dir(&outside).unwrap();
            fs::write(outside.join("f"), "abc").unwrap();
            fs::rename(root.join("sub"), root.join("sub.away")).unwrap();
            symlink(&outside, root.join("sub")).unwrap();
        }),
        ("it is gone", |root| fs::remove_file(root.join("sub/f")).unwrap()),
    ];
    for (expected, change) in changes {
        let scratch = Scratch::new();
        let root = scratch.make_dir("tree");
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/f"), "abc").unwrap();
        fs::write(root.join("sub/g"), "kept").unwrap();
        let mut request = scratch.request(&root, "b");
        request.any = true;
        let result = cowfs::import::import(&scratch.store, &request, &AtPlanned(|| change(&root)));
        match (expected, result) {
            ("it is gone", Ok(report)) => {
                let base = Base::of(&scratch, &report);
                assert!(base.look_up(b"sub/f").is_none() && base.look_up(b"sub/g").is_some());
                assert_eq!(report.notes, [Note::Vanished { path: root.join("sub/f") }]);
            }
            ("cannot be followed", Err(error)) => {
                assert!(matches!(error, ImportError::Changed { .. } | ImportError::Host { .. }));
                scratch.assert_untouched();
            }
            (_, Err(error @ ImportError::Changed { .. })) => {
                let text = error.to_string();
                assert!(text.contains(expected) && text.contains("sub/f"), "{text}");
                scratch.assert_untouched();
            }
            (_, other) => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn attributes_that_are_left_out_are_counted() {
    let scratch = Scratch::new();
    let root = scratch.make_dir("tree");
    for name in ["a", "b", "plain"] {
        fs::write(root.join(name), name).unwrap();
    }
    for name in ["a", "b"] {
        let mut setfattr = std::process::Command::new("setfattr");
        let status = setfattr.args(["-n", "user.note", "-v", "x"]).arg(root.join(name)).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: needs setfattr and a host filesystem with user attributes");
            return;
        }
    }
    for adopt in [false, true] {
        let mut request = scratch.request(&root, if adopt { "y" } else { "x" });
        (request.any, request.adopt) = (true, adopt);
        let report = import(&scratch, &request).unwrap();
        assert_eq!(report.notes, [Note::AttributesIgnored { files: 2, first: "a".into() }]);
    }
}

#[test]
fn giving_up_leaves_nothing() {
    let scratch = Scratch::new();
    let root = menagerie(&scratch);
    let mut request = scratch.request(&root, "b");
    request.any = true;
    let cancel = request.cancel.clone();
    let observer = AtPlanned(|| cancel.store(true, Ordering::Relaxed));
    let error = cowfs::import::import(&scratch.store, &request, &observer).unwrap_err();
    assert!(matches!(error, ImportError::Interrupted), "{error:?}");
    scratch.assert_untouched();
}

/// Everything that can be seen of a tree but access times.
fn listing(root: &Path) -> Vec<(PathBuf, u64, u32, u64, i64, i64, i64)> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        if m.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, m.ino(), m.mode(), m.len(), m.mtime(), m.mtime_nsec(), m.ctime_nsec()));
    }
    found.sort();
    found
}
