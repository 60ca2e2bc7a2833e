//! Names of snapshots, and `BRANCH[@SNAPSHOT]` as people write it.

use std::fmt;
use std::str::FromStr;

use super::{BranchName, BranchNameError};

/// The longest name, in bytes.
pub const SNAPSHOT_NAME_BYTES_MAX: usize = 63;

/// The rule as shown to people.
pub const SNAPSHOT_NAME_RULE: &str =
    "1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit, without '..'";

/// A name that follows the rule: `[a-z0-9][a-z0-9._-]{0,62}`, no `..`. Unique within its branch.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotName(String);

/// What was written is no name, or no `BRANCH[@SNAPSHOT]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PointError {
    /// The part before the `@`.
    #[error(transparent)]
    Branch(#[from] BranchNameError),
    /// The part after it.
    #[error("{name:?} cannot be the name of a snapshot: a name is {SNAPSHOT_NAME_RULE}")]
    Snapshot {
        /// The name as given.
        name: String,
    },
    /// A snapshot is meant, and none is named.
    #[error("{text:?} names no snapshot: write it as BRANCH@SNAPSHOT")]
    NoSnapshot {
        /// The text as given.
        text: String,
    },
}

impl SnapshotName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name that nobody chose: `prefix` and the time, for example `auto-20261122t101530.250z`.
    pub fn at_time(prefix: &str, ms: i64) -> SnapshotName {
        let time = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
        let text = time.strftime("%Y%m%dt%H%M%S").to_string();
        SnapshotName(format!("{prefix}-{text}.{:03}z", ms.rem_euclid(1000)))
    }
}

impl FromStr for SnapshotName {
    type Err = PointError;

    fn from_str(name: &str) -> Result<SnapshotName, PointError> {
        // A '/' would be the only other character that branches have and snapshots have not.
        let follows_rule = name.parse::<BranchName>().is_ok() && !name.contains('/');
        if follows_rule {
            Ok(SnapshotName(name.to_owned()))
        } else {
            Err(PointError::Snapshot { name: name.to_owned() })
        }
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl serde::Serialize for SnapshotName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for SnapshotName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<SnapshotName, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

/// A branch as it is now, or as one of its snapshots has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BranchPoint {
    /// The branch.
    pub branch: BranchName,
    /// Its snapshot; none for the branch as it is now.
    pub snapshot: Option<SnapshotName>,
}

impl FromStr for BranchPoint {
    type Err = PointError;

    fn from_str(text: &str) -> Result<BranchPoint, PointError> {
        let Some((branch, snapshot)) = text.split_once('@') else {
            return Ok(BranchPoint { branch: text.parse()?, snapshot: None });
        };
        Ok(BranchPoint { branch: branch.parse()?, snapshot: Some(snapshot.parse()?) })
    }
}

impl fmt::Display for BranchPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            None => self.branch.fmt(f),
            Some(snapshot) => f.pad(&format!("{}@{snapshot}", self.branch)),
        }
    }
}

impl serde::Serialize for BranchPoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `BRANCH@SNAPSHOT`, both of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotPoint {
    /// The branch.
    pub branch: BranchName,
    /// Its snapshot.
    pub snapshot: SnapshotName,
}

impl FromStr for SnapshotPoint {
    type Err = PointError;

    fn from_str(text: &str) -> Result<SnapshotPoint, PointError> {
        match text.parse()? {
            BranchPoint { branch, snapshot: Some(snapshot) } => {
                Ok(SnapshotPoint { branch, snapshot })
            }
            BranchPoint { snapshot: None, .. } => {
                Err(PointError::NoSnapshot { text: text.to_owned() })
            }
        }
    }
}

impl fmt::Display for SnapshotPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}@{}", self.branch, self.snapshot))
    }
}

impl serde::Serialize for SnapshotPoint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn points_are_branches_with_or_without_a_snapshot() {
        let point: BranchPoint = "dev/alice@before-42".parse().unwrap();
        assert_eq!(point.branch.as_str(), "dev/alice");
        assert_eq!(point.snapshot.as_ref().unwrap().as_str(), "before-42");
        assert_eq!(point.to_string(), "dev/alice@before-42");
        assert_eq!("main".parse::<BranchPoint>().unwrap().snapshot, None);
        assert_eq!("main@s".parse::<SnapshotPoint>().unwrap().to_string(), "main@s");
    }

    #[test]
    fn what_is_no_point_is_refused_with_the_reason() {
        for (text, reason) in [
            ("main@", "name of a snapshot"),
            ("@x", "name of a branch"),
            ("main@a@b", "name of a snapshot"),
            ("main@a/b", "name of a snapshot"),
            ("main@..", "name of a snapshot"),
            ("main@A", "name of a snapshot"),
            ("Main", "name of a branch"),
        ] {
            let said = text.parse::<BranchPoint>().unwrap_err().to_string();
            assert!(said.contains(reason), "{text}: {said}");
        }
        let said = "main".parse::<SnapshotPoint>().unwrap_err().to_string();
        assert!(said.contains("BRANCH@SNAPSHOT"), "{said}");
    }

    #[test]
    fn names_of_times_follow_the_rule() {
        let name = SnapshotName::at_time("auto", 1_700_000_000_007);
        assert_eq!(name.as_str(), "auto-20231114t221320.007z");
        assert_eq!(name.as_str().parse::<SnapshotName>().unwrap(), name);
    }
}
