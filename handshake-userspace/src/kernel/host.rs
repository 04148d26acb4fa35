//! What the host allows, asked before anything is loaded, so that a refusal can name its cause.
//!
//! What a newcomer would get wrong: none of this decides what works. Attaching decides; this explains.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use rustix::thread::CapabilitySet;

/// Inode of the first pid namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A pid namespace that is not the host's first one, as bpf_get_ns_current_pid_tgid wants it named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherPidNamespace {
    /// Its device, with 20 bits for the minor number as the kernel has it, and not as stat() says it.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

/// The pid namespace of this process, if it is not the host's first one, whose numbers the kernel side sees.
pub fn other_pid_namespace() -> Option<OtherPidNamespace> {
    let file = rustix::fs::stat("/proc/self/ns/pid").ok()?;
    let device = u64::from(rustix::fs::major(file.st_dev)) << 20 | u64::from(rustix::fs::minor(file.st_dev));
    (file.st_ino != FIRST_PID_NAMESPACE).then_some(OtherPidNamespace { device, inode: file.st_ino })
}

/// What that means for whoever reads process ids, or asks for one.
pub fn pid_namespace_warning() -> Option<&'static str> {
    other_pid_namespace().map(|_| {
        "this is not the host's first pid namespace: process ids are shown as that one numbers them, and --pid asks for \
         such a number"
    })
}

/// Capabilities that tracing needs and this process lacks, by name.
pub fn missing_capabilities() -> Vec<&'static str> {
    let Ok(sets) = rustix::thread::capabilities(None) else { return Vec::new() };
    if sets.effective.contains(CapabilitySet::SYS_ADMIN) {
        // Before 5.8 there was nothing finer, and the kernel still takes it for the others.
        return Vec::new();
    }
    [(CapabilitySet::BPF, "CAP_BPF"), (CapabilitySet::PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter(|(capability, _)| !sets.effective.contains(*capability))
        .map(|(_, name)| name)
        .collect()
}

/// Whether programs may copy kernel memory. Under `lockdown=confidentiality` they may not.
pub fn kernel_memory_is_locked() -> bool {
    let by_name = fs::read_to_string("/sys/kernel/security/lockdown")
        .is_ok_and(|modes| modes.contains("[confidentiality]"));
    // securityfs is often not mounted, so ask the verifier too.
    by_name
        || matches!(
            is_helper_supported(ProgramType::RawTracePoint, BpfHelper::BPF_FUNC_probe_read_kernel),
            Ok(false)
        )
}

/// The root of the cgroup v2 hierarchy, open, or why it can't be had.
pub fn cgroup_root() -> Result<File, String> {
    cgroup_mount().map(|(_, root)| root)
}

/// Where the host's whole cgroup v2 hierarchy is mounted, and its root, open.
pub(super) fn cgroup_mount() -> Result<(PathBuf, File), String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
    let path = cgroup2_mount(&mounts).ok_or("no cgroup v2 hierarchy is mounted")?;
    let root = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let inode = root.metadata().map_err(|error| format!("{}: {error}", path.display()))?.ino();
    if inode != 1 {
        return Err(format!(
            "{} is not the host's root cgroup (inode {inode}, not 1): connections outside this container \
             would be missing",
            path.display()
        ));
    }
    Ok((path, root))
}

/// The mount point of the whole cgroup v2 hierarchy, from mountinfo(5).
fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        if right.split(' ').next()? != "cgroup2" {
            return None;
        }
        let mut fields = left.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        (root == "/").then(|| PathBuf::from(mount_point.replace("\\040", " ")))
    })
}

/// Whether tracepoints of system calls can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracefs {
    /// They can.
    Readable,
    /// It is mounted, and this process may not look into it: it belongs to root, mode 0700.
    Forbidden,
    /// Mounting it is the user's to decide.
    NotMounted,
}

/// See [`Tracefs`].
pub fn tracefs() -> Tracefs {
    let folders = ["/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events"];
    let found = folders.map(|folder| fs::metadata(folder).map_err(|error| error.kind()));
    if found.iter().any(|folder| folder.as_ref().is_ok_and(fs::Metadata::is_dir)) {
        Tracefs::Readable
    } else if found.iter().any(|folder| matches!(folder, Err(io::ErrorKind::PermissionDenied))) {
        Tracefs::Forbidden
    } else {
        Tracefs::NotMounted
    }
}

#[cfg(test)]
mod tests {
    use super::cgroup2_mount;

    #[test]
    fn the_whole_cgroup2_hierarchy_is_found_among_others() {
        let mounts = "25 20 0:22 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      26 20 0:23 /docker/1 /mnt/part rw - cgroup2 cgroup2 rw\n\
                      27 20 0:23 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(mounts).as_deref(), Some("/sys/fs/cgroup/unified".as_ref()));
    }

    #[test]
    fn damaged_mountinfo_gives_nothing() {
        assert_eq!(cgroup2_mount("a - \n - cgroup2\n1 2 3 - cgroup2 x"), None);
    }
}
