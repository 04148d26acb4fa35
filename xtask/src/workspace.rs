//! Where the workspace and its target folder lie, and how cargo is called on it.
//!
//! Everything that xtask leaves behind lies below the target folder, so that `cargo clean` removes it all and
//! nothing in the user's home is touched.
//!
//! What one would get wrong: cargo is called by the path that the outer cargo gave, not through PATH. Under rustup
//! the `cargo` in PATH is a proxy that would choose the toolchain again.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The folder of the workspace's Cargo.toml.
pub fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// The target folder, where CARGO_TARGET_DIR puts it or below the workspace.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR").filter(|target| !target.is_empty()) {
        Some(target) => root().join(target),
        None => root().join("target"),
    }
}

/// The daemon of the release build.
pub fn release_binary() -> PathBuf {
    target().join("release/handshake")
}

/// Cargo, called in the workspace.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        // `cargo run` tells these to xtask about xtask; a crate that looks at them would be built again.
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "LD_LIBRARY_PATH"
        {
            cargo.env_remove(&name);
        }
    }
    cargo
}
