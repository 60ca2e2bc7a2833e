//! `global/pg_control` of a data directory.

use cowfs::postgres::ControlFile;

/// One input.
pub fn run(data: &[u8]) {
    let _ = ControlFile::parse(data);
    for crc_at in [288, 292] {
        let mut healed = data.to_vec();
        if healed.len() < crc_at + 4 {
            return;
        }
        let crc = crc32c::crc32c(&healed[..crc_at]).to_le_bytes();
        healed[crc_at..crc_at + 4].copy_from_slice(&crc);
        if let Ok(control) = ControlFile::parse(&healed) {
            assert_eq!(control.system_identifier.to_le_bytes(), healed[..8]);
            assert_eq!(control.state as u32, u32::from(healed[16]));
        }
    }
}
