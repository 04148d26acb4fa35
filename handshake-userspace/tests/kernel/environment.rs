//! What this machine can do for a test, and what the tests were asked to do.
//!
//! What a reader would get wrong: a skip is written to file descriptor 1 itself, past libtest's capture, so
//! that a run shows each one by name and reason.

use std::{
    io::Write as _,
    os::fd::{AsFd as _, FromRawFd as _, IntoRawFd as _},
    path::PathBuf,
    process::Command,
    time::Duration,
};

/// Which hooks the program under test is told to use.
pub fn attach() -> String {
    std::env::var("HANDSHAKE_ATTACH").unwrap_or_else(|_| "auto".to_owned())
}

/// Whether probes see the act, so that records have what only probes know.
pub fn has_probes() -> bool {
    attach() == "fentry" || attach() == "kprobe"
}

/// Whether the kernel says why it drops a segment (5.17), and we may read whose it was.
pub fn has_drop_reasons() -> bool {
    !names_no_drop_reasons() && !is_locked_down()
}

/// Whether the kernel is of those before drop reasons; of the ones that we test, 5.10.
pub fn names_no_drop_reasons() -> bool {
    rustix::system::uname().release().to_string_lossy().starts_with("5.")
}

/// In a virtual machine without hardware help everything takes longer.
pub fn patience() -> Duration {
    Duration::from_secs(if in_vm() { 60 } else { 20 })
}

/// Verifying the hooks is work for the processor alone, about a second of it. On a host that was kept busy it took
/// longer than any record may.
pub fn patience_at_start() -> Duration {
    Duration::from_secs(180)
}

/// Whether this is a guest.
pub fn in_vm() -> bool {
    std::env::var_os("HANDSHAKE_VM").is_some()
}

/// Whether the kernel runs with lockdown=confidentiality.
pub fn is_locked_down() -> bool {
    std::env::var_os("HANDSHAKE_LOCKDOWN").is_some()
}

/// The program under test.
pub fn program() -> PathBuf {
    PathBuf::from(std::env::var_os("HANDSHAKE_BIN").expect("is_fit was asked first"))
}

/// Whether the test may run; says why not. `cargo xtask test` names the program; a plain `cargo test` doesn't.
pub fn is_fit(test: &str) -> bool {
    if std::env::var_os("HANDSHAKE_BIN").is_some() {
        assert!(rustix::process::geteuid().is_root(), "kernel tests need root");
        return true;
    }
    skip(test, "HANDSHAKE_BIN is not set; `cargo xtask test` sets it");
    false
}

/// Whether a test of what is the same on every kernel and in every mode may run. Each start of a tracer takes seconds in
/// an emulated guest, so there it runs once: on 6.12, with fentry.
pub fn is_fit_once(test: &str) -> bool {
    if !is_fit(test) {
        return false;
    }
    let wanted = !in_vm() || std::env::var_os("HANDSHAKE_LONG").is_some() || runs_once_here();
    if !wanted {
        skip(
            test,
            "it is the same everywhere and runs on the host and in 6.12 fentry; `cargo xtask test --long` runs it in each",
        );
    }
    wanted
}

/// Whether a test that takes a minute or more in an emulated guest may run. On a machine it always may.
pub fn is_fit_for_long(test: &str) -> bool {
    if !is_fit(test) {
        return false;
    }
    let wanted = !in_vm() || std::env::var_os("HANDSHAKE_LONG").is_some();
    if !wanted {
        skip(test, "it takes a minute or more in an emulated guest; `cargo xtask test --long` runs it");
    }
    wanted
}

/// Of all guests the one in which what runs in one guest only does.
pub fn runs_once_here() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    attach() == "fentry" && !is_locked_down() && release.starts_with("6.12.")
}

/// Whether segments can be delayed here.
pub fn can_delay(test: &str) -> bool {
    let can = in_vm();
    if !can {
        skip(test, "this kernel has no sch_netem");
    }
    can
}

/// Whether a program can be found.
pub fn program_exists(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Says that a test, or a part of one, did not run.
pub fn skip(test: &str, reason: &str) {
    let out = rustix::io::dup(std::io::stdout().as_fd()).expect("standard output can be duplicated");
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let mut out = unsafe { std::fs::File::from_raw_fd(out.into_raw_fd()) };
    writeln!(out, "SKIP {test}: {reason}").expect("standard output can be written");
}

/// Runs a tool to its end; panics with what it said if it fails.
pub fn run(command: &str) {
    let mut words = command.split_whitespace();
    let tool = words.next().expect("a command has a name");
    let output = Command::new(tool).args(words).output().unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(
        output.status.success(),
        "{command}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
