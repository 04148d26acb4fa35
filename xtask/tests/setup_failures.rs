//! Machines on which set-up cannot succeed: each case ends in one message that says what to do.
//!
//! A case is made with a PATH of stand-in programs, another prefix for the system's compiler, another target folder,
//! and, where this runs as root, another user.
//!
//! What one would get wrong: the message is one line, not the first of many. A stack of errors from three package
//! managers is what a newcomer cannot read.

#![expect(clippy::unwrap_used, reason = "a test that cannot make its machine has to fail")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The user `nobody` on every Linux.
const NOBODY: u32 = 65534;

/// A child that another thread forks holds what this one has open for writing, until its exec; and a program that
/// anybody has open for writing cannot be run. So programs are written and run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn one_at_a_time() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A machine with nothing on it but what the case puts there.
struct Machine {
    folder: tempfile::TempDir,
    user: Option<u32>,
}

impl Machine {
    fn bare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["bin", "prefix", "target"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::set_permissions(folder.path().join("target"), fs::Permissions::from_mode(0o777)).unwrap();
        // `env` is how apt-get is told not to ask; every machine has it.
        std::os::unix::fs::symlink("/usr/bin/env", folder.path().join("bin/env")).unwrap();
        Self { folder, user: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn with_program(self, name: &str, script: &str) -> Self {
        self.program(&format!("bin/{name}"), script);
        self
    }

    fn program(&self, place: &str, script: &str) {
        let file = self.path(place);
        let _guard = one_at_a_time();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A compiler of the distribution that fits, and its sources.
    fn with_system_compiler(self, release: &str, llvm: &str) -> Self {
        let prefix = self.path("prefix");
        self.program(
            "prefix/bin/rustc",
            &format!(
                "case \"$1\" in -vV) echo 'rustc {release}'; echo 'release: {release}'; \
                 echo 'LLVM version: {llvm}';; --print) echo {};; esac",
                prefix.display()
            ),
        );
        self.program("prefix/bin/cargo", "exit 0");
        let core = prefix.join("lib/rustlib/src/rust/library/core/src");
        fs::create_dir_all(&core).unwrap();
        fs::write(core.join("lib.rs"), "").unwrap();
        self
    }

    fn with_linker(self) -> Self {
        self.program("target/tools/bin/bpf-linker", "echo bpf-linker 0.10.3");
        self
    }

    /// Not by root.
    fn used_by_nobody(mut self) -> Self {
        self.user = Some(NOBODY);
        self
    }

    fn xtask(&self, arguments: &[&str]) -> Output {
        // The target folder of a developer may be closed to others; the program is copied to where they can run it.
        let program = self.path("xtask");
        let _guard = one_at_a_time();
        if !program.exists() {
            fs::copy(env!("CARGO_BIN_EXE_xtask"), &program).unwrap();
        }
        let mut xtask = Command::new(&program);
        xtask
            .args(arguments)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("CARGO", self.path("bin/cargo"))
            .env("CARGO_TARGET_DIR", self.path("target"))
            .env("HANDSHAKE_BPF_SYSTEM_PREFIX", self.path("prefix"))
            .current_dir("/");
        if let Some(user) = self.user
            && is_root()
        {
            xtask.uid(user).gid(user);
        }
        xtask.output().unwrap()
    }

    /// Runs, expects a failure, and returns its message.
    fn message(&self, arguments: &[&str]) -> String {
        let output = self.xtask(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "succeeded: {said}");
        let last = said.lines().last().unwrap_or_default().to_owned();
        assert!(last.starts_with("xtask: "), "{said}");
        assert!(!said.contains("stack backtrace") && !said.contains("panicked"), "{said}");
        last
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").unwrap().uid() == 0
}

const NO_NETWORK: &str =
    "echo \"E: Failed to fetch the package lists: Temporary failure resolving 'mirror'\" >&2; exit 100";
const KNOWS_RUST: &str = "echo '  Candidate: 1.96.0+dfsg1-1'";
const NO_DOWNLOAD: &str = "case \"$1\" in which) exit 1;; esac; \
    echo 'info: syncing channel updates' >&2; echo 'error: could not download file' >&2; exit 1";

#[test]
fn neither_rustup_nor_apt_names_the_way_out() {
    let message = Machine::bare().message(&["setup"]);
    for fact in ["there is no rustup", "there is no apt-get", "HANDSHAKE_BPF_RUSTC", "HANDSHAKE_BPF_OBJECT"] {
        assert!(message.contains(fact), "{fact} is not in: {message}");
    }
}

#[test]
fn no_network_is_said_once_with_both_ways_that_were_tried() {
    let machine = Machine::bare()
        .with_program("rustup", NO_DOWNLOAD)
        .with_program("apt-get", NO_NETWORK)
        .with_program("apt-cache", KNOWS_RUST);
    // Somebody would be told about sudo first.
    if !is_root() {
        println!("SKIP no_network_is_said_once_with_both_ways_that_were_tried: needs root");
        return;
    }
    let message = machine.message(&["setup"]);
    for fact in ["could not download file", "Temporary failure resolving", "needs the network once"] {
        assert!(message.contains(fact), "{fact} is not in: {message}");
    }
}

#[test]
fn neither_root_nor_sudo_names_the_command_to_run_by_hand() {
    let machine = Machine::bare()
        .with_program("apt-get", "exit 0")
        .with_program("apt-cache", KNOWS_RUST)
        .used_by_nobody();
    let message = machine.message(&["setup"]);
    assert!(message.contains("needs root, and there is no sudo here"), "{message}");
    assert!(message.contains("apt-get install") && message.contains("rustc-web"), "{message}");
}

#[test]
fn a_refused_sudo_is_reported_with_what_it_said() {
    let machine = Machine::bare()
        .with_program("apt-get", "exit 0")
        .with_program("apt-cache", KNOWS_RUST)
        .with_program("sudo", "echo 'sudo: a password is required' >&2; exit 1")
        .used_by_nobody();
    assert!(machine.message(&["setup"]).contains("a password is required"));
}

#[test]
fn read_only_target_folder_is_found_before_anything_is_installed() {
    let machine = Machine::bare()
        .with_program("rustup", "case \"$1\" in which) exit 1;; esac; touch \"$0.was-asked\"")
        .used_by_nobody();
    let target = machine.path("target");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o555)).unwrap();
    let message = machine.message(&["setup"]);
    assert!(message.contains(&target.display().to_string()), "{message}");
    assert!(message.contains("CARGO_TARGET_DIR"), "{message}");
    assert!(!machine.path("bin/rustup.was-asked").exists());
}

#[test]
fn linker_that_cannot_be_downloaded_names_the_way_out() {
    let machine = Machine::bare()
        .with_system_compiler("1.96.0", "22.1.8")
        .with_program("cargo", "echo 'error: failed to download from the registry' >&2; exit 101");
    let message = machine.message(&["setup"]);
    for fact in ["bpf-linker 0.10.3", "failed to download", "HANDSHAKE_BPF_LINKER"] {
        assert!(message.contains(fact), "{fact} is not in: {message}");
    }
}

#[test]
fn compiler_with_another_llvm_is_not_used() {
    let machine = Machine::bare().with_system_compiler("1.98.0", "23.1.0").with_linker();
    let message = machine.message(&["setup"]);
    let said = String::from_utf8(machine.xtask(&["setup"]).stderr).unwrap();
    assert!(said.contains("has LLVM 23, and bpf-linker 0.10.3 needs LLVM 22"), "{said}");
    assert!(message.contains("no compiler for the kernel programs could be installed"), "{message}");
}

#[test]
fn stale_package_lists_are_refreshed_before_the_compiler_is_installed() {
    if !is_root() {
        println!("SKIP stale_package_lists_are_refreshed_before_the_compiler_is_installed: needs root");
        return;
    }
    let machine = Machine::bare();
    let lists = machine.path("fresh-lists");
    let lists = lists.display();
    let machine = machine
        .with_program(
            "apt-get",
            &format!("case \"$1\" in update) : >{lists};; *) echo \"E: asked for $*\" >&2; exit 1;; esac"),
        )
        .with_program(
            "apt-cache",
            &format!("if [ -e {lists} ]; then {KNOWS_RUST}; else echo '  Candidate: 1.85.0+dfsg3-1'; fi"),
        );
    let message = machine.message(&["setup"]);
    assert!(machine.path("fresh-lists").exists());
    assert!(message.contains("rustc-web cargo-web rust-web-src"), "{message}");
}

#[test]
fn a_machine_that_has_all_is_left_alone() {
    let machine = Machine::bare().with_system_compiler("1.96.0", "22.1.8").with_linker();
    for program in ["apt-get", "cargo", "curl"] {
        machine.program(&format!("bin/{program}"), "touch \"$0.was-called\"");
    }
    let output = machine.xtask(&["setup"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let called = |program: &str| machine.path(&format!("bin/{program}.was-called")).exists();
    assert!(!called("apt-get") && !called("cargo") && !called("curl"));
}

#[test]
fn an_object_that_is_given_needs_no_compiler() {
    let machine = Machine::bare();
    fs::write(machine.path("some.o"), []).unwrap();
    let output = setup_with(&machine, &["setup"], "HANDSHAKE_BPF_OBJECT", "some.o");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn setup_with(machine: &Machine, arguments: &[&str], variable: &str, file: &str) -> Output {
    let _guard = one_at_a_time();
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(arguments)
        .env_clear()
        .env("PATH", machine.path("bin"))
        .env("CARGO_TARGET_DIR", machine.path("target"))
        .env("HANDSHAKE_BPF_SYSTEM_PREFIX", machine.path("prefix"))
        .env(variable, machine.path(file))
        .output()
        .unwrap()
}

#[test]
fn a_path_that_is_named_and_not_there_is_refused_by_its_variable() {
    let machine = Machine::bare().with_system_compiler("1.96.0", "22.1.8").with_linker();
    for variable in ["HANDSHAKE_BPF_OBJECT", "HANDSHAKE_BPF_LINKER", "HANDSHAKE_BPF_RUSTC"] {
        let output = setup_with(&machine, &["setup"], variable, "not-there");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(variable), "{variable}: {said}");
    }
}

#[test]
fn tests_without_vms_need_nothing_that_only_vms_need() {
    let machine = Machine::bare().with_program("ip", "exit 0").with_program("tc", "exit 0");
    fs::write(machine.path("some.o"), []).unwrap();
    let with = |kernels: &str| {
        setup_with(&machine, &["setup", "--tests", "--kernels", kernels], "HANDSHAKE_BPF_OBJECT", "some.o")
    };
    let output = with("none");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("qemu"), "{said}");
    let output = with("6.12");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("cargo xtask test --kernels none"), "{said}");
}

#[test]
fn tracing_without_root_and_sudo_says_what_to_run() {
    let machine = Machine::bare()
        .with_system_compiler("1.96.0", "22.1.8")
        .with_linker()
        .with_program("cargo", "exit 0")
        .used_by_nobody();
    let message = machine.message(&["run", "--", "trace"]);
    assert!(message.contains("tracing needs root"), "{message}");
    assert!(message.contains("release/handshake"), "{message}");
}

#[test]
fn tracing_through_sudo_keeps_the_environment_and_the_arguments() {
    if !is_root() {
        println!(
            "SKIP tracing_through_sudo_keeps_the_environment_and_the_arguments: needs root to be nobody"
        );
        return;
    }
    let machine = Machine::bare()
        .with_system_compiler("1.96.0", "22.1.8")
        .with_linker()
        .with_program("cargo", "exit 0")
        .with_program("sudo", "echo \"$@\"; exit 77")
        .used_by_nobody();
    for arguments in [["run", "--", "trace", "--json"].as_slice(), &["run", "trace", "--json"]] {
        let output = machine.xtask(arguments);
        // The exit status is that of the program that took the place of xtask.
        assert_eq!(output.status.code(), Some(77), "{}", String::from_utf8_lossy(&output.stderr));
        let binary = machine.path("target/release/handshake");
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            format!("-E {} trace --json\n", binary.display())
        );
    }
}

#[test]
fn a_kernel_that_cannot_be_fetched_is_one_message() {
    let machine = Machine::bare()
        .with_program("apt-get", "echo http://mirror.invalid/debian")
        .with_program("curl", "echo 'curl: (6) Could not resolve host: mirror.invalid' >&2; exit 6");
    let message = machine.message(&["kernels", "6.12"]);
    for fact in ["kernel 6.12", "Could not resolve host", "--kernels none"] {
        assert!(message.contains(fact), "{fact} is not in: {message}");
    }
    assert!(!Path::new(&machine.path("target/kernels/6.12")).exists());
}
