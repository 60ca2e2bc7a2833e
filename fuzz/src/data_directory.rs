//! The files of a data directory that are read before Postgres does: they are somebody else's.

use super::with_scratch;
use arbitrary::{Arbitrary, Unstructured};
use cowfs::postgres::config::{self, Configuration};
use cowfs::postgres::{DataDirectory, postmaster, slots};

#[derive(Arbitrary, Debug)]
struct Files<'a> {
    version: &'a [u8],
    pid: &'a [u8],
    mark: &'a [u8],
    automatic: &'a [u8],
    configuration: &'a [u8],
}

/// One input.
pub fn run(data: &[u8]) {
    let Ok(files) = <Files<'_>>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    with_scratch(|dir| {
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).expect(name);
        write("PG_VERSION", files.version);
        write("postmaster.pid", files.pid);
        write("cowfs_branch", files.mark);
        write("postgresql.auto.conf", files.automatic);
        write("postgresql.conf", files.configuration);
        if let Ok(found) = DataDirectory::probe(dir) {
            assert!(found.control.is_err() && found.has_config);
            assert_ne!(found.running_pid, Some(0));
        }
        let _ = postmaster::running_in(dir);
        let _ = postmaster::status_of(dir, 1);
        let _ = slots::is_marked(dir, 1);
        let _ = config::uses_syncfs(dir);
        let _ = config::setting(dir, "port");
        let file = dir.join("postgresql.conf");
        let read = Configuration::of_server(&file, dir);
        assert_eq!(read, Configuration::of_server(&file, dir));
    });
}
