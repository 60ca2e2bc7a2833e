//! Making a pack: beside its place, whole, and then put there.

use std::collections::BTreeSet;
use std::io::{self, BufWriter};
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::{Wanted, open};
use crate::format::sums::{SumExtent, SumsWriter, cut_extents, granule_sum};
use crate::format::{GRANULE_BYTES, Granule, LayerId, OwnedRun};
use crate::io::crash::{Point, crash_point};
use crate::io::host::try_lock;
use crate::io::{Access, Appender, write_all_at};
use crate::layer::LayerError;
use crate::layer::data_files::DataFiles;
use crate::layer::sums::Made;

/// Granules that are copied at a time: 1 MiB.
const STEP_GRANULES: u32 = 256;

/// Says how much was copied, in bytes, and whether to go on.
type Pace<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;
/// What was copied, with its checksums.
type Copied = Vec<(SumExtent, Vec<u32>)>;

/// Makes the pack of `layer`, unless it has a sound one. `choose` says what its merged index has to be
/// copied. `pace` is told of each step, in bytes, and may wait, or stop the work. A file that
/// cannot be read is left out.
///
/// Its lock is not the layer's `finalize.lock`: fsync waits for that one, and this work may be held.
pub fn make(
    data: &DataFiles,
    layer: LayerId,
    choose: impl FnOnce() -> Result<Vec<Wanted>, LayerError>,
    pace: Pace<'_>,
) -> Result<Made, LayerError> {
    let pack = layer.pack();
    let dir = data.layer_dir(layer);
    let lock = try_lock(&dir.join("pack.lock"));
    let lock = lock.map_err(LayerError::host(pack, "locking a pack"))?;
    let Some(_lock) = lock else { return Ok(Made::Elsewhere) };
    if data.packs.is_sound(pack) && open(data, layer).is_some() {
        return Ok(Made::Before);
    }
    let new = NewPack { data, layer, dir: dir.join("pack.tmp") };
    let made = new.make(choose, pace);
    if !matches!(made, Ok(Made::Now)) {
        // On a full disk half a pack takes the room of what matters.
        let removed = data.storage.remove_tree(&new.dir);
        removed.map_err(LayerError::host(pack, "removing half a pack"))?;
    }
    made
}

/// A pack that is being made.
struct NewPack<'a> {
    data: &'a DataFiles,
    layer: LayerId,
    dir: PathBuf,
}

enum Failed {
    Read(LayerError),
    Write(io::Error),
    Stopped,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed::Write(error)
    }
}

impl NewPack<'_> {
    fn make(
        &self,
        choose: impl FnOnce() -> Result<Vec<Wanted>, LayerError>,
        pace: Pace<'_>,
    ) -> Result<Made, LayerError> {
        let writing = |error| LayerError::host(self.layer.pack(), "writing a pack")(error);
        self.data.storage.remove_tree(&self.dir).map_err(writing)?;
        let wanted = choose()?;
        self.data.storage.create_dirs(&self.dir).map_err(writing)?;
        let mut copied = Copied::new();
        for file in &wanted {
            match self.copy(file, pace) {
                Ok(extents) => copied.extend(extents),
                Err(Failed::Read(error)) => {
                    tracing::warn!(%error, ino = %file.ino, "a file is not packed");
                    self.data.storage.remove_file(&self.path(file)).map_err(writing)?;
                }
                Err(Failed::Write(error)) => return Err(writing(error)),
                Err(Failed::Stopped) => return Ok(Made::Stopped),
            }
        }
        crash_point(Point::PackCopied);
        self.publish(&copied).map_err(writing)?;
        Ok(Made::Now)
    }

    fn path(&self, file: &Wanted) -> PathBuf {
        self.dir.join(file.ino.data_path())
    }

    /// Copies what is wanted of a file.
    fn copy(&self, file: &Wanted, pace: Pace<'_>) -> Result<Copied, Failed> {
        // The pool of open files is for those that are read.
        let target = self.data.open_making_dirs(&self.path(file), Access::CreateEmpty)?;
        let (mut copied, mut buf) = (Copied::new(), Vec::new());
        for extent in steps(file) {
            buf.resize(extent.len as usize * GRANULE_BYTES as usize, 0);
            read(self.data, &file.runs, extent, &mut buf).map_err(Failed::Read)?;
            write_all_at(&*target, &buf, u64::from(extent.start) * GRANULE_BYTES)?;
            let granules = buf.chunks_exact(GRANULE_BYTES as usize);
            copied.push((extent, granules.map(granule_sum).collect()));
            if pace(buf.len() as u64).is_break() {
                return Err(Failed::Stopped);
            }
        }
        // What the disk has of it is read soon, or never: it is written now, at the pace of the rest.
        target.sync_data()?;
        Ok(copied)
    }

    /// Adds the checksums and puts the whole in its place.
    fn publish(&self, copied: &Copied) -> io::Result<()> {
        let (storage, pack) = (&self.data.storage, self.layer.pack());
        let file = storage.open(&self.dir.join("sums"), Access::CreateEmpty)?;
        let extents: Vec<SumExtent> = copied.iter().map(|(extent, _)| *extent).collect();
        let out = BufWriter::with_capacity(1 << 20, Appender::new(&*file));
        let mut writer = SumsWriter::new(out, pack, &extents)?;
        for (extent, sums) in copied {
            writer.extent(*extent, sums)?;
        }
        drop(writer.finish()?);
        crash_point(Point::PackSummed);
        file.sync_data()?;
        for dir in self.dirs(&extents) {
            storage.sync_dir(&dir)?;
        }
        let place = self.data.layer_dir(pack);
        storage.remove_tree(&place)?;
        crash_point(Point::PackCleared);
        storage.rename(&self.dir, &place)?;
        crash_point(Point::PackRenamed);
        storage.sync_dir(&self.data.layer_dir(self.layer))?;
        self.data.forget_pack(self.layer, extents.iter().map(|extent| extent.file));
        Ok(())
    }

    /// Its directories, the innermost first.
    fn dirs(&self, extents: &[SumExtent]) -> Vec<PathBuf> {
        let groups = extents
            .iter()
            .filter_map(|extent| Some(self.dir.join(extent.file.data_path()).parent()?.to_owned()));
        let mut dirs: Vec<PathBuf> = groups.collect::<BTreeSet<_>>().into_iter().collect();
        if !dirs.is_empty() {
            dirs.push(self.dir.join("data"));
        }
        dirs.push(self.dir.clone());
        dirs
    }
}

/// What is wanted of a file, in steps.
fn steps(file: &Wanted) -> impl Iterator<Item = SumExtent> {
    let ranges = file.ranges.iter().map(|range| SumExtent {
        file: file.ino,
        start: range.start,
        len: range.end - range.start,
    });
    cut_extents(ranges).into_iter().flat_map(|extent| {
        (0..extent.len).step_by(STEP_GRANULES as usize).map(move |at| SumExtent {
            start: extent.start + at,
            len: STEP_GRANULES.min(extent.len - at),
            ..extent
        })
    })
}

/// Reads an extent of the file from its owners, who own all of it.
fn read(
    data: &DataFiles,
    runs: &[OwnedRun],
    extent: SumExtent,
    buf: &mut [u8],
) -> Result<(), LayerError> {
    let end = extent.start + extent.len;
    let first = runs.partition_point(|run| run.start + run.len <= extent.start);
    let bytes = |granule: Granule| (granule - extent.start) as usize * GRANULE_BYTES as usize;
    for run in runs.iter().skip(first).take_while(|run| run.start < end) {
        let (from, to) = (run.start.max(extent.start), (run.start + run.len).min(end));
        let source = u64::from(run.source + (from - run.start)) * GRANULE_BYTES;
        if let Some(part) = buf.get_mut(bytes(from)..bytes(to)) {
            data.read_run(*run, part, source)?;
        }
    }
    Ok(())
}
