//! A store: the directory that holds a catalog, its layers and the run files.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::lock::retry_while_busy;
use super::{BranchLock, Catalog, CatalogError, FileLock, LockError};
use crate::format::{BranchId, LayerId};

/// What `FORMAT` says in a store that this version understands.
const FORMAT_MAGIC: &str = "cowfs store";
/// The store layout's version.
const FORMAT_VERSION: u32 = 1;

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

/// An open store.
pub struct Store {
    /// Its directory, absolute.
    pub root: PathBuf,
    /// Its catalog.
    pub catalog: Catalog,
}

fn host(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Host { what, path, source }
}

fn make_private_dir(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(host("creating", path)),
    }
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
        let catalog = Catalog::create(&root.join("catalog.sqlite"))?;
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
        if let Some(parent) = root.parent() {
            sync_dir(parent)?;
        }
        Ok(Store { root, catalog })
    }

    /// Opens the store in `dir`.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        let path = dir.join("FORMAT");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                return Err(StoreError::NotAStore { dir: dir.to_owned() });
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                return Err(StoreError::DamagedFormat { dir: dir.to_owned() });
            }
            Err(e) => return Err(host("reading", &path)(e)),
        };
        let damaged = || StoreError::DamagedFormat { dir: dir.to_owned() };
        let format: Format = serde_json::from_str(text.trim()).map_err(|_| damaged())?;
        if format.magic != FORMAT_MAGIC {
            return Err(damaged());
        }
        if format.version != u64::from(FORMAT_VERSION) {
            let found = format.version;
            return Err(StoreError::UnknownVersion { dir: dir.to_owned(), found });
        }
        let root = dir.canonicalize().map_err(host("resolving", dir))?;
        let catalog = Catalog::open(&root.join("catalog.sqlite"))?;
        Ok(Store { root, catalog })
    }

    /// The directory of a layer.
    pub fn layer_dir(&self, id: LayerId) -> PathBuf {
        self.root.join("layers").join(id.dir_name())
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
        Ok(BranchLock::new(id, FileLock::acquire(&self.branch_lock_path(id))?))
    }

    /// Like [`Store::lock_branch`], but waits up to `patience` while somebody has it.
    pub fn lock_branch_waiting(
        &self,
        id: BranchId,
        patience: Duration,
    ) -> Result<BranchLock, LockError> {
        retry_while_busy(patience, || self.lock_branch(id))
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
