//! `cargo xtask`: sets up, builds, runs and tests handshake. Each command is one file.
//!
//! It runs as the user who builds, and asks for root only for the one command that needs it: installing
//! packages, or running the tracer.
//!
//! What one would get wrong: nothing here needs a BPF toolchain to compile. `cargo xtask` is what installs one.

#[path = "../../handshake-userspace/build/toolchain.rs"]
mod bpf_toolchain;
mod build;
mod capture_table;
mod ci;
mod command;
mod demo;
mod demo_network;
mod fuzz;
mod guest_files;
mod kernel_modules;
mod kernel_test;
mod kernels;
mod libtest;
mod lint;
mod once_more;
mod package_index;
mod packages;
mod results;
mod run;
mod setup;
mod setup_rust;
mod table;
mod test;
mod vm;
mod vm_image;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, and say what and why
    Setup(setup::Arguments),
    /// Leave a release build in target/release/handshake
    Build,
    /// Build, then run handshake as root: cargo xtask run -- trace --json
    Run(run::Arguments),
    /// Run every test that this machine can run, in one VM kernel by default
    Test(test::Arguments),
    /// Write what the last runs of the kernel tests said into docs/TESTING.md
    Table(table::Arguments),
    /// Run a command in a throw-away VM with one of the kernels
    Vm(vm::Arguments),
    /// Fetch the kernels that the VMs boot
    Kernels(kernels::Arguments),
    /// Make good, slow, refused and timed-out connections for a first look
    Demo(demo::Arguments),
    /// Feed hostile bytes to everything that reads bytes, for a while
    Fuzz(fuzz::Arguments),
    /// Check house rules that clippy does not know
    Lint,
    /// Run every gate: tests, format, clippy, lint, all kernels
    Ci(ci::Arguments),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup(arguments) => setup::main(&arguments),
        Task::Build => build::main(),
        Task::Run(arguments) => run::main(&arguments),
        Task::Test(arguments) => return test::main(&arguments),
        Task::Vm(arguments) => return vm::main(&arguments),
        Task::Kernels(arguments) => kernels::main(&arguments),
        Task::Demo(arguments) => demo::main(&arguments),
        Task::Table(arguments) => table::main(&arguments),
        Task::Fuzz(arguments) => fuzz::main(&arguments),
        Task::Lint => lint::main(),
        Task::Ci(arguments) => ci::main(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `{:#}` prints the causes in one line; `{:?}` would add a backtrace where RUST_BACKTRACE is set.
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
