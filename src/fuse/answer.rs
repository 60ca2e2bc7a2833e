//! Answers through fuser.

use fuser::{Errno, Generation, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyWrite, ReplyXattr};

use super::calls::Answer;
use super::convert::{FOREVER, file_attr, negative_attr};
use crate::fs::attr::Attributes;

pub(super) fn reply_entry(reply: ReplyEntry, answer: Answer<Option<Attributes>>) {
    match answer {
        Ok(Some(attributes)) => reply.entry(&FOREVER, &file_attr(&attributes), Generation(0)),
        Ok(None) => reply.entry(&FOREVER, &negative_attr(), Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn reply_empty(reply: ReplyEmpty, answer: Answer<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, answer: Answer<Vec<u8>>) {
    match answer {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn reply_attr(reply: ReplyAttr, answer: Answer<Attributes>) {
    match answer {
        Ok(attributes) => reply.attr(&FOREVER, &file_attr(&attributes)),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn reply_written(reply: ReplyWrite, answer: Answer<u32>) {
    match answer {
        Ok(bytes) => reply.written(bytes),
        Err(errno) => reply.error(errno),
    }
}
