//! The only place where an error becomes an errno.

use fuser::Errno;

use crate::branch::BranchError;
use crate::fs::FsError;
use crate::layer::LayerError;

/// The errno that the caller of a system call gets for `error`.
pub fn errno_of(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::IsDirectory => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Invalid => Errno::EINVAL,
        FsError::TooBig => Errno::EFBIG,
        FsError::ReadOnly => Errno::EROFS,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::NotPermitted => Errno::EPERM,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::NotSupported => Errno::EOPNOTSUPP,
        FsError::NoSuchOffset => Errno::ENXIO,
        FsError::AttributeTooBig | FsError::OverQuota => Errno::ENOSPC,
        FsError::Lost { .. } => Errno::EIO,
        FsError::Layer(layer) => layer_errno(layer),
        FsError::Branch(BranchError::Layer(layer)) => layer_errno(layer),
        FsError::Branch(BranchError::Host { source, .. }) => host_errno(source),
        FsError::Branch(BranchError::ReadOnly { .. }) => Errno::EROFS,
        FsError::Branch(_) => Errno::EIO,
    }
}

fn layer_errno(error: &LayerError) -> Errno {
    match error {
        LayerError::Host { source, .. } => host_errno(source),
        LayerError::Damaged { .. }
        | LayerError::Corrupt { .. }
        | LayerError::DataTooShort { .. }
        | LayerError::Latched { .. }
        | LayerError::AdoptedChanged { .. } => Errno::EIO,
    }
}

/// What the host says about space is passed on; anything else is an I/O error to the caller.
fn host_errno(error: &std::io::Error) -> Errno {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => Errno::ENOSPC,
        Some(libc::EDQUOT) => Errno::EDQUOT,
        Some(libc::EFBIG) => Errno::EFBIG,
        Some(libc::EOPNOTSUPP) => Errno::EOPNOTSUPP,
        Some(libc::ENOMEM) => Errno::ENOMEM,
        _ => Errno::EIO,
    }
}

/// Whether an error is the caller's ordinary answer and needs no line in the log.
pub fn is_ordinary(error: &FsError) -> bool {
    !matches!(error, FsError::Lost { .. } | FsError::Layer(_) | FsError::Branch(_))
}
