//! What is known of a file apart from its contents and its names.

use super::id::Ino;

/// A point in time as the filesystem stores it: seconds since 1970 and 0..=999,999,999 nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Timestamp {
    /// Seconds since the epoch; negative before 1970.
    pub secs: i64,
    /// Nanoseconds within the second, 0..=999,999,999.
    pub nanos: u32,
}

/// The type of a file, as in `S_IFMT` of `st_mode`. The discriminants are the on-disk values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// A regular file.
    Regular = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
    /// A named pipe.
    Fifo = 4,
    /// A Unix domain socket.
    Socket = 5,
    /// A character device.
    CharDevice = 6,
    /// A block device.
    BlockDevice = 7,
}

impl FileKind {
    /// The kind stored as `byte`, or `None` if no kind has that value.
    pub fn from_byte(byte: u8) -> Option<FileKind> {
        Some(match byte {
            1 => FileKind::Regular,
            2 => FileKind::Directory,
            3 => FileKind::Symlink,
            4 => FileKind::Fifo,
            5 => FileKind::Socket,
            6 => FileKind::CharDevice,
            7 => FileKind::BlockDevice,
            _ => return None,
        })
    }
}

/// Where the contents of a file of an adopted base lie, and how the file looked when adopted.
///
/// Any difference on a later read means that somebody changed the base: the read fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdoptedSource {
    /// Path relative to the adopted directory, without a leading slash.
    pub path: Vec<u8>,
    /// Host inode number at adoption.
    pub host_ino: u64,
    /// Size in bytes at adoption.
    pub size: u64,
    /// Modification time at adoption.
    pub mtime: Timestamp,
    /// Change time at adoption: unlike the modification time, nobody can put it back.
    pub ctime: Timestamp,
}

/// Everything a layer records about one inode. A layer that changed any field records all of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InodeRecord {
    /// The inode's number.
    pub ino: Ino,
    /// Its type.
    pub kind: FileKind,
    /// The low 12 bits of `st_mode`: permissions, set-user-ID, set-group-ID, sticky.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names; 0 for a file that was unlinked while open.
    pub nlink: u32,
    /// Device number of a device node, else 0.
    pub rdev: u32,
    /// Bytes. For a regular file that has a data file in the same open layer, the length of that
    /// data file counts instead (so that one fdatasync makes size and data durable together).
    pub size: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last modification of the contents.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// The directory that holds a directory (for `..`); `Ino(0)` for other kinds.
    pub parent: Ino,
    /// The target of a symbolic link, else empty. At most 4095 bytes.
    pub symlink: Vec<u8>,
    /// Extended attributes (only `user.*`), sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Set for a regular file whose contents lie in an adopted directory.
    pub adopted: Option<AdoptedSource>,
}

/// What a directory entry of one layer says about a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirentTarget {
    /// The name leads to this inode.
    Link {
        /// The inode.
        ino: Ino,
        /// Its kind, so that a directory can be listed without reading inodes.
        kind: FileKind,
    },
    /// The name was removed: entries of lower layers do not show through.
    Whiteout,
}
