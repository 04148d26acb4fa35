//! Runs other programs: says what it runs when that changes the machine, and turns a failure into one message.
//!
//! Root is asked for here only: as root a program runs as it is, else through sudo, else the message names the
//! command for the user to run by hand.
//!
//! What one would get wrong: a program that is missing and a program that fails are different errors, and only
//! the first is solved by installing something.

use anyhow::{Context as _, Result, bail};
use std::{
    env, fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Whether this process is root; `/proc/self` belongs to the effective user.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The file that the shell would run for this name. The folders of system programs count even where a user's
/// PATH lacks them, as Debian's does.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(env::split_paths("/usr/sbin:/sbin"))
        .map(|folder| folder.join(program))
        .find(|file| {
            fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

/// The command line, for a user to read or to copy.
pub fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A program that needs root, and `purpose` for the message when it cannot have it.
pub fn as_root(program: &str, arguments: &[&str], purpose: &str) -> Result<Command> {
    let by_hand = std::iter::once(program).chain(arguments.iter().copied()).collect::<Vec<_>>().join(" ");
    let mut command = if is_root() {
        Command::new(program)
    } else if let Some(sudo) = find("sudo") {
        let mut command = Command::new(sudo);
        command.arg(program);
        command
    } else {
        bail!("{purpose} needs root, and there is no sudo here. Run this as root, then try again: {by_hand}");
    };
    command.args(arguments);
    Ok(command)
}

/// Runs with the user watching.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line_of(command);
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Runs quietly and returns what it printed.
pub fn output_of(command: &mut Command) -> Result<String> {
    let line = line_of(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs for at most `limit`; what it printed is in the error.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let line = line_of(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{line}`"))?;
    let mut stderr = child.stderr.take();
    // A full pipe would block the child, so somebody reads while this thread watches the clock.
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(stderr) = &mut stderr {
            let _ = stderr.read_to_end(&mut said);
        }
        String::from_utf8_lossy(&said).into_owned()
    });
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            let said = reader.join().unwrap_or_default();
            if status.success() {
                return Ok(());
            }
            bail!("`{line}` failed ({status}): {}", telling_lines(&said));
        }
        if begun.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("`{line}` did not end within {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The lines of an error output that carry the fact: those marked as errors, else the last one.
pub fn telling_lines(said: &str) -> String {
    let marked = |line: &&str| ["E:", "error:", "fatal:", "curl:"].iter().any(|mark| line.starts_with(mark));
    let errors: Vec<&str> = said.lines().map(str::trim).filter(marked).take(3).collect();
    if errors.is_empty() {
        return said
            .lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .unwrap_or_default()
            .to_owned();
    }
    errors.join(" ")
}
