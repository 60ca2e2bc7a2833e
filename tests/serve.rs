//! Mounting, serving and unmounting with the real program and the real kernel.
//!
//! Needs root and /dev/fuse; says so and passes where they are missing.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod mount_support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mount_support::{Guard, PATIENCE, Scene, possible, program, said, servers_below, shell};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn round_trip() {
    let scene = scene!();
    assert_eq!(scene.status("main")["state"], "not_mounted");
    assert_eq!(scene.run(&["status"]).ok(), "Nothing is mounted\n");
    let text = scene.mount();
    assert!(text.contains("Mounted main at"), "{text}");
    fs::write(scene.dir.join("file"), "contents").unwrap();

    let status = scene.status("main");
    assert_eq!(status["state"], "mounted");
    assert_eq!(status["mount_point"], scene.dir());
    assert_eq!(status["server"]["attached"], true);
    assert!(status["server"]["requests"].as_array().unwrap().iter().any(|r| r["kind"] == "write"));
    let table = scene.run(&["status"]).ok();
    assert!(table.contains("main") && table.contains(scene.dir()), "{table}");
    let details = scene.run(&["status", "main"]).ok();
    assert!(details.contains("P99") && details.contains("Open layer"), "{details}");

    let text = scene.run(&["unmount", "main"]).ok();
    assert_eq!(text, format!("Unmounted main from {}\n", scene.dir()));
    // Nothing of it is left when the command returns, and the next one can begin.
    assert_eq!(scene.mounts(), [] as [&str; 0]);
    // The process itself may need a moment more to be gone.
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !servers_below(scene.temp.path()).is_empty() {
        assert!(std::time::Instant::now() < patience, "the server goes on");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(!scene.run_file("1.json").exists() && !scene.run_file("1.sock").exists());
    assert!(!scene.dir.join("file").exists());
    scene.mount();
    assert_eq!(fs::read_to_string(scene.dir.join("file")).unwrap(), "contents");
    scene.run(&["unmount", scene.dir()]).ok();
    assert!(scene.run(&["unmount", "main"]).fails(1).contains("main is not mounted"));
    assert!(scene.run(&["unmount", scene.dir()]).fails(1).contains("no branch is mounted at"));
    assert!(scene.run(&["unmount", "nosuch"]).fails(1).contains("neither a branch nor"));
}

#[test]
fn read_only_and_options() {
    let scene = scene!();
    scene.run(&["mount", "main", scene.dir(), "--read-only", "-o", "noexec,dev"]).ok();
    let error = fs::write(scene.dir.join("file"), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mountinfo.lines().find(|line| line.contains(scene.dir())).unwrap();
    assert!(line.contains("ro,") && line.contains("noexec") && line.contains("nosuid"), "{line}");
    assert!(!line.contains("nodev"), "{line}");
    assert!(line.contains("fuse.cowfs cowfs:main"), "{line}");
    assert_eq!(scene.status("main")["read_only"], true);
    scene.run(&["unmount", "main"]).ok();
    let error = scene.run(&["mount", "main", scene.dir(), "-o", "turbo"]).fails(2);
    assert!(error.contains("\"turbo\"") && error.contains("Hint: known are"), "{error}");
}

#[test]
fn the_kernels_limits_are_raised() {
    let scene = scene!();
    let text = scene.mount();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mountinfo.lines().find(|line| line.contains(scene.dir())).unwrap();
    let bdi = Path::new("/sys/class/bdi").join(line.split(' ').nth(2).unwrap());
    // Where sysfs is not writable, the user is told.
    if !text.contains("cannot set") {
        assert_eq!(fs::read_to_string(bdi.join("max_ratio")).unwrap(), "100\n");
        assert_eq!(fs::read_to_string(bdi.join("read_ahead_kb")).unwrap(), "4096\n");
    }
}

/// The value of a sample of `cowfs metrics`.
fn sample(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn metrics_count_what_was_asked() {
    let scene = scene!();
    assert_eq!(
        scene.run(&["metrics"]).ok().lines().filter(|line| !line.starts_with('#')).count(),
        0
    );
    scene.mount();
    fs::write(scene.dir.join("file"), vec![7; 100_000]).unwrap();
    fs::File::open(scene.dir.join("file")).unwrap().sync_all().unwrap();
    let text = scene.run(&["metrics"]).ok();
    let of_branch =
        |name: &str, more: &str| sample(&text, &format!("{name}{{branch=\"main\"{more}}}"));
    assert_eq!(of_branch("cowfs_up", ""), Some(1.0), "{text}");
    assert!(of_branch("cowfs_open_layer_bytes", "").unwrap() >= 100_000.0, "{text}");
    assert_eq!(
        of_branch("cowfs_request_bytes_total", ",kind=\"write\""),
        Some(100_000.0),
        "{text}"
    );
    let syncs = of_branch("cowfs_request_seconds_count", ",kind=\"fsync\"").unwrap();
    assert!(syncs >= 1.0, "{text}");
    // The buckets add up to it.
    let last = "cowfs_request_seconds_bucket{le=\"+Inf\",branch=\"main\",kind=\"fsync\"}";
    assert_eq!(sample(&text, last), Some(syncs), "{text}");
    // As Prometheus' own text format has it: named like their samples, and no end mark.
    assert!(text.contains("# TYPE cowfs_request_bytes_total counter\n"), "{text}");
    assert!(!text.contains("# EOF"), "{text}");
    assert_eq!(of_branch("cowfs_dirty_granules", ""), Some(0.0), "{text}");
    assert!(of_branch("cowfs_open_descriptors", "").unwrap() >= 1.0, "{text}");

    let file = scene.temp.path().join("cowfs.prom");
    let path = file.to_str().unwrap();
    fs::write(&file, "old").unwrap();
    assert_eq!(scene.run(&["metrics", "--output", path]).ok(), "");
    assert!(fs::read_to_string(&file).unwrap().contains("cowfs_up{branch=\"main\"} 1\n"));
    let missing = scene.temp.path().join("no/such.prom");
    let error = scene.run(&["metrics", "--output", missing.to_str().unwrap()]).fails(1);
    assert!(error.contains("no/such.prom") && error.contains("Hint: "), "{error}");
    kill(scene.server(), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while sample(&scene.run(&["metrics"]).ok(), "cowfs_up") != Some(0.0) {
        assert!(Instant::now() < deadline, "{}", scene.run(&["metrics"]).ok());
    }
}

#[test]
fn status_can_be_watched() {
    let scene = scene!();
    scene.mount();
    let mut watching = scene.command(&["status", "--watch", "50ms"]);
    let mut child = watching.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    // A head and a line for the one branch, each time.
    let seen: Vec<String> = lines.by_ref().take(6).map(Result::unwrap).collect();
    assert!(seen.iter().step_by(2).all(|line| line.starts_with("BRANCH")), "{seen:?}");
    assert!(seen.iter().skip(1).step_by(2).all(|line| line.starts_with("main")), "{seen:?}");
    // It ends when nobody reads any more.
    drop(lines);
    let ended = child.wait().unwrap();
    assert!(ended.success(), "{ended}");

    let mut watching = scene.command(&["status", "main", "--watch", "50ms", "--json"]);
    let mut child = watching.stdout(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for line in lines.take(2) {
        let shown: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(shown["server"]["io_uring"], false);
        // No other branch is mounted.
        assert_eq!(shown["server"]["host_cache"], false);
    }
    child.wait().unwrap();
}

/// The scheduling policies of a process's threads, by the kind of thread.
fn policies(pid: Pid) -> Vec<(String, String)> {
    let mut found: Vec<_> = fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path().join("stat")).unwrap())
        .map(|stat| {
            let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(") ").unwrap();
            let kind = name.split(|c: char| c.is_ascii_digit()).next().unwrap();
            // proc(5): the state is field 3, the policy field 41.
            (kind.to_owned(), rest.split(' ').nth(38).unwrap().to_owned())
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn those_who_serve_requests_may_be_real_time_threads() {
    let Some(scene) = Scene::new() else { return };
    for (options, wanted) in [("realtime", libc::SCHED_RR), ("noatime", libc::SCHED_OTHER)] {
        scene.run(&["mount", "main", scene.dir(), "-o", options]).ok();
        let policies = policies(scene.server());
        let serves = |name: &str| name.starts_with("fuser-");
        assert!(policies.iter().any(|(name, _)| serves(name)), "{policies:?}");
        for (name, policy) in policies {
            let wanted = if serves(&name) { wanted } else { libc::SCHED_OTHER };
            assert_eq!(policy, wanted.to_string(), "{name} with {options}");
        }
        scene.run(&["unmount", "main"]).ok();
    }
}

#[test]
fn a_branch_is_served_once() {
    let scene = scene!();
    scene.mount();
    let other = scene.temp.path().join("other");
    fs::create_dir(&other).unwrap();
    let error = scene.run(&["mount", "main", other.to_str().unwrap()]).fails(1);
    let wanted = format!("already mounted at {} (process {})", scene.dir(), scene.server());
    assert!(error.contains(&wanted), "{error}");
    assert!(error.contains("cowfs unmount main"), "{error}");
    // Two at the same moment: one wins, and the other says so.
    scene.run(&["unmount", "main"]).ok();
    let mut begun = Vec::new();
    for dir in [scene.dir(), other.to_str().unwrap()] {
        let mut command = scene.command(&["mount", "main", dir]);
        begun.push(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    }
    let ends: Vec<_> =
        begun.into_iter().map(|child| said(&child.wait_with_output().unwrap())).collect();
    assert_eq!(ends.iter().filter(|said| said.code == 0).count(), 1);
    let loser = ends.iter().find(|said| said.code != 0).unwrap();
    assert!(loser.err.contains("already mounted at"), "{}", loser.err);
    assert_eq!(scene.mounts().len(), 1);
}

#[test]
fn a_directory_is_used_once() {
    let scene = scene!();
    scene.run(&["branch", "create", "second", "--empty"]).ok();
    scene.mount();
    let error = scene.run(&["mount", "second", scene.dir()]).fails(1);
    assert!(error.contains("a branch is already mounted at"), "{error}");
    assert!(error.contains(&format!("Hint: cowfs unmount {}", scene.dir())), "{error}");
    assert_eq!(scene.status("second")["state"], "not_mounted");
}

#[test]
fn unfit_directories() {
    let scene = scene!();
    let root = scene.temp.path();
    fs::write(root.join("file"), "").unwrap();
    std::os::unix::fs::symlink(scene.store.join("run"), root.join("link")).unwrap();
    let error =
        |name: &str| scene.run(&["mount", "main", root.join(name).to_str().unwrap()]).fails(1);
    assert!(error("none").contains("does not exist"));
    assert!(error("none").contains("Hint: mkdir -p"));
    assert!(error("file").contains("is not a directory"));
    for overlapping in ["store", "store/run", "link", "."] {
        assert!(error(overlapping).contains("must not lie inside each other"), "{overlapping}");
    }
    assert!(
        scene.run(&["mount", "none", scene.dir()]).fails(1).contains("there is no branch none")
    );
    assert_eq!(scene.mounts(), [] as [&str; 0]);
    // Contents are hidden, and that is said.
    fs::write(scene.dir.join("hidden"), "").unwrap();
    assert!(scene.mount().contains("is not empty"));
    assert!(!scene.dir.join("hidden").exists());
}

#[test]
fn odd_names_of_directories() {
    let scene = scene!();
    for name in ["with space", "back\\slash", "new\nline", "-dash", "ünï"] {
        let dir = scene.temp.path().join(name);
        fs::create_dir(&dir).unwrap();
        scene.run(&["mount", "main", dir.to_str().unwrap()]).ok();
        fs::write(dir.join("x"), name).unwrap();
        scene.run(&["unmount", dir.to_str().unwrap()]).ok();
        assert!(!dir.join("x").exists(), "{name:?}");
    }
    // Relative, from where the command is called.
    let mut command = scene.command(&["mount", "main", "dir"]);
    said(&command.current_dir(scene.temp.path()).output().unwrap()).ok();
    assert!(scene.dir.join("x").exists());
    let mut command = scene.command(&["unmount", "./dir"]);
    said(&command.current_dir(scene.temp.path()).output().unwrap()).ok();
}

#[test]
fn long_store_paths() {
    let long = format!("{}/{}/store", "a".repeat(200), "b".repeat(200));
    let Some(scene) = Scene::below(&long) else { return };
    scene.mount();
    assert_eq!(scene.status("main")["state"], "mounted");
    scene.run(&["branch", "create", "child", "--from", "main"]).ok();
    scene.run(&["unmount", "main"]).ok();
}

#[test]
fn a_killed_server_is_replaced() {
    let scene = scene!();
    scene.mount();
    fs::write(scene.dir.join("file"), "before").unwrap();
    let kill_server = || {
        let pid = scene.server();
        kill(pid, Signal::SIGKILL).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while scene.status("main")["state"] != "dead" {
            assert!(Instant::now() < deadline, "{}", scene.status("main"));
        }
    };
    kill_server();
    let error = fs::read_dir(&scene.dir).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    assert!(scene.run(&["status"]).ok().contains("server was killed"));
    // At the same place.
    let text = scene.mount();
    assert!(text.contains("took away the dead mount"), "{text}");
    assert_eq!(fs::read_to_string(scene.dir.join("file")).unwrap(), "before");
    assert_eq!(scene.mounts().len(), 1);
    // At another place: the old one goes, too.
    kill_server();
    let other = scene.temp.path().join("other");
    fs::create_dir(&other).unwrap();
    let text = scene.run(&["mount", "main", other.to_str().unwrap()]).ok();
    assert!(text.contains("took away the dead mount"), "{text}");
    assert_eq!(scene.mounts(), [other.to_str().unwrap()]);
    // Unmounting what is left, by name and by directory.
    kill_server();
    let text = scene.run(&["unmount", "main"]).ok();
    assert!(text.contains("its serving process was gone"), "{text}");
    assert_eq!(scene.mounts(), [] as [&str; 0]);
    scene.mount();
    kill_server();
    scene.run(&["unmount", scene.dir()]).ok();
    assert_eq!(scene.mounts(), [] as [&str; 0]);
    assert_eq!(scene.status("main")["state"], "not_mounted");
    // A dead mount whose run file is gone as well.
    scene.mount();
    kill_server();
    fs::remove_file(scene.run_file("1.json")).unwrap();
    assert!(scene.mount().contains("took away the dead mount"));
    // Another branch at the place of a dead one.
    kill_server();
    scene.run(&["branch", "create", "second", "--empty"]).ok();
    let text = scene.run(&["mount", "second", scene.dir()]).ok();
    assert!(text.contains("took away the dead mount"), "{text}");
    assert_eq!(scene.mounts().len(), 1);
}

#[test]
fn sigterm_unmounts() {
    let scene = scene!();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        scene.mount();
        fs::write(scene.dir.join("file"), signal.as_str()).unwrap();
        kill(scene.server(), signal).unwrap();
        scene.wait_until_unserved();
        assert_eq!(scene.mounts(), [] as [&str; 0]);
        assert!(!scene.run_file("1.json").exists() && !scene.run_file("1.sock").exists());
    }
    scene.mount();
    assert_eq!(fs::read_to_string(scene.dir.join("file")).unwrap(), "SIGHUP");
}

#[test]
fn sigterm_with_files_open_detaches() {
    let scene = scene!();
    scene.mount();
    let mut file = fs::File::create(scene.dir.join("file")).unwrap();
    let server = scene.server();
    kill(server, Signal::SIGTERM).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while scene.status("main")["state"] != "detached" {
        assert!(Instant::now() < deadline, "{}", scene.status("main"));
    }
    assert_eq!(scene.mounts(), [] as [&str; 0]);
    let error = scene.run(&["mount", "main", scene.dir()]).fails(1);
    assert!(error.contains("unmounted lazily and is still in use"), "{error}");
    // Whoever has files open loses nothing.
    file.write_all(b"to the end").unwrap();
    file.sync_all().unwrap();
    drop(file);
    scene.wait_until_unserved();
    let log = fs::read_to_string(scene.run_file("1.log")).unwrap();
    assert!(log.contains("still in use by process"), "{log}");
    scene.mount();
    assert_eq!(fs::read_to_string(scene.dir.join("file")).unwrap(), "to the end");
}

#[test]
fn unmounting_what_is_in_use() {
    let scene = scene!();
    scene.mount();
    fs::create_dir(scene.dir.join("sub")).unwrap();
    fs::write(scene.dir.join("file"), "x").unwrap();
    fs::copy("/bin/sleep", scene.dir.join("sleep")).unwrap();
    let inside = shell(":", &scene.dir.join("sub"));
    let reader = shell("exec 7<file", &scene.dir);
    let program = Guard(Command::new(scene.dir.join("sleep")).arg("600").spawn().unwrap());
    for target in ["main", scene.dir()] {
        let error = scene.run(&["unmount", target]).fails(1);
        for wanted in [
            format!("process {} sh (working directory)", inside.0.id()),
            format!("process {} sh (working directory, open files)", reader.0.id()),
            format!("process {} sleep (program)", program.0.id()),
            "Hint: end these processes, or detach".to_owned(),
        ] {
            assert!(error.contains(&wanted), "{wanted} in {error}");
        }
    }
    assert_eq!(scene.status("main")["state"], "mounted");
    drop((inside, program));
    let text = scene.run(&["unmount", "main", "--lazy"]).ok();
    assert!(text.contains("Detached main") && text.contains(&reader.0.id().to_string()), "{text}");
    assert_eq!(scene.mounts(), [] as [&str; 0]);
    assert_eq!(scene.status("main")["state"], "detached");
    assert!(scene.run(&["unmount", "main", "--lazy"]).ok().contains("Detached main"));
    drop(reader);
    scene.wait_until_unserved();
    // Nothing in use: --lazy makes no difference.
    scene.mount();
    assert!(scene.run(&["unmount", "main", "--lazy"]).ok().starts_with("Unmounted main"));
}

#[test]
fn a_mount_whose_directory_moved_is_found() {
    let scene = scene!();
    let (above, moved) = (scene.dir.join("above"), scene.dir.join("moved"));
    fs::create_dir(&above).unwrap();
    let mount = |dir: &Path| scene.run(&["mount", "main", dir.to_str().unwrap()]).ok();
    fs::create_dir(above.join("here")).unwrap();
    mount(&above.join("here"));
    fs::rename(&above, &moved).unwrap();
    let status = scene.status("main");
    assert_eq!(status["state"], "mounted");
    assert_eq!(status["mount_point"].as_str().unwrap(), moved.join("here").to_str().unwrap());
    let mut user =
        Command::new("sleep").arg("60").current_dir(moved.join("here")).spawn().map(Guard);
    let error = scene.run(&["unmount", "main"]).fails(1);
    assert!(error.contains(&format!("process {} sleep", user.as_ref().unwrap().0.id())), "{error}");
    user = Err(std::io::ErrorKind::Other.into());
    assert!(user.is_err());
    let out = scene.run(&["unmount", "main"]).ok();
    assert!(out.contains(moved.to_str().unwrap()), "{out}");
    assert!(scene.mounts().is_empty());
    // Also by the new name of the directory.
    mount(&moved.join("here"));
    fs::rename(&moved, &above).unwrap();
    scene.run(&["unmount", above.join("here").to_str().unwrap()]).ok();
    assert!(scene.mounts().is_empty());
    scene.wait_until_unserved();
}

#[test]
fn whoever_has_given_up_gets_nothing_done() {
    let scene = scene!();
    scene.mount();
    let server = scene.server();
    kill(server, Signal::SIGSTOP).unwrap();
    let error = scene.run(&["unmount", "main", "--timeout", "300ms"]).fails(4);
    assert!(error.contains("does not answer") || error.contains("did not answer"), "{error}");
    let args = ["branch", "create", "late", "--from", "main"];
    let mut client = scene.command(&args).stderr(Stdio::null()).spawn().map(Guard).unwrap();
    // It waits for the answer by then, or is killed before it has asked.
    std::thread::sleep(Duration::from_millis(300));
    client.0.kill().unwrap();
    client.0.wait().unwrap();
    kill(server, Signal::SIGCONT).unwrap();
    // Whoever comes later is answered later.
    assert_eq!(scene.status("main")["state"], "mounted");
    let log = fs::read_to_string(scene.run_file("1.log")).unwrap();
    assert_eq!(scene.mounts().len(), 1, "{log}");
    assert!(!scene.run(&["branch", "list"]).ok().contains("late"), "{log}");
}

#[test]
fn deleting_with_force_what_is_in_use() {
    let scene = scene!();
    scene.mount();
    fs::write(scene.dir.join("file"), "x").unwrap();
    let file = fs::File::open(scene.dir.join("file")).unwrap();
    let begin = Instant::now();
    let out = scene.run(&["branch", "delete", "main", "--force"]).ok();
    assert!(begin.elapsed() < PATIENCE, "{out}");
    assert!(out.contains(&format!("process {}", std::process::id())), "{out}");
    assert!(file.metadata().is_err() || (&file).read(&mut [0; 10]).is_err());
    assert!(scene.mounts().is_empty() && servers_below(&scene.store).is_empty());
    assert!(!scene.run(&["branch", "list"]).ok().contains("main"));
}

#[test]
fn deleting_what_a_killed_server_left_mounted() {
    let scene = scene!();
    scene.mount();
    kill(scene.server(), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while scene.status("main")["state"] != "dead" {
        assert!(Instant::now() < deadline);
    }
    scene.run(&["branch", "delete", "main"]).ok();
    assert!(scene.mounts().is_empty());
    assert!(scene.run(&["status"]).ok().contains("Nothing is mounted"));
}

#[test]
fn a_moment_of_use_is_no_refusal() {
    let scene = scene!();
    scene.mount();
    let mut user = Command::new("sleep").arg("0.15").current_dir(&scene.dir).spawn().unwrap();
    scene.run(&["unmount", "main"]).ok();
    assert!(user.wait().unwrap().success());
}

/// Runs `script` in a mount namespace of its own; it says "in" once it is there.
fn elsewhere(scene: &Scene, script: &str) -> Option<Guard> {
    // What others have mounted is not to be kept mounted by this copy of it.
    let others = "grep ' - fuse.cowfs ' /proc/self/mountinfo | cut -d ' ' -f 5 \
        | grep -vx \"$DIR\" | xargs -r -n 1 umount -l";
    let script = format!("{others}; {script}");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).env("DIR", &scene.dir);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map(Guard).ok()?;
    let heard = child.0.stdout.as_mut().unwrap().read_exact(&mut [0; 3]);
    if heard.is_err() {
        println!("skipped: no mount namespace of its own here");
        return None;
    }
    Some(child)
}

#[test]
fn a_copy_of_the_mount_in_another_namespace() {
    let scene = scene!();
    scene.mount();
    let Some(copy) = elsewhere(&scene, "echo in; read line") else { return };
    let out = scene.run(&["unmount", "main"]).ok();
    assert!(scene.mounts().is_empty());
    assert!(out.contains("Detached main"), "{out}");
    let who = format!("process {} sh (a mount namespace", copy.0.id());
    assert!(out.contains(&who), "{out}");
    drop(copy);
    scene.wait_until_unserved();
}

#[test]
fn a_user_in_another_namespace() {
    let scene = scene!();
    scene.mount();
    // As a container does: under another name.
    let script = "mkdir /tmp/$$ && mount --bind \"$DIR\" /tmp/$$ && umount \"$DIR\" \
        && exec 5>/tmp/$$/file && echo in && read line; exec 5>&-; umount /tmp/$$; rmdir /tmp/$$";
    let Some(mut user) = elsewhere(&scene, script) else { return };
    let error = scene.run(&["unmount", "main"]).fails(1);
    let who = format!("process {} sh (open files)", user.0.id());
    assert!(error.contains(&who), "{error}");
    assert_eq!(scene.mounts().len(), 1);
    drop(user.0.stdin.take());
    assert!(user.0.wait().unwrap().success());
    scene.run(&["unmount", "main"]).ok();
    scene.wait_until_unserved();
}

#[test]
fn other_things_that_hold_a_mount() {
    let scene = scene!();
    scene.mount();
    let nested = scene.dir.join("nested");
    fs::create_dir(&nested).unwrap();
    nix::mount::mount(
        Some("none"),
        &nested,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    let error = scene.run(&["unmount", "main"]).fails(1);
    assert!(error.contains(&format!("a mount at {}", nested.display())), "{error}");
    nix::mount::umount(&nested).unwrap();
    scene.run(&["unmount", "main"]).ok();
}

#[test]
fn what_was_mounted_below_stays() {
    let scene = scene!();
    let tmpfs = || {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), &scene.dir, Some("tmpfs"), flags, None::<&str>).unwrap();
    };
    tmpfs();
    fs::write(scene.dir.join("below"), "").unwrap();
    scene.mount();
    assert!(!scene.dir.join("below").exists());
    scene.run(&["unmount", "main"]).ok();
    assert!(scene.dir.join("below").exists(), "the mount below was taken away");
    // Unmounted by others, and something else mounted at once: it must survive our end.
    scene.mount();
    nix::mount::umount(&scene.dir).unwrap();
    tmpfs();
    fs::write(scene.dir.join("above"), "").unwrap();
    scene.wait_until_unserved();
    assert!(scene.dir.join("above").exists(), "somebody else's mount was taken away");
    nix::mount::umount(&scene.dir).unwrap();
    assert!(scene.dir.join("below").exists());
}

#[test]
fn unmounted_by_others() {
    let scene = scene!();
    scene.mount();
    fs::write(scene.dir.join("file"), "x").unwrap();
    nix::mount::umount(&scene.dir).unwrap();
    scene.wait_until_unserved();
    assert!(!scene.run_file("1.sock").exists());
    scene.mount();
    assert!(scene.dir.join("file").exists());
}

#[test]
fn in_the_foreground() {
    let scene = scene!();
    let mut command = scene.command(&["mount", "--foreground", "main", scene.dir()]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut child = Guard(child);
    let mut line = String::new();
    let out = child.0.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    assert!(line.contains("Mounted main at"), "{line}");
    fs::write(scene.dir.join("file"), "x").unwrap();
    kill(Pid::from_raw(child.0.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
    assert_eq!(scene.mounts(), [] as [&str; 0]);
}

#[test]
fn a_mount_that_takes_too_long() {
    let scene = scene!();
    let error = scene.run(&["mount", "main", scene.dir(), "--timeout", "1ms"]).fails(4);
    assert!(error.contains("not mounted within 0.001 s"), "{error}");
    assert!(error.contains("1.log"), "{error}");
    assert_eq!(scene.mounts(), [] as [&str; 0]);
    assert!(servers_below(scene.temp.path()).is_empty());
    scene.mount();
}

#[test]
fn a_server_that_hangs() {
    let scene = scene!();
    scene.mount();
    let server = scene.server();
    kill(server, Signal::SIGSTOP).unwrap();
    let begin = Instant::now();
    let text = scene.run(&["status"]).ok();
    assert!(text.contains("does not answer"), "{text}");
    assert!(begin.elapsed() < Duration::from_secs(6));
    let error = scene.run(&["unmount", "main", "--timeout", "300ms"]).fails(4);
    assert!(error.contains("does not answer") && error.contains("--lazy"), "{error}");
    scene.run(&["unmount", "main", "--lazy", "--timeout", "300ms"]).ok();
    assert_eq!(scene.mounts(), [] as [&str; 0]);
    kill(server, Signal::SIGCONT).unwrap();
    scene.wait_until_unserved();
    scene.mount();
}

#[test]
fn forks_go_through_the_server() {
    let scene = scene!();
    scene.mount();
    fs::write(scene.dir.join("file"), "parent").unwrap();
    fs::File::open(scene.dir.join("file")).unwrap().sync_all().unwrap();
    scene.run(&["branch", "create", "child", "--from", "main"]).ok();
    // Served or not, the same is said of a name that is taken.
    let refused = || scene.run(&["branch", "create", "child", "--from", "main"]).fails(1);
    let error = refused();
    assert!(error.contains("child exists already") && error.contains("Hint: choose"), "{error}");
    scene.run(&["unmount", "main"]).ok();
    assert_eq!(refused(), error);
    scene.mount();
    let args = ["branch", "create", "child", "--from", "main", "--if-not-exists", "--json"];
    let again: serde_json::Value = serde_json::from_str(&scene.run(&args).ok()).unwrap();
    assert_eq!(again["created"], false);
    fs::write(scene.dir.join("file"), "changed").unwrap();
    let other = scene.temp.path().join("other");
    fs::create_dir(&other).unwrap();
    scene.run(&["mount", "child", other.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(other.join("file")).unwrap(), "parent");
    assert_eq!(fs::read_to_string(scene.dir.join("file")).unwrap(), "changed");
    let error = scene.run(&["branch", "delete", "main"]).fails(1);
    assert!(error.contains("main"), "{error}");
}

#[test]
fn a_mounted_branch_that_is_read_only_forks_or_says_why_not() {
    let scene = scene!();
    scene.mount();
    fs::write(scene.dir.join("file"), "contents").unwrap();
    scene.run(&["unmount", "main"]).ok();
    scene.run(&["mount", "main", scene.dir(), "--read-only"]).ok();
    let error = scene.run(&["branch", "create", "child", "--from", "main"]).fails(1);
    assert!(error.contains("mounted read-only") && error.contains("Hint: unmount"), "{error}");
}

#[test]
fn attacks_on_the_control_socket() {
    let scene = scene!();
    scene.mount();
    let socket = scene.run_file("1.sock");
    let connect = || UnixStream::connect(&socket).unwrap();
    let attacks: [&[u8]; 5] = [
        &[0xff; 4096],
        &[0, 0, 0, 0],
        &[0xff, 0xff, 0xff, 0x7f],
        b"\x03\0\0\0{]}",
        b"GET / HTTP/1.0\r\n",
    ];
    for attack in attacks {
        let mut stream = connect();
        let _ = stream.write_all(attack);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(String::from_utf8_lossy(&answer).contains("bad_request"), "{attack:?}");
    }
    // Half requests, and clients that only connect, as many as there is room for and more.
    let mut crowd: Vec<UnixStream> = (0..200).map(|_| connect()).collect();
    for stream in &mut crowd {
        let _ = stream.write_all(&[40, 0, 0, 0, b'{']);
    }
    fs::write(scene.dir.join("file"), "the filesystem goes on").unwrap();
    let text = scene.run(&["status", "main"]).ok();
    assert!(text.contains("64 connections are open"), "{text}");
    drop(crowd);
    let deadline = Instant::now() + PATIENCE;
    while scene.status("main")["state"] != "mounted" {
        assert!(Instant::now() < deadline, "{}", scene.status("main"));
    }
    scene.run(&["branch", "create", "child", "--from", "main"]).ok();
    scene.run(&["unmount", "main"]).ok();
}

#[test]
fn things_in_the_place_of_the_socket() {
    let scene = scene!();
    let socket = scene.run_file("1.sock");
    let precious = scene.temp.path().join("precious");
    fs::write(&precious, "data").unwrap();
    std::os::unix::fs::symlink(&precious, &socket).unwrap();
    scene.mount();
    assert_eq!(scene.status("main")["state"], "mounted");
    scene.run(&["unmount", "main"]).ok();
    drop(UnixListener::bind(&socket).unwrap());
    fs::write(scene.run_file("1.json"), "{\"branch\": 1, \"pid\": 1").unwrap();
    scene.mount();
    assert_eq!(scene.status("main")["state"], "mounted");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "data");
}

#[test]
fn a_run_file_that_lies_unmounts_nothing() {
    let scene = scene!();
    let Some(other) = Scene::new() else { return };
    other.mount();
    let run = format!(
        "{{\"branch\":1,\"mount_point\":\"{}\",\"pid\":1,\"since_ms\":0,\"read_only\":false}}",
        other.dir()
    );
    fs::write(scene.run_file("1.json"), run).unwrap();
    assert!(scene.run(&["unmount", "main"]).ok().contains("its serving process was gone"));
    assert_eq!(other.status("main")["state"], "mounted");
    assert_eq!(other.mounts().len(), 1);
    // By directory it can be unmounted all the same.
    scene.run(&["unmount", other.dir()]).ok();
    other.wait_until_unserved();
}

/// Mounts, uses and unmounts as the user `nobody`, in a mount namespace of its own, where
/// `/dev/fuse` is open to everybody as distributions have it.
const ORDINARY_USER: &str = r#"
set -e
# What others have mounted is not to be kept mounted by this copy of it.
grep " - fuse.cowfs " /proc/self/mountinfo | cut -d " " -f 5 | xargs -r -n 1 umount -l
as() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
mkdir "$T/user"; chown 65534:65534 "$T/user"
export COWFS_STORE="$T/user/store"
as "$COWFS" init
as "$COWFS" branch create main --empty
as mkdir "$T/user/dir"
mknod "$T/fuse" c 10 229; chmod 600 "$T/fuse"; mount --bind "$T/fuse" /dev/fuse
as "$COWFS" mount main "$T/user/dir" && echo BAD || echo "refused $?"
chmod 666 "$T/fuse"
as "$COWFS" mount main "$T/user/dir"
as sh -c 'echo hello > "$T/user/dir/file"'
as cat "$T/user/dir/file"
as "$COWFS" status
as sh -c 'cd "$T/user/dir"; echo in; read line' < "$T/fifo" > "$T/user.out" & 
exec 9> "$T/fifo"
while ! grep -q in "$T/user.out"; do :; done
as "$COWFS" unmount main && echo BAD || echo "refused $?"
echo >&9; wait $!
as "$COWFS" unmount main
! grep -q "$T/user/dir" /proc/self/mountinfo
as "$COWFS" mount main "$T/user/dir"
kill -9 $(sed 's/.*"pid":\([0-9]*\).*/\1/' "$T/user/store/run/1.json")
while as ls "$T/user/dir" 2>/dev/null; do :; done
as "$COWFS" mount main "$T/user/dir"
kill $(sed 's/.*"pid":\([0-9]*\).*/\1/' "$T/user/store/run/1.json")
while grep -q "$T/user/dir" /proc/self/mountinfo; do :; done
mkdir "$T/user/foreign"
as "$COWFS" mount main "$T/user/foreign" && echo BAD || echo "refused $?"
as "$COWFS" mount main /tmp && echo BAD || echo "refused $?"
echo FINISHED
"#;

#[test]
fn as_an_ordinary_user() {
    if !possible() {
        return;
    }
    let found = |program: &str| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).any(|dir| dir.join(program).exists())
    };
    if !["fusermount3", "unshare", "setpriv"].into_iter().all(found) {
        println!("skipped: needs fusermount3, unshare and setpriv");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().canonicalize().unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // The program may lie where nobody else may look.
    let copy = root.join("cowfs");
    fs::copy(program(), &copy).unwrap();
    let output = Command::new("timeout")
        .args(["60", "unshare", "--mount", "sh", "-c", ORDINARY_USER])
        .env("T", &root)
        .env("COWFS", &copy)
        .env_remove("COWFS_LOG")
        .output()
        .unwrap();
    for pid in servers_below(&root) {
        let _ = kill(pid, Signal::SIGKILL);
    }
    let said = said(&output);
    let all = format!("{}\n{}", said.out, said.err);
    if all.contains("unshare failed") || all.contains("mknod") {
        println!("skipped: no mount namespace of its own or no device nodes here: {all}");
        return;
    }
    assert!(said.out.contains("FINISHED") && !said.out.contains("BAD"), "{all}");
    assert!(said.out.contains("hello"), "{all}");
    assert_eq!(said.out.matches("refused 1").count(), 4, "{all}");
    assert!(said.err.contains("mounted as an ordinary user"), "{all}");
    assert!(said.err.contains("your user may not open /dev/fuse"), "{all}");
    assert!(said.err.contains("sh (working directory)"), "{all}");
    assert!(said.err.contains("took away the dead mount"), "{all}");
    assert!(said.err.contains("you may not write to"), "{all}");
}
