//! A cgroup of a scenario's own with programs that are asked at connect(), and processes that go into it.
//!
//! What a reader would get wrong: a thread can't go into a cgroup alone, so this binary is run again for it.

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use super::{
    neighbours::{bpf, cgroup_root},
    netns::Netns,
};

const ORDER: &str = "HANDSHAKE_TEST_IN_CGROUP";
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
pub const BPF_CGROUP_INET4_CONNECT: u32 = 10;
pub const BPF_CGROUP_INET6_CONNECT: u32 = 11;

/// exit, with what is in r0.
pub const EXIT: u64 = 0x95;

/// r0 = value: 0 forbids, 1 allows.
pub const fn answer(value: u32) -> u64 {
    (value as u64) << 32 | 0x00b7
}

/// The word of `struct bpf_sock_addr` at this offset = value.
pub const fn store(offset: u16, value: u32) -> [u64; 2] {
    // r2 = value; *(u32 *)(r1 + offset) = r2
    [(value as u64) << 32 | 0x02b7, (offset as u64) << 16 | 0x2163]
}

/// See the module.
pub struct Cgroup(PathBuf);

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Cgroup {
    /// A new one, with these programs and where each is asked.
    pub fn new(programs: &[(u32, &[u64])]) -> Result<Self, String> {
        // Before 5.11 programs count as locked memory of the user, the tracer's too.
        let unlimited = rustix::process::Rlimit { current: None, maximum: None };
        let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let made = Cgroup(cgroup_root().join(format!("hs-{}-{number}", std::process::id())));
        std::fs::create_dir(&made.0).map_err(|error| format!("no cgroup can be made: {error}"))?;
        let cgroup = File::open(&made.0).map_err(|error| error.to_string())?;
        for (attach, instructions) in programs {
            let words = |address: usize| [address as u32, (address as u64 >> 32) as u32];
            let [code, code_high] = words(instructions.as_ptr() as usize);
            let [licence, licence_high] = words(c"GPL".as_ptr() as usize);
            let count = u32::try_from(instructions.len()).expect("it is short");
            let mut attributes = [0; 18];
            attributes[..6].copy_from_slice(&[
                BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
                count,
                code,
                code_high,
                licence,
                licence_high,
            ]);
            // `expected_attach_type`, after the log, the version, the flags, the name and the device.
            attributes[17] = *attach;
            let program =
                bpf(BPF_PROG_LOAD, &attributes).map_err(|error| format!("it is refused: {error}"))?;
            // SAFETY: the kernel has just made this descriptor for us.
            let program = unsafe { OwnedFd::from_raw_fd(program) };
            let target = [cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32, *attach, 0];
            bpf(BPF_PROG_ATTACH, &target).map_err(|error| format!("it cannot be attached: {error}"))?;
        }
        Ok(made)
    }

    /// Runs a test of this binary as a process in it and in a namespace, with one more word of an order; its pid.
    pub fn run(&self, netns: &Netns, test: &str, word: &str) -> u64 {
        let child = Command::new(std::env::current_exe().expect("this binary has a path"))
            .args(["--exact", test, "--nocapture"])
            .env(ORDER, format!("{} {} {word}", self.0.display(), netns.name()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this binary can be run again");
        let pid = u64::from(child.id());
        let output = child.wait_with_output().expect("it can be waited for");
        assert!(output.status.success(), "{word}: {}", String::from_utf8_lossy(&output.stderr));
        pid
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its programs go with it.
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// In that process: goes where it was told, under this name, and gives the word of the order; `None` in any other one.
pub fn enter(name: &str) -> Option<String> {
    let order = std::env::var(ORDER).ok()?;
    let mut words = order.split(' ');
    let mut word = || words.next().expect("the parent says what to do");
    let (cgroup, netns, word) = (word(), word(), word());
    std::fs::write(format!("{cgroup}/cgroup.procs"), "0").expect("the cgroup exists");
    let file = File::open(format!("/run/netns/{netns}")).expect("the namespace exists");
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))
        .expect("the namespace can be entered");
    std::fs::write("/proc/thread-self/comm", name).expect("a thread can be named");
    Some(word.to_owned())
}
