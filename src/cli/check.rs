//! `cowfs check`: verifies a store.

use super::{failure, output};
use crate::catalog::Store;
use crate::check;
use crate::serve::Failure;

/// Arguments of `cowfs check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code 3 if damage was found. Nothing is changed.")]
pub(super) struct CheckArgs {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CheckArgs, store: &Store) -> Result<u8, Failure> {
    let report = check::check(store).map_err(|error| failure::of_catalog(&error))?;
    if args.json {
        output::print_json(&report)?;
    } else {
        for finding in &report.damage {
            output::print(&format!("{}: {}\n", finding.path.display(), finding.problem));
        }
        let verdict = match report.damage.len() {
            0 => "sound".to_owned(),
            n => format!("DAMAGED: {n} findings"),
        };
        output::print(&format!(
            "{verdict}; {} branches, {} layers, {} data files checked; {} layers for gc\n",
            report.branches, report.layers, report.data_files, report.unreachable_layers
        ));
    }
    Ok(if report.damage.is_empty() { 0 } else { 3 })
}
