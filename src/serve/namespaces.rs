//! Copies of a mount in other mount namespaces: those of containers and sandboxed services.
//!
//! What is unmounted in one namespace stays mounted in the others, unless they receive the event;
//! and the serving process lives until the last copy is gone.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::holders::{self, Holder, Holders, Target, Use};
use super::mountinfo::{self, MountEntry};

/// A mount namespace, other than the caller's, in which the filesystem is mounted.
struct Copy {
    mounts: Vec<MountEntry>,
    /// Processes that live there; at least one.
    pids: Vec<u32>,
}

/// Finds the copies of the filesystem `device`, and how many processes could not be looked into.
fn copies_of(device: (u32, u32)) -> (Vec<Copy>, usize) {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt"));
    let own = namespace("self").ok();
    let (mut inhabitants, mut unseen) = (HashMap::<PathBuf, Vec<u32>>::new(), 0);
    for pid in holders::pids() {
        match namespace(&pid.to_string()) {
            Ok(name) if Some(&name) == own.as_ref() => {}
            Ok(name) => inhabitants.entry(name).or_default().push(pid),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => unseen += 1,
            // It ended meanwhile.
            Err(_) => {}
        }
    }
    let copy = |pids: Vec<u32>| {
        let mut mounts = pids.iter().find_map(|pid| mountinfo::read_of(&pid.to_string()).ok())?;
        mounts.retain(|mount| mount.device == device);
        (!mounts.is_empty()).then_some(Copy { mounts, pids })
    };
    (inhabitants.into_values().filter_map(copy).collect(), unseen)
}

fn holder(pid: u32, uses: Vec<Use>) -> Holder {
    Holder { pid, command: holders::command_of(Path::new(&format!("/proc/{pid}"))), uses }
}

/// Processes of other mount namespaces that use the filesystem `device`, for example Postgres in
/// a container. To unmount it here does not disturb them, and would not end what serves them.
pub fn users_of(device: (u32, u32)) -> Holders {
    let (copies, unseen) = copies_of(device);
    let mut found = Holders { unseen, ..Holders::default() };
    for copy in &copies {
        let ids: HashSet<u64> = copy.mounts.iter().map(|mount| mount.id).collect();
        // A container sees the mount under a name of its own.
        for mount_point in copy.mounts.iter().map(|mount| mount.mount_point.as_path()) {
            let target = Target { mount_point, ids: ids.clone(), device };
            let uses = |pid: u32| {
                let dir = PathBuf::from(format!("/proc/{pid}"));
                holders::uses_of(&dir, &target, &HashSet::new()).unwrap_or_default()
            };
            let using = copy.pids.iter().map(|&pid| (pid, uses(pid)));
            let known = |pid| found.processes.iter().any(|holder| holder.pid == pid);
            let new: Vec<Holder> = using
                .filter(|(pid, uses)| !uses.is_empty() && !known(*pid))
                .map(|(pid, uses)| holder(pid, uses))
                .collect();
            found.processes.extend(new);
        }
    }
    found.processes.sort_by_key(|holder| holder.pid);
    found
}

/// One process of each other mount namespace in which the filesystem `device` is mounted, used
/// there or not.
pub fn with_copies(device: (u32, u32)) -> Holders {
    let (copies, unseen) = copies_of(device);
    let first = |copy: Copy| copy.pids.into_iter().min();
    let mut pids: Vec<u32> = copies.into_iter().filter_map(first).collect();
    pids.sort_unstable();
    let processes = pids.into_iter().map(|pid| holder(pid, vec![Use::MountNamespace])).collect();
    Holders { processes, unseen, ..Holders::default() }
}
