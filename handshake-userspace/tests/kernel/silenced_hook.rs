//! A hook that falls silent while we watch: what it should have told is found out later, and nothing is invented.
//!
//! The kernel skips a hit only by chance, so here one link of our own tracer is closed under it: by a system call that a
//! debugger makes it do (dup2() of its standard input over the link's descriptor). What a reader would get wrong: the
//! tracer knows nothing of that and goes on; what it then tells must be as true as before, and lack only what that hook
//! alone knows.

use std::{
    io,
    net::{SocketAddr, TcpStream},
};

use super::{
    environment::{attach, has_probes, is_fit, skip},
    netns::{CLIENT_V4, Pair, SERVER_V4},
    record::{Record, count},
    tracer::Tracer,
    traffic::{accept_in, connect_without_waiting, finish, listen_in},
    whole::{ETHERNET_MSS, Whole, expect_one_handshake},
};

/// The descriptor of the link to a tracepoint.
fn link_to(pid: u32, tracepoint: &str) -> u64 {
    let line = format!("tp_name:\t{tracepoint}");
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the program runs").flatten();
    let mut links = files.filter(|file| {
        std::fs::read_to_string(file.path()).is_ok_and(|text| text.lines().any(|found| found == line))
    });
    let link = links.next().unwrap_or_else(|| panic!("no link to {tracepoint}"));
    assert!(links.next().is_none(), "one program is attached to {tracepoint}");
    link.file_name().to_str().and_then(|name| name.parse().ok()).expect("a descriptor is a number")
}

/// Closes the link: no program of ours runs at that tracepoint from now on.
#[cfg(target_arch = "x86_64")]
fn silence(pid: u32, tracepoint: &str) -> bool {
    const STDIN: u64 = 0;
    let link = link_to(pid, tracepoint);
    assert_eq!(debugged::call(pid, libc::SYS_dup2 as u64, [STDIN, link]), link, "dup2() in the tracer");
    true
}

/// As above; registers have other names there.
#[cfg(not(target_arch = "x86_64"))]
fn silence(pid: u32, tracepoint: &str) -> bool {
    link_to(pid, tracepoint);
    false
}

#[cfg(target_arch = "x86_64")]
mod debugged {
    //! One system call in another process, made by its main thread where it waits in one.

    use std::{io, ptr};

    use super::super::traffic::until;

    const SYSCALL: u64 = 0x050f;

    fn ask(request: libc::c_uint, pid: i32, address: u64, data: *mut libc::c_void) -> libc::c_long {
        // SAFETY: each request here takes a number or a pointer to registers that outlive the call.
        let answer = unsafe { libc::ptrace(request, pid, address, data) };
        let is_word = request == libc::PTRACE_PEEKTEXT;
        assert!(is_word || answer != -1, "request {request} to {pid}: {}", io::Error::last_os_error());
        answer
    }

    fn wait_until_stopped(pid: i32) {
        let mut status = 0;
        // SAFETY: the status is written to an i32 of this function.
        let stopped = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        assert!(stopped == pid && libc::WIFSTOPPED(status), "{pid} did not stop: {status:#x}");
    }

    fn registers(pid: i32) -> libc::user_regs_struct {
        // SAFETY: all zeroes are registers too.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        ask(libc::PTRACE_GETREGS, pid, 0, (&raw mut registers).cast());
        registers
    }

    /// Its result.
    pub fn call(pid: u32, number: u64, [first, second]: [u64; 2]) -> u64 {
        let pid = i32::try_from(pid).expect("a process id");
        let result = std::cell::Cell::new(None);
        until("the tracer waits in a system call", || {
            ask(libc::PTRACE_SEIZE, pid, 0, ptr::null_mut());
            ask(libc::PTRACE_INTERRUPT, pid, 0, ptr::null_mut());
            wait_until_stopped(pid);
            let mut before = registers(pid);
            let before_rip = before.rip - 2;
            let instruction = ask(libc::PTRACE_PEEKTEXT, pid, before_rip, ptr::null_mut()) as u64 & 0xffff;
            if instruction == SYSCALL {
                let mut call = before;
                // No call that the kernel would begin again when this one is over.
                (call.rip, call.rax, call.orig_rax) = (before_rip, number, u64::MAX);
                (call.rdi, call.rsi) = (first, second);
                ask(libc::PTRACE_SETREGS, pid, 0, (&raw mut call).cast());
                ask(libc::PTRACE_SINGLESTEP, pid, 0, ptr::null_mut());
                wait_until_stopped(pid);
                result.set(Some(registers(pid).rax));
                // The one that was interrupted begins again.
                ask(libc::PTRACE_SETREGS, pid, 0, (&raw mut before).cast());
            }
            ask(libc::PTRACE_DETACH, pid, 0, ptr::null_mut());
            result.get().is_some()
        });
        result.get().expect("it was called")
    }
}

/// A client that connected while the hook was alive, and whose SYN was answered when it was not.
#[track_caller]
fn late<'a>(client: &'a Record, outcome: &str, pair: &Pair, port: u16) -> Whole<'a> {
    let again = client.number("retransmits.syn").unwrap_or_default();
    client
        .whole("client", outcome, &pair.client)
        .ends(CLIENT_V4, SERVER_V4, port)
        .thread("hs-client")
        .within("phases.local_ns", 0..=900)
        .number_in("retransmits.syn", 1..=20)
        .also(again > 0, |whole| whole.within("retransmits.waited_ns", 900..=60_000))
        .flags(&["non_blocking"])
}

#[test]
fn ends_that_no_hook_saw_are_found_out_when_the_socket_is_destroyed() {
    const NAME: &str = "ends_that_no_hook_saw_are_found_out_when_the_socket_is_destroyed";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let tracer = Tracer::start(&[]);
    let (listener, to) = listen_in(&pair.server, 8);
    let nobody: SocketAddr = format!("{SERVER_V4}:923").parse().expect("an address");
    pair.client_reaches_server(false);
    let connect = |to| pair.client.on_thread("hs-client", || connect_without_waiting(to));
    let (refused, unread, connected) = (connect(nobody), connect(nobody), connect(to));
    if !silence(tracer.pid(), "inet_sock_set_state") {
        skip(NAME, "the tracer is made to close its own link by a debugger that knows x86-64 only");
        return;
    }
    pair.client_reaches_server(true);
    pair.client.on_thread("hs-client", || {
        let refusal = finish(&refused).expect_err("nobody listens");
        assert_eq!(refusal.kind(), io::ErrorKind::ConnectionRefused, "{refusal}");
        finish(&connected).expect("it listens");
        // Its error stays on it.
        super::traffic::until("the other is refused", || {
            !std::fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|text| text.contains(":039B 02"))
        });
    });
    let accepted = accept_in(&pair.server, &listener);
    let port_of = |socket: &socket2::Socket| {
        let local = socket.local_addr().expect("it is bound").as_socket().expect("it is IPv4");
        u64::from(local.port())
    };
    let ports = [&refused, &unread, &connected].map(port_of);
    drop((refused, unread, TcpStream::from(connected), accepted));
    let of = |role: &'static str, port: u64| {
        let end = if role == "client" { "local.port" } else { "remote.port" };
        tracer.wait_for(&format!("the {role} of port {port}"), move |record| {
            record.text("role") == Some(role) && record.number(end) == Some(port)
        })
    };
    for port in [ports[0], ports[1]] {
        let client = of("client", port);
        late(&client, "refused", &pair, nobody.port())
            .evidence("reset_received", Some("ECONNREFUSED"))
            .number("evidence.syns", client.number("retransmits.syn").expect("it was sent again") + 1)
            .present("isn.local")
            .also(has_probes(), |whole| {
                whole.within("failed_after_ns", 900..=60_000).within("phases.wire_ns", 900..=60_000)
            })
            .nothing_else();
    }
    let (client, server) = (of("client", ports[2]), of("server", ports[2]));
    late(&client, "established", &pair, to.port())
        .joined()
        .agreed(ETHERNET_MSS)
        .also(has_probes(), |whole| {
            whole.within("latency_ns", 900..=60_000).within("phases.wire_ns", 900..=60_000)
        })
        .nothing_else();
    let server = server
        .whole("server", "established", &pair.server)
        .ends(SERVER_V4, CLIENT_V4, to.port())
        .thread("hs-server");
    if has_probes() {
        // accept() tells that it is ESTABLISHED.
        server
            .joined()
            .agreed(ETHERNET_MSS)
            .served(0..=900)
            .within("phases.accept_ns", 0..=60_000)
            .queued(1..=1, 8..=8)
            .flags(&[])
            .nothing_else();
        expect_one_handshake(&client, &of("server", ports[2]));
    } else {
        // Without probes that hook alone sees a child before accept() returns it.
        server.evidence("accept_returned", None).flags(&[]).nothing_else();
    }
    let (records, log) = tracer.stop_with_log();
    let health = records.last().expect("there is a last record");
    assert_eq!(health.number("ends_unseen"), Some(3), "{health} {log:?}");
    assert_eq!(health.number("incomplete"), Some(0), "{health}");
    let ours: Vec<Record> = records
        .into_iter()
        .filter(|record| {
            [&pair.client, &pair.server].iter().any(|netns| record.number("netns") == Some(netns.inode()))
        })
        .filter(|record| record.text("kind") == Some("handshake"))
        .collect();
    assert_eq!((count(&ours, "client"), count(&ours, "server")), (3, 1), "{}: {ours:?}", attach());
}
