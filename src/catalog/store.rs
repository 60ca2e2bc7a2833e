//! A store: the directory that holds a catalog, its layers and the run files.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use parking_lot::Mutex;

use super::lock::retry_while_busy;
use super::reserve;
use super::{BranchLock, Catalog, CatalogError, FileLock, LockError};
use crate::format::{BranchId, LayerId};
use crate::io::host::open_plain;

/// What `FORMAT` says in a store that this version understands.
const FORMAT_MAGIC: &str = "cowfs store";
/// The store layout's version.
const FORMAT_VERSION: u32 = 1;
/// `FORMAT` is one short line; whatever is longer is something else.
const FORMAT_BYTES_MAX: u64 = 4096;

/// Why a directory cannot be made or used as a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no store.
    #[error("{} is not a cowfs store", dir.display())]
    NotAStore {
        /// The directory.
        dir: PathBuf,
    },
    /// A store can only be made in an empty directory.
    #[error("{} is not empty", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// There is a store already.
    #[error("{} is a cowfs store already", dir.display())]
    AlreadyAStore {
        /// The directory.
        dir: PathBuf,
    },
    /// Something other than a directory is in the way.
    #[error("{} is not a directory", dir.display())]
    NotADirectory {
        /// The path.
        dir: PathBuf,
    },
    /// It is not this user's alone, so what lies in it may lead anywhere.
    #[error("{} {problem}", dir.display())]
    NotPrivate {
        /// The directory.
        dir: PathBuf,
        /// Whose it is, or who may write to it.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// A newer cowfs made it.
    #[error("{} is a store of version {found}; this cowfs knows version {FORMAT_VERSION}", dir.display())]
    UnknownVersion {
        /// The directory.
        dir: PathBuf,
        /// The version it has.
        found: u64,
    },
    /// The FORMAT file is not what a store has.
    #[error("{}: FORMAT is damaged", dir.display())]
    DamagedFormat {
        /// The directory.
        dir: PathBuf,
    },
    /// The host refused.
    #[error("{what} {}: {source}", path.display())]
    Host {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// The catalog refused.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Format {
    magic: String,
    version: u64,
}

/// A new branch's first layer has a journal of one frame (its root directory) before its row.
const ROOT_JOURNAL_BYTES_MAX: u64 = 512;

/// An open store.
///
/// As long as it is open, this process holds a shared lock on `FORMAT`: see [`Store::while_alone`].
pub struct Store {
    /// Its directory, absolute.
    pub root: PathBuf,
    /// Its catalog.
    pub catalog: Catalog,
    presence: Mutex<Flock<File>>,
}

fn host(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Host { what, path, source }
}

/// Whether there is no such file, or what should be a directory above it is none.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn make_private_dir(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(host("creating", path)),
    }
}

/// Refuses a store whose owner is somebody else, or that others may write to: they could put links
/// in the place of its files, for us to write through with our rights.
fn verify_private(dir: &Path) -> Result<(), StoreError> {
    let mode = verify_owner(dir)?;
    if mode & 0o022 == 0 {
        return Ok(());
    }
    let problem = format!("may be written to by others (mode {mode:04o})");
    let hint = format!("chmod 700 {}", dir.display());
    Err(StoreError::NotPrivate { dir: dir.to_owned(), problem, hint })
}

/// Refuses a directory of somebody else; returns its mode.
fn verify_owner(dir: &Path) -> Result<u32, StoreError> {
    let metadata = std::fs::metadata(dir).map_err(host("looking at", dir))?;
    let me = nix::unistd::geteuid().as_raw();
    let owner = metadata.uid();
    if owner == me {
        return Ok(metadata.mode() & 0o7777);
    }
    let problem = format!("belongs to user {owner}, and this is user {me}");
    let hint = format!("run it as that user, or `chown -R` the directory to user {me}");
    Err(StoreError::NotPrivate { dir: dir.to_owned(), problem, hint })
}

fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(host("syncing", path))
}

impl Store {
    /// Makes a new store in `dir`, which must be missing or empty; mode 0700. FORMAT is written
    /// last, so that a store is whole as soon as it is one.
    pub fn init(dir: &Path) -> Result<Store, StoreError> {
        if dir.join("FORMAT").exists() {
            return Err(StoreError::AlreadyAStore { dir: dir.to_owned() });
        }
        match std::fs::read_dir(dir) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(StoreError::NotEmpty { dir: dir.to_owned() });
                }
                verify_owner(dir)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
                made.map_err(host("creating", dir))?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                return Err(StoreError::NotADirectory { dir: dir.to_owned() });
            }
            Err(e) => return Err(host("reading", dir)(e)),
        }
        let root = dir.canonicalize().map_err(host("resolving", dir))?;
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&root, private).map_err(host("changing the mode of", &root))?;
        make_private_dir(&root.join("layers"))?;
        make_private_dir(&root.join("run"))?;
        drop(Catalog::create(&root.join("catalog.sqlite"))?);
        reserve::make(&root);
        let format = Format { magic: FORMAT_MAGIC.to_owned(), version: FORMAT_VERSION.into() };
        let path = root.join("FORMAT");
        let write = || -> io::Result<()> {
            let mut file = File::create_new(&path)?;
            serde_json::to_writer(&mut file, &format)?;
            file.write_all(b"\n")?;
            file.sync_all()
        };
        write().map_err(host("writing", &path))?;
        sync_dir(&root)?;
        // The store's own name. A directory above that we may not read holds a name that its owner
        // made, not we.
        if let Some(Err(StoreError::Host { source, path, .. })) = root.parent().map(sync_dir)
            && source.kind() != io::ErrorKind::PermissionDenied
        {
            return Err(host("syncing", &path)(source));
        }
        Store::open(&root)
    }

    /// Opens the store in `dir`.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        let path = dir.join("FORMAT");
        let file = match open_plain(&path) {
            Ok(file) => file,
            Err(e) if is_absent(&e) => {
                return Err(StoreError::NotAStore { dir: dir.to_owned() });
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(StoreError::DamagedFormat { dir: dir.to_owned() });
            }
            Err(e) => return Err(host("reading", &path)(e)),
        };
        verify_private(dir)?;
        verify_format(&file, dir)?;
        // Waits only while a gc renames leftovers.
        let presence = Flock::lock(file, FlockArg::LockShared)
            .map_err(|(_, errno)| host("locking", &path)(errno.into()))?;
        let root = dir.canonicalize().map_err(host("resolving", dir))?;
        let catalog = Catalog::open(&root.join("catalog.sqlite"))?;
        Ok(Store { root, catalog, presence: Mutex::new(presence) })
    }

    /// Runs `work` if nobody else has the store open, and lets nobody open it meanwhile; `None` if
    /// somebody has it open.
    ///
    /// Whoever has a store open may have made a layer's directory whose row is not written yet.
    /// `work` must be short, everybody waits for it.
    pub fn while_alone<T>(&self, work: impl FnOnce() -> T) -> Result<Option<T>, StoreError> {
        let failed = |errno: Errno| host("locking", &self.root.join("FORMAT"))(errno.into());
        let presence = self.presence.lock();
        let done = match presence.relock(FlockArg::LockExclusiveNonblock) {
            Ok(()) => Some(work()),
            Err(Errno::EWOULDBLOCK) => None,
            Err(errno) => return Err(failed(errno)),
        };
        // Also after a refusal: the kernel drops the old lock before it tries for the new one.
        presence.relock(FlockArg::LockShared).map_err(failed)?;
        Ok(done)
    }

    /// The directory that holds the directories of layers.
    pub fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// The directory of a layer.
    pub fn layer_dir(&self, id: LayerId) -> PathBuf {
        self.layers_dir().join(id.dir_name())
    }

    /// Whether a directory of a layer holds more than a layer has whose row was never written: then
    /// the catalog has known it, whatever it says now.
    ///
    /// So it is taken to, too, if the host does not let us look.
    pub fn holds_contents(dir: &Path) -> bool {
        let has_file = |group: PathBuf| match std::fs::read_dir(group) {
            Ok(mut files) => files.next().is_some(),
            Err(error) => !is_absent(&error),
        };
        let has_data = || match std::fs::read_dir(dir.join("data")) {
            Ok(mut groups) => {
                groups.any(|group| group.map_or(true, |group| has_file(group.path())))
            }
            Err(error) => !is_absent(&error),
        };
        let has_journal = || match dir.join("journal").metadata() {
            Ok(meta) => meta.len() > ROOT_JOURNAL_BYTES_MAX,
            Err(error) => !is_absent(&error),
        };
        ["index", "merged"].iter().any(|name| dir.join(name).try_exists().unwrap_or(true))
            || has_journal()
            || has_data()
    }

    /// Locks, sockets and other volatile files.
    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The lock file of a branch.
    pub fn branch_lock_path(&self, id: BranchId) -> PathBuf {
        self.run_dir().join(format!("{id}.lock"))
    }

    /// The right to serve or change a branch; fails at once if somebody has it.
    pub fn lock_branch(&self, id: BranchId) -> Result<BranchLock, LockError> {
        BranchLock::take(id, &self.branch_lock_path(id), &self.root.join("FORMAT"))
    }

    /// Like [`Store::lock_branch`], but waits up to `patience` while somebody has it.
    pub fn lock_branch_waiting(
        &self,
        id: BranchId,
        patience: Duration,
    ) -> Result<BranchLock, LockError> {
        retry_while_busy(patience, || self.lock_branch(id))
    }

    /// The right to start or stop the Postgres of a branch; waits up to `patience` while somebody
    /// has it.
    pub fn lock_postgres(&self, id: BranchId, patience: Duration) -> Result<FileLock, LockError> {
        let path = self.run_dir().join(format!("{id}.pg.lock"));
        retry_while_busy(patience, || FileLock::acquire(&path))
    }

    /// The lock that whoever imports into `layer` holds.
    pub fn lock_import(&self, layer: LayerId) -> Result<FileLock, LockError> {
        FileLock::acquire(&self.import_lock_path(layer))
    }

    /// The file of [`Store::lock_import`].
    pub fn import_lock_path(&self, layer: LayerId) -> PathBuf {
        self.run_dir().join(format!("import-{}.lock", layer.dir_name()))
    }
}

fn verify_format(file: &File, dir: &Path) -> Result<(), StoreError> {
    let mut text = Vec::new();
    file.take(FORMAT_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(host("reading", &dir.join("FORMAT")))?;
    let format: Format = serde_json::from_slice(&text)
        .ok()
        .filter(|format: &Format| format.magic == FORMAT_MAGIC)
        .ok_or_else(|| StoreError::DamagedFormat { dir: dir.to_owned() })?;
    if format.version == u64::from(FORMAT_VERSION) {
        Ok(())
    } else {
        Err(StoreError::UnknownVersion { dir: dir.to_owned(), found: format.version })
    }
}

/// The store that is used where none is named: `/var/lib/cowfs` for root, else below the user's
/// data directory.
pub fn default_store_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/cowfs");
    }
    let data = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    data.or(home).unwrap_or_else(|| PathBuf::from(".")).join("cowfs")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/store");
        (dir, path)
    }

    #[test]
    fn a_new_store_is_private_and_opens() {
        let (_dir, path) = place();
        let made = Store::init(&path).unwrap();
        for part in [path.clone(), made.layers_dir(), made.run_dir()] {
            assert_eq!(part.metadata().unwrap().permissions().mode() & 0o7777, 0o700, "{part:?}");
        }
        let opened = Store::open(&path).unwrap();
        assert!(opened.root.is_absolute());
        assert_eq!(opened.catalog.branches().unwrap(), []);
        assert_eq!(opened.layer_dir(LayerId(0xabc)), opened.root.join("layers/000000000abc"));
        let again = Store::init(&path).err().unwrap();
        assert!(matches!(again, StoreError::AlreadyAStore { .. }), "{again}");
    }

    #[test]
    fn what_is_in_the_way_is_named_and_left_alone() {
        let (dir, path) = place();
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("mine"), "x").unwrap();
        let full = Store::init(&path).err().unwrap();
        assert!(matches!(full, StoreError::NotEmpty { .. }), "{full}");
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
        let file = Store::init(&path.join("mine")).err().unwrap();
        assert!(matches!(file, StoreError::NotADirectory { .. }), "{file}");
        let none = Store::open(&path).err().unwrap();
        assert!(matches!(none, StoreError::NotAStore { .. }), "{none}");
        let none = Store::open(&dir.path().join("missing")).err().unwrap();
        assert!(matches!(none, StoreError::NotAStore { .. }), "{none}");
    }

    #[test]
    fn other_versions_and_damage_are_refused() {
        let (_dir, path) = place();
        drop(Store::init(&path).unwrap());
        let format = path.join("FORMAT");
        let with = |text: &[u8]| {
            std::fs::write(&format, text).unwrap();
            Store::open(&path).err().unwrap()
        };
        let future = with(br#"{"magic":"cowfs store","version":2}"#);
        assert!(matches!(future, StoreError::UnknownVersion { found: 2, .. }), "{future}");
        assert!(future.to_string().contains("version 2"), "{future}");
        let long = [b' '; 5000];
        for text in [&b""[..], b"x", b"\xff\xff", br#"{"magic":"other","version":1}"#, &long] {
            let damaged = with(text);
            assert!(matches!(damaged, StoreError::DamagedFormat { .. }), "{damaged}");
        }
    }

    #[test]
    fn nobody_is_alone_while_another_has_the_store_open() {
        let (_dir, path) = place();
        let first = Store::init(&path).unwrap();
        assert_eq!(first.while_alone(|| 1).unwrap(), Some(1));
        let second = Store::open(&path).unwrap();
        assert_eq!(first.while_alone(|| 1).unwrap(), None);
        assert_eq!(second.while_alone(|| 1).unwrap(), None);
        // A refusal must not have cost the first its own presence.
        drop(second);
        let third = Store::open(&path).unwrap();
        assert_eq!(third.while_alone(|| 1).unwrap(), None);
        drop(first);
        assert_eq!(third.while_alone(|| 1).unwrap(), Some(1));
    }

    #[test]
    fn opening_waits_for_whoever_is_alone() {
        let (_dir, path) = place();
        let store = Store::init(&path).unwrap();
        let pause = Duration::from_millis(50);
        let waited = store
            .while_alone(|| {
                let path = path.clone();
                let other = std::thread::spawn(move || {
                    let start = std::time::Instant::now();
                    Store::open(&path).unwrap();
                    start.elapsed()
                });
                std::thread::sleep(pause);
                other
            })
            .unwrap()
            .unwrap();
        assert!(waited.join().unwrap() >= pause / 2);
    }

    #[test]
    fn a_busy_branch_is_busy_for_everybody() {
        let (_dir, path) = place();
        let (one, two) = (Store::init(&path).unwrap(), Store::open(&path).unwrap());
        let held = one.lock_branch(BranchId(3)).unwrap();
        assert!(matches!(two.lock_branch(BranchId(3)), Err(LockError::Busy { pid: Some(_) })));
        two.lock_branch(BranchId(4)).unwrap();
        held.remove().unwrap();
        two.lock_branch_waiting(BranchId(3), Duration::ZERO).unwrap();
    }
}
