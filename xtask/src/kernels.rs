//! `cargo xtask kernels`: Debian's kernels, unpacked below target/kernels and fetched once.
//!
//! The mirror is the one that this machine's apt is configured with, and every file is checked against the hash
//! in the mirror's index. A kernel is unpacked beside its place and moved there when complete.
//!
//! What one would get wrong: a folder alone proves nothing, an interrupted run leaves one too. Only the file
//! `.complete` in it counts.

use crate::{
    command,
    package_index::{Package, PackageIndex, short_name},
    workspace,
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
};

/// What tests boot when nothing else is asked for.
pub const DEFAULT: &str = "6.12";

/// Each kernel that we claim, and the Debian release that has it.
const SUITES: [(&str, &str); 4] =
    [("5.10", "bullseye"), ("6.1", "bookworm"), ("6.12", "trixie"), ("7.2", "forky")];

/// Which kernels.
#[derive(clap::Args)]
pub struct Arguments {
    /// 6.12, all, none, or a list such as 5.10,6.1
    #[arg(default_value = "all")]
    kernels: Selection,
}

/// A choice of kernels, in the order of SUITES.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection(pub Vec<&'static str>);

impl Selection {
    /// Whether no VM is wanted.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Every kernel that we claim.
    pub fn all() -> Self {
        Self(SUITES.iter().map(|(name, _)| *name).collect())
    }
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => return Ok(Self::all()),
            "none" => return Ok(Self(Vec::new())),
            _ => {}
        }
        let wanted: Vec<&str> = text.split(',').map(str::trim).collect();
        if let Some(unknown) = wanted.iter().find(|name| !SUITES.iter().any(|(known, _)| known == *name)) {
            let known: Vec<&str> = SUITES.iter().map(|(name, _)| *name).collect();
            return Err(format!("no kernel {unknown}; there are {}, all and none", known.join(", ")));
        }
        Ok(Self(SUITES.iter().map(|(name, _)| *name).filter(|name| wanted.contains(name)).collect()))
    }
}

/// A kernel on disk.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What people call it: `6.12`.
    pub name: String,
    /// Where its packages are unpacked.
    pub folder: PathBuf,
}

/// Runs the command.
pub fn main(arguments: &Arguments) -> Result<()> {
    for kernel in ensure(&arguments.kernels)? {
        println!("{} {}", kernel.name, kernel.folder.display());
    }
    Ok(())
}

/// The chosen kernels, fetched where they are missing.
pub fn ensure(selection: &Selection) -> Result<Vec<Kernel>> {
    selection.0.iter().map(|name| ensure_one(name)).collect()
}

fn ensure_one(name: &str) -> Result<Kernel> {
    let kernels = workspace::target().join("kernels");
    let folder = kernels.join(name);
    if folder.join(".complete").exists() {
        return Ok(Kernel { name: name.to_owned(), folder });
    }
    let Some((_, suite)) = SUITES.iter().find(|(known, _)| *known == name) else {
        bail!("no Debian release is known for kernel {name}");
    };
    fetch(name, suite, &kernels).with_context(|| {
        format!(
            "kernel {name} could not be fetched. It needs the network and a Debian mirror in apt's configuration \
             once; without them, leave it out: cargo xtask test --kernels none"
        )
    })
}

fn fetch(name: &str, suite: &str, kernels: &Path) -> Result<Kernel> {
    let mirror = mirror()?;
    eprintln!(
        "xtask: fetching kernel {name} (Debian {suite}) for the VMs, about 100 MB, into {}",
        kernels.display()
    );
    let index = unpack_index(&download(&format!("{mirror}/dists/{suite}/main/binary-amd64/Packages.xz"))?)?;
    let index = PackageIndex::parse(&index);
    let release = index.newest_kernel().with_context(|| format!("{suite} has no kernel image for amd64"))?;
    let found = short_name(&release);
    // Debian's testing release moves on; a newer kernel is then what there is to test.
    if found != name {
        eprintln!("xtask: {suite} has {found} now, not {name}; taking {found}");
    }
    let folder = kernels.join(&found);
    if folder.join(".complete").exists() {
        return Ok(Kernel { name: found, folder });
    }
    let partial = kernels.join(format!(".partial-{found}-{}", std::process::id()));
    let unpacked = unpack(&index.packages_of_kernel(&release), &mirror, &partial)
        .and_then(|()| Ok(fs::write(partial.join(".complete"), format!("{release}\n"))?))
        .and_then(|()| put_in_place(&partial, &folder));
    if unpacked.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    unpacked?;
    Ok(Kernel { name: found, folder })
}

fn put_in_place(partial: &Path, folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::rename(partial, folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// The first mirror of packages; those of security updates have no whole suite.
fn mirror() -> Result<String> {
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(SITE)", "Created-By: Packages"]);
    let sites = command::output_of(&mut apt).context("apt could not name its mirrors")?;
    let site = sites.lines().find(|site| !site.is_empty() && !site.contains("security"));
    Ok(site.context("apt has no Debian mirror configured here")?.trim_end_matches('/').to_owned())
}

fn download(url: &str) -> Result<Vec<u8>> {
    let mut curl = Command::new("curl");
    // A mirror that stalls is an error after half a minute, a slow one is not.
    curl.args([
        "-fsSL",
        "--retry",
        "2",
        "--connect-timeout",
        "20",
        "--speed-time",
        "30",
        "--speed-limit",
        "1000",
    ]);
    let output = curl.arg(url).stdin(Stdio::null()).output().context("cannot run curl")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("cannot download {url}: {}", command::telling_lines(&said));
    }
    Ok(output.stdout)
}

/// Pipes bytes through a program that reads its input to the end.
pub fn pipe_through(program: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // When the program ends early its exit status says why, not this write.
            if let Some(mut stdin) = stdin {
                let _ = stdin.write_all(input);
            }
        });
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("{program} {} failed ({})", arguments.join(" "), output.status);
    }
    Ok(output.stdout)
}

fn unpack_index(compressed: &[u8]) -> Result<String> {
    let text = pipe_through("xz", &["-dc"], compressed).context("the mirror's index is damaged")?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn unpack(packages: &[&Package], mirror: &str, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for package in packages {
        let bytes = download(&format!("{mirror}/{}", package.file))?;
        let sum = pipe_through("sha256sum", &["-"], &bytes)?;
        let sum = String::from_utf8_lossy(&sum);
        if sum.split_whitespace().next() != Some(&package.sha256) {
            bail!(
                "{} has another SHA256 than the index says: the download is damaged or stale",
                package.name
            );
        }
        let file = folder.join("download.deb");
        fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
        command::run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(folder))?;
        fs::remove_file(&file)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_kernels_keeps_our_order() {
        assert_eq!("6.12,5.10".parse(), Ok(Selection(vec!["5.10", "6.12"])));
        assert_eq!("none".parse(), Ok(Selection(Vec::new())));
        assert_eq!("all".parse::<Selection>().unwrap().0.len(), SUITES.len());
    }

    #[test]
    fn an_unknown_kernel_is_refused_by_name() {
        assert!("4.19".parse::<Selection>().unwrap_err().contains("no kernel 4.19"));
    }
}
