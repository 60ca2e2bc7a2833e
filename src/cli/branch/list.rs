//! `cowfs branch list`.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use super::super::mount::parse_duration;
use super::super::postgres::reach;
use super::super::sizes::Sizes;
use super::super::{failure, output};
use crate::catalog::{BranchRow, CatalogError, FileLock, Store, now_ms};
use crate::format::{BranchId, LayerId};
use crate::serve::Failure;

/// ECMA-48: green, and back.
const GREEN: (&str, &str) = ("\x1b[32m", "\x1b[0m");

/// Arguments of `cowfs branch list`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "SIZE is what the branch itself has written since it began, in blocks on the disk; AGE is the time \
since it was made.

Examples:
  cowfs branch list
  cowfs branch list --deleted
  cowfs branch list --watch 5s"
)]
pub(in crate::cli) struct ListArgs {
    /// List also the deleted branches that `cowfs undo` can bring back
    #[arg(long)]
    deleted: bool,
    /// Show it again and again, every so often, until interrupted
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s",
          value_parser = parse_duration)]
    watch: Option<Duration>,
    /// Print JSON; with --watch a line each time
    #[arg(long)]
    json: bool,
}

/// What a branch is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Doing {
    /// Postgres runs on it.
    Running,
    /// A process serves or changes it.
    InUse,
    /// Nothing.
    Idle,
    /// It was deleted.
    Deleted,
}

#[derive(serde::Serialize)]
struct Listed {
    name: String,
    id: BranchId,
    parent: Option<String>,
    origin: String,
    created: String,
    in_use: bool,
    protected: bool,
    /// When gc may delete it.
    expires: Option<String>,
    state: Doing,
    /// Of the Postgres that runs on it.
    port: Option<u16>,
    /// Bytes on disk of the layers that it has written itself.
    own_bytes: u64,
    /// Bytes that these may take.
    quota_bytes: Option<u64>,
    #[serde(skip)]
    row: BranchRow,
}

pub(super) fn run(args: &ListArgs, store: &Store) -> Result<u8, Failure> {
    let terminal = std::io::stdout().is_terminal();
    let clear = if terminal && args.watch.is_some() { output::CLEAR_SCREEN } else { "" };
    let colours = terminal && std::env::var_os("NO_COLOR").is_none();
    let mut sizes = Sizes::default();
    loop {
        let listed = collect(store, args.deleted, &mut sizes);
        let listed = listed.map_err(|error| failure::of_catalog(&error))?;
        let text = if args.json {
            output::json_of_many(&listed, args.watch.is_some())?
        } else {
            tree(&listed, now_ms(), if colours { GREEN } else { ("", "") })
        };
        let printed = output::try_print(&format!("{clear}{text}"));
        match args.watch {
            // A reader that has seen enough is no failure.
            Some(interval) if printed => std::thread::sleep(interval),
            _ => return Ok(0),
        }
    }
}

fn collect(store: &Store, deleted: bool, sizes: &mut Sizes) -> Result<Vec<Listed>, CatalogError> {
    let mut rows = store.catalog.branches()?;
    if deleted {
        rows.extend(store.catalog.deleted_branches()?);
    }
    let names: BTreeMap<BranchId, String> =
        rows.iter().map(|row| (row.id, row.name.to_string())).collect();
    Ok(rows.into_iter().map(|row| of_branch(store, row, &names, sizes)).collect())
}

fn of_branch(
    store: &Store,
    row: BranchRow,
    names: &BTreeMap<BranchId, String>,
    sizes: &mut Sizes,
) -> Listed {
    // One that is damaged is listed too; `cowfs check` says what is wrong.
    let chain = store.catalog.chain(row.head).unwrap_or_default().into_iter().map(|layer| layer.id);
    let own: Vec<LayerId> = chain.take_while(|layer| Some(*layer) != row.begins).collect();
    // The open layer grows from one look to the next.
    sizes.forget(row.head);
    let instance = reach::files(store, &row).read_alive();
    let state = match &instance {
        _ if row.deleted_ms.is_some() => Doing::Deleted,
        Some(_) => Doing::Running,
        None if in_use(store, &row) => Doing::InUse,
        None => Doing::Idle,
    };
    Listed {
        name: row.name.to_string(),
        id: row.id,
        parent: row.parent.and_then(|id| names.get(&id).cloned()),
        origin: row.origin.clone(),
        created: output::time(row.created_ms),
        in_use: matches!(state, Doing::Running | Doing::InUse),
        protected: row.protected,
        expires: row.expires_ms.map(output::time),
        state,
        port: instance.map(|instance| instance.port),
        own_bytes: sizes.sum(store, &own),
        quota_bytes: row.quota_bytes,
        row,
    }
}

/// Whether a process serves or changes the branch, or a Postgres runs on it.
pub(in crate::cli) fn in_use(store: &Store, row: &BranchRow) -> bool {
    FileLock::is_held(&store.branch_lock_path(row.id)).unwrap_or(false)
        || reach::files(store, row).read_alive().is_some()
}

/// What sets a branch apart, for people.
fn marks(listed: &Listed, now_ms: i64) -> String {
    let expires = listed.row.expires_ms.map(|at| match at - now_ms {
        left if left > 0 => format!("expires in {}", age(left)),
        _ => "expired".to_owned(),
    });
    let marks = [
        listed.protected.then(|| "protected".to_owned()),
        expires,
        listed.quota_bytes.map(|bytes| format!("quota {}", output::bytes(bytes))),
    ];
    marks.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A span of time in its largest unit: `40s`, `5m`, `3h`, `12d`.
fn age(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The branches with what stands before their names: as a tree, children below their parent, by
/// name.
fn ordered(listed: &[Listed]) -> Vec<(String, &Listed)> {
    let mut children: BTreeMap<Option<BranchId>, Vec<&Listed>> = BTreeMap::new();
    let known: std::collections::BTreeSet<BranchId> = listed.iter().map(|one| one.id).collect();
    for one in listed {
        children.entry(one.row.parent.filter(|id| known.contains(id))).or_default().push(one);
    }
    let mut lines = Vec::new();
    // Depth first, without recursion: a chain of a thousand forks must not exhaust the stack.
    let mut stack: Vec<(&Listed, String, String)> = Vec::new();
    for one in children.get(&None).into_iter().flatten().rev() {
        stack.push((one, String::new(), String::new()));
    }
    while let Some((one, branch, trunk)) = stack.pop() {
        lines.push((branch, one));
        let below = children.get(&Some(one.id)).map_or(&[][..], Vec::as_slice);
        for (at, child) in below.iter().enumerate().rev() {
            let last = at + 1 == below.len();
            let (turn, go_on) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            stack.push((child, format!("{trunk}{turn}"), format!("{trunk}{go_on}")));
        }
    }
    lines
}

fn tree(listed: &[Listed], now_ms: i64, running: (&str, &str)) -> String {
    if listed.is_empty() {
        return "There are no branches: `cowfs import` or `cowfs branch create` makes one\n"
            .to_owned();
    }
    let mut rows = vec![["NAME", "AGE", "SIZE", "STATE", "PORT", ""].map(str::to_owned)];
    rows.extend(ordered(listed).into_iter().map(|(branch, one)| {
        let state = match one.state {
            Doing::Running => "running",
            Doing::InUse => "in use",
            Doing::Idle => "-",
            Doing::Deleted => "deleted",
        };
        [
            format!("{branch}{}", one.name),
            age(now_ms - one.row.created_ms),
            output::bytes(one.own_bytes),
            state.to_owned(),
            one.port.map_or_else(|| "-".to_owned(), |port| port.to_string()),
            marks(one, now_ms),
        ]
    }));
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cell = |(column, cell): (usize, &String)| {
            let width = widths[column];
            // Numbers end where numbers end.
            let cell =
                if column == 2 { format!("{cell:>width$}") } else { format!("{cell:width$}") };
            if cell.starts_with("running") {
                format!("{}{cell}{}", running.0, running.1)
            } else {
                cell
            }
        };
        let line = row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn listed(id: u64, name: &str, parent: Option<u64>) -> Listed {
        let row = BranchRow {
            id: BranchId(id),
            name: name.parse().unwrap(),
            parent: parent.map(BranchId),
            head: LayerId(id),
            begins: None,
            created_ms: 0,
            created_by: 0,
            hygiene_pending: false,
            origin: String::new(),
            protected: id == 3,
            expires_ms: (id == 4).then_some(100_000_000),
            quota_bytes: None,
            pg_bin: None,
            deleted_ms: None,
        };
        Listed {
            name: name.to_owned(),
            id: row.id,
            parent: None,
            origin: String::new(),
            created: String::new(),
            in_use: id == 4,
            protected: row.protected,
            expires: None,
            state: if id == 4 { Doing::Running } else { Doing::Idle },
            port: (id == 4).then_some(5432),
            own_bytes: id * 1000,
            quota_bytes: None,
            row,
        }
    }

    #[test]
    fn children_stand_below_their_parent() {
        let all = [
            listed(2, "a", Some(1)),
            listed(3, "b", Some(1)),
            listed(4, "c", Some(2)),
            listed(1, "main", None),
            listed(5, "orphan", Some(99)),
        ];
        let shown = tree(&all, 90_000, ("<", ">"));
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines,
            [
                "NAME     AGE      SIZE  STATE    PORT",
                "main     1m     1000 B  -        -",
                "├─ a     1m   1.95 KiB  -        -",
                "│  └─ c  1m   3.91 KiB  <running>  5432  expires in 27h",
                "└─ b     1m   2.93 KiB  -        -     protected",
                "orphan   1m   4.88 KiB  -        -",
            ]
        );
    }

    #[test]
    fn ages() {
        let minutes = 60_000;
        let of = [
            (-5, "0s"),
            (59_999, "59s"),
            (minutes, "1m"),
            (47 * 60 * minutes, "47h"),
            (48 * 60 * minutes, "2d"),
        ];
        for (ms, text) in of {
            assert_eq!(age(ms), text);
        }
    }
}
