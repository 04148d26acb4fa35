//! The whole of a record: exactly these flags, none of those fields, this thread.
//!
//! What a reader would get wrong: a test that asks only for what should be there passes when the program
//! invents more. So what must be absent is listed as well.

use super::record::Record;

impl Record {
    /// Exactly these flags.
    #[track_caller]
    pub fn expect_flags_are(&self, expected: &[&str]) -> &Self {
        let found: Vec<&str> = self
            .get("flags")
            .and_then(serde_json::Value::as_array)
            .map(|flags| flags.iter().filter_map(serde_json::Value::as_str).collect())
            .unwrap_or_default();
        assert_eq!(found, expected, "flags of {self}");
        self
    }

    /// None of these fields.
    #[track_caller]
    pub fn expect_none_of(&self, paths: &[&str]) -> &Self {
        for path in paths {
            self.expect_absent(path);
        }
        self
    }

    /// A thread of this process, by its name.
    #[track_caller]
    pub fn expect_thread(&self, name: &str) -> &Self {
        self.expect_text("process.comm", name).expect_number("process.pid", u64::from(std::process::id()))
    }

    /// Established, with nothing said against it.
    #[track_caller]
    pub fn expect_plainly_established(&self) -> &Self {
        self.expect_text("outcome", "established").expect_none_of(&["evidence", "dropped", "failed_after_ns"])
    }
}

/// Both ends agree on which handshake it was.
#[track_caller]
pub fn expect_one_handshake(client: &Record, server: &Record) {
    client.expect_present("id");
    assert_eq!(client.text("id"), server.text("id"), "{client}\n{server}");
    assert_eq!(client.get("local"), server.get("remote"), "{client}\n{server}");
    assert_eq!(client.get("remote"), server.get("local"), "{client}\n{server}");
    assert_eq!(client.get("isn.local"), server.get("isn.remote"), "{client}\n{server}");
    assert_eq!(client.get("isn.remote"), server.get("isn.local"), "{client}\n{server}");
}
