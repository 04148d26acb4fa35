//! Runs a command in a throw-away VM: boots, passes on its output, returns its exit status and files.
//!
//! QEMU emulates the processor, so this works inside containers and other VMs, without /dev/kvm. The guest has no
//! disk and no network card; what it shares with the host is a serial line for output and one for files.
//!
//! What one would get wrong: a VM that ends is not a command that succeeded. Only a status line from /init counts;
//! without it the guest died (a kernel panic, a wrong image) or ran out of time.

use crate::{
    command,
    kernels::{self, Kernel},
    vm_image::{Contents, Image, MODULES},
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::{Duration, Instant},
};

/// A command and the kernel to run it in.
#[derive(clap::Args)]
pub struct Arguments {
    /// The kernel
    #[arg(long, short, default_value = kernels::DEFAULT)]
    kernel: kernels::Selection,
    /// A folder whose contents go to the working folder of the command
    #[arg(long)]
    folder: Vec<PathBuf>,
    /// A program of this machine to take along, with its libraries
    #[arg(long)]
    program: Vec<PathBuf>,
    /// Words to add to the kernel's command line
    #[arg(long, default_value = "")]
    append: String,
    /// Where to put what the command leaves in /out
    #[arg(long)]
    out: Option<PathBuf>,
    /// End the VM after so many seconds
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Also print the kernel's log
    #[arg(long)]
    kernel_log: bool,
    /// What the shell in the VM runs
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// How to run a VM.
pub struct Guest<'a> {
    /// Boots this.
    pub kernel: &'a Kernel,
    /// Holds this.
    pub contents: Contents<'a>,
    /// Added to the kernel's command line.
    pub append: &'a str,
    /// Killed after this.
    pub limit: Duration,
    /// Gets what is left in /out.
    pub out: Option<&'a Path>,
}

/// How a VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The command ended with this status.
    Exited(i32),
    /// The limit passed.
    TimedOut,
    /// The guest ended before the command did.
    Died,
}

/// What a VM gave back.
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// What came before the command: kernel messages, failed modules.
    pub boot_log: String,
    /// From the start of QEMU to that of the command.
    pub boot: Option<Duration>,
}

/// Runs the command; its exit status is that of the command in the VM, 124 after a time-out, 125 for a dead guest.
pub fn main(arguments: &Arguments) -> ExitCode {
    match run_from_command_line(arguments) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(125)
        }
    }
}

fn run_from_command_line(arguments: &Arguments) -> Result<u8> {
    let [kernel] = &kernels::ensure(&arguments.kernel)?[..] else { bail!("name one kernel") };
    let mut programs = network_programs();
    programs.extend(arguments.program.iter().cloned());
    let guest = Guest {
        kernel,
        contents: Contents {
            programs: &programs,
            files: &[],
            folders: &arguments.folder,
            modules: &MODULES,
            script: &arguments.command.join(" "),
            kernel_log: arguments.kernel_log,
        },
        append: &arguments.append,
        limit: Duration::from_secs(arguments.seconds),
        out: arguments.out.as_deref(),
    };
    let outcome = guest.run(|line| println!("{line}"))?;
    let seconds = outcome.boot.unwrap_or_default().as_secs_f64();
    eprintln!("xtask: kernel {} booted in {seconds:.1} s, {:?}", kernel.name, outcome.end);
    Ok(match outcome.end {
        End::Exited(status) => u8::try_from(status).unwrap_or(1),
        End::TimedOut => 124,
        End::Died => {
            eprintln!("{}", outcome.boot_log);
            125
        }
    })
}

/// The programs that every guest takes along when the host has them.
pub fn network_programs() -> Vec<PathBuf> {
    ["ip", "tc", "nft", "ss", "tcpdump", "bpftool"]
        .iter()
        .filter_map(|program| command::find(program))
        .collect()
}

/// The QEMU that this run started; it never outlives the run.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guest<'_> {
    /// Boots and runs; each line that the command prints goes to `print` at once.
    pub fn run(&self, mut print: impl FnMut(&str)) -> Result<Outcome> {
        let image = Image::build(self.kernel, &self.contents)?;
        let files = image.scratch.join("out.tar");
        let begun = Instant::now();
        let mut qemu = Qemu(self.qemu(&image, &files)?.spawn().context("cannot start qemu-system-x86_64")?);
        let console = qemu.0.stdout.take().context("QEMU has no output")?;
        let (send, lines) = sync_channel(1024);
        let reader = thread::spawn(move || {
            let mut console = BufReader::new(console);
            let mut line = Vec::new();
            while console.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
                if send.send(text).is_err() {
                    break;
                }
                line.clear();
            }
        });
        let mut outcome = Outcome { end: End::Died, boot_log: String::new(), boot: None };
        let mut in_command = false;
        loop {
            let left = self.limit.saturating_sub(begun.elapsed());
            match lines.recv_timeout(left) {
                Ok(line) if line == "@@BEGIN" => {
                    outcome.boot = Some(begun.elapsed());
                    in_command = true;
                }
                Ok(line) if line.starts_with("@@STATUS ") => {
                    in_command = false;
                    outcome.end = line[9..].trim().parse().map_or(End::Died, End::Exited);
                }
                Ok(line) if line == "@@KERNEL" => in_command = true,
                Ok(line) if line == "@@END" => break,
                Ok(line) if in_command => print(&line),
                Ok(line) => {
                    outcome.boot_log.push_str(&line);
                    outcome.boot_log.push('\n');
                }
                Err(RecvTimeoutError::Timeout) => {
                    outcome.end = End::TimedOut;
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        drop(qemu);
        drop(lines);
        let _ = reader.join();
        if let Some(out) = self.out {
            unpack(&files, out)?;
        }
        Ok(outcome)
    }

    fn qemu(&self, image: &Image, files: &Path) -> Result<Command> {
        let qemu = command::find("qemu-system-x86_64").context(
            "the VMs need qemu-system-x86_64 (package qemu-system-x86): cargo xtask setup --tests",
        )?;
        let mut command = Command::new(qemu);
        command
            // One host thread for both CPUs: with a thread each, QEMU 7.2 lost a guest in the middle of the
            // kernel patching its own code (an int3 that nobody was to hit) when tracepoints were switched.
            .args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "1024"])
            .args(["-nographic", "-nodefaults", "-no-reboot", "-monitor", "none", "-net", "none"])
            .args(["-serial", "stdio", "-serial"])
            .arg(format!("file:{}", files.display()))
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initramfs)
            // Emulated processors drift; without tsc=reliable the kernel falls back to a slow clock.
            .args([
                "-append",
                &format!("console=ttyS0 panic=-1 quiet loglevel=1 tsc=reliable {}", self.append),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        Ok(command)
    }
}

fn unpack(archive: &Path, out: &Path) -> Result<()> {
    if !fs::metadata(archive).is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    command::run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(out))
}
