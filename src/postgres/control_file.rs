//! `global/pg_control`: what Postgres last wrote about the state of a cluster.

use std::fmt;

use thiserror::Error;

use super::wal::Lsn;

/// Bytes that Postgres writes; the facts lie in the first 512, the rest is zeros.
pub const CONTROL_FILE_BYTES: usize = 8192;

// Offsets within the file, for every version from 12 to 18 on a 64-bit little-endian machine
// (the struct is `ControlFileData` of `catalog/pg_control.h`):
//
//   0    system_identifier  u64
//   8    pg_control_version u32   1201 (12), 1300 (13 to 17), 1800 (18)
//   12   catalog_version_no u32
//   16   state              u32   DbState
//   40   checkPointCopy.redo           u64   since 11
//   48   checkPointCopy.ThisTimeLineID u32
//   252  data_checksum_version u32   0: no page checksums
//   288  crc                u32   CRC-32C of everything before it; 292 in version 1800, which put
//                                 default_char_signedness (1 byte) before a 32-byte nonce
//
// 12 and 13 differ in `float4ByVal` only, whose byte alignment gives back; 17 put `wal_level` of
// the checkpoint copy into what was padding.
const CONTROL_VERSION: usize = 8;
const CATALOG_VERSION: usize = 12;
const STATE: usize = 16;
const REDO: usize = 40;
const TIMELINE: usize = 48;
const CHECKSUM_VERSION: usize = 252;

/// Control file versions that are understood, and where each keeps its CRC.
const CRC_OFFSETS: [(u32, usize); 3] = [(1201, 288), (1300, 288), (1800, 292)];

/// The state of a cluster as of its last change of state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u32)]
pub enum DbState {
    /// Starting for the first time.
    StartingUp = 0,
    /// Stopped after a shutdown checkpoint.
    ShutDown = 1,
    /// A standby, stopped after a restartpoint.
    ShutDownInRecovery = 2,
    /// On its way to a stop.
    ShuttingDown = 3,
    /// Replaying WAL after a crash.
    InCrashRecovery = 4,
    /// A standby, or a restore in progress.
    InArchiveRecovery = 5,
    /// Running, or killed while it was.
    InProduction = 6,
}

impl DbState {
    fn from_u32(value: u32) -> Option<DbState> {
        Some(match value {
            0 => DbState::StartingUp,
            1 => DbState::ShutDown,
            2 => DbState::ShutDownInRecovery,
            3 => DbState::ShuttingDown,
            4 => DbState::InCrashRecovery,
            5 => DbState::InArchiveRecovery,
            6 => DbState::InProduction,
            _ => return None,
        })
    }

    /// Whether the server stopped in order, so that nothing is to be recovered at the next start.
    pub fn is_clean(self) -> bool {
        matches!(self, DbState::ShutDown | DbState::ShutDownInRecovery)
    }
}

impl fmt::Display for DbState {
    /// In the words of `pg_controldata`, which people will compare it with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DbState::StartingUp => "starting up",
            DbState::ShutDown => "shut down",
            DbState::ShutDownInRecovery => "shut down in recovery",
            DbState::ShuttingDown => "shutting down",
            DbState::InCrashRecovery => "in crash recovery",
            DbState::InArchiveRecovery => "in archive recovery",
            DbState::InProduction => "in production",
        })
    }
}

/// What a control file says, its checksum verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct ControlFile {
    /// The number that a cluster keeps from `initdb` on; forks share it.
    pub system_identifier: u64,
    /// Layout of the control file, as major * 100.
    pub control_version: u32,
    /// Layout of the system catalogs, as `yyyymmddN`; part of tablespace directory names.
    pub catalog_version: u32,
    /// State as of the last change of state.
    pub state: DbState,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// Where a recovery begins to read the WAL.
    #[serde(skip)]
    pub redo: Lsn,
    /// The timeline of that WAL.
    #[serde(skip)]
    pub timeline: u32,
}

/// Why the bytes of a control file were not believed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ControlFileError {
    /// It ends before its checksum.
    #[error("the control file has only {bytes} bytes")]
    Truncated {
        /// Its length.
        bytes: usize,
    },
    /// No version that is known has that number.
    #[error("control file version {found} is not one of Postgres 12 to 18")]
    UnknownVersion {
        /// The number found.
        found: u32,
    },
    /// It was written on a machine of the other byte order.
    #[error("the control file comes from a machine with another byte order")]
    ByteOrder,
    /// Its contents do not match its checksum.
    #[error(
        "the control file is damaged: its checksum is {stored:08x}, its contents give {computed:08x}"
    )]
    Checksum {
        /// The checksum in the file.
        stored: u32,
        /// The checksum of the contents.
        computed: u32,
    },
    /// The state is none that Postgres has.
    #[error("the control file has the unknown cluster state {found}")]
    UnknownState {
        /// The number found.
        found: u32,
    },
}

impl ControlFile {
    /// Parses the bytes of `global/pg_control`.
    pub fn parse(bytes: &[u8]) -> Result<ControlFile, ControlFileError> {
        let version = u32_at(bytes, CONTROL_VERSION)?;
        let crc_offset = crc_offset(version)?;
        let stored = u32_at(bytes, crc_offset)?;
        let covered =
            bytes.get(..crc_offset).ok_or(ControlFileError::Truncated { bytes: bytes.len() })?;
        let computed = crc32c::crc32c(covered);
        if stored != computed {
            return Err(ControlFileError::Checksum { stored, computed });
        }
        let state = u32_at(bytes, STATE)?;
        let (low, high) = (u32_at(bytes, 0)?, u32_at(bytes, 4)?);
        Ok(ControlFile {
            system_identifier: u64::from(low) | u64::from(high) << 32,
            control_version: version,
            catalog_version: u32_at(bytes, CATALOG_VERSION)?,
            state: DbState::from_u32(state)
                .ok_or(ControlFileError::UnknownState { found: state })?,
            data_checksums: u32_at(bytes, CHECKSUM_VERSION)? != 0,
            redo: Lsn(u64::from(u32_at(bytes, REDO)?) | u64::from(u32_at(bytes, REDO + 4)?) << 32),
            timeline: u32_at(bytes, TIMELINE)?,
        })
    }
}

fn crc_offset(version: u32) -> Result<usize, ControlFileError> {
    for (known, offset) in CRC_OFFSETS {
        if version == known {
            return Ok(offset);
        }
        if version.swap_bytes() == known {
            return Err(ControlFileError::ByteOrder);
        }
    }
    Err(ControlFileError::UnknownVersion { found: version })
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, ControlFileError> {
    let field = bytes
        .get(offset..offset + 4)
        .and_then(|field| <[u8; 4]>::try_from(field).ok())
        .ok_or(ControlFileError::Truncated { bytes: bytes.len() })?;
    Ok(u32::from_le_bytes(field))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A control file as the given version writes it.
    pub(crate) fn sample(version: u32, state: u32) -> Vec<u8> {
        let crc_at = CRC_OFFSETS.iter().find(|(known, _)| *known == version).unwrap().1;
        let mut bytes = vec![0_u8; CONTROL_FILE_BYTES];
        bytes[..8].copy_from_slice(&7_595_000_111_222_333_444_u64.to_le_bytes());
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[12..16].copy_from_slice(&202_209_061_u32.to_le_bytes());
        bytes[16..20].copy_from_slice(&state.to_le_bytes());
        bytes[252..256].copy_from_slice(&1_u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn every_known_version_parses() {
        for version in [1201, 1300, 1800] {
            let control = ControlFile::parse(&sample(version, 1)).unwrap();
            assert_eq!(control.system_identifier, 7_595_000_111_222_333_444);
            assert_eq!(control.control_version, version);
            assert_eq!(control.catalog_version, 202_209_061);
            assert!(control.data_checksums && control.state.is_clean());
        }
    }

    #[test]
    fn any_flipped_bit_before_the_checksum_is_noticed() {
        let good = sample(1300, 6);
        for bit in 0..292 * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ControlFile::parse(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let good = sample(1800, 1);
        for len in 0..296 {
            assert!(ControlFile::parse(&good[..len]).is_err(), "length {len}");
        }
        assert!(ControlFile::parse(&good[..296]).is_ok());
    }

    #[test]
    fn strange_versions_and_states_are_named() {
        let mut bytes = sample(1300, 1);
        bytes[8..12].copy_from_slice(&1900_u32.to_le_bytes());
        assert_eq!(
            ControlFile::parse(&bytes),
            Err(ControlFileError::UnknownVersion { found: 1900 })
        );
        bytes[8..12].copy_from_slice(&1300_u32.to_be_bytes());
        assert_eq!(ControlFile::parse(&bytes), Err(ControlFileError::ByteOrder));
        assert_eq!(
            ControlFile::parse(&sample(1300, 7)),
            Err(ControlFileError::UnknownState { found: 7 })
        );
    }
}
