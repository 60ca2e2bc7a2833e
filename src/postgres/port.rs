//! Ports for the servers of branches.

use std::net::{Ipv4Addr, TcpListener};

use super::PostgresError;

/// Ports given to branches: below those that Linux gives to outgoing connections (32768 and up).
const FIRST: u16 = 15432;
/// How many.
const COUNT: u16 = 10_000;

/// Whether nobody listens on `port` of the loopback address.
///
/// Somebody may a moment later: the caller tries again when the server cannot bind.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// The port that was asked for, if it is free.
pub fn require(port: u16) -> Result<u16, PostgresError> {
    if is_free(port) { Ok(port) } else { Err(PostgresError::PortTaken { port }) }
}

/// The first free port from the place on that `seed` stands for.
///
/// Each branch has its own place to begin, so its port stays the same as long as it is free, and
/// two branches that start at once do not want the same one.
pub fn choose(seed: u64) -> Result<u16, PostgresError> {
    let begin = (seed % u64::from(COUNT)) as u16;
    let port = |step: u16| FIRST + (begin + step) % COUNT;
    let free = (0..COUNT).map(port).find(|&port| is_free(port));
    free.ok_or_else(|| PostgresError::NoFreePort { last: port(COUNT - 1) })
}

/// The first free port after `port`, for when somebody took it after it had been chosen.
pub fn choose_after(port: u16) -> Result<u16, PostgresError> {
    choose(u64::from(port.saturating_sub(FIRST)) + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn taken_ports_are_passed_by() {
        let first = choose(4711).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).unwrap();
        assert!(matches!(require(first), Err(PostgresError::PortTaken { .. })));
        let second = choose(4711).unwrap();
        assert_ne!(first, second);
        drop(listener);
        assert_eq!(require(first).unwrap(), first);
        assert_ne!(choose_after(second).unwrap(), second);
        let wrapped = choose_after(FIRST + COUNT - 1).unwrap();
        assert!((FIRST..FIRST + COUNT).contains(&wrapped));
    }
}
