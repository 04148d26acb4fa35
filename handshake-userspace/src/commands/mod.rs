//! The commands: each sets up a feed and sinks, runs the pipeline, and says how it ended.
//!
//! What a newcomer would get wrong: everything that can fail without privilege (files, the arguments) is
//! done before the kernel is touched, so that a typing error never attaches a hook.

pub mod doctor;
mod live;
mod output;
mod replay;

use std::process::ExitCode;

use anyhow::Context;

use crate::{
    cli::plan::{Command, Plan},
    kernel::StartError,
};

/// Runs one command to its end.
pub fn run(plan: Plan) -> anyhow::Result<ExitCode> {
    match plan.command {
        Command::Trace => live::run(plan, None),
        Command::Record(ref file) => {
            let file = file.clone();
            live::run(plan, Some(&file))
        }
        Command::Replay(ref file) => {
            let file = file.clone();
            replay::run(plan, &file)
        }
        Command::Doctor => doctor::run(&plan),
    }
}

/// The exit code that an error stands for.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<StartError>().map_or(1, StartError::exit_code)
}

/// Two workers: one for the pipeline, one for signals, so that a busy pipeline never delays a second SIGINT.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the asynchronous runtime cannot start")
}
