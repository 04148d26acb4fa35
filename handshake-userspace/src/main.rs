//! The `handshake` program: reads the command line, runs the command, and turns an error into one line and an
//! exit code.
//!
//! What a newcomer would get wrong: the error is printed here by hand, because `anyhow` would add a backtrace
//! where RUST_BACKTRACE is set, and a message for people must not depend on that.

use std::process::ExitCode;

use handshake::{cli, commands, pipeline::notice};

fn main() -> ExitCode {
    let plan = cli::read(std::env::args_os());
    let level = match plan.verbosity {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level)).init();
    match commands::run(plan) {
        Ok(code) => code,
        Err(error) => {
            notice::warn(&format!("{error:#}"));
            ExitCode::from(commands::exit_code(&error))
        }
    }
}
