//! `cargo xtask run`: set up, build as the user, then become handshake as root.
//!
//! The process is replaced, so signals and the exit code are handshake's own.
//!
//! What one would get wrong: only the last step is root. A build as root would leave files in the target folder
//! that the user cannot remove.

use crate::{build, command, setup, workspace};
use anyhow::{Result, bail};
use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

/// What to pass on.
#[derive(clap::Args)]
pub struct Arguments {
    /// Arguments of handshake; `--` before them is optional
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs the command; returns only when handshake could not be started.
pub fn main(arguments: &Arguments) -> Result<()> {
    setup::for_build()?;
    build::release()?;
    let binary = workspace::release_binary();
    let mut handshake = if command::is_root() {
        Command::new(&binary)
    } else if let Some(sudo) = command::find("sudo") {
        let mut handshake = Command::new(sudo);
        handshake.arg("-E").arg(&binary);
        handshake
    } else {
        bail!(
            "tracing needs root, and there is no sudo here. It is built; run this as root: {}",
            binary.display()
        );
    };
    let error = handshake.args(&arguments.arguments).exec();
    bail!("cannot start {}: {error}", binary.display())
}
