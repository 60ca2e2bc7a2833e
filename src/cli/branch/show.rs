//! `cowfs branch show`.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::postgres::reach::{self, Server};
use super::super::{failure, output};
use super::window;
use crate::catalog::{BranchName, BranchRow, LayerRow, SnapshotName, Store};
use crate::format::BranchId;
use crate::io::usage::disk_usage;
use crate::postgres::settings::Setting;
use crate::serve::Failure;
use crate::serve::run_file::RunFile;
use crate::serve::status::{self, State};

/// Arguments of `cowfs branch show`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Unique are the bytes on disk of the layers that only this branch needs: `cowfs branch \
delete` and then `cowfs gc --now` free them. Shared are those of the layers that \
other branches need as well. The files of an adopted directory count for neither."
)]
pub(in crate::cli) struct ShowArgs {
    /// The branch
    #[arg(add = crate::cli::complete::branches())]
    name: BranchName,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(serde::Serialize)]
struct Shown {
    name: BranchName,
    id: BranchId,
    parent: Option<BranchName>,
    origin: String,
    created: String,
    created_by: u32,
    /// Whether delete, reset and restore are refused.
    protected: bool,
    /// When gc may delete it.
    expires: Option<String>,
    /// Bytes that its own layers may take.
    quota_bytes: Option<u64>,
    /// Where the programs of its Postgres are, if that was set.
    pg_bin: Option<PathBuf>,
    snapshots: Vec<SnapshotName>,
    /// What `cowfs branch create --at` can reach: from a time to a time.
    reachable: Vec<Reachable>,
    /// As `cowfs status` has it.
    state: State,
    /// Whether a process serves or changes it, or a Postgres runs on it.
    in_use: bool,
    /// Where a process serves it; none if it is in use otherwise, or not at all.
    mounted: Option<Mounted>,
    /// The Postgres that runs on it.
    postgres: Option<ShownServer>,
    /// Sealed layers below the open one.
    depth: u32,
    /// Bytes on disk of the layers that only this branch reaches: what deleting it would free.
    unique_bytes: u64,
    /// Bytes on disk of the layers that other branches reach as well.
    shared_bytes: u64,
    layers: Vec<ShownLayer>,
}

#[derive(serde::Serialize)]
struct Reachable {
    from: String,
    to: String,
}

#[derive(serde::Serialize)]
struct Mounted {
    mount_point: String,
    pid: u32,
    since: String,
    read_only: bool,
}

#[derive(serde::Serialize)]
struct ShownServer {
    pid: i32,
    port: u16,
    url: String,
    /// Whether `cowfs start` started it.
    started_by_cowfs: bool,
    since: Option<String>,
    /// What differs from the configuration files; empty if others started it.
    changed: Vec<Setting>,
    /// The parent's replication slots that were removed.
    removed_slots: Vec<String>,
}

#[derive(serde::Serialize)]
struct ShownLayer {
    id: String,
    depth: u32,
    state: &'static str,
    /// Whether no other branch reaches it.
    unique: bool,
    /// Bytes on disk; the data of an adopted base lies elsewhere.
    bytes: u64,
    adopted_from: Option<String>,
}

pub(super) fn run(args: &ShowArgs, store: Store) -> Result<u8, Failure> {
    let shown =
        collect(&Arc::new(store), &args.name).map_err(|error| failure::of_catalog(&error))?;
    if args.json {
        output::print_json(&shown)?;
    } else {
        output::print(&describe(&shown));
    }
    Ok(0)
}

fn collect(store: &Arc<Store>, name: &BranchName) -> Result<Shown, crate::catalog::CatalogError> {
    let row: BranchRow = store.catalog.require_branch(name)?;
    let chain = store.catalog.chain(row.head)?;
    let parent = match row.parent {
        Some(id) => store.catalog.branch_by_id(id)?.map(|parent| parent.name),
        None => None,
    };
    let reachable = window::windows_of(store, &row)?.into_iter();
    let reachable =
        reachable.map(|(from, to)| Reachable { from: output::time(from), to: output::time(to) });
    let status = status::one(store, &row);
    // Also of a mount whose serving process was killed: Postgres may run on.
    let served = status.state != State::NotMounted;
    let alive = || reach::files(store, &row).read_alive().is_some();
    let postgres = (served || alive()).then(|| reach::find(store, &row)).flatten();
    let postgres = postgres.map(|server| shown_server(&server));
    let unique = store.catalog.reach()?.only_of_branch(row.id);
    let show = |layer: &LayerRow| show_layer(store, layer, unique.contains(&layer.id));
    let layers: Vec<ShownLayer> = chain.iter().map(show).collect();
    let bytes = |unique| layers.iter().filter(|l| l.unique == unique).map(|l| l.bytes).sum();
    Ok(Shown {
        id: row.id,
        parent,
        origin: row.origin,
        created: output::time(row.created_ms),
        created_by: row.created_by,
        protected: row.protected,
        expires: row.expires_ms.map(output::time),
        quota_bytes: row.quota_bytes,
        pg_bin: row.pg_bin.clone(),
        snapshots: store.catalog.snapshots_of(row.id)?.into_iter().map(|s| s.name).collect(),
        state: status.state,
        in_use: postgres.is_some() || !matches!(status.state, State::NotMounted | State::Dead),
        reachable: reachable.collect(),
        // A run file without the lock is left over from a process that was killed.
        mounted: (served && status.state != State::Dead).then(|| mounted(store, row.id)).flatten(),
        postgres,
        depth: chain.first().map_or(0, |layer| layer.depth),
        unique_bytes: bytes(true),
        shared_bytes: bytes(false),
        layers,
        name: row.name,
    })
}

fn mounted(store: &Store, id: BranchId) -> Option<Mounted> {
    let run = RunFile::read(&store.run_dir(), id)?;
    Some(Mounted {
        mount_point: run.mount_point.display().to_string(),
        pid: run.pid,
        since: output::time(run.since_ms),
        read_only: run.read_only,
    })
}

fn shown_server(server: &Server) -> ShownServer {
    let instance = server.instance.as_ref();
    ShownServer {
        pid: server.process.pid,
        port: server.connection.port,
        url: server.connection.uri(),
        started_by_cowfs: instance.is_some(),
        since: instance.map(|instance| output::time(instance.since_ms)),
        changed: instance.map(|instance| instance.settings.clone()).unwrap_or_default(),
        removed_slots: instance.map(|i| i.removed_slots.clone()).unwrap_or_default(),
    }
}

fn describe_server(server: &ShownServer, text: &mut String) {
    let _ = writeln!(text, "  postgres {} (process {})", server.url, server.pid);
    if !server.started_by_cowfs {
        let _ = writeln!(text, "           not started by cowfs: as it is configured");
    }
    for setting in &server.changed {
        let guard =
            setting.guard.map_or(String::new(), |guard| format!("  (--keep {})", guard.name()));
        let _ = writeln!(text, "           {} = '{}'{guard}", setting.name, setting.value);
    }
    if !server.removed_slots.is_empty() {
        let names = server.removed_slots.join(", ");
        let _ = writeln!(text, "           slots of the parent removed: {names}");
    }
}

fn show_layer(store: &Store, layer: &LayerRow, unique: bool) -> ShownLayer {
    ShownLayer {
        id: layer.id.dir_name(),
        depth: layer.depth,
        state: layer.state.as_str(),
        unique,
        bytes: disk_usage(&store.layer_dir(layer.id)),
        adopted_from: layer.adopted_from.as_ref().map(|dir| dir.display().to_string()),
    }
}

fn in_use(shown: &Shown) -> String {
    match (&shown.mounted, &shown.postgres, shown.state) {
        (Some(mount), _, _) => format!("mounted at {} by process {}", mount.mount_point, mount.pid),
        (None, Some(postgres), State::Dead | State::NotMounted) => {
            let pid = postgres.pid;
            format!(
                "the serving process was killed; Postgres (process {pid}) still runs, and cannot write"
            )
        }
        (None, None, State::Dead) => {
            "no; the serving process was killed, `cowfs unmount` removes what it left".to_owned()
        }
        (None, _, _) if shown.in_use => "yes".to_owned(),
        _ => "no".to_owned(),
    }
}

fn describe(shown: &Shown) -> String {
    let mut text = format!("Branch {} (id {})\n", shown.name, shown.id);
    let parent = shown.parent.as_ref().map_or("none", BranchName::as_str);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "  parent   {parent}");
    let _ = writeln!(text, "  origin   {}", shown.origin);
    let _ = writeln!(text, "  created  {} by user {}", shown.created, shown.created_by);
    if shown.protected {
        let _ = writeln!(text, "  protected from delete, reset, restore and expiry");
    }
    if let Some(expires) = &shown.expires {
        let _ = writeln!(text, "  expires  {expires}");
    }
    if let Some(quota) = shown.quota_bytes {
        let _ = writeln!(text, "  quota    {}", output::bytes(quota));
    }
    if let Some(dir) = &shown.pg_bin {
        let _ = writeln!(text, "  pg-bin   {}", output::path(dir));
    }
    if !shown.snapshots.is_empty() {
        let names: Vec<&str> = shown.snapshots.iter().map(SnapshotName::as_str).collect();
        let _ = writeln!(text, "  snapshots  {}", names.join(", "));
    }
    for Reachable { from, to } in &shown.reachable {
        let _ = writeln!(text, "  reachable  {from} to {to}");
    }
    let _ = writeln!(text, "  in use   {}", in_use(shown));
    if let Some(server) = &shown.postgres {
        describe_server(server, &mut text);
    }
    let _ = writeln!(text, "  unique   {}", output::bytes(shown.unique_bytes));
    let _ = writeln!(text, "  shared   {}", output::bytes(shown.shared_bytes));
    let _ = writeln!(text, "  layers   (newest first)");
    for layer in &shown.layers {
        let adopted = layer
            .adopted_from
            .as_ref()
            .map_or(String::new(), |dir| format!("  adopted from {dir}"));
        let size = output::bytes(layer.bytes);
        let shared = if layer.unique { "unique" } else { "shared" };
        let _ = writeln!(text, "    {}  {:<6}  {shared}  {size}{adopted}", layer.id, layer.state);
    }
    text
}
