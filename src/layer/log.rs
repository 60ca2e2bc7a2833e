//! The two logs of an open layer: the durable journal and the volatile log beside it.
//!
//! A change is appended to the volatile log with a plain write before its reply, so a killed
//! process loses nothing: the host's page cache has it. Frames bound for the journal wait in
//! memory until somebody asks for durability; the first to ask writes and syncs for all who wait.
//!
//! Invariant: a frame enters the journal's queue only when everything it claims may become
//! durable at once (names and inodes at any time, ownership only after its data was synced).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::LayerError;
use super::sync::Durable;
use crate::format::journal::{LogHeader, LogKind, Record, encode_frame};
use crate::format::{Ino, LayerId};
use crate::io::crash::{Point, crash_point, halves};
use crate::io::{Access, HostFile, Storage, write_all_at};

/// For an estimate of what queued records will take in the journal.
const RECORD_BYTES_TYPICAL: u64 = 128;

/// Counts the changes queued for a journal; durable up to some ticket means durable up to there.
pub type Ticket = u64;

/// Called once the first frames of a layer are durable, before anybody is told so.
pub type FirstUse = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Where appending continues, as found by replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// Bytes that hold valid frames (header included); 0 when the file is missing.
    pub bytes: u64,
    /// The sequence number of the next frame.
    pub sequence: u64,
}

struct Queue {
    journal: Option<Arc<dyn HostFile>>,
    volatile: Option<Arc<dyn HostFile>>,
    journal_end: LogEnd,
    volatile_end: LogEnd,
    queued: Vec<Record>,
    queued_to: Ticket,
    durable_to: Ticket,
    entry_durable: bool,
    syncing: bool,
    failed: bool,
    retired: bool,
}

/// The logs of one open layer.
pub struct Log {
    layer: LayerId,
    dir: PathBuf,
    storage: Arc<dyn Storage>,
    boot_id: [u8; 16],
    first_use: FirstUse,
    queue: Mutex<Queue>,
    synced: Condvar,
}

impl Log {
    /// Continues the logs in `dir` at the given ends; files are made at the first append.
    pub fn resume(
        layer: LayerId,
        dir: PathBuf,
        storage: Arc<dyn Storage>,
        boot_id: [u8; 16],
        (journal_end, volatile_end): (LogEnd, LogEnd),
        first_use: FirstUse,
    ) -> Log {
        let next = journal_end.sequence.max(1);
        let queue = Queue {
            journal: None,
            volatile: None,
            journal_end,
            volatile_end,
            queued: Vec::new(),
            queued_to: next - 1,
            durable_to: next - 1,
            entry_durable: journal_end.bytes > 0,
            syncing: false,
            failed: false,
            retired: false,
        };
        Log {
            layer,
            dir,
            storage,
            boot_id,
            first_use,
            queue: Mutex::new(queue),
            synced: Condvar::new(),
        }
    }

    /// Takes up a layer that was left in order, before its first change: from now on the volatile
    /// log's presence tells that it may not be. A new layer needs no such mark.
    pub fn begin(&self) -> Result<(), LayerError> {
        let mut queue = self.queue.lock();
        if queue.journal_end.bytes == 0 {
            return Ok(());
        }
        self.open_volatile(&mut queue)?;
        self.storage.sync_dir(&self.dir).map_err(self.host("marking the layer as in use"))?;
        crash_point(Point::LayerMarked);
        Ok(())
    }

    /// Records a change that may become durable at any time.
    pub fn append(&self, records: &[Record]) -> Result<Ticket, LayerError> {
        let mut queue = self.queue.lock();
        self.write_volatile(&mut queue, records)?;
        Ok(enqueue(&mut queue, records))
    }

    /// Records a change that must not become durable before its data: in the volatile log only.
    pub fn append_volatile(&self, records: &[Record]) -> Result<(), LayerError> {
        self.write_volatile(&mut self.queue.lock(), records)
    }

    /// Queues records whose data was just synced (they are in the volatile log already).
    pub fn append_synced(&self, records: &[Record]) -> Ticket {
        enqueue(&mut self.queue.lock(), records)
    }

    /// The ticket of the last frame queued.
    pub fn last_ticket(&self) -> Ticket {
        self.queue.lock().queued_to
    }

    /// Whether everything up to `ticket` is on stable storage.
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        self.queue.lock().durable_to >= ticket
    }

    /// Bytes in the journal and in the volatile log.
    pub fn sizes(&self) -> (u64, u64) {
        let queue = self.queue.lock();
        (
            queue.journal_end.bytes + queue.queued.len() as u64 * RECORD_BYTES_TYPICAL,
            queue.volatile_end.bytes,
        )
    }

    /// Whether the journal could not be synced.
    pub fn is_latched(&self) -> bool {
        self.queue.lock().failed
    }

    /// Makes every frame up to `ticket` durable; those who wait at once share one sync.
    pub fn sync_to(&self, ticket: Ticket) -> Result<Durable, LayerError> {
        let mut queue = self.queue.lock();
        loop {
            if queue.failed {
                return Err(LayerError::Latched { layer: self.layer, ino: Ino(0) });
            }
            if queue.durable_to >= ticket || queue.retired {
                return Ok(Durable::witnessed());
            }
            if queue.syncing {
                self.synced.wait(&mut queue);
                continue;
            }
            queue.syncing = true;
            let batch = std::mem::take(&mut queue.queued);
            let (batch_to, offset) = (queue.queued_to, queue.journal_end.bytes);
            let entry_durable = queue.entry_durable;
            let journal = self.journal(&mut queue);
            drop(queue);
            let outcome = journal.and_then(|(journal, offset_min)| {
                let batch = (batch.as_slice(), batch_to);
                self.write_batch(&*journal, batch, offset.max(offset_min), entry_durable)
            });
            queue = self.queue.lock();
            queue.syncing = false;
            match outcome {
                Ok(end) => {
                    queue.journal_end.bytes = end;
                    queue.durable_to = batch_to;
                    queue.entry_durable = true;
                }
                Err(Failed::BeforeSync(source)) => {
                    // Nothing was claimed durable: the batch stays queued and can be tried again.
                    let later = std::mem::replace(&mut queue.queued, batch);
                    queue.queued.extend(later);
                    self.synced.notify_all();
                    return Err(self.host("writing the journal")(source));
                }
                Err(Failed::Sync(source)) => {
                    queue.failed = true;
                    self.synced.notify_all();
                    tracing::error!(layer = %self.layer.dir_name(), error = %source, "journal sync failed: branch latched");
                    return Err(self.host("syncing the journal")(source));
                }
            }
            self.synced.notify_all();
        }
    }

    /// Declares the logs replaced by a durable index: nothing is written to them any more.
    pub fn retire(&self) {
        let mut queue = self.queue.lock();
        queue.retired = true;
        queue.queued = Vec::new();
    }

    /// Drops the volatile log; the caller has made everything durable.
    pub fn discard_volatile(&self) -> io::Result<()> {
        let mut queue = self.queue.lock();
        queue.volatile = None;
        queue.volatile_end = LogEnd::default();
        self.storage.remove_file(&self.dir.join("volatile"))
    }

    fn write_batch(
        &self,
        journal: &dyn HostFile,
        (batch, sequence): (&[Record], Ticket),
        offset: u64,
        entry_durable: bool,
    ) -> Result<u64, Failed> {
        // One frame for the whole batch: were it several, the host could write a later one and
        // not an earlier before the power goes, and a healthy log would look damaged.
        let mut frame = Vec::with_capacity(4096);
        encode_frame(sequence, batch, &mut frame);
        write_frame(journal, &frame, offset, Point::JournalTorn).map_err(Failed::BeforeSync)?;
        crash_point(Point::JournalWritten);
        journal.sync_data().map_err(|error| {
            // As with data: a mount that comes after reads what the disk has, not this frame.
            journal.forget_clean_pages();
            Failed::Sync(error)
        })?;
        crash_point(Point::JournalSynced);
        if !entry_durable {
            self.storage.sync_dir(&self.dir).map_err(Failed::Sync)?;
            if let Some(layers) = self.dir.parent() {
                self.storage.sync_dir(layers).map_err(Failed::Sync)?;
            }
            crash_point(Point::JournalNamed);
            // Only now: a layer that the catalog says was used and that is not there is damage.
            (self.first_use)().map_err(Failed::BeforeSync)?;
            crash_point(Point::JournalNoted);
        }
        Ok(offset + frame.len() as u64)
    }

    /// The journal's file, made with its header if it is missing, and where frames may start.
    fn journal(&self, queue: &mut Queue) -> Result<(Arc<dyn HostFile>, u64), Failed> {
        if let Some(journal) = &queue.journal {
            return Ok((journal.clone(), LogHeader::BYTES as u64));
        }
        let header = LogHeader { kind: LogKind::Journal, layer: self.layer, boot_id: [0; 16] };
        let file =
            self.open_log("journal", header, queue.journal_end).map_err(Failed::BeforeSync)?;
        queue.journal = Some(file.clone());
        Ok((file, LogHeader::BYTES as u64))
    }

    fn open_log(
        &self,
        name: &str,
        header: LogHeader,
        end: LogEnd,
    ) -> io::Result<Arc<dyn HostFile>> {
        if end.bytes == 0 {
            self.storage.create_dirs(&self.dir)?;
            let (created, begun) = match header.kind {
                LogKind::Journal => (Point::JournalCreated, Point::JournalBegun),
                LogKind::Volatile => (Point::VolatileCreated, Point::VolatileBegun),
            };
            let file = self.storage.open(&self.dir.join(name), Access::CreateEmpty)?;
            crash_point(created);
            write_all_at(&*file, &header.encode(), 0)?;
            crash_point(begun);
            return Ok(file);
        }
        let file = self.storage.open(&self.dir.join(name), Access::ReadWrite)?;
        // A torn tail must not be taken for frames after the next append.
        if file.metadata()?.len > end.bytes {
            file.set_len(end.bytes)?;
            crash_point(Point::LogTornOff);
        }
        Ok(file)
    }

    fn write_volatile(&self, queue: &mut Queue, records: &[Record]) -> Result<(), LayerError> {
        let volatile = self.open_volatile(queue)?;
        let mut frame = Vec::with_capacity(256);
        encode_frame(queue.volatile_end.sequence, records, &mut frame);
        write_frame(&*volatile, &frame, queue.volatile_end.bytes, Point::VolatileTorn)
            .map_err(self.host("writing the volatile log"))?;
        crash_point(Point::VolatileWritten);
        queue.volatile_end.bytes += frame.len() as u64;
        queue.volatile_end.sequence += 1;
        Ok(())
    }

    fn open_volatile(&self, queue: &mut Queue) -> Result<Arc<dyn HostFile>, LayerError> {
        if let Some(file) = &queue.volatile {
            return Ok(file.clone());
        }
        let header =
            LogHeader { kind: LogKind::Volatile, layer: self.layer, boot_id: self.boot_id };
        let file = self
            .open_log("volatile", header, queue.volatile_end)
            .map_err(self.host("opening the volatile log"))?;
        queue.volatile_end.bytes = queue.volatile_end.bytes.max(LogHeader::BYTES as u64);
        queue.volatile_end.sequence = queue.volatile_end.sequence.max(1);
        queue.volatile = Some(file.clone());
        Ok(file)
    }

    fn host(&self, what: &'static str) -> impl FnOnce(io::Error) -> LayerError + use<> {
        LayerError::host(self.layer, what)
    }
}

enum Failed {
    /// Nothing reached the disk that counts; the call may be repeated.
    BeforeSync(io::Error),
    /// A sync failed: what is on the disk is unknown.
    Sync(io::Error),
}

/// Writes one frame; `torn` is the crash point in its middle.
fn write_frame(file: &dyn HostFile, frame: &[u8], at: u64, torn: Point) -> io::Result<()> {
    let (first, rest) = halves(frame);
    write_all_at(file, first, at)?;
    crash_point(torn);
    write_all_at(file, rest, at + first.len() as u64)
}

/// Queues one change. All changes of a batch become durable in one frame, so a change of several
/// records is never torn.
fn enqueue(queue: &mut Queue, records: &[Record]) -> Ticket {
    queue.queued_to += 1;
    queue.queued.extend_from_slice(records);
    queue.queued_to
}
