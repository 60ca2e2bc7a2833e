//! What can be wrong around a command: a read-only or full disk, missing rights, no FUSE, damage,
//! the same command twenty times at once, SIGKILL in the middle. Each must say what is wrong, exit
//! with the right code, and leave a store that `cowfs check` finds sound.
//!
//! Bad arguments are attacked in `cli_offline.rs`, `cli_gc.rs` and `import_cli.rs`, mounts in
//! `serve.rs`. Needs root (and /dev/fuse where something is mounted); says so and passes otherwise.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "a part of what the import tests share")]
mod import_support;
#[macro_use]
mod mount_support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use mount_support::{Said, Scene, program, said};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Runs `cowfs ARGS` after `setup`, a shell script, in a mount namespace of its own; `None` (with a
/// word) where that cannot be had.
fn elsewhere(scene: &Scene, setup: &str, args: &[&str]) -> Option<Said> {
    // What others have mounted is not to be kept mounted by this copy of it.
    let others = "grep ' - fuse.cowfs ' /proc/self/mountinfo | cut -d ' ' -f 5 | grep -v \"^$OWN\" \
        | xargs -r -n 1 umount -l";
    let script = format!("{others}; {{ {setup}; }} || {{ echo NO_SETUP; exit 9; }}; exec \"$@\"");
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(program())
        .args(args)
        .env("COWFS_STORE", &scene.store)
        .env("STORE", &scene.store)
        .env("OWN", scene.temp.path().canonicalize().unwrap())
        .env_remove("COWFS_LOG")
        .stdin(Stdio::null())
        .output();
    let said = said(&output.unwrap());
    if said.err.contains("unshare failed") || said.out.contains("NO_SETUP") {
        println!("skipped: no mount namespace of its own here: {}{}", said.out, said.err);
        return None;
    }
    Some(said)
}

fn sound(scene: &Scene) {
    let verdict = scene.run(&["check"]).ok();
    assert!(verdict.starts_with("sound"), "{verdict}");
}

/// A tree to be imported.
fn tree(scene: &Scene, files: usize, bytes: usize) -> PathBuf {
    let tree = scene.temp.path().canonicalize().unwrap().join("tree");
    fs::create_dir(&tree).unwrap();
    for n in 0..files {
        fs::write(tree.join(format!("file-{n}")), vec![n as u8 + 1; bytes]).unwrap();
    }
    tree
}

#[track_caller]
fn says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "no {word:?} in: {error}");
    }
    assert!(error.starts_with("Error: ") || error.contains("\nError: "), "{error}");
    assert!(!error.contains("panicked"), "{error}");
}

#[test]
fn mount_a_store_on_a_read_only_disk() {
    let scene = scene!();
    let tree = tree(&scene, 1, 10);
    let (tree, dir) = (tree.to_str().unwrap(), scene.dir());
    let read_only = "mount --bind \"$STORE\" \"$STORE\" && mount -o remount,bind,ro \"$STORE\"";
    let commands: [&[&str]; 8] = [
        &["branch", "create", "x", "--empty"],
        &["branch", "create", "x", "--from", "main"],
        &["branch", "rename", "main", "x"],
        &["branch", "delete", "main"],
        &["import", tree, "--any", "--as", "x"],
        &["mount", "main", dir],
        &["gc"],
        &["init"],
    ];
    for command in commands {
        let Some(said) = elsewhere(&scene, read_only, command) else { return };
        let error = said.fails(1);
        if command == ["init"] {
            says(&error, &["is a cowfs store already"]);
        } else {
            says(&error, &["Hint: the store must be writable"]);
            assert!(error.to_lowercase().replace('-', "").contains("readonly"), "{error}");
        }
    }
    sound(&scene);
    assert!(scene.run(&["branch", "list"]).ok().contains("main"));
}

#[test]
fn mount_without_permission() {
    let scene = scene!();
    let tree = tree(&scene, 1, 10);
    fs::set_permissions(scene.temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = scene.temp.path().join("cowfs");
    fs::copy(program(), &copy).unwrap();
    let commands: [&[&str]; 5] = [
        &["branch", "list"],
        &["branch", "create", "x", "--from", "main"],
        &["import", tree.to_str().unwrap(), "--any", "--as", "x"],
        &["mount", "main", scene.dir()],
        &["check"],
    ];
    let as_nobody = |store: &Path, command: &[&str]| {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
        said(&setpriv.args(command).env("COWFS_STORE", store).output().unwrap())
    };
    for command in commands {
        let error = as_nobody(&scene.store, command).fails(1);
        says(&error, &["ermission denied", scene.store.to_str().unwrap()]);
    }
    let forbidden = scene.temp.path().join("of-root");
    fs::create_dir(&forbidden).unwrap();
    says(&as_nobody(&forbidden.join("new"), &["init"]).fails(1), &["ermission denied", "new"]);
    assert!(!forbidden.join("new").exists());
    sound(&scene);
}

#[test]
fn mount_where_fuse_is_missing() {
    let scene = scene!();
    let args = ["mount", "main", scene.dir()];
    // Not a device at all, and none in /dev.
    let broken = "mount --bind /dev/null /dev/fuse";
    let Some(said) = elsewhere(&scene, broken, &args) else { return };
    says(&said.fails(1), &["mounting on", scene.dir()]);
    let empty = "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9";
    let Some(said) = elsewhere(&scene, empty, &args) else { return };
    says(&said.fails(1), &["mounting on", "Hint: /dev/fuse is missing: modprobe fuse"]);
    // Everything that needs no mount works, and the branch is as free as before.
    let Some(said) = elsewhere(&scene, empty, &["branch", "create", "x", "--from", "main"]) else {
        return;
    };
    said.ok();
    assert_eq!(scene.status("main")["state"], "not_mounted");
    sound(&scene);
    scene.mount();
}

/// Writes to a file until that is refused; returns how it was.
fn fill(path: &Path) -> std::io::Error {
    let mut file = fs::File::create(path).unwrap();
    let block = vec![7; 65536];
    loop {
        let written = file.write_all(&block).and_then(|()| file.sync_data());
        if let Err(error) = written {
            return error;
        }
    }
}

#[test]
fn mount_what_cannot_be_printed_is_not_a_success() {
    let scene = scene!();
    for args in [&["branch", "list"][..], &["branch", "list", "--json"], &["status", "--json"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = scene.command(args).stdout(full).output().unwrap();
        let said = said(&output);
        says(&said.fails(1), &["cannot write to the standard output", "No space left"]);
    }
}

#[test]
fn mount_doubts_about_the_disk_are_said() {
    let Some(scene) = Scene::on_a_disk_of(16 << 20) else { return };
    let dir = scene.temp.path().join("small/another");
    let out = scene.run(&["init", "--store", dir.to_str().unwrap()]).ok();
    assert!(out.contains("does not survive a reboot"), "{out}");
}

/// The kernel forgets a page that could not be written back as soon as it has told one fsync.
#[test]
fn mount_a_lost_write_stays_lost_until_it_is_written_again() {
    let Some(scene) = Scene::on_a_disk_of(48 << 20) else { return };
    scene.mount();
    let path = scene.dir.join("file");
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    let mib: Vec<u8> = (0..1 << 20).map(|n| (n % 251) as u8 + 1).collect();
    let write = |at: u64| file.write_all_at(&mib, at << 20);
    for at in 0..80 {
        // Once the kernel has begun to write back, a write may meet the full disk itself.
        let _ = write(at);
    }
    let size = file.metadata().unwrap().len();
    assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    for _ in 0..2 {
        assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
        let again = fs::File::open(&path).unwrap();
        assert_eq!(again.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
    }
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let (mut page, mut lost) = (vec![0; 4096], 0);
    for at in (0..size).step_by(4096) {
        match file.read_exact_at(&mut page, at) {
            Ok(()) => {
                let begin = (at % (1 << 20)) as usize;
                assert!(page == mib[begin..begin + 4096], "byte {at} is not what was written");
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
                lost += 4096;
            }
        }
    }
    assert!(lost >= 20 << 20, "{lost} bytes of {size} were lost");
    // Others go on.
    fs::File::open(&scene.dir).unwrap().sync_all().unwrap();
    // Written again where there is room, or cut off, it is whole.
    file.set_len(8 << 20).unwrap();
    (0..8).for_each(|at| write(at).unwrap());
    file.sync_all().unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let whole = mib.repeat(8);
    assert!(fs::read(&path).unwrap() == whole);
    drop(file);
    scene.run(&["unmount", "main"]).ok();
    scene.mount();
    assert!(fs::read(&path).unwrap() == whole);
    scene.run(&["unmount", "main"]).ok();
    sound(&scene);
}

#[test]
fn mount_on_a_full_disk() {
    let Some(scene) = Scene::on_a_disk_of(48 << 20) else { return };
    let tree = tree(&scene, 8, 16 << 20);
    scene.run(&["branch", "create", "doomed", "--from", "main"]).ok();
    scene.mount();
    fs::write(scene.dir.join("kept"), vec![3; 1 << 20]).unwrap();
    fs::File::open(scene.dir.join("kept")).unwrap().sync_all().unwrap();
    // A source that is too large leaves nothing behind.
    let import = ["import", tree.to_str().unwrap(), "--any", "--as", "large"];
    let error = scene.run(&import).fails(1);
    says(&error, &["No space left", "writing", "Hint: the disk below the store is full"]);
    assert_eq!(scene.run(&["branch", "show", "large"]).code, 1);
    sound(&scene);
    assert_eq!(fill(&scene.dir.join("filler")).raw_os_error(), Some(libc::ENOSPC));
    let beside = scene.temp.path().join("small/beside");
    assert_eq!(fill(&beside).raw_os_error(), Some(libc::ENOSPC));
    for args in [
        &["branch", "create", "x", "--from", "main"][..],
        &["branch", "create", "y", "--empty"],
        &["branch", "rename", "doomed", "z"],
        &["import", tree.to_str().unwrap(), "--any", "--as", "large"],
    ] {
        let said = scene.run(args);
        if said.code != 0 {
            says(&said.fails(1), &["full", "Hint: the disk below the store is full"]);
        }
    }
    sound(&scene);
    // What makes room must work without any.
    let doomed = if scene.run(&["branch", "show", "z"]).code == 0 { "z" } else { "doomed" };
    scene.run(&["branch", "delete", doomed, "--purge"]).ok();
    scene.run(&["gc"]).ok();
    let kept = || fs::read(scene.dir.join("kept")).unwrap() == vec![3; 1 << 20];
    assert!(kept());
    fs::remove_file(&beside).unwrap();
    fs::remove_file(scene.dir.join("filler")).unwrap();
    // What was removed is freed when its removal is durable, a second later at most.
    let begun = std::time::Instant::now();
    let goes_on = || {
        fs::write(scene.dir.join("after"), "goes on").is_ok()
            && scene.run(&["branch", "create", "later", "--from", "main"]).code == 0
    };
    while !goes_on() {
        assert!(begun.elapsed() < mount_support::PATIENCE, "still full");
        std::thread::sleep(Duration::from_millis(50));
    }
    scene.run(&["unmount", "main"]).ok();
    sound(&scene);
    scene.mount();
    assert!(kept());
}

/// Flips one bit in the middle of a file.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// The directory of a branch's layer, the newest first.
fn layer(scene: &Scene, branch: &str, at: usize) -> PathBuf {
    let shown = scene.run(&["branch", "show", branch, "--json"]).ok();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    scene.store.join("layers").join(shown["layers"][at]["id"].as_str().unwrap())
}

#[test]
fn mount_over_damage_exits_with_3_and_names_the_file() {
    let scene = scene!();
    let tree = tree(&scene, 3, 10_000);
    scene.run(&["import", tree.to_str().unwrap(), "--any", "--as", "old"]).ok();
    scene.run(&["mount", "old", scene.dir()]).ok();
    fs::write(scene.dir.join("new"), "new").unwrap();
    scene.run(&["unmount", "old"]).ok();
    let (journal, index) =
        (layer(&scene, "old", 0).join("journal"), layer(&scene, "old", 1).join("index"));
    for (file, at) in [(&journal, 3), (&index, 3)] {
        flip(file, at);
        let name = file.to_str().unwrap();
        says(&scene.run(&["mount", "old", scene.dir()]).fails(3), &[name, "Hint: `cowfs check`"]);
        let checked = scene.run(&["check"]);
        assert!(checked.code == 3 && checked.out.contains(name), "{}", checked.out);
        let fork = ["branch", "create", "x", "--from", "old"];
        if file == &journal {
            says(&scene.run(&fork).fails(3), &[name, "Hint: `cowfs check`"]);
        }
        // Another branch is not concerned.
        scene.mount();
        scene.run(&["unmount", "main"]).ok();
        flip(file, at);
    }
    for at in [0, 1] {
        let (dir, away) = (layer(&scene, "old", at), scene.temp.path().join("away"));
        fs::rename(&dir, &away).unwrap();
        let id = dir.file_name().unwrap().to_str().unwrap();
        says(&scene.run(&["mount", "old", scene.dir()]).fails(3), &[id, "missing", "Hint: "]);
        assert_eq!(scene.run(&["check"]).code, 3);
        fs::rename(&away, &dir).unwrap();
    }
    sound(&scene);
    scene.run(&["mount", "old", scene.dir()]).ok();
    assert_eq!(fs::read(scene.dir.join("new")).unwrap(), b"new");
}

#[test]
fn mount_with_a_damaged_catalog() {
    let scene = scene!();
    let catalog = scene.store.join("catalog.sqlite");
    let good = fs::read(&catalog).unwrap();
    let log = fs::read(scene.store.join("catalog.sqlite-wal")).unwrap_or_default();
    let commands: [&[&str]; 6] = [
        &["branch", "list"],
        &["branch", "create", "x", "--from", "main"],
        &["mount", "main", scene.dir()],
        &["status"],
        &["gc"],
        &["check"],
    ];
    let try_all = |what: &str| {
        for command in commands {
            let error = scene.run(command).fails(3);
            says(&error, &["Hint: "]);
            assert!(error.contains("catalog"), "{what}, {command:?}: {error}");
        }
    };
    let without_log = || {
        let _ = fs::remove_file(scene.store.join("catalog.sqlite-wal"));
        let _ = fs::remove_file(scene.store.join("catalog.sqlite-shm"));
    };
    without_log();
    fs::write(&catalog, "something else entirely, and long enough to be looked at closely")
        .unwrap();
    try_all("text");
    fs::write(&catalog, "").unwrap();
    try_all("empty");
    fs::remove_file(&catalog).unwrap();
    try_all("missing");
    fs::write(&catalog, &good).unwrap();
    fs::write(scene.store.join("catalog.sqlite-wal"), &log).unwrap();
    sound(&scene);
}

#[test]
fn mount_a_branch_and_delete_it() {
    let scene = scene!();
    scene.run(&["branch", "create", "child", "--from", "main"]).ok();
    scene.mount();
    fs::write(scene.dir.join("file"), "x").unwrap();
    let error = scene.run(&["branch", "delete", "main"]).fails(1);
    says(&error, &["branch main is mounted", "cowfs unmount main", "--force"]);
    assert_eq!(scene.status("main")["state"], "mounted");
    assert_eq!(fs::read(scene.dir.join("file")).unwrap(), b"x");
    scene.run(&["branch", "delete", "main", "--force", "--purge"]).ok();
    assert!(scene.mounts().is_empty());
    says(&scene.run(&["mount", "main", scene.dir()]).fails(1), &["there is no branch main"]);
    assert!(scene.run(&["branch", "list"]).ok().contains("\nchild "));
    scene.run(&["gc"]).ok();
    sound(&scene);
}

/// Starts all at once; returns how many succeeded, and what the others said.
fn race(scene: &Scene, count: usize, args: &[&str]) -> (usize, Vec<String>) {
    let start = |_| {
        let mut command = scene.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let begun: Vec<_> = (0..count).map(start).collect();
    let ends = begun.into_iter().map(|child| said(&child.wait_with_output().unwrap()));
    let (won, lost): (Vec<_>, Vec<_>) = ends.partition(|said| said.code == 0);
    (won.len(), lost.into_iter().map(|said| said.fails(1)).collect())
}

#[test]
fn mount_and_create_the_same_name_twenty_times_at_once() {
    let scene = scene!();
    let tree = tree(&scene, 2, 100);
    let attempt = |name: &str, args: &[&str]| {
        let (won, lost) = race(&scene, 20, args);
        assert_eq!(won, 1, "{name}: {lost:?}");
        for error in lost {
            says(&error, &[&format!("branch {name} exists already"), "Hint: "]);
        }
    };
    attempt("empty", &["branch", "create", "empty", "--empty"]);
    attempt("unmounted", &["branch", "create", "unmounted", "--from", "main"]);
    let tree = tree.to_str().unwrap();
    attempt("imported", &["import", tree, "--any", "--as", "imported"]);
    scene.mount();
    fs::write(scene.dir.join("file"), "x").unwrap();
    attempt("mounted", &["branch", "create", "mounted", "--from", "main"]);
    let (won, lost) =
        race(&scene, 20, &["branch", "create", "m2", "--from", "main", "--if-not-exists"]);
    assert_eq!(won, 20, "{lost:?}");
    let (won, _) = race(&scene, 20, &["branch", "delete", "unmounted", "--purge"]);
    assert_eq!(won, 1);
    let list = scene.run(&["branch", "list", "--json"]).ok();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 5, "{list}");
    scene.run(&["unmount", "main"]).ok();
    // What the losers had begun is no branch's, and goes.
    scene.run(&["gc", "--now"]).ok();
    let layers = fs::read_dir(scene.store.join("layers")).unwrap().count();
    let check = scene.run(&["check", "--json"]).ok();
    let check: serde_json::Value = serde_json::from_str(&check).unwrap();
    assert!(layers as u64 <= check["layers"].as_u64().unwrap(), "{layers} directories, {check}");
    assert_eq!(check["unreachable_layers"], 0, "{check}");
    sound(&scene);
}

/// Runs `args` and kills it after `delay`; true if that came before its end.
fn killed_after(scene: &Scene, args: &[&str], delay: Duration) -> bool {
    let mut command = scene.command(args);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(delay);
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

#[test]
fn mount_after_commands_were_killed_halfway() {
    let scene = scene!();
    let tree = tree(&scene, 40, 20_000);
    let tree = tree.to_str().unwrap();
    scene.mount();
    fs::write(scene.dir.join("file"), "kept").unwrap();
    scene.run(&["unmount", "main"]).ok();
    let mut killed = [0; 5];
    for round in 0..14 {
        let delay = Duration::from_micros(300 * round * round);
        let name = format!("b{round}");
        let again = |args: &[&str]| scene.run(args);
        // Import: not there, or whole.
        let import = ["import", tree, "--any", "--as", &name];
        killed[0] += usize::from(killed_after(&scene, &import, delay));
        sound(&scene);
        if again(&["branch", "show", &name]).code != 0 {
            again(&import).ok();
        }
        // Fork: not there, or whole, and its lock is free.
        let child = format!("{name}/child");
        let fork = ["branch", "create", &child, "--from", &name];
        killed[1] += usize::from(killed_after(&scene, &fork, delay / 4));
        sound(&scene);
        again(&["branch", "create", &child, "--from", &name, "--if-not-exists"]).ok();
        killed[2] +=
            usize::from(killed_after(&scene, &["branch", "delete", &name, "--purge"], delay / 4));
        sound(&scene);
        if again(&["branch", "show", &name]).code == 0 {
            again(&["branch", "delete", &name, "--purge"]).ok();
        }
        again(&["branch", "delete", &child, "--purge"]).ok();
        killed[3] += usize::from(killed_after(&scene, &["gc", "--now"], delay));
        sound(&scene);
        killed[4] += usize::from(killed_after(&scene, &["gc"], delay / 2));
        sound(&scene);
    }
    println!("killed before the end (import, fork, delete, gc --now, gc): {killed:?} of 14 each");
    assert!(killed.iter().all(|&count| count > 0), "{killed:?}: some were never interrupted");
    scene.run(&["gc", "--now"]).ok();
    assert_eq!(scene.run(&["branch", "list"]).ok().lines().count(), 2);
    let layers = fs::read_dir(scene.store.join("layers")).unwrap().count();
    assert_eq!(layers, 1, "leftovers stay for ever");
    scene.mount();
    assert_eq!(fs::read(scene.dir.join("file")).unwrap(), b"kept");
}

#[test]
fn mount_is_not_needed_to_refuse_a_crashed_cluster() {
    let scene = scene!();
    if !import_support::postgres_here() {
        return;
    }
    fs::set_permissions(scene.temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = scene.temp.path().canonicalize().unwrap();
    let (outer, sockets) = (root.join("pg"), root.join("sockets"));
    for dir in [&outer, &sockets] {
        fs::create_dir(dir).unwrap();
        import_support::chown_postgres(dir);
    }
    let data = outer.join("data");
    let dir = data.to_str().unwrap();
    import_support::postgres_ok("initdb", &["-N", "-A", "trust", "-D", dir]);
    let import = |extra: &[&str]| scene.run(&[&["import", dir, "--as", "pg"], extra].concat());
    let server = import_support::Server::start(&data, &sockets);
    for extra in [&[][..], &["--allow-crashed"], &["--any"]] {
        says(
            &import(extra).fails(1),
            &["a Postgres server is running on", dir, "process", "Hint: stop"],
        );
    }
    server.stop("immediate");
    says(&import(&[]).fails(1), &["was not shut down cleanly", "in production", "--allow-crashed"]);
    assert_eq!(scene.run(&["branch", "show", "pg"]).code, 1);
    sound(&scene);
    import(&["--allow-crashed"]).ok();
    sound(&scene);
}

/// Makes directories within each other, 6,000 bytes of path, with a file in the last one.
fn dig(top: &Path) {
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::{Mode, mkdirat};
    let mut dir = fs::File::open(top).unwrap();
    let name = "d".repeat(200);
    for _ in 0..30 {
        mkdirat(&dir, name.as_str(), Mode::S_IRWXU).unwrap();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        dir = fs::File::from(openat(&dir, name.as_str(), flags, Mode::empty()).unwrap());
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
    let file = openat(&dir, "file", flags, Mode::S_IRWXU).unwrap();
    fs::File::from(file).write_all(b"deep down").unwrap();
}

/// No single call of the host takes such a path. What does without is fine; what does not says so.
#[test]
fn mount_a_tree_deeper_than_any_path_can_be_long() {
    let scene = scene!();
    scene.mount();
    dig(&scene.dir);
    scene.run(&["branch", "create", "fork", "--from", "main"]).ok();
    let out = scene.temp.path().join("out");
    let refused = scene.run(&["export", "fork", out.to_str().unwrap()]).fails(1);
    says(&refused, &["more than a path of the host can have", "Hint: --tar"]);
    assert!(!out.exists());
    let tar = scene.temp.path().join("out.tar");
    scene.run(&["export", "fork", "--tar", tar.to_str().unwrap()]).ok();
    let bytes = fs::read(&tar).unwrap();
    assert!(bytes.windows(9).any(|found| found == b"deep down"));
    let deep = scene.temp.path().join("deep");
    fs::create_dir(&deep).unwrap();
    dig(&deep);
    let deep = deep.to_str().unwrap();
    let refused = scene.run(&["import", "--adopt", deep, "--any", "--as", "old"]).fails(1);
    says(&refused, &["more than a path of the host can have", "Hint: use a copying import"]);
    assert!(refused.len() < 1000, "{refused}");
    scene.run(&["import", deep, "--any", "--as", "old"]).ok();
    scene.run(&["unmount", "main"]).ok();
    sound(&scene);
}
