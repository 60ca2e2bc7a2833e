//! What can go wrong with mounting, serving and unmounting.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::control::ControlError;
use super::detach::DetachError;
use super::failure;
use super::holders::Holders;
use super::listener::ListenError;
use super::mount_point::MountPointError;
use super::options::OptionError;
use super::probe::Answer;
use super::protocol::{Failure, with_causes};
use crate::branch::BranchError;
use crate::catalog::{BranchName, CatalogError, LockError};
use crate::fs::FsError;
use crate::fuse::FuseError;

/// Mounting, serving or unmounting a branch failed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The catalog failed, or has no such branch.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A mount option is not known.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The branch is served already.
    #[error("branch {branch} is already mounted at {} (process {pid})", .mount_point.display())]
    AlreadyServed {
        /// The branch.
        branch: BranchName,
        /// Where.
        mount_point: PathBuf,
        /// By whom.
        pid: u32,
    },
    /// The branch was detached, and somebody still uses it.
    #[error("branch {branch} was unmounted lazily and is still in use (served by process {pid})")]
    StillUsed {
        /// The branch.
        branch: BranchName,
        /// The serving process.
        pid: u32,
    },
    /// Somebody holds the branch's lock and does not say where it is mounted.
    #[error("branch {branch} is {lock}")]
    InUse {
        /// The branch.
        branch: BranchName,
        /// Who holds it.
        lock: LockError,
    },
    /// The branch's lock could not be taken for another reason.
    #[error(transparent)]
    Lock(LockError),
    /// The directory cannot be mounted on.
    #[error(transparent)]
    MountPoint(#[from] MountPointError),
    /// The branch could not be opened or closed.
    #[error(transparent)]
    Branch(#[from] BranchError),
    /// The filesystem could not be prepared or ended.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The kernel did not mount it.
    #[error(transparent)]
    Fuse(#[from] FuseError),
    /// The control socket could not be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Mounted, but the kernel's list does not show it.
    #[error("the new mount at {} has vanished", .mount_point.display())]
    Vanished {
        /// Where it should be.
        mount_point: PathBuf,
    },
    /// Mounted, but it does not answer as it should.
    #[error("the new mount at {} does not answer: {}", .mount_point.display(), answer_words(*.answer))]
    NoAnswer {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// What it said instead.
        answer: Answer,
    },
    /// Something of the host failed.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: String,
        /// The host's answer.
        source: io::Error,
    },
    /// The serving process ended before it was ready, and did not say why.
    #[error("the serving process ended before it was ready ({how})")]
    ServerEnded {
        /// Its exit status and last words.
        how: String,
        /// Its log.
        log: PathBuf,
    },
    /// The serving process was not ready in time and was ended.
    #[error("the branch was not mounted within {} s", .timeout.as_secs_f32())]
    StartTimedOut {
        /// How long it had.
        timeout: Duration,
        /// Its log.
        log: PathBuf,
    },
    /// The serving process reported why it could not start.
    #[error(transparent)]
    Reported(#[from] Failure),
    /// Unmounting failed.
    #[error(transparent)]
    Unmount(#[from] UnmountError),
}

/// Unmounting failed.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Somebody uses the mount.
    #[error("{} is in use by {holders}", .mount_point.display())]
    InUse {
        /// Where it is mounted.
        mount_point: PathBuf,
        /// By whom.
        holders: Box<Holders>,
    },
    /// The branch is not mounted.
    #[error("branch {branch} is not mounted")]
    NotMounted {
        /// The branch.
        branch: BranchName,
    },
    /// The branch is not mounted, but somebody changes it or starts to serve it.
    #[error("branch {branch} is not mounted, but {lock}")]
    Busy {
        /// The branch.
        branch: BranchName,
        /// Who holds its lock.
        lock: LockError,
    },
    /// Nothing of ours is mounted at the directory.
    #[error("no branch is mounted at {}", .dir.display())]
    NothingThere {
        /// The directory.
        dir: PathBuf,
    },
    /// Neither a branch nor a directory.
    #[error("there is neither a branch nor a directory {target}")]
    UnknownTarget {
        /// As given.
        target: String,
    },
    /// The serving process does not answer.
    #[error("the process that serves branch {branch} does not answer ({control})")]
    Silent {
        /// The branch.
        branch: BranchName,
        /// In which way.
        control: ControlError,
    },
    /// Unmounted, but the serving process was not done in time.
    #[error(
        "unmounted, but after {} s the serving process{} has not ended: it is writing, or the \
         detached mount is in use",
        .timeout.as_secs_f32(),
        .pid.map(|pid| format!(" {pid}")).unwrap_or_default()
    )]
    StillWriting {
        /// How long it had.
        timeout: Duration,
        /// The process.
        pid: Option<u32>,
    },
    /// The serving process could not make everything durable.
    #[error(
        "unmounted, but not everything that was written to branch {branch} is on the disk: {why}"
    )]
    EndedBadly {
        /// The branch.
        branch: BranchName,
        /// What failed.
        why: String,
    },
    /// The branch's lock could not be taken.
    #[error(transparent)]
    Lock(LockError),
    /// What a killed server left could not be removed.
    #[error("cannot remove the run files of branch {branch}: {source}")]
    RunFile {
        /// The branch.
        branch: BranchName,
        /// Why.
        source: io::Error,
    },
    /// The serving process refused.
    #[error(transparent)]
    Control(ControlError),
    /// The kernel refused.
    #[error(transparent)]
    Detach(#[from] DetachError),
}

/// What a machine lacks on which FUSE does not work at all.
fn fuse_hint() -> Option<String> {
    let root = nix::unistd::geteuid().is_root();
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let hint = match device.map_err(|error| error.kind()) {
        Err(io::ErrorKind::NotFound) => "/dev/fuse is missing: modprobe fuse",
        Err(io::ErrorKind::PermissionDenied) if !root => {
            "your user may not open /dev/fuse: chmod 666 /dev/fuse, as distributions have it"
        }
        Err(_) => "/dev/fuse cannot be opened here; a container needs --device /dev/fuse",
        Ok(_) if !root && !super::detach::helper_is_installed() => {
            "ordinary users need fusermount3: install the package fuse3"
        }
        Ok(_) => return None,
    };
    Some(hint.to_owned())
}

fn answer_words(answer: Answer) -> String {
    match answer {
        Answer::Alive => "it does".to_owned(),
        Answer::Dead => "its server has ended".to_owned(),
        Answer::Silent => "no reply in time".to_owned(),
        Answer::Error(errno) => io::Error::from_raw_os_error(errno).to_string(),
    }
}

impl ServeError {
    /// For programs.
    fn kind(&self) -> &str {
        match self {
            Self::Catalog(_) => "catalog",
            Self::Branch(_) => "branch",
            Self::Fs(_) => "filesystem",
            Self::Option(_) => "mount_option",
            Self::AlreadyServed { .. } => "already_mounted",
            Self::StillUsed { .. } | Self::InUse { .. } => "branch_in_use",
            Self::Lock(_) => "lock",
            Self::MountPoint(_) => "mount_point",
            Self::Fuse(_) => "fuse",
            Self::Listen(_) => "control_socket",
            Self::Vanished { .. } => "mount_vanished",
            Self::NoAnswer { .. } => "mount_silent",
            Self::Host { .. } => "host",
            Self::ServerEnded { .. } => "server_ended",
            Self::StartTimedOut { .. } => "timeout",
            Self::Reported(failure) => &failure.kind,
            Self::Unmount(error) => error.kind(),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Option(error) => Some(error.hint()),
            Self::Host { source, .. } => failure::host_hint(source).map(str::to_owned),
            Self::AlreadyServed { branch, .. } => Some(format!(
                "unmount it (cowfs unmount {branch}), or fork it and mount the child \
                 (cowfs branch create NAME --from {branch})"
            )),
            Self::StillUsed { .. } => {
                Some("it can be mounted again when the last of its users has ended".to_owned())
            }
            Self::InUse { .. } => Some("another command may be changing it; try again".to_owned()),
            Self::MountPoint(error) => error.hint(),
            Self::Fuse(_) => fuse_hint(),
            Self::ServerEnded { log, .. } | Self::StartTimedOut { log, .. } => {
                Some(format!("its log is {}", log.display()))
            }
            Self::Reported(failure) => failure.hint.clone(),
            Self::Unmount(error) => error.hint(),
            _ => None,
        }
    }

    /// Exit code of a command that ends with it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Option(_) => 2,
            Self::StartTimedOut { .. } | Self::NoAnswer { answer: Answer::Silent, .. } => 4,
            Self::Reported(failure) => failure.exit_code,
            Self::Unmount(error) => error.exit_code(),
            _ => 1,
        }
    }

    /// In the form that travels between processes.
    pub fn to_failure(&self) -> Failure {
        match self {
            Self::Catalog(error) => return failure::of_catalog(error),
            Self::Branch(error) => return failure::of_branch(error),
            Self::Fs(error) => return failure::of_fs(error),
            Self::Lock(error) | Self::Unmount(UnmountError::Lock(error)) => {
                return failure::of_lock_file(error);
            }
            _ => {}
        }
        Failure {
            kind: self.kind().to_owned(),
            message: with_causes(self),
            hint: self.hint(),
            exit_code: self.exit_code(),
        }
    }
}

impl UnmountError {
    /// For programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "mount_in_use",
            Self::NotMounted { .. } | Self::NothingThere { .. } => "not_mounted",
            Self::Busy { .. } => "branch_in_use",
            Self::UnknownTarget { .. } => "unknown_target",
            Self::Silent { .. } => "server_silent",
            Self::StillWriting { .. } => "timeout",
            Self::EndedBadly { .. } => "not_durable",
            Self::Lock(_) => "lock",
            Self::RunFile { .. } => "host",
            Self::Control(_) => "control",
            Self::Detach(_) => "unmount",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::InUse { holders, .. }
                if holders.processes.iter().any(|holder| holder.command == "postgres") =>
            {
                Some(
                    "`cowfs stop BRANCH` stops the Postgres on it; --lazy detaches the mount, and \
                     its users go on until they close their files"
                        .to_owned(),
                )
            }
            Self::InUse { holders, .. } if !holders.mounts.is_empty() => {
                Some("unmount what is mounted inside first".to_owned())
            }
            Self::InUse { .. } => Some(
                "end these processes, or detach the mount with --lazy: they go on until they \
                 close their files"
                    .to_owned(),
            ),
            Self::Silent { .. } => Some("--lazy detaches the mount all the same".to_owned()),
            Self::UnknownTarget { .. } | Self::NotMounted { .. } | Self::NothingThere { .. } => {
                Some("cowfs status shows what is mounted where".to_owned())
            }
            Self::EndedBadly { .. } => Some(
                "what was synced is safe; for the rest, before the machine is started anew: make \
                 room if the disk is full, mount the branch and unmount it again"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// Exit code of a command that ends with it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::StillWriting { .. }
            | Self::Silent { control: ControlError::TimedOut { .. }, .. } => 4,
            _ => 1,
        }
    }
}
