//! Mounted branches, each with the directory on the host that it must look like.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::act::{self, Outcome, Side, flush, perform};
use super::compare;
use super::mount_support::{PATIENCE, Scene};
use super::op::{Allocate, BRANCHES_MAX, HeldAct, Op, SLOTS, Span};

/// A file that stays open on both sides, perhaps without a name by now.
struct Held {
    shown: File,
    wanted: File,
    /// Shared maps of both, made when the file was opened.
    maps: Option<(memmap2::MmapRaw, memmap2::MmapRaw)>,
}

struct Seat {
    name: String,
    dir: PathBuf,
    host: PathBuf,
    held: [Option<Held>; SLOTS],
}

pub struct World {
    /// How branches are mounted.
    options: &'static str,
    scene: Scene,
    seats: Vec<Seat>,
    at: usize,
    named: usize,
    /// Operations that both sides carried out, and those that both refused.
    pub tally: [usize; 2],
}

/// Whether the host can do all that is compared; says so if not.
pub fn host_can() -> bool {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let span = Span { offset: 0, len: 4096 };
    let able = [Allocate::Zero, Allocate::Punch].map(|mode| act::reserve(&file, mode, span));
    if able != [Ok(()), Ok(())] {
        println!("skipped: the filesystem of {} lacks fallocate", std::env::temp_dir().display());
    }
    able == [Ok(()), Ok(())]
}

impl World {
    /// One branch, empty and mounted with these options; `None` where nothing can be mounted.
    pub fn new(options: &'static str) -> Option<World> {
        let scene = Scene::new()?;
        let mut world = World { scene, options, seats: Vec::new(), at: 0, named: 0, tally: [0; 2] };
        let seat = world.seat("main".to_owned());
        fs::create_dir(&seat.host).unwrap();
        world.mount(&seat);
        let mode = seat.dir.metadata().unwrap().permissions();
        fs::set_permissions(&seat.host, mode).unwrap();
        world.seats.push(seat);
        Some(world)
    }

    fn seat(&self, name: String) -> Seat {
        let root = self.scene.temp.path().canonicalize().unwrap();
        let (dir, host) = (root.join(format!("mnt-{name}")), root.join(format!("host-{name}")));
        fs::create_dir(&dir).unwrap();
        Seat { name, dir, host, held: Default::default() }
    }

    fn mount(&self, seat: &Seat) {
        let dir = seat.dir.to_str().unwrap();
        let said = self.scene.run(&["mount", "-o", self.options, &seat.name, dir]);
        // A note would say why it is served otherwise.
        assert!(!said.err.contains("io_uring"), "{}", said.err);
        said.ok();
    }

    fn unmount(&self, seat: &Seat) {
        self.scene.run(&["unmount", &seat.name]).ok();
    }

    pub fn apply(&mut self, op: &Op) {
        let count = self.seats.len();
        match op {
            Op::Act(act) => {
                let here = &self.seats[self.at];
                let shown = perform(act, &here.dir, Side::Mount);
                let wanted = perform(act, &here.host, Side::Host);
                assert_eq!(shown, wanted, "{}: {act:?} (mount, host)", here.name);
                self.tally[usize::from(shown.is_err())] += 1;
            }
            Op::Hold(slot, path) => self.seats[self.at].hold(*slot, path),
            Op::Held(slot, act) => self.seats[self.at].held_act(*slot, *act),
            Op::Compare { cold } => self.compare(*cold),
            Op::Fork if count < BRANCHES_MAX => self.fork(),
            Op::ForkUnmounted if count < BRANCHES_MAX => {
                self.seats[self.at].close();
                self.unmount(&self.seats[self.at]);
                self.fork();
                self.mount(&self.seats[self.at]);
            }
            Op::Fork | Op::ForkUnmounted => {}
            Op::Remount => self.remount(),
            Op::Kill => self.kill(),
            Op::Delete => self.delete(),
            Op::Switch(to) => self.at = to % count,
        }
    }

    fn fork(&mut self) {
        self.named += 1;
        let child = self.seat(format!("b{}", self.named));
        let parent = &self.seats[self.at];
        parent.flush();
        let (name, from) = (child.name.as_str(), parent.name.as_str());
        self.scene.run(&["branch", "create", name, "--from", from]).ok();
        copy_tree(&parent.host, &child.host);
        self.mount(&child);
        compare::trees(name, &child.dir, &child.host, false);
        self.seats.push(child);
    }

    fn remount(&mut self) {
        self.seats[self.at].close();
        let here = &self.seats[self.at];
        self.unmount(here);
        self.mount(here);
        compare::trees(&here.name, &here.dir, &here.host, false);
    }

    /// Nothing whose call had reached the filesystem may be missing afterwards.
    fn kill(&mut self) {
        let here = &mut self.seats[self.at];
        here.flush();
        for held in here.held.iter_mut().flatten() {
            // To touch a page of a dead mount is fatal.
            held.maps = None;
        }
        flush_all(here);
        let status = self.scene.status(&here.name);
        let pid = Pid::from_raw(status["pid"].as_i64().unwrap() as i32);
        kill(pid, Signal::SIGKILL).unwrap();
        here.close();
        let deadline = Instant::now() + PATIENCE;
        while self.scene.status(&self.seats[self.at].name)["state"] != "dead" {
            assert!(Instant::now() < deadline, "{pid} does not die");
        }
        let here = &self.seats[self.at];
        self.mount(here);
        compare::trees(&here.name, &here.dir, &here.host, false);
    }

    fn delete(&mut self) {
        if self.seats.len() < 2 {
            return;
        }
        let mut gone = self.seats.remove(self.at);
        self.at = 0;
        gone.close();
        self.unmount(&gone);
        self.scene.run(&["branch", "delete", &gone.name, "--purge"]).ok();
        self.scene.run(&["gc"]).ok();
        fs::remove_dir_all(&gone.host).unwrap();
    }

    pub fn compare(&self, cold: bool) {
        for seat in &self.seats {
            seat.compare(cold);
        }
    }

    /// Compares once more after a remount of everything, and has the store verified.
    pub fn end(mut self) {
        self.compare(true);
        for at in 0..self.seats.len() {
            self.at = at;
            self.remount();
        }
        for seat in &self.seats {
            self.unmount(seat);
        }
        let verdict = self.scene.run(&["check"]).ok();
        assert!(verdict.starts_with("sound"), "{verdict}");
    }

    /// The last words of the serving processes.
    pub fn logs(&self) -> String {
        let run = self.scene.store.join("run");
        let entries = fs::read_dir(run).into_iter().flatten().flatten();
        let logs = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "log"));
        let tails: Vec<String> = logs.map(|path| compare::tail(&path)).collect();
        tails.join("\n")
    }
}

/// Everything in it, with holes, hard links, owners and modes; but sockets, which a fork leaves
/// out: they are those of the parent's server.
fn copy_tree(from: &Path, to: &Path) {
    let status =
        Command::new("cp").args(["-a", "--sparse=always", "--"]).args([from, to]).status().unwrap();
    assert!(status.success());
    for path in act::paths_below(to) {
        if path.symlink_metadata().unwrap().file_type().is_socket() {
            fs::remove_file(path).unwrap();
        }
    }
}

fn flush_all(seat: &Seat) {
    for path in act::paths_below(&seat.dir) {
        if path.symlink_metadata().unwrap().is_file() {
            drop(File::open(path).unwrap());
        }
    }
}

impl Seat {
    fn hold(&mut self, slot: usize, path: &str) {
        let open = |root: &Path| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(root.join(path))
        };
        let errno = |error: &std::io::Error| error.raw_os_error();
        let (shown, wanted) = match (open(&self.dir), open(&self.host)) {
            (Ok(shown), Ok(wanted)) => (shown, wanted),
            (a, b) => {
                let (a, b) = (a.map(|_| ()), b.map(|_| ()));
                let (a, b) = (a.map_err(|e| errno(&e)), b.map_err(|e| errno(&e)));
                assert_eq!(a, b, "{}: opening {path} (mount, host)", self.name);
                return;
            }
        };
        let meta = wanted.metadata().unwrap();
        if !meta.is_file() {
            return;
        }
        let maps =
            (meta.len() > 0).then(|| (act::mapped(&shown).unwrap(), act::mapped(&wanted).unwrap()));
        self.held[slot] = Some(Held { shown, wanted, maps });
    }

    fn held_act(&mut self, slot: usize, act: HeldAct) {
        if let HeldAct::Close = act {
            self.held[slot] = None;
        }
        let Some(held) = &mut self.held[slot] else { return };
        let who = format!("{}: held file {slot}", self.name);
        match act {
            HeldAct::Poke(offset, byte) => held.poke(offset, byte),
            HeldAct::Read(span) => {
                compare::range(&who, &held.shown, &held.wanted, span.offset, span.len);
            }
            other => {
                let (shown, wanted) = (one_side(other, &held.shown), one_side(other, &held.wanted));
                assert_eq!(shown, wanted, "{who}: {act:?} (mount, host)");
            }
        }
    }

    fn close(&mut self) {
        self.held = Default::default();
    }

    fn flush(&self) {
        self.held.iter().flatten().for_each(|held| flush(&held.shown));
    }

    fn compare(&self, cold: bool) {
        self.flush();
        compare::trees(&self.name, &self.dir, &self.host, cold);
        for (slot, held) in self.held.iter().enumerate() {
            let Some(held) = held else { continue };
            let who = format!("{}: held file {slot}", self.name);
            compare::files(&who, &held.shown, &held.wanted, cold);
            let nlink = |file: &File| file.metadata().unwrap().nlink();
            assert_eq!(nlink(&held.shown), nlink(&held.wanted), "{who}: nlink");
        }
    }
}

impl Held {
    fn poke(&mut self, offset: u64, byte: u8) {
        let Some((shown, wanted)) = &mut self.maps else { return };
        let end = self.wanted.metadata().unwrap().len().min(wanted.len() as u64).min(offset + 600);
        if offset < end {
            let bytes = act::pattern(offset, end - offset, byte);
            act::poke(shown, offset, &bytes);
            act::poke(wanted, offset, &bytes);
        }
    }
}

fn one_side(act: HeldAct, file: &File) -> Outcome {
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
    match act {
        HeldAct::Write(span, byte) => file
            .write_all_at(&act::pattern(span.offset, span.len, byte), span.offset)
            .map_err(errno)?,
        HeldAct::Truncate(size) => file.set_len(size).map_err(errno)?,
        HeldAct::Allocate(mode, span) => act::reserve(file, mode, span)?,
        HeldAct::Fsync => file.sync_data().map_err(errno)?,
        HeldAct::Poke(..) | HeldAct::Read(_) | HeldAct::Close => {}
    }
    Ok(0)
}
