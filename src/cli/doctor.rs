//! `cowfs doctor`: what of this machine cowfs needs, whether it is there, and how to mend it.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use super::{host_fs, output};
use crate::catalog::Store;
use crate::fuse::ring;
use crate::postgres::locate::Binaries;
use crate::serve::Failure;
use crate::serve::detach::helper_is_installed;
use crate::serve::options::users_may_allow_other;
use crate::serve::status::{self, State};

/// Below this many bytes a store is about to be full.
const FREE_BYTES_WANTED: u64 = 1 << 30;
/// Descriptors that a process with one busy branch and its server can use.
const DESCRIPTORS_WANTED: u64 = 4096;
/// The first kernel with which everything was tested, and what the tests run on is newer.
const KERNEL_WANTED: (u32, u32) = (5, 15);

/// Arguments of `cowfs doctor`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The exit code is 1 if something is missing that cowfs cannot do without. Without a \
store, only the machine is looked at."
)]
pub(super) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    /// It works, but not for everything or not as well.
    Warning,
    /// cowfs cannot work.
    Missing,
}

#[derive(Debug, serde::Serialize)]
struct Finding {
    /// What was looked at.
    what: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do about it.
    mend: Option<String>,
}

fn finding(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { what, verdict: Verdict::Ok, found: found.into(), mend: None }
}

impl Finding {
    fn warning(self, mend: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Warning, mend: Some(mend.into()), ..self }
    }

    fn missing(self, mend: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Missing, mend: Some(mend.into()), ..self }
    }
}

pub(super) fn run(args: &DoctorArgs, dir: &Path) -> Result<u8, Failure> {
    let root = nix::unistd::geteuid().is_root();
    let mut findings = vec![
        device(),
        kernel(),
        io_uring(),
        helper(root),
        privileges(root),
        descriptors(),
        postgres(),
    ];
    findings.extend(store(dir));
    if args.json {
        output::print_json(&findings)?;
    } else {
        output::print(&table(&findings));
    }
    Ok(u8::from(findings.iter().any(|finding| finding.verdict == Verdict::Missing)))
}

fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { what, verdict, found, mend } in findings {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Missing => "MISSING",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{what:<width$}  {verdict:<7}  {found}");
        if let Some(mend) = mend {
            let _ = writeln!(text, "{:<width$}           -> {mend}", "");
        }
    }
    text
}

fn device() -> Finding {
    let path = "/dev/fuse";
    match File::options().read(true).write(true).open(path) {
        Ok(_) => finding("fuse device", path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            finding("fuse device", format!("{path} is missing")).missing(
                "load the module with `modprobe fuse`; in a container start it with --device \
                 /dev/fuse",
            )
        }
        Err(error) => finding("fuse device", format!("{path}: {error}"))
            .missing("run as root, or have the device opened to you (mode 0666 is usual)"),
    }
}

fn kernel() -> Finding {
    let Ok(name) = nix::sys::utsname::uname() else { return finding("kernel", "unknown") };
    let release = name.release().to_string_lossy().into_owned();
    let found = finding("kernel", format!("Linux {release}"));
    match version_of(&release) {
        Some(version) if version < KERNEL_WANTED => {
            let (major, minor) = KERNEL_WANTED;
            found.warning(format!("cowfs is tested with Linux {major}.{minor} and later"))
        }
        _ => found,
    }
}

/// The first two numbers of a release such as `6.1.0-13-amd64`.
fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Needed for `-o uring` only, so that its absence is no fault.
fn io_uring() -> Finding {
    let switch = Path::new(ring::ENABLED);
    let found = match (ring::available(), switch.exists()) {
        (true, _) => "usable (`cowfs mount -o uring`)".to_owned(),
        (false, true) => {
            format!("off (-o uring): root's mounts switch it on, or `echo Y > {}`", ring::ENABLED)
        }
        (false, false) => "the kernel has none for FUSE (-o uring)".to_owned(),
    };
    finding("io_uring", found)
}

fn helper(root: bool) -> Finding {
    match (helper_is_installed(), root) {
        (true, _) => finding("fusermount3", "installed"),
        (false, true) => finding("fusermount3", "not installed; root can do without"),
        (false, false) => finding("fusermount3", "not installed")
            .missing("install the package fuse3: ordinary users mount with its help"),
    }
}

fn privileges(root: bool) -> Finding {
    if root {
        return finding("user", "root: mounts for everybody, starts Postgres as its owner");
    }
    let uid = nix::unistd::geteuid();
    let found = finding("user", format!("user {uid}: mounts for this user"));
    if users_may_allow_other() {
        return found;
    }
    found.warning(
        "other users, and a Postgres that is run by one, cannot look into the mounts; root, or \
         `user_allow_other` in /etc/fuse.conf, changes that",
    )
}

fn descriptors() -> Finding {
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return finding("open files", "unknown");
    };
    let found = finding("open files", format!("at most {hard} per process"));
    if hard < DESCRIPTORS_WANTED {
        return found.warning(format!("raise the hard limit (ulimit -Hn) to {DESCRIPTORS_WANTED}"));
    }
    found
}

fn postgres() -> Finding {
    let all = Binaries::all();
    if all.is_empty() {
        return finding("Postgres", "no version found where distributions put it, nor in PATH")
            .warning("install it, or name its programs with --pg-bin; plain mounts need none");
    }
    let each = all.iter().map(|found| format!("{} ({})", found.major, found.dir.display()));
    finding("Postgres", each.collect::<Vec<_>>().join(", "))
}

fn store(dir: &Path) -> Vec<Finding> {
    let shown = dir.display();
    if !dir.exists() {
        return vec![
            finding("store", format!("there is none at {shown}"))
                .warning("`cowfs init` makes one; --store or COWFS_STORE name another"),
        ];
    }
    let store = match Store::open(dir) {
        Ok(store) => store,
        Err(error) => {
            let said = super::failure::of_store(&error);
            let mend = said.hint.unwrap_or_else(|| "see `cowfs check`".to_owned());
            return vec![finding("store", said.message).missing(mend)];
        }
    };
    vec![finding("store", shown.to_string()), filesystem(&store), room(&store), mounts(&store)]
}

fn filesystem(store: &Store) -> Finding {
    let name = host_fs::name(&store.root);
    let reflinks = host_fs::reflinks(&store.root);
    let with = if reflinks { "with reflinks" } else { "without reflinks: imports copy once" };
    let found = finding("filesystem", format!("{name}, {with}"));
    match host_fs::doubt(&name) {
        Some(doubt) => found.warning(doubt),
        None => found,
    }
}

fn room(store: &Store) -> Finding {
    let Ok(host) = statvfs(&store.root) else { return finding("free space", "unknown") };
    let free = host.blocks_available() * host.fragment_size();
    let found = finding("free space", output::bytes(free));
    if free < FREE_BYTES_WANTED {
        return found.warning("`cowfs du` shows who takes it, `cowfs gc --now` frees what it can");
    }
    found
}

fn mounts(store: &Store) -> Finding {
    let all = match status::all(store) {
        Ok(all) => all,
        Err(error) => return finding("mounts", failure_text(&error)).warning("try again as root"),
    };
    let dead: Vec<&str> = all
        .iter()
        .filter(|status| status.state == State::Dead)
        .map(|status| status.branch.as_str())
        .collect();
    let found = finding("mounts", format!("{} served", all.len() - dead.len()));
    if dead.is_empty() {
        return found;
    }
    let found = Finding { found: format!("{}, dead: {}", found.found, dead.join(", ")), ..found };
    found.warning("`cowfs unmount BRANCH` takes a dead mount away; mounting it again does as well")
}

fn failure_text(error: &crate::serve::ServeError) -> String {
    error.to_failure().message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_two_numbers() {
        assert_eq!(version_of("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version_of("5.15.0"), Some((5, 15)));
        assert_eq!(version_of("6.12-rc1"), Some((6, 12)));
        assert_eq!(version_of("gnu"), None);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_mend() {
        let text = table(&[finding("a", "fine"), finding("bb", "gone").missing("get it")]);
        assert_eq!(text, "a   ok       fine\nbb  MISSING  gone\n             -> get it\n");
    }
}
