//! Runs the kernel tests: one libtest binary, on this machine and in VMs, once per attach mode.
//!
//! Two VMs run at a time. A kernel's modes together should take fifteen minutes of that, and a run says when they
//! did not. A single VM is ended after twice as long, so that a hook that hangs a guest cannot hold up the rest,
//! and a machine that is busy with something else fails nothing.
//!
//! What one would get wrong: the binary is not built in the VM, it is taken there with its libraries. It finds
//! handshake through HANDSHAKE_BIN and the attach mode through HANDSHAKE_ATTACH, on the host and in the guest.
//! What a test leaves in /out comes back, and the packet captures in it are judged here.

use crate::{
    command,
    kernels::Kernel,
    libtest::Tally,
    once_more::{self, Ended},
    results::{Results, Run},
    table,
    test::{self, Mode},
    vm::{End, Guest, network_programs},
    vm_image::{Contents, MODULES},
    workspace,
};
use anyhow::{Context as _, Result};
use std::{
    collections::VecDeque,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// For all modes of one kernel.
const BUDGET: Duration = Duration::from_secs(900);
/// After which a VM is taken to hang.
const LONGEST: Duration = Duration::from_secs(1_800);
/// Each emulates two processors.
const AT_A_TIME: usize = 2;

/// In the names of the files that keep what ran once more.
pub const AGAIN: &str = "again";

/// Where the output of each VM is kept.
pub fn output_folder() -> PathBuf {
    workspace::target().join("test-output")
}

/// Builds the test binary and returns its path.
pub fn build() -> Result<PathBuf> {
    let mut cargo = workspace::cargo();
    cargo
        .args([
            "test",
            "--package",
            "handshake-userspace",
            "--test",
            "kernel",
            "--release",
            "--no-run",
            "--quiet",
        ])
        .args(["--message-format", "json-render-diagnostics"])
        .env("HANDSHAKE_BPF_REQUIRED", "1")
        .stderr(Stdio::inherit());
    let output = cargo.output().context("cannot run cargo")?;
    if !output.status.success() {
        anyhow::bail!("the kernel tests do not build ({})", output.status);
    }
    let said = String::from_utf8_lossy(&output.stdout);
    executable_in(&said).context("cargo built the kernel tests but named no executable")
}

fn executable_in(messages: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message["reason"] == "compiler-artifact" && message["target"]["name"] == "kernel";
        is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
    })
}

/// A filter may name several tests, or parts of names.
fn names_of(filter: &str) -> impl Iterator<Item = &str> {
    filter.split(',').filter(|name| !name.is_empty())
}

/// Where a run's output is kept. That of a run under a filter stands beside the whole one's, and a whole run makes those of
/// before obsolete.
fn kept_output(run: &str, filter: &str) -> PathBuf {
    if !filter.is_empty() {
        return output_folder().join(format!("{run}.{}.log", word_of(filter)));
    }
    for part in parts_of(run) {
        let _ = fs::remove_file(part);
    }
    output_folder().join(format!("{run}.log"))
}

/// A filter as part of a file's name, which may have 255 bytes: a long one is cut, and told apart by its hash.
fn word_of(filter: &str) -> String {
    const LONGEST: usize = 120;
    let word = filter.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    if filter.chars().count() <= LONGEST {
        return word.collect();
    }
    let mut hash = DefaultHasher::new();
    filter.hash(&mut hash);
    word.take(LONGEST).chain(format!("_{:016x}", hash.finish()).chars()).collect()
}

/// The outputs of the runs under a filter, the latest last.
pub fn parts_of(run: &str) -> Vec<PathBuf> {
    let mut parts: Vec<_> = fs::read_dir(output_folder())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let part = name.to_str().and_then(|name| name.strip_prefix(run)?.strip_suffix(".log"));
            part.is_some_and(|part| part.starts_with('.'))
        })
        .map(|entry| (entry.metadata().and_then(|about| about.modified()).ok(), entry.path()))
        .collect();
    parts.sort();
    parts.into_iter().map(|(_, path)| path).collect()
}

/// Runs the tests on this machine's own kernel, where tracepoints are what every kernel has.
pub fn live(binary: &Path, filter: &str, results: &mut Results) -> Result<()> {
    test::heading("host: kernel tests in tracepoint mode");
    fs::create_dir_all(output_folder())
        .with_context(|| format!("cannot create {}", output_folder().display()))?;
    let names: Vec<String> = names_of(filter).map(str::to_owned).collect();
    let mut run = match on_this_kernel(binary, &names, &kept_output(table::HOST, filter)) {
        Ok(run) => run,
        Err(error) => {
            println!("{error:#}");
            results.not_run.push(("host tracepoint".to_owned(), format!("{error:#}")));
            return Ok(());
        }
    };
    if let Some(again) = once_more::arguments(&run.tally, Ended::ByItself) {
        test::heading("host: once more what failed");
        let later = on_this_kernel(binary, &again, &kept_output(table::HOST, AGAIN))?;
        run.took += later.took;
        run.tally.run_once_more(later.tally);
    }
    results.runs.push(run);
    Ok(())
}

fn on_this_kernel(binary: &Path, arguments: &[String], kept: &Path) -> Result<Run> {
    let variable = format!("HANDSHAKE_BIN={}", workspace::release_binary().display());
    let program = binary.to_string_lossy();
    let mut words =
        vec![&*variable, "HANDSHAKE_ATTACH=tracepoint", &*program, "--test-threads=1", "--show-output"];
    words.extend(arguments.iter().map(String::as_str));
    test::watch(&mut command::as_root("env", &words, "tracing")?, "host", "tracepoint", Some(kept))
}

/// Which of the tests.
#[derive(Clone, Copy)]
pub struct Chosen<'a> {
    /// Only those whose name contains this.
    pub filter: &'a str,
    /// Those too that take a minute or more.
    pub long: bool,
}

struct Job<'a> {
    kernel: &'a Kernel,
    mode: Mode,
}

/// Runs the tests in a VM for each kernel and mode.
pub fn in_vms(
    binary: &Path,
    kernels: &[Kernel],
    modes: &[Mode],
    chosen: Chosen<'_>,
    results: &mut Results,
) -> Result<()> {
    if kernels.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = kernels.iter().map(|kernel| kernel.name.as_str()).collect();
    test::heading(&format!(
        "VMs: kernel {}, {AT_A_TIME} at a time, which should take {} minutes per kernel",
        names.join(", "),
        BUDGET.as_secs() / 60
    ));
    fs::create_dir_all(output_folder())
        .with_context(|| format!("cannot create {}", output_folder().display()))?;
    let jobs: Vec<Job<'_>> =
        kernels.iter().flat_map(|kernel| modes.iter().map(move |mode| Job { kernel, mode: *mode })).collect();
    let waiting: Mutex<VecDeque<(usize, &Job<'_>)>> = Mutex::new(jobs.iter().enumerate().collect());
    let ended: Mutex<Vec<(usize, Run)>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(jobs.len()) {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((place, job)) = next else { break };
                    let run = job.run(binary, chosen);
                    ended.lock().unwrap_or_else(PoisonError::into_inner).push((place, run));
                }
            });
        }
    });
    let mut ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended.sort_by_key(|(place, _)| *place);
    for kernel in kernels {
        let took: Duration =
            ended.iter().filter(|(_, run)| run.kernel == kernel.name).map(|(_, run)| run.took).sum();
        let seconds = took.as_secs() / AT_A_TIME as u64;
        let over = if seconds > BUDGET.as_secs() { ", which is more than it should" } else { "" };
        println!("kernel {}: {seconds} s with {AT_A_TIME} VMs at a time{over}", kernel.name);
    }
    results.runs.extend(ended.into_iter().map(|(_, run)| run));
    Ok(())
}

impl Job<'_> {
    fn run(&self, binary: &Path, chosen: Chosen<'_>) -> Run {
        let begun = Instant::now();
        let name = format!("{} {}", self.kernel.name, self.mode.name());
        let names: Vec<String> = names_of(chosen.filter).map(str::to_owned).collect();
        let (mut tally, ended) = self.one_guest(binary, chosen, &names, chosen.filter);
        // What a guest that died had not begun, a filter can't name together with what it had.
        let again = once_more::arguments(&tally, ended)
            .filter(|_| ended == Ended::ByItself || chosen.filter.is_empty());
        if let Some(again) = again {
            println!("{name}: {} failed, and runs once more", tally.failed.join(", "));
            tally.run_once_more(self.one_guest(binary, chosen, &again, AGAIN).0);
        }
        let (passed, failed, skipped) = (tally.passed(), tally.failed.len(), tally.skipped().len());
        let took = begun.elapsed();
        println!("{name}: {passed} passed, {failed} failed, {skipped} skipped in {} s", took.as_secs());
        Run { kernel: self.kernel.name.clone(), mode: self.mode.name().to_owned(), tally, took }
    }

    /// Runs tests in a guest of their own, and keeps the output; that with a failure is printed.
    fn one_guest(
        &self,
        binary: &Path,
        chosen: Chosen<'_>,
        arguments: &[String],
        filter: &str,
    ) -> (Tally, Ended) {
        let mut tally = Tally::default();
        let mut log = String::new();
        let outcome = self.boot(binary, chosen, arguments, |line| {
            log.push_str(line);
            log.push('\n');
            tally.line(line);
        });
        let (ended, fault) = match outcome {
            Ok((End::Exited(0), _)) => (Ended::ByItself, None),
            Ok((End::Exited(status), _)) => (Ended::ByItself, Some(format!("exit status {status}"))),
            Ok((End::TimedOut, console)) => {
                // A guest that hung may have said why.
                log.push_str(&console);
                (Ended::TooLate, Some(format!("out of time: {} s for one VM", LONGEST.as_secs())))
            }
            Ok((End::Died, boot_log)) => {
                log.push_str(&boot_log);
                (Ended::InTheMiddle, Some("the guest died".to_owned()))
            }
            Err(error) => (Ended::TooLate, Some(format!("{error:#}"))),
        };
        self.judge_what_came_out(binary, |line| {
            log.push_str(line);
            log.push('\n');
            tally.line(line);
        });
        tally.finish(fault.as_deref());
        let run = format!("{}-{}", self.kernel.name, self.mode.name());
        let file = kept_output(&run, filter);
        if let Err(error) = fs::write(&file, &log) {
            eprintln!("xtask: cannot write {}: {error}", file.display());
        }
        // One call, so that the other VM's output does not get in between.
        if !tally.failed.is_empty() {
            println!("== {run}: output of a run with failures\n{log}== {run}: end of output");
        }
        (tally, ended)
    }

    fn boot(
        &self,
        binary: &Path,
        chosen: Chosen<'_>,
        arguments: &[String],
        print: impl FnMut(&str),
    ) -> Result<(End, String)> {
        let (attach, append) = match self.mode {
            Mode::Lockdown => ("fentry", "lockdown=confidentiality"),
            mode => (mode.name(), ""),
        };
        let lockdown = if self.mode == Mode::Lockdown { "HANDSHAKE_LOCKDOWN=1 " } else { "" };
        let long = if chosen.long { "HANDSHAKE_LONG=1 " } else { "" };
        // The floods of tests/kernel/bounds.rs in full (docs/TESTING.md, Bounds).
        let is_full = std::env::var("HANDSHAKE_BOUNDS").is_ok_and(|value| value == "full");
        let bounds = if is_full { "HANDSHAKE_BOUNDS=full " } else { "" };
        let arguments: Vec<String> = arguments.iter().map(|word| format!("'{word}'")).collect();
        let arguments = arguments.join(" ");
        let script = format!(
            "HANDSHAKE_BIN=/w/handshake HANDSHAKE_VM=1 HANDSHAKE_ATTACH={attach} {lockdown}{long}{bounds}RUST_BACKTRACE=0 \
             ./kernel-tests --test-threads=1 --show-output {arguments}"
        );
        let files = [
            (workspace::release_binary(), "handshake".to_owned()),
            (binary.to_owned(), "kernel-tests".to_owned()),
        ];
        let guest = Guest {
            kernel: self.kernel,
            contents: Contents {
                programs: &network_programs(),
                files: &files,
                folders: &[],
                modules: &MODULES,
                script: &script,
                kernel_log: false,
            },
            append,
            limit: LONGEST,
            out: Some(&self.out()),
        };
        // What an earlier run left must not be judged in this one's stead.
        let _ = fs::remove_dir_all(self.out());
        let outcome = guest.run(print)?;
        Ok((outcome.end, outcome.boot_log))
    }

    fn out(&self) -> PathBuf {
        output_folder().join(format!("{}-{}", self.kernel.name, self.mode.name()))
    }

    /// Packets that a guest captured are decoded here: tshark would fill the guest. The same binary compares
    /// them with the records that came out beside them.
    fn judge_what_came_out(&self, binary: &Path, mut print: impl FnMut(&str)) {
        let kept = self.out().join("witness");
        // Written last, so its absence is a failure that the guest told already.
        if !kept.join("about.json").is_file() {
            return;
        }
        let mut compare = Command::new(binary);
        compare.args(["witness::every_handshake", "--test-threads=1", "--show-output"]);
        match compare.env("HANDSHAKE_WITNESS", &kept).stdin(Stdio::null()).output() {
            Ok(output) => {
                for line in String::from_utf8_lossy(&output.stdout).lines() {
                    print(line);
                    if line.starts_with("witness: ") {
                        println!("{line}");
                    }
                }
            }
            Err(error) => print(&format!("test witness ... FAILED\n{}: {error}", binary.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_filter_still_names_a_file_and_no_other_ones() {
        assert_eq!(word_of("witness::every"), "witness__every");
        let [one, other] = ["1", "2"].map(|end| word_of(&("drops::,".repeat(50) + end)));
        assert!(one.len() < 200 && one != other, "{one}");
    }

    #[test]
    fn the_test_binary_is_named_by_cargo() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"handshake"},"executable":"/t/handshake"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"kernel"},"executable":"/t/kernel-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#
        );
        assert_eq!(executable_in(messages), Some(PathBuf::from("/t/kernel-1")));
        assert_eq!(executable_in("not json\n"), None);
    }
}
