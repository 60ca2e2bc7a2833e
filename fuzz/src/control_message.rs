//! The JSON that processes read from each other and from `run/`; and back.

use cowfs::catalog::BranchName;
use cowfs::postgres::instance::Instance;
use cowfs::serve::run_file::RunFile;
use cowfs::serve::{Failure, Request, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One input.
pub fn run(data: &[u8]) {
    round_trip::<Request>(data);
    round_trip::<Response>(data);
    round_trip::<Failure>(data);
    round_trip::<RunFile>(data);
    round_trip::<Instance>(data);
    if let Ok(Request::Fork { name, .. }) = serde_json::from_slice(data)
        && let Ok(name) = name.parse::<BranchName>()
    {
        // A name can be part of a path, of a line of a table, and an argument.
        let bad = |c: char| c.is_control() || c.is_whitespace() || !c.is_ascii();
        assert!(!name.as_str().contains(bad) && !name.as_str().contains(".."), "{name:?}");
        assert!(!name.as_str().starts_with(['-', '/', '.']) && name.as_str().len() <= 255);
    }
}

fn round_trip<T: DeserializeOwned + Serialize>(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(data) else { return };
    let text = serde_json::to_vec(&value).expect("a message can be written");
    let again: T = serde_json::from_slice(&text).expect("what was written can be read");
    assert_eq!(serde_json::to_vec(&again).expect("a message can be written"), text);
}
