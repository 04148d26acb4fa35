//! `cargo xtask lint`: the house rules that clippy does not know.
//!
//! Files stay short, each opens by saying what it decides, run-time code does not panic, no registry's host name
//! is written down, and no test sleeps for a fixed time without saying why.
//!
//! What one would get wrong: this reads text, not syntax. A test module is whatever follows the first
//! `#[cfg(test)]` of a file, so keep it at the end.

use crate::workspace;
use anyhow::{Context as _, Result, bail};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

const WARN_LINES: usize = 400;
const FAIL_LINES: usize = 600;
const VAGUE_NAMES: [&str; 5] = ["util", "utils", "helper", "helpers", "misc"];

/// Host names by which a build would depend on one registry. They are written in two parts, or this file would
/// break its own rule.
const REGISTRIES: [&str; 8] = [
    concat!("crates", ".io"),
    concat!("static.rust-", "lang.org"),
    concat!("deb.", "debian.org"),
    concat!("snapshot.", "debian.org"),
    concat!("registry.", "npmjs.org"),
    concat!("py", "pi.org"),
    concat!("ghcr", ".io"),
    concat!("proxy.", "golang.org"),
];

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    file: PathBuf,
    line: usize,
    rule: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.rule)
    }
}

/// Runs the command.
pub fn main() -> Result<()> {
    let root = workspace::root();
    let mut files = Vec::new();
    collect(&root, Path::new(""), &mut files)?;
    files.sort();
    let (mut faults, mut warnings) = (Vec::new(), 0);
    for file in &files {
        let text = fs::read(root.join(file)).with_context(|| format!("cannot read {}", file.display()))?;
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().count();
        if is_rust(file) && (WARN_LINES + 1..=FAIL_LINES).contains(&lines) {
            eprintln!("warning: {}: {lines} lines; more than {WARN_LINES} are hard to read", file.display());
            warnings += 1;
        }
        faults.extend(check(file, &text));
    }
    for fault in &faults {
        eprintln!("{fault}");
    }
    if !faults.is_empty() {
        bail!("{} house rules are broken in {} files", faults.len(), files.len());
    }
    println!("{} files follow the house rules, {warnings} warnings", files.len());
    Ok(())
}

/// Source, build and configuration files, by their path in the workspace.
fn collect(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let here = root.join(folder);
    for entry in fs::read_dir(&here).with_context(|| format!("cannot read {}", here.display()))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        if kind.is_dir() && !matches!(name.as_str(), "target" | ".git") {
            collect(root, &path, files)?;
        }
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let wanted = matches!(ending, "rs" | "toml" | "sh" | "yml" | "yaml") || folder == Path::new(".ci");
        if kind.is_file() && wanted {
            files.push(path);
        }
    }
    Ok(())
}

fn is_rust(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == "rs")
}

fn check(file: &Path, text: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault =
        |line: usize, rule: String| faults.push(Fault { file: file.to_owned(), line: line + 1, rule });
    for (at, line) in text.lines().enumerate() {
        if let Some(host) = REGISTRIES.iter().find(|host| line.contains(*host)) {
            fault(at, format!("names the registry {host}; take it from the machine's configuration"));
        }
    }
    if !is_rust(file) {
        return faults;
    }
    let lines = text.lines().count();
    if lines > FAIL_LINES {
        fault(0, format!("{lines} lines, more than {FAIL_LINES}; split it by what it decides"));
    }
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    if VAGUE_NAMES.contains(&stem.as_ref()) {
        fault(0, format!("`{stem}` says nothing; name the file after what it decides"));
    }
    let under = |folder: &str| file.components().any(|part| part.as_os_str() == folder);
    if under("src") && !text.starts_with("//!") {
        fault(0, "does not begin with //! and what it decides".to_owned());
    }
    let in_tests = under("tests") || stem == "tests";
    let tests_begin = if in_tests { 0 } else { tests_of(text) };
    let is_runtime = file.starts_with("handshake-userspace/src") || file.starts_with("xtask/src");
    for (at, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if is_runtime && at < tests_begin && panics(code) {
            fault(at, "panics at run time; return an error that carries the fact".to_owned());
        }
        if at >= tests_begin && sleeps(code) && !says_why(text, at) {
            fault(at, "sleeps for a fixed time in a test; wait for the event, or say why above".to_owned());
        }
    }
    faults
}

/// The line at which a file's test module begins.
fn tests_of(text: &str) -> usize {
    text.lines().position(|line| line.trim_start().starts_with("#[cfg(test)]")).unwrap_or(usize::MAX)
}

fn panics(code: &str) -> bool {
    code.contains(concat!(".unw", "rap()")) || code.contains(concat!(".exp", "ect("))
}

fn sleeps(code: &str) -> bool {
    code.contains(concat!("thread::sle", "ep(")) || code.contains(concat!("time::sle", "ep("))
}

fn says_why(text: &str, at: usize) -> bool {
    let comment = |line: &str| line.contains("//");
    let lines: Vec<&str> = text.lines().skip(at.saturating_sub(1)).take(2).collect();
    lines.iter().any(|line| comment(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(file: &str, text: &str) -> Vec<String> {
        check(Path::new(file), text).into_iter().map(|fault| fault.rule).collect()
    }

    #[test]
    fn a_long_file_is_split() {
        let text = format!("//! x\n{}", "\n".repeat(FAIL_LINES));
        assert!(rules("handshake-userspace/src/a.rs", &text)[0].contains("601 lines"));
    }

    #[test]
    fn a_file_says_what_it_decides() {
        assert_eq!(rules("xtask/src/a.rs", "fn a() {}\n").len(), 1);
        assert!(rules("handshake-userspace/tests/a.rs", "fn a() {}\n").is_empty());
    }

    #[test]
    fn run_time_code_does_not_panic_and_tests_may() {
        let call = concat!("a.unw", "rap();");
        let text = format!("//! x\n{call}\n// {call}\n#[cfg(test)]\nmod tests {{ {call} }}\n");
        assert_eq!(rules("handshake-userspace/src/a.rs", &text).len(), 1);
        assert!(rules("handshake-userspace/tests/a.rs", &text).is_empty());
    }

    #[test]
    fn a_registry_is_not_named() {
        let line = format!("source = \"{}\"", concat!("https", "://index.", "crates", ".", "io"));
        assert_eq!(rules("a.toml", &line).len(), 1);
    }

    #[test]
    fn a_test_that_sleeps_says_why() {
        let call = concat!("thread::sle", "ep(d);");
        assert_eq!(rules("handshake-userspace/tests/a.rs", call).len(), 1);
        assert!(
            rules("handshake-userspace/tests/a.rs", &format!("// The delay is the case.\n{call}")).is_empty()
        );
        assert!(rules("handshake-userspace/src/a.rs", &format!("//! x\n{call}")).is_empty());
    }

    #[test]
    fn names_say_something() {
        assert_eq!(rules("handshake-userspace/src/utils.rs", "//! x\n").len(), 1);
    }
}
