//! What may be typed, and what is said when it may not.
//!
//! What a reader would get wrong: a usage error is exit code 2 and names the value; a failure at run time is 1.

use super::{handshakes, recording, run, text};

#[test]
fn help_and_version_are_successes_on_standard_output() {
    for flag in ["--help", "--version"] {
        let output = run(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("handshake"), "{flag}");
        assert!(output.stderr.is_empty());
    }
    assert!(text(&run(&["--help"]).stdout).contains("77 no privilege"));
}

#[test]
fn a_bad_value_is_named_and_ends_with_code_2() {
    let cases = [
        (vec!["--slow", "50"], "50"),
        (vec!["--duration", "soon"], "soon"),
        (vec!["--remote", "10.0.0.0/99"], "10.0.0.0/99"),
        (vec!["--port", "70000"], "70000"),
        (vec!["--attach", "magic"], "magic"),
        (vec!["--role", "observer"], "observer"),
        (vec!["--pid", "-3"], "-3"),
        (vec!["--count", "many"], "many"),
        (vec!["--cgroup", "/no/such/cgroup"], "/no/such/cgroup"),
        (vec!["--cgroup", "18446744073709551615"], "18446744073709551615"),
        (vec!["--netns", "no-such-namespace"], "no-such-namespace"),
        (vec!["--no-such-option"], "--no-such-option"),
        (vec!["tracee"], "tracee"),
        (vec!["replay"], "FILE"),
    ];
    for (arguments, named) in cases {
        let output = run(&arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(message.contains(named), "{arguments:?}: {message}");
        assert!(output.stdout.is_empty());
        assert!(!message.contains("stack backtrace"), "{message}");
    }
}

#[test]
fn options_may_stand_before_and_after_the_command() {
    let recording = recording();
    let before = run(&["--json", "--role", "server", "replay", &recording]);
    let after = run(&["replay", &recording, "--role", "server", "--json"]);
    assert!(before.status.success() && after.status.success());
    assert_eq!(before.stdout, after.stdout);
}

#[test]
fn a_recording_that_is_missing_or_damaged_is_one_line_and_code_1() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let garbage = folder.path().join("garbage");
    std::fs::write(&garbage, b"this is no recording at all, of whatever version").expect("it can be written");
    let damaged = folder.path().join("damaged");
    let mut bytes = std::fs::read(recording()).expect("the recording is kept");
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0xff);
    std::fs::write(&damaged, bytes).expect("it can be written");
    for (path, named) in
        [(folder.path().join("missing"), "missing"), (garbage, "byte 0"), (damaged, "damaged at byte")]
    {
        let output = run(&["replay", path.to_str().expect("the path is text"), "-q"]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(named), "{named}: {message}");
        assert!(message.lines().any(|line| line.starts_with("handshake: ")), "{message}");
        assert!(!message.contains("stack backtrace"), "{message}");
    }
}

/// Whether a filter keeps a record.
type Keeps = fn(&serde_json::Value) -> bool;

#[test]
fn each_filter_keeps_what_it_names() {
    let all = handshakes(&[]);
    let cases: [(&[&str], Keeps); 9] = [
        (&["--role", "server"], |record| record["role"] == "server"),
        (&["--port", "443"], |record| record["remote"]["port"] == 443 || record["local"]["port"] == 443),
        (&["--remote", "10.9.0.2/32"], |record| record["remote"]["address"] == "10.9.0.2"),
        (&["-6"], |record| record["remote"]["address"].as_str().is_some_and(|text| text.contains(':'))),
        (&["-4"], |record| record["remote"]["address"].as_str().is_some_and(|text| !text.contains(':'))),
        (&["--pid", "1235"], |record| record["process"]["pid"] == 1235),
        (&["--comm", "curl"], |record| record["process"]["comm"] == "curl"),
        (&["--failed"], |record| record["outcome"] != "established"),
        (&["--slow", "1s"], |record| record["latency_ns"].as_u64().is_some_and(|ns| ns >= 1_000_000_000)),
    ];
    for (filter, keeps) in cases {
        let expected: Vec<_> = all.iter().filter(|record| keeps(record)).cloned().collect();
        assert!(!expected.is_empty() && expected.len() < all.len(), "{filter:?} tells something apart");
        assert_eq!(handshakes(filter), expected, "{filter:?}");
    }
    assert_eq!(handshakes(&["-n", "2"]).len(), 2);
}
