//! The FUSE side: translate, call `fs`, reply. The transport stays behind this folder.

pub mod adapter;
mod answer;
mod calls;
mod convert;
pub mod errno;
pub mod metrics;
pub mod read_around;
pub mod ring;
pub mod session;
mod workers;

pub use metrics::{Metrics, RequestStats};
pub use read_around::{ReadAround, ReadAroundStats};
pub use session::{FuseError, MountConfig, Session, mount};
