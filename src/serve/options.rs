//! Mount options as given with `-o`.

use crate::fs::FsOptions;

/// Options of all mounts that a user makes.
pub const OPTIONS_VARIABLE: &str = "COWFS_MOUNT_OPTIONS";

/// Options that the kernel takes as they are.
const KERNEL_OPTIONS: [&str; 8] =
    ["dev", "nodev", "suid", "nosuid", "exec", "noexec", "sync", "dirsync"];

/// Options that say what is so anyway.
const ALWAYS_ON: [&str; 4] = ["async", "default_permissions", "defaults", "noatime"];

/// The options and what they do, for people; every one that [`MountOptions::parse`] takes.
const EXPLAINED: [(&str, &str); 13] = [
    ("ro, rw", "read-only or not (rw)"),
    ("xattr", "keep extended attributes (user.*); costs a round trip on every write"),
    ("writethrough", "no write-back cache: a full disk is said by the write itself; slower writes"),
    ("uring, nouring", "take requests by io_uring, if the kernel can (6.14), or not (nouring)"),
    (
        "hostcache, nohostcache, hostcache=auto",
        "let the host's page cache keep a second copy of what is read of the base, or not; \
      by itself: while another branch of the store is mounted",
    ),
    (
        "readaround, noreadaround, readaround=auto",
        "where pages are read here and there, fetch the rest of their 256 KiB into memory, or not; by \
      itself: while an eighth of the memory is unused; needs CAP_DAC_READ_SEARCH and Linux 6.5",
    ),
    ("realtime", "serve by real-time threads, where that is permitted"),
    ("allow_other", "let other users in; root has it anyway, others need it in /etc/fuse.conf"),
    ("dev, nodev", "device nodes work or not; to the kernel"),
    ("suid, nosuid", "set-user-id bits work or not; to the kernel"),
    ("exec, noexec", "programs can be run or not; to the kernel"),
    ("sync, dirsync", "every change, or every change of names, is synchronous; to the kernel"),
    ("async, default_permissions, defaults, noatime", "accepted; so it is anyway"),
];

fn known() -> impl Iterator<Item = &'static str> {
    EXPLAINED.iter().flat_map(|(names, _)| names.split(", "))
}

/// All options with what they do, for a help text.
pub fn explained() -> String {
    let lines = EXPLAINED.iter().map(|(names, effect)| match names.len() {
        0..=14 => format!("  {names:14}  {effect}\n"),
        _ => format!("  {names}\n  {:14}  {effect}\n", ""),
    });
    lines.collect()
}

/// A mount option that is not known.
#[derive(Debug, thiserror::Error)]
#[error("unknown mount option {option:?}")]
pub struct OptionError {
    /// As given.
    pub option: String,
}

impl OptionError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        format!("known are {}", known().collect::<Vec<_>>().join(", "))
    }
}

/// What `-o` asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro`.
    pub read_only: bool,
    /// `xattr`: store extended attributes.
    pub xattr: bool,
    /// `allow_other`: asked for, so that its absence is an error; root has it anyway.
    pub allow_other: bool,
    /// `writethrough`: no write-back cache.
    pub write_through: bool,
    /// `uring`: requests come by io_uring, where the kernel allows it.
    pub rings: bool,
    /// `hostcache` or `nohostcache`: whether the host's page cache keeps what is read of sealed layers;
    /// `None` while another branch of the store is mounted.
    pub host_cache: Option<bool>,
    /// `readaround` or `noreadaround`: whether pages around those that are read here and there are
    /// fetched; `None` while memory is to spare.
    pub read_around: Option<bool>,
    /// `realtime`: requests are served by real-time threads, where that is permitted.
    pub real_time: bool,
    /// For the kernel, in the order given.
    pub kernel: Vec<String>,
}

impl MountOptions {
    /// Parses the values of all `-o` options, each a comma-separated list; later ones win.
    pub fn parse<S: AsRef<str>>(lists: &[S]) -> Result<MountOptions, OptionError> {
        MountOptions::default().and(lists)
    }

    /// These options with those of further lists, which win.
    pub fn and<S: AsRef<str>>(self, lists: &[S]) -> Result<MountOptions, OptionError> {
        let mut options = self;
        let all = lists.iter().flat_map(|list| list.as_ref().split(','));
        for option in all.map(str::trim).filter(|option| !option.is_empty()) {
            match option {
                "ro" => options.read_only = true,
                "rw" => options.read_only = false,
                "xattr" => options.xattr = true,
                "writethrough" => options.write_through = true,
                "uring" => options.rings = true,
                "nouring" => options.rings = false,
                "hostcache=auto" => options.host_cache = None,
                "hostcache" => options.host_cache = Some(true),
                "nohostcache" => options.host_cache = Some(false),
                "readaround=auto" => options.read_around = None,
                "readaround" => options.read_around = Some(true),
                "noreadaround" => options.read_around = Some(false),
                "realtime" => options.real_time = true,
                "allow_other" => options.allow_other = true,
                given if ALWAYS_ON.contains(&given) => {}
                known if KERNEL_OPTIONS.contains(&known) => options.add_kernel(known),
                unknown => return Err(OptionError { option: unknown.to_owned() }),
            }
        }
        Ok(options)
    }

    /// What of it is for the filesystem itself.
    pub fn of_fs(&self) -> FsOptions {
        FsOptions { xattr: self.xattr, write_through: self.write_through }
    }

    fn add_kernel(&mut self, option: &str) {
        // `dev` and `nodev` exclude each other: the later one replaces the earlier.
        let subject = option.strip_prefix("no").unwrap_or(option);
        self.kernel.retain(|other| other.strip_prefix("no").unwrap_or(other) != subject);
        self.kernel.push(option.to_owned());
    }
}

/// Whether the administrator lets ordinary users open their mounts to others.
pub fn users_may_allow_other() -> bool {
    std::fs::read_to_string("/etc/fuse.conf").is_ok_and(|text| allows_other(&text))
}

fn allows_other(fuse_conf: &str) -> bool {
    fuse_conf.lines().any(|line| line.trim() == "user_allow_other")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lists_are_joined_and_later_ones_win() {
        let options = MountOptions::parse(&["noatime,dev,noexec", "nodev, xattr,,ro"]).unwrap();
        assert!(!options.of_fs().write_through);
        assert!(options.xattr && options.read_only && !options.allow_other);
        assert_eq!(options.kernel, ["noexec", "nodev"]);
        let options = MountOptions::parse(&["ro,rw,sync,async,allow_other,realtime"]).unwrap();
        assert!(!options.read_only && options.allow_other && options.real_time);
        assert_eq!(options.kernel, ["sync"]);
        let usual = MountOptions::parse(&["uring,xattr"]).unwrap();
        assert!(usual.rings && usual.xattr);
        assert!(!usual.and(&["nouring"]).unwrap().rings);
    }

    #[test]
    fn unknown_options_are_named() {
        let error = MountOptions::parse(&["noatime,turbo=9"]).unwrap_err();
        assert_eq!(error.to_string(), "unknown mount option \"turbo=9\"");
        assert!(error.hint().contains("xattr"));
    }

    #[test]
    fn what_is_explained_is_what_is_known() {
        for option in known() {
            MountOptions::parse(&[option]).unwrap();
        }
        for option in KERNEL_OPTIONS.iter().chain(&ALWAYS_ON) {
            assert!(known().any(|name| name == *option), "{option}");
        }
        let help = explained();
        let hint = OptionError { option: String::new() }.hint();
        for option in known() {
            assert!(help.contains(option) && hint.contains(option), "{option}");
        }
    }

    #[test]
    fn fuse_conf() {
        assert!(allows_other("mount_max = 5\n  user_allow_other \n"));
        assert!(!allows_other("#user_allow_other\n# user_allow_other\n"));
    }
}
