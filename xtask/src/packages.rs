//! Installs Debian packages through apt, and says which and why.
//!
//! The package lists are fetched only when apt does not know a package, knows it too old, or fails with what it
//! knows: a machine that was installed long ago names files that the mirror no longer has.
//!
//! What one would get wrong: apt needs no answer from a terminal here, so it is told not to ask; set-up has to
//! work in a pipeline without stdin.

use crate::command;
use anyhow::{Context as _, Result, bail};
use std::process::{Command, Stdio};

/// Installs; the error is one message with the way out.
pub fn install(packages: &[&str], why: &str) -> Result<()> {
    if command::find("apt-get").is_none() {
        bail!(
            "needs {} {why}, and there is no apt-get here to install them; install them by hand (the names are \
             Debian's)",
            packages.join(", ")
        );
    }
    let mut arguments = vec!["install", "--yes", "--quiet", "--no-install-recommends"];
    arguments.extend(packages);
    eprintln!("xtask: installing {} {why}", packages.join(", "));
    let Err(first) = apt_get(&arguments, "installing packages") else { return Ok(()) };
    if !command::is_root() && command::find("sudo").is_none() {
        return Err(first);
    }
    // One source of several that fails need not be the one that is needed, so its failure is told and not final.
    let stale = update().err();
    apt_get(&arguments, "installing packages").map_err(|error| stale.unwrap_or(error)).with_context(|| {
        format!(
            "cannot install {} {why}; this needs the network once. When it is there, try again, or install them by \
             hand",
            packages.join(", ")
        )
    })
}

/// Fetches the package lists.
pub fn update() -> Result<()> {
    eprintln!("xtask: refreshing apt's package lists");
    apt_get(&["update", "--quiet", "--error-on=any"], "refreshing package lists")
        .context("no fresh package lists")
}

/// The version that apt would install.
pub fn candidate(package: &str) -> Option<String> {
    let said = command::output_of(Command::new("apt-cache").args(["policy", package])).ok()?;
    candidate_in(&said)
}

fn candidate_in(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

fn apt_get(arguments: &[&str], purpose: &str) -> Result<()> {
    let mut with_environment = vec!["DEBIAN_FRONTEND=noninteractive", "apt-get"];
    with_environment.extend(arguments);
    let mut command = command::as_root("env", &with_environment, purpose)?;
    let output = command.stdin(Stdio::null()).output().context("cannot run apt-get")?;
    if output.status.success() {
        return Ok(());
    }
    bail!(
        "`{}` failed: {}",
        command::line_of(&command),
        command::telling_lines(&String::from_utf8_lossy(&output.stderr))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_policy_names_the_candidate() {
        let policy =
            "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
        assert_eq!(candidate_in(policy).as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
    }

    #[test]
    fn a_package_without_candidate_is_unknown() {
        assert_eq!(candidate_in("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
    }
}
