//! A bounded set of open descriptors of data files.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::HostFile;
use crate::format::{Ino, LayerId};

/// Names one data file in a store.
pub type DataFileKey = (LayerId, Ino);

/// Keeps recently used data files open, least recently used out first.
///
/// A file that was taken out while in use closes when its last user lets go. Files with unsynced
/// writes are held by their owner as well (see `layer::open_file`), because a descriptor opened
/// later may miss a write-back error.
pub struct FilePool {
    files: Mutex<LruCache<DataFileKey, Arc<dyn HostFile>>>,
}

impl FilePool {
    /// A pool of at most `capacity` idle descriptors.
    pub fn new(capacity: NonZeroUsize) -> FilePool {
        FilePool { files: Mutex::new(LruCache::new(capacity)) }
    }

    /// The open file for `key`, opened through `open` if it is not in the pool.
    ///
    /// Two threads that miss at once may both open it; one of the two descriptors wins.
    pub fn get(
        &self,
        key: DataFileKey,
        open: impl FnOnce() -> io::Result<Arc<dyn HostFile>>,
    ) -> io::Result<Arc<dyn HostFile>> {
        if let Some(file) = self.files.lock().get(&key) {
            return Ok(file.clone());
        }
        let file = open()?;
        let evicted = {
            let mut files = self.files.lock();
            if let Some(winner) = files.get(&key) {
                return Ok(winner.clone());
            }
            files.push(key, file.clone())
        };
        // Closing may wait for the host; not while others wait for the pool.
        drop(evicted);
        Ok(file)
    }

    /// Forgets `key`, so that its descriptor closes with its last user.
    pub fn forget(&self, key: DataFileKey) {
        let removed = self.files.lock().pop(&key);
        drop(removed);
    }

    /// Descriptors held at the moment.
    pub fn len(&self) -> usize {
        self.files.lock().len()
    }

    /// Whether no descriptor is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
