//! `cowfs metrics`: what the serving processes count, in the text format of Prometheus.

use std::collections::HashSet;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::output;
use crate::catalog::Store;
use crate::fuse::RequestStats;
use crate::serve::protocol::{Failure, ServerStatus};
use crate::serve::status::{self, BranchStatus};

/// Arguments of `cowfs metrics`.
#[derive(Debug, clap::Args)]
pub struct MetricsArgs {
    /// Replace this file in one step instead of printing: for the textfile collector of
    /// `node_exporter`
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Runs `cowfs metrics`.
pub fn run(args: &MetricsArgs, store: &Store) -> Result<u8, Failure> {
    let branches = status::all(store).map_err(|error| error.to_failure())?;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposition { branches }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)
        .map_err(|error| Failure::caused("metrics", &error).exit(255))?;
    let text = as_prometheus(&text);
    match &args.output {
        None => output::print(&text),
        Some(path) => replace(path, &text).map_err(|error| {
            let what = format!("writing {}: {error}", path.display());
            Failure::new("metrics", what)
                .hint("give a regular file, or a new one, in a directory that can be written")
        })?,
    }
    Ok(0)
}

/// The text format of Prometheus, of what is written in that of `OpenMetrics`: there a counter `x`
/// has samples `x_total`, here it is called what its samples are called.
fn as_prometheus(text: &str) -> String {
    let counters: HashSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut out = String::with_capacity(text.len());
    for line in text.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                out.extend(["# ", what, " ", name, "_total ", rest]);
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// A reader finds the old text or the new one, never a part.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    // The file that a link leads to, and never a device or a FIFO: a file in its place would break
    // whoever uses it.
    let path = &match std::fs::canonicalize(path) {
        Ok(there) if there.is_file() => there,
        Ok(_) => return Err(std::io::Error::other("it is there and not a regular file")),
        Err(_) => path.to_owned(),
    };
    let name = path.file_name().ok_or(std::io::ErrorKind::InvalidInput)?;
    // The collector reads whatever ends in `.prom`, so this must not.
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = std::fs::File::create_new(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// The last bucket with a bound of its own: 2^24 microseconds, 17 seconds.
const SLOWEST_BUCKET: i32 = 24;

#[derive(Debug)]
struct Exposition {
    branches: Vec<BranchStatus>,
}

/// Name, what it is, and how to read it from a server.
type Gauge = (&'static str, &'static str, fn(&ServerStatus) -> u64);

const GAUGES: [Gauge; 17] = [
    ("cowfs_resident_bytes", "Resident memory of the serving process", |s| s.resident_bytes),
    ("cowfs_open_layer_bytes", "Bytes of pages that the open layer owns", |s| s.branch.owned_bytes),
    ("cowfs_open_layer_files", "Files of which the open layer owns something", |s| {
        s.branch.open_files as u64
    }),
    ("cowfs_dirty_granules", "Granules written since their file was last synced", |s| {
        s.branch.dirty_granules
    }),
    ("cowfs_open_descriptors", "Descriptors of data files that are kept open", |s| {
        s.branch.open_descriptors as u64
    }),
    ("cowfs_latched_files", "Files whose sync failed: fsync fails until a remount", |s| {
        s.branch.latched_files as u64
    }),
    ("cowfs_journal_latched", "Whether a sync of the journal failed, and so every fsync", |s| {
        s.branch.journal_latched.into()
    }),
    ("cowfs_journal_bytes", "Bytes of the open layer's journal", |s| s.branch.journal_bytes),
    ("cowfs_depth_layers", "Layers below the open one", |s| s.branch.depth.into()),
    ("cowfs_lookup_parts", "Indexes and frozen layers that a lookup may visit", |s| {
        s.branch.parts as u64
    }),
    ("cowfs_frozen_layers", "Sealed layers that wait for their index", |s| s.branch.frozen as u64),
    ("cowfs_compaction_paused", "Whether the background is paused", |s| s.compaction.paused.into()),
    ("cowfs_compaction_waiting_merges", "Merged indexes that are owed", |s| {
        s.compaction.waiting_merges as u64
    }),
    ("cowfs_compaction_waiting_packs", "Packs that are owed", |s| {
        s.compaction.waiting_packs as u64
    }),
    ("cowfs_compaction_bad_packs", "Packs that are not used, because of damage", |s| {
        s.compaction.bad_packs as u64
    }),
    (
        "cowfs_compaction_checksum_bytes_to_go",
        "Bytes of sealed layers without checksums, as far as they were looked at",
        |s| s.compaction.checksum_bytes_to_go.unwrap_or(0),
    ),
    ("cowfs_start_time_seconds", "When the branch was mounted, in seconds since 1970", |s| {
        u64::try_from(s.since_ms).unwrap_or(0) / 1000
    }),
];

/// The same of what only grows while a branch is mounted; `None` where there is no such thing.
type Counter = (&'static str, &'static str, fn(&ServerStatus) -> Option<u64>);

const COUNTERS: [Counter; 7] = [
    (
        "cowfs_read_around_regions",
        "Regions of 256 KiB whose rest was fetched because some of their pages were read",
        |s| Some(s.read_around?.regions),
    ),
    (
        "cowfs_read_around_passed_over",
        "How often such a region was not fetched, for want of memory or time",
        |s| Some(s.read_around?.passed_over),
    ),
    ("cowfs_compaction_finalized_layers", "Layers that were finalized", |s| {
        Some(s.compaction.finalized_layers)
    }),
    ("cowfs_compaction_merged_indexes", "Indexes that were merged", |s| {
        Some(s.compaction.merged_indexes)
    }),
    ("cowfs_compaction_packed_bytes", "Bytes of scattered pages that were copied together", |s| {
        Some(s.compaction.packed_bytes)
    }),
    ("cowfs_compaction_checksummed_bytes", "Bytes that got checksums", |s| {
        Some(s.compaction.checksummed_bytes)
    }),
    ("cowfs_compaction_failures", "How often the background failed", |s| {
        Some(s.compaction.failures)
    }),
];

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Whether the process that serves the branch answers";
        let up = |branch: &BranchStatus| Some(u64::from(branch.server.is_some()));
        self.gauge(&mut encoder, "cowfs_up", help, up)?;
        for (name, help, value) in GAUGES {
            self.gauge(&mut encoder, name, help, |b| b.server.as_deref().map(value))?;
        }
        for (name, help, value) in COUNTERS {
            self.counter(&mut encoder, name, help, value)?;
        }
        self.bytes(&mut encoder)?;
        self.latencies(&mut encoder)
    }
}

impl Exposition {
    fn gauge<V: EncodeGaugeValue>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&BranchStatus) -> Option<V>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for branch in &self.branches {
            if let Some(value) = value(branch) {
                let labels = [("branch", branch.branch.as_str())];
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&ServerStatus) -> Option<u64>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for branch in &self.branches {
            if let Some(count) = branch.server.as_deref().and_then(&value) {
                let labels = [("branch", branch.branch.as_str())];
                let mut one = metric.encode_family(&labels)?;
                one.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        Ok(())
    }

    /// Every kind of request of every branch that is served.
    fn requests(&self) -> impl Iterator<Item = ([(&str, &str); 2], &RequestStats)> {
        self.branches.iter().flat_map(|branch| {
            let requests = branch.server.iter().flat_map(|server| &server.requests);
            requests.map(|r| ([("branch", branch.branch.as_str()), ("kind", r.kind.as_str())], r))
        })
    }

    fn bytes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Bytes read or written by requests";
        let kind = MetricType::Counter;
        let mut metric = encoder.encode_descriptor("cowfs_request_bytes", help, None, kind)?;
        for (labels, request) in self.requests().filter(|(_, request)| request.bytes > 0) {
            let mut one = metric.encode_family(&labels)?;
            one.encode_counter::<NoLabelSet, _, u64>(&request.bytes, None)?;
        }
        Ok(())
    }

    fn latencies(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = ("cowfs_request_seconds", "Time to answer a request of the kernel");
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, request) in self.requests() {
            let buckets = seconds(&request.buckets);
            let sum = Duration::from_micros(request.total_us).as_secs_f64();
            let mut one = metric.encode_family(&labels)?;
            one.encode_histogram::<NoLabelSet>(sum, request.count, &buckets, None)?;
        }
        Ok(())
    }
}

/// Buckets of Prometheus from ours, of which number i holds what took less than 2^i microseconds.
/// Always the same bounds: a series that appears later has no rate.
fn seconds(buckets: &[u64]) -> Vec<(f64, u64)> {
    let count = |bucket: i32| buckets.get(bucket as usize).copied().unwrap_or(0);
    let bounded = (0..=SLOWEST_BUCKET).map(|bucket| (2f64.powi(bucket) / 1e6, count(bucket)));
    let rest = buckets.iter().skip(SLOWEST_BUCKET as usize + 1).sum();
    bounded.chain([(f64::INFINITY, rest)]).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_request_is_in_one_bucket() {
        let mut ours = vec![0; 32];
        (ours[0], ours[3], ours[31]) = (5, 2, 1);
        let found = seconds(&ours);
        assert_eq!(found.len(), seconds(&[]).len());
        assert_eq!(found[0], (0.000_001, 5));
        assert_eq!(found[3], (0.000_008, 2));
        assert_eq!(found.last(), Some(&(f64::INFINITY, 1)));
        assert_eq!(found.iter().map(|(_, count)| count).sum::<u64>(), 8);
    }

    #[test]
    fn counters_are_called_as_their_samples() {
        let written = "# HELP a What a is.\n# TYPE a counter\na_total{branch=\"m\"} 1\n\
                       # HELP b Level.\n# TYPE b gauge\nb 2\n# EOF\n";
        let wanted = "# HELP a_total What a is.\n# TYPE a_total counter\na_total{branch=\"m\"} 1\n\
                      # HELP b Level.\n# TYPE b gauge\nb 2\n";
        assert_eq!(as_prometheus(written), wanted);
    }

    #[test]
    fn only_a_regular_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("a.prom"), dir.path().join("link"));
        replace(&file, "old\n").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        replace(&link, "new\n").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new\n");
        assert!(link.is_symlink());
        for other in [Path::new("/dev/null"), dir.path()] {
            let error = replace(other, "x").unwrap_err();
            assert!(error.to_string().contains("not a regular file"), "{error}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left");
    }
}
