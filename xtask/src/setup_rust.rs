//! Installs a compiler that can build the kernel programs, and the linker for them.
//!
//! Through rustup first: the pinned release with its sources, in rustup's own folder, without root. Where rustup
//! is missing or cannot download, Debian's compiler for web browsers, which is recent in every Debian release.
//!
//! What one would get wrong: a network that swallows packets makes rustup wait for minutes, so it is given a
//! limit; and apt's old lists offer a release that is too old, so the candidate is looked at first.

use crate::{
    bpf_toolchain::{Compiler, Facts, PINNED_LINKER, PINNED_RUST},
    command, packages, workspace,
};
use anyhow::{Context as _, Result, anyhow, bail};
use std::{process::Command, time::Duration};

/// A download of 200 MB over a slow line still ends within it.
const RUSTUP_LIMIT: Duration = Duration::from_secs(300);
const DEBIAN: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const WAY_OUT: &str = "Set-up needs the network once; without it, name a compiler with its sources in \
    HANDSHAKE_BPF_RUSTC and HANDSHAKE_BPF_CARGO, or a finished object in HANDSHAKE_BPF_OBJECT";

/// Installs a compiler; `facts` say what is there and why it won't do.
pub fn install_compiler(facts: &Facts) -> Result<()> {
    eprintln!("xtask: no compiler here can build the kernel programs:");
    for fault in facts.compilers.iter().filter_map(Compiler::fault) {
        eprintln!("xtask:   {fault}");
    }
    let from_rustup = match through_rustup() {
        Ok(()) if is_there() => return Ok(()),
        Ok(()) => anyhow!("rustup {PINNED_RUST} is there now, but does not fit"),
        Err(error) => error,
    };
    eprintln!("xtask: not through rustup: {from_rustup:#}");
    let from_apt = match through_apt() {
        Ok(()) if is_there() => return Ok(()),
        Ok(()) => anyhow!("Debian's compiler is there now, but does not fit"),
        Err(error) => error,
    };
    bail!(
        "no compiler for the kernel programs could be installed. Through rustup: {from_rustup:#}. Through apt: \
         {from_apt:#}. {WAY_OUT}"
    )
}

fn is_there() -> bool {
    let now = Facts::of_this_machine(&workspace::target());
    now.compilers.iter().any(|compiler| compiler.fault().is_none())
}

fn through_rustup() -> Result<()> {
    let rustup = command::find("rustup").context("there is no rustup")?;
    eprintln!(
        "xtask: installing Rust {PINNED_RUST} with its sources through rustup, to build the kernel programs"
    );
    let mut install = Command::new(rustup);
    install
        .args(["toolchain", "install", PINNED_RUST, "--profile", "minimal", "--component", "rust-src"])
        .arg("--no-self-update")
        .env("RUSTUP_MAX_RETRIES", "1")
        .env("RUSTUP_DOWNLOAD_TIMEOUT", "30")
        .env_remove("RUST_BACKTRACE")
        .env_remove("RUSTUP_TOOLCHAIN");
    command::run_within(&mut install, RUSTUP_LIMIT)
}

fn through_apt() -> Result<()> {
    command::find("apt-get").context("there is no apt-get")?;
    if !is_recent(packages::candidate(DEBIAN[0]).as_deref()) {
        packages::update()?;
        let now = packages::candidate(DEBIAN[0]);
        if !is_recent(now.as_deref()) {
            let offered = now.unwrap_or_else(|| "nothing".to_owned());
            bail!("apt offers {offered} for {}, and {PINNED_RUST} is needed", DEBIAN[0]);
        }
    }
    packages::install(&DEBIAN, "to build the kernel programs")
}

/// Whether a Debian version such as `1.96.0+dfsg1-1` is the pinned release or later.
fn is_recent(version: Option<&str>) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        text.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok()).take(3).collect()
    };
    version.is_some_and(|version| numbers(version) >= numbers(PINNED_RUST))
}

/// Builds bpf-linker from its sources into the target folder.
pub fn install_linker() -> Result<()> {
    let tools = workspace::target().join("tools");
    eprintln!(
        "xtask: installing bpf-linker {PINNED_LINKER} into {}, to link the kernel programs; it is built from \
         source, which takes a minute or two",
        tools.display()
    );
    let mut cargo = workspace::cargo();
    cargo
        .args([
            "install",
            "--quiet",
            "bpf-linker",
            "--version",
            PINNED_LINKER,
            "--locked",
            "--force",
            "--root",
        ])
        .arg(&tools)
        // Otherwise its object files would stay in our target folder.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS");
    command::run_within(&mut cargo, Duration::from_secs(1800)).with_context(|| {
        format!(
            "bpf-linker {PINNED_LINKER} could not be installed. Set-up needs the network once; without it, name one \
             in HANDSHAKE_BPF_LINKER"
        )
    })?;
    match Facts::of_this_machine(&workspace::target()).linker {
        Some(_) => Ok(()),
        None => bail!("bpf-linker was installed into {}, but does not run", tools.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_lists_offer_a_compiler_that_is_too_old() {
        assert!(!is_recent(Some("1.85.0+dfsg3-1~deb12u3")));
        assert!(!is_recent(None));
        assert!(is_recent(Some("1.96.0+dfsg1-1~deb12u2")));
        assert!(is_recent(Some("1.101.0+dfsg1-1")));
    }
}
