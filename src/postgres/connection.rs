//! How clients reach a server, in the forms in which they want to be told.

use std::fmt::Write;
use std::path::PathBuf;

/// Where a server is reached, and as whom.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Connection {
    /// An address, or the directory of the socket.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The database user.
    pub user: String,
    /// The database.
    pub database: String,
    /// The directory of the socket, also where `host` is an address.
    pub socket_dir: Option<PathBuf>,
}

impl Connection {
    /// The same through the socket, if there is one.
    #[must_use]
    pub fn through_socket(mut self) -> Connection {
        if let Some(dir) = &self.socket_dir {
            self.host = dir.display().to_string();
        }
        self
    }

    /// `postgresql://user@host:port/database`, with the socket directory as a parameter.
    pub fn uri(&self) -> String {
        let (user, database) = (escape(&self.user), escape(&self.database));
        if self.host.starts_with('/') {
            let host = escape(&self.host);
            return format!("postgresql://{user}@/{database}?host={host}&port={}", self.port);
        }
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("postgresql://{user}@{host}:{}/{database}", self.port)
    }

    /// `jdbc:postgresql://host:port/database?user=user`; JDBC knows no sockets.
    pub fn jdbc(&self) -> String {
        let host = match self.host.as_str() {
            host if host.starts_with('/') => "127.0.0.1".to_owned(),
            host if host.contains(':') => format!("[{host}]"),
            host => host.to_owned(),
        };
        let (user, database) = (escape(&self.user), escape(&self.database));
        format!("jdbc:postgresql://{host}:{}/{database}?user={user}", self.port)
    }

    /// The variables that libpq and most frameworks read.
    pub fn variables(&self) -> [(&'static str, String); 5] {
        [
            ("DATABASE_URL", self.uri()),
            ("PGHOST", self.host.clone()),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", self.user.clone()),
            ("PGDATABASE", self.database.clone()),
        ]
    }

    /// One `NAME=value` per line, as in a `.env` file.
    pub fn dotenv(&self) -> String {
        let line = |(name, value): &(&str, String)| format!("{name}={value}\n");
        self.variables().iter().map(line).collect::<Vec<_>>().concat()
    }

    /// One `export NAME='value'` per line, for `eval` in a shell.
    pub fn exports(&self) -> String {
        let quoted = |value: &str| value.replace('\'', "'\\''");
        let line = |(name, value): &(&str, String)| format!("export {name}='{}'\n", quoted(value));
        self.variables().iter().map(line).collect::<Vec<_>>().concat()
    }
}

/// Percent-encodes everything that has a meaning in a URI.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Connection {
        Connection {
            host: "127.0.0.1".to_owned(),
            port: 15433,
            user: "o'brien@x".to_owned(),
            database: "a b".to_owned(),
            socket_dir: Some("/run/cowfs/s".into()),
        }
    }

    #[test]
    fn forms() {
        let tcp = sample();
        assert_eq!(tcp.uri(), "postgresql://o%27brien%40x@127.0.0.1:15433/a%20b");
        assert_eq!(tcp.jdbc(), "jdbc:postgresql://127.0.0.1:15433/a%20b?user=o%27brien%40x");
        assert!(tcp.exports().contains("export PGUSER='o'\\''brien@x'\n"), "{}", tcp.exports());
        assert!(tcp.dotenv().contains("PGPORT=15433\nPGUSER=o'brien@x\n"), "{}", tcp.dotenv());
    }

    #[test]
    fn sockets_and_ipv6() {
        let socket = sample().through_socket();
        let expected = "postgresql://o%27brien%40x@/a%20b?host=%2Frun%2Fcowfs%2Fs&port=15433";
        assert_eq!(socket.uri(), expected);
        assert!(socket.jdbc().contains("//127.0.0.1:15433/"), "{}", socket.jdbc());
        let six = Connection { host: "::1".to_owned(), ..sample() };
        assert!(six.uri().contains("@[::1]:15433/"), "{}", six.uri());
    }
}
