//! Damaged stores, end to end: each file of a real store is cut, changed, exchanged or taken away; `cowfs
//! check` and `cowfs mount` must say what is wrong with which file, never panic, never serve wrong bytes or
//! zeros for what is lost, and other branches go on.
//!
//! Needs root and /dev/fuse; says so and passes otherwise.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod mount_support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cowfs::format::{FrameReader, LogHeader};
use mount_support::{PATIENCE, Said, Scene};

/// Every regular file of a tree, by its path in it.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// A store with the branches `main`, which nothing is done to, and `old`: an imported base, a sealed layer
/// with an index, and an open layer with a journal. `old` is not mounted.
struct Damaged {
    scene: Scene,
    truth: Tree,
}

/// What a mount of `old` showed: everything as it was, or some of it refused.
#[derive(Debug, PartialEq, Eq)]
enum Served {
    /// The mount itself was refused; what the command said.
    Refused(String),
    /// Mounted: names whose contents (or listing) were EIO, and the log of the serving process.
    Mounted { refused: Vec<PathBuf>, log: String },
}

fn pages(tag: u8, count: usize) -> Vec<u8> {
    (0..count * 4096).map(|at| tag ^ (at / 4096) as u8 ^ (at % 251) as u8).collect()
}

impl Damaged {
    fn new() -> Option<Damaged> {
        let scene = Scene::new()?;
        let tree = scene.temp.path().canonicalize().unwrap().join("tree");
        fs::create_dir_all(tree.join("base")).unwrap();
        for (name, tag) in [("base/1259", 1), ("base/1260", 2), ("PG_VERSION", 3)] {
            fs::write(tree.join(name), pages(tag, 5)).unwrap();
        }
        std::os::unix::fs::symlink("base", tree.join("link")).unwrap();
        scene.run(&["import", tree.to_str().unwrap(), "--any", "--as", "old"]).ok();
        scene.mount();
        fs::write(scene.dir.join("kept"), pages(9, 3)).unwrap();
        scene.run(&["unmount", "main"]).ok();
        scene.run(&["mount", "old", scene.dir()]).ok();
        let write = |name: &str, tag: u8| {
            fs::write(scene.dir.join(name), pages(tag, 4)).unwrap();
            let file = fs::OpenOptions::new().write(true).open(scene.dir.join("base/1259"));
            file.unwrap().write_all_at(&pages(tag, 1), u64::from(tag % 4) * 4096).unwrap();
        };
        write("sealed", 21);
        write("sealed-too", 22);
        scene.run(&["branch", "create", "child", "--from", "old"]).ok();
        write("open", 31);
        // Each sync is a frame of the journal.
        for (name, tag) in [("open-too", 32), ("open-last", 33)] {
            write(name, tag);
            fs::File::open(scene.dir.join(name)).unwrap().sync_all().unwrap();
        }
        fs::rename(scene.dir.join("sealed-too"), scene.dir.join("moved")).unwrap();
        fs::remove_file(scene.dir.join("base/1260")).unwrap();
        let truth = tree_of(&scene.dir).0;
        let damaged = Damaged { scene, truth };
        let index = damaged.layer(1).join("index");
        let deadline = Instant::now() + PATIENCE;
        while !index.exists() {
            assert!(Instant::now() < deadline, "the sealed layer gets no index");
            std::thread::sleep(Duration::from_millis(10));
        }
        damaged.scene.run(&["unmount", "old"]).ok();
        assert!(damaged.check().ok().starts_with("sound"));
        assert_eq!(damaged.served(), Served::Mounted { refused: Vec::new(), log: String::new() });
        Some(damaged)
    }

    /// The directory of a layer of `old`: 0 is the open one, 1 the sealed one, 2 the base.
    fn layer(&self, at: usize) -> PathBuf {
        let shown = self.scene.run(&["branch", "show", "old", "--json"]).ok();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        self.scene.store.join("layers").join(shown["layers"][at]["id"].as_str().unwrap())
    }

    fn check(&self) -> Said {
        let said = self.scene.run(&["check"]);
        no_panic(&said.err);
        said
    }

    /// Mounts `old` and compares all that it shows with what was written.
    fn served(&self) -> Served {
        let log = self.scene.run_file("2.log");
        let _ = fs::remove_file(&log);
        let said = self.scene.run(&["mount", "old", self.scene.dir()]);
        no_panic(&said.err);
        if said.code != 0 {
            assert!([1, 3].contains(&said.code), "exit code {}: {}", said.code, said.err);
            assert!(said.err.contains("Error: "), "{}", said.err);
            return Served::Refused(said.err);
        }
        let (found, refused) = tree_of(&self.scene.dir);
        let below = |path: &Path| refused.iter().any(|dir| path.starts_with(dir));
        for (path, bytes) in &self.truth {
            match found.get(path) {
                Some(found) => assert!(
                    found == bytes,
                    "wrong bytes in {}: {} of {} bytes",
                    path.display(),
                    found.len(),
                    bytes.len()
                ),
                None => assert!(below(path), "{} is missing, and nobody says so", path.display()),
            }
        }
        for path in found.keys() {
            assert!(self.truth.contains_key(path), "{} came from nowhere", path.display());
        }
        self.scene.run(&["unmount", "old"]).ok();
        let log = fs::read_to_string(&log).unwrap_or_default();
        no_panic(&log);
        let errors = log.lines().filter(|line| line.contains("ERROR")).collect::<Vec<_>>();
        Served::Mounted { refused, log: errors.join("\n") }
    }

    /// `check` must find the damage and name `file`; the mount must name it or serve nothing wrong.
    #[track_caller]
    fn is_noticed(&self, file: &Path, what: &str) {
        let name = file.to_str().unwrap();
        let checked = self.check();
        assert_eq!(checked.code, 3, "{what}: {}{}", checked.out, checked.err);
        assert!(checked.out.contains(name), "{what}: check does not name {name}: {}", checked.out);
        match self.served() {
            Served::Refused(error) => assert!(error.contains(name), "{what}: {error}"),
            Served::Mounted { refused, log } => {
                assert!(refused.is_empty() || log.contains(name), "{what}: {refused:?}: {log}");
            }
        }
    }

    /// Like [`Damaged::is_noticed`]; or what was lost is nothing that anybody can see.
    #[track_caller]
    fn is_noticed_or_harmless(&self, file: &Path, what: &str) {
        if self.check().code != 0 {
            return self.is_noticed(file, what);
        }
        let served = self.served();
        let whole = matches!(&served, Served::Mounted { refused, .. } if refused.is_empty());
        assert!(whole, "{what}: check says sound, the mount: {served:?}");
    }

    fn others_go_on(&self) {
        self.scene.mount();
        assert_eq!(fs::read(self.scene.dir.join("kept")).unwrap(), pages(9, 3));
        fs::write(self.scene.dir.join("more"), "goes on").unwrap();
        self.scene.run(&["unmount", "main"]).ok();
    }

    /// Does `change` to a file, then `look`, then puts the file back.
    fn with_changed(&self, file: &Path, bytes: &[u8], look: impl FnOnce(&Self)) {
        let good = fs::read(file).unwrap();
        fs::write(file, bytes).unwrap();
        look(self);
        fs::write(file, good).unwrap();
    }
}

#[track_caller]
fn no_panic(text: &str) {
    assert!(!text.contains("panicked"), "{text}");
}

/// The regular files below a mount, and what could not be read.
fn tree_of(root: &Path) -> (Tree, Vec<PathBuf>) {
    let (mut files, mut refused) = (Tree::new(), Vec::new());
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let here = root.join(&path);
        let mut eio = |error: std::io::Error| {
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{}: {error}", path.display());
            refused.push(path.clone());
        };
        match fs::symlink_metadata(&here) {
            Err(error) => eio(error),
            Ok(meta) if meta.is_dir() => match fs::read_dir(&here) {
                Err(error) => eio(error),
                Ok(entries) => {
                    for entry in entries {
                        match entry {
                            Ok(entry) => pending.push(path.join(entry.file_name())),
                            Err(error) => eio(error),
                        }
                    }
                }
            },
            Ok(meta) if meta.is_file() => match fs::read(&here) {
                Ok(bytes) => drop(files.insert(path, bytes)),
                Err(error) => eio(error),
            },
            Ok(_) => {}
        }
    }
    (files, refused)
}

fn flipped(good: &[u8], bit: usize) -> Vec<u8> {
    let mut bad = good.to_vec();
    bad[bit / 8] ^= 1 << (bit % 8);
    bad
}

/// About `count` numbers below `end`, the first and the last among them.
fn spread(end: usize, count: usize) -> Vec<usize> {
    let step = (end / count).max(1);
    let mut all: Vec<usize> = (0..end).step_by(step).collect();
    all.push(end - 1);
    all
}

#[test]
fn mount_over_an_index_that_is_cut_or_changed() {
    let Some(damaged) = Damaged::new() else { return };
    for at in [1, 2] {
        let index = damaged.layer(at).join("index");
        let good = fs::read(&index).unwrap();
        for len in spread(good.len(), 12) {
            let what = format!("index of layer {at} cut to {len} bytes");
            damaged.with_changed(&index, &good[..len], |d| d.is_noticed(&index, &what));
        }
        // Header, every section, checksums, footer.
        for byte in spread(good.len(), 40) {
            let bit = byte * 8 + byte % 8;
            let what = format!("index of layer {at} with bit {bit} flipped");
            damaged.with_changed(&index, &flipped(&good, bit), |d| d.is_noticed(&index, &what));
        }
        let foreign = b"something else entirely".repeat(20);
        damaged.with_changed(&index, &foreign, |d| d.is_noticed(&index, "foreign bytes"));
        let mut future = good.clone();
        future[8] = 200;
        damaged.with_changed(&index, &future, |d| {
            let Served::Refused(error) = d.served() else { panic!("a future version is served") };
            assert!(error.contains("version 200"), "{error}");
            d.is_noticed(&index, "a future version");
        });
    }
    damaged.others_go_on();
    assert!(damaged.check().ok().starts_with("sound"));
}

#[test]
fn mount_over_a_journal_that_is_changed() {
    let Some(damaged) = Damaged::new() else { return };
    let journal = damaged.layer(0).join("journal");
    let good = fs::read(&journal).unwrap();
    let mut frames = FrameReader::new(&good[LogHeader::BYTES..], 1);
    let all: Vec<_> = frames.by_ref().map(Result::unwrap).collect();
    let last = LogHeader::BYTES + all.last().unwrap().offset as usize;
    assert!(all.len() > 1, "the journal has only one frame");
    // The header, but for the bytes that nobody reads; then length, checksum, sequence and records of each
    // frame that others follow.
    for byte in spread(last, 60) {
        let bit = byte * 8 + byte % 8;
        let what = format!("journal with bit {bit} flipped");
        damaged.with_changed(&journal, &flipped(&good, bit), |d| d.is_noticed(&journal, &what));
    }
    let mut future = good.clone();
    future[8] = 200;
    damaged.with_changed(&journal, &future, |d| {
        let Served::Refused(error) = d.served() else { panic!("a future version is served") };
        assert!(error.contains("version 200"), "{error}");
    });
    let foreign = b"not a log at all".repeat(20);
    damaged.with_changed(&journal, &foreign, |d| d.is_noticed(&journal, "foreign bytes"));
    damaged.others_go_on();
    assert!(damaged.check().ok().starts_with("sound"));
}

/// What follows the last synced frame is what a power cut leaves, so a log that ends early is served as of an
/// earlier moment (docs/SEMANTICS.md says so): each file as it was then, and nothing that never was.
#[test]
fn mount_over_a_journal_that_ends_early_shows_an_earlier_moment() {
    let Some(damaged) = Damaged::new() else { return };
    let journal = damaged.layer(0).join("journal");
    let (good, store) = (fs::read(&journal).unwrap(), damaged.scene.store.clone());
    let copy = damaged.scene.temp.path().join("copy");
    for len in spread(good.len(), 12) {
        // Such a mount removes what the shorter journal does not mention: each gets a store of its own.
        let status = std::process::Command::new("cp").arg("-a").args([&store, &copy]).status();
        assert!(status.unwrap().success());
        let short = copy.join(journal.strip_prefix(&store).unwrap());
        fs::write(&short, &good[..len]).unwrap();
        let run = |args: &[&str]| {
            let mut command = damaged.scene.command(args);
            mount_support::said(&command.env("COWFS_STORE", &copy).output().unwrap())
        };
        let mounted = run(&["mount", "old", damaged.scene.dir()]);
        no_panic(&mounted.err);
        if mounted.code == 0 {
            let (found, _refused) = tree_of(&damaged.scene.dir);
            for (path, bytes) in found.iter().filter(|(path, _)| !path.starts_with("base")) {
                let name = path.to_str().unwrap().replace("sealed-too", "moved");
                let truth = damaged.truth.get(Path::new(&name));
                // A file that was being written may be shorter, never other.
                let right = truth.is_some_and(|truth| truth.starts_with(bytes));
                assert!(right, "cut to {len}: wrong bytes in {}", path.display());
            }
            run(&["unmount", "old"]).ok();
        } else {
            assert!(mounted.err.contains("Error: "), "{}", mounted.err);
        }
        fs::remove_dir_all(&copy).unwrap();
    }
}

#[test]
fn mount_over_layers_whose_files_were_exchanged() {
    let Some(damaged) = Damaged::new() else { return };
    let (open, sealed, base) = (damaged.layer(0), damaged.layer(1), damaged.layer(2));
    let (upper, lower) = (sealed.join("index"), base.join("index"));
    let lower_bytes = fs::read(&lower).unwrap();
    damaged.with_changed(&upper, &lower_bytes, |d| d.is_noticed(&upper, "the index of the base"));
    let upper_bytes = fs::read(&upper).unwrap();
    damaged.with_changed(&lower, &upper_bytes, |d| d.is_noticed(&lower, "the index above"));
    // The journal of another branch, and a volatile log in the place of a journal.
    let journal = open.join("journal");
    let good = fs::read(&journal).unwrap();
    let main = damaged.scene.run(&["branch", "show", "main", "--json"]).ok();
    let main: serde_json::Value = serde_json::from_str(&main).unwrap();
    let foreign = main["layers"][0]["id"].as_str().unwrap();
    let foreign = fs::read(damaged.scene.store.join("layers").join(foreign).join("journal"));
    damaged.with_changed(&journal, &foreign.unwrap(), |d| {
        d.is_noticed(&journal, "the journal of another branch");
    });
    let header = LogHeader::decode(&good).unwrap();
    let header = LogHeader { kind: cowfs::format::LogKind::Volatile, ..header };
    let volatile = [&header.encode()[..], &good[LogHeader::BYTES..]].concat();
    damaged.with_changed(&journal, &volatile, |d| {
        d.is_noticed(&journal, "a volatile log in its place");
    });
    // Whole directories.
    let away = damaged.scene.temp.path().join("away");
    let exchange = || {
        fs::rename(&sealed, &away).unwrap();
        fs::rename(&base, &sealed).unwrap();
        fs::rename(&away, &base).unwrap();
    };
    exchange();
    damaged.is_noticed(&upper, "directories of layers exchanged");
    exchange();
    damaged.others_go_on();
    assert!(damaged.check().ok().starts_with("sound"));
}

/// The data files of a layer that hold more than a page.
fn data_files(layer: &Path) -> Vec<PathBuf> {
    let groups = fs::read_dir(layer.join("data")).unwrap().map(|group| group.unwrap().path());
    let files = groups.flat_map(|group| fs::read_dir(group).unwrap());
    let files = files.map(|file| file.unwrap().path());
    files.filter(|file| fs::metadata(file).unwrap().len() > 4096).collect()
}

#[test]
fn mount_over_data_files_that_are_missing_or_short() {
    let Some(damaged) = Damaged::new() else { return };
    for at in [0, 1, 2] {
        let files = data_files(&damaged.layer(at));
        assert!(files.len() > 1, "{files:?}");
        for file in files {
            let good = fs::read(&file).unwrap();
            for len in [0, 1, 4096, 4097, good.len() - 4096] {
                let what = format!("{} cut to {len} of {} bytes", file.display(), good.len());
                damaged
                    .with_changed(&file, &good[..len], |d| d.is_noticed_or_harmless(&file, &what));
            }
            damaged.with_changed(&file, b"", |d| d.is_noticed(&file, "empty"));
            let away = damaged.scene.temp.path().join("away");
            fs::rename(&file, &away).unwrap();
            damaged.is_noticed(&file, "missing");
            // A link in its place is not followed, to whatever it leads.
            let decoy = damaged.scene.temp.path().join("decoy");
            fs::write(&decoy, vec![b'!'; good.len()]).unwrap();
            std::os::unix::fs::symlink(&decoy, &file).unwrap();
            damaged.is_noticed(&file, "a link in its place");
            fs::remove_file(&file).unwrap();
            fs::rename(&away, &file).unwrap();
        }
    }
    damaged.others_go_on();
    assert!(damaged.check().ok().starts_with("sound"));
}

/// To open a FIFO is to wait for whoever opens the other end, and a device never ends.
#[test]
fn check_and_mount_over_what_is_no_regular_file() {
    let Some(damaged) = Damaged::new() else { return };
    damaged.scene.run(&["check", "--add-checksums"]).ok();
    let sealed = damaged.layer(1);
    fs::copy(sealed.join("index"), sealed.join("merged")).unwrap();
    let mut files: Vec<PathBuf> =
        ["index", "merged", "sums"].into_iter().map(|name| sealed.join(name)).collect();
    files.push(damaged.layer(0).join("journal"));
    files.extend(data_files(&sealed));
    files.extend(data_files(&damaged.layer(0)));
    let away = damaged.scene.temp.path().join("away");
    for file in files {
        fs::rename(&file, &away).unwrap();
        let put = |what: &str, put: &dyn Fn()| {
            put();
            damaged.is_noticed(&file, &format!("{what} as {}", file.display()));
            fs::remove_file(&file).or_else(|_| fs::remove_dir(&file)).unwrap();
        };
        put("a FIFO", &|| nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap());
        put("an endless link", &|| std::os::unix::fs::symlink("/dev/zero", &file).unwrap());
        put("a directory", &|| fs::create_dir(&file).unwrap());
        fs::rename(&away, &file).unwrap();
    }
    fs::remove_file(sealed.join("merged")).unwrap();
    damaged.others_go_on();
    assert!(damaged.check().ok().starts_with("sound"));
}

/// Nobody reads what is not cowfs's; but somebody put it there, and it takes space.
#[test]
fn check_tells_of_strangers_among_the_layers() {
    let Some(damaged) = Damaged::new() else { return };
    let (layers, layer) = (damaged.scene.store.join("layers"), damaged.layer(1));
    let names = ["foo", "0000DEADBEEF", "with\nline end"].map(|name| layers.join(name));
    let inside = ["strange", "data/zzz/2", "data/0/zzz", "data/0/00f"].map(|name| layer.join(name));
    for file in names.iter().chain(&inside) {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "x").unwrap();
    }
    let said = damaged.check().ok();
    assert!(said.starts_with("sound"), "{said}");
    assert!(said.contains("/with\\nline end: not a file of cowfs"), "{said}");
    let said = damaged.scene.run(&["check", "--json"]).ok();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let told = said["strangers"].as_array().unwrap();
    for file in names.iter().chain(&inside) {
        let told = told.iter().any(|path| path.as_str() == file.to_str());
        assert!(told || file.ends_with("data/zzz/2"), "{}: {said}", file.display());
    }
    assert_eq!(told.len(), 7, "{said}");
}

#[test]
fn mount_over_a_missing_layer() {
    let Some(damaged) = Damaged::new() else { return };
    for at in [0, 1, 2] {
        let layer = damaged.layer(at);
        let away = damaged.scene.temp.path().join("away");
        fs::rename(&layer, &away).unwrap();
        let name = layer.file_name().unwrap().to_str().unwrap();
        let Served::Refused(error) = damaged.served() else { panic!("layer {at} is not missed") };
        assert!(error.contains(name) && error.contains("Hint: "), "{error}");
        let checked = damaged.check();
        assert!(checked.code == 3 && checked.out.contains(name), "{}", checked.out);
        damaged.others_go_on();
        fs::rename(&away, &layer).unwrap();
    }
    assert!(damaged.check().ok().starts_with("sound"));
}

/// Runs SQL on the catalog of a copy of it, and puts the good one back after `look`.
fn with_catalog(damaged: &Damaged, sql: &str, look: impl FnOnce()) {
    let catalog = damaged.scene.store.join("catalog.sqlite");
    let connection = rusqlite::Connection::open(&catalog).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let good = fs::read(&catalog).unwrap();
    connection.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}")).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(connection);
    look();
    put_back(damaged, &good);
}

fn put_back(damaged: &Damaged, catalog: &[u8]) {
    for name in ["catalog.sqlite-wal", "catalog.sqlite-shm"] {
        let _ = fs::remove_file(damaged.scene.store.join(name));
    }
    fs::write(damaged.scene.store.join("catalog.sqlite"), catalog).unwrap();
}

#[test]
fn mount_with_a_catalog_that_contradicts_itself() {
    let Some(damaged) = Damaged::new() else { return };
    let id = |at: usize| {
        let layer = damaged.layer(at);
        i64::from_str_radix(layer.file_name().unwrap().to_str().unwrap(), 16).unwrap()
    };
    let (open, sealed, base) = (id(0), id(1), id(2));
    let cases = [
        ("a cycle", format!("UPDATE layers SET parent = {open} WHERE id = {base}")),
        ("a missing parent", format!("DELETE FROM layers WHERE id = {base}")),
        ("a missing head", format!("DELETE FROM layers WHERE id = {open}")),
        (
            "a layer that is its own parent",
            format!("UPDATE layers SET parent = id WHERE id = {sealed}"),
        ),
        ("a depth that does not fit", format!("UPDATE layers SET depth = 77 WHERE id = {sealed}")),
        (
            "a base that is not the lowest",
            format!("UPDATE layers SET depth = depth + 1 WHERE id = {base}"),
        ),
    ];
    for (what, sql) in &cases {
        with_catalog(&damaged, sql, || {
            let checked = damaged.check();
            let all = format!("{}{}", checked.out, checked.err);
            assert_eq!(checked.code, 3, "{what}: {all}");
            assert!(all.contains("catalog") || all.contains("layer"), "{what}: {all}");
            let Served::Refused(error) = damaged.served() else { panic!("{what} is served") };
            assert!(error.contains("layer"), "{what}: {error}");
            damaged.others_go_on();
        });
    }
    with_catalog(&damaged, "PRAGMA user_version = 5", || {
        let Served::Refused(error) = damaged.served() else { panic!("a future catalog is served") };
        assert!(error.contains("catalog") && error.contains("version 4"), "{error}");
        assert_eq!(damaged.check().code, 1, "a newer version is not damage");
    });
    with_catalog(&damaged, "UPDATE branches SET name = 'no name' WHERE name = 'old'", || {
        let said = damaged.check();
        assert_eq!(said.code, 3, "{}{}", said.out, said.err);
    });
    with_catalog(&damaged, "UPDATE branches SET begins = 777", || {
        let said = damaged.check();
        assert_eq!(said.code, 3, "{}{}", said.out, said.err);
        assert!(said.out.contains("with which it began"), "{}", said.out);
    });
    assert!(damaged.check().ok().starts_with("sound"));
}

#[test]
fn mount_with_a_catalog_of_flipped_bits() {
    let Some(damaged) = Damaged::new() else { return };
    with_catalog(&damaged, "", || {});
    let good = fs::read(damaged.scene.store.join("catalog.sqlite")).unwrap();
    for byte in spread(good.len(), 60).into_iter().chain([0, 16, 18, 24, 28, 44, 60, 68, 100]) {
        put_back(&damaged, &flipped(&good, byte * 8 + byte % 8));
        let checked = damaged.check();
        assert!([0, 1, 3].contains(&checked.code), "byte {byte}: {}{}", checked.out, checked.err);
        // The names of branches have no checksum; what they lead to does.
        let said = damaged.scene.run(&["branch", "list"]);
        no_panic(&said.err);
        if said.code == 0 && said.out.contains("old ") {
            damaged.served();
        }
    }
    put_back(&damaged, &good);
    assert!(damaged.check().ok().starts_with("sound"));
    damaged.others_go_on();
}

#[test]
fn mount_a_store_whose_format_file_is_damaged() {
    let Some(damaged) = Damaged::new() else { return };
    let format = damaged.scene.store.join("FORMAT");
    let good = fs::read(&format).unwrap();
    let mut huge = good.clone();
    huge.resize(100_000, b' ');
    huge.push(b'x');
    for bytes in [&b""[..], b"\0\0\0\0", b"{}", &good[..good.len() / 2], b"[1]"] {
        damaged.with_changed(&format, bytes, |d| {
            let checked = d.check().fails(3);
            assert!(checked.contains("FORMAT is damaged"), "{checked}");
            let Served::Refused(error) = d.served() else { panic!("served") };
            assert!(error.contains("FORMAT is damaged"), "{error}");
        });
    }
    damaged.with_changed(&format, &huge, |d| no_panic(&d.check().err));
    fs::remove_file(&format).unwrap();
    assert!(damaged.check().fails(1).contains("is not a cowfs store"));
    fs::create_dir(&format).unwrap();
    assert!(damaged.check().code != 0);
    fs::remove_dir(&format).unwrap();
    fs::write(&format, good).unwrap();
    assert!(damaged.check().ok().starts_with("sound"));
    damaged.others_go_on();
}

/// Found by fuzzing: a frame with a right checksum may say anything, also that the next file has
/// the last of all numbers; the one after it was that of another file.
#[test]
fn inode_numbers_that_no_branch_gets_to_are_damage() {
    use cowfs::branch::create::create_empty;
    use cowfs::branch::fork::Requester;
    use cowfs::branch::{Branch, BranchError, OpenMode};
    use cowfs::catalog::Store;
    use cowfs::format::{FrameReader, Ino, LogHeader, Record, encode_frame};

    let dir = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(Store::init(&dir.path().join("store")).unwrap());
    let by = Requester { uid: 0, command: "test".to_owned() };
    let row = create_empty(&store, "main".parse().unwrap(), &by).unwrap();
    let journal = store.layer_dir(row.head).join("journal");
    let good = fs::read(&journal).unwrap();
    let mut frames = FrameReader::new(&good[LogHeader::BYTES..], 1);
    for frame in frames.by_ref() {
        frame.unwrap();
    }
    for last in [Ino::LAST.0 + 2, u64::MAX] {
        let mut bad = good.clone();
        encode_frame(frames.next_sequence(), &[Record::NextIno(Ino(last))], &mut bad);
        fs::write(&journal, &bad).unwrap();
        let options = cowfs::check::Options::default();
        let found = cowfs::check::check(&store, &options, &mut |_| ()).unwrap().damage;
        assert!(found.iter().any(|damage| format!("{damage:?}").contains("inode number")));
        let lock = store.lock_branch(row.id).unwrap();
        let opened = Branch::open(store.clone(), row.clone(), lock, OpenMode::ReadWrite);
        let Err(error) = opened else { panic!("{last} was taken") };
        assert!(matches!(error, BranchError::InodeNumbers { .. }), "{error}");
    }
    fs::write(&journal, &good).unwrap();
    let lock = store.lock_branch(row.id).unwrap();
    Branch::open(store.clone(), row, lock, OpenMode::ReadWrite).unwrap().close().unwrap();
}
