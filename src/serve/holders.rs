//! Which processes keep a mount in use.
//!
//! Everything is read from `/proc` by names and numbers. Nothing on the mount is touched or held,
//! so this works on a mount whose server is dead or hangs, and from the serving process itself.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::mountinfo::{self, MountEntry};

/// Names listed in a message; the rest is counted.
const NAMED_MAX: usize = 8;

/// One process that uses a mount.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its name, at most 15 bytes.
    pub command: String,
    /// How it uses the mount.
    pub uses: Vec<Use>,
}

/// How a process uses a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// Its working directory is there.
    WorkingDirectory,
    /// Its root directory is there.
    RootDirectory,
    /// Its program is there.
    Program,
    /// It has files open there.
    OpenFile,
    /// It has mapped a file from there.
    MappedFile,
    /// It listens on a socket there.
    Socket,
    /// It lives in a mount namespace that has a copy of the mount.
    MountNamespace,
}

impl Use {
    fn words(self) -> &'static str {
        match self {
            Use::WorkingDirectory => "working directory",
            Use::RootDirectory => "root directory",
            Use::Program => "program",
            Use::OpenFile => "open files",
            Use::MappedFile => "mapped files",
            Use::Socket => "listening socket",
            Use::MountNamespace => "a mount namespace with a copy of the mount",
        }
    }
}

/// All that keeps a mount in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Holders {
    /// Processes, by pid.
    pub processes: Vec<Holder>,
    /// Mounts inside the mount.
    pub mounts: Vec<PathBuf>,
    /// Loop devices that stand on a file of the mount.
    pub loop_devices: Vec<String>,
    /// Processes of other users that could not be looked into.
    pub unseen: usize,
}

impl Holders {
    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.mounts.is_empty() && self.loop_devices.is_empty()
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self
            .processes
            .iter()
            .map(|holder| {
                let uses: Vec<_> = holder.uses.iter().map(|used| used.words()).collect();
                format!("process {} {} ({})", holder.pid, holder.command, uses.join(", "))
            })
            .collect();
        parts.extend(self.mounts.iter().map(|path| format!("a mount at {}", path.display())));
        parts.extend(self.loop_devices.iter().map(|name| format!("loop device {name}")));
        let more = parts.len().saturating_sub(NAMED_MAX);
        parts.truncate(NAMED_MAX);
        if more > 0 {
            parts.push(format!("{more} more"));
        }
        if parts.is_empty() {
            parts.push(if self.unseen > 0 {
                format!("a process of another user ({} cannot be looked into)", self.unseen)
            } else {
                "somebody who cannot be seen from here".to_owned()
            });
        }
        f.write_str(&parts.join(", "))
    }
}

/// What identifies a mount in `/proc`.
pub(super) struct Target<'a> {
    pub mount_point: &'a Path,
    pub ids: HashSet<u64>,
    pub device: (u32, u32),
}

/// Finds what keeps `mount` (one of `entries`) in use; the calling process does not count.
pub fn find(entries: &[MountEntry], mount: &MountEntry) -> Holders {
    let ids = entries.iter().filter(|e| e.device == mount.device).map(|e| e.id).collect();
    let target = Target { mount_point: &mount.mount_point, ids, device: mount.device };
    let sockets = bound_sockets(target.mount_point);
    let mut holders = Holders {
        mounts: mountinfo::nested_in(entries, mount)
            .into_iter()
            .map(|entry| entry.mount_point.clone())
            .collect(),
        loop_devices: loop_devices(target.mount_point),
        ..Holders::default()
    };
    for pid in pids().filter(|&pid| pid != std::process::id()) {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        match uses_of(&dir, &target, &sockets) {
            Ok(uses) if uses.is_empty() => {}
            Ok(uses) => holders.processes.push(Holder { pid, command: command_of(&dir), uses }),
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => holders.unseen += 1,
            // It ended meanwhile.
            Err(_) => {}
        }
    }
    holders.processes.sort_by_key(|holder| holder.pid);
    holders
}

pub(super) fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

pub(super) fn command_of(dir: &Path) -> String {
    fs::read_to_string(dir.join("comm")).unwrap_or_default().trim_end().to_owned()
}

pub(super) fn uses_of(
    dir: &Path,
    target: &Target<'_>,
    sockets: &HashSet<OsString>,
) -> std::io::Result<Vec<Use>> {
    let mut uses = Vec::new();
    for (link, used) in
        [("cwd", Use::WorkingDirectory), ("root", Use::RootDirectory), ("exe", Use::Program)]
    {
        match fs::read_link(dir.join(link)) {
            Ok(path) if path.starts_with(target.mount_point) => uses.push(used),
            // A kernel thread has no program.
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return Err(e),
            _ => {}
        }
    }
    for descriptor in fs::read_dir(dir.join("fdinfo"))?.flatten() {
        if uses.contains(&Use::OpenFile) && (uses.contains(&Use::Socket) || sockets.is_empty()) {
            break;
        }
        if mount_id(&descriptor.path()).is_some_and(|id| target.ids.contains(&id)) {
            push_once(&mut uses, Use::OpenFile);
        } else if !sockets.is_empty()
            && fs::read_link(dir.join("fd").join(descriptor.file_name()))
                .is_ok_and(|path| sockets.contains(path.as_os_str()))
        {
            push_once(&mut uses, Use::Socket);
        }
    }
    if maps_device(&dir.join("maps"), target.device) && !uses.contains(&Use::Program) {
        uses.push(Use::MappedFile);
    }
    Ok(uses)
}

fn push_once(uses: &mut Vec<Use>, used: Use) {
    if !uses.contains(&used) {
        uses.push(used);
    }
}

fn mount_id(fdinfo: &Path) -> Option<u64> {
    let text = fs::read_to_string(fdinfo).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// Whether a line of a `maps` file names the device: `start-end perms offset major:minor ino path`.
fn maps_device(maps: &Path, device: (u32, u32)) -> bool {
    let Ok(file) = fs::File::open(maps) else { return false };
    let name = format!("{:02x}:{:02x}", device.0, device.1);
    BufReader::new(file)
        .split(b'\n')
        .map_while(Result::ok)
        .any(|line| line.split(|&b| b == b' ').nth(3) == Some(name.as_bytes()))
}

/// Sockets bound to a path below `mount_point`, as their descriptors are named: `socket:[inode]`.
fn bound_sockets(mount_point: &Path) -> HashSet<OsString> {
    let bytes = fs::read("/proc/net/unix").unwrap_or_default();
    bytes.split(|&byte| byte == b'\n').filter_map(|line| socket_below(line, mount_point)).collect()
}

// Num RefCount Protocol Flags Type St Inode Path
fn socket_below(line: &[u8], mount_point: &Path) -> Option<OsString> {
    let mut fields = line.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
    let inode = std::str::from_utf8(fields.nth(6)?).ok()?;
    let path = Path::new(std::ffi::OsStr::from_bytes(fields.next()?));
    path.starts_with(mount_point).then(|| OsString::from(format!("socket:[{inode}]")))
}

fn loop_devices(mount_point: &Path) -> Vec<String> {
    let blocks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    blocks
        .filter(|block| {
            fs::read_to_string(block.path().join("loop/backing_file"))
                .is_ok_and(|path| Path::new(path.trim_end()).starts_with(mount_point))
        })
        .map(|block| block.file_name().to_string_lossy().into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::{Child, Command, Stdio};

    struct Reaped(Child);
    impl Drop for Reaped {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// /proc is a mount of which we know who uses it: whoever we tell to.
    fn proc_mount() -> (Vec<MountEntry>, MountEntry) {
        let entries = mountinfo::read().unwrap();
        let mount = mountinfo::topmost_at(&entries, Path::new("/proc")).unwrap().clone();
        (entries, mount)
    }

    #[test]
    fn finds_directories_and_files() {
        use std::io::Read;
        let (entries, mount) = proc_mount();
        let spawn = |script: &str, dir: &str| {
            let mut child = Command::new("sh")
                .args(["-c", script])
                .current_dir(dir)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            Reaped(child)
        };
        let inside = spawn("printf x; read line", "/proc/self/task");
        let reader = spawn("exec 5</proc/uptime; printf x; read line", "/");
        let found = find(&entries, &mount);
        let uses = |child: &Reaped| {
            found.processes.iter().find(|h| h.pid == child.0.id()).map(|h| h.uses.clone())
        };
        assert_eq!(uses(&inside).unwrap(), [Use::WorkingDirectory]);
        assert_eq!(uses(&reader).unwrap(), [Use::OpenFile]);
        assert!(found.to_string().contains(&format!("process {} sh", inside.0.id())), "{found}");
        assert!(found.processes.iter().all(|h| h.pid != std::process::id()));
    }

    #[test]
    fn mapped_files_by_device() {
        // Our own program lies on some device.
        use std::os::unix::fs::MetadataExt;
        let device = fs::metadata("/proc/self/exe").unwrap().dev();
        let device = (nix::sys::stat::major(device) as u32, nix::sys::stat::minor(device) as u32);
        assert!(maps_device(Path::new("/proc/self/maps"), device));
        assert!(!maps_device(Path::new("/proc/self/maps"), (0, 999_999)));
    }

    #[test]
    fn socket_lines() {
        let below = |line: &[u8]| socket_below(line, Path::new("/mnt/b"));
        let line = b"ffff: 00000002 00000000 00010000 0001 01 12345 /mnt/b/.s.PGSQL.5432";
        assert_eq!(below(line), Some("socket:[12345]".into()));
        assert_eq!(below(b"ffff: 00000002 00000000 00010000 0001 01 12345 /mnt/bc/s"), None);
        assert_eq!(below(b"ffff: 00000002 00000000 00010000 0001 01 12345"), None);
        assert_eq!(below(b"Num       RefCount Protocol Flags    Type St Inode Path"), None);
    }

    #[test]
    fn long_lists_are_cut() {
        let holder = |pid| Holder { pid, command: "x".into(), uses: vec![Use::OpenFile] };
        let holders = Holders { processes: (1..=20).map(holder).collect(), ..Holders::default() };
        let text = holders.to_string();
        assert!(text.starts_with("process 1 x (open files), process 2 x"), "{text}");
        assert!(text.ends_with(", 12 more"), "{text}");
        let unseen = Holders { unseen: 3, ..Holders::default() };
        assert!(unseen.is_empty() && unseen.to_string().contains("3 cannot"), "{unseen}");
    }
}
