//! Locks on files in `run/`: who serves a branch, who fills an imported layer.
//!
//! The flock decides, nothing else. The pid inside the file is for messages only.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, Flock, FlockArg};

use crate::format::BranchId;
use crate::io::host::{open_plain, open_plain_with};

/// Where in FORMAT the bytes of branches begin that are locked: far past its end.
const SECOND_LOCKS_AT: i64 = 1 << 40;

/// A lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error("in use{}", .pid.map(|pid| format!(" by process {pid}")).unwrap_or_default())]
    Busy {
        /// Who wrote its pid last; for messages only.
        pid: Option<u32>,
    },
    /// The lock file could not be opened or locked.
    #[error("cannot lock {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An exclusive lock on a file, held until dropped or until the process ends.
#[derive(Debug)]
pub struct FileLock {
    file: Flock<File>,
    path: PathBuf,
}

impl FileLock {
    /// Takes the lock on `path` without waiting; creates the file if needed.
    pub fn acquire(path: &Path) -> Result<FileLock, LockError> {
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = open_plain_with(&mut options, path).map_err(failed)?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                    return Err(LockError::Busy { pid: read_pid(&file) });
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            // Whoever held it may have removed the file meanwhile: then this lock guards nothing.
            if still_there(&file, path).map_err(failed)? {
                let lock = FileLock { file, path: path.to_owned() };
                lock.mark(nix::libc::F_WRLCK);
                lock.record_pid().map_err(failed)?;
                return Ok(lock);
            }
        }
    }

    /// Whether somebody holds the lock on `path` now. Never creates the file, never takes the
    /// lock, and so never gets in the way of somebody who wants it.
    pub fn is_held(path: &Path) -> io::Result<bool> {
        let file = match open_plain(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        let mut mark = whole_file_mark(nix::libc::F_WRLCK);
        nix::fcntl::fcntl(&file, FcntlArg::F_OFD_GETLK(&mut mark))?;
        Ok(i32::from(mark.l_type) != nix::libc::F_UNLCK)
    }

    /// Sets or takes away the second lock, an open file description lock of fcntl: flock(2) cannot
    /// be asked about without being taken, this one can. It decides nothing, so a failure costs
    /// only that [`FileLock::is_held`] says no.
    fn mark(&self, kind: i32) {
        let mark = whole_file_mark(kind);
        let _ = nix::fcntl::fcntl(&*self.file, FcntlArg::F_OFD_SETLK(&mark));
    }

    /// Writes this process' pid into the file; again after the lock passed to a forked process.
    pub fn record_pid(&self) -> io::Result<()> {
        let text = format!("{:<10}\n", std::process::id());
        self.file.write_all_at(text.as_bytes(), 0)
    }

    /// Removes the file and lets the lock go.
    pub fn remove(self) -> io::Result<()> {
        std::fs::remove_file(&self.path)
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Before the lock itself goes, or the next holder would find the mark taken.
        self.mark(nix::libc::F_UNLCK);
    }
}

/// The right to serve or change one branch; see [`FileLock`].
///
/// A file in `run/` can be removed by somebody who takes it for left over, and a new one of that
/// name would be free. So the branch is also locked in a file that no store can be without.
#[derive(Debug)]
pub struct BranchLock {
    branch: BranchId,
    /// Goes before `lock`: whoever gets that one must not find this one taken.
    second: File,
    lock: FileLock,
}

impl BranchLock {
    /// `format` is the store's FORMAT, in which each branch has a byte of its own to lock.
    pub(super) fn take(
        branch: BranchId,
        path: &Path,
        format: &Path,
    ) -> Result<BranchLock, LockError> {
        let lock = FileLock::acquire(path)?;
        let failed = |source| LockError::Io { path: format.to_owned(), source };
        let second = OpenOptions::new().read(true).write(true).open(format).map_err(failed)?;
        let byte = nix::libc::flock {
            l_start: SECOND_LOCKS_AT + branch.0 as i64,
            l_len: 1,
            ..whole_file_mark(nix::libc::F_WRLCK)
        };
        match nix::fcntl::fcntl(&second, FcntlArg::F_OFD_SETLK(&byte)) {
            Ok(_) => Ok(BranchLock { branch, second, lock }),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => {
                Err(LockError::Busy { pid: None })
            }
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// The branch it guards.
    pub fn branch(&self) -> BranchId {
        self.branch
    }

    /// See [`FileLock::record_pid`].
    pub fn record_pid(&self) -> io::Result<()> {
        self.lock.record_pid()
    }

    /// Removes the lock file (of a deleted branch) and lets the lock go.
    pub fn remove(self) -> io::Result<()> {
        drop(self.second);
        self.lock.remove()
    }
}

/// Calls `attempt` until it succeeds, fails otherwise than by [`LockError::Busy`], or `patience`
/// is over.
pub(super) fn retry_while_busy<T>(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, LockError>,
) -> Result<T, LockError> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(200);
    loop {
        match attempt() {
            Err(LockError::Busy { .. }) if Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

fn whole_file_mark(kind: i32) -> nix::libc::flock {
    nix::libc::flock {
        l_type: kind as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn still_there(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn read_pid(file: &File) -> Option<u32> {
    let mut bytes = [0; 10];
    let count = file.read_at(&mut bytes, 0).ok()?;
    std::str::from_utf8(bytes.get(..count)?).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn second_taker_learns_the_pid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.lock");
        assert!(!FileLock::is_held(&path).unwrap());
        let held = FileLock::acquire(&path).unwrap();
        assert!(FileLock::is_held(&path).unwrap());
        let Err(LockError::Busy { pid }) = FileLock::acquire(&path) else { panic!("not busy") };
        assert_eq!(pid, Some(std::process::id()));
        drop(held);
        assert!(!FileLock::is_held(&path).unwrap());
        FileLock::acquire(&path).unwrap();
    }

    /// Whoever asks must not be in the way of whoever takes: `branch list` beside a fork.
    #[test]
    fn asking_does_not_disturb() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.lock");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    FileLock::is_held(&path).unwrap();
                }
            });
            let taken: Vec<_> = (0..2000).map(|_| FileLock::acquire(&path).map(drop)).collect();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(taken.into_iter().all(|taken| taken.is_ok()));
        });
    }

    #[test]
    fn a_removed_file_does_not_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.lock");
        let held = FileLock::acquire(&path).unwrap();
        let waiter = File::open(&path).unwrap();
        held.remove().unwrap();
        // A waiter on the removed inode must notice, a new taker gets a new file.
        assert!(!still_there(&waiter, &path).unwrap());
        let new = FileLock::acquire(&path).unwrap();
        assert!(!still_there(&waiter, &path).unwrap());
        assert!(still_there(&new.file, &path).unwrap());
    }

    #[test]
    fn exactly_one_of_many_threads_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.lock");
        let barrier = std::sync::Barrier::new(8);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        FileLock::acquire(&path)
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 1);
    }

    /// Taking and letting go in turns: who does not get it is told that it is busy, nothing else,
    /// and who gets it is seen to have it.
    #[test]
    fn taking_turns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.lock");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut taken = 0;
                    while taken < 500 {
                        match FileLock::acquire(&path) {
                            Ok(_held) => {
                                assert!(FileLock::is_held(&path).unwrap());
                                taken += 1;
                            }
                            Err(LockError::Busy { .. }) => std::thread::yield_now(),
                            Err(other) => panic!("{other:?}"),
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn waiting_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.lock");
        let held = FileLock::acquire(&path).unwrap();
        let short = Duration::from_millis(5);
        let result = retry_while_busy(short, || FileLock::acquire(&path));
        assert!(matches!(result, Err(LockError::Busy { .. })));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                drop(held);
            });
            retry_while_busy(Duration::from_secs(10), || FileLock::acquire(&path)).unwrap();
        });
    }
}
