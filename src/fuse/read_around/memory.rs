//! Whether there is memory that nobody uses for anything, not even for caches.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Memory is to spare while one part in so many is unused.
const UNUSED_PART: u64 = 8;
/// How long an answer is good for.
const GOOD_FOR: Duration = Duration::from_millis(100);
/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// A limit with the files that say what is allowed and what is in use, caches included.
struct Limit {
    max: PathBuf,
    used: PathBuf,
}

/// Knows the limits that this process lives under: those of its control groups, to which the pages that
/// it has the kernel read are charged, and the machine's memory.
pub struct Memory {
    limits: Vec<Limit>,
    last: Option<(Instant, bool)>,
}

impl Memory {
    /// Of this process.
    pub fn new() -> Memory {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Memory { limits: limits(&groups, Path::new(CGROUPS)), last: None }
    }

    /// Whether there is some to spare. As of a moment ago.
    pub fn is_to_spare(&mut self) -> bool {
        if let Some((asked, answer)) = self.last
            && asked.elapsed() < GOOD_FOR
        {
            return answer;
        }
        let machine = nix::sys::sysinfo::sysinfo()
            .is_ok_and(|memory| is_enough(memory.ram_unused(), memory.ram_total()));
        let answer = machine && self.limits.iter().all(Limit::leaves_enough);
        self.last = Some((Instant::now(), answer));
        answer
    }
}

fn is_enough(unused: u64, all: u64) -> bool {
    unused >= all / UNUSED_PART
}

impl Limit {
    fn leaves_enough(&self) -> bool {
        let number = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        // "max", or no such file: no limit.
        let (Some(max), Some(used)) = (number(&self.max), number(&self.used)) else { return true };
        is_enough(max.saturating_sub(used), max)
    }
}

/// The memory limits of the groups that `/proc/self/cgroup` names, and of those above them; cgroups(7).
fn limits(groups: &str, root: &Path) -> Vec<Limit> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (below, max, used) = if controllers.is_empty() {
            (root.to_owned(), "memory.max", "memory.current")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            continue;
        };
        let mut dir = below.join(group.trim_start_matches('/'));
        // A group outside of what is mounted here is shown as a path with `..`; its limits are not.
        while dir.starts_with(&below) {
            found.push(Limit { max: dir.join(max), used: dir.join(used) });
            dir.pop();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn leave_enough(root: &Path, groups: &str) -> bool {
        limits(groups, root).iter().all(Limit::leaves_enough)
    }

    #[test]
    fn limits_of_all_groups_above_count() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let own = "0::/a/b\n";
        assert!(leave_enough(root.path(), own), "nothing is there, nothing is limited");
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "1000\n");
        write("a/memory.max", "8000\n");
        write("a/memory.current", "7000\n");
        assert!(leave_enough(root.path(), own));
        write("a/memory.current", "7001\n");
        assert!(!leave_enough(root.path(), own));
        assert!(leave_enough(root.path(), "0::/c\n"));
    }

    #[test]
    fn the_older_kind_of_groups() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("memory/x");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("memory.limit_in_bytes"), "800\n").unwrap();
        std::fs::write(dir.join("memory.usage_in_bytes"), "750\n").unwrap();
        let groups = "5:cpu,cpuacct:/y\n4:memory:/x\n0::/\n";
        assert!(!leave_enough(root.path(), groups));
        assert!(leave_enough(root.path(), "4:memory:/y\n"));
        assert!(leave_enough(root.path(), "garbage\n::\n"));
    }

    #[test]
    fn an_answer_is_asked_for_once_in_a_while() {
        let mut memory = Memory::new();
        let answer = memory.is_to_spare();
        assert_eq!(memory.last.unwrap().1, answer);
        let asked = memory.last.unwrap().0;
        assert_eq!(memory.is_to_spare(), answer);
        assert_eq!(memory.last.unwrap().0, asked);
    }
}
