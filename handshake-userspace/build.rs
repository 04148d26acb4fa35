//! Builds `handshake-ebpf` for the kernel and leaves it in OUT_DIR/handshake.bpf.o, which the daemon embeds.
//!
//! A machine that has no compiler for BPF still builds, lints and tests the workspace: the object is then empty,
//! cargo shows a warning, and HANDSHAKE_BPF_BUILT_WITH begins with `nothing: `. HANDSHAKE_BPF_REQUIRED=1, which
//! `cargo xtask` sets, makes that an error. `build/toolchain.rs` says in which order compilers are tried.
//!
//! What one would get wrong: a missing toolchain and a BPF crate that doesn't compile are two things. The second
//! is always an error, or a typing mistake in a hook would end in a daemon that quietly traces nothing.

#[path = "build/toolchain.rs"]
mod toolchain;

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::SystemTime,
};
use toolchain::{Choice, Compiler, Facts};

/// The variables that change the choice; a build script must be run again when one of them changes.
const VARIABLES: [&str; 6] = [
    "HANDSHAKE_BPF_OBJECT",
    "HANDSHAKE_BPF_SKIP",
    "HANDSHAKE_BPF_RUSTC",
    "HANDSHAKE_BPF_CARGO",
    "HANDSHAKE_BPF_LINKER",
    "HANDSHAKE_BPF_SYSTEM_PREFIX",
];

fn main() -> ExitCode {
    match Build::from_environment().and_then(|build| build.run()) {
        Ok(built_with) => {
            println!("cargo::rustc-env=HANDSHAKE_BPF_BUILT_WITH={built_with}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

struct Build {
    workspace: PathBuf,
    target: PathBuf,
    out: PathBuf,
    object: PathBuf,
}

impl Build {
    fn from_environment() -> Result<Self, String> {
        let variable = |name: &str| env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"));
        let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
        let workspace = package.parent().ok_or("the package has no folder above it")?.to_owned();
        let out = PathBuf::from(variable("OUT_DIR")?);
        Ok(Self {
            target: match env::var_os("CARGO_TARGET_DIR") {
                Some(target) => workspace.join(target),
                None => workspace.join("target"),
            },
            object: out.join("handshake.bpf.o"),
            workspace,
            out,
        })
    }

    /// Returns what the object was built with, for `doctor`.
    fn run(&self) -> Result<String, String> {
        self.say_when_to_run_again();
        match toolchain::choose(&Facts::of_this_machine(&self.target)) {
            Choice::Prebuilt(object) => {
                println!("cargo::rerun-if-changed={}", object.display());
                fs::copy(&object, &self.object)
                    .map_err(|error| format!("HANDSHAKE_BPF_OBJECT={}: {error}", object.display()))?;
                Ok(format!("prebuilt {}", object.display()))
            }
            Choice::Compile { compiler, linker } => self.compile(&compiler, &linker),
            Choice::Nothing { why } if env::var_os("HANDSHAKE_BPF_REQUIRED").is_some_and(|v| v == "1") => {
                Err(format!(
                    "the kernel programs cannot be built: {why}. `cargo xtask setup` installs what is missing; \
                 HANDSHAKE_BPF_RUSTC with HANDSHAKE_BPF_CARGO, HANDSHAKE_BPF_LINKER or HANDSHAKE_BPF_OBJECT \
                 name what is elsewhere."
                ))
            }
            Choice::Nothing { why } => {
                println!(
                    "cargo::warning=built WITHOUT the kernel programs: {why}. `cargo xtask setup` installs \
                     what is missing."
                );
                fs::write(&self.object, []).map_err(|error| format!("{}: {error}", self.object.display()))?;
                Ok(format!("nothing: {why}"))
            }
        }
    }

    fn say_when_to_run_again(&self) {
        println!("cargo::rerun-if-env-changed=HANDSHAKE_BPF_REQUIRED");
        for variable in VARIABLES {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        println!("cargo::rerun-if-changed=build.rs");
        println!("cargo::rerun-if-changed=build");
        for path in ["handshake-ebpf", "handshake-common", "Cargo.toml", "Cargo.lock"] {
            println!("cargo::rerun-if-changed={}", self.workspace.join(path).display());
        }
        // `cargo xtask setup` writes this file when it has installed something. Cargo runs a script again on
        // every build when a file that it names is missing, and when the file is newer than the last run; hence
        // the empty file with an old date.
        let installed = self.target.join("bpf/installed");
        if fs::create_dir_all(self.target.join("bpf")).is_ok()
            && let Ok(file) = File::create_new(&installed)
            && file.set_modified(SystemTime::UNIX_EPOCH).is_err()
        {
            return;
        }
        if installed.exists() {
            println!("cargo::rerun-if-changed={}", installed.display());
        }
    }

    fn compile(&self, compiler: &Compiler, linker: &Path) -> Result<String, String> {
        let version = compiler.version.clone()?;
        // Every profile of the outer build has its own OUT_DIR; one folder for all compiles `core` only once.
        let inner_target = self.target.join("bpf");
        let triple = match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
            Ok("big") => "bpfeb-unknown-none",
            _ => "bpfel-unknown-none",
        };
        let mut cargo = Command::new(&compiler.cargo);
        cargo
            .current_dir(&self.workspace)
            .args(["build", "--release", "--locked", "-Zbuild-std=core", "-p", "handshake-ebpf", "--bins"])
            .args(["--target", triple, "--target-dir"])
            .arg(&inner_target);
        remove_what_the_outer_cargo_set(&mut cargo);
        cargo
            .env("RUSTC", &compiler.rustc)
            .env(linker_variable(triple), linker)
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(compiler).join(OsStr::new("\x1f")));
        if !version.nightly {
            cargo.env("RUSTC_BOOTSTRAP", "1");
        }
        if let Some(folder) = self.folder_with_one_llvm(compiler, version.llvm)? {
            cargo.env("LD_LIBRARY_PATH", folder);
        }
        let output = cargo.output().map_err(|error| format!("{}: {error}", compiler.cargo.display()))?;
        if !output.status.success() {
            return Err(format!(
                "{}\nhandshake-ebpf does not build for {triple} with {} ({}) and {}",
                String::from_utf8_lossy(&output.stderr),
                compiler.name,
                version.line,
                linker.display()
            ));
        }
        let built = inner_target.join(triple).join("release/handshake-ebpf");
        fs::copy(&built, &self.object).map_err(|error| format!("{}: {error}", built.display()))?;
        Ok(format!("{}, bpf-linker {}", version.line, toolchain::PINNED_LINKER))
    }

    /// The flags of the BPF compiler; no path of this machine may reach the object, so that the same sources and
    /// compiler give the same object anywhere.
    fn flags(&self, compiler: &Compiler) -> Vec<OsString> {
        let mut flags: Vec<OsString> = vec![
            // aya picks the argument registers of kprobes by it.
            format!("--cfg=bpf_target_arch=\"{}\"", target_architecture()).into(),
            // The loader needs BTF, and bpf-linker makes it of debug info.
            "-Cdebuginfo=2".into(),
            "-Clink-arg=--btf".into(),
        ];
        let source = compiler.sysroot.join("lib/rustlib/src/rust");
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let user = env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
        let places = [
            (Some(self.workspace.clone()), "/handshake"),
            (home.or(user), "/cargo"),
            // Debian's sources are a symbolic link, and the compiler names the place behind it.
            (fs::canonicalize(&source).ok(), "/rust"),
            (Some(source), "/rust"),
        ];
        for (from, to) in places {
            let Some(from) = from else { continue };
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(from);
            flag.push("=");
            flag.push(to);
            flags.push(flag);
        }
        flags
    }

    /// bpf-linker loads whichever libLLVM it sees first. This gives it a folder with exactly one in it, the one
    /// of the compiler, so that the older ones that a distribution may hold are never met.
    fn folder_with_one_llvm(&self, compiler: &Compiler, llvm: (u32, u32)) -> Result<Option<PathBuf>, String> {
        let (major, minor) = llvm;
        let wanted = format!("libLLVM.so.{major}.{minor}");
        let triplet = format!("{}-linux-gnu", env::consts::ARCH);
        let system = [format!("/usr/lib/{triplet}"), "/usr/lib64".to_owned(), "/usr/lib".to_owned()];
        let folders = std::iter::once(compiler.sysroot.join("lib")).chain(system.map(PathBuf::from));
        for entry in folders.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
            if !entry.file_name().to_string_lossy().starts_with(&wanted) {
                continue;
            }
            let folder = self.out.join("llvm");
            let failed = |error| format!("{}: {error}", folder.display());
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            fs::create_dir_all(&folder).map_err(failed)?;
            std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name())).map_err(failed)?;
            return Ok(Some(folder));
        }
        Ok(None)
    }
}

fn target_architecture() -> String {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| env::consts::ARCH.to_owned());
    if architecture.starts_with("riscv64") { "riscv64".to_owned() } else { architecture }
}

fn linker_variable(triple: &str) -> String {
    format!("CARGO_TARGET_{}_LINKER", triple.to_uppercase().replace('-', "_"))
}

/// The outer cargo speaks of another compiler, another target and of clippy; none of it holds for BPF.
fn remove_what_the_outer_cargo_set(cargo: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let set_by_cargo =
            ["RUSTC", "RUSTDOC", "CARGO_PROFILE_", "CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PKG_"]
                .iter()
                .any(|start| text.starts_with(start));
        let one =
            ["RUSTFLAGS", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH", "CARGO", "CARGO_BUILD_TARGET", "TARGET"];
        if set_by_cargo || one.contains(&text.as_ref()) {
            cargo.env_remove(&name);
        }
    }
}
