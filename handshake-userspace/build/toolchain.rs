//! Decides which compiler and which linker build the BPF object, for `build.rs` and for `cargo xtask setup`.
//!
//! Both include this one file, so that set-up never installs what the build would not use, and the build
//! never misses what set-up installed. `choose` is pure: it judges facts that `Facts::of_this_machine` gathered.
//!
//! What one would get wrong: any recent compiler is not good enough. bpf-linker 0.10.3 reads bitcode of LLVM 22
//! at most, and `-Zbuild-std` needs the sources of exactly the compiler that builds them, so a compiler of one
//! release with the sources of another does not work.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The release that is known to work, and that rustup is asked for.
pub const PINNED_RUST: &str = "1.96.0";
/// The release of bpf-linker that is known to work.
pub const PINNED_LINKER: &str = "0.10.3";
/// The LLVM whose bitcode that bpf-linker reads.
pub const LLVM_MAJOR: u32 = 22;
/// Older compilers cannot build the workspace at all.
const OLDEST_RUST: (u32, u32) = (1, 95);

/// What is known about one compiler that might build the BPF object.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// How the user would call it: `rustup 1.96.0`, `HANDSHAKE_BPF_RUSTC`, `/usr/bin/rustc`.
    pub name: String,
    /// The compiler itself, not a proxy that might choose another.
    pub rustc: PathBuf,
    /// The cargo that goes with it.
    pub cargo: PathBuf,
    /// Where its libraries lie.
    pub sysroot: PathBuf,
    /// What `rustc -vV` says, or why it says nothing.
    pub version: Result<Version, String>,
    /// Whether the sources of `core` lie in the sysroot.
    pub has_source: bool,
}

/// The part of `rustc -vV` that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The first line, such as `rustc 1.96.0 (ac68faa20 2026-05-25)`.
    pub line: String,
    /// Major and minor.
    pub release: (u32, u32),
    /// Unstable options work without RUSTC_BOOTSTRAP.
    pub nightly: bool,
    /// LLVM major and minor.
    pub llvm: (u32, u32),
}

impl Version {
    /// Reads the output of `rustc -vV`.
    pub fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let release = field("release: ")?;
        Some(Self {
            line: text.lines().next()?.to_owned(),
            release: major_minor(release)?,
            nightly: release.contains("-nightly") || release.contains("-dev"),
            llvm: major_minor(field("LLVM version: ")?)?,
        })
    }
}

fn major_minor(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Compiler {
    /// Why this compiler cannot build the BPF object, in words for a user.
    pub fn fault(&self) -> Option<String> {
        let name = &self.name;
        let version = match &self.version {
            Ok(version) => version,
            Err(why) => return Some(format!("{name}: {why}")),
        };
        if version.release < OLDEST_RUST {
            let (major, minor) = OLDEST_RUST;
            return Some(format!("{name}: is {}, older than {major}.{minor}", version.line));
        }
        if version.llvm.0 != LLVM_MAJOR {
            let llvm = version.llvm.0;
            return Some(format!(
                "{name}: has LLVM {llvm}, and bpf-linker {PINNED_LINKER} needs LLVM {LLVM_MAJOR}"
            ));
        }
        if !self.has_source {
            return Some(format!("{name}: has no rust-src"));
        }
        None
    }
}

/// All that the choice depends on.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// HANDSHAKE_BPF_OBJECT.
    pub object: Option<PathBuf>,
    /// HANDSHAKE_BPF_SKIP=1.
    pub skip: bool,
    /// In order of preference.
    pub compilers: Vec<Compiler>,
    /// The first bpf-linker found.
    pub linker: Option<PathBuf>,
    /// What a HANDSHAKE_BPF_ variable names and can't be used.
    pub environment_fault: Option<String>,
}

/// What the build does about the BPF object.
#[derive(Clone, Debug)]
pub enum Choice {
    /// Take this file as it is.
    Prebuilt(PathBuf),
    /// Compile it.
    Compile {
        /// With this compiler.
        compiler: Compiler,
        /// And this bpf-linker.
        linker: PathBuf,
    },
    /// Leave the object empty, and say why.
    Nothing {
        /// Each thing that is missing, in words for a user.
        why: String,
    },
}

/// Chooses; the first compiler without a fault wins.
pub fn choose(facts: &Facts) -> Choice {
    if let Some(fault) = &facts.environment_fault {
        return Choice::Nothing { why: fault.clone() };
    }
    if let Some(object) = &facts.object {
        return Choice::Prebuilt(object.clone());
    }
    if facts.skip {
        return Choice::Nothing { why: "HANDSHAKE_BPF_SKIP=1 is set".to_owned() };
    }
    let Some(compiler) = facts.compilers.iter().find(|compiler| compiler.fault().is_none()) else {
        let faults: Vec<String> = facts.compilers.iter().filter_map(Compiler::fault).collect();
        return Choice::Nothing { why: format!("no compiler for BPF ({})", faults.join("; ")) };
    };
    match &facts.linker {
        Some(linker) => Choice::Compile { compiler: compiler.clone(), linker: linker.clone() },
        None => Choice::Nothing { why: format!("no bpf-linker {PINNED_LINKER}") },
    }
}

impl Facts {
    /// Asks this machine; `target` is the workspace's target folder.
    pub fn of_this_machine(target: &Path) -> Self {
        let (object, compilers) = (variable("HANDSHAKE_BPF_OBJECT"), compilers());
        Self {
            environment_fault: fault_of_environment(object.as_deref(), &compilers),
            object,
            skip: env::var_os("HANDSHAKE_BPF_SKIP").is_some_and(|value| value == "1"),
            compilers,
            linker: linker(target),
        }
    }
}

/// What the environment names and is not there, or does not fit. Going on with something else would hide a
/// mistyped path.
fn fault_of_environment(object: Option<&Path>, compilers: &[Compiler]) -> Option<String> {
    let not_there = |name: &str, path: &Path| {
        (!path.is_file()).then(|| format!("{name} names {}, which is no file", path.display()))
    };
    if let Some(object) = object {
        return not_there("HANDSHAKE_BPF_OBJECT", object);
    }
    let (rustc, cargo) = (variable("HANDSHAKE_BPF_RUSTC"), variable("HANDSHAKE_BPF_CARGO"));
    if rustc.is_some() != cargo.is_some() {
        return Some(
            "HANDSHAKE_BPF_RUSTC and HANDSHAKE_BPF_CARGO belong together; only one is set".to_owned(),
        );
    }
    let named = [
        ("HANDSHAKE_BPF_RUSTC", rustc),
        ("HANDSHAKE_BPF_CARGO", cargo),
        ("HANDSHAKE_BPF_LINKER", variable("HANDSHAKE_BPF_LINKER")),
    ];
    named
        .iter()
        .find_map(|(name, path)| not_there(name, path.as_deref()?))
        .or_else(|| compilers.iter().find(|compiler| compiler.name == "HANDSHAKE_BPF_RUSTC")?.fault())
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn compilers() -> Vec<Compiler> {
    let mut found = Vec::new();
    if let (Some(rustc), Some(cargo)) = (variable("HANDSHAKE_BPF_RUSTC"), variable("HANDSHAKE_BPF_CARGO")) {
        found.push(probe("HANDSHAKE_BPF_RUSTC", rustc, cargo));
    }
    for toolchain in [PINNED_RUST, "nightly", "stable"] {
        found.push(rustup(toolchain));
    }
    // Another prefix than /usr suits distributions that keep their compiler elsewhere.
    let prefix = variable("HANDSHAKE_BPF_SYSTEM_PREFIX").unwrap_or_else(|| PathBuf::from("/usr"));
    let rustc = prefix.join("bin/rustc");
    found.push(probe(&rustc.display().to_string(), rustc, prefix.join("bin/cargo")));
    found
}

fn rustup(toolchain: &str) -> Compiler {
    let name = format!("rustup {toolchain}");
    // `rustup which` names the real programs: a proxy would set a library path and might install things.
    let which = |program: &str| {
        let mut rustup = Command::new("rustup");
        rustup.args(["which", "--toolchain", toolchain, program]).env("RUSTUP_AUTO_INSTALL", "0");
        said_by(&mut rustup).map(PathBuf::from)
    };
    match (which("rustc"), which("cargo")) {
        (Some(rustc), Some(cargo)) => probe(&name, rustc, cargo),
        _ => absent(&name, "not installed"),
    }
}

fn absent(name: &str, why: &str) -> Compiler {
    Compiler {
        name: name.to_owned(),
        rustc: PathBuf::new(),
        cargo: PathBuf::new(),
        sysroot: PathBuf::new(),
        version: Err(why.to_owned()),
        has_source: false,
    }
}

fn probe(name: &str, rustc: PathBuf, cargo: PathBuf) -> Compiler {
    if !rustc.exists() {
        return absent(name, "not installed");
    }
    if !cargo.exists() {
        return absent(name, &format!("has no cargo at {}", cargo.display()));
    }
    // What an outer cargo set must not change the answers.
    let ask = |argument: &[&str]| {
        said_by(
            Command::new(&rustc).args(argument).env_remove("RUSTC_BOOTSTRAP").env_remove("LD_LIBRARY_PATH"),
        )
    };
    let version = ask(&["-vV"]).as_deref().and_then(Version::parse);
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"]).unwrap_or_default());
    Compiler {
        name: name.to_owned(),
        has_source: sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists(),
        version: version.ok_or_else(|| "does not run".to_owned()),
        rustc,
        cargo,
        sysroot,
    }
}

fn linker(target: &Path) -> Option<PathBuf> {
    if let Some(named) = variable("HANDSHAKE_BPF_LINKER") {
        return Some(named);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).map(|folder| folder.join("bpf-linker"));
    std::iter::once(target.join("tools/bin/bpf-linker")).chain(in_path).find(|linker| {
        let version = said_by(Command::new(linker).arg("--version")).unwrap_or_default();
        version.split_whitespace().any(|word| word == PINNED_LINKER)
    })
}

/// What a program prints, when it runs and succeeds.
pub fn said_by(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(name: &str, release: &str, llvm: &str) -> Compiler {
        let said = format!("rustc {release}\nrelease: {release}\nLLVM version: {llvm}\n");
        let version = Version::parse(&said).ok_or_else(|| "does not run".to_owned());
        Compiler { has_source: true, version, ..absent(name, "") }
    }

    fn facts(compilers: Vec<Compiler>) -> Facts {
        Facts { compilers, linker: Some("/tools/bpf-linker".into()), ..Facts::default() }
    }

    fn chosen(facts: &Facts) -> String {
        match choose(facts) {
            Choice::Prebuilt(object) => format!("prebuilt {}", object.display()),
            Choice::Compile { compiler, .. } => compiler.name,
            Choice::Nothing { why } => format!("nothing: {why}"),
        }
    }

    #[test]
    fn first_compiler_without_a_fault_wins() {
        let mut no_source = compiler("rustup nightly", "1.97.0-nightly", "22.1.2");
        no_source.has_source = false;
        let compilers = vec![
            absent("rustup 1.96.0", "not installed"),
            no_source,
            compiler("rustup stable", "1.98.0", "23.1.0"),
            compiler("/usr/bin/rustc", "1.96.0", "22.1.8"),
        ];
        assert_eq!(chosen(&facts(compilers)), "/usr/bin/rustc");
    }

    #[test]
    fn every_fault_is_named_when_no_compiler_fits() {
        let compilers = vec![
            absent("rustup 1.96.0", "not installed"),
            compiler("rustup stable", "1.98.0", "23.1.0"),
            compiler("/usr/bin/rustc", "1.85.0", "19.1.7"),
        ];
        let why = chosen(&facts(compilers));
        for fault in ["rustup 1.96.0: not installed", "rustup stable: has LLVM 23", "older than 1.95"] {
            assert!(why.contains(fault), "{fault} is not in: {why}");
        }
    }

    #[test]
    fn compiler_without_a_linker_builds_nothing() {
        let facts = Facts { linker: None, ..facts(vec![compiler("x", "1.96.0", "22.1.8")]) };
        assert_eq!(chosen(&facts), "nothing: no bpf-linker 0.10.3");
    }

    #[test]
    fn a_given_object_comes_before_everything() {
        let facts = Facts { object: Some("/a.o".into()), skip: true, ..facts(Vec::new()) };
        assert_eq!(chosen(&facts), "prebuilt /a.o");
    }

    #[test]
    fn skipping_comes_before_a_compiler_that_fits() {
        let facts = Facts { skip: true, ..facts(vec![compiler("x", "1.96.0", "22.1.8")]) };
        assert!(chosen(&facts).starts_with("nothing: HANDSHAKE_BPF_SKIP=1"));
    }

    #[test]
    fn version_is_read_from_what_rustc_says() {
        let said = "rustc 1.97.0-nightly (abc 2026-05-19)\nbinary: rustc\nrelease: 1.97.0-nightly\n\
            LLVM version: 22.1.2\n";
        let version = Version::parse(said).expect("this is what rustc says");
        assert_eq!((version.release, version.nightly, version.llvm), ((1, 97), true, (22, 1)));
        assert_eq!(Version::parse("error: no default toolchain"), None);
    }
}
