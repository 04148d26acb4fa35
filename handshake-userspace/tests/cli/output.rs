//! What goes to which stream, into which file, and how it ends when nobody reads.
//!
//! What a reader would get wrong: a pipe that closes is an end and no failure.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{handshake, recording, replay, run, text};

#[test]
fn json_alone_is_on_standard_output_and_health_is_last() {
    let output = run(&["replay", &recording(), "--json"]);
    let records: Vec<serde_json::Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("every line is JSON"))
        .collect();
    assert_eq!(records.last().map(|record| record["kind"].clone()), Some("health".into()));
    assert!(records.iter().all(|record| record["schema"] == 1));
    assert!(text(&output.stderr).contains("seen 7 = established 3 + failed 4 + in flight 0"));
}

#[test]
fn a_replay_gives_the_same_bytes_every_time() {
    assert_eq!(replay(&["--json"]), replay(&["--json"]));
    assert_eq!(replay(&[]), replay(&[]));
}

#[test]
fn colour_is_for_terminals_unless_told_otherwise() {
    assert!(!replay(&[]).contains('\x1b'));
    assert!(!replay(&["--color", "never"]).contains('\x1b'));
    assert!(replay(&["--color", "always"]).contains('\x1b'));
    assert!(!replay(&["--color", "always", "--json"]).contains('\x1b'));
}

#[test]
fn a_recording_stays_as_it_was_when_tracing_cannot_start() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("kept.rec");
    std::fs::write(&file, b"of yesterday").expect("it can be written");
    let output = run(&["record", file.to_str().expect("the path is text"), "--btf", "/proc/version"]);
    assert!(!output.status.success(), "{}", text(&output.stdout));
    assert_eq!(std::fs::read(&file).expect("it is there"), b"of yesterday");
}

#[test]
fn a_pipe_that_closes_is_a_quiet_end() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let big = folder.path().join("big.rec");
    std::fs::write(&big, many_times()).expect("it can be written");
    for format in [&["--json"][..], &[]] {
        let mut child =
            handshake(&[&["replay", big.to_str().expect("the path is text"), "-q"], format].concat())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the program can be started");
        let mut line = String::new();
        // One line is read and the pipe closed, with far more to come than a pipe holds.
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("a line comes");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
    }
}

/// The kept recording with its events repeated: its end frame is the last eight bytes.
fn many_times() -> Vec<u8> {
    let bytes = std::fs::read(recording()).expect("the recording is kept");
    // magic, version, then the header frame: kind, reserved, length, payload.
    let length = u32::from_le_bytes(bytes[16..20].try_into().expect("four bytes")) as usize;
    let (header, frames) = bytes.split_at(20 + length);
    let mut all = header.to_vec();
    for _ in 0..2_000 {
        all.extend_from_slice(&frames[..frames.len() - 8]);
    }
    all
}

#[test]
fn records_are_appended_to_a_file_of_the_owner_and_a_torn_line_is_repaired() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("out.jsonl");
    let path = file.to_str().expect("the path is text");
    let printed = replay(&["--json", "-o", path]);
    let mode = file.metadata().expect("it was created").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let once = std::fs::read_to_string(&file).expect("it can be read");
    assert_eq!(once, printed);
    let mut torn = std::fs::OpenOptions::new().append(true).open(&file).expect("it can be opened");
    torn.write_all(br#"{"schema":1,"kind":"handsh"#).expect("it can be written");
    drop(torn);
    replay(&["--json", "-o", path]);
    let twice = std::fs::read_to_string(&file).expect("it can be read");
    assert_eq!(twice, format!("{once}{once}"));
}

#[test]
fn a_device_is_only_written_to() {
    let output = run(&["replay", &recording(), "-q", "-o", "/dev/full"]);
    assert_eq!(output.status.code(), Some(0), "a full device costs records and no run");
    assert!(!text(&output.stderr).is_empty(), "and it is told");
}

#[test]
fn an_interrupt_during_a_replay_ends_with_the_summary() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let fifo = folder.path().join("endless.rec");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).expect("a FIFO");
    let mut child = handshake(&["replay", fifo.to_str().expect("the path is text"), "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    let mut writer = std::fs::OpenOptions::new().write(true).open(&fifo).expect("it is being read");
    let bytes = many_times();
    // Without the end frame the reader waits for more for as long as the FIFO is open.
    writer.write_all(&bytes[..bytes.len().min(200_000)]).expect("it is being read");
    let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a record comes");
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("it is UTF-8");
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().expect("it can be waited for").is_none() {
        assert!(Instant::now() < deadline, "it did not end");
        std::thread::yield_now();
    }
    drop(writer);
    let output = child.wait_with_output().expect("it ended");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("seen "), "{}", text(&output.stderr));
}

#[test]
fn a_hang_up_reopens_the_file_where_there_is_no_terminal() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let (fifo, file) = (folder.path().join("endless.rec"), folder.path().join("out.jsonl"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).expect("a FIFO");
    let path = |path: &std::path::Path| path.to_str().expect("the path is text").to_owned();
    let mut command = handshake(&["replay", &path(&fifo), "-q", "-o", &path(&file)]);
    // SAFETY: between fork and exec two system calls are made, which allocate nothing.
    unsafe {
        command.pre_exec(|| {
            // Under nohup the signal is ignored, and the program would rightly leave it so.
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            rustix::process::setsid().map(|_| ()).map_err(std::io::Error::from)
        });
    }
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it can be started");
    let mut writer = std::fs::OpenOptions::new().write(true).open(&fifo).expect("it is being read");
    let bytes = many_times();
    let has_lines = || file.metadata().is_ok_and(|file| file.len() > 0);
    let mut chunks = bytes.chunks(50_000);
    write_until(&mut writer, &mut chunks, has_lines);
    let rotated = folder.path().join("out.jsonl.1");
    std::fs::rename(&file, &rotated).expect("it can be renamed");
    kill_process(Pid::from_child(&child), Signal::HUP).expect("it runs");
    write_until(&mut writer, &mut chunks, has_lines);
    drop(writer);
    child.wait().expect("it ends with its input");
    for file in [rotated, file] {
        let text = std::fs::read_to_string(file).expect("it can be read");
        assert!(text.ends_with('\n') && text.lines().all(|line| line.starts_with("{\"schema\":1")));
    }
}

/// Feeds a reader until something holds.
fn write_until<'a>(
    writer: &mut std::fs::File,
    chunks: &mut impl Iterator<Item = &'a [u8]>,
    holds: impl Fn() -> bool,
) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for the file");
        match chunks.next() {
            Some(chunk) => writer.write_all(chunk).expect("it is being read"),
            None => std::thread::yield_now(),
        }
    }
}
