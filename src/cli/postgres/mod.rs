//! The commands that run Postgres on a branch: mounting it if need be, starting and stopping its
//! server, and telling how to reach it.

pub(super) mod bring_up;
mod checkpoint;
pub(super) mod env;
pub(super) mod fork;
pub(super) mod logs;
pub(super) mod psql;
pub(super) mod reach;
pub(super) mod restart;
pub(super) mod run;
pub(super) mod start;
pub(super) mod stop;
pub(super) mod throwaway;
pub(super) mod url;
