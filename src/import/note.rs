//! What an import did that the user did not ask for in so many words.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::catalog::BranchRow;
use crate::format::counted;
use crate::postgres::DbState;

/// Writes a path as text; bytes that are not UTF-8 become replacement characters.
pub(super) fn lossy<S: serde::Serializer>(path: &Path, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(&path.display())
}

/// Writes the name of a branch, as every other command does.
pub(super) fn name_only<S: serde::Serializer>(row: &BranchRow, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(row.name.as_str())
}

/// Something worth a line on the terminal.
///
/// Paths are relative to the imported directory unless they are absolute.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Note {
    /// A tablespace now lies inside the branch.
    TablespaceBroughtIn {
        /// The link, `pg_tblspc/<oid>`.
        #[serde(serialize_with = "lossy")]
        link: PathBuf,
        /// Where the tablespace was.
        #[serde(serialize_with = "lossy")]
        from: PathBuf,
        /// Where in the branch it is.
        #[serde(serialize_with = "lossy")]
        to: PathBuf,
    },
    /// A symbolic link of the cluster into itself no longer names the place it came from.
    LinkMadeRelative {
        /// The link.
        #[serde(serialize_with = "lossy")]
        link: PathBuf,
        /// Its target as it was.
        #[serde(serialize_with = "lossy")]
        from: PathBuf,
        /// Its target in the branch.
        #[serde(serialize_with = "lossy")]
        to: PathBuf,
    },
    /// `pg_wal`, say, was a symbolic link and is a directory in the branch.
    DirectoryBroughtIn {
        /// Its name.
        #[serde(serialize_with = "lossy")]
        directory: PathBuf,
        /// Where it was.
        #[serde(serialize_with = "lossy")]
        from: PathBuf,
    },
    /// An entry of a tablespace's directory belongs to another version of Postgres.
    TablespaceEntrySkipped {
        /// The entry.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
    },
    /// A symbolic link leads out of the branch.
    OutsideLinkKept {
        /// The link.
        #[serde(serialize_with = "lossy")]
        link: PathBuf,
        /// Its target.
        #[serde(serialize_with = "lossy")]
        target: PathBuf,
    },
    /// A socket was left out.
    SocketSkipped {
        /// The socket.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
    },
    /// A device node was left out.
    DeviceSkipped {
        /// The node.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
    },
    /// A file of a server that ran here was left out.
    ServerFileSkipped {
        /// The file.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
    },
    /// A file disappeared before it was copied.
    Vanished {
        /// The file.
        #[serde(serialize_with = "lossy")]
        path: PathBuf,
    },
    /// Files and directories with extended attributes or access control lists, which were left out.
    AttributesIgnored {
        /// How many.
        files: u64,
        /// The first of them.
        #[serde(serialize_with = "lossy")]
        first: PathBuf,
    },
    /// The cluster was not shut down and will recover at its first start.
    NotShutDown {
        /// The state in its control file.
        state: DbState,
    },
    /// The control file was not believed.
    ControlFileUnusable {
        /// Why.
        reason: String,
    },
    /// The configuration asks for something that is unsafe on a mounted branch.
    SyncfsConfigured,
    /// The configuration lies elsewhere.
    NoConfiguration,
}

impl Note {
    /// Whether it warns, rather than reports.
    pub fn is_warning(&self) -> bool {
        matches!(
            self,
            Note::OutsideLinkKept { .. }
                | Note::Vanished { .. }
                | Note::AttributesIgnored { .. }
                | Note::NotShutDown { .. }
                | Note::ControlFileUnusable { .. }
                | Note::SyncfsConfigured
                | Note::NoConfiguration
        )
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::TablespaceBroughtIn { link, from, to } => write!(
                f,
                "tablespace {}: brought into the branch from {} as {}",
                link.display(),
                from.display(),
                to.display()
            ),
            Note::LinkMadeRelative { link, from, to } => write!(
                f,
                "{} led to {} inside the cluster; in the branch it leads to {}",
                link.display(),
                from.display(),
                to.display()
            ),
            Note::DirectoryBroughtIn { directory, from } => write!(
                f,
                "{}: brought into the branch from {}",
                directory.display(),
                from.display()
            ),
            Note::TablespaceEntrySkipped { path } => {
                write!(f, "{}: left out (of another Postgres version)", path.display())
            }
            Note::OutsideLinkKept { link, target } => write!(
                f,
                "{} leads out of the branch, to {}: what lies there is shared with every branch",
                link.display(),
                target.display()
            ),
            Note::SocketSkipped { path } => write!(f, "{}: socket, left out", path.display()),
            Note::DeviceSkipped { path } => {
                write!(f, "{}: device node, left out (only root can import it)", path.display())
            }
            Note::ServerFileSkipped { path } => {
                write!(f, "{}: left by a server, not imported", path.display())
            }
            Note::Vanished { path } => {
                write!(f, "{} disappeared during the import, left out", path.display())
            }
            Note::AttributesIgnored { files, first } => write!(
                f,
                "extended attributes or access control lists of {} were left out (first: {})",
                counted(*files, "file"),
                first.display()
            ),
            Note::NotShutDown { state } => write!(
                f,
                "the cluster was not shut down cleanly ('{state}'): it recovers at its first start"
            ),
            Note::ControlFileUnusable { reason } => {
                write!(f, "imported although the control file is unusable: {reason}")
            }
            Note::SyncfsConfigured => f.write_str(
                "recovery_init_sync_method = syncfs is configured: unsafe on a mounted branch \
                 (the kernel does not pass syncfs on); set it to fsync",
            ),
            Note::NoConfiguration => f.write_str(
                "the directory holds no postgresql.conf: start the server with the configuration \
                 that it had (for example -c config_file=...)",
            ),
        }
    }
}
