//! `cowfs dump`: prints the files of a layer readably.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{failure, output};
use crate::catalog::{BranchName, Store};
use crate::format::index::Index;
use crate::format::journal::{FrameReader, LogHeader, Record, Tail};
use crate::format::sums::Sums;
use crate::format::{
    DirentTarget, FileLayout, FormatError, InodeRecord, LayerId, OwnedRun, Timestamp,
};
use crate::io::host::open_plain;
use crate::io::sys;
use crate::serve::Failure;

/// The files of a layer that have records, the ones made later last.
const FILES: [&str; 6] = ["journal", "volatile", "index", "merged", "sums", "pack/sums"];

/// Print journals, indexes and checksum files readably
///
/// WHAT is such a file, a layer (twelve hexadecimal digits), or a branch: then the layers that it
/// stands on, the newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cowfs dump main
  cowfs dump 5fe1c0a92b34 --json
  cowfs dump /var/lib/cowfs/layers/5fe1c0a92b34/journal")]
pub(super) struct DumpArgs {
    /// A file of a layer, a layer, or a branch
    what: String,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(
    args: &DumpArgs,
    open_store: impl FnOnce() -> Result<Store, Failure>,
) -> Result<u8, Failure> {
    let files = if args.what.contains('/') && Path::new(&args.what).is_file() {
        vec![PathBuf::from(&args.what)]
    } else {
        files_of(&args.what, &open_store()?)?
    };
    let mut damaged = false;
    for path in files {
        let mut out = Printer { json: args.json, path: &path };
        let bytes = match open_plain(&path).and_then(|file| sys::map_immutable(&file)) {
            Ok(bytes) => bytes,
            // A layer that was just finalized has lost its journal meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                let message = format!("reading {}: {error}", path.display());
                return Err(Failure::new("host", message));
            }
        };
        if let Err(error) = dump(bytes, &mut out) {
            damaged = true;
            eprintln!("{}: {error}", output::path(&path));
        }
    }
    Ok(if damaged { 3 } else { 0 })
}

/// The files of a layer, or of all layers of a branch.
fn files_of(what: &str, store: &Store) -> Result<Vec<PathBuf>, Failure> {
    let layer = (what.len() == 12).then(|| u64::from_str_radix(what, 16).ok()).flatten();
    let layer_dir = layer.map(|id| store.layer_dir(LayerId(id))).filter(|dir| dir.is_dir());
    let dirs = match layer_dir {
        Some(dir) => vec![dir],
        None => {
            let name = what.parse::<BranchName>();
            let name = name.map_err(|error| Failure::caused("name", &error).exit(2))?;
            let branch = store.catalog.require_branch(&name);
            let branch = branch.map_err(|error| failure::of_catalog(&error))?;
            let chain = store.catalog.chain(branch.head).map_err(|e| failure::of_catalog(&e))?;
            chain.iter().map(|row| store.layer_dir(row.id)).collect()
        }
    };
    let files = dirs.iter().flat_map(|dir| FILES.map(|name| dir.join(name)));
    Ok(files.filter(|path| path.exists()).collect())
}

struct Printer<'a> {
    json: bool,
    path: &'a Path,
}

impl Printer<'_> {
    /// Prints one record: as JSON with its file, or as `kind key=value ..`.
    fn record(&mut self, kind: &str, fields: Value) {
        let Value::Object(fields) = fields else { return };
        if self.json {
            let mut object = json!({ "file": self.path, "record": kind });
            if let Some(object) = object.as_object_mut() {
                object.extend(fields);
            }
            output::print(&format!("{object}\n"));
            return;
        }
        let fields = fields.iter().map(|(key, value)| format!(" {key}={value}"));
        output::print(&format!("{kind}{}\n", fields.collect::<String>()));
    }
}

fn dump(bytes: memmap2::Mmap, out: &mut Printer<'_>) -> Result<(), FormatError> {
    if !out.json {
        output::print(&format!("# {} ({} bytes)\n", out.path.display(), bytes.len()));
    }
    match bytes.get(..8) {
        Some(b"cowfslog") => dump_log(&bytes, out),
        Some(b"cowfssum") => dump_sums(&Sums::open(Box::new(bytes))?, out),
        Some(b"cowfsidx") => dump_index(&Index::open(Box::new(bytes))?, out),
        _ => Err(FormatError::BadMagic { what: "log, index or checksum file" }),
    }
}

fn dump_log(bytes: &[u8], out: &mut Printer<'_>) -> Result<(), FormatError> {
    let header = LogHeader::decode(bytes)?;
    out.record(
        "log",
        json!({
            "kind": format!("{:?}", header.kind).to_lowercase(),
            "layer": header.layer.dir_name(),
            "boot_id": format!("{:032x}", u128::from_be_bytes(header.boot_id)),
        }),
    );
    let mut frames = FrameReader::new(bytes.get(LogHeader::BYTES..).unwrap_or_default(), 1);
    for frame in frames.by_ref() {
        let frame = frame?;
        let (sequence, offset) = (frame.sequence, frame.offset);
        out.record("frame", json!({ "sequence": sequence, "offset": offset, "end": frame.end }));
        for record in &frame.records {
            dump_record(record, out);
        }
    }
    if let Tail::Torn { offset, bytes } = frames.tail() {
        out.record("torn-tail", json!({ "offset": offset, "bytes": bytes }));
    }
    Ok(())
}

fn dump_record(record: &Record, out: &mut Printer<'_>) {
    match record {
        Record::Inode(inode) => out.record("inode", inode_fields(inode)),
        Record::Forget(ino) => out.record("forget", json!({ "ino": ino.0 })),
        Record::Dirent { dir, name, target } => dump_name(dir.0, name, *target, out),
        Record::NextIno(ino) => out.record("next-inode", json!({ "ino": ino.0 })),
        Record::Length { ino, bytes } => {
            out.record("length", json!({ "ino": ino.0, "bytes": bytes }));
        }
        Record::Lost { ino, bytes } => {
            out.record("lost", json!({ "ino": ino.0, "bytes": bytes }));
        }
        Record::Closed { files } => out.record("closed", json!({ "files": files })),
        Record::Layout(delta) => {
            let added: Vec<_> = delta.added.iter().map(|r| json!([r.start, r.end])).collect();
            let limit = |granule: u32| (granule != u32::MAX).then_some(granule);
            let run =
                |r: &OwnedRun| json!([r.start, r.len, r.layer.dir_name(), r.file.0, r.source]);
            let borrowed: Vec<_> = delta.borrowed.iter().map(run).collect();
            out.record(
                "layout",
                json!({
                    "ino": delta.ino.0, "private": delta.private, "floor": limit(delta.floor),
                    "cut": limit(delta.cut), "added": added, "borrowed": borrowed,
                }),
            );
        }
    }
}

fn dump_name(dir: u64, name: &[u8], target: DirentTarget, out: &mut Printer<'_>) {
    let mut fields = json!({ "dir": dir, "name": String::from_utf8_lossy(name) });
    let Some(object) = fields.as_object_mut() else { return };
    if std::str::from_utf8(name).is_err() {
        object.insert("name_escaped".to_owned(), json!(name.escape_ascii().to_string()));
    }
    match target {
        DirentTarget::Whiteout => out.record("whiteout", fields),
        DirentTarget::Link { ino, kind } => {
            object.insert("ino".to_owned(), json!(ino.0));
            object.insert("kind".to_owned(), json!(format!("{kind:?}").to_lowercase()));
            out.record("name", fields);
        }
    }
}

/// As everywhere, and to the nanosecond.
fn time(time: Timestamp) -> String {
    jiff::Timestamp::new(time.secs, time.nanos.cast_signed())
        .map_or_else(|_| format!("{}.{:09}", time.secs, time.nanos), |time| format!("{time:.9}"))
}

fn inode_fields(inode: &InodeRecord) -> Value {
    let mut fields = json!({
        "ino": inode.ino.0, "kind": format!("{:?}", inode.kind).to_lowercase(),
        "mode": format!("{:04o}", inode.perm), "uid": inode.uid, "gid": inode.gid,
        "nlink": inode.nlink, "size": inode.size,
        "mtime": time(inode.mtime),
    });
    let Some(object) = fields.as_object_mut() else { return fields };
    if inode.parent.0 != 0 {
        object.insert("parent".to_owned(), json!(inode.parent.0));
    }
    if !inode.symlink.is_empty() {
        object.insert("symlink".to_owned(), json!(String::from_utf8_lossy(&inode.symlink)));
    }
    if let Some(adopted) = &inode.adopted {
        object.insert("adopted".to_owned(), json!(String::from_utf8_lossy(&adopted.path)));
    }
    fields
}

fn dump_index(index: &Index, out: &mut Printer<'_>) -> Result<(), FormatError> {
    let meta = index.meta();
    out.record(
        "index",
        json!({
            "layer": meta.layer.dir_name(), "depth": meta.depth,
            "lowest_depth": meta.lowest_depth, "next_ino": meta.next_ino.0,
        }),
    );
    for file in index.files() {
        let (inode, layout) = file?;
        out.record("inode", inode_fields(&inode));
        if let Some(layout) = layout {
            dump_layout(inode.ino.0, &layout, out);
        }
    }
    for entry in index.dirents() {
        let entry = entry?;
        dump_name(entry.dir.0, entry.name, entry.target, out);
    }
    Ok(())
}

fn dump_layout(ino: u64, layout: &FileLayout, out: &mut Printer<'_>) {
    let floor = (layout.floor != u32::MAX).then_some(layout.floor);
    out.record("layout", json!({ "ino": ino, "private": layout.private, "floor": floor }));
    for run in &layout.runs {
        let (layer, file) = (run.layer.dir_name(), run.file.0);
        out.record(
            "run",
            json!({
                "ino": ino, "start": run.start, "granules": run.len,
                "layer": layer, "file": file, "source": run.source,
            }),
        );
    }
}

fn dump_sums(sums: &Sums, out: &mut Printer<'_>) -> Result<(), FormatError> {
    out.record("checksums", json!({ "layer": sums.layer().dir_name() }));
    for extent in sums.extents() {
        let (extent, values) = extent?;
        let values: Vec<String> = values.iter().map(|sum| format!("{sum:08x}")).collect();
        out.record(
            "extent",
            json!({ "file": extent.file.0, "start": extent.start, "sums": values }),
        );
    }
    Ok(())
}
