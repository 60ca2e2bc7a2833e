//! The process behind one mount, and the commands that start, ask and end it.
//!
//! `cowfs mount` starts a process ([`lifecycle`]) that serves one branch ([`server`]) and reports
//! through a pipe once its mount answers ([`readiness`]). Other commands talk to it through a
//! socket ([`control`], [`listener`], [`handler`]). Whether a branch is served is decided by its
//! lock alone; run files ([`run_file`]) only help to find things.

mod bad_end;
pub mod bdi;
pub mod control;
pub mod detach;
pub mod error;
pub mod failure;
pub mod handler;
pub mod holders;
pub mod lifecycle;
pub mod listener;
pub mod mount_point;
pub mod mountinfo;
mod namespaces;
pub mod options;
pub mod probe;
mod process;
pub mod protocol;
pub mod readiness;
pub mod run_file;
pub mod server;
pub mod status;
pub mod unmount;

pub use control::{ControlError, request};
pub use error::{ServeError, UnmountError};
pub use protocol::{Failure, Request, Response};
