//! `cargo xtask build`: set up what is missing, then a release build with the kernel programs inside.
//!
//! Release is the only profile: this is a measuring instrument, and a debug build parses BTF six times slower.
//!
//! What one would get wrong: plain `cargo build --release` may succeed without the kernel programs. Here
//! HANDSHAKE_BPF_REQUIRED makes that an error.

use crate::{command, setup, workspace};
use anyhow::{Context as _, Result};

/// Runs the command.
pub fn main() -> Result<()> {
    setup::for_build()?;
    release()?;
    println!("{}", workspace::release_binary().display());
    Ok(())
}

/// Builds, with the user watching cargo; silent when there is nothing to do.
pub fn release() -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--release", "--quiet", "--package", "handshake-userspace", "--bin", "handshake"]);
    if !workspace::release_binary().exists() {
        eprintln!("xtask: building handshake; the first build takes a few minutes");
    }
    command::run(cargo.env("HANDSHAKE_BPF_REQUIRED", "1")).context("handshake does not build")
}
