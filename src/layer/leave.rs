//! How a layer is left: in order, with a record of how long its data files are.
//!
//! While a layer is open the length of a data file is the file's size, and no record says it twice:
//! an fsync of a file whose ownership is known is one fdatasync. So a data file that is cut or
//! removed from outside would read as a shorter file. The last frame of an orderly end says all
//! lengths, and whoever takes the layer up again compares.

use std::collections::HashMap;
use std::io;

use super::LayerError;
use super::log::Ticket;
use super::open::OpenLayer;
use crate::format::Ino;
use crate::format::journal::Record;
use crate::io::crash::{Point, crash_point};

/// How a layer was left.
pub(super) struct Left {
    /// The journal's last ticket then.
    pub(super) ticket: Ticket,
    /// The length of each data file, in bytes; 0 where there is none.
    pub(super) lengths: HashMap<Ino, u64>,
}

impl OpenLayer {
    /// Leaves the layer in order: the lengths of all data files become the end of the journal, and
    /// the volatile log goes. The caller has made everything durable.
    pub fn leave(&self) -> Result<(), LayerError> {
        if !self.is_empty() {
            self.note_lengths()?;
            crash_point(Point::LeaveNoted);
        }
        self.log.discard_volatile().map_err(LayerError::host(self.id, "removing the volatile log"))
    }

    /// Notes which data files were found to be other than they were left, so that this stays known
    /// when the layer is not left in order the next time.
    pub fn note_losses(&self) -> Result<(), LayerError> {
        let files = self.all_files();
        let lost = files.iter().filter(|file| file.damage().is_some());
        let records: Vec<Record> =
            lost.map(|file| Record::Lost { ino: file.ino, bytes: file.size() }).collect();
        if records.is_empty() {
            return Ok(());
        }
        let _durable = self.log.sync_to(self.log.append(&records)?)?;
        Ok(())
    }

    fn note_lengths(&self) -> Result<(), LayerError> {
        let mut lengths = HashMap::new();
        for file in self.all_files() {
            lengths.insert(file.ino, self.length_to_note(file.ino)?);
        }
        let unchanged =
            |left: &Left| left.ticket == self.log.last_ticket() && left.lengths == lengths;
        if self.left.as_ref().is_some_and(unchanged) {
            return Ok(());
        }
        let files = lengths.len() as u64;
        let mut records: Vec<Record> =
            lengths.into_iter().map(|(ino, bytes)| Record::Length { ino, bytes }).collect();
        records.push(Record::Closed { files });
        let ticket = self.log.append_synced(&records);
        let _durable = self.log.sync_to(ticket)?;
        Ok(())
    }

    fn length_to_note(&self, ino: Ino) -> Result<u64, LayerError> {
        // What is missing stays known as missing.
        let damaged = self.file(ino).filter(|file| file.damage().is_some());
        if let Some(file) = damaged {
            return Ok(file.size());
        }
        self.data_length(ino).map(|length| length.unwrap_or(0))
    }

    /// The length of a data file; `None` if there is none.
    pub(super) fn data_length(&self, ino: Ino) -> Result<Option<u64>, LayerError> {
        match self.data.storage.metadata(&self.data.path(self.id, ino)) {
            Ok(meta) => Ok(Some(meta.len)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LayerError::host(self.id, "reading the size of a data file")(error)),
        }
    }
}
