//! The user that a server runs as: the owner of its data directory, never root.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{Gid, Uid, User};

use super::PostgresError;
use crate::io::sys::{self, Credentials};

/// Who owns a data directory, and whether we must become that user.
#[derive(Clone, Debug)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group of the data directory's owner.
    pub gid: u32,
    /// Name of the user; the number if it has none.
    pub name: String,
    /// What a process must take on; `None` if this process is that user already.
    pub credentials: Option<Credentials>,
}

impl Owner {
    /// The owner of `dir`, if this process is that user or may become it.
    pub fn of(dir: &Path) -> Result<Owner, PostgresError> {
        let meta = std::fs::metadata(dir).map_err(|source| PostgresError::Host {
            what: format!("looking at {}", dir.display()),
            source,
        })?;
        Owner::may_run(dir, meta.uid(), meta.gid(), nix::unistd::geteuid())
    }

    fn may_run(dir: &Path, uid: u32, gid: u32, me: Uid) -> Result<Owner, PostgresError> {
        if uid == 0 {
            return Err(PostgresError::OwnedByRoot { dir: dir.to_owned() });
        }
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let name = user.as_ref().map_or_else(|| uid.to_string(), |user| user.name.clone());
        if me.as_raw() == uid {
            return Ok(Owner { uid, gid, name, credentials: None });
        }
        if !me.is_root() {
            let mine = User::from_uid(me).ok().flatten().map(|user| user.name);
            let user = mine.unwrap_or_else(|| me.to_string());
            return Err(PostgresError::OwnedByAnother { dir: dir.to_owned(), owner: name, user });
        }
        // The user's own group and all it belongs to, as after a login: the key of Debian's
        // certificate is readable through one of them.
        let gid = user.as_ref().map_or(gid, |user| user.gid.as_raw());
        let groups = user
            .and_then(|user| std::ffi::CString::new(user.name).ok())
            .and_then(|name| nix::unistd::getgrouplist(&name, Gid::from_raw(gid)).ok())
            .map_or_else(|| vec![gid], |groups| groups.iter().map(|g| g.as_raw()).collect());
        Ok(Owner { uid, gid, name, credentials: Some(Credentials { uid, gid, groups }) })
    }

    /// Runs `work` with the rights of the owner and no others, in a thread of its own.
    ///
    /// Whatever is done inside a data directory is done so: its owner could have put links there
    /// that lead elsewhere. And `peer` authentication of Postgres goes by the effective user.
    pub fn act<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, PostgresError> {
        let Some(credentials) = &self.credentials else { return Ok(work()) };
        let denied =
            |source| PostgresError::Host { what: format!("becoming {}", self.name), source };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                sys::become_user_in_this_thread(credentials)?;
                Ok(work())
            });
            match thread.join() {
                Ok(done) => done.map_err(denied),
                // Only a panic of `work` ends it so.
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// The database user to connect as unless told otherwise: initdb names the first one after
    /// the user that runs it.
    pub fn database_user(&self) -> String {
        let is_number = self.name.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { "postgres".to_owned() } else { self.name.clone() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_thread_acts_as_the_owner() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let owner = Owner::may_run(Path::new("/d"), 54321, 5, Uid::from_raw(0)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "").unwrap();
        // Open to root's group, which the thread must not keep.
        let mode = std::os::unix::fs::PermissionsExt::from_mode;
        std::fs::set_permissions(&secret, mode(0o660)).unwrap();
        std::fs::set_permissions(dir.path(), mode(0o755)).unwrap();
        let (uid, seen) = owner
            .act(|| (nix::unistd::geteuid().as_raw(), std::fs::read(&secret).is_ok()))
            .unwrap();
        assert_eq!((uid, seen), (54321, false));
        assert!(nix::unistd::geteuid().is_root() && std::fs::read(&secret).is_ok());
    }

    #[test]
    fn who_may() {
        let dir = Path::new("/data");
        let as_root = |uid| Owner::may_run(dir, uid, 5, Uid::from_raw(0));
        assert!(matches!(as_root(0), Err(PostgresError::OwnedByRoot { .. })));
        let stranger = as_root(54321).unwrap();
        assert_eq!(stranger.credentials.as_ref().unwrap().groups, [5]);
        assert_eq!(stranger.database_user(), "postgres");
        let other = Owner::may_run(dir, 54321, 5, Uid::from_raw(54322)).unwrap_err();
        assert!(matches!(other, PostgresError::OwnedByAnother { .. }), "{other}");
        let same = Owner::may_run(dir, 54321, 5, Uid::from_raw(54321)).unwrap();
        assert_eq!(same.credentials, None);
        let own_root = Owner::may_run(dir, 0, 0, Uid::from_raw(0)).unwrap_err();
        assert!(matches!(own_root, PostgresError::OwnedByRoot { .. }));
    }
}
