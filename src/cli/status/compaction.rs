//! What `cowfs status` and `cowfs compaction` show of a branch's background.

use super::super::output;
use crate::branch::compaction::{AtWork, CompactionStats, Work};
use crate::format::counted;

/// The form in JSON: times as in every other command, layers as in the store.
#[derive(serde::Serialize)]
pub(in crate::cli) struct Compaction<'a> {
    paused: bool,
    finalized_layers: u64,
    waiting_layers: usize,
    merged_indexes: u64,
    waiting_merges: usize,
    packed_bytes: u64,
    waiting_packs: usize,
    bad_packs: usize,
    checksummed_bytes: u64,
    /// At most: holes count. None before the first look, ten seconds after the mount.
    checksum_bytes_to_go: Option<u64>,
    at_work: Vec<OneAtWork>,
    failures: u64,
    last_failure: Option<LastFailure<'a>>,
}

#[derive(serde::Serialize)]
struct OneAtWork {
    work: Work,
    layer: String,
    held: bool,
}

#[derive(serde::Serialize)]
struct LastFailure<'a> {
    work: Work,
    message: &'a str,
    at: String,
}

impl Compaction<'_> {
    pub fn of(stats: &CompactionStats) -> Compaction<'_> {
        let one =
            |at: &AtWork| OneAtWork { work: at.work, layer: at.layer.dir_name(), held: at.held };
        Compaction {
            paused: stats.paused,
            finalized_layers: stats.finalized_layers,
            waiting_layers: stats.waiting_layers,
            merged_indexes: stats.merged_indexes,
            waiting_merges: stats.waiting_merges,
            packed_bytes: stats.packed_bytes,
            waiting_packs: stats.waiting_packs,
            bad_packs: stats.bad_packs,
            checksummed_bytes: stats.checksummed_bytes,
            checksum_bytes_to_go: stats.checksum_bytes_to_go,
            at_work: stats.at_work.iter().map(one).collect(),
            failures: stats.failures,
            last_failure: stats.last_failure.as_ref().map(|failed| LastFailure {
                work: failed.work,
                message: &failed.message,
                at: output::time(failed.at_ms),
            }),
        }
    }
}

/// The lines of `cowfs status BRANCH`; the first says how it stands.
pub(super) fn lines(stats: &CompactionStats) -> Vec<String> {
    let at_work: Vec<String> = stats.at_work.iter().map(words).collect();
    let state = match (stats.paused, at_work.is_empty()) {
        (true, true) => "paused".to_owned(),
        (true, false) => format!("paused; {}", at_work.join(", ")),
        (false, true) => "idle".to_owned(),
        (false, false) => at_work.join(", "),
    };
    let waiting = format!(
        "{}, {} and {} waiting",
        counted(stats.waiting_layers, "layer"),
        counted(stats.waiting_merges, "merge"),
        counted(stats.waiting_packs, "pack")
    );
    let done = format!(
        "{} finalized, {} merged, {} packed, {} checksummed since it was mounted",
        counted(stats.finalized_layers, "layer"),
        counted(stats.merged_indexes, "index"),
        super::bytes(stats.packed_bytes),
        super::bytes(stats.checksummed_bytes)
    );
    let to_go = match stats.checksum_bytes_to_go {
        None => String::new(),
        Some(bytes) => format!(", {} to be checksummed", super::bytes(bytes)),
    };
    let mut lines = vec![format!("{state}; {waiting}{to_go}"), done];
    if stats.bad_packs > 0 {
        let bad = counted(stats.bad_packs, "damaged pack");
        lines.push(format!("{bad} not used: see `cowfs check --read-data`"));
    }
    if let Some(failed) = &stats.last_failure {
        let when = output::time(failed.at_ms);
        lines.push(format!("failed {} times, at last {when}: {}", stats.failures, failed.message));
    }
    lines
}

fn words(at: &AtWork) -> String {
    let what = match at.work {
        Work::Finalize => "finalizes layer",
        Work::Merge => "merges up to layer",
        Work::Pack => "packs layers up to",
        Work::Checksums => "makes checksums of layer",
    };
    let held = if at.held { " (held)" } else { "" };
    format!("{what} {}{held}", at.layer.dir_name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::branch::compaction::Failed;
    use crate::format::LayerId;

    #[test]
    fn what_is_said() {
        let mut stats = CompactionStats { waiting_layers: 2, ..CompactionStats::default() };
        assert_eq!(lines(&stats)[0], "idle; 2 layers, 0 merges and 0 packs waiting");
        stats.at_work.push(AtWork { work: Work::Checksums, layer: LayerId(10), held: true });
        (stats.paused, stats.checksum_bytes_to_go) = (true, Some(2048));
        stats.failures = 3;
        stats.last_failure =
            Some(Failed { work: Work::Merge, message: "full".to_owned(), at_ms: 0 });
        let text = lines(&stats);
        assert_eq!(
            text[0],
            "paused; makes checksums of layer 00000000000a (held); 2 layers, 0 merges and 0 packs waiting, \
             2.0 KiB to be checksummed"
        );
        assert_eq!(text[2], "failed 3 times, at last 1970-01-01T00:00:00Z: full");
    }
}
