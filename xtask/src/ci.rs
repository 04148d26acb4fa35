//! `cargo xtask ci`: every gate, one after the other, each with its time; `.ci/run` is this and nothing else.
//!
//! A gate that fails does not stop the others: one run names all that is wrong.
//!
//! What one would get wrong: gates call cargo as a user would. `cargo xtask test` comes first because it sets up
//! the machine that the others need.

use crate::{
    kernels::{DEFAULT, Selection},
    workspace,
};
use anyhow::{Result, bail};
use std::{process::Stdio, time::Instant};

/// A kernel between others that run everything.
const BETWEEN: &str = "6.1";
/// What runs on it, and with kprobes on the others: whether the verifier takes every program, and each part of a handshake
/// once.
const IN_BETWEEN: &str =
    "program::,canary::,active_open::,passive_open::,accept_queue::,fast_open::,drops::,loss::";

/// Which gates.
#[derive(clap::Args)]
pub struct Arguments {
    /// `cargo xtask test` has just run: leave it out
    #[arg(long)]
    after_test: bool,
}

/// Runs the command.
pub fn main(arguments: &Arguments) -> Result<()> {
    let others = |wanted: fn(&str) -> bool| {
        let all = Selection::all().0.into_iter();
        all.filter(|kernel| *kernel != DEFAULT && wanted(kernel)).collect::<Vec<_>>().join(",")
    };
    let (ends, between) = (others(|kernel| kernel != BETWEEN), others(|kernel| kernel == BETWEEN));
    let guests = |kernels: &str, modes: &str| {
        ["xtask", "test", "--only-vms", "--kernels", kernels, "--modes", modes].map(str::to_owned).to_vec()
    };
    let each_part = |kernels: &str, modes: &str| {
        [guests(kernels, modes), vec!["--filter".to_owned(), IN_BETWEEN.to_owned()]].concat()
    };
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut gates: Vec<Vec<String>> = Vec::new();
    if !arguments.after_test {
        gates.push(words("xtask test"));
    }
    gates.extend([
        words("fmt --all --check"),
        words("clippy --workspace --all-targets -- -D warnings"),
        words("xtask lint"),
        words("xtask fuzz --seconds 20"),
        // The kernel that `cargo xtask test` boots by itself is done, in every mode. All of it on every kernel would take
        // longer than the 90 minutes that there are: the oldest and the newest run every scenario with fentry, which
        // most users get.
        guests(&ends, "fentry"),
        each_part(&ends, "kprobe"),
        each_part(&between, "fentry,kprobe"),
    ]);
    let mut report = String::new();
    let mut failed = 0;
    for gate in &gates {
        let line = format!("cargo {}", gate.join(" "));
        println!("\n==== {line}");
        let begun = Instant::now();
        let passed = workspace::cargo().args(gate).stdin(Stdio::null()).status()?.success();
        failed += u32::from(!passed);
        let word = if passed { "ok" } else { "FAILED" };
        report.push_str(&format!("{word:<7} {:>5} s  {line}\n", begun.elapsed().as_secs()));
    }
    println!("\n{report}");
    if failed > 0 {
        bail!("{failed} of {} gates failed", gates.len());
    }
    println!("all {} gates passed", gates.len());
    Ok(())
}
