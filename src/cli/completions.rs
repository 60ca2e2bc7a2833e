//! `cowfs completions` and `cowfs man`: generated from the command line's own description.

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::env::Shells;

use super::{Cli, complete, output};
use crate::serve::Failure;

/// Arguments of `cowfs completions`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The script asks cowfs for what can follow, names of branches and snapshots included.

Examples:
  cowfs completions bash > /etc/bash_completion.d/cowfs
  cowfs completions zsh > /usr/local/share/zsh/site-functions/_cowfs"
)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Arguments of `cowfs man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cowfs man | man -l -\n  cowfs man --dir /usr/share/man/man1")]
pub(super) struct ManArgs {
    /// Write one page per command into this directory
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<u8, Failure> {
    let mut out = Vec::new();
    let shells = Shells::builtins();
    // The shells of the argument are those that there are scripts for.
    if let Some(shell) = shells.completer(&args.shell.to_string()) {
        let written =
            shell.write_registration(complete::VARIABLE, "cowfs", "cowfs", "cowfs", &mut out);
        written.map_err(|error| Failure::caused("completions", &error))?;
    }
    output::print(&String::from_utf8_lossy(&out));
    Ok(0)
}

pub(super) fn run_man(args: &ManArgs) -> Result<u8, Failure> {
    let failed = |error: std::io::Error| Failure::caused("man", &error);
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(failed)?;
        output::print(&String::from_utf8_lossy(&page));
        return Ok(0);
    };
    clap_mangen::generate_to(Cli::command(), dir).map_err(|error| {
        let message = format!("cannot write the manual pages into {}: {error}", dir.display());
        Failure::new("man", message).hint("name a directory that exists and that you may write to")
    })?;
    Ok(0)
}
