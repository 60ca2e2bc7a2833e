//! Where mount points and sockets of started branches lie: outside of the store, whose directory
//! is closed to the user that Postgres runs as, and on paths short enough for a socket.
//!
//! `BASE/<store>/<branch id>/{data,s,postgresql.conf}`, with BASE `$COWFS_RUNTIME_DIR`, else
//! `/run/cowfs` for root, `$XDG_RUNTIME_DIR/cowfs` or `/tmp/cowfs-<uid>` for others. Everything in
//! it can be made again; nothing is decided by it.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use super::PostgresError;
use super::owner::Owner;

/// Longest path of a socket: the kernel's 108 bytes with a final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The directory of one branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeDir {
    base: PathBuf,
    branch: PathBuf,
}

impl RuntimeDir {
    /// That of the branch `id` of the store at `store` (absolute).
    pub fn of_branch(store: &Path, id: u64) -> RuntimeDir {
        let base = base();
        let branch = base.join(format!("{:08x}", seed(store) as u32)).join(id.to_string());
        RuntimeDir { base, branch }
    }

    /// Where the branch is mounted unless it is elsewhere.
    pub fn mount_point(&self) -> PathBuf {
        self.branch.join("data")
    }

    /// Where its server's socket goes.
    pub fn socket_dir(&self) -> PathBuf {
        self.branch.join("s")
    }

    /// The configuration file that includes the user's.
    pub fn config_file(&self) -> PathBuf {
        self.branch.join("postgresql.conf")
    }

    /// Makes the directories down to the mount point.
    pub fn create_mount_point(&self) -> Result<PathBuf, PostgresError> {
        self.create_branch()?;
        let dir = self.mount_point();
        make(&dir, 0o755)?;
        Ok(dir)
    }

    /// Makes the directory of the socket, for its owner alone.
    pub fn create_socket_dir(&self, owner: &Owner) -> Result<PathBuf, PostgresError> {
        let dir = self.socket_dir();
        let socket = dir.join(".s.PGSQL.65535.lock");
        if socket.as_os_str().as_bytes().len() > SOCKET_PATH_BYTES_MAX {
            return Err(PostgresError::SocketPathTooLong { path: socket });
        }
        self.create_branch()?;
        // What a killed server left.
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(host("removing", &dir, error));
            }
            _ => {}
        }
        make(&dir, 0o700)?;
        if owner.credentials.is_some() {
            std::os::unix::fs::chown(&dir, Some(owner.uid), Some(owner.gid))
                .map_err(|source| host("changing the owner of", &dir, source))?;
        }
        Ok(dir)
    }

    fn create_branch(&self) -> Result<(), PostgresError> {
        let me = nix::unistd::geteuid();
        // Somebody else's server must get through; an ordinary user runs its own.
        let mode = if me.is_root() { 0o755 } else { 0o700 };
        if let Some(parent) = self.base.parent() {
            let made = std::fs::create_dir_all(parent);
            made.map_err(|source| host("creating", parent, source))?;
        }
        let store = self.branch.parent().unwrap_or(&self.base);
        for dir in [&self.base, store, &self.branch] {
            make(dir, mode)?;
            check_owner(dir, me)?;
        }
        Ok(())
    }

    /// Removes what is left: sockets, our configuration, and the directories if they are empty.
    pub fn remove(&self) {
        // Whatever stays (a mount) is in use, and is found again at the next start.
        let _ = std::fs::remove_dir_all(self.socket_dir());
        let _ = std::fs::remove_file(self.config_file());
        for dir in [&self.mount_point(), &self.branch] {
            let _ = std::fs::remove_dir(dir);
        }
        if let Some(store) = self.branch.parent() {
            let _ = std::fs::remove_dir(store);
        }
    }
}

/// A number that is the same for a store as long as it stays where it is.
pub fn seed(store: &Path) -> u64 {
    xxhash_rust::xxh3::xxh3_64(store.as_os_str().as_bytes())
}

fn base() -> PathBuf {
    let dir =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    if let Some(dir) = dir("COWFS_RUNTIME_DIR") {
        return dir;
    }
    let me = nix::unistd::geteuid();
    if me.is_root() {
        return PathBuf::from("/run/cowfs");
    }
    dir("XDG_RUNTIME_DIR")
        .map_or_else(|| PathBuf::from(format!("/tmp/cowfs-{me}")), |dir| dir.join("cowfs"))
}

fn make(dir: &Path, mode: u32) -> Result<(), PostgresError> {
    match std::fs::DirBuilder::new().mode(mode).create(dir) {
        // Whatever the umask was.
        Ok(()) => std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
            .map_err(|source| host("changing the mode of", dir, source)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(host("creating", dir, source)),
    }
}

/// In a directory of somebody else our paths could lead anywhere.
fn check_owner(dir: &Path, me: Uid) -> Result<(), PostgresError> {
    let meta = dir.symlink_metadata().map_err(|source| host("looking at", dir, source))?;
    let trusted = meta.is_dir() && (meta.uid() == me.as_raw() || meta.uid() == 0);
    if trusted { Ok(()) } else { Err(PostgresError::ForeignRuntimeDir { dir: dir.to_owned() }) }
}

fn host(what: &str, path: &Path, source: io::Error) -> PostgresError {
    PostgresError::Host { what: format!("{what} {}", path.display()), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn below(base: PathBuf) -> RuntimeDir {
        RuntimeDir { branch: base.join("st/7"), base }
    }

    fn me() -> Owner {
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        Owner { uid, gid, name: "me".to_owned(), credentials: None }
    }

    #[test]
    fn made_and_removed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = below(temp.path().join("run/cowfs"));
        let data = dir.create_mount_point().unwrap();
        let socket = dir.create_socket_dir(&me()).unwrap();
        assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(socket.join(".s.PGSQL.5432"), "").unwrap();
        dir.create_socket_dir(&me()).unwrap();
        assert_eq!(std::fs::read_dir(&socket).unwrap().count(), 0, "left-overs go");
        assert!(data.is_dir());
        dir.remove();
        assert!(!temp.path().join("run/cowfs/st").exists());
        dir.remove();
    }

    #[test]
    fn what_does_not_fit() {
        let temp = tempfile::tempdir().unwrap();
        let deep = below(temp.path().join("x".repeat(100)));
        let error = deep.create_socket_dir(&me()).unwrap_err();
        assert!(matches!(error, PostgresError::SocketPathTooLong { .. }), "{error}");
        std::os::unix::fs::symlink(temp.path(), temp.path().join("link")).unwrap();
        let error = below(temp.path().join("link")).create_mount_point().unwrap_err();
        assert!(matches!(error, PostgresError::ForeignRuntimeDir { .. }), "{error}");
    }
}
