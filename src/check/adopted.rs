//! The files of an adopted base, as they are and as they were.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Report;
use crate::format::AdoptedSource;

pub(super) fn check_source(base: &Path, source: &AdoptedSource, report: &mut Report) {
    let path = base.join(OsStr::from_bytes(&source.path));
    let meta = match std::fs::symlink_metadata(&path) {
        Ok(meta) => meta,
        Err(error) => {
            report.damaged(path, format!("adopted file: {error}"));
            return;
        }
    };
    let mtime = (meta.mtime(), meta.mtime_nsec());
    let same = meta.ino() == source.host_ino
        && meta.len() == source.size
        && mtime == (source.mtime.secs, i64::from(source.mtime.nanos));
    if !same {
        report.damaged(path, "somebody changed this file of an adopted base");
    }
}
