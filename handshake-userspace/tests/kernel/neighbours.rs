//! Others beside us: a second tracer, somebody else's sock_ops program, CPUs that come and go, and sockets that
//! live in the memory of the last one.
//!
//! What a reader would get wrong: two programs at one hook take nothing from each other; what one of them changes
//! for the other would be a bug in it.

use std::{
    collections::BTreeSet,
    fs::{File, read_to_string, write},
    net::TcpStream,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::PathBuf,
    process::Command,
};

use super::{
    environment::{attach, in_vm, is_fit, program, skip},
    netns::Netns,
    plain::{expect_client, expect_counts, expect_server},
    record::{Record, all_of, count},
    tracer::Tracer,
    traffic::{loopback_listener, reset, until},
    watch::{Watch, end_shared},
    whole::{AT_ONCE, LOOPBACK_MSS, expect_one_handshake},
};

/// One connection on loopback, accepted; its listening port.
fn connection(netns: &Netns) -> u16 {
    netns.on_thread("hs-both", || {
        let (listener, to) = loopback_listener();
        let _client = TcpStream::connect(to).expect("it listens");
        drop(listener.accept().expect("a child is queued"));
        to.port()
    })
}

#[track_caller]
fn expect_both_ends(tracer: &Tracer, netns: &Netns, port: u16) -> (Record, Record) {
    let ends = ("127.0.0.1", "127.0.0.1", port);
    let of = |role: &'static str| {
        tracer.wait_for(&format!("the {role}'s record"), move |record| {
            record.is(role, port) && record.number("netns") == Some(netns.inode())
        })
    };
    let (client, server) = (of("client"), of("server"));
    expect_client(&client, netns, ends, "hs-both");
    expect_server(&server, netns, ends, "hs-both");
    expect_one_handshake(&client, &server);
    (client, server)
}

#[test]
fn two_tracers_see_the_same_handshakes() {
    if !is_fit("two_tracers_see_the_same_handshakes") {
        return;
    }
    let netns = Netns::new("b");
    let one = Tracer::start(&[]);
    let other = Tracer::start_alone(&["trace"], &[]);
    let both = connection(&netns);
    let (client, server) = expect_both_ends(&one, &netns, both);
    let (client_again, server_again) = expect_both_ends(&other, &netns, both);
    for (first, second) in [(&client, &client_again), (&server, &server_again)] {
        for same in ["id", "local", "remote", "process", "netns", "isn", "options", "retransmits", "flags"] {
            assert_eq!(first.get(same), second.get(same), "{same} of {first}\n{second}");
        }
    }
    // One that ends leaves the other as it was.
    other.stop();
    expect_both_ends(&one, &netns, connection(&netns));
    let records = all_of(one.stop(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (2, 2), "{records:?}");
}

/// A sock_ops program that does nothing, at the root of the cgroup hierarchy.
struct SockOps {
    cgroup: File,
    program: OwnedFd,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_PROG_TYPE_SOCK_OPS: u32 = 13;
const BPF_CGROUP_SOCK_OPS: u32 = 3;
const BPF_F_ALLOW_MULTI: u32 = 2;

pub(super) fn bpf(command: libc::c_long, attributes: &[u32]) -> Result<i32, std::io::Error> {
    // SAFETY: the attributes are read from a buffer of which the size is given; those who call keep alive what
    // they point to.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    match result {
        -1 => Err(std::io::Error::last_os_error()),
        result => Ok(i32::try_from(result).expect("a descriptor is small")),
    }
}

impl SockOps {
    fn attach(flags: u32) -> Result<Self, String> {
        // Before 5.11 programs and maps count as locked memory of the user, the tracer's too. Where that may not be
        // raised (CAP_SYS_RESOURCE) younger kernels need it not, and older ones refuse the program below.
        let unlimited = rustix::process::Rlimit { current: None, maximum: None };
        let limit = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
        // r0 = 1; exit
        let instructions: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
        let words = |address: usize| [address as u32, (address as u64 >> 32) as u32];
        let [code, code_high] = words(instructions.as_ptr() as usize);
        let [licence, licence_high] = words(c"GPL".as_ptr() as usize);
        let attributes =
            [BPF_PROG_TYPE_SOCK_OPS, 2, code, code_high, licence, licence_high, 0, 0, 0, 0, 0, 0];
        let program = bpf(BPF_PROG_LOAD, &attributes).map_err(|error| {
            format!("a sock_ops program of two instructions is refused: {error} (RLIMIT_MEMLOCK: {limit:?})")
        })?;
        // SAFETY: the kernel has just made this descriptor for us.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let root = cgroup_root();
        let cgroup = File::open(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        let target = [cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32, BPF_CGROUP_SOCK_OPS, flags];
        bpf(BPF_PROG_ATTACH, &target).map_err(|error| {
            let there = others(&cgroup).map_or_else(|error| error.to_string(), |count| count.to_string());
            format!(
                "no sock_ops program can be attached to {} with flags {flags}: {error}; sock_ops programs that are \
                 there already, another handshake's perhaps: {there}",
                root.display()
            )
        })?;
        Ok(SockOps { cgroup, program })
    }
}

/// How many sock_ops programs are attached to a cgroup.
fn others(cgroup: &File) -> Result<u32, std::io::Error> {
    // Target, kind, flags of the query, flags of the attachment, the ids' address (none wanted), their number.
    let mut attributes = [cgroup.as_raw_fd() as u32, BPF_CGROUP_SOCK_OPS, 0, 0, 0, 0, 0, 0];
    // SAFETY: the attributes are read from and written to a buffer of which the size is given.
    let result = unsafe {
        let size = size_of_val(&attributes);
        libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, attributes.as_mut_ptr(), size)
    };
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(attributes[6]) }
}

impl Drop for SockOps {
    fn drop(&mut self) {
        let target =
            [self.cgroup.as_raw_fd() as u32, self.program.as_raw_fd() as u32, BPF_CGROUP_SOCK_OPS, 0];
        let _ = bpf(BPF_PROG_DETACH, &target);
    }
}

/// Where the cgroup v2 hierarchy is mounted.
pub(super) fn cgroup_root() -> PathBuf {
    let mounts = read_to_string("/proc/self/mounts").expect("it can be read");
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    mount.and_then(|line| line.split(' ').nth(1)).unwrap_or("/sys/fs/cgroup").into()
}

#[test]
fn another_sock_ops_program_that_shares_the_root_cgroup_changes_nothing() {
    const NAME: &str = "another_sock_ops_program_that_shares_the_root_cgroup_changes_nothing";
    if !is_fit(NAME) {
        return;
    }
    end_shared();
    let theirs = match SockOps::attach(BPF_F_ALLOW_MULTI) {
        Ok(theirs) => theirs,
        Err(problem) => return skip(NAME, &problem),
    };
    let netns = Netns::new("o");
    let tracer = Tracer::start(&[]);
    expect_both_ends(&tracer, &netns, connection(&netns));
    // Theirs goes and comes back; ours stays.
    drop(theirs);
    expect_both_ends(&tracer, &netns, connection(&netns));
    let theirs = SockOps::attach(BPF_F_ALLOW_MULTI).expect("there is room for both");
    expect_both_ends(&tracer, &netns, connection(&netns));
    let records = all_of(tracer.stop(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (3, 3), "{records:?}");
    drop(theirs);
}

#[test]
fn a_sock_ops_program_that_has_the_root_cgroup_to_itself_is_named_as_the_reason() {
    const NAME: &str = "a_sock_ops_program_that_has_the_root_cgroup_to_itself_is_named_as_the_reason";
    if !is_fit(NAME) {
        return;
    }
    if attach() != "tracepoint" {
        return skip(NAME, "with probes no sock_ops program is needed");
    }
    end_shared();
    let theirs = match SockOps::attach(0) {
        Ok(theirs) => theirs,
        Err(problem) => return skip(NAME, &problem),
    };
    let output = Command::new(program())
        .args(["doctor", "--json", "--attach", "tracepoint"])
        .output()
        .expect("the program can be started");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    let hooks = report["hooks"].as_array().expect("it lists hooks");
    let hook = |name: &str| hooks.iter().find(|hook| hook["hook"] == name).expect("it is listed");
    for name in ["syn_sent", "segment_received"] {
        let tried = hook(name)["tried"].to_string();
        assert!(tried.contains("BPF_F_ALLOW_MULTI") && tried.contains("bpftool"), "{tried}");
    }
    // What is left is traced, without what sock_ops alone tells.
    let netns = Netns::new("o");
    let tracer = Tracer::start(&[]);
    let port = connection(&netns);
    let (client, server) = (tracer.wait_for_end("client", port), tracer.wait_for_end("server", port));
    let ends = ("127.0.0.1", "127.0.0.1", port);
    expect_client(&client, &netns, ends, "hs-both");
    // Nothing is known of the SYN, so nothing starts there.
    server
        .whole("server", "established", &netns)
        .ends(ends.0, ends.1, port)
        .thread("hs-both")
        .joined()
        .agreed(LOOPBACK_MSS)
        .within("phases.accept_ns", AT_ONCE)
        .flags(&[])
        .nothing_else();
    expect_one_handshake(&client, &server);
    expect_counts(&tracer.stop(), &[(&netns, 2)]);
    drop(theirs);
}

#[test]
fn a_cpu_that_goes_and_comes_back_loses_nothing() {
    const NAME: &str = "a_cpu_that_goes_and_comes_back_loses_nothing";
    const SWITCH: &str = "/sys/devices/system/cpu/cpu1/online";
    const CONNECTIONS: usize = 10;
    if !is_fit(NAME) {
        return;
    }
    if !in_vm() {
        return skip(NAME, "the CPUs of this machine belong to others too");
    }
    if write(SWITCH, "1").is_err() {
        return skip(NAME, "this kernel cannot switch its second CPU off");
    }
    let netns = Netns::new("h");
    let tracer = Tracer::start(&[]);
    let mut ports = Vec::new();
    for state in ["1", "0", "1", "0"] {
        write(SWITCH, state).expect("a CPU can be switched");
        assert_eq!(read_to_string(SWITCH).expect("it can be read").trim(), state);
        ports.extend((0..CONNECTIONS).map(|_| connection(&netns)));
    }
    for port in &ports {
        // A port may be given twice; then one of its records is as good as the other.
        expect_both_ends(&tracer, &netns, *port);
    }
    let records = all_of(tracer.stop(), &netns);
    assert_eq!(
        (count(&records, "client"), count(&records, "server")),
        (ports.len(), ports.len()),
        "{records:?}"
    );
    // One that starts with a CPU missing counts it when it comes.
    let tracer = Tracer::start(&[]);
    expect_both_ends(&tracer, &netns, connection(&netns));
    write(SWITCH, "1").expect("a CPU can be switched");
    let more: Vec<u16> = (0..CONNECTIONS).map(|_| connection(&netns)).collect();
    more.iter().for_each(|port| drop(expect_both_ends(&tracer, &netns, *port)));
    let records = all_of(tracer.stop(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (11, 11), "{records:?}");
}

#[test]
fn two_hundred_sockets_in_the_same_memory_are_two_hundred_handshakes() {
    const CONNECTIONS: usize = 200;
    if !is_fit("two_hundred_sockets_in_the_same_memory_are_two_hundred_handshakes") {
        return;
    }
    let netns = Netns::new("r");
    let watch = Watch::begin();
    let (port, made) = netns.on_thread("hs-both", || {
        let (listener, to) = loopback_listener();
        let made: Vec<u64> = (0..CONNECTIONS)
            .map(|_| {
                let client = TcpStream::connect(to).expect("it listens");
                let port = client.local_addr().expect("it is bound").port();
                let accepted = listener.accept().expect("a child is queued").0;
                // A RST leaves no TIME-WAIT behind, so the memory of both is free at once.
                reset(client);
                drop(accepted);
                u64::from(port)
            })
            .collect();
        (to.port(), made)
    });
    until("every connection has both records", || {
        let records = watch.records();
        let count = |role: &str| records.iter().filter(|record| record.is(role, port)).count();
        count("client") >= CONNECTIONS && count("server") >= CONNECTIONS
    });
    let records = all_of(watch.end(), &netns);
    let of = |role: &str| records.iter().filter(|record| record.is(role, port)).collect::<Vec<_>>();
    let (clients, servers) = (of("client"), of("server"));
    assert_eq!((clients.len(), servers.len()), (CONNECTIONS, CONNECTIONS));
    let distinct =
        |field: &str| records.iter().filter_map(|record| record.text(field)).collect::<BTreeSet<_>>().len();
    assert_eq!(distinct("id"), CONNECTIONS, "each handshake has an id of its own");
    assert_eq!(distinct("key"), 2 * CONNECTIONS, "and each record a key");
    let told: Vec<u64> = clients.iter().filter_map(|record| record.number("local.port")).collect();
    assert_eq!(told, made, "told in the order in which they were made, each by its own port");
    for client in clients {
        let server = servers.iter().find(|server| server.text("id") == client.text("id"));
        let server = server.unwrap_or_else(|| panic!("no other end: {client}"));
        expect_one_handshake(client, server);
        client
            .whole("client", "established", &netns)
            .ends("127.0.0.1", "127.0.0.1", port)
            .thread("hs-both")
            .joined()
            .agreed(LOOPBACK_MSS)
            .within("latency_ns", AT_ONCE)
            .answered(AT_ONCE)
            .called_and_returned()
            .flags(&[])
            .nothing_else();
        server
            .whole("server", "established", &netns)
            .ends("127.0.0.1", "127.0.0.1", port)
            .thread("hs-both")
            .joined()
            .agreed(LOOPBACK_MSS)
            .served(AT_ONCE)
            .within("phases.accept_ns", AT_ONCE)
            .queued(1..=1, 128..=4_096)
            .flags(&[])
            .nothing_else();
    }
}
