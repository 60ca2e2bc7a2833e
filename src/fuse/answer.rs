//! Answers to the kernel, with a line in the log for what is no everyday answer.

use fuser::{Errno, Generation, ReplyEmpty, ReplyEntry, ReplyXattr};

use super::convert::{FOREVER, file_attr};
use super::errno::{errno_of, is_ordinary};
use crate::fs::FsError;
use crate::fs::attr::Attributes;

/// The errno of `error`, with a line in the log unless it is an everyday answer.
pub(super) fn logged(request: &'static str, error: &FsError) -> Errno {
    if !is_ordinary(error) {
        tracing::error!(request, %error, "request failed");
    }
    errno_of(error)
}

pub(super) fn reply_entry(
    reply: ReplyEntry,
    request: &'static str,
    made: Result<Attributes, FsError>,
) {
    match made {
        Ok(attributes) => reply.entry(&FOREVER, &file_attr(&attributes), Generation(0)),
        Err(error) => reply.error(logged(request, &error)),
    }
}

pub(super) fn reply_empty(reply: ReplyEmpty, request: &'static str, done: Result<(), FsError>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(logged(request, &error)),
    }
}

pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, FsError>) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(logged("xattr", &error)),
    }
}
