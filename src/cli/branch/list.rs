//! `cowfs branch list`.

use std::collections::BTreeMap;

use super::super::postgres::reach;
use super::super::{failure, output};
use crate::catalog::{BranchRow, FileLock, Store};
use crate::format::BranchId;
use crate::serve::Failure;

/// Arguments of `cowfs branch list`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Listed<'a> {
    name: &'a str,
    id: BranchId,
    parent: Option<&'a str>,
    origin: &'a str,
    created: String,
    in_use: bool,
    protected: bool,
    /// When gc may delete it.
    expires: Option<String>,
}

pub(super) fn run(args: &ListArgs, store: &Store) -> Result<u8, Failure> {
    let rows = store.catalog.branches().map_err(|error| failure::of_catalog(&error))?;
    if args.json {
        let names: BTreeMap<BranchId, &str> =
            rows.iter().map(|row| (row.id, row.name.as_str())).collect();
        let listed: Vec<Listed<'_>> = rows
            .iter()
            .map(|row| Listed {
                name: row.name.as_str(),
                id: row.id,
                parent: row.parent.and_then(|id| names.get(&id).copied()),
                origin: &row.origin,
                created: output::time(row.created_ms),
                in_use: in_use(store, row),
                protected: row.protected,
                expires: row.expires_ms.map(output::time),
            })
            .collect();
        output::print_json(&listed)?;
        return Ok(0);
    }
    output::print(&tree(&rows, &|row| in_use(store, row)));
    Ok(0)
}

/// Whether a process serves or changes the branch, or a Postgres runs on it.
pub(in crate::cli) fn in_use(store: &Store, row: &BranchRow) -> bool {
    FileLock::is_held(&store.branch_lock_path(row.id)).unwrap_or(false)
        || reach::files(store, row).read_alive().is_some()
}

/// What sets a branch apart, for people.
fn marks(row: &BranchRow, in_use: bool) -> String {
    let expires = row.expires_ms.map(|at| format!("expires {}", output::time(at)));
    let marks: Vec<String> = [
        in_use.then(|| "in use".to_owned()),
        row.protected.then(|| "protected".to_owned()),
        expires,
    ]
    .into_iter()
    .flatten()
    .collect();
    if marks.is_empty() { String::new() } else { format!("  ({})", marks.join(", ")) }
}

/// The branches as a tree, children below their parent, by name.
fn tree(rows: &[BranchRow], in_use: &dyn Fn(&BranchRow) -> bool) -> String {
    let mut children: BTreeMap<Option<BranchId>, Vec<&BranchRow>> = BTreeMap::new();
    let known: std::collections::BTreeSet<BranchId> = rows.iter().map(|row| row.id).collect();
    for row in rows {
        children.entry(row.parent.filter(|id| known.contains(id))).or_default().push(row);
    }
    let mut text = String::new();
    // Depth first, without recursion: a chain of a thousand forks must not exhaust the stack.
    let mut stack: Vec<(&BranchRow, String, String)> = Vec::new();
    for row in children.get(&None).into_iter().flatten().rev() {
        stack.push((row, String::new(), String::new()));
    }
    while let Some((row, branch, trunk)) = stack.pop() {
        let line = format!(
            "{branch}{}  {}{}\n",
            row.name,
            output::time(row.created_ms),
            marks(row, in_use(row))
        );
        text.push_str(&line);
        let below = children.get(&Some(row.id)).map_or(&[][..], Vec::as_slice);
        for (at, child) in below.iter().enumerate().rev() {
            let last = at + 1 == below.len();
            let (turn, go_on) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            stack.push((child, format!("{trunk}{turn}"), format!("{trunk}{go_on}")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::format::LayerId;

    fn row(id: u64, name: &str, parent: Option<u64>) -> BranchRow {
        BranchRow {
            id: BranchId(id),
            name: name.parse().unwrap(),
            parent: parent.map(BranchId),
            head: LayerId(id),
            created_ms: 0,
            created_by: 0,
            hygiene_pending: false,
            origin: String::new(),
            protected: id == 3,
            expires_ms: (id == 4).then_some(1000),
            deleted_ms: None,
        }
    }

    #[test]
    fn children_stand_below_their_parent() {
        let rows = [
            row(2, "a", Some(1)),
            row(3, "b", Some(1)),
            row(4, "c", Some(2)),
            row(1, "main", None),
            row(5, "orphan", Some(99)),
        ];
        let shown = tree(&rows, &|row| row.id == BranchId(4));
        let names: Vec<&str> = shown.lines().collect();
        assert_eq!(
            names,
            [
                "main  1970-01-01T00:00:00Z",
                "├─ a  1970-01-01T00:00:00Z",
                "│  └─ c  1970-01-01T00:00:00Z  (in use, expires 1970-01-01T00:00:01Z)",
                "└─ b  1970-01-01T00:00:00Z  (protected)",
                "orphan  1970-01-01T00:00:00Z",
            ]
        );
    }
}
