//! Crash points: named places in the midst of a change where a process can be told to die.
//!
//! `scripts/crash-points` dies at each of them and looks at what is left. The cargo feature
//! `crash-points` brings them to life, for that script only; without it [`crash_point`] is empty
//! and nothing of this is in the program. With it, the environment decides:
//!
//! - `COWFS_CRASH_AT=NAME` or `NAME:NTH`: the process sends itself SIGKILL when it passes that
//!   point for the NTH time (1 is the first). `trace` notes every passing instead, `list` prints
//!   the names of all points and ends.
//! - `COWFS_CRASH_LOG=FILE`: gets a line for each passing that is noted, and for the death.

#[cfg(all(feature = "crash-points", not(debug_assertions)))]
compile_error!("the feature crash-points is for test builds only, never for a release");

/// Whether crash points are in this program. Where it counts, what is otherwise one write is
/// done in two halves with a point between them.
pub const ENABLED: bool = cfg!(feature = "crash-points");

/// Where to cut `bytes` that are written with a point in the middle: in halves, or not at all.
pub fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes.split_at(if ENABLED { bytes.len() / 2 } else { 0 })
}

macro_rules! points {
    ($($point:ident = $name:literal, $what:literal;)+) => {
        /// Every crash point; what each stands for is what has just been done.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $(#[doc = $what] $point,)+
        }

        impl Point {
            /// All of them, in the order of their declaration.
            pub const ALL: &[Point] = &[$(Point::$point,)+];

            /// The name by which a point is asked for.
            pub fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)+
                }
            }
        }
    };
}

points! {
    ForkPlanned = "fork.planned", "A fork has drawn its layer ids.";
    ForkReserved = "fork.reserved", "The child's lock is held, the transaction is not committed.";
    ForkCommitted = "fork.committed", "The fork is in the catalog, the parent still writes to the sealed layer.";
    ForkSwapped = "fork.swapped", "The parent has its new open layer.";
    ForkReleased = "fork.released", "The child may be served, nobody was answered.";
    OfflineForkPlanned = "fork.offline_planned", "The fork of an unmounted branch is planned.";
    OfflineForkCommitted = "fork.offline_committed", "It is in the catalog.";
    SealPlanned = "seal.planned", "A layer is about to be sealed without a fork.";
    SealCommitted = "seal.committed", "It is sealed in the catalog.";
    SealSwapped = "seal.swapped", "The branch has its new open layer.";
    CreateRootWritten = "create.root_written", "A new branch's root is in a layer without a row.";
    CreateLogSettled = "create.log_settled", "That layer is in order.";
    CreateCommitted = "create.committed", "The new branch is in the catalog.";
    CreateMarked = "create.marked", "Its layer counts as used.";
    CatalogUncommitted = "catalog.uncommitted", "A transaction has done its work, and is not committed.";
    CatalogCommitted = "catalog.committed", "A transaction is committed.";
    CatalogNoted = "catalog.noted", "The number of commits is noted beside the catalog.";
    WalCopied = "wal.copied", "The catalog's log is copied into the database, and not emptied.";
    WalEmptied = "wal.emptied", "It is empty.";
    WalHalfExtended = "wal.half_extended", "Some of the zeros after the log are written.";
    WalExtended = "wal.extended", "All of them are, and not synced.";
    ReserveCreated = "reserve.created", "The file of the reserve exists and has no blocks.";
    ReserveMade = "reserve.made", "The reserve is there.";
    ReserveGivenUp = "reserve.given_up", "The reserve is gone, to make room.";
    VolatileCreated = "volatile.created", "The volatile log exists, without its header.";
    VolatileBegun = "volatile.begun", "It has its header.";
    VolatileTorn = "volatile.torn", "Half of a frame is in the volatile log.";
    VolatileWritten = "volatile.written", "A frame is in the volatile log.";
    JournalCreated = "journal.created", "The journal exists, without its header.";
    JournalBegun = "journal.begun", "It has its header.";
    JournalTorn = "journal.torn", "Half of a frame is in the journal.";
    JournalWritten = "journal.written", "A frame is in the journal, not synced.";
    JournalSynced = "journal.synced", "It is synced; the journal's own name may not be.";
    JournalNamed = "journal.named", "The journal's name is durable, the catalog does not know.";
    JournalNoted = "journal.noted", "The catalog knows that the layer is used.";
    LogTornOff = "log.torn_off", "The torn end of a log is cut off.";
    LayerMarked = "layer.marked", "A layer in order is marked as in use again.";
    FileSized = "file.sized", "A new data file has its length, no record mentions it.";
    FileLogged = "file.logged", "A record mentions it.";
    WriteStored = "write.stored", "Bytes are in the data file, nothing says that they count.";
    WriteOwned = "write.owned", "The volatile log says so.";
    OwnerCopiedUp = "write.copied_up", "What lower layers show is copied into the data file.";
    CutDone = "cut.done", "A data file is shorter, no record says so.";
    CutLogged = "cut.logged", "The volatile log says so.";
    ZeroDone = "zero.done", "A range is zeros in the data file, and not owned.";
    TakenOver = "take_over.copied", "A whole file is copied up, and not private yet.";
    SyncedData = "sync.data", "A data file is synced, its name is not.";
    SyncedEntry = "sync.entry", "Its name is synced.";
    SyncedQueued = "sync.queued", "Its ownership waits for the journal.";
    SyncedBelow = "sync.below", "Layers below are synced, the open one is not.";
    ReapSynced = "reap.synced", "The journal says that nothing leads to a data file.";
    ReapRemoved = "reap.removed", "That data file is removed.";
    FinalizeLocked = "finalize.locked", "A frozen layer is about to be finalized.";
    FinalizeSynced = "finalize.synced", "Its data is synced.";
    FinalizeNoted = "finalize.noted", "Its index is durable, and the catalog knows that it is used.";
    FinalizeSwapped = "finalize.swapped", "The index serves instead of the logs.";
    FinalizeReaped = "finalize.reaped", "Unlinked data files are removed.";
    FinalizeJournalRemoved = "finalize.journal_removed", "The journal is removed, the volatile log is not.";
    FinalizeLogsRemoved = "finalize.logs_removed", "Both logs are removed.";
    IndexCreated = "index.created", "An index's temporary file exists.";
    IndexHalfWritten = "index.half_written", "Its records are handed over, not all are in the file.";
    IndexWritten = "index.written", "All of the index is in the temporary file.";
    IndexSynced = "index.synced", "It is synced.";
    IndexRenamed = "index.renamed", "It has its name.";
    IndexDurable = "index.durable", "So have it and the layer's directory, durably.";
    MergedCreated = "merged.created", "A merged index's temporary file exists.";
    MergedHalfWritten = "merged.half_written", "Its records are handed over, not all are in the file.";
    MergedWritten = "merged.written", "All of the merged index is in the temporary file.";
    MergedSynced = "merged.synced", "It is synced.";
    MergedRenamed = "merged.renamed", "It has its name.";
    MergedDurable = "merged.durable", "Durably.";
    MergedSwapped = "merged.swapped", "It serves instead of those it covers.";
    MergeOwed = "merged.owed", "A merge is about to be made up for that a pause, a kill or a failure prevented.";
    PackCopied = "pack.copied", "The copies of a pack are written and synced, and do not count.";
    PackSummed = "pack.summed", "Their checksums are beside them.";
    PackCleared = "pack.cleared", "The pack before is removed, the new one is not in its place.";
    PackRenamed = "pack.renamed", "They are in their place: the copies count.";
    PackSwapped = "pack.swapped", "The copies are read.";
    CompactionPaused = "compaction.paused", "The background is paused, nobody was answered.";
    CompactionResumed = "compaction.resumed", "It goes on, nobody was answered.";
    OpenReplayed = "open.replayed", "The logs are replayed, nothing is put right yet.";
    OpenRecovered = "open.recovered", "Everything is put right.";
    OpenBegun = "open.begun", "The open layer takes changes.";
    OpenLossesNoted = "open.losses_noted", "The journal knows which data files were found damaged.";
    OpenFinalized = "open.finalized", "The layers below one that was put right are finalized.";
    OpenSynced = "open.synced", "A file that was put right is synced.";
    SettleCopied = "settle.copied", "The last page of a file that was cut is copied up.";
    SettleLogged = "settle.logged", "What the cut hides is logged.";
    LeftoverRemoved = "recover.leftover_removed", "A data file that no record mentions is removed.";
    LeftoversSynced = "recover.leftovers_synced", "And that is durable.";
    HygieneRemoved = "hygiene.removed", "The files of the parent's server are removed.";
    HygieneSynced = "hygiene.synced", "Durably, the catalog does not know.";
    HygieneNoted = "hygiene.noted", "It knows.";
    CloseSynced = "close.synced", "At an unmount, everything is synced.";
    CloseReaped = "close.reaped", "Unlinked data files are removed.";
    CloseFinalized = "close.finalized", "Nothing is frozen any more.";
    LeaveNoted = "leave.noted", "The lengths of the data files end the journal; the volatile log is still there.";
    CloseSettled = "close.settled", "The volatile log is removed: an orderly end.";
    SumsCreated = "sums.created", "The temporary file for a layer's checksums exists.";
    SumsWritten = "sums.written", "The checksums are in it.";
    SumsSynced = "sums.synced", "They are synced.";
    SumsRenamed = "sums.renamed", "They count.";
    ImportLocked = "import.locked", "An import has its lock, and no row.";
    ImportNoted = "import.noted", "It has a row, and no directory.";
    ImportBegun = "import.begun", "It has a directory.";
    ImportDirsMade = "import.dirs_made", "The directories for its data files are made.";
    ImportFileCreated = "import.file_created", "A data file exists, empty.";
    ImportFileCopied = "import.file_copied", "It has its contents.";
    ImportCopied = "import.copied", "All files are copied.";
    ImportSynced = "import.synced", "They are synced.";
    ImportIndexWritten = "import.index_written", "The index is in its temporary file.";
    ImportIndexRenamed = "import.index_renamed", "It has its name.";
    ImportIndexDurable = "import.index_durable", "Durably; the layer is not published.";
    ImportPublished = "import.published", "The branch is in the catalog, the lock is still there.";
    ImportEnded = "import.ended", "The lock is gone.";
    ImportUndone = "import.undone", "The files of an import that failed are removed.";
    ImportForgotten = "import.forgotten", "Its row is removed.";
    DeleteLocked = "delete.locked", "A branch that is to be deleted is locked.";
    DeleteCommitted = "delete.committed", "It is gone from the catalog.";
    DeleteTidied = "delete.tidied", "So are its files in run/.";
    DeleteEnded = "delete.ended", "And its lock.";
    GcLocked = "gc.locked", "A gc has its turn.";
    GcEntryRemoved = "gc.entry_removed", "One entry of a directory that is being removed is gone.";
    GcLayerRemoved = "gc.layer_removed", "An unreachable layer's directory is gone, its row is not.";
    GcRowsRemoved = "gc.rows_removed", "The rows are gone.";
    GcDoomed = "gc.doomed", "A directory without a row has its name for the doomed.";
    GcPruned = "gc.pruned", "What expired is deleted, and forgotten what was deleted long ago.";
    GcLeftoversRemoved = "gc.leftovers_removed", "Those directories are removed.";
    GcRunFilesRemoved = "gc.run_files_removed", "The files in run/ that nobody needs are removed.";
    GcLogShortened = "gc.log_shortened", "The catalog's log is empty.";
    GcEnded = "gc.ended", "The reserve is there.";
}

/// Dies here if that was asked for; nothing at all without the feature `crash-points`.
#[inline]
pub fn crash_point(point: Point) {
    #[cfg(any(test, feature = "crash-points"))]
    armed::pass(point);
    #[cfg(not(any(test, feature = "crash-points")))]
    let _ = point;
}

/// Looks at the environment before anything is done, so that a wrong name does not go unnoticed.
/// Returns the exit code if the process shall end at once. Nothing without the feature.
#[inline]
pub fn prepare() -> Option<u8> {
    #[cfg(any(test, feature = "crash-points"))]
    return armed::prepare();
    #[cfg(not(any(test, feature = "crash-points")))]
    None
}

#[cfg(any(test, feature = "crash-points"))]
mod armed {
    use std::fs::File;
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::Point;

    /// What the process was told.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Order {
        Live,
        List,
        Trace,
        Die { at: Point, nth: u64 },
    }

    /// Understands the value of `COWFS_CRASH_AT`; the error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Order, String> {
        match text {
            "" => return Ok(Order::Live),
            "list" => return Ok(Order::List),
            "trace" => return Ok(Order::Trace),
            _ => {}
        }
        let (name, nth) = text.split_once(':').unwrap_or((text, "1"));
        let at = Point::ALL.iter().find(|point| point.name() == name);
        let at = *at.ok_or_else(|| format!("there is no crash point {name:?}"))?;
        let nth = nth.parse().ok().filter(|nth| *nth > 0);
        let nth = nth.ok_or_else(|| format!("{text:?} does not end with a number from 1 on"))?;
        Ok(Order::Die { at, nth })
    }

    fn order() -> &'static Result<Order, String> {
        static ORDER: OnceLock<Result<Order, String>> = OnceLock::new();
        ORDER.get_or_init(|| {
            parse(&std::env::var_os("COWFS_CRASH_AT").unwrap_or_default().to_string_lossy())
        })
    }

    pub(super) fn prepare() -> Option<u8> {
        match order() {
            Err(problem) => {
                eprintln!("Error: COWFS_CRASH_AT: {problem}");
                Some(2)
            }
            Ok(Order::List) => {
                for point in Point::ALL {
                    println!("{}", point.name());
                }
                Some(0)
            }
            Ok(_) => None,
        }
    }

    pub(super) fn pass(point: Point) {
        static PASSED: AtomicU64 = AtomicU64::new(0);
        let Ok(order) = order() else { return };
        if *order == Order::Trace {
            note("passed", point);
        }
        if let Order::Die { at, nth } = order
            && *at == point
            && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *nth
        {
            note("died", point);
            die();
        }
    }

    fn die() -> ! {
        // Nothing is flushed and nothing is dropped: the kernel ends every thread of the process.
        let _ = kill(Pid::this(), Signal::SIGKILL);
        loop {
            std::thread::park();
        }
    }

    /// One line in the log; a line that cannot be written is missed by whoever reads it.
    fn note(what: &str, point: Point) {
        let Some(path) = std::env::var_os("COWFS_CRASH_LOG") else { return };
        if let Ok(mut log) = File::options().append(true).create(true).open(path) {
            let line = format!("{what} {} {}\n", std::process::id(), point.name());
            let _ = log.write_all(line.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::armed::{Order, parse};
    use super::*;

    #[test]
    fn names_are_unique_and_say_where() {
        let mut names: Vec<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        assert!(names.iter().all(|name| name.split('.').count() == 2), "{names:?}");
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn orders_are_understood() {
        assert_eq!(parse(""), Ok(Order::Live));
        assert_eq!(parse("list"), Ok(Order::List));
        assert_eq!(parse("trace"), Ok(Order::Trace));
        let die = |nth| Ok(Order::Die { at: Point::ForkCommitted, nth });
        assert_eq!(parse("fork.committed"), die(1));
        assert_eq!(parse("fork.committed:12"), die(12));
        for wrong in ["fork", "fork.commited", "fork.committed:0", "fork.committed:", "x:1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn without_the_feature_nothing_is_written_in_halves() {
        let (first, rest) = halves(b"four");
        assert_eq!(
            (first, rest),
            if ENABLED { (&b"fo"[..], &b"ur"[..]) } else { (&b""[..], &b"four"[..]) }
        );
    }
}
