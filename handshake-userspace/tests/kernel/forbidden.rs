//! connect() that is forbidden on this host (EPERM): by a program at the cgroup before TCP is reached, and by an IPsec
//! policy inside of TCP.
//!
//! What a reader would get wrong: both are one failed handshake each. The two ways of hearing of a failed call, from TCP
//! and from the call's return, must not both tell it.

use std::{
    fs::File,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
};

use super::{
    environment::{attach, is_fit, is_locked_down, skip},
    neighbours::{bpf, cgroup_root},
    netns::{Netns, Pair, SERVER_V4, SERVER_V6},
    record::{Record, all_of},
    traffic::until,
    watch::Watch,
    whole::AT_ONCE,
};

const ORDER: &str = "HANDSHAKE_TEST_FORBIDDEN";
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_CGROUP_INET6_CONNECT: u32 = 11;

/// A cgroup in which nothing may connect.
struct Jail(PathBuf);

impl Jail {
    fn new() -> Result<Self, String> {
        // Before 5.11 programs count as locked memory of the user, the tracer's too.
        let unlimited = rustix::process::Rlimit { current: None, maximum: None };
        let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
        let jail = Jail(cgroup_root().join(format!("hs-jail-{}", std::process::id())));
        std::fs::create_dir(&jail.0).map_err(|error| format!("no cgroup can be made: {error}"))?;
        let cgroup = File::open(&jail.0).map_err(|error| error.to_string())?;
        for attach in [BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET6_CONNECT] {
            // r0 = 0; exit
            let instructions: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];
            let words = |address: usize| [address as u32, (address as u64 >> 32) as u32];
            let [code, code_high] = words(instructions.as_ptr() as usize);
            let [licence, licence_high] = words(c"GPL".as_ptr() as usize);
            let mut attributes = [0; 18];
            attributes[..6].copy_from_slice(&[
                BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
                2,
                code,
                code_high,
                licence,
                licence_high,
            ]);
            // `expected_attach_type`, after the log, the version, the flags, the name and the device.
            attributes[17] = attach;
            let program =
                bpf(BPF_PROG_LOAD, &attributes).map_err(|error| format!("it is refused: {error}"))?;
            // SAFETY: the kernel has just made this descriptor for us.
            let program = unsafe { OwnedFd::from_raw_fd(program) };
            let target = [cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32, attach, 0];
            bpf(BPF_PROG_ATTACH, &target).map_err(|error| format!("it cannot be attached: {error}"))?;
        }
        Ok(jail)
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        // Its programs go with it.
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_process_that_may_not_connect() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let mut words = order.split(' ');
    let mut word = || words.next().expect("the parent says what to do");
    let (cgroup, netns, to) = (word(), word(), word());
    std::fs::write(format!("{cgroup}/cgroup.procs"), "0").expect("the cgroup exists");
    let file = File::open(format!("/run/netns/{netns}")).expect("the namespace exists");
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&file),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .expect("the namespace can be entered");
    std::fs::write("/proc/thread-self/comm", "hs-jailed").expect("a thread can be named");
    let error =
        TcpStream::connect(to.parse::<SocketAddr>().expect("an address")).expect_err("it is forbidden");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
}

/// The call that comes after all others of a scenario.
const MARK: &str = "127.0.0.1:909";

/// What was told of the calls before the mark, in the order of the calls; one record of each. A failed call is held
/// for a moment, so its record comes after those of a handshake that was made later.
#[track_caller]
fn told(watch: Watch, netns: &Netns, calls: usize) -> Vec<Record> {
    let time = |record: &Record| record.text("time").expect("every record has a time").to_owned();
    until("the mark is told", || all_of(watch.records(), netns).len() > calls);
    let mut records = all_of(watch.end(), netns);
    records.sort_by_key(time);
    assert_eq!(records.len(), calls + 1, "one record of each call: {records:?}");
    records.pop();
    records
}

/// The whole record of a connect() that was forbidden: who called, whither, and what the call returned.
#[track_caller]
fn expect_forbidden(
    record: &Record,
    netns: &Netns,
    (pid, comm): (u64, &str),
    to: SocketAddr,
    is_timed: bool,
) {
    let is_known = !is_locked_down();
    let is_mapped = to.to_string().contains("ffff");
    // Nobody may read the caller's sockaddr under lockdown.
    record
        .whole("client", "local_error", netns)
        .seen_by(&[attach_of_returns()])
        .evidence("connect_returned", Some("EPERM"))
        .process(pid, comm)
        .also(is_timed, |whole| whole.within("failed_after_ns", AT_ONCE))
        .also(is_known, |whole| {
            whole
                .text("remote.address", &to.ip().to_canonical().to_string())
                .number("remote.port", u64::from(to.port()))
        })
        .flags(if is_mapped && is_known { &["v4_mapped"] } else { &[] })
        .nothing_else();
}

/// By which hook a call's return is seen.
fn attach_of_returns() -> &'static str {
    if attach() == "fentry" { "fentry" } else { "tracepoint" }
}

#[test]
fn a_connect_that_a_program_at_the_cgroup_forbids_is_one_failed_handshake() {
    const NAME: &str = "a_connect_that_a_program_at_the_cgroup_forbids_is_one_failed_handshake";
    if !is_fit(NAME) {
        return;
    }
    let jail = match Jail::new() {
        Ok(jail) => jail,
        Err(problem) => return skip(NAME, &problem),
    };
    let netns = Netns::new("j");
    let watch = Watch::begin();
    let cases = ["127.0.0.1:901", "[::1]:902", "[::ffff:127.0.0.1]:903"];
    let mut callers = Vec::new();
    for to in cases.iter().copied().chain([MARK]) {
        let child = Command::new(std::env::current_exe().expect("this binary has a path"))
            .args(["--exact", "forbidden::a_process_that_may_not_connect", "--nocapture"])
            .env(ORDER, format!("{} {} {to}", jail.0.display(), netns.name()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this binary can be run again");
        callers.push(u64::from(child.id()));
        let output = child.wait_with_output().expect("it can be waited for");
        assert!(output.status.success(), "{to}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let records = told(watch, &netns, cases.len());
    for ((record, to), pid) in records.iter().zip(cases).zip(callers) {
        let to: SocketAddr = to.parse().expect("an address");
        // TCP was never reached, so only a system call's tracepoint knows when it was called.
        expect_forbidden(record, &netns, (pid, "hs-jailed"), to, attach() != "fentry");
    }
}

#[test]
fn a_connect_that_an_ipsec_policy_forbids_is_one_failed_handshake() {
    const NAME: &str = "a_connect_that_an_ipsec_policy_forbids_is_one_failed_handshake";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    for destination in [SERVER_V4, SERVER_V6] {
        let policy = format!("xfrm policy add dst {destination} dir out action block");
        let output = Command::new("ip").args(["-n", pair.client.name()]).args(policy.split(' ')).output();
        let output = output.expect("ip can be run");
        if !output.status.success() {
            let problem = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
            return skip(NAME, &format!("this kernel takes no IPsec policy (module xfrm_user): {problem}"));
        }
    }
    let watch = Watch::begin();
    let cases = [
        format!("{SERVER_V4}:904"),
        format!("[{SERVER_V6}]:905"),
        format!("[::ffff:{SERVER_V4}]:906"),
        format!("{SERVER_V4}:909"),
    ]
    .map(|to| to.parse::<SocketAddr>().expect("an address"));
    pair.client.on_thread("hs-forbidden", || {
        for to in cases {
            let error = TcpStream::connect(to).expect_err("it is forbidden");
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{to}: {error}");
        }
    });
    let records = told(watch, &pair.client, cases.len() - 1);
    let pid = u64::from(std::process::id());
    for (record, to) in records.iter().zip(cases) {
        expect_forbidden(record, &pair.client, (pid, "hs-forbidden"), to, true);
    }
}
