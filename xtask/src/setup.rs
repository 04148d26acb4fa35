//! `cargo xtask setup`: finds what is missing, says what it installs and why, and installs it once.
//!
//! `run`, `build` and `test` call it first, so it has to be quick when all is there: it only asks the compilers
//! for their versions and looks for files.
//!
//! What one would get wrong: nothing is installed because it is absent, only because nothing present will do. A
//! machine with HANDSHAKE_BPF_OBJECT, or with any compiler that fits, gets no packages.

use crate::{
    bpf_toolchain::{self, Choice, Facts},
    command, kernels, packages, setup_rust, workspace,
};
use anyhow::{Context as _, Result, bail};
use std::fs;

/// What to set up.
#[derive(clap::Args)]
pub struct Arguments {
    /// Also install what the tests need: QEMU, busybox, network tools, and one kernel
    #[arg(long)]
    tests: bool,
    /// Which kernels to fetch with --tests: 6.12, all, none, or a list such as 5.10,6.1
    #[arg(long, default_value = kernels::DEFAULT)]
    kernels: kernels::Selection,
}

/// Runs the command.
pub fn main(arguments: &Arguments) -> Result<()> {
    for_build()?;
    let facts = Facts::of_this_machine(&workspace::target());
    match bpf_toolchain::choose(&facts) {
        Choice::Prebuilt(object) => println!("kernel programs: prebuilt in {}", object.display()),
        Choice::Compile { compiler, linker } => {
            println!(
                "compiler for the kernel programs: {} ({}, called by {}, sources below {})",
                compiler.name,
                compiler.rustc.display(),
                compiler.cargo.display(),
                compiler.sysroot.display()
            );
            println!("bpf-linker {}: {}", bpf_toolchain::PINNED_LINKER, linker.display());
        }
        Choice::Nothing { why } => bail!("set-up ended without a way to build the kernel programs: {why}"),
    }
    if arguments.tests {
        for_tests(&arguments.kernels)?;
        for kernel in kernels::ensure(&arguments.kernels)? {
            println!("kernel {}: {}", kernel.name, kernel.folder.display());
        }
    }
    Ok(())
}

/// All that a build needs.
pub fn for_build() -> Result<()> {
    let target = workspace::target();
    let facts = Facts::of_this_machine(&target);
    if let Some(fault) = &facts.environment_fault {
        bail!("{fault}");
    }
    if facts.object.is_some() {
        return Ok(());
    }
    if facts.skip {
        bail!(
            "HANDSHAKE_BPF_SKIP=1 asks for a build without the kernel programs; unset it to trace anything"
        );
    }
    let has_compiler = facts.compilers.iter().any(|compiler| compiler.fault().is_none());
    if has_compiler && facts.linker.is_some() {
        return Ok(());
    }
    ensure_writable()?;
    if !has_compiler {
        setup_rust::install_compiler(&facts)?;
    }
    if facts.linker.is_none() {
        setup_rust::install_linker()?;
    }
    // The build script watches this file; it is how a plain `cargo build` learns of the new compiler.
    let folder = target.join("bpf");
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(folder.join("installed"), "written by cargo xtask setup\n"))
        .with_context(|| format!("cannot write to {}", folder.display()))
}

/// The target folder takes all that is installed here, so a folder that cannot be written to is found before an
/// hour of downloads and not after it.
fn ensure_writable() -> Result<()> {
    let target = workspace::target();
    let probe = target.join(format!(".writable-{}", std::process::id()));
    fs::create_dir_all(&target)
        .and_then(|()| fs::write(&probe, []))
        .and_then(|()| fs::remove_file(&probe))
        .with_context(|| {
            format!(
                "cannot write to the target folder {}; make it writable, or name another one in CARGO_TARGET_DIR",
                target.display()
            )
        })
}

/// A program that the tests call, the Debian package it is in, and whether tests merely skip without it.
struct Tool {
    program: &'static str,
    package: &'static str,
    why: &'static str,
    optional: bool,
    /// Without a VM it has nothing to do.
    for_vms: bool,
}

const fn tool(program: &'static str, package: &'static str, why: &'static str) -> Tool {
    Tool { program, package, why, optional: false, for_vms: false }
}

const fn vm_tool(program: &'static str, package: &'static str, why: &'static str) -> Tool {
    Tool { for_vms: true, ..tool(program, package, why) }
}

const TOOLS: [Tool; 12] = [
    tool("ip", "iproute2", "makes the network namespaces of the tests"),
    tool("tc", "iproute2", "delays and loses packets"),
    vm_tool("qemu-system-x86_64", "qemu-system-x86", "boots other kernels"),
    vm_tool("busybox", "busybox-static", "is the userland of the VMs"),
    vm_tool("curl", "curl", "downloads kernels"),
    vm_tool("xz", "xz-utils", "unpacks package lists and modules"),
    vm_tool("zstd", "zstd", "unpacks modules"),
    vm_tool("dpkg-deb", "dpkg", "unpacks kernels"),
    Tool {
        optional: true,
        ..tool("tcpdump", "tcpdump", "captures the packets that handshakes are compared with")
    },
    Tool { optional: true, ..tool("tshark", "tshark", "decodes the packets that tcpdump captured") },
    Tool { optional: true, ..tool("bpftool", "bpftool", "is a second reader of BTF") },
    Tool { optional: true, ..tool("nft", "nftables", "drops chosen packets") },
];

/// All that the tests need beside that, except kernels.
pub fn for_tests(kernels: &kernels::Selection) -> Result<()> {
    let missing: Vec<&Tool> = TOOLS
        .iter()
        .filter(|tool| !(tool.for_vms && kernels.is_none()) && command::find(tool.program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for tool in &missing {
        eprintln!("xtask: missing {}, which {} (package {})", tool.program, tool.why, tool.package);
    }
    let of = |optional: bool| -> Vec<&str> {
        let mut names: Vec<&str> =
            missing.iter().filter(|tool| tool.optional == optional).map(|tool| tool.package).collect();
        names.dedup();
        names
    };
    let (required, optional) = (of(false), of(true));
    if !required.is_empty() {
        let needed_by_vms = missing.iter().any(|tool| tool.for_vms);
        packages::install(&required, "for the tests").map_err(|error| {
            if needed_by_vms {
                error
                    .context("the tests in VMs lack programs; without VMs: `cargo xtask test --kernels none`")
            } else {
                error
            }
        })?;
    }
    if !optional.is_empty()
        && let Err(error) = packages::install(&optional, "for some of the tests")
    {
        eprintln!("xtask: going on without {}: {error:#}", optional.join(", "));
    }
    Ok(())
}
