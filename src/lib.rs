//! cowfs: a FUSE filesystem that forks a running Postgres data directory in constant time.
//!
//! Folders depend downwards only (docs/ARCHITECTURE.md has the map; tests/tidy.rs proves it):
//! `cli` > `serve` > `fuse` > `fs` > `branch` > `catalog`, `layer` > `io`, `format`.

pub mod branch;
pub mod catalog;
pub mod check;
pub mod cli;
pub mod diff;
pub mod export;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod history;
pub mod import;
pub mod io;
pub mod layer;
pub mod postgres;
pub mod serve;
