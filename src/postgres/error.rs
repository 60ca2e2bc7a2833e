//! What can go wrong with running Postgres on a data directory.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::ProbeError;

/// Running, reaching or stopping a server failed.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The directory is not a data directory, or not a whole one.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// No binaries of that major version.
    #[error("no Postgres {major} found; looked in {}", list(.looked_in))]
    NoBinaries {
        /// The data directory's major version.
        major: u32,
        /// Directories without a `postgres` of that version.
        looked_in: Vec<PathBuf>,
    },
    /// The named directory holds no `postgres`.
    #[error("there is no postgres in {}", .dir.display())]
    NotABinDirectory {
        /// As given.
        dir: PathBuf,
    },
    /// The named binaries are of another version.
    #[error("{} is Postgres {found}, the data directory is of {wanted}", .dir.display())]
    OtherMajor {
        /// The directory of the binaries.
        dir: PathBuf,
        /// Their major version.
        found: u32,
        /// That of the data directory.
        wanted: u32,
    },
    /// A client program is nowhere.
    #[error("no {name} found; looked in {}", list(.looked_in))]
    NoClient {
        /// The program.
        name: String,
        /// Where it was looked for.
        looked_in: Vec<PathBuf>,
    },
    /// Postgres refuses to run as root, and so do we.
    #[error("the data directory {} belongs to root, and Postgres never runs as root", .dir.display())]
    OwnedByRoot {
        /// The data directory.
        dir: PathBuf,
    },
    /// Only root can become the owner.
    #[error("the data directory {} belongs to user {owner}, and you are user {user}", .dir.display())]
    OwnedByAnother {
        /// The data directory.
        dir: PathBuf,
        /// Its owner.
        owner: String,
        /// Who runs the command.
        user: String,
    },
    /// The data directory holds no configuration.
    #[error("{} has no postgresql.conf", .dir.display())]
    NoConfig {
        /// The data directory.
        dir: PathBuf,
    },
    /// The named configuration file is not there.
    #[error("there is no configuration file {}", .path.display())]
    ConfigMissing {
        /// As given.
        path: PathBuf,
    },
    /// A setting that is ours to make.
    #[error("{name} cannot be set with -c")]
    ReservedSetting {
        /// The setting.
        name: String,
    },
    /// The port that was asked for is taken.
    #[error("port {port} on 127.0.0.1 is in use")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// Every port that was tried is taken.
    #[error("no free port found, the last one tried was {last}")]
    NoFreePort {
        /// The last one.
        last: u16,
    },
    /// The path of the socket would be too long for the kernel.
    #[error("the path of the socket, {}, is longer than 107 bytes", .path.display())]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// A directory below the runtime directory is not private to us.
    #[error("{} belongs to somebody else", .dir.display())]
    ForeignRuntimeDir {
        /// The directory.
        dir: PathBuf,
    },
    /// Children of a killed postmaster are still at work.
    #[error("the postmaster of {} is gone, but processes of it still run: {}", .dir.display(), numbers(.pids))]
    Orphans {
        /// The data directory.
        dir: PathBuf,
        /// The processes.
        pids: Vec<i32>,
    },
    /// The server ended before it was ready.
    #[error("Postgres did not start ({status}){}", quoted(.last_words))]
    DidNotStart {
        /// How it ended.
        status: String,
        /// The end of its log.
        last_words: String,
        /// Its log.
        log: PathBuf,
    },
    /// The server was not ready in time; it goes on.
    #[error("Postgres is still starting after {} s (process {pid}){}", .timeout.as_secs_f32(), quoted(.last_words))]
    StillStarting {
        /// The postmaster.
        pid: i32,
        /// How long it had.
        timeout: Duration,
        /// The end of its log.
        last_words: String,
        /// Its log.
        log: PathBuf,
    },
    /// The command was interrupted while the server started; the server was stopped.
    #[error("interrupted while Postgres started")]
    Interrupted,
    /// The server did not end in time.
    #[error("Postgres (process {pid}) has not ended after {} s", .timeout.as_secs_f32())]
    StopTimedOut {
        /// The postmaster.
        pid: i32,
        /// How long it had.
        timeout: Duration,
    },
    /// The server would not take our query.
    #[error("cannot ask Postgres on port {port}")]
    Query {
        /// Its port.
        port: u16,
        /// Its words.
        source: postgres::Error,
    },
    /// Something of the host failed.
    #[error("{what}")]
    Host {
        /// What was being done.
        what: String,
        /// The host's answer.
        source: io::Error,
    },
}

fn list(dirs: &[PathBuf]) -> String {
    let names: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    if names.is_empty() { "PATH".to_owned() } else { names.join(", ") }
}

fn numbers(pids: &[i32]) -> String {
    pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
}

fn quoted(last_words: &str) -> String {
    if last_words.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = last_words.lines().map(|line| format!("\n    {line}")).collect();
    format!("; the end of its log:{}", lines.concat())
}

impl PostgresError {
    /// For programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Probe(ProbeError::NotADataDirectory { .. }) => "not_a_data_directory",
            Self::Probe(_) => "data_directory",
            Self::NoBinaries { .. } | Self::NotABinDirectory { .. } | Self::OtherMajor { .. } => {
                "no_binaries"
            }
            Self::NoClient { .. } => "no_client",
            Self::OwnedByRoot { .. } | Self::OwnedByAnother { .. } => "owner",
            Self::NoConfig { .. } | Self::ConfigMissing { .. } => "no_config",
            Self::ReservedSetting { .. } => "usage",
            Self::PortTaken { .. } | Self::NoFreePort { .. } => "port_taken",
            Self::SocketPathTooLong { .. } | Self::ForeignRuntimeDir { .. } => "runtime_dir",
            Self::Orphans { .. } => "orphans",
            Self::DidNotStart { .. } => "did_not_start",
            Self::StillStarting { .. } | Self::StopTimedOut { .. } => "timeout",
            Self::Interrupted => "interrupted",
            Self::Query { .. } => "query",
            Self::Host { .. } => "host",
        }
    }

    /// What to do about it; `branch` is the name to use in commands.
    pub fn hint(&self, branch: &str) -> Option<String> {
        Some(match self {
            Self::Probe(ProbeError::NotADataDirectory { dir }) => format!(
                "run initdb on {} while the branch is mounted, or import a cluster with `cowfs \
                 import DIR --as NAME`",
                dir.display()
            ),
            Self::NoBinaries { major, .. } => format!(
                "install them (Debian: apt-get install postgresql-{major}), or say where they are \
                 with --pg-bin DIR"
            ),
            Self::NotABinDirectory { .. } | Self::OtherMajor { .. } => {
                format!(
                    "--pg-bin takes the directory that holds `postgres`; leave it away to search, and \
                     `cowfs branch pg-bin {branch} auto` if it was set for the branch"
                )
            }
            Self::NoClient { .. } => {
                "install one (Debian: apt-get install postgresql-client)".to_owned()
            }
            Self::OwnedByRoot { dir } => {
                format!("chown -R postgres: {}, and mind its mode 0700", dir.display())
            }
            Self::OwnedByAnother { owner, .. } => format!("run it as {owner} or as root"),
            Self::NoConfig { .. } => "say which to use with --config-file FILE (Debian keeps them \
                                      in /etc/postgresql)"
                .to_owned(),
            Self::ReservedSetting { name } => match name.as_str() {
                "port" => "use --port".to_owned(),
                "config_file" => "use --config-file".to_owned(),
                _ => "it says where the branch lies and listens, which cowfs decides".to_owned(),
            },
            Self::PortTaken { .. } => "leave --port away for a free one".to_owned(),
            Self::NoFreePort { .. } => "name one with --port".to_owned(),
            Self::SocketPathTooLong { .. } => {
                "set COWFS_RUNTIME_DIR to a short path, for example /tmp/c".to_owned()
            }
            Self::ForeignRuntimeDir { .. } => {
                "set COWFS_RUNTIME_DIR to a directory of your own".to_owned()
            }
            Self::Orphans { .. } => "wait for them, or end them".to_owned(),
            Self::DidNotStart { log, last_words, .. } => {
                let whole = format!("its whole log is {}", log.display());
                mend_of(last_words).map_or(whole.clone(), |mend| format!("{mend}; {whole}"))
            }
            Self::StillStarting { .. } => format!(
                "it may be replaying WAL: `cowfs logs {branch}` shows it, `cowfs start {branch}` \
                 waits on"
            ),
            Self::StopTimedOut { .. } => format!(
                "sessions may be busy or kept waiting for: `cowfs stop {branch} --mode immediate`"
            ),
            Self::Query { .. } => {
                "pg_hba.conf decides who may; a password is taken from PGPASSWORD".to_owned()
            }
            Self::Probe(_) | Self::ConfigMissing { .. } | Self::Interrupted | Self::Host { .. } => {
                return None;
            }
        })
    }

    /// Exit code of a command that ends with it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ReservedSetting { .. } => 2,
            Self::StillStarting { .. } | Self::StopTimedOut { .. } => 4,
            Self::Interrupted => 130,
            _ => 1,
        }
    }
}

/// What to do about a server that has ended with these words, where a copy of a cluster on a smaller
/// machine is often met with them. They are in English unless the cluster's messages are not.
fn mend_of(last_words: &str) -> Option<&'static str> {
    let mends = [
        (
            "could not access file",
            "this machine lacks that library: install it, or name those to load with `-c \
             shared_preload_libraries=..`",
        ),
        (
            "could not map anonymous shared memory",
            "the cluster is configured for more memory than there is: `-c shared_buffers=128MB -c \
             huge_pages=try`",
        ),
    ];
    mends.into_iter().find(|(said, _)| last_words.contains(said)).map(|(_, mend)| mend)
}
