//! `run/<branch id>.pg.json`: how a branch's server was started.
//!
//! For restarting it in the same way, for showing what was changed, and for finding its process
//! when the mount has gone. Whether the server runs is decided by the process alone: the file may
//! be left over from one that was killed. Whoever starts or stops holds
//! `<branch id>.pg.lock`.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::process::ProcessId;
use super::settings::Setting;

/// Larger files are not ours.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// What is appended to the branch's id.
const RECORD: &str = "pg.json";

/// What was asked of the start, for doing the same again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wishes {
    /// A fixed port.
    pub port: Option<u16>,
    /// Where the binaries are.
    pub pg_bin: Option<PathBuf>,
    /// The configuration file.
    pub config_file: Option<PathBuf>,
    /// Guards that are turned off, by name.
    pub keep: Vec<String>,
    /// Whether the guards hold also for the original.
    pub harmless: bool,
    /// Settings.
    pub settings: Vec<(String, String)>,
    /// The database user.
    pub user: Option<String>,
    /// The database.
    pub database: Option<String>,
}

/// A started server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its postmaster.
    pub process: ProcessId,
    /// Its port.
    pub port: u16,
    /// The directory of its socket.
    pub socket_dir: PathBuf,
    /// The data directory, which is the mount point.
    pub data_dir: PathBuf,
    /// Where its programs are.
    pub bin_dir: PathBuf,
    /// The database user for URLs.
    pub user: String,
    /// The database for URLs.
    pub database: String,
    /// Milliseconds since 1970.
    pub since_ms: i64,
    /// Whether the start mounted the branch, so that the stop unmounts it.
    pub mounted_here: bool,
    /// What differs from the configuration files.
    pub settings: Vec<Setting>,
    /// Slots of the parent that were removed before the first start.
    pub removed_slots: Vec<String>,
    /// What was asked for.
    pub wishes: Wishes,
}

/// The files of one branch's server in the store's `run` directory.
#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
    id: u64,
}

impl Files {
    /// Those of the branch `id`.
    pub fn new(run_dir: PathBuf, id: u64) -> Files {
        Files { dir: run_dir, id }
    }

    /// The server's log.
    pub fn log(&self) -> PathBuf {
        self.dir.join(format!("{}.pg.log", self.id))
    }

    fn record(&self) -> PathBuf {
        self.dir.join(format!("{}.{RECORD}", self.id))
    }

    /// The record, whether its server lives or not; `None` if there is none that makes sense.
    pub fn read(&self) -> Option<Instance> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.record())
            .ok()?;
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// The record of a server that lives.
    pub fn read_alive(&self) -> Option<Instance> {
        self.read().filter(|instance| instance.process.is_alive())
    }

    /// Writes the record; the caller holds the lock.
    pub fn write(&self, instance: &Instance) -> io::Result<()> {
        let new = self.dir.join(format!("{}.{RECORD}.new", self.id));
        remove_if_there(&new)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        serde_json::to_writer(&mut file, instance).map_err(io::Error::from)?;
        file.write_all(b"\n")?;
        // Not synced: after a power cut no server runs.
        std::fs::rename(&new, self.record())
    }

    /// Removes the record; the log stays. The caller holds the lock.
    pub fn remove_record(&self) -> io::Result<()> {
        remove_if_there(&self.record())
    }

    /// Removes everything, for a branch that is deleted.
    pub fn remove_all(&self) {
        let id = self.id;
        for name in ["pg.json", "pg.json.new", "pg.log", "pg.log.old", "pg.lock"] {
            // What stays is removed by gc.
            let _ = remove_if_there(&self.dir.join(format!("{id}.{name}")));
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample(process: ProcessId) -> Instance {
        Instance {
            process,
            port: 5433,
            socket_dir: "/s".into(),
            data_dir: "/d".into(),
            bin_dir: "/b".into(),
            user: "u".into(),
            database: "d".into(),
            since_ms: 1,
            mounted_here: true,
            settings: vec![Setting { name: "n".into(), value: "v".into(), guard: None }],
            removed_slots: vec![],
            wishes: Wishes { keep: vec!["archive".into()], ..Wishes::default() },
        }
    }

    #[test]
    fn records_outlive_servers_and_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_owned(), 3);
        assert_eq!(files.read(), None);
        let me = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        files.write(&sample(me.clone())).unwrap();
        assert_eq!(files.read_alive(), Some(sample(me.clone())));
        let dead = ProcessId { start_ticks: me.start_ticks + 1, ..me };
        files.write(&sample(dead.clone())).unwrap();
        assert_eq!(files.read(), Some(sample(dead)));
        assert_eq!(files.read_alive(), None);
        std::fs::write(dir.path().join("3.pg.json"), "{").unwrap();
        assert_eq!(files.read(), None);
        std::fs::write(files.log(), "x").unwrap();
        files.remove_record().unwrap();
        assert!(files.log().exists());
        files.remove_all();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
