//! A record as a test reads it: fields by path, and messages that show the whole record.
//!
//! What a reader would get wrong: absent and 0 are different answers; `absent` is an assertion of its own.

use std::{fmt, ops::RangeInclusive};

use serde_json::Value;

use super::netns::Netns;

/// One line that the program printed.
#[derive(Clone, Debug, PartialEq)]
pub struct Record(pub Value);

impl Record {
    /// A field by its path, for instance `phases.wire_ns`.
    pub fn get(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.0, |value, key| value.get(key))
    }

    /// A number.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.get(path)?.as_u64()
    }

    /// A text.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.get(path)?.as_str()
    }

    /// Whether a flag is set.
    pub fn has_flag(&self, flag: &str) -> bool {
        self.get("flags")
            .and_then(Value::as_array)
            .is_some_and(|flags| flags.iter().any(|value| value == flag))
    }

    /// Whether it is a handshake record of this role with this port at the listening end.
    pub fn is(&self, role: &str, port: u16) -> bool {
        let end = if role == "server" { "local.port" } else { "remote.port" };
        self.text("kind") == Some("handshake")
            && self.text("role") == Some(role)
            && self.number(end) == Some(u64::from(port))
    }

    #[track_caller]
    pub fn expect_text(&self, path: &str, expected: &str) -> &Self {
        assert_eq!(self.text(path), Some(expected), "{path} of {self}");
        self
    }

    #[track_caller]
    pub fn expect_number(&self, path: &str, expected: u64) -> &Self {
        assert_eq!(self.number(path), Some(expected), "{path} of {self}");
        self
    }

    #[track_caller]
    pub fn expect_within(&self, path: &str, milliseconds: RangeInclusive<u64>) -> &Self {
        let range_ns = milliseconds.start() * 1_000_000..=milliseconds.end() * 1_000_000;
        let found = self.number(path);
        assert!(
            found.is_some_and(|ns| range_ns.contains(&ns)),
            "{path} is not in {milliseconds:?} ms: {self}"
        );
        self
    }

    #[track_caller]
    pub fn expect_absent(&self, path: &str) -> &Self {
        assert_eq!(self.get(path), None, "{path} of {self}");
        self
    }

    #[track_caller]
    pub fn expect_present(&self, path: &str) -> &Self {
        assert!(self.get(path).is_some(), "{path} is absent from {self}");
        self
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Every handshake record of a namespace.
pub fn all_of(records: Vec<Record>, netns: &Netns) -> Vec<Record> {
    let inode = netns.inode();
    records
        .into_iter()
        .filter(|record| record.text("kind") == Some("handshake") && record.number("netns") == Some(inode))
        .collect()
}

/// How many of them are of this role.
pub fn count(records: &[Record], role: &str) -> usize {
    records.iter().filter(|record| record.text("role") == Some(role)).count()
}
