//! How a serving process sets itself up.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Prepares the process for serving; call it before any thread is started.
///
/// Everything here is an improvement, not a condition: what fails is logged.
pub fn prepare() {
    if let Err(error) = raise_descriptor_limit() {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    if nix::unistd::geteuid().is_root()
        && let Err(error) = crate::io::sys::set_io_flusher()
    {
        // Without it the kernel may wait for us to write back while we ask it for memory.
        tracing::info!(%error, "PR_SET_IO_FLUSHER is not available");
    }
}

fn raise_descriptor_limit() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// Resident memory of this process in bytes; 0 if the kernel does not say.
pub fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib: u64 = text
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok()
        })
        .unwrap_or(0);
    kib * 1024
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn limits_and_memory() {
        raise_descriptor_limit().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
        assert!(resident_bytes() > 100_000);
    }
}
