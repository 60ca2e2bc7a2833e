//! SIGINT and SIGTERM to a command that has something to put away first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::serve::Failure;

static CAUGHT: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on a signal is only noted.
pub(super) fn catch() -> Arc<AtomicBool> {
    let register = || {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // Without the handler the signal ends the process, and gc cleans up: as good, only later.
            let _ = signal_hook::flag::register(signal, flag.clone());
        }
        flag
    };
    CAUGHT.get_or_init(register).clone()
}

/// Whether one has come.
pub(super) fn caught() -> bool {
    CAUGHT.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// A failure once one has come.
pub(super) fn go_on() -> Result<(), Failure> {
    if caught() { Err(Failure::new("interrupted", "interrupted").exit(130)) } else { Ok(()) }
}
