//! What can be wrong with the bytes of a layer.

/// Why bytes could not be read as a journal or an index, or could not be made into one.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The bytes begin like something else.
    #[error("not a cowfs {what} (wrong magic)")]
    BadMagic {
        /// What was expected.
        what: &'static str,
    },
    /// Written by a version of cowfs with another format.
    #[error("{what} has format version {found}; this cowfs reads version {supported}")]
    UnknownVersion {
        /// What it is.
        what: &'static str,
        /// The version found.
        found: u32,
        /// The version that this build reads.
        supported: u32,
    },
    /// The bytes end too early.
    #[error("{what} is cut short: {wanted} bytes wanted at offset {offset}, {found} there")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where, in bytes from the start of the file (of a log: from the end of its header).
        offset: u64,
        /// Bytes needed.
        wanted: u64,
        /// Bytes left.
        found: u64,
    },
    /// A checksum does not match: the bytes changed after they were written.
    #[error("checksum mismatch in {section} at offset {offset}")]
    Checksum {
        /// Which part of the file.
        section: &'static str,
        /// Where the checked bytes begin, in bytes from the start of the file.
        offset: u64,
    },
    /// A field has a value that is never written.
    #[error("invalid {what} at offset {offset}")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// Where, in bytes from the start of the file (of a log: from the end of its header).
        offset: u64,
    },
    /// Something else than a file lies there.
    #[error("{0}")]
    NotAFile(std::io::Error),
    /// A frame of a log is damaged although later ones are intact: this is no torn tail.
    #[error(
        "damaged frame at offset {offset} after the log's header: \
         an intact one (sequence {sequence}) follows at {intact_offset}"
    )]
    DamagedFrame {
        /// Where the damaged frame begins, in bytes from the end of the log's header.
        offset: u64,
        /// Where the next intact frame begins, counted likewise.
        intact_offset: u64,
        /// The sequence number of the intact frame.
        sequence: u64,
    },
    /// Something that must not be written was given to the index builder.
    #[error("refusing to write an index: {what} (inode {ino})")]
    Unwritable {
        /// What is wrong.
        what: &'static str,
        /// The inode or directory concerned.
        ino: u64,
    },
    /// The index could not be written.
    #[error("writing an index: {source}")]
    Write {
        /// The host's answer.
        #[from]
        source: std::io::Error,
    },
}

/// For callers whose other failures all come from the host.
impl From<FormatError> for std::io::Error {
    fn from(error: FormatError) -> std::io::Error {
        match error {
            FormatError::Write { source } => source,
            other => std::io::Error::new(std::io::ErrorKind::InvalidData, other),
        }
    }
}
