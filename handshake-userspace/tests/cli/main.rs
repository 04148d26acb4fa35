//! The command line as a script sees it: exit codes, streams, files, signals. No root and no kernel programs.
//!
//! Everything runs on the recording that is kept for its format. What a reader would get wrong: RUST_BACKTRACE is
//! set on purpose; a message for people must be one line all the same.

#![expect(clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

mod output;
mod usage;

use std::{
    path::PathBuf,
    process::{Command, Output},
};

/// The program under test, with a fixed time zone and colours as they are by default.
fn handshake(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handshake"));
    command
        .args(arguments)
        .env("RUST_BACKTRACE", "1")
        .env("TZ", "UTC")
        .env_remove("NO_COLOR")
        .env_remove("RUST_LOG");
    command
}

fn run(arguments: &[&str]) -> Output {
    handshake(arguments).output().expect("the program can be started")
}

fn recording() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recordings/format-1.rec");
    path.to_str().expect("the path is text").to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is UTF-8")
}

/// Standard output of a replay with more arguments.
#[track_caller]
fn replay(arguments: &[&str]) -> String {
    let recording = recording();
    let output = run(&[&["replay", recording.as_str()], arguments].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Its handshake records.
#[track_caller]
fn handshakes(arguments: &[&str]) -> Vec<serde_json::Value> {
    replay(&[&["--json"], arguments].concat())
        .lines()
        .map(|line| serde_json::from_str(line).expect("every line is JSON"))
        .filter(|record: &serde_json::Value| record["kind"] == "handshake")
        .collect()
}
