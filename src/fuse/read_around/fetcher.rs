//! The thread that asks the kernel, and its open files.
//!
//! An open file keeps the mount busy, and closing one has the kernel write back all its changed pages
//! (fuse_flush and fuse_release) and tell whoever closes what went wrong with that. Both are the
//! business of those who use the mount. So a file is closed as soon as nothing more is to be fetched of it
//! and all its pages are clean: whoever wrote them and has closed the file sees to that.
//!
//! A process that is killed closes its files as well, and waits until they are written back. Files of the
//! mount that it serves itself are so once nobody has /dev/fuse open any more, which comes after them in
//! the same table: it would wait for ever. So the thread has descriptors of its own, and /dev/fuse is
//! not among them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::Shared;
use super::regions::REGION_BYTES;
use crate::format::Ino;
use crate::io::sys;

/// A region that has waited longer is not fetched any more: its readers may be gone.
const WAITING_TIME_MAX: Duration = Duration::from_millis(50);
/// A file of which nothing was fetched for so long is to be closed.
const QUIET: Duration = Duration::from_millis(5);
/// And for so long at most it is not looked at whether its pages are clean by now.
const QUIET_MAX: Duration = Duration::from_millis(100);
/// Looking through the pages of the open files may take one part in so many of the time.
const LOOKING_PART: u32 = 20;
/// Files open at a time; regions of further ones are passed over.
const OPEN_MAX: usize = 64;

/// A region to be fetched.
pub(super) struct Wanted {
    pub(super) ino: Ino,
    pub(super) offset: u64,
    pub(super) since: Instant,
}

/// What the thread is told.
pub(super) enum Order {
    Fetch(Wanted),
    /// Close everything, and say so.
    LetGo(SyncSender<()>),
}

struct Opened {
    file: File,
    used: Instant,
}

pub(super) struct Fetcher {
    dir: PathBuf,
    device: u64,
    write_back: bool,
    shared: Arc<Shared>,
    open: HashMap<Ino, Opened>,
    look_at: Instant,
    /// Until the next look; longer as long as nothing changes.
    pause: Duration,
}

impl Fetcher {
    /// For the mount at `dir`; fails where it could not work. The calling thread loses sight of what the
    /// others have open.
    pub(super) fn new(dir: PathBuf, write_back: bool, shared: Arc<Shared>) -> io::Result<Fetcher> {
        sys::own_descriptors()?;
        let root = open_directory(&dir)?;
        let device = root.metadata()?.dev();
        let look_at = Instant::now();
        let open = HashMap::new();
        let this = Fetcher { dir, device, write_back, shared, open, look_at, pause: QUIET };
        is_clean(&this.open(Ino::ROOT)?, write_back)?;
        Ok(this)
    }

    pub(super) fn run(mut self, queue: &Receiver<Order>) {
        loop {
            let order = if self.open.is_empty() {
                queue.recv().map_err(RecvTimeoutError::from)
            } else {
                queue.recv_timeout(self.look_at.saturating_duration_since(Instant::now()))
            };
            match order {
                Ok(Order::Fetch(wanted)) => self.fetch(&wanted),
                Ok(Order::LetGo(done)) => {
                    self.open.clear();
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.look_at <= Instant::now() {
                self.close_what_is_done();
            }
        }
    }

    fn fetch(&mut self, wanted: &Wanted) {
        let late = wanted.since.elapsed() > WAITING_TIME_MAX;
        if late || self.shared.is_at_rest() {
            return self.shared.pass_over();
        }
        match self.try_fetch(wanted) {
            Ok(()) => {
                self.shared.fetched.fetch_add(1, Ordering::Relaxed);
                let now_s = self.shared.now_s();
                self.shared.regions.lock().was_fetched(wanted.ino, wanted.offset, now_s);
            }
            // The mount is gone or elsewhere, or the kernel has let the inode go.
            Err(error) => {
                tracing::debug!(ino = %wanted.ino, %error, "not read around");
                self.shared.pass_over();
            }
        }
    }

    fn try_fetch(&mut self, wanted: &Wanted) -> io::Result<()> {
        let opened = match self.open.remove(&wanted.ino) {
            Some(opened) => opened,
            None if self.open.len() < OPEN_MAX => {
                self.pause = QUIET;
                self.look_at = self.look_at.max(Instant::now() + QUIET);
                Opened { file: self.open(wanted.ino)?, used: Instant::now() }
            }
            None => return Err(io::Error::other("too many files are open")),
        };
        let (offset, len) = (wanted.offset as i64, REGION_BYTES as i64);
        let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        let advised = posix_fadvise(opened.file.as_fd(), offset, len, advice);
        self.open.insert(wanted.ino, Opened { used: Instant::now(), ..opened });
        Ok(advised?)
    }

    /// What is mounted at the directory by now may be something else.
    fn open(&self, ino: Ino) -> io::Result<File> {
        let root = open_directory(&self.dir)?;
        if root.metadata()?.dev() != self.device {
            return Err(io::Error::other("something else is at the mount point"));
        }
        sys::open_fuse_inode(root.as_fd(), ino.0)
    }

    fn close_what_is_done(&mut self) {
        let (began, before) = (Instant::now(), self.open.len());
        if !self.shared.is_at_rest() {
            let write_back = self.write_back;
            // Where it cannot be told, it is as if nothing were to be written back.
            self.open.retain(|_, opened| {
                opened.used.elapsed() < QUIET || !is_clean(&opened.file, write_back).unwrap_or(true)
            });
        }
        let unchanged = self.open.len() == before;
        self.pause = if unchanged { QUIET_MAX.min(self.pause * 2) } else { QUIET };
        self.look_at = Instant::now() + self.pause.max(began.elapsed() * LOOKING_PART);
    }
}

fn is_clean(file: &File, write_back: bool) -> io::Result<bool> {
    Ok(!write_back || sys::changed_pages(file.as_fd())? == 0)
}

fn open_directory(dir: &std::path::Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY).open(dir)
}
