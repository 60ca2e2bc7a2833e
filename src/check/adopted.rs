//! The files of an adopted base, as they are and as they were.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Report;
use crate::format::{AdoptedSource, Timestamp};

pub(super) fn check_source(base: &Path, source: &AdoptedSource, report: &mut Report) {
    let path = base.join(OsStr::from_bytes(&source.path));
    let meta = match std::fs::symlink_metadata(&path) {
        Ok(meta) => meta,
        Err(error) => {
            report.damaged(path, format!("adopted file: {error}"));
            return;
        }
    };
    let is = |secs, nanos, time: Timestamp| (secs, nanos) == (time.secs, i64::from(time.nanos));
    let same = meta.ino() == source.host_ino
        && meta.len() == source.size
        && is(meta.mtime(), meta.mtime_nsec(), source.mtime)
        && is(meta.ctime(), meta.ctime_nsec(), source.ctime);
    if !same {
        report.damaged(path, "somebody changed this file of an adopted base");
    }
}
