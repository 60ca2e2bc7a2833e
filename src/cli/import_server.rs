//! `cowfs import --from-server`: a base backup of a running server becomes a branch.

use std::io::IsTerminal;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

use super::branch::delete;
use super::postgres::bring_up;
use super::{failure, output};
use crate::branch::create::create_from;
use crate::branch::fork::Requester;
use crate::catalog::{BranchName, BranchRow, Store};
use crate::io::sys;
use crate::postgres::owner::Owner;
use crate::postgres::runtime_dir::RuntimeDir;
use crate::postgres::{DataDirectory, locate};
use crate::serve::options::MountOptions;
use crate::serve::server::MountRequest;
use crate::serve::{Failure, lifecycle};

/// How long mounting the empty branch may take.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// How often pg_basebackup and the signals are looked at.
const POLL: Duration = Duration::from_millis(20);
/// The user to own the data directory when root imports, as everywhere.
const SERVER_USER: &str = "postgres";

/// A base backup to be taken.
pub(super) struct ServerImport<'a> {
    /// Of this server, as a connection string or URI.
    pub url: &'a str,
    /// As this branch.
    pub name: &'a BranchName,
    /// Whether the branch goes on following the server.
    pub standby: bool,
    /// Directory with pg_basebackup.
    pub pg_bin: Option<&'a Path>,
    /// Print the result as JSON.
    pub json: bool,
}

#[derive(serde::Serialize)]
struct Imported<'a> {
    branch: &'a BranchName,
    from: String,
    standby: bool,
    major: u32,
    seconds: f64,
}

pub(super) fn run(store: &Arc<Store>, import: &ServerImport<'_>) -> Result<(), Failure> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Without the handler the signal ends the process, and the half-filled branch stays.
        let _ = signal_hook::flag::register(signal, cancel.clone());
    }
    let begin = Instant::now();
    let from = without_password(import.url);
    let what = if import.standby { "standby" } else { "server" };
    let command = super::command_line();
    let by = Requester { uid: nix::unistd::getuid().as_raw(), command };
    let row = create_from(store, import.name.clone(), &format!("{what}:{from}"), &by);
    let row = row.map_err(|error| failure::of_branch(&error))?;
    let filled = fill(store, &row, import, &cancel);
    let unmounted = bring_up::unmount(store, &row);
    RuntimeDir::of_branch(&store.root, row.id.0).remove();
    let done =
        filled.and_then(|major| unmounted.map(|()| major).map_err(|error| error.to_failure()));
    let major = match done {
        Ok(major) => major,
        Err(failure) => {
            if let Err(stays) = delete::delete(store, &row, true, delete::After::Purge) {
                eprintln!("Cannot delete branch {} again: {stays}", import.name);
            }
            return Err(failure);
        }
    };
    let seconds = begin.elapsed().as_secs_f64();
    let (branch, standby) = (import.name, import.standby);
    if import.json {
        return output::print_json(&Imported { branch, from, standby, major, seconds });
    }
    let follows = if standby { ", which follows it once it is started" } else { "" };
    output::print(&format!(
        "Imported {from} as branch {branch}{follows}: Postgres {major}, {seconds:.1} s\n"
    ));
    Ok(())
}

/// Mounts the empty branch and has pg_basebackup fill it; gives the major version.
fn fill(
    store: &Store,
    row: &BranchRow,
    import: &ServerImport<'_>,
    cancel: &AtomicBool,
) -> Result<u32, Failure> {
    let of_postgres = |error| failure::of_postgres(row.name.as_str(), &error);
    let runtime = RuntimeDir::of_branch(&store.root, row.id.0);
    let request = MountRequest {
        branch: row.name.clone(),
        dir: runtime.create_mount_point().map_err(of_postgres)?,
        options: MountOptions::default(),
        threads: None,
        timeout: MOUNT_TIMEOUT,
    };
    let ready = lifecycle::start(store, &request).map_err(|error| error.to_failure())?;
    let dir = ready.mount_point;
    give_to_server_user(&dir)?;
    let owner = Owner::of(&dir).map_err(of_postgres)?;
    let program = locate::client("pg_basebackup", import.pg_bin).map_err(of_postgres)?;
    let mut command = Command::new(&program);
    command.arg("--pgdata").arg(&dir).arg("--dbname").arg(import.url);
    command.args(["--wal-method=stream", "--checkpoint=fast", "--no-password"]);
    if import.standby {
        command.arg("--write-recovery-conf");
    }
    if std::io::stderr().is_terminal() {
        command.arg("--progress");
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    sys::prepare_process(&mut command, owner.credentials, false);
    let failed = |what: String| {
        Failure::new("base_backup", what).hint(
            "the user needs REPLICATION and a replication line in pg_hba.conf; a password is \
             taken from PGPASSWORD",
        )
    };
    let mut child = command
        .spawn()
        .map_err(|error| failed(format!("cannot run {}: {error}", program.display())))?;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => std::thread::sleep(POLL),
            Err(error) => return Err(Failure::caused("host", &error)),
        }
        if cancel.load(Ordering::Relaxed) {
            // It cleans up on its way out; the branch goes anyway.
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT);
        }
    };
    if !status.success() {
        return Err(failed(format!("pg_basebackup ended with {status}")));
    }
    let found = DataDirectory::probe(&dir).map_err(|error| of_postgres(error.into()))?;
    Ok(found.major)
}

/// The root of a branch belongs to who made it; a server does not run as root.
fn give_to_server_user(dir: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::caused("host", &error);
    if nix::unistd::geteuid().is_root() {
        let user = User::from_name(SERVER_USER).ok().flatten().ok_or_else(|| {
            Failure::new("owner", format!("there is no user {SERVER_USER} to own the data"))
                .hint("run it as the user that is to run Postgres")
        })?;
        std::os::unix::fs::chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .map_err(failed)?;
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(failed)
}

/// The connection string as it may be shown and kept: without a password.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return words_without_password(url);
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let shown = match rest[..end].rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{user}@{host}{}", &rest[end..])
        }
        None => rest.to_owned(),
    };
    let (path, query) = shown.split_once('?').unwrap_or((&shown, ""));
    let query: Vec<&str> = query
        .split('&')
        .filter(|pair| !pair.is_empty() && !is_secret(pair.split('=').next().unwrap_or_default()))
        .collect();
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{scheme}://{path}{mark}{}", query.join("&"))
}

fn is_secret(keyword: &str) -> bool {
    matches!(keyword, "password" | "sslpassword")
}

/// The same of `keyword = value` pairs as libpq takes them: spaces around the sign, values in single
/// quotes, backslashes before what is meant literally.
fn words_without_password(text: &str) -> String {
    let mut rest = text.trim_start();
    let mut shown = Vec::new();
    while let Some((keyword, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let end = value_end(after);
        if !is_secret(keyword.trim()) {
            shown.push(format!("{}={}", keyword.trim(), &after[..end]));
        }
        rest = after[end..].trim_start();
    }
    // What is left is no pair, and perhaps a part of a secret.
    shown.join(" ")
}

/// Where the value ends with which `text` begins.
fn value_end(text: &str) -> usize {
    let quoted = text.starts_with('\'');
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(usize::from(quoted)) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' if quoted => return at + 1,
            c if !quoted && c.is_whitespace() => return at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::super::without_secrets;
    use super::without_password;

    #[test]
    fn the_log_keeps_no_password_of_a_command() {
        let line = |words: &str| without_secrets(words.split(' ').map(str::to_owned));
        let url = "postgresql://u:p@h/d";
        let shown = "cowfs import --from-server postgresql://u@h/d --as x";
        assert_eq!(line(&format!("import --from-server {url} --as x")), shown);
        let shown = "cowfs import --from-server=postgresql://u@h/d";
        assert_eq!(line(&format!("import --from-server={url}")), shown);
    }

    #[test]
    fn passwords_are_not_kept() {
        for (given, shown) in [
            (
                "postgresql://u:se:cret@h:5432/d?sslmode=require",
                "postgresql://u@h:5432/d?sslmode=require",
            ),
            ("postgres://u:p@h", "postgres://u@h"),
            ("postgresql://h/d?password=x&user=u", "postgresql://h/d?user=u"),
            ("postgresql:///d?host=/run/s&password=x", "postgresql:///d?host=/run/s"),
            ("host=h password=x dbname=d", "host=h dbname=d"),
            ("host=h password = 'a b\\' c' dbname=d", "host=h dbname=d"),
            ("password=a\\ b user = u", "user=u"),
            ("host='/run/a b' password='open", "host='/run/a b'"),
            ("postgresql://h/d?sslpassword=x", "postgresql://h/d"),
        ] {
            assert_eq!(without_password(given), shown);
        }
    }
}
