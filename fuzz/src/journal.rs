//! The logs of a layer: header, frames, records, how they end; and back.

use super::heal_log;
use cowfs::format::{Frame, FrameReader, LogHeader, Tail, encode_frame};

/// One input.
pub fn run(data: &[u8]) {
    examine(data);
    examine(&heal_log(data));
}

fn examine(bytes: &[u8]) {
    if let Ok(header) = LogHeader::decode(bytes) {
        assert_eq!(LogHeader::decode(&header.encode()).expect("what was encoded"), header);
    }
    let body = bytes.get(LogHeader::BYTES..).unwrap_or_default();
    let mut reader = FrameReader::new(body, 1);
    let mut frames: Vec<Frame> = Vec::new();
    for frame in reader.by_ref() {
        let Ok(frame) = frame else { return };
        let (offset, sequence) = frames.last().map_or((0, 0), |last| (last.end, last.sequence));
        assert_eq!(frame.offset, offset);
        assert!(frame.sequence > sequence, "{} after {sequence}", frame.sequence);
        frames.push(frame);
    }
    let whole = match reader.tail() {
        Tail::Clean => body.len() as u64,
        Tail::Torn { offset, bytes } => {
            assert_eq!(offset + bytes, body.len() as u64);
            offset
        }
    };
    assert_eq!(frames.last().map_or(0, |last| last.end), whole);
    // Cut as the tail says, the log is whole; written anew, it says the same.
    let mut again = Vec::new();
    for frame in &frames {
        encode_frame(frame.sequence, &frame.records, &mut again);
    }
    for log in [&body[..whole as usize], &again] {
        let mut reader = FrameReader::new(log, 1);
        let read: Vec<Frame> = reader.by_ref().collect::<Result<_, _>>().expect("whole frames");
        assert_eq!(reader.tail(), Tail::Clean);
        assert!(read.iter().map(|f| &f.records).eq(frames.iter().map(|f| &f.records)));
    }
}
