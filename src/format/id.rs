//! Newtypes for every identifier and quantity that reaches the disk.

use std::fmt;

/// Bytes in one granule, the unit of page ownership.
///
/// 4 KiB because the kernel writes its page cache back in units of 4 KiB: a larger granule would
/// force a read-modify-write in our process. A Postgres page (8 KiB) is two granules.
pub const GRANULE_BYTES: u64 = 4096;

macro_rules! numeric_id {
    ($(#[$doc:meta])* $name:ident, $repr:ty) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $repr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

numeric_id!(
    /// A layer, unique within a store and never reused. Valid ids start at 1.
    LayerId,
    u64
);
numeric_id!(
    /// A branch, unique within a store and never reused. Valid ids start at 1.
    BranchId,
    u64
);
numeric_id!(
    /// An inode number, unique within a branch and its ancestors. The root directory is 1.
    ///
    /// It also names the data file of a regular file within a layer.
    Ino,
    u64
);

impl Ino {
    /// The root directory of every branch.
    pub const ROOT: Ino = Ino(1);
    /// The last number that a branch gives to a file: as many as are made in thirty years at a
    /// thousand a second. The numbers shown for root directories lie beyond.
    pub const LAST: Ino = Ino((1 << 40) - 1);
}

/// The index of a granule within a file. `u32`, so a file holds at most 16 TiB (the limit of
/// ext4, too); a write beyond fails with EFBIG.
pub type Granule = u32;

/// The largest size of a file in bytes: every granule index below `u32::MAX` can be used.
pub const FILE_BYTES_MAX: u64 = (u32::MAX as u64) * GRANULE_BYTES;

/// The number of granules that `bytes` bytes touch, counted from the start of a file.
///
/// `bytes` must not exceed [`FILE_BYTES_MAX`]; larger values saturate at `u32::MAX`.
pub fn granules_spanned(bytes: u64) -> Granule {
    u32::try_from(bytes.div_ceil(GRANULE_BYTES)).unwrap_or(u32::MAX)
}

impl Ino {
    /// Where a layer keeps the data file of this inode, relative to the layer's directory.
    ///
    /// 1,024 neighbouring inodes share a directory: a million files make a thousand directories,
    /// and a branch that touches a few files makes few.
    pub fn data_path(self) -> std::path::PathBuf {
        std::path::PathBuf::from(format!("data/{:x}/{:x}", self.0 >> 10, self.0))
    }
}

/// Set in the id that stands for a layer's pack. Ids of layers have 48 bits.
const PACK: u64 = 1 << 63;

impl LayerId {
    /// The id that stands for this layer's pack: copies of granules that it and the layers below it
    /// own, kept in data files below its directory.
    #[must_use]
    pub fn pack(self) -> LayerId {
        LayerId(self.0 | PACK)
    }

    /// Whether it stands for a layer's pack.
    pub fn is_pack(self) -> bool {
        self.0 & PACK != 0
    }

    /// Where the layer's files lie, below the directory of all layers: 12 hexadecimal digits, or
    /// within the directory so named.
    pub fn dir_name(self) -> String {
        let name = format!("{:012x}", self.0 & !PACK);
        if self.is_pack() { name + "/pack" } else { name }
    }
}
