//! `cowfs status`: what is mounted where, by which process, and how it is doing.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

pub(super) mod compaction;
mod shown;

use shown::Shown;

use super::mount::parse_duration;
use super::sizes::Sizes;
use super::{failure, output};
use crate::branch::close::BranchStats;
use crate::catalog::{BranchName, CatalogError, Store};
use crate::format::counted;
use crate::serve::error::ServeError;
use crate::serve::protocol::{Failure, ServerStatus};
use crate::serve::status::{self, BranchStatus, State};

/// Arguments of `cowfs status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Only this branch, in detail
    #[arg(add = crate::cli::complete::branches())]
    pub branch: Option<BranchName>,
    /// Print JSON; with --watch a line each time
    #[arg(long)]
    pub json: bool,
    /// Show it again and again, every so often, until interrupted
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s",
          value_parser = parse_duration)]
    pub watch: Option<Duration>,
}

impl StatusArgs {
    fn json_of(&self, value: &impl serde::Serialize) -> Result<String, Failure> {
        output::json_of_many(value, self.watch.is_some())
    }
}

/// Runs `cowfs status`; returns the exit code.
pub fn run(args: &StatusArgs, store: &Store) -> Result<u8, Failure> {
    let terminal = std::io::stdout().is_terminal();
    let clear = if terminal && args.watch.is_some() { output::CLEAR_SCREEN } else { "" };
    let mut sizes = Sizes::default();
    loop {
        let text = look(args, store, &mut sizes)?;
        let printed = output::try_print(&format!("{clear}{text}"));
        match args.watch {
            // A reader that has seen enough is no failure.
            Some(interval) if printed => std::thread::sleep(interval),
            _ => return Ok(0),
        }
    }
}

fn look(args: &StatusArgs, store: &Store, sizes: &mut Sizes) -> Result<String, Failure> {
    let catalog = |error: CatalogError| failure::of_catalog(&error);
    if let Some(name) = &args.branch {
        let status = find(store, name).map_err(|error| error.to_failure())?;
        let shown = Shown::of(status, store, sizes).map_err(catalog)?;
        if args.json { args.json_of(&shown.for_json()) } else { Ok(details(&shown)) }
    } else {
        let found = status::all(store).map_err(|error| error.to_failure())?;
        let shown: Result<Vec<_>, _> =
            found.into_iter().map(|status| Shown::of(status, store, sizes)).collect();
        let shown = shown.map_err(catalog)?;
        if args.json {
            args.json_of(&shown.iter().map(Shown::for_json).collect::<Vec<_>>())
        } else {
            Ok(table(&shown))
        }
    }
}

fn find(store: &Store, name: &BranchName) -> Result<BranchStatus, ServeError> {
    let row = store.catalog.branch(name)?;
    let row = row.ok_or_else(|| CatalogError::BranchNotFound { name: name.clone() })?;
    Ok(status::one(store, &row))
}

/// The state as `--json` has it, and what it means.
fn state_words(state: State) -> &'static str {
    match state {
        State::Mounted => "mounted",
        State::Detached => "detached: in use",
        State::Silent => "silent: does not answer",
        State::Busy => "busy: starts, ends or is changed",
        State::Dead => "dead: server was killed",
        State::NotMounted => "not mounted",
    }
}

fn since(ms: Option<i64>) -> String {
    let time = ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(
        || "-".to_owned(),
        |time| {
            time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
        },
    )
}

fn dir(path: Option<&Path>) -> String {
    path.map_or_else(|| "-".to_owned(), |path| path.display().to_string())
}

fn table(found: &[Shown]) -> String {
    if found.is_empty() {
        return "Nothing is mounted\n".to_owned();
    }
    let heads = ["BRANCH", "STATE", "PID", "SINCE", "OPEN LAYER", "SEALED LAYERS", "MOUNTED AT"];
    let mut rows = vec![heads.map(str::to_owned)];
    rows.extend(found.iter().map(|shown| {
        let status = &shown.status;
        [
            status.branch.clone(),
            state_words(status.state).to_owned(),
            status.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            since(status.since_ms),
            shown.open_bytes().map_or_else(|| "-".to_owned(), bytes),
            format!("{} in {}", bytes(shown.sealed_bytes), shown.sealed_layers),
            dir(status.mount_point.as_deref()),
        ]
    }));
    let widths: Vec<usize> = (0..heads.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn details(shown: &Shown) -> String {
    let status = &shown.status;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:14} {value}");
    };
    line("Branch", status.branch.clone());
    let why = status.problem.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
    line("State", format!("{}{why}", state_words(status.state)));
    if let Some(mount_point) = &status.mount_point {
        let how = if status.read_only == Some(true) { " (read-only)" } else { "" };
        line("Mounted at", format!("{}{how}", mount_point.display()));
        line("Since", since(status.since_ms));
    }
    if let Some(pid) = status.pid {
        let memory = status.server.as_ref().map_or_else(String::new, |server| {
            format!(", {} resident, version {}", bytes(server.resident_bytes), server.version)
        });
        line("Process", format!("{pid}{memory}"));
    }
    if let Some(server) = &status.server {
        line("Requests", transport(server).to_owned());
        if let Some(failed) = latched(&server.branch) {
            line("Not durable", failed);
        }
    }
    if status.server.is_none() {
        let sealed = bytes(shown.sealed_bytes);
        line("Sealed layers", format!("{sealed} in {}", shown.sealed_layers));
    }
    if let Some(server) = &status.server {
        let branch = &server.branch;
        let open = format!(
            "{} in {}, {}, {} not synced, journal {}",
            bytes(branch.owned_bytes),
            counted(branch.open_files, "file"),
            counted(branch.open_names, "name"),
            counted(branch.dirty_granules, "granule"),
            bytes(branch.journal_bytes)
        );
        line("Open layer", open);
        let waiting = match branch.frozen {
            0 => String::new(),
            count => format!(", {count} waiting for an index"),
        };
        let sealed = bytes(shown.sealed_bytes);
        line("Sealed layers", format!("{sealed} in {}{waiting}", shown.sealed_layers));
        for (number, text) in compaction::lines(&server.compaction).into_iter().enumerate() {
            line(if number == 0 { "Compaction" } else { "" }, text);
        }
        let around = server.read_around.map(|stats| {
            let regions = counted(stats.regions, "region");
            format!("{regions} of 256 KiB fetched, {} passed over", stats.passed_over)
        });
        line("Read around", around.unwrap_or_else(|| "off, or not permitted".to_owned()));
        line("Data files", format!("{} kept open", branch.open_descriptors));
        line("Forks, seals", format!("{} since it was mounted", branch.generation));
        text.push_str(&requests(server));
    }
    text
}

fn transport(server: &ServerStatus) -> &'static str {
    match (server.io_uring, server.host_cache) {
        (false, false) => "from /dev/fuse; the host keeps no copy of what is read of the base",
        (false, true) => "from /dev/fuse; the host keeps a copy of what is read of the base",
        (true, false) => "by io_uring; the host keeps no copy of what is read of the base",
        (true, true) => "by io_uring; the host keeps a copy of what is read of the base",
    }
}

/// What could not be synced, and what that means.
fn latched(branch: &BranchStats) -> Option<String> {
    let what = match (branch.latched_files, branch.journal_latched) {
        (0, false) => return None,
        (files, false) => counted(files, "file"),
        (_, true) => "the journal".to_owned(),
    };
    Some(format!("a sync of {what} failed: fsync says EIO until the branch is mounted anew"))
}

fn requests(server: &ServerStatus) -> String {
    if server.requests.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n{:16}{:>12}{:>12}{:>12}{:>12}{:>12}\n",
        "REQUESTS", "COUNT", "BYTES", "MEAN us", "P50 us <", "P99 us <"
    );
    for kind in &server.requests {
        let mean = kind.total_us.checked_div(kind.count).unwrap_or(0);
        let _ = writeln!(
            text,
            "{:16}{:>12}{:>12}{:>12}{:>12}{:>12}",
            kind.kind,
            kind.count,
            bytes(kind.bytes),
            mean,
            kind.p50_us,
            kind.p99_us
        );
    }
    text
}

/// A size for people: three digits and a binary unit.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let unit = (count.ilog2() / 10).min(4);
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let value = count as f64 / (1_u64 << (10 * unit)) as f64;
    format!("{value:.1} {}", UNITS[unit as usize])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::format::BranchId;

    fn sample(state: State) -> Shown {
        let status = BranchStatus {
            branch: "main".into(),
            id: BranchId(3),
            state,
            mount_point: Some("/mnt/main".into()),
            pid: Some(77),
            since_ms: Some(1_700_000_000_000),
            read_only: Some(true),
            server: None,
            problem: Some("timed out".into()),
        };
        Shown { status, sealed_bytes: 3 << 20, sealed_layers: 2 }
    }

    #[test]
    fn states_begin_with_their_name_in_json() {
        for state in [
            State::Mounted,
            State::Detached,
            State::Silent,
            State::Busy,
            State::Dead,
            State::NotMounted,
        ] {
            let name = serde_json::to_value(state).unwrap().as_str().unwrap().replace('_', " ");
            assert!(state_words(state).starts_with(&name), "{name}: {}", state_words(state));
        }
    }

    #[test]
    fn sealed_layers_are_counted_in_both_forms() {
        let shown = sample(State::Dead);
        for text in [table(&[sample(State::Dead)]), details(&shown)] {
            assert!(text.contains("3.0 MiB in 2"), "{text}");
        }
        let json = serde_json::to_value(shown.for_json()).unwrap();
        assert_eq!((&json["sealed_bytes"], &json["sealed_layers"]), (&(3 << 20).into(), &2.into()));
        assert_eq!(json["since"], "2023-11-14T22:13:20Z");
        assert!(json.get("since_ms").is_none() && json["open_bytes"].is_null());
    }

    #[test]
    fn tables_line_up() {
        assert_eq!(table(&[]), "Nothing is mounted\n");
        let text = table(&[sample(State::Silent), sample(State::Dead)]);
        let lines: Vec<_> = text.lines().collect();
        let column = lines[0].find("MOUNTED AT").unwrap();
        assert!(lines[1..].iter().all(|line| line[column..] == *"/mnt/main"), "{text}");
        assert!(lines[1].contains("does not answer") && lines[2].contains("server was killed"));
    }

    #[test]
    fn details_name_the_problem() {
        let text = details(&sample(State::Silent));
        assert!(text.contains("does not answer (timed out)"), "{text}");
        assert!(text.contains("/mnt/main (read-only)"), "{text}");
        assert!(text.contains("2023-11-1"), "{text}");
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }
}
