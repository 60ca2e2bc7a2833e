//! The fuzz targets, and what they share: bytes whose checksums are made right, so that a mutation of a real file
//! reaches the code behind the checksum, and a directory to put files in.

pub mod control_file;
pub mod control_message;
pub mod control_socket;
pub mod data_directory;
pub mod index;
pub mod journal;
pub mod mountinfo;
pub mod owner_map;
pub mod replay;
pub mod store_format;
pub mod sums;

use std::path::Path;

use cowfs::format::LogHeader;

/// Bytes of the head of a frame: length, checksum, sequence.
const FRAME_HEAD: usize = 16;
/// A frame holds at least the count of its records.
const PAYLOAD_MIN: usize = 4;

const INDEX_HEADER: usize = 64;
const INDEX_FOOTER: usize = 88;
const BLOCK: usize = 64 * 1024;
/// Bytes per record of each section of an index.
const WIDTHS: [usize; 6] = [128, 32, 32, 8, 1, 1];

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).to_le_bytes()
}

/// The same log with right checksums; lengths of frames that reach too far are cut.
pub fn heal_log(bytes: &[u8]) -> Vec<u8> {
    let mut log = bytes.to_vec();
    if log.len() < LogHeader::BYTES {
        return log;
    }
    let header = crc(&log[..LogHeader::BYTES - 4]);
    put(&mut log, LogHeader::BYTES - 4, &header);
    heal_frames(&mut log[LogHeader::BYTES..]);
    log
}

fn heal_frames(mut frames: &mut [u8]) {
    while frames.len() >= FRAME_HEAD + PAYLOAD_MIN {
        let wanted = u32::from_le_bytes([frames[0], frames[1], frames[2], frames[3]]) as usize;
        let payload = wanted.clamp(PAYLOAD_MIN, frames.len() - FRAME_HEAD);
        put(frames, 0, &(payload as u32).to_le_bytes());
        let checksum = crc(&frames[8..FRAME_HEAD + payload]);
        put(frames, 4, &checksum);
        frames = &mut frames[FRAME_HEAD + payload..];
    }
}

/// An index with the same header and, as far as they are there, the sections that the footer of
/// `bytes` names; all checksums are right. `None` if the bytes are too few to be an index.
pub fn heal_index(bytes: &[u8]) -> Option<Vec<u8>> {
    let body_end = bytes.len().checked_sub(INDEX_FOOTER).filter(|end| *end >= INDEX_HEADER)?;
    let (body, footer) = (&bytes[INDEX_HEADER..body_end], &bytes[body_end..]);
    let mut index = bytes[..INDEX_HEADER].to_vec();
    let header = crc(&index[..INDEX_HEADER - 4]);
    put(&mut index, INDEX_HEADER - 4, &header);
    let (mut rest, mut table, mut lengths) = (body, Vec::new(), Vec::new());
    for (number, width) in WIDTHS.into_iter().enumerate() {
        let at = 24 + number * 8;
        let wanted = u64::from_le_bytes(footer[at..at + 8].try_into().ok()?);
        let most = rest.len() - rest.len() % width;
        let len = usize::try_from(wanted).unwrap_or(most).min(most);
        let (section, after) = rest.split_at(len - len % width);
        section.chunks(BLOCK).for_each(|block| table.extend(crc(block)));
        lengths.extend((section.len() as u64).to_le_bytes());
        index.extend_from_slice(section);
        rest = after;
    }
    let layer = index[24..32].to_vec();
    index.extend_from_slice(&table);
    let mut end = b"cowfsend".to_vec();
    end.extend(layer);
    end.extend(((index.len() + INDEX_FOOTER) as u64).to_le_bytes());
    end.extend(lengths);
    end.extend(((table.len() / 4) as u64).to_le_bytes());
    end.extend(crc(&table));
    end.extend(crc(&end));
    index.extend(end);
    Some(index)
}

thread_local! {
    static SCRATCH: tempfile::TempDir = {
        // In memory where there is such a place: the files of a target live for microseconds.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        dir.expect("a directory for files of the target")
    };
}

/// Runs `work` with a directory that is kept from run to run.
pub fn with_scratch<T>(work: impl FnOnce(&Path) -> T) -> T {
    SCRATCH.with(|dir| work(dir.path()))
}
