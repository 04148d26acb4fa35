//! `cargo xtask fuzz`: hostile bytes, for a while, against everything that reads bytes or observations.
//!
//! libFuzzer with coverage counters of the stable compiler, so no nightly is needed; the kept corpus is where it
//! starts, and what it finds beside goes to `target/fuzz/corpus`.
//!
//! What one would get wrong: the flags that put the counters in must not reach build scripts, which is what naming
//! the target triple is for; and a finding is a file, which `cargo xtask fuzz --target NAME --input FILE` runs again.

use crate::{command, packages, workspace};
use anyhow::{Context as _, Result, bail};
use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// For how long, and what.
#[derive(clap::Args)]
pub struct Arguments {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only this one
    #[arg(long, value_parser = TARGETS)]
    target: Option<String>,
    /// Run one input again instead of looking for new ones
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
}

const TARGETS: [&str; 4] = ["decode", "recording", "btf", "tracker"];

/// What cargo-fuzz passes too, without the sanitizers that need a nightly compiler: this is safe Rust, and what is
/// looked for panics.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Runs the command.
pub fn main(arguments: &Arguments) -> Result<()> {
    if command::find("c++").is_none() {
        packages::install(&["g++"], "to build libFuzzer")?;
    }
    let programs = build()?;
    let kept = workspace::root().join("handshake-userspace/fuzz/corpus");
    let found = workspace::target().join("fuzz/corpus");
    let mut failed = Vec::new();
    for target in
        TARGETS.into_iter().filter(|name| arguments.target.as_deref().is_none_or(|one| one == *name))
    {
        let mut fuzzer = Command::new(programs.join(target));
        match &arguments.input {
            Some(input) => {
                fuzzer.arg(input);
            }
            None => {
                let grown = found.join(target);
                fs::create_dir_all(&grown).with_context(|| format!("cannot create {}", grown.display()))?;
                fuzzer
                    .arg(format!("-max_total_time={}", arguments.seconds))
                    .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"])
                    .arg(format!("-artifact_prefix={}/finding-{target}-", found.display()))
                    .args([&grown, &kept.join(target)]);
            }
        }
        // libFuzzer tells its whole life on stderr; of a run that found nothing, one line is enough.
        let output = fuzzer.stdin(Stdio::null()).output().context("cannot run the fuzzer")?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            println!("{target:<10} {}", statistics(&said));
        } else {
            println!("{said}\n{target:<10} FAILED");
            failed.push(target);
        }
    }
    if !failed.is_empty() {
        bail!(
            "found something in {}: the input is named above, and in {}",
            failed.join(", "),
            found.display()
        );
    }
    Ok(())
}

/// `1234 inputs, 5 of them new, 31 MB at most`
fn statistics(said: &str) -> String {
    let value = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
        line.map_or("?", |line| line.trim_start_matches(':').trim()).to_owned()
    };
    format!(
        "{} inputs, {} of them new ways through it, {} MB at most",
        value("number_of_executed_units"),
        value("new_units_added"),
        value("peak_rss_mb")
    )
}

fn build() -> Result<PathBuf> {
    let triple = format!("{ARCH}-unknown-linux-gnu");
    let target = workspace::target().join("fuzz");
    let mut cargo = workspace::cargo();
    cargo
        .current_dir(workspace::root().join("handshake-userspace/fuzz"))
        .args(["build", "--release", "--quiet", "--locked", "--target", &triple])
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", COVERAGE)
        // Nothing here loads programs.
        .env("HANDSHAKE_BPF_SKIP", "1")
        .env_remove("HANDSHAKE_BPF_REQUIRED");
    println!("building the fuzz targets");
    if !cargo.stdin(Stdio::null()).status().context("cannot run cargo")?.success() {
        bail!("the fuzz targets do not build");
    }
    Ok(Path::new(&target).join(triple).join("release"))
}

#[cfg(test)]
mod tests {
    use super::statistics;

    #[test]
    fn what_libfuzzer_counted_is_read() {
        let said = "#1 DONE\nstat::number_of_executed_units: 12\nstat::new_units_added:          3\n\
                    stat::peak_rss_mb:              31\n";
        assert_eq!(statistics(said), "12 inputs, 3 of them new ways through it, 31 MB at most");
        assert_eq!(statistics(""), "? inputs, ? of them new ways through it, ? MB at most");
    }
}
