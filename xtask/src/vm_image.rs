//! What a VM starts from: a kernel of ours, and an initramfs with busybox, modules, and the files of a test.
//!
//! The part that is equal in every run (busybox, modules, the init script) is kept below target/vm; the rest is a
//! second archive behind it. The root file system is the initramfs itself, so there is no disk and nothing to
//! clean up in it.
//!
//! What one would get wrong: the shell is the host's, not busybox's. Busybox's shell prefers its own applets over
//! PATH, so that `ip netns` would end in an `ip` that knows no namespaces.

use crate::{command, guest_files::GuestFiles, kernel_modules, kernels::Kernel, workspace};
use anyhow::{Context as _, Result};
use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Write as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

const INIT: &str = include_str!("guest_init.sh");

/// What tests need of a kernel that is not built into each: links with delay and loss, a firewall, IPsec policies, and a
/// file system that makes the kernel connect.
pub const MODULES: [&str; 19] = [
    "veth",
    "dummy",
    "sch_netem",
    "sch_prio",
    "cls_u32",
    "nf_tables",
    "nft_counter",
    "nft_ct",
    "nft_limit",
    "nft_numgen",
    "nft_reject",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_reject_inet",
    "tcp_diag",
    "inet_diag",
    "9p",
    "9pnet_fd",
    "xfrm_user",
];

/// Loaded by the test that needs it alone: it makes every network namespace listen.
const LOADED_LATER: [&str; 1] = ["rds_tcp"];

/// What the guest holds beside the base.
pub struct Contents<'a> {
    /// Programs of the host, put into /bin with their libraries.
    pub programs: &'a [PathBuf],
    /// Files of the host and the names they get in /w, the working folder.
    pub files: &'a [(PathBuf, String)],
    /// Folders of the host whose contents go to /w.
    pub folders: &'a [PathBuf],
    /// Modules to load, beside those they need.
    pub modules: &'a [&'a str],
    /// What /bin/sh runs.
    pub script: &'a str,
    /// Whether the kernel's log is wanted at the end.
    pub kernel_log: bool,
}

/// A finished image; its file is removed with it.
pub struct Image {
    /// The kernel to boot.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The folder for whatever else belongs to this run.
    pub scratch: PathBuf,
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

impl Image {
    /// Puts the archive together.
    pub fn build(kernel: &Kernel, contents: &Contents<'_>) -> Result<Self> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let folder = workspace::target().join("vm");
        let scratch = folder.join(format!("run-{}-{run}", std::process::id()));
        fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
        let image = Self { kernel: vmlinuz(&kernel.folder)?, initramfs: scratch.join("initramfs"), scratch };
        let base = base(kernel, &image, contents.modules, &folder)?;
        fs::copy(&base, &image.initramfs).with_context(|| format!("cannot copy {}", base.display()))?;
        let mut initramfs = fs::OpenOptions::new().append(true).open(&image.initramfs)?;
        initramfs.write_all(&overlay(contents)?)?;
        Ok(image)
    }
}

fn overlay(contents: &Contents<'_>) -> Result<Vec<u8>> {
    let mut files = GuestFiles::default();
    files.file("command", 0o755, format!("{}\n", contents.script).as_bytes());
    if contents.kernel_log {
        files.file("want-kernel-log", 0o644, &[]);
    }
    files.host_file(&fs::canonicalize("/bin/sh").context("this machine has no /bin/sh")?, "bin/sh")?;
    for program in contents.programs {
        let real = fs::canonicalize(program).with_context(|| format!("no program {}", program.display()))?;
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        files.host_file(&real, &format!("bin/{name}"))?;
    }
    for folder in contents.folders {
        files.tree(folder, "w")?;
    }
    for (host, name) in contents.files {
        files.host_file(host, &format!("w/{name}"))?;
    }
    Ok(files.finish())
}

/// The archive that runs have in common, from the cache or made now.
fn base(kernel: &Kernel, image: &Image, modules: &[&str], folder: &Path) -> Result<PathBuf> {
    let busybox = command::find("busybox").context("the VMs need busybox (package busybox-static)")?;
    let mut hash = DefaultHasher::new();
    for file in [&image.kernel, &busybox] {
        let about = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
        (file, about.len(), about.modified()?).hash(&mut hash);
    }
    (INIT, modules, LOADED_LATER).hash(&mut hash);
    let cached = folder.join(format!("{}-{:016x}.cpio", kernel.name, hash.finish()));
    if cached.exists() {
        return Ok(cached);
    }
    let mut files = GuestFiles::default();
    for path in ["proc", "sys", "tmp", "run", "w", "out", "sbin", "usr/bin", "usr/sbin", "var", "root", "mnt"]
    {
        files.folder(path);
    }
    files.console();
    files.file("init", 0o755, INIT.as_bytes());
    files.host_file(&busybox, "bin/busybox")?;
    files.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n");
    files.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    files.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n");
    files.link("etc/mtab", "/proc/mounts");
    let all = [modules, &LOADED_LATER].concat();
    let at_start = kernel_modules::in_loading_order(&kernel.folder, modules)?.len();
    let (mut order, mut later) = (String::new(), String::new());
    for (number, module) in kernel_modules::in_loading_order(&kernel.folder, &all)?.iter().enumerate() {
        files.file(&format!("modules/{}.ko", module.name), 0o644, &module.bytes);
        let list = if number < at_start { &mut order } else { &mut later };
        list.push_str(&module.name);
        list.push('\n');
    }
    files.file("modules/order", 0o644, order.as_bytes());
    files.file("modules/later", 0o644, later.as_bytes());
    // Another run may be making the same file; whichever is renamed last is as good as the other.
    let partial = image.scratch.join("base");
    fs::write(&partial, files.finish()).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, &cached).with_context(|| format!("cannot create {}", cached.display()))?;
    Ok(cached)
}

fn vmlinuz(kernel: &Path) -> Result<PathBuf> {
    // Since 7.x the kernel lies beside its modules.
    let folders = [kernel.join("boot"), kernel_modules::folder_of(kernel)?];
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz"))
        .map(|entry| entry.path())
        .next()
        .with_context(|| format!("{} holds no kernel image", kernel.display()))
}
