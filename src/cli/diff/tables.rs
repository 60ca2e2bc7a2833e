//! What differs, by table and index.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::Path;

use super::super::output;
use super::super::postgres::reach::Server;
use super::servers::{Servers, databases};
use crate::diff::Difference;
use crate::format::counted;
use crate::postgres::PostgresError;
use crate::serve::Failure;

/// A relation as [`RELATIONS`] gives it.
type Row = (u64, String, String, String, String, Option<String>);

/// Every relation with files of its own, as the catalog of one database has them: number, path of
/// its first file, kind, schema, name, and of which table it is an index or holds the long values.
const RELATIONS: &str = "
SELECT json_build_array(c.oid::bigint, pg_relation_filepath(c.oid), c.relkind, n.nspname, c.relname,
    CASE WHEN p.oid IS NOT NULL THEN format('%I.%I', pn.nspname, p.relname)
         WHEN i.indrelid IS NOT NULL THEN format('%I.%I', tn.nspname, t.relname)
         WHEN o.oid IS NOT NULL THEN format('%I.%I', onsp.nspname, o.relname) END)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index i ON i.indexrelid = c.oid
LEFT JOIN pg_class t ON t.oid = i.indrelid
LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace
LEFT JOIN pg_class p ON p.reltoastrelid = i.indrelid
LEFT JOIN pg_namespace pn ON pn.oid = p.relnamespace
LEFT JOIN pg_class o ON o.reltoastrelid = c.oid
LEFT JOIN pg_namespace onsp ON onsp.oid = o.relnamespace
WHERE pg_relation_filepath(c.oid) IS NOT NULL";

/// A relation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
struct Relation {
    /// Empty for the relations that all databases share.
    database: String,
    schema: String,
    name: String,
    kind: &'static str,
    /// The table that it belongs to, of an index or of long values.
    #[serde(skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    /// Its first file.
    path: String,
}

impl Relation {
    fn is_of_the_system(&self) -> bool {
        let system = |schema: &str| schema == "pg_catalog" || schema == "information_schema";
        let of = self.of.as_deref().and_then(|of| of.split_once('.')).map(|(schema, _)| schema);
        system(&self.schema) || of.is_some_and(system)
    }
}

/// How much of a relation differs, over all its files.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
struct Amount {
    old_bytes: u64,
    new_bytes: u64,
    written_bytes: u64,
}

#[derive(serde::Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    relation: &'a Relation,
    change: &'static str,
    #[serde(flatten)]
    amount: &'a Amount,
    /// Whether it is of the system.
    system: bool,
}

#[derive(serde::Serialize)]
struct Report<'a> {
    relations: Vec<Line<'a>>,
    /// Bytes written to files that are of no relation: the log, statistics and the like.
    elsewhere_bytes: u64,
}

/// A relation has its number for good, and its name and its files only until the next change.
type Key = (String, u64);

/// The relations of a server.
#[derive(Default)]
struct Relations {
    all: HashMap<Key, Relation>,
    /// By the path of their first file.
    by_path: HashMap<String, Key>,
}

pub(super) fn show(servers: &Servers<'_>, found: &[Difference], json: bool) -> Result<(), Failure> {
    let of_relations = found.iter().filter_map(|one| Some((first_file(&one.path)?, one)));
    let of_relations: Vec<(String, &Difference)> = of_relations.collect();
    let (mut before, mut after) = (Relations::default(), Relations::default());
    if !of_relations.is_empty() {
        before = servers.ask(servers.before, relations)?;
        after = servers.ask(servers.after, relations)?;
    }
    let mut amounts: BTreeMap<Key, Amount> = BTreeMap::new();
    let mut named_bytes = 0;
    for (path, one) in &of_relations {
        // What is in the way of a new file stays, empty, until the next checkpoint.
        let Some(key) = after.by_path.get(path).or_else(|| before.by_path.get(path)) else {
            continue;
        };
        named_bytes += one.written_bytes();
        amounts.entry(key.clone()).or_default().add(one);
    }
    let all: u64 = found.iter().map(Difference::written_bytes).sum();
    let report =
        Report { relations: lines(&before, &after, &amounts), elsewhere_bytes: all - named_bytes };
    if json {
        return output::print_json(&report);
    }
    output::print(&table(&report));
    Ok(())
}

impl Amount {
    fn add(&mut self, one: &Difference) {
        self.old_bytes += one.old_size.unwrap_or(0);
        self.new_bytes += one.new_size.unwrap_or(0);
        self.written_bytes += one.written_bytes();
    }
}

/// What became of a relation, given what it was and is.
fn change(before: Option<&Relation>, after: Option<&Relation>) -> &'static str {
    match (before, after) {
        (None, _) => "added",
        (_, None) => "deleted",
        (Some(before), Some(after)) if before.path != after.path => "rewritten",
        _ => "modified",
    }
}

/// Those of the user first, and what was written most.
fn lines<'a>(
    before: &'a Relations,
    after: &'a Relations,
    amounts: &'a BTreeMap<Key, Amount>,
) -> Vec<Line<'a>> {
    let line = |(key, amount): (&'a Key, &'a Amount)| {
        let (old, new) = (before.all.get(key), after.all.get(key));
        let relation = new.or(old)?;
        let system = relation.is_of_the_system();
        Some(Line { relation, change: change(old, new), amount, system })
    };
    let mut lines: Vec<Line<'_>> = amounts.iter().filter_map(line).collect();
    let size = |line: &Line<'_>| line.amount.written_bytes.max(line.amount.old_bytes);
    lines.sort_by_key(|line| (line.system, std::cmp::Reverse(size(line))));
    lines
}

fn table(report: &Report<'_>) -> String {
    let mut text = String::new();
    let (mine, system): (Vec<_>, Vec<_>) = report.relations.iter().partition(|line| !line.system);
    let name = |line: &&Line<'_>| {
        let Relation { database, schema, name, .. } = line.relation;
        format!("{database}.{schema}.{name}")
    };
    let width = mine.iter().map(|line| name(line).len()).max().unwrap_or(0);
    for line in &mine {
        let of = line.relation.of.as_ref().map_or_else(String::new, |of| format!(" of {of}"));
        let size = match line.change {
            "added" => output::bytes(line.amount.new_bytes),
            "deleted" => output::bytes(line.amount.old_bytes),
            _ => output::bytes(line.amount.written_bytes),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<9}  {:<width$}  {size:>11}  {}{of}",
            line.change,
            name(line),
            line.relation.kind
        );
    }
    if mine.is_empty() {
        text += "No table or index differs\n";
    }
    if !system.is_empty() {
        let bytes: u64 = system.iter().map(|line| line.amount.written_bytes).sum();
        let count = counted(system.len() as u64, "relation");
        let _ = writeln!(text, "Besides, {count} of the system: {}", output::bytes(bytes));
    }
    let _ = writeln!(
        text,
        "Outside of relations (log, statistics): {}",
        output::bytes(report.elsewhere_bytes)
    );
    text
}

/// The relations of all databases of a server.
fn relations(server: &Server) -> Result<Relations, PostgresError> {
    let mut found = Relations::default();
    for database in databases(server)? {
        for row in server.ask_in(&database, RELATIONS)? {
            let Ok((oid, path, kind, schema, name, of)) = serde_json::from_str::<Row>(&row) else {
                continue;
            };
            // The relations that all databases share are in the catalog of each.
            let shared = path.starts_with("global/");
            let database = if shared { String::new() } else { database.clone() };
            let key = (database.clone(), oid);
            found.by_path.insert(path.clone(), key.clone());
            let kind = kind_of(&kind);
            found.all.insert(key, Relation { database, schema, name, kind, of, path });
        }
    }
    Ok(found)
}

fn kind_of(kind: &str) -> &'static str {
    match kind {
        "r" => "table",
        "i" => "index",
        "S" => "sequence",
        "t" => "long values",
        "m" => "materialized view",
        _ => "relation",
    }
}

/// Of a file that may be one of a relation: the path of the relation's first file.
///
/// The files of a relation are `N`, its further gibibytes `N.1`, `N.2` .., and the same for
/// `N_fsm`, `N_vm` and `N_init` (Postgres documentation, "Database File Layout").
fn first_file(path: &Path) -> Option<String> {
    let path = path.to_str()?;
    let (dir, file) = path.rsplit_once('/')?;
    if !["base/", "global", "pg_tblspc/"].iter().any(|top| dir.starts_with(top)) {
        return None;
    }
    let number = file.split_once('.').map_or(file, |(number, _)| number);
    let number = number.split_once('_').map_or(number, |(number, _)| number);
    let is_one = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_one.then(|| format!("{dir}/{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_relations() {
        for (path, first) in [
            ("base/5/1249", Some("base/5/1249")),
            ("base/5/1249.12", Some("base/5/1249")),
            ("base/5/1249_fsm", Some("base/5/1249")),
            ("base/5/1249_vm.1", Some("base/5/1249")),
            ("global/1262", Some("global/1262")),
            (
                "pg_tblspc/16400/PG_15_202209061/5/16401",
                Some("pg_tblspc/16400/PG_15_202209061/5/16401"),
            ),
            ("base/5/PG_VERSION", None),
            ("base/5/pg_filenode.map", None),
            ("base/5/t3_16400", None),
            ("global/pg_control", None),
            ("pg_wal/000000010000000000000001", None),
            ("PG_VERSION", None),
        ] {
            assert_eq!(first_file(Path::new(path)).as_deref(), first, "{path}");
        }
    }

    fn relation(schema: &str, of: Option<&str>) -> Relation {
        Relation {
            database: "a".to_owned(),
            schema: schema.to_owned(),
            name: "r".to_owned(),
            kind: "table",
            of: of.map(str::to_owned),
            path: "base/5/16384".to_owned(),
        }
    }

    #[test]
    fn what_lies_in_other_files_was_rewritten() {
        let old = relation("public", None);
        let new = Relation { path: "base/5/24576".to_owned(), ..old.clone() };
        assert_eq!(change(Some(&old), Some(&new)), "rewritten");
        assert_eq!(change(Some(&old), Some(&old)), "modified");
        assert_eq!(change(Some(&old), None), "deleted");
        assert_eq!(change(None, Some(&new)), "added");
    }

    #[test]
    fn what_is_of_the_system() {
        assert!(relation("pg_catalog", None).is_of_the_system());
        assert!(relation("pg_toast", Some("pg_catalog.pg_proc")).is_of_the_system());
        assert!(!relation("pg_toast", Some("public.t")).is_of_the_system());
        assert!(!relation("public", None).is_of_the_system());
    }
}
