//! `cargo xtask test`: sets up, then runs every test that this machine can run, and says what it left out.
//!
//! First the workspace's own tests, which need neither root nor BPF; then the kernel tests, live on this kernel
//! in tracepoint mode; then the same binary in a VM for each chosen kernel and attach mode.
//!
//! What one would get wrong: what cannot run here is not silently left out. It is listed by name with its reason,
//! and a run without tests is a failure.

use crate::{
    build, kernel_test,
    kernels::{self, Selection},
    libtest::Tally,
    results::{Results, Run},
    setup, workspace,
};
use anyhow::{Context as _, Result};
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
    str::FromStr,
    time::Instant,
};

/// What to run.
#[derive(clap::Args)]
pub struct Arguments {
    /// Kernels to boot in VMs: 6.12, all, none, or a list such as 5.10,6.1
    #[arg(long, default_value = kernels::DEFAULT)]
    pub kernels: Selection,
    /// How hooks attach in the VMs; lockdown is fentry in a kernel booted with lockdown=confidentiality
    #[arg(long, value_delimiter = ',', default_value = "fentry,kprobe,lockdown,tracepoint")]
    pub modes: Vec<Mode>,
    /// Leave out the tests on this machine's own kernel
    #[arg(long)]
    pub only_vms: bool,
    /// Run also the tests that take a minute or more each in an emulated guest: floods, the packet capture
    #[arg(long)]
    pub long: bool,
    /// Run only kernel tests whose name contains this
    #[arg(long, default_value = "")]
    pub filter: String,
}

/// How hooks attach in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By BPF trampolines.
    Fentry,
    /// By breakpoints.
    Kprobe,
    /// By tracepoints alone.
    Tracepoint,
    /// As handshake chooses.
    Auto,
    /// By BPF trampolines, in a kernel that keeps its secrets from root.
    Lockdown,
}

impl Mode {
    /// What the user calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
            Self::Auto => "auto",
            Self::Lockdown => "lockdown",
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Fentry, Self::Kprobe, Self::Tracepoint, Self::Auto, Self::Lockdown];
        all.into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| format!("no mode {text}; there are fentry, kprobe, tracepoint, auto and lockdown"))
    }
}

/// Runs the command.
pub fn main(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        // The closing line of the report stays the last that is printed.
        Ok(results) if results.are_good() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<Results> {
    setup::for_build()?;
    setup::for_tests(&arguments.kernels)?;
    let mut results = Results::default();
    let kernels = if cfg!(target_arch = "x86_64") {
        kernels::ensure(&arguments.kernels)?
    } else {
        results.not_run.push(("VMs".to_owned(), "their kernels are for x86-64 machines only".to_owned()));
        Vec::new()
    };
    if !arguments.only_vms {
        results.runs.push(of_the_workspace()?);
    }
    build::release()?;
    let binary = kernel_test::build()?;
    if !arguments.only_vms {
        kernel_test::live(&binary, &arguments.filter, &mut results)?;
    }
    let chosen = kernel_test::Chosen { filter: &arguments.filter, long: arguments.long };
    kernel_test::in_vms(&binary, &kernels, &arguments.modes, chosen, &mut results)?;
    println!("\nThe output of each VM is in {}", kernel_test::output_folder().display());
    println!("{}", results.report());
    Ok(results)
}

fn of_the_workspace() -> Result<Run> {
    heading("host: the workspace's own tests");
    let mut cargo = workspace::cargo();
    // Without --no-fail-fast one failing crate would hide all after it.
    cargo.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--examples"]);
    // Every integration test but `kernel`, which runs next, mode by mode, and would only skip itself here.
    cargo.args(["--test", "cli", "--test", "replay", "--test", "setup_failures", "--", "--show-output"]);
    watch(cargo.env_remove("HANDSHAKE_BPF_REQUIRED"), "host", "unit", None)
}

/// Runs tests on this machine, and shows their lines as they come.
/// With `keep`, all lines are kept in that file too, those of passed tests included.
pub fn watch(command: &mut Command, kernel: &str, mode: &str, keep: Option<&Path>) -> Result<Run> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let output = child.stdout.take().context("the tests have no output")?;
    let mut tally = Tally::default();
    let mut stdout = std::io::stdout();
    let mut log = String::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if keep.is_some() {
            log.push_str(&line);
            log.push('\n');
        }
        if tally.line(&line) {
            // Nobody reads any more: the tests still go on, for the exit status.
            let _ = writeln!(stdout, "{line}");
        }
    }
    let status = child.wait()?;
    if let Some(path) = keep {
        fs::write(path, log).with_context(|| format!("cannot write {}", path.display()))?;
    }
    tally.finish((!status.success()).then(|| status.to_string()).as_deref());
    Ok(Run { kernel: kernel.to_owned(), mode: mode.to_owned(), tally, took: begun.elapsed() })
}

/// A line that tells the parts of the output apart.
pub fn heading(text: &str) {
    println!("\n== {text}");
}
