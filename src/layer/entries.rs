//! Which names of data files are durable.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::format::{Ino, LayerId};

/// Data files that share a directory ([`Ino::data_path`]): a sync of it is one for all of them.
const GROUP: usize = 1024;

/// Some of the data files of one directory.
#[derive(Clone, Copy, Default)]
struct Members([u64; GROUP / 64]);

impl Members {
    fn word_and_bit(ino: Ino) -> (usize, u64) {
        let place = ino.0 as usize % GROUP;
        (place / 64, 1 << (place % 64))
    }

    fn has(&self, ino: Ino) -> bool {
        let (word, bit) = Members::word_and_bit(ino);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    fn set(&mut self, ino: Ino, member: bool) {
        let (word, bit) = Members::word_and_bit(ino);
        if let Some(word) = self.0.get_mut(word) {
            if member { *word |= bit } else { *word &= !bit }
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Group {
    /// Made by this process.
    made: Members,
    /// Synced since then.
    durable: Members,
}

/// The names of data files that this process made, and which of them need no sync of the directory any
/// more: a sync for one of them was one for all that were there.
#[derive(Default)]
pub(super) struct Entries(Mutex<HashMap<(LayerId, u64), Group>>);

impl Entries {
    fn key(layer: LayerId, ino: Ino) -> (LayerId, u64) {
        (layer, ino.0 / GROUP as u64)
    }

    /// The data file has its name.
    pub(super) fn made(&self, layer: LayerId, ino: Ino) {
        self.0.lock().entry(Entries::key(layer, ino)).or_default().made.set(ino, true);
    }

    /// The data file has none any more.
    pub(super) fn removed(&self, layer: LayerId, ino: Ino) {
        if let Some(group) = self.0.lock().get_mut(&Entries::key(layer, ino)) {
            group.made.set(ino, false);
            group.durable.set(ino, false);
        }
    }

    /// All of the layer is durable: nobody will ask any more.
    pub(super) fn forget(&self, layer: LayerId) {
        self.0.lock().retain(|(of, _), _| *of != layer);
    }

    /// Has `sync` make the directory of the data file durable, unless that happened after the data
    /// file got its name.
    pub(super) fn sync<E>(
        &self,
        layer: LayerId,
        ino: Ino,
        sync: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let key = Entries::key(layer, ino);
        let before = self.0.lock().get(&key).copied().unwrap_or_default();
        if before.durable.has(ino) {
            return Ok(());
        }
        sync()?;
        let mut groups = self.0.lock();
        let group = groups.entry(key).or_default();
        // Of those that were there before; of these, those that are there still.
        let words = group.durable.0.iter_mut().zip(group.made.0.iter().zip(before.made.0));
        for (durable, (now, then)) in words {
            *durable |= now & then;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: LayerId = LayerId(7);

    /// Whether a sync of the data file syncs its directory.
    fn syncs(entries: &Entries, layer: LayerId, ino: u64) -> bool {
        let mut synced = false;
        let done: Result<(), ()> = entries.sync(layer, Ino(ino), || {
            synced = true;
            Ok(())
        });
        assert_eq!(done, Ok(()));
        synced
    }

    #[test]
    fn a_sync_of_a_directory_is_one_for_all_that_were_made_before() {
        let entries = Entries::default();
        for ino in [2000, 2001, 2047, 2048] {
            entries.made(LAYER, Ino(ino));
        }
        assert!(syncs(&entries, LAYER, 2000));
        assert!(!syncs(&entries, LAYER, 2001) && !syncs(&entries, LAYER, 2047));
        // Another directory, another layer, one made since, one that this process has not made.
        assert!(syncs(&entries, LAYER, 2048));
        assert!(syncs(&entries, LayerId(8), 2001));
        entries.made(LAYER, Ino(2002));
        assert!(syncs(&entries, LAYER, 2002));
        assert!(syncs(&entries, LAYER, 2003) && syncs(&entries, LAYER, 2003));
    }

    #[test]
    fn what_is_made_while_a_directory_is_synced_waits_for_the_next() {
        let entries = Entries::default();
        entries.made(LAYER, Ino(5));
        entries.made(LAYER, Ino(7));
        let done: Result<(), ()> = entries.sync(LAYER, Ino(5), || {
            entries.made(LAYER, Ino(6));
            entries.removed(LAYER, Ino(7));
            entries.made(LAYER, Ino(8));
            Ok(())
        });
        assert_eq!(done, Ok(()));
        assert!(syncs(&entries, LAYER, 6));
        assert!(!syncs(&entries, LAYER, 8), "the second one was there then");
    }

    #[test]
    fn a_sync_that_fails_counts_for_nobody() {
        let entries = Entries::default();
        entries.made(LAYER, Ino(5));
        entries.made(LAYER, Ino(6));
        assert_eq!(entries.sync(LAYER, Ino(5), || Err(())), Err(()));
        assert!(syncs(&entries, LAYER, 6));
    }
}
