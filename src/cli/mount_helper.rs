//! `mount -t fuse.cowfs BRANCH DIR` and lines of fstab: mount(8) runs `mount.fuse.cowfs` for them,
//! which is this program under another name.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// The name under which mount(8) looks for a helper.
const NAME: &str = "mount.fuse.cowfs";

/// Options that mean something to mount(8) or systemd, and nothing to us.
const FOR_OTHERS: [&str; 9] =
    ["auto", "noauto", "fail", "nofail", "_netdev", "user", "nouser", "users", "owner"];

/// The command line of `cowfs mount` for a helper's, or `args` as they are if this is not the
/// helper. A helper is called as `mount.fuse.cowfs BRANCH DIR [-sfnv] [-N NS] [-o OPTIONS] [-t TYPE]`
/// (mount(8), EXTERNAL HELPERS).
pub(super) fn translated(args: Vec<OsString>) -> Vec<OsString> {
    let called = args.first().map(Path::new).and_then(Path::file_name);
    if called != Some(OsStr::new(NAME)) {
        return args;
    }
    let (mut plain, mut options, mut fake) = (Vec::new(), Vec::new(), false);
    let mut rest = args.into_iter().skip(1);
    while let Some(arg) = rest.next() {
        match arg.to_str() {
            Some("-o") => options.extend(rest.next()),
            // Their values mean nothing here.
            Some("-t" | "-N") => drop(rest.next()),
            Some(flags) if flags.len() > 1 && flags.starts_with('-') => {
                fake |= flags.contains('f');
            }
            _ => plain.push(arg),
        }
    }
    if fake {
        // Everything but the mounting itself, which is nothing.
        return [NAME, "--version"].map(OsString::from).to_vec();
    }
    let mut command: Vec<OsString> = vec!["cowfs".into()];
    let (store, ours) = sorted(&options);
    if let Some(store) = store {
        command.extend(["--store".into(), store.into()]);
    }
    command.push("mount".into());
    command.extend(plain);
    if !ours.is_empty() {
        command.extend(["-o".into(), ours.join(",").into()]);
    }
    command
}

/// The store among the options, and those that `cowfs mount` is to look at.
fn sorted(lists: &[OsString]) -> (Option<String>, Vec<String>) {
    let (mut store, mut ours) = (None, Vec::new());
    let all = lists.iter().map(|list| list.to_string_lossy().into_owned()).collect::<Vec<_>>();
    for option in all.iter().flat_map(|list| list.split(',')).filter(|option| !option.is_empty()) {
        let for_others = FOR_OTHERS.contains(&option)
            || ["x-", "X-", "comment="].iter().any(|prefix| option.starts_with(prefix));
        match option.strip_prefix("store=") {
            Some(dir) => store = Some(dir.to_owned()),
            None if for_others => {}
            None => ours.push(option.to_owned()),
        }
    }
    (store, ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_helper_is_a_mount() {
        for (given, wanted) in [
            (
                "/sbin/mount.fuse.cowfs main /srv/main -o rw,store=/srv/cowfs,nofail,x-systemd.after=x,xattr",
                "cowfs --store /srv/cowfs mount main /srv/main -o rw,xattr",
            ),
            ("mount.fuse.cowfs main /m -n -t fuse.cowfs", "cowfs mount main /m"),
            ("mount.fuse.cowfs main /m -o ro -o store=/s", "cowfs --store /s mount main /m -o ro"),
            ("mount.fuse.cowfs -f main /m", "mount.fuse.cowfs --version"),
            ("cowfs mount main /m -o ro", "cowfs mount main /m -o ro"),
        ] {
            assert_eq!(translated(words(given)), words(wanted), "{given}");
        }
    }
}
