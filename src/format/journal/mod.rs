//! The logs of an open layer: `journal` (durable records) and `volatile` (believed on one boot).
//!
//! A log is a [`LogHeader`] followed by frames that are only ever appended:
//!
//! | at | field | type |
//! | --- | --- | --- |
//! | 0 | payload bytes, at least 4 | u32 |
//! | 4 | CRC32C over sequence and payload | u32 |
//! | 8 | sequence | u64 |
//! | 16 | payload: record count u32, then the records ([`Record`]) | |
//!
//! The length comes first so that a reader knows how much the checksum covers. A frame is applied
//! whole or not at all.
//!
//! **Invariant**: sequences rise from frame to frame, and a frame of a journal is appended only after
//! the frame before it was synced (so whatever is to become durable together goes into one frame).
//! Hence a damaged frame with an intact one after it is damage, not a write that a crash cut short:
//! had both been unsynced, the host might have written only the second. A volatile log needs no sync,
//! because it is believed only while the host's page cache still holds it.

mod frame;
mod header;
mod record;

pub use frame::{FRAME_BYTES_MAX, Frame, FrameReader, Tail, encode_frame};
pub use header::{LogHeader, LogKind};
pub use record::Record;

#[cfg(test)]
mod tests;
