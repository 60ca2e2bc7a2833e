//! Where the programs of a major version are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::PostgresError;

/// Directories of the distributions, with the major version for `{}`: Debian and Ubuntu, the RPMs
/// of postgresql.org, the layout of a build from source.
const PLACES: [&str; 4] = [
    "/usr/lib/postgresql/{}/bin",
    "/usr/pgsql-{}/bin",
    "/usr/local/pgsql-{}/bin",
    "/usr/lib/postgresql{}/bin",
];
/// Without the major version in the name.
const UNVERSIONED: [&str; 2] = ["/usr/local/pgsql/bin", "/usr/libexec/postgresql"];
/// Newest first: any of them has a psql that talks to the others.
const CLIENT_MAJORS: std::ops::RangeInclusive<u32> = 9..=30;
/// The majors that can be imported.
const SUPPORTED_MAJORS: std::ops::RangeInclusive<u32> = 12..=18;
/// Where Debian keeps the configuration of its clusters.
const DEBIAN_CONFIG: &str = "/etc/postgresql";

/// The programs of one major version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// The directory that holds `postgres`.
    pub dir: PathBuf,
    /// Its major version.
    pub major: u32,
}

impl Binaries {
    /// Finds the programs of `major`: in `named` if given, else where distributions put them, else
    /// in PATH.
    pub fn find(major: u32, named: Option<&Path>) -> Result<Binaries, PostgresError> {
        if let Some(dir) = named {
            let found = Binaries::in_dir(dir)?;
            return if found.major == major {
                Ok(found)
            } else {
                let Binaries { dir, major: found } = found;
                Err(PostgresError::OtherMajor { dir, found, wanted: major })
            };
        }
        search(major, &candidates(major))
    }

    /// The programs in `dir`, of whatever version they are.
    pub fn in_dir(dir: &Path) -> Result<Binaries, PostgresError> {
        let major =
            major_of(dir).ok_or_else(|| PostgresError::NotABinDirectory { dir: dir.to_owned() })?;
        Ok(Binaries { dir: dir.canonicalize().unwrap_or_else(|_| dir.to_owned()), major })
    }

    /// The programs of every supported major version that are found, the newest first.
    pub fn all() -> Vec<Binaries> {
        let majors = SUPPORTED_MAJORS.rev();
        majors.filter_map(|major| Binaries::find(major, None).ok()).collect()
    }

    /// One of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn search(major: u32, places: &[PathBuf]) -> Result<Binaries, PostgresError> {
    let found = places.iter().find(|dir| {
        // A directory that carries the version in its name is believed: asking costs 10 ms.
        let named = PLACES.iter().any(|place| Path::new(&at(place, major)) == dir.as_path());
        dir.join("postgres").is_file() && (named || major_of(dir) == Some(major))
    });
    let dir = found.cloned().ok_or_else(|| {
        let mut looked_in = places.to_vec();
        looked_in.dedup();
        PostgresError::NoBinaries { major, looked_in }
    })?;
    Ok(Binaries { dir, major })
}

fn at(place: &str, major: u32) -> String {
    place.replace("{}", &major.to_string())
}

fn path_dirs() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect()
}

fn candidates(major: u32) -> Vec<PathBuf> {
    let named = PLACES.iter().map(|place| PathBuf::from(at(place, major)));
    named.chain(UNVERSIONED.iter().map(PathBuf::from)).chain(path_dirs()).collect()
}

/// The major version of `postgres` in `dir`, as it says itself; `None` if there is none.
fn major_of(dir: &Path) -> Option<u32> {
    let output = Command::new(dir.join("postgres"))
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, also of `18beta1`.
fn parse_version(text: &str) -> Option<u32> {
    let version = text.split_once("(PostgreSQL) ")?.1;
    let digits = version.len() - version.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    version[..digits].parse().ok()
}

/// A client program: from `named`, else the newest of the distribution, else from PATH.
///
/// PATH comes last: what Debian has there is a wrapper that chooses among its own clusters.
pub fn client(name: &str, named: Option<&Path>) -> Result<PathBuf, PostgresError> {
    let newest = CLIENT_MAJORS.rev().flat_map(|major| PLACES.map(|p| PathBuf::from(at(p, major))));
    let named = named.map(Path::to_owned);
    let mut all = named.into_iter().chain(newest).chain(path_dirs()).map(|dir| dir.join(name));
    all.find(|program| program.is_file())
        .ok_or_else(|| PostgresError::NoClient { name: name.to_owned(), looked_in: path_dirs() })
}

/// The `postgresql.conf` of the Debian cluster whose data lay at `data_dir`, if it is there:
/// `/var/lib/postgresql/15/main` has `/etc/postgresql/15/main/postgresql.conf`.
pub fn debian_config(data_dir: &Path, major: u32) -> Option<PathBuf> {
    debian_config_in(Path::new(DEBIAN_CONFIG), data_dir, major)
}

fn debian_config_in(etc: &Path, data_dir: &Path, major: u32) -> Option<PathBuf> {
    let clusters = std::fs::read_dir(etc.join(major.to_string())).ok()?;
    let mut configs = clusters.flatten().map(|entry| entry.path().join("postgresql.conf"));
    configs.find(|config| {
        let said = super::config::Configuration::read(config);
        said.get("data_directory").map(Path::new) == Some(data_dir)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn fake(dir: &Path, says: &str) -> PathBuf {
        std::fs::create_dir_all(dir).unwrap();
        let path = dir.join("postgres");
        std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        dir.to_owned()
    }

    #[test]
    fn versions() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_version("psql 15"), None);
    }

    #[test]
    fn named_directories_are_checked() {
        let temp = tempfile::tempdir().unwrap();
        let bin = fake(&temp.path().join("bin"), "postgres (PostgreSQL) 16.2");
        assert_eq!(Binaries::find(16, Some(&bin)).unwrap().major, 16);
        let other = Binaries::find(15, Some(&bin)).unwrap_err();
        assert!(
            matches!(other, PostgresError::OtherMajor { found: 16, wanted: 15, .. }),
            "{other}"
        );
        let none = Binaries::find(15, Some(temp.path())).unwrap_err();
        assert!(matches!(none, PostgresError::NotABinDirectory { .. }), "{none}");
    }

    #[test]
    fn others_are_passed_by() {
        let temp = tempfile::tempdir().unwrap();
        let old = fake(&temp.path().join("a"), "postgres (PostgreSQL) 14.1");
        let right = fake(&temp.path().join("b"), "postgres (PostgreSQL) 15.1");
        let places = [temp.path().join("none"), old, right.clone()];
        assert_eq!(search(15, &places).unwrap().dir, right);
        let error = search(13, &places).unwrap_err();
        assert!(error.to_string().starts_with("no Postgres 13 found; looked in /"), "{error}");
        assert!(error.hint("b").unwrap().contains("postgresql-13"));
    }

    #[test]
    fn debian_keeps_configuration_elsewhere() {
        let etc = tempfile::tempdir().unwrap();
        let config = |cluster: &str, data: &str| {
            let dir = etc.path().join("15").join(cluster);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("postgresql.conf"), format!("data_directory = '{data}'\n"))
                .unwrap();
            dir.join("postgresql.conf")
        };
        config("main", "/var/lib/postgresql/15/main");
        let wanted = config("other", "/data/other");
        let find = |dir: &str, major| debian_config_in(etc.path(), Path::new(dir), major);
        assert_eq!(find("/data/other", 15), Some(wanted));
        assert_eq!(find("/data/other", 16), None);
        assert_eq!(find("/data/none", 15), None);
    }
}
