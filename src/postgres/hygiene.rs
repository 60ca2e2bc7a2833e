//! The files of a running server that must not follow its data into another branch.
//!
//! A forked child holds everything that its parent's server had on disk, and that server lives on:
//! its `postmaster.pid` names a process that exists, so Postgres refuses to start on the child, and
//! a tool that trusts the file would signal the parent. They are removed from the child before
//! anybody can see it, and never imported. Nothing else is touched: what the user configured
//! stays as it is.

/// Names that must be absent from the root of a forked child or of an imported branch.
///
/// `postmaster.pid` is the lock and interlock of a running server; `postmaster.opts` records how
/// it was started (`pg_ctl restart` would start the child with the parent's port).
pub const POSTMASTER_FILES: [&[u8]; 2] = [b"postmaster.pid", b"postmaster.opts"];

/// First bytes of the names of the server's sockets and of their lock files.
///
/// `unix_socket_directories` may name the data directory itself (`.`): then these lie in its root.
const SOCKET_PREFIX: &[u8] = b".s.PGSQL.";

/// Whether `name`, in the root of a data directory, belongs to a running server and not to the data.
///
/// True for `postmaster.pid`, `postmaster.opts`, `.s.PGSQL.<port>` and `.s.PGSQL.<port>.lock`.
pub fn belongs_to_server(name: &[u8]) -> bool {
    POSTMASTER_FILES.contains(&name) || is_socket_name(name)
}

/// Whether `name` is that of a Postgres socket or of its lock file, in any directory.
pub fn is_socket_name(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(SOCKET_PREFIX) else { return false };
    let port = rest.strip_suffix(b".lock").unwrap_or(rest);
    !port.is_empty() && port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_files_are_recognised() {
        for name in ["postmaster.pid", "postmaster.opts", ".s.PGSQL.5432", ".s.PGSQL.65535.lock"] {
            assert!(belongs_to_server(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn data_and_configuration_are_not() {
        for name in [
            "postgresql.conf",
            "postmaster.pid.bak",
            ".s.PGSQL.",
            ".s.PGSQL.lock",
            ".s.PGSQL.54a2",
            ".s.PGSQL.123456",
            "s.PGSQL.5432",
            "PG_VERSION",
            "",
        ] {
            assert!(!belongs_to_server(name.as_bytes()), "{name}");
        }
    }
}
