//! Recordings in, golden records out: the whole program but for the kernel.
//!
//! `HANDSHAKE_BLESS=1 cargo test --test replay` writes the golden files anew; read the difference before you
//! commit it. What a newcomer would get wrong: the kept recording (`recordings/format-1.rec`) is not built
//! anew by a test, it stays as the format's first version wrote it.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by panicking")]

mod documented;
mod hand_made;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use handshake::source::recording::writer::recording_of;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings")
}

fn blessing() -> bool {
    std::env::var_os("HANDSHAKE_BLESS").is_some()
}

fn replay(recording: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_handshake"))
        .arg("replay")
        .arg(recording)
        .args(arguments)
        .env("TZ", "UTC")
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

fn stdout(recording: &Path, arguments: &[&str]) -> String {
    let output = replay(recording, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn assert_golden(name: &str, text: &str) {
    let path = folder().join(name);
    if blessing() {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap();
    for (at, (is, golden)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(is, golden, "{name}, line {}", at + 1);
    }
    assert_eq!(text, golden, "{name}");
}

/// The hand-made recording, written to a folder of its own.
fn hand_made() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hand-made.rec");
    fs::write(&path, recording_of(&hand_made::header(), &hand_made::items())).unwrap();
    (folder, path)
}

#[test]
fn every_kind_of_handshake_has_its_record() {
    let (_folder, recording) = hand_made();
    assert_golden("hand-made.jsonl", &stdout(&recording, &["--json"]));
}

#[test]
fn every_kind_of_handshake_has_its_line() {
    let (_folder, recording) = hand_made();
    assert_golden("hand-made.txt", &stdout(&recording, &[]));
}

#[test]
fn colours_say_good_slow_and_failed() {
    let (_folder, recording) = hand_made();
    let text = stdout(&recording, &["--color", "always", "--slow", "1us", "--failed"]);
    assert!(text.contains("\u{1b}[31mrefused: RST received (ECONNREFUSED)\u{1b}[0m"), "{text}");
    assert!(text.contains("\u{1b}[33mestablished\u{1b}[0m"), "{text}");
    assert!(!text.contains("\u{1b}[31mb"), "a command name must not colour anything: {text}");
}

#[test]
fn the_recording_of_the_first_format_is_still_read() {
    let recording = folder().join("format-1.rec");
    if blessing() && !recording.exists() {
        fs::write(&recording, recording_of(&hand_made::header(), &hand_made::items())).unwrap();
    }
    let said = stdout(&recording, &["--json"]);
    // However the golden file came about: a recording whose events nobody can read any more is not read.
    assert!(said.contains("\"seen\":7,"), "{said}");
    assert_golden("format-1.jsonl", &said);
}

#[test]
fn a_replay_of_a_replay_is_the_same_byte_for_byte() {
    let (_folder, recording) = hand_made();
    assert_eq!(stdout(&recording, &["--json"]), stdout(&recording, &["--json"]));
}

#[test]
fn the_output_file_holds_what_standard_output_says() {
    let (folder, recording) = hand_made();
    let log = folder.path().join("log.jsonl");
    let said = stdout(&recording, &["--json", "-o", log.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&log).unwrap(), said);
    stdout(&recording, &["-q", "-o", log.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&log).unwrap(), said.repeat(2), "the second run appends");
}

#[test]
fn filters_act_on_a_recording_too() {
    let (_folder, recording) = hand_made();
    let roles = |arguments: &[&str]| {
        let records = stdout(&recording, &[&["--json"], arguments].concat());
        let wanted =
            |line: &&str| !line.contains("\"kind\":\"health\"") && !line.contains("\"kind\":\"lost\"");
        records.lines().filter(wanted).map(remote_port).collect::<Vec<_>>()
    };
    assert_eq!(roles(&["-P", "81,65000"]), [81, 65000]);
    assert_eq!(roles(&["-6"]), [8443]);
    assert_eq!(roles(&["--remote", "10.9.0.7"]), [51000, 51000]);
    assert_eq!(roles(&["--role", "server", "--pid", "99"]), [40112]);
    assert_eq!(roles(&["--comm", "nc"]), [81]);
    assert_eq!(roles(&["--netns", "1"]), [] as [u16; 0]);
    assert_eq!(roles(&["--failed", "-4"]), [81, 443, 52000, 65000]);
    assert_eq!(roles(&["--slow", "1s"]), [51000]);
    assert_eq!(roles(&["--slow-accept", "1s"]), [51000]);
    assert_eq!(roles(&["-n", "2"]).len(), 2);
}

#[test]
fn a_recording_is_filtered_by_the_cgroups_that_it_was_made_with() {
    let (_folder, recording) = hand_made();
    let all = stdout(&recording, &["--json"]);
    let by_process = stdout(&recording, &["--json", "--pid", "99"]);
    assert_ne!(by_process, all);
    let names = [
        "/system.slice/web.service",
        "0::/system.slice/web.service",
        "/sys/fs/cgroup/system.slice/web.service",
        "77",
    ];
    for cgroup in names {
        assert_eq!(stdout(&recording, &["--json", "--cgroup", cgroup]), by_process, "{cgroup}");
        let both = stdout(&recording, &["--json", "--cgroup", "/user.slice", "--cgroup", cgroup]);
        assert_eq!(both, by_process, "{cgroup}");
    }
    let nobody = stdout(&recording, &["--json", "--cgroup", "/user.slice"]);
    assert!(!nobody.contains("\"kind\":\"handshake\""), "{nobody}");
    // One that lies above may hold what the recording does not know of.
    let refused = replay(&recording, &["--cgroup", "/system.slice"]);
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("/system.slice/web.service (77)"), "{stderr}");
}

#[test]
fn a_limit_on_records_leaves_the_account_whole() {
    let (_folder, recording) = hand_made();
    let all = stdout(&recording, &["--json"]);
    let few = stdout(&recording, &["--json", "-n", "1"]);
    let kernel = |said: &str| {
        let health = said.lines().last().unwrap();
        health[health.find("\"kernel\":").unwrap()..health.find("\"undecodable\":").unwrap()].to_owned()
    };
    assert_eq!(kernel(&few), kernel(&all), "losses are counted to the end");
    assert!(kernel(&all).contains("\"ring_full\":3"));
}

#[test]
fn a_recording_cut_off_shows_what_it_has_and_then_fails() {
    let (folder, recording) = hand_made();
    let whole = fs::read(&recording).unwrap();
    let cut = folder.path().join("cut.rec");
    fs::write(&cut, &whole[..whole.len() - 43]).unwrap();
    let output = replay(&cut, &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("the recording is damaged at byte"), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.lines().count() > 5, "{stdout}");
    assert!(stdout.lines().last().unwrap().contains("\"kind\":\"health\""), "{stdout}");
}

fn remote_port(line: &str) -> u16 {
    let remote = line.split("\"remote\":").nth(1).unwrap();
    let port = remote.split("\"port\":").nth(1).unwrap();
    port.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}
