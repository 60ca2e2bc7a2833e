//! POSIX meaning over a branch: names, inodes, reading, writing, syncing. No FUSE types here, so
//! the whole filesystem is tested without a mount.

pub mod ahead;
pub mod attr;
pub mod dir;
pub mod hygiene;
mod lost;
pub mod names;
pub mod node;
mod quota;
pub mod range;
pub mod read;
pub mod rename;
mod series;
pub mod sync;
pub mod txn;
pub mod write;
pub mod xattr;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::branch::{Branch, BranchError, OpenMode};
use crate::format::{Ino, Timestamp};
use crate::layer::LayerError;
use node::Node;
pub use quota::Quota;

/// Longest name in bytes, as on every Linux filesystem.
pub const NAME_BYTES_MAX: usize = 255;

/// Why a request failed. The errno of each is in `fuse/errno.rs`.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the documentation")]
pub enum FsError {
    #[error("no such file or directory")]
    NotFound,
    #[error("the name exists")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("the name is longer than 255 bytes")]
    NameTooLong,
    #[error("invalid argument")]
    Invalid,
    #[error("a file holds at most 16 TiB")]
    TooBig,
    #[error("the branch is mounted read-only")]
    ReadOnly,
    #[error("the branch has taken all that its quota allows")]
    OverQuota,
    #[error("too many links")]
    TooManyLinks,
    #[error("operation not permitted")]
    NotPermitted,
    #[error("no such attribute")]
    NoAttribute,
    #[error("not supported")]
    NotSupported,
    #[error("no data or hole past this offset")]
    NoSuchOffset,
    #[error("the attribute is too large")]
    AttributeTooBig,
    #[error("inode {ino}: bytes of it could not be written back; write them again")]
    Lost { ino: Ino },
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Branch(#[from] BranchError),
}

/// Who makes a request: new files belong to them.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What a mount was asked for beyond the defaults.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsOptions {
    /// Store `user.*` extended attributes. Off by default: a filesystem that answers getxattr at
    /// all pays one more round trip for every write(2).
    pub xattr: bool,
    /// Every write(2) waits for our answer, instead of for the kernel's page cache alone: a full
    /// disk is then said by the write and not by the fsync. Writes become much slower.
    pub write_through: bool,
}

/// The filesystem of one served branch.
pub struct Fs {
    /// The branch.
    pub branch: Arc<Branch>,
    /// Options.
    pub options: FsOptions,
    nodes: Mutex<HashMap<Ino, Arc<Node>>>,
    /// Orders changes of names. Taken after the epoch gate, before any node.
    names_turn: Mutex<()>,
    /// Directories that hold WAL segments.
    wal_dirs: RwLock<HashSet<Ino>>,
    /// Directories of what queries spill.
    temporary_dirs: RwLock<HashSet<Ino>>,
    lost: lost::LostWrites,
    series: series::Series,
    /// How much the branch may take.
    pub quota: Quota,
}

impl Fs {
    /// The filesystem over `branch`.
    pub fn new(branch: Arc<Branch>, options: FsOptions) -> Arc<Fs> {
        let quota = Quota::new(branch.row.quota_bytes);
        Arc::new(Fs {
            branch,
            options,
            nodes: Mutex::default(),
            names_turn: Mutex::new(()),
            wal_dirs: RwLock::default(),
            temporary_dirs: RwLock::default(),
            lost: lost::LostWrites::default(),
            series: series::Series::default(),
            quota,
        })
    }

    /// What must be done before the first request: orphans of a killed process go, and in a
    /// fresh fork what belongs to the parent's running server.
    pub fn prepare(&self) -> Result<(), FsError> {
        if self.writable().is_err() {
            return Ok(());
        }
        self.drop_orphans()?;
        if self.branch.row.hygiene_pending { self.apply_fork_hygiene() } else { Ok(()) }
    }

    /// What must be done after the last request, before the branch is closed.
    pub fn finish(&self) -> Result<(), FsError> {
        self.retire_all()
    }

    pub(crate) fn writable(&self) -> Result<(), FsError> {
        match self.branch.mode {
            OpenMode::ReadWrite => Ok(()),
            OpenMode::ReadOnly => Err(FsError::ReadOnly),
        }
    }
}

/// The time now, as stored.
pub fn now() -> Timestamp {
    let since =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp { secs: since.as_secs().cast_signed(), nanos: since.subsec_nanos() }
}
