//! From a branch to a server that answers: mount, start, first query.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use super::super::failure;
use super::super::mount::usual_options;
use super::reach::{self, Server};
use crate::catalog::{BranchRow, FileLock, LockError, Store};
use crate::postgres::config::Configuration;
use crate::postgres::instance::{Instance, Wishes};
use crate::postgres::launch::{self, Launch, Launched, PromoteWait, Waited};
use crate::postgres::locate::{self, Binaries};
use crate::postgres::owner::Owner;
use crate::postgres::postmaster::{self, StopMode};
use crate::postgres::runtime_dir::{self, RuntimeDir};
use crate::postgres::settings::{self, Guard, Kept, Purpose, Setting, Signals};
use crate::postgres::{DataDirectory, PostgresError, port, slots};
use crate::serve::lifecycle;
use crate::serve::server::MountRequest;
use crate::serve::unmount::{self, Target};
use crate::serve::{Failure, Request, Response, ServeError, control};

/// How often another port is tried when the one that was free is taken at the start.
const PORTS_TRIED_MAX: u16 = 20;
/// How long a mount that a failed start made may take to go again.
const UNDO_PATIENCE: Duration = Duration::from_secs(20);

/// What is asked of a start.
pub(in crate::cli) struct BringUp<'a> {
    pub store: &'a Store,
    pub row: &'a BranchRow,
    pub wishes: &'a Wishes,
    /// For each step.
    pub timeout: Duration,
    /// Whether the user has given up.
    pub interrupted: &'a dyn Fn() -> bool,
}

/// How long each step took.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(in crate::cli) struct Times {
    /// Mounting; 0 if it was mounted.
    pub mount_us: u64,
    /// From the start of the server until it took connections.
    pub start_us: u64,
    /// The first query.
    pub query_us: u64,
}

/// A server that runs.
pub(in crate::cli) struct Up {
    pub server: Server,
    /// It ran before.
    pub already: bool,
    pub times: Times,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Where the branch is mounted.
struct Place {
    dir: PathBuf,
    /// By this start: nobody has written anything since.
    fresh: bool,
    /// By this start or an earlier one, and not by the user.
    ours: bool,
}

/// All that is found out before the server is started.
struct Plan {
    binaries: Binaries,
    owner: Owner,
    config_file: PathBuf,
    configured: Configuration,
    kept: Kept,
    signals: Signals,
    settings: Vec<Setting>,
    socket_dir: PathBuf,
}

fn us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn lock(
    store: &Store,
    row: &BranchRow,
    patience: Duration,
) -> Result<FileLock, Failure> {
    store.lock_postgres(row.id, patience).map_err(|error| match error {
        LockError::Busy { .. } => Failure::new(
            "busy",
            format!("another command starts or stops branch {}: it is {error}", row.name),
        )
        .exit(4)
        .hint("wait for it to end"),
        LockError::Io { .. } => failure::of_lock_file(&error),
    })
}

/// Unmounts a branch that a start has mounted.
pub(in crate::cli) fn unmount(store: &Store, row: &BranchRow) -> Result<(), ServeError> {
    let target = Target::Branch(Box::new(row.clone()));
    unmount::unmount(store, &target, false, UNDO_PATIENCE).map(drop)
}

impl BringUp<'_> {
    /// Mounts the branch if need be, starts its server, and waits until it answers.
    pub fn run(&self) -> Result<Up, Failure> {
        let _lock = lock(self.store, self.row, self.timeout)?;
        let begin = Instant::now();
        let place = self.mount()?;
        let mut times = Times::default();
        if place.fresh {
            times.mount_us = us(begin);
        }
        let up = self.start(&place, &mut times);
        match up {
            Ok((server, already, notes)) => Ok(Up { server, already, times, notes }),
            Err(error) => {
                let goes_on = matches!(error, PostgresError::StillStarting { .. });
                if place.fresh && !goes_on {
                    self.undo_mount();
                }
                Err(failure::of_postgres(self.row.name.as_str(), &error))
            }
        }
    }

    fn undo_mount(&self) {
        if let Err(error) = unmount(self.store, self.row) {
            tracing::warn!(%error, "cannot unmount the branch again");
        }
        self.runtime_dir().remove();
    }

    fn runtime_dir(&self) -> RuntimeDir {
        RuntimeDir::of_branch(&self.store.root, self.row.id.0)
    }

    fn mount(&self) -> Result<Place, Failure> {
        let runtime = self.runtime_dir();
        // Nobody but a start mounts there.
        let ours = |dir: &Path| dir == runtime.mount_point();
        if let Some(dir) = reach::mount_point(self.store, self.row) {
            return Ok(Place { ours: ours(&dir), dir, fresh: false });
        }
        let dir = runtime.create_mount_point();
        let dir = dir.map_err(|error| failure::of_postgres(self.row.name.as_str(), &error))?;
        let options = usual_options().map_err(|error| error.to_failure())?;
        let request = MountRequest {
            branch: self.row.name.clone(),
            dir,
            options,
            threads: None,
            timeout: self.timeout,
        };
        match lifecycle::start(self.store, &request) {
            Ok(ready) => {
                for notice in &ready.notices {
                    tracing::info!("{notice}");
                }
                Ok(Place { dir: ready.mount_point, fresh: true, ours: true })
            }
            Err(error) => {
                let failure = error.to_failure();
                // Somebody else mounted it a moment ago.
                match reach::mount_point(self.store, self.row) {
                    Some(dir) if failure.kind == "already_mounted" => {
                        Ok(Place { ours: ours(&dir), dir, fresh: false })
                    }
                    _ => {
                        runtime.remove();
                        Err(failure)
                    }
                }
            }
        }
    }

    fn start(
        &self,
        place: &Place,
        times: &mut Times,
    ) -> Result<(Server, bool, Vec<String>), PostgresError> {
        let found = DataDirectory::probe(&place.dir)?;
        let mut notes = Vec::new();
        if let Some(server) = reach::find(self.store, self.row) {
            if !server.process.has_lost(&place.dir) {
                self.await_running(&server)?;
                return Ok((server, true, Vec::new()));
            }
            let pid = server.process.pid;
            if postmaster::stop(&server.process, StopMode::Immediate, UNDO_PATIENCE).is_err() {
                let _ = server.process.signal(Signal::SIGKILL);
            }
            notes.push(format!(
                "Postgres {pid} had lost its storage, whose server was killed: ended"
            ));
        }
        let plan = self.plan(place, found.major)?;
        let dir = &place.dir;
        if plan.owner.act(|| postmaster::take_stale_pid_file(dir))?? {
            notes.push("the server before was killed; its postmaster.pid is removed".to_owned());
        }
        let removed_slots = self.settle_slots(place, &plan)?;
        let durable = place.fresh && self.make_durable();
        let begin = Instant::now();
        let instance = self.launch(place, &plan, durable, &removed_slots)?;
        if plan.signals.any() && !plan.kept.keeps(Guard::Recovery) {
            let standby = plan.signals.standby;
            let log = reach::files(self.store, self.row).log();
            let (timeout, interrupted) = (self.timeout, self.interrupted);
            let wait = PromoteWait { timeout, log: &log, interrupted };
            launch::promote(dir, &instance.process, &plan.owner, standby, &wait)?;
            notes.push("it was a standby or a restore: promoted to a server of its own".to_owned());
        }
        times.start_us = us(begin);
        notes.extend(notes_of(&plan, &instance));
        let server = Server::of_instance(self.row.name.clone(), instance);
        let begin = Instant::now();
        if let Err(error) = server.ask_as(&plan.owner, "SELECT 1") {
            notes.push(format!(
                "it takes connections, but was not asked anything: {}",
                crate::serve::protocol::with_causes(&error)
            ));
        }
        times.query_us = us(begin);
        Ok((server, false, notes))
    }

    /// For a server that another start has left starting.
    fn await_running(&self, server: &Server) -> Result<(), PostgresError> {
        let deadline = Instant::now() + self.timeout;
        let log = reach::files(self.store, self.row).log();
        let wait = launch::wait_until_ready;
        match wait(&server.data_dir, &server.process, deadline, self.interrupted) {
            Waited::Ready(_) => Ok(()),
            Waited::Interrupted => Err(PostgresError::Interrupted),
            Waited::Ended => Err(PostgresError::DidNotStart {
                status: "it has ended".to_owned(),
                last_words: String::new(),
                log,
            }),
            Waited::TimedOut => Err(PostgresError::StillStarting {
                pid: server.process.pid,
                timeout: self.timeout,
                last_words: String::new(),
                log,
            }),
        }
    }

    fn plan(&self, place: &Place, major: u32) -> Result<Plan, PostgresError> {
        let wishes = self.wishes;
        let owner = Owner::of(&place.dir)?;
        let named = wishes.pg_bin.as_deref().or(self.row.pg_bin.as_deref());
        let binaries = Binaries::find(major, named)?;
        let config_file = self.config_file(&place.dir, major)?;
        let configured = Configuration::of_server(&config_file, &place.dir);
        let kept = self.kept();
        let signals = Signals::of(&place.dir);
        let socket_dir = self.runtime_dir().create_socket_dir(&owner)?;
        let purpose = Purpose {
            data_dir: &place.dir,
            socket_dir: &socket_dir,
            branch: self.row.name.as_str(),
            major,
            signals,
        };
        let settings = settings::settings(&purpose, &configured, &kept, &wishes.settings)?;
        Ok(Plan { binaries, owner, config_file, configured, kept, signals, settings, socket_dir })
    }

    /// What stays as configured: for the branch that is the cluster itself nearly everything.
    fn kept(&self) -> Kept {
        let asked = Kept::parse(&self.wishes.keep).unwrap_or_default();
        if is_the_original(self.row) && !self.wishes.harmless {
            asked.and(&Kept::of_the_original())
        } else {
            asked
        }
    }

    /// The user's configuration: as named, in the data directory, or where Debian has that of the
    /// cluster that the oldest ancestor was imported from.
    fn config_file(&self, dir: &Path, major: u32) -> Result<PathBuf, PostgresError> {
        if let Some(path) = &self.wishes.config_file {
            let found = path.canonicalize().ok().filter(|path| path.is_file());
            return found.ok_or_else(|| PostgresError::ConfigMissing { path: path.clone() });
        }
        let usual = dir.join("postgresql.conf");
        if usual.symlink_metadata().is_ok() {
            return Ok(usual);
        }
        let elsewhere = self.imported_from().and_then(|dir| locate::debian_config(&dir, major));
        elsewhere.ok_or_else(|| PostgresError::NoConfig { dir: dir.to_owned() })
    }

    /// The directory that the branch, or the oldest ancestor that is still there, was imported from.
    fn imported_from(&self) -> Option<PathBuf> {
        let mut row = self.row.clone();
        loop {
            let origin = row.origin.as_str();
            if let Some(dir) = origin.strip_prefix("import:").or(origin.strip_prefix("adopt:")) {
                return Some(PathBuf::from(dir));
            }
            row = self.store.catalog.branch_by_id(row.parent?).ok()??;
        }
    }

    /// At the first start of a fork its parent's slots go; see [`slots`].
    fn settle_slots(&self, place: &Place, plan: &Plan) -> Result<Vec<String>, PostgresError> {
        let (dir, id) = (place.dir.as_path(), self.row.id.0);
        plan.owner.act(|| {
            if slots::is_marked(dir, id) {
                return Ok(Vec::new());
            }
            let keep = plan.kept.keeps(Guard::Slots);
            let removed = if keep { Vec::new() } else { slots::remove_all(dir)? };
            slots::mark(dir, id)?;
            Ok(removed)
        })?
    }

    /// Has the serving process make everything durable; see [`launch`].
    fn make_durable(&self) -> bool {
        let asked = control::request(self.store, self.row.id, &Request::Sync, self.timeout);
        matches!(asked, Ok(Response::Synced))
    }

    /// Starts the server on a free port, and waits until it takes connections.
    fn launch(
        &self,
        place: &Place,
        plan: &Plan,
        durable: bool,
        removed_slots: &[String],
    ) -> Result<Instance, PostgresError> {
        let files = reach::files(self.store, self.row);
        let (own_config_file, log) = (self.runtime_dir().config_file(), files.log());
        let launch = Launch {
            binaries: &plan.binaries,
            data_dir: &place.dir,
            config_file: &plan.config_file,
            own_config_file: &own_config_file,
            owner: &plan.owner,
            settings: &plan.settings,
            durable,
            log: &log,
        };
        let seed = u64::from(runtime_dir::seed(&self.store.root) as u32) + self.row.id.0;
        let mut port = self.wishes.port.map_or_else(|| port::choose(seed), port::require)?;
        for _ in 0..PORTS_TRIED_MAX {
            let mut launched = launch.spawn(port)?;
            let instance = self.record(place, plan, &launched, port, removed_slots)?;
            let error = match launched.wait(&place.dir, self.timeout, self.interrupted) {
                Ok(_) => return Ok(instance),
                // It is found by the next start, or by a stop.
                Err(error @ PostgresError::StillStarting { .. }) => return Err(error),
                Err(error) => error,
            };
            // What stays is not believed: the process is gone.
            let _ = files.remove_record();
            let lost_port =
                matches!(error, PostgresError::DidNotStart { .. }) && !port::is_free(port);
            match (lost_port, self.wishes.port) {
                (false, _) => return Err(error),
                (true, Some(port)) => return Err(PostgresError::PortTaken { port }),
                (true, None) => port = port::choose_after(port)?,
            }
        }
        Err(PostgresError::NoFreePort { last: port })
    }

    fn record(
        &self,
        place: &Place,
        plan: &Plan,
        launched: &Launched,
        port: u16,
        removed_slots: &[String],
    ) -> Result<Instance, PostgresError> {
        let wishes = self.wishes.clone();
        let instance = Instance {
            process: launched.process.clone(),
            port,
            socket_dir: plan.socket_dir.clone(),
            data_dir: place.dir.clone(),
            bin_dir: plan.binaries.dir.clone(),
            user: wishes.user.clone().unwrap_or_else(|| plan.owner.database_user()),
            database: wishes.database.clone().unwrap_or_else(reach::default_database),
            since_ms: now_ms(),
            mounted_here: place.ours,
            settings: plan.settings.clone(),
            removed_slots: removed_slots.to_vec(),
            wishes,
        };
        match reach::files(self.store, self.row).write(&instance) {
            Ok(()) => Ok(instance),
            Err(source) => {
                let _ = postmaster::stop(&launched.process, StopMode::Immediate, UNDO_PATIENCE);
                let what = "recording the server".to_owned();
                Err(PostgresError::Host { what, source })
            }
        }
    }
}

/// Whether no other copy of the branch's cluster was ever made for it: it was created in the
/// branch, or adopted where it lay. A standby was made to follow its primary.
fn is_the_original(row: &BranchRow) -> bool {
    let origin = row.origin.as_str();
    origin == "empty" || origin.starts_with("adopt:") || origin.starts_with("standby:")
}

/// What would act in the parent's name and does not, as far as the configuration shows it.
fn notes_of(plan: &Plan, instance: &Instance) -> Vec<String> {
    let mut notes = Vec::new();
    let mut off = |guard: Guard, what: String| {
        if !plan.kept.keeps(guard) {
            notes.push(format!("{what} (--keep {} leaves it)", guard.name()));
        }
    };
    let configured = |name: &str| plan.configured.get(name).unwrap_or_default();
    if !matches!(
        configured("archive_mode").to_ascii_lowercase().as_str(),
        "" | "off" | "false" | "no" | "0"
    ) {
        off(Guard::Archive, "archive_mode is off".to_owned());
    }
    if !configured("synchronous_standby_names").is_empty() {
        off(Guard::SyncStandbys, "waits for no synchronous standby".to_owned());
    }
    if let Some(setting) = plan.settings.iter().find(|s| s.guard == Some(Guard::Workers)) {
        off(Guard::Workers, format!("shared_preload_libraries is '{}'", setting.value));
    }
    if !instance.removed_slots.is_empty() {
        let names = instance.removed_slots.join(", ");
        off(Guard::Slots, format!("the parent's replication slots are gone: {names}"));
    }
    notes
}

fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}
