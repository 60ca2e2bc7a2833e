//! Names of branches and the rule for them.

use std::fmt;
use std::str::FromStr;

/// The longest name, in bytes.
pub const BRANCH_NAME_BYTES_MAX: usize = 63;

/// The rule as shown to people.
pub const BRANCH_NAME_RULE: &str = "1 to 63 of a-z, 0-9, '.', '_', '/' and '-', starting with a \
letter or digit, without '..', '//' or a '/' at the end";

/// A name that follows the rule: `[a-z0-9][a-z0-9._/-]{0,62}`, no `..`, no `//`, no final `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BranchName(String);

/// A name that breaks the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot be the name of a branch: a name is {BRANCH_NAME_RULE}")]
pub struct BranchNameError {
    /// The name as given.
    pub name: String,
}

impl BranchName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn follows_rule(name: &str) -> bool {
        let bytes = name.as_bytes();
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        bytes.len() <= BRANCH_NAME_BYTES_MAX
            && bytes.first().is_some_and(|&b| plain(b))
            && bytes.iter().all(|&b| plain(b) || b"._/-".contains(&b))
            && !name.contains("..")
            && !name.contains("//")
            && !name.ends_with('/')
    }
}

impl FromStr for BranchName {
    type Err = BranchNameError;

    fn from_str(name: &str) -> Result<BranchName, BranchNameError> {
        if BranchName::follows_rule(name) {
            Ok(BranchName(name.to_owned()))
        } else {
            Err(BranchNameError { name: name.to_owned() })
        }
    }
}

impl fmt::Display for BranchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for BranchName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl serde::Serialize for BranchName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for BranchName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<BranchName, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepts_ordinary_names() {
        let longest = "a".repeat(63);
        for name in ["main", "0", "dev/alice", "pr-12.3_x", "a.", "a-", longest.as_str()] {
            assert_eq!(name.parse::<BranchName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn refuses_with_the_rule() {
        let too_long = "a".repeat(64);
        for name in [
            "",
            "A",
            "Main",
            "-a",
            ".a",
            "/a",
            "_a",
            "a/",
            "a//b",
            "a..b",
            "a b",
            "a\n",
            "\u{e4}",
            "a\0",
            "..",
            "../x",
            too_long.as_str(),
        ] {
            let error = name.parse::<BranchName>().unwrap_err();
            assert!(error.to_string().contains("1 to 63 of a-z"), "{error}");
        }
    }

    /// The rule once more, as a naive state machine over characters.
    fn oracle(name: &str) -> bool {
        let mut previous = None;
        for (position, c) in name.chars().enumerate() {
            let first_ok = matches!(c, 'a'..='z' | '0'..='9');
            let ok = first_ok || (position > 0 && matches!(c, '.' | '_' | '/' | '-'));
            if !ok || position > 62 {
                return false;
            }
            if matches!((previous, c), (Some('.'), '.') | (Some('/'), '/')) {
                return false;
            }
            previous = Some(c);
        }
        !matches!(previous, None | Some('/'))
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracle(name in "[a-c0./_A-]{0,6}") {
            prop_assert_eq!(name.parse::<BranchName>().is_ok(), oracle(&name));
        }

        #[test]
        fn any_text_is_safe_as_a_path_or_refused(name in "\\PC{0,70}") {
            if let Ok(name) = name.parse::<BranchName>() {
                prop_assert!(oracle(name.as_str()));
                prop_assert!(!name.as_str().split('/').any(|part| part.is_empty() || part == ".."));
            }
        }
    }
}
