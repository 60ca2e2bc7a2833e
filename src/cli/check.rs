//! `cowfs check`: verifies a store.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::{failure, output};
use crate::branch::checksums::{add_checksums, remake_checksums};
use crate::catalog::{BranchName, Store};
use crate::check::{self, Finding, Options, Report, mend};
use crate::format::counted;
use crate::serve::Failure;

/// Branches that a finding names; more are counted.
const BRANCHES_SHOWN: usize = 5;
/// Files that are not cowfs's, by name; more are counted.
const STRANGERS_SHOWN: usize = 10;

/// Verify the store: catalog, checksums, ownership against data files, names
///
/// Reads the store by its formats alone. Branches may be mounted; of what they have not synced yet
/// nothing is expected.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 3 if damage was found. Nothing is changed without --repair or --add-checksums.

Examples:
  cowfs check
  cowfs check --branch main --read-data
  cowfs check --repair"
)]
pub(super) struct CheckArgs {
    /// Check only what this branch stands on
    #[arg(long, value_name = "BRANCH")]
    #[arg(add = crate::cli::complete::branches())]
    branch: Option<BranchName>,
    /// Read all contents and compare them with their checksums
    #[arg(long)]
    read_data: bool,
    /// First make the checksums that sealed layers do not have yet
    #[arg(long)]
    add_checksums: bool,
    /// Mend what can be mended without a risk for data, and say what
    #[arg(long)]
    repair: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Outcome<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// Paths that `--repair` mended.
    mended: Vec<std::borrow::Cow<'a, str>>,
}

pub(super) fn run(args: &CheckArgs, store: Store) -> Result<u8, Failure> {
    let store = Arc::new(store);
    if let Some(name) = &args.branch {
        store.catalog.require_branch(name).map_err(|error| failure::of_catalog(&error))?;
    }
    let bar = indicatif::ProgressBar::no_length().with_style(
        indicatif::ProgressStyle::with_template("{msg} {bytes} {bytes_per_sec}")
            .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()),
    );
    if args.add_checksums {
        bar.set_message("making checksums");
        let mut pace = |bytes| {
            bar.inc(bytes);
            ControlFlow::Continue(())
        };
        add_checksums(&store, args.branch.as_ref(), &mut pace)
            .map_err(|error| failure::of_branch(&error))?;
        bar.set_position(0);
    }
    let options = Options { branch: args.branch.clone(), read_data: args.read_data };
    bar.set_message("reading");
    let report = check::check(&store, &options, &mut |bytes| bar.inc(bytes))
        .map_err(|error| failure::of_catalog(&error))?;
    bar.finish_and_clear();
    let mended = if args.repair { repair(&store, &report) } else { Vec::new() };
    let left = report.damage.iter().filter(|finding| !mended.contains(&finding.path.as_path()));
    let left = left.count();
    if args.json {
        let mended = mended.iter().map(|path| path.to_string_lossy()).collect();
        output::print_json(&Outcome { report: &report, mended })?;
    } else {
        output::print(&text(args, &report, &mended, left));
    }
    Ok(if left == 0 { 0 } else { 3 })
}

/// Mends what can be mended; says of each what it does before it does it.
fn repair<'a>(store: &Arc<Store>, report: &'a Report) -> Vec<&'a Path> {
    let mut mended = Vec::new();
    let unmendable = report.damage.iter().any(|finding| finding.mend.is_none());
    for finding in report.damage.iter().chain(&report.leftovers) {
        let Some(way) = finding.mend else { continue };
        let path = output::path(&finding.path);
        // It may be the last to know something. Checksums that are kept go on telling of rot.
        if unmendable && way != mend::Mend::RemakeSums {
            eprintln!("{path}: kept, because other damage cannot be mended");
            continue;
        }
        eprintln!("{path}: {} - {}", finding.problem, way.effect());
        match mend_one(store, finding, way) {
            Ok(true) => mended.push(finding.path.as_path()),
            Ok(false) => eprintln!("{path}: kept, because it may be in use"),
            Err(error) => eprintln!("{path}: kept: {error}"),
        }
    }
    mended
}

fn mend_one(
    store: &Arc<Store>,
    finding: &Finding,
    way: mend::Mend,
) -> Result<bool, Box<dyn Error>> {
    match (way, finding.layer) {
        (mend::Mend::RemakeSums, Some(layer)) => Ok(remake_checksums(store, layer)?),
        _ => Ok(mend::mend(finding)?),
    }
}

fn text(args: &CheckArgs, report: &Report, mended: &[&Path], left: usize) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for finding in &report.damage {
        let _ = writeln!(text, "{}", sentence(finding, mended));
    }
    let verdict = match (left, mended.len()) {
        (0, 0) => "sound".to_owned(),
        (0, n) => format!("sound; {n} mended"),
        (n, _) => format!("DAMAGED: {}", counted(n, "finding")),
    };
    let Report { branches, layers, data_files, names, .. } = report;
    let _ = writeln!(
        text,
        "{verdict}; {}, {}, {}, {} checked; {} for gc",
        counted(*branches, "branch"),
        counted(*layers, "layer"),
        counted(*data_files, "data file"),
        counted(*names, "name"),
        counted(report.unreachable_layers, "layer")
    );
    if args.read_data {
        let _ = writeln!(
            text,
            "{} agree with their checksums, {} have none yet",
            output::bytes(report.verified_bytes),
            output::bytes(report.unverified_bytes)
        );
    }
    for path in report.strangers.iter().take(STRANGERS_SHOWN) {
        let _ = writeln!(text, "{}: not a file of cowfs; nobody reads it", output::path(path));
    }
    let more = report.strangers.len().saturating_sub(STRANGERS_SHOWN);
    if more > 0 {
        let _ = writeln!(text, "and {} more that cowfs has not made", counted(more, "file"));
    }
    let leftovers = report.leftovers.len()
        - report.leftovers.iter().filter(|f| mended.contains(&f.path.as_path())).count();
    if leftovers > 0 {
        let leaked = output::bytes(report.leaked_bytes);
        let (files, them) = (counted(leftovers, "superfluous file"), pronoun(leftovers));
        let _ = writeln!(text, "{files} ({leaked}); --repair removes {them}");
    }
    text
}

fn pronoun(count: usize) -> &'static str {
    if count == 1 { "it" } else { "them" }
}

fn sentence(finding: &Finding, mended: &[&Path]) -> String {
    let mut text = format!("{}: {}", output::path(&finding.path), finding.problem);
    if !finding.branches.is_empty() {
        let shown: Vec<&str> =
            finding.branches.iter().take(BRANCHES_SHOWN).map(String::as_str).collect();
        let more = finding.branches.len().saturating_sub(BRANCHES_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        text = format!("{text} (concerns {}{more})", shown.join(", "));
    }
    if mended.contains(&finding.path.as_path()) {
        text.push_str(" [mended]");
    } else if finding.mend.is_some() {
        text.push_str(" [--repair mends it]");
    }
    text
}
