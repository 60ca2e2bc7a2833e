//! The settings with which a branch's server is started.
//!
//! They are given on the command line, which wins over every file: the user's files stay as they
//! are, and `ALTER SYSTEM` in the branch cannot undo them by accident. Two kinds:
//!
//! - **needed**: where the branch lies and listens. Not to be turned off.
//! - **harmless**: what keeps the server from acting in its parent's name. Each has the name of a
//!   [`Guard`], by which it is turned off.

use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::PostgresError;
use super::config::Configuration;

/// Libraries that act by themselves on schedules or on other systems, and so in the parent's name.
/// Libraries that only watch, or work on the branch's own data, stay.
const ACTING_LIBRARIES: [&str; 12] = [
    "pg_cron",
    "pg_net",
    "pg_task",
    "pglogical",
    "spock",
    "bdr",
    "pgactive",
    "repmgr",
    "pgautofailover",
    "pg_failover_slots",
    "pg_partman_bgw",
    "citus",
];

/// Settings that say where the branch lies and listens: `-c` may not change them.
const RESERVED: [&str; 4] = ["data_directory", "config_file", "unix_socket_directories", "port"];

/// A group of settings that keeps a branch harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guard {
    /// Listens on loopback only.
    Listen,
    /// Ships no WAL to the parent's archive.
    Archive,
    /// Waits for no standby of the parent.
    SyncStandbys,
    /// Has none of the parent's replication slots.
    Slots,
    /// Runs no subscriptions: they would take the parent's changes from its publishers.
    Subscriptions,
    /// Loads no libraries that act by themselves.
    Workers,
    /// Follows no primary and restores from no archive; a fork of a standby is promoted.
    Recovery,
    /// Logs to its own log only.
    Logging,
}

/// All guards, in the order in which they are shown.
pub const GUARDS: [Guard; 8] = [
    Guard::Listen,
    Guard::Archive,
    Guard::SyncStandbys,
    Guard::Slots,
    Guard::Subscriptions,
    Guard::Workers,
    Guard::Recovery,
    Guard::Logging,
];

impl Guard {
    /// The name by which it is turned off.
    pub fn name(self) -> &'static str {
        match self {
            Guard::Listen => "listen",
            Guard::Archive => "archive",
            Guard::SyncStandbys => "sync-standbys",
            Guard::Slots => "slots",
            Guard::Subscriptions => "subscriptions",
            Guard::Workers => "workers",
            Guard::Recovery => "recovery",
            Guard::Logging => "logging",
        }
    }
}

impl FromStr for Guard {
    type Err = String;

    fn from_str(text: &str) -> Result<Guard, String> {
        GUARDS.into_iter().find(|guard| guard.name() == text).ok_or_else(|| {
            let names: Vec<&str> = GUARDS.iter().map(|guard| guard.name()).collect();
            format!("{text:?} is none of {} and all", names.join(", "))
        })
    }
}

/// What `--keep` asked for: guards that are turned off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept(Vec<Guard>);

impl Kept {
    /// Nothing is guarded.
    pub fn all() -> Kept {
        Kept(GUARDS.to_vec())
    }

    /// What the branch that *is* the cluster keeps: everything but where it listens. Its archive,
    /// slots and subscriptions are nobody else's.
    pub fn of_the_original() -> Kept {
        Kept(GUARDS.into_iter().filter(|&guard| guard != Guard::Listen).collect())
    }

    /// Parses the names given, each a guard or `all`.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Kept, String> {
        let mut kept = Kept::default();
        for name in names.iter().map(|name| name.as_ref().trim()).filter(|name| !name.is_empty()) {
            match name {
                "all" => kept = Kept::all(),
                name => kept.0.push(name.parse()?),
            }
        }
        Ok(kept)
    }

    /// Both.
    #[must_use]
    pub fn and(mut self, other: &Kept) -> Kept {
        self.0.extend(&other.0);
        self.0.sort();
        self.0.dedup();
        self
    }

    /// Whether a guard is turned off.
    pub fn keeps(&self, guard: Guard) -> bool {
        self.0.contains(&guard)
    }
}

/// One setting that differs from what the files say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// The guard that it belongs to; none if the branch needs it, or the user gave it.
    pub guard: Option<Guard>,
}

/// What a server is started for.
#[derive(Clone, Copy, Debug)]
pub struct Purpose<'a> {
    /// The data directory.
    pub data_dir: &'a Path,
    /// Where its socket goes.
    pub socket_dir: &'a Path,
    /// Name of the branch.
    pub branch: &'a str,
    /// Major version.
    pub major: u32,
    /// Whether the data directory asks for recovery or standby (`*.signal`).
    pub signals: Signals,
}

/// The signal files of a data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signals {
    /// `standby.signal`: follows a primary.
    pub standby: bool,
    /// `recovery.signal`: restores from an archive up to a target.
    pub recovery: bool,
}

impl Signals {
    /// Looks for them in `dir`.
    pub fn of(dir: &Path) -> Signals {
        let has = |name: &str| dir.join(name).symlink_metadata().is_ok();
        Signals { standby: has("standby.signal"), recovery: has("recovery.signal") }
    }

    /// Whether there is one.
    pub fn any(self) -> bool {
        self.standby || self.recovery
    }
}

/// A `name=value` of `-c`.
pub fn parse_assignment(text: &str) -> Result<(String, String), String> {
    let rule = || format!("{text:?} is not name=value");
    let (name, value) = text.split_once('=').ok_or_else(rule)?;
    let name = name.trim().to_ascii_lowercase().replace('-', "_");
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    if name.is_empty() || !name.chars().all(fits) {
        Err(rule())
    } else {
        Ok((name, value.to_owned()))
    }
}

/// Everything that is set at the start of a branch's server, except its port: ours first, then
/// what the user gave with `-c`, which replaces ours of the same name.
pub fn settings(
    purpose: &Purpose<'_>,
    configured: &Configuration,
    kept: &Kept,
    given: &[(String, String)],
) -> Result<Vec<Setting>, PostgresError> {
    if let Some((name, _)) = given.iter().find(|(name, _)| RESERVED.contains(&name.as_str())) {
        return Err(PostgresError::ReservedSetting { name: name.clone() });
    }
    let mut settings = needed(purpose, configured);
    for guard in GUARDS.into_iter().filter(|&guard| !kept.keeps(guard)) {
        let guarded = guarded(guard, purpose, configured);
        settings.extend(guarded.into_iter().map(|(name, value)| Setting {
            name: name.to_owned(),
            value,
            guard: Some(guard),
        }));
    }
    settings.retain(|ours| given.iter().all(|(name, _)| *name != ours.name));
    settings.extend(given.iter().map(|(name, value)| Setting {
        name: name.clone(),
        value: value.clone(),
        guard: None,
    }));
    Ok(settings)
}

fn needed(purpose: &Purpose<'_>, configured: &Configuration) -> Vec<Setting> {
    let text = |path: &Path| path.display().to_string();
    let mut needed = vec![
        // A configuration that names another directory would start the parent's cluster.
        ("data_directory", text(purpose.data_dir)),
        ("unix_socket_directories", text(purpose.socket_dir)),
        ("cluster_name", purpose.branch.to_owned()),
    ];
    // Files that the parent writes too, outside of its data directory.
    if configured.get("external_pid_file").is_some_and(|path| !path.is_empty()) {
        needed.push(("external_pid_file", String::new()));
    }
    if purpose.major < 15 && configured.get("stats_temp_directory").is_some() {
        needed.push(("stats_temp_directory", "pg_stat_tmp".to_owned()));
    }
    let setting =
        |(name, value): (&str, String)| Setting { name: name.to_owned(), value, guard: None };
    needed.into_iter().map(setting).collect()
}

fn guarded(
    guard: Guard,
    purpose: &Purpose<'_>,
    configured: &Configuration,
) -> Vec<(&'static str, String)> {
    let word = |text: &str| text.to_owned();
    match guard {
        Guard::Listen => vec![("listen_addresses", word("127.0.0.1"))],
        Guard::Archive => vec![("archive_mode", word("off"))],
        Guard::SyncStandbys => vec![("synchronous_standby_names", word(""))],
        // Removed before the first start (slots.rs): no setting drops them.
        Guard::Slots => Vec::new(),
        Guard::Subscriptions => vec![("max_logical_replication_workers", word("0"))],
        Guard::Workers => {
            let configured = configured.get("shared_preload_libraries").unwrap_or_default();
            let filtered = without_acting(configured);
            filtered.map(|rest| ("shared_preload_libraries", rest)).into_iter().collect()
        }
        Guard::Recovery => recovery(purpose, configured),
        Guard::Logging => {
            vec![("logging_collector", word("off")), ("log_destination", word("stderr"))]
        }
    }
}

/// What follows another server, or restores from its archive.
const RECOVERY: [&str; 9] = [
    "primary_conninfo",
    "primary_slot_name",
    "recovery_end_command",
    "archive_cleanup_command",
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

fn recovery(purpose: &Purpose<'_>, configured: &Configuration) -> Vec<(&'static str, String)> {
    let is_set = |name: &str| configured.get(name).is_some_and(|value| !value.is_empty());
    let any = purpose.signals.any();
    let names = RECOVERY.into_iter().filter(|name| any || is_set(name));
    let mut settings: Vec<_> = names.map(|name| (name, String::new())).collect();
    // Archive recovery wants a command; one that finds nothing ends it at the WAL at hand.
    if any || is_set("restore_command") {
        let archive = any && !purpose.signals.standby;
        settings.push(("restore_command", if archive { "false" } else { "" }.to_owned()));
    }
    // A standby that lags on purpose would replay each commit so much later, in a restore, too.
    if is_set("recovery_min_apply_delay") {
        settings.push(("recovery_min_apply_delay", "0".to_owned()));
    }
    settings
}

/// The list without libraries that act by themselves; `None` if there are none of these in it.
fn without_acting(libraries: &str) -> Option<String> {
    let all: Vec<&str> = libraries
        .split(',')
        .map(|name| name.trim().trim_matches('"'))
        .filter(|name| !name.is_empty())
        .collect();
    let acts = |name: &str| {
        let file = name.rsplit('/').next().unwrap_or(name);
        ACTING_LIBRARIES.contains(&file.trim_end_matches(".so"))
    };
    let rest: Vec<&str> = all.iter().copied().filter(|name| !acts(name)).collect();
    (rest.len() < all.len()).then(|| rest.join(","))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn purpose(signals: Signals) -> Purpose<'static> {
        Purpose {
            data_dir: Path::new("/d"),
            socket_dir: Path::new("/s"),
            branch: "b",
            major: 15,
            signals,
        }
    }

    fn configured(text: &str) -> Configuration {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("c"), text).unwrap();
        Configuration::read(&dir.path().join("c"))
    }

    fn value(settings: &[Setting], name: &str) -> Option<String> {
        let found: Vec<_> = settings.iter().filter(|setting| setting.name == name).collect();
        assert!(found.len() <= 1, "{name} twice: {found:?}");
        found.first().map(|setting| setting.value.clone())
    }

    fn set(text: &str, kept: &[&str], given: &[(&str, &str)]) -> Vec<Setting> {
        let given: Vec<_> = given.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let kept = Kept::parse(kept).unwrap();
        settings(&purpose(Signals::default()), &configured(text), &kept, &given).unwrap()
    }

    #[test]
    fn a_fork_is_harmless() {
        let text = "archive_mode = on\nshared_preload_libraries = 'pg_stat_statements, pg_cron'\n\
                    external_pid_file = '/run/x.pid'\ndata_directory = '/parent'\n";
        let all = set(text, &[], &[]);
        let expected = [
            ("data_directory", "/d"),
            ("cluster_name", "b"),
            ("external_pid_file", ""),
            ("listen_addresses", "127.0.0.1"),
            ("archive_mode", "off"),
            ("synchronous_standby_names", ""),
            ("max_logical_replication_workers", "0"),
            ("shared_preload_libraries", "pg_stat_statements"),
            ("logging_collector", "off"),
        ];
        for (name, wanted) in expected {
            assert_eq!(value(&all, name).as_deref(), Some(wanted), "{name}");
        }
        assert_eq!(value(&all, "primary_conninfo"), None, "only where a signal file asks for it");
    }

    #[test]
    fn guards_are_turned_off_by_name() {
        let some = set("shared_preload_libraries = 'pg_cron'", &["archive", "workers"], &[]);
        assert_eq!(value(&some, "archive_mode"), None);
        assert_eq!(value(&some, "shared_preload_libraries"), None);
        assert_eq!(value(&some, "listen_addresses").as_deref(), Some("127.0.0.1"));
        let none = set("", &["all"], &[]);
        assert!(none.iter().all(|setting| setting.guard.is_none()), "{none:?}");
        assert_eq!(value(&none, "data_directory").as_deref(), Some("/d"), "needed all the same");
        let wrong = Kept::parse(&["archives"]).unwrap_err();
        assert!(wrong.contains("none of listen, archive,"), "{wrong}");
        let original = Kept::of_the_original();
        assert!(original.keeps(Guard::Archive) && !original.keeps(Guard::Listen));
    }

    #[test]
    fn what_the_user_gives_replaces_ours() {
        let all = set("", &[], &[("archive_mode", "always"), ("work_mem", "1GB")]);
        assert_eq!(value(&all, "archive_mode").as_deref(), Some("always"));
        assert_eq!(value(&all, "work_mem").as_deref(), Some("1GB"));
        let given = [("port".to_owned(), "1".to_owned())];
        let kept = Kept::default();
        let purpose = purpose(Signals::default());
        let error = settings(&purpose, &Configuration::default(), &kept, &given).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert_eq!(error.hint("b").as_deref(), Some("use --port"));
    }

    #[test]
    fn a_standby_lets_go_of_its_primary() {
        let with = |standby, recovery| {
            let purpose = purpose(Signals { standby, recovery });
            settings(&purpose, &Configuration::default(), &Kept::default(), &[]).unwrap()
        };
        let standby = with(true, false);
        assert_eq!(value(&standby, "primary_conninfo").as_deref(), Some(""));
        assert_eq!(value(&standby, "restore_command").as_deref(), Some(""));
        assert_eq!(value(&with(false, true), "restore_command").as_deref(), Some("false"));
    }

    #[test]
    fn what_is_configured_for_a_standby_goes_without_its_signal_file_too() {
        let config = "primary_conninfo = 'host=h'\nrestore_command = 'cp %f'\n\
                      recovery_min_apply_delay = '1h'\nprimary_slot_name = ''";
        let all = set(config, &[], &[]);
        assert_eq!(value(&all, "primary_conninfo").as_deref(), Some(""));
        assert_eq!(value(&all, "restore_command").as_deref(), Some(""));
        assert_eq!(value(&all, "recovery_min_apply_delay").as_deref(), Some("0"));
        assert_eq!(value(&all, "primary_slot_name"), None, "as it is");
        let kept = set(config, &["recovery"], &[]);
        assert_eq!(value(&kept, "recovery_min_apply_delay"), None);
    }

    #[test]
    fn libraries() {
        assert_eq!(without_acting(""), None);
        assert_eq!(without_acting("auto_explain, \"pg_stat_statements\""), None);
        assert_eq!(without_acting("pg_cron").as_deref(), Some(""));
        let mixed = "$libdir/pg_cron.so,auto_explain,pg_cronish";
        assert_eq!(without_acting(mixed).as_deref(), Some("auto_explain,pg_cronish"));
    }

    #[test]
    fn assignments() {
        let parsed = parse_assignment("Work-Mem=64 MB=x").unwrap();
        assert_eq!(parsed, ("work_mem".to_owned(), "64 MB=x".to_owned()));
        for bad in ["work_mem", "=1", "a b=1", ""] {
            assert!(parse_assignment(bad).is_err(), "{bad}");
        }
    }
}
