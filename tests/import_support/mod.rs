//! What the import tests share: clusters made by the real Postgres, and the other way round.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cowfs::catalog::{LayerState, Store};
use cowfs::format::{DirentTarget, FileKind, FileLayout, Index, Ino, InodeRecord};
use cowfs::import::{self, ImportError, ImportReport, ImportRequest, Observer};

/// Where Debian has the binaries of Postgres 15.
pub const POSTGRES: &str = "/usr/lib/postgresql/15/bin";

/// Whether a cluster can be made here; says so if not.
pub fn postgres_here() -> bool {
    let there = Path::new(POSTGRES).join("initdb").exists();
    if !there || !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: needs root and Debian's PostgreSQL 15 ({POSTGRES})");
        return false;
    }
    true
}

/// A scratch directory that the user postgres can reach, with a store in it.
pub struct Scratch {
    dir: tempfile::TempDir,
    pub store: Store,
}

impl Scratch {
    pub fn new() -> Scratch {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let store = Store::init(&dir.path().join("store")).unwrap();
        Scratch { dir, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    /// A directory of that name, owned by postgres if there is such a user.
    pub fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        path
    }

    #[expect(clippy::unused_self, reason = "reads as what it is: a request to this store")]
    pub fn request(&self, source: &Path, name: &str) -> ImportRequest {
        ImportRequest {
            source: source.to_owned(),
            name: name.parse().unwrap(),
            adopt: false,
            allow_crashed: false,
            any: false,
            jobs: 3,
            uid: 0,
            command: "test".to_owned(),
            cancel: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Asserts that no import left anything behind: no branch of that name, no layer, no lock.
    pub fn assert_untouched(&self) {
        assert!(self.store.catalog.branches().unwrap().is_empty());
        assert!(self.store.catalog.all_layers().unwrap().is_empty());
        for dir in ["layers", "run"] {
            let left: Vec<_> = fs::read_dir(self.store.root.join(dir)).unwrap().collect();
            assert!(left.is_empty(), "left in {dir}: {left:?}");
        }
    }
}

/// An observer that does something between the walk and the copy.
pub struct AtPlanned<F: Fn() + Sync>(pub F);

impl<F: Fn() + Sync> Observer for AtPlanned<F> {
    fn planned(&self, _files: u64, _bytes: u64) {
        (self.0)();
    }
}

pub struct Silent;
impl Observer for Silent {}

pub fn import(scratch: &Scratch, request: &ImportRequest) -> Result<ImportReport, ImportError> {
    import::import(&scratch.store, request, &Silent)
}

/// Runs a Postgres program as the user postgres.
pub fn postgres(program: &str, args: &[&str]) -> Output {
    Command::new("runuser")
        .args(["-u", "postgres", "--", &format!("{POSTGRES}/{program}")])
        .args(args)
        .env("LC_ALL", "C")
        .current_dir("/")
        .output()
        .unwrap()
}

pub fn postgres_ok(program: &str, args: &[&str]) -> String {
    let output = postgres(program, args);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{program} {args:?}: {text}");
    text
}

pub fn chown_postgres(path: &Path) {
    let status = Command::new("chown").args(["-R", "-h", "postgres:"]).arg(path).status().unwrap();
    assert!(status.success());
}

/// A cluster with its server; stopped when dropped.
pub struct Server {
    pub data: PathBuf,
    sockets: PathBuf,
}

impl Server {
    /// Starts a server on `data`, reachable only through a socket in `sockets`.
    pub fn start(data: &Path, sockets: &Path) -> Server {
        let options = format!("-c listen_addresses='' -k {} -c fsync=off", sockets.display());
        let log = sockets.join("log");
        let output = postgres(
            "pg_ctl",
            &[
                "-w",
                "-D",
                data.to_str().unwrap(),
                "-l",
                log.to_str().unwrap(),
                "-o",
                &options,
                "start",
            ],
        );
        let log = fs::read_to_string(log).unwrap_or_default();
        assert!(output.status.success(), "the server did not start:\n{log}");
        Server { data: data.to_owned(), sockets: sockets.to_owned() }
    }

    pub fn query(&self, sql: &str) -> String {
        let host = self.sockets.to_str().unwrap();
        let text = postgres_ok("psql", &["-h", host, "-d", "postgres", "-XAtqc", sql]);
        text.trim().to_owned()
    }

    pub fn stop(self, mode: &str) {
        postgres_ok("pg_ctl", &["-w", "-D", self.data.to_str().unwrap(), "-m", mode, "stop"]);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.data.join("postmaster.pid").exists() {
            postgres("pg_ctl", &["-D", self.data.to_str().unwrap(), "-m", "immediate", "stop"]);
        }
    }
}

/// What an imported base layer says, fully read.
pub struct Base {
    pub dir: PathBuf,
    pub adopted_from: Option<PathBuf>,
    pub names: BTreeMap<(Ino, Vec<u8>), Ino>,
    pub inodes: BTreeMap<Ino, (InodeRecord, Option<FileLayout>)>,
    pub next_ino: Ino,
}

impl Base {
    /// Reads the base of a branch that was just imported; proves its shape in the catalog.
    pub fn of(scratch: &Scratch, report: &ImportReport) -> Base {
        let chain = scratch.store.catalog.chain(report.branch.head).unwrap();
        assert_eq!(chain.len(), 2);
        assert_eq!(chain[0].state, LayerState::Open);
        assert_eq!(chain[1].state, LayerState::Sealed);
        let dir = scratch.store.layer_dir(chain[1].id);
        let index = Index::open(Box::new(fs::read(dir.join("index")).unwrap())).unwrap();
        index.verify().unwrap();
        assert_eq!(index.meta().layer, chain[1].id);
        let mut base = Base {
            dir,
            adopted_from: chain[1].adopted_from.clone(),
            names: BTreeMap::new(),
            inodes: BTreeMap::new(),
            next_ino: index.meta().next_ino,
        };
        for entry in index.dirents() {
            let entry = entry.unwrap();
            let DirentTarget::Link { ino, .. } = entry.target else { panic!("whiteout in a base") };
            base.names.insert((entry.dir, entry.name.to_vec()), ino);
        }
        for file in index.files() {
            let (record, layout) = file.unwrap();
            assert_eq!(layout.is_some(), record.kind == FileKind::Regular);
            assert!(record.ino < base.next_ino);
            base.inodes.insert(record.ino, (record, layout));
        }
        base
    }

    pub fn look_up(&self, path: &[u8]) -> Option<&InodeRecord> {
        let mut ino = Ino::ROOT;
        for part in path.split(|byte| *byte == b'/') {
            ino = *self.names.get(&(ino, part.to_vec()))?;
        }
        Some(&self.inodes[&ino].0)
    }

    pub fn get(&self, path: &str) -> &InodeRecord {
        self.look_up(path.as_bytes()).unwrap_or_else(|| panic!("{path} is not in the layer"))
    }

    /// The host file with the contents of a regular file.
    pub fn contents(&self, record: &InodeRecord) -> PathBuf {
        match (&self.adopted_from, &record.adopted) {
            (Some(dir), Some(source)) => dir.join(std::ffi::OsStr::from_bytes(&source.path)),
            _ => self.dir.join(record.ino.data_path()),
        }
    }

    /// Asserts that the record says what the host says of `path`.
    pub fn assert_like(&self, name: &str, path: &Path) {
        let record = self.get(name);
        let host = fs::symlink_metadata(path).unwrap();
        assert_eq!(u32::from(record.perm), host.mode() & 0o7777, "mode of {name}");
        assert_eq!((record.uid, record.gid), (host.uid(), host.gid()), "owner of {name}");
        assert_eq!(record.mtime.secs, host.mtime(), "mtime of {name}");
        assert_eq!(i64::from(record.mtime.nanos), host.mtime_nsec(), "mtime of {name}");
        let kind = host.file_type();
        if kind.is_file() {
            assert_eq!(record.size, host.len(), "size of {name}");
            if record.size > 0 {
                let layout = self.inodes[&record.ino].1.as_ref().unwrap();
                assert!(layout.private && layout.runs.len() == 1);
                let copy = self.contents(record);
                assert!(fs::read(copy).unwrap() == fs::read(path).unwrap(), "bytes of {name}");
            }
        } else if kind.is_symlink() {
            let target = fs::read_link(path).unwrap();
            assert_eq!(record.symlink, target.as_os_str().as_bytes(), "target of {name}");
        }
    }

    /// Makes an ordinary directory tree out of the layer, as a mount would show it.
    pub fn materialize(&self, target: &Path) {
        fs::create_dir(target).unwrap();
        let mut links: BTreeMap<Ino, PathBuf> = BTreeMap::new();
        let mut pending = vec![(Ino::ROOT, target.to_owned())];
        while let Some((dir, path)) = pending.pop() {
            let inside = (dir, Vec::new())..(Ino(dir.0 + 1), Vec::new());
            for ((_, name), ino) in self.names.range(inside) {
                let (record, path) =
                    (&self.inodes[ino].0, path.join(std::ffi::OsStr::from_bytes(name)));
                if let Some(first) = links.get(ino) {
                    fs::hard_link(first, &path).unwrap();
                    continue;
                }
                match record.kind {
                    FileKind::Directory => {
                        assert_eq!(record.parent, dir);
                        fs::create_dir(&path).unwrap();
                        pending.push((*ino, path.clone()));
                    }
                    FileKind::Symlink => {
                        let to = std::ffi::OsStr::from_bytes(&record.symlink);
                        std::os::unix::fs::symlink(to, &path).unwrap();
                    }
                    FileKind::Regular if record.size == 0 => fs::write(&path, "").unwrap(),
                    FileKind::Regular => drop(fs::copy(self.contents(record), &path).unwrap()),
                    other => panic!("{other:?} in a cluster"),
                }
                if record.kind != FileKind::Symlink {
                    let mode = fs::Permissions::from_mode(u32::from(record.perm));
                    fs::set_permissions(&path, mode).unwrap();
                }
                links.insert(*ino, path);
            }
        }
        fs::set_permissions(target, fs::Permissions::from_mode(0o700)).unwrap();
        chown_postgres(target);
    }
}
