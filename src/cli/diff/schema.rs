//! The schema of both states, as pg_dump writes it.

use std::collections::BTreeMap;
use std::process::Stdio;

use similar::TextDiff;

use super::super::postgres::reach::Server;
use super::super::{interrupt, output};
use super::servers::{Servers, databases};
use crate::postgres::PostgresError;
use crate::serve::Failure;

#[derive(serde::Serialize)]
struct Schema {
    database: String,
    /// Whether the first state has the database.
    before: bool,
    /// Whether the second has it.
    after: bool,
    /// Unified.
    diff: String,
}

pub(super) fn show(servers: &Servers<'_>, json: bool) -> Result<(), Failure> {
    let before = servers.ask(servers.before, dump_all)?;
    interrupt::go_on()?;
    let after = servers.ask(servers.after, dump_all)?;
    let names = (&servers.before.called, &servers.after.called);
    let mut all: Vec<&String> = before.keys().chain(after.keys()).collect();
    all.sort_unstable();
    all.dedup();
    let mut found = Vec::new();
    for database in all {
        let (old, new) = (before.get(database), after.get(database));
        let (from, to) = (old.map_or("", String::as_str), new.map_or("", String::as_str));
        if from == to && old.is_some() == new.is_some() {
            continue;
        }
        let headers = (format!("{}/{database}", names.0), format!("{}/{database}", names.1));
        let text = TextDiff::from_lines(from, to);
        let diff = text.unified_diff().context_radius(3).header(&headers.0, &headers.1).to_string();
        let (before, after) = (old.is_some(), new.is_some());
        found.push(Schema { database: database.clone(), before, after, diff });
    }
    if json {
        return output::print_json(&found);
    }
    if found.is_empty() {
        output::print("The schemas are the same\n");
    }
    for schema in found {
        output::print(&schema.diff);
    }
    Ok(())
}

/// The schema of each database of a server.
fn dump_all(server: &Server) -> Result<BTreeMap<String, String>, PostgresError> {
    let mut all = BTreeMap::new();
    for database in databases(server)? {
        let schema = dump(server, &database)?;
        all.insert(database, schema);
    }
    Ok(all)
}

fn dump(server: &Server, database: &str) -> Result<String, PostgresError> {
    let mut command = server.client("pg_dump")?;
    command.args(["--schema-only", "--dbname"]).arg(connection_string(database));
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    let failed =
        |source| PostgresError::Host { what: format!("running pg_dump of {database}"), source };
    let output = command.output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(std::io::Error::other(said)));
    }
    Ok(without_what_always_differs(&String::from_utf8_lossy(&output.stdout)))
}

/// Of what pg_dump takes for a connection string, nothing in the name counts as one.
fn connection_string(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// pg_dump guards its output with a word that is random (since the minor releases of August 2025).
fn without_what_always_differs(dump: &str) -> String {
    let differs =
        |line: &&str| line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ");
    let kept: Vec<&str> = dump.split_inclusive('\n').filter(|line| !differs(line)).collect();
    kept.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_words_do_not_count() {
        let dump = "-- a\n\\restrict Xy1\nCREATE TABLE t ();\n\\unrestrict Xy1\n";
        assert_eq!(without_what_always_differs(dump), "-- a\nCREATE TABLE t ();\n");
    }

    #[test]
    fn names_of_databases_are_only_names() {
        assert_eq!(connection_string("a b"), "dbname='a b'");
        assert_eq!(connection_string("host=x'\\"), "dbname='host=x\\'\\\\'");
    }
}
