//! Who gave up, and after how long: the application, its own time-out, the kernel's, or the way there.
//!
//! What a reader would get wrong: a connect() that returned EINPROGRESS because SO_SNDTIMEO ran out has not
//! failed; its socket stays in SYN-SENT until somebody closes it.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use rustix::io::Errno;
use socket2::{SockRef, Socket};

use super::{
    environment::{has_probes, in_vm, is_fit, run, skip},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    plain::{expect_counts, expect_server},
    record::{Record, all_of},
    traffic::{
        SYN_SENT, accept_in, connect_without_waiting, finish, half_open, listen_in, set_option, tcp_socket,
        until, wait_for_state, wait_for_syn_again,
    },
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, Whole, expect_one_handshake},
};

const NOBODY_V4: &str = "192.0.2.77";
const NOBODY: &str = "192.0.2.77:181";

/// A pair in which what is sent to [`NOBODY`] leaves and is never answered.
fn nobody_answers() -> (Pair, SocketAddr) {
    let pair = Pair::new();
    pair.nobody_has(NOBODY_V4);
    (pair, NOBODY.parse().expect("an address"))
}

/// A client's whole record of a SYN that nobody answered, but for who gave up and when.
#[track_caller]
fn unanswered<'a>(record: &'a Record, outcome: &str, netns: &Netns, port: u16, again: u64) -> Whole<'a> {
    record
        .whole("client", outcome, netns)
        .number("evidence.syns", again + 1)
        .ends(CLIENT_V4, NOBODY_V4, port)
        .present("isn.local")
        .within("phases.local_ns", AT_ONCE)
        .syns(again)
}

/// No other record of this connection. A namespace's inode number is soon another one's, so the port is asked too.
#[track_caller]
fn expect_one(watch: Watch, netns: &Netns, port: u16) {
    let records = all_of(watch.end(), netns);
    let to = |record: &&Record| record.number("remote.port") == Some(port.into());
    assert_eq!(records.iter().filter(to).count(), 1, "{records:?}");
}

#[test]
fn unanswered_syns_time_out() {
    if !is_fit("unanswered_syns_time_out") {
        return;
    }
    let (pair, to) = nobody_answers();
    pair.client.set("ipv4/tcp_syn_retries", "1");
    let watch = Watch::begin();
    pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("nobody answers"));
    let record = watch.wait_in(&pair.client, "client", to.port());
    // One retry before 6.5, two since (tcp_syn_linear_timeouts).
    let again = record.number("retransmits.syn").expect("SYNs are counted");
    assert!((1..=2).contains(&again), "{record}");
    unanswered(&record, "timed_out", &pair.client, to.port(), again)
        .evidence("retransmit_timeout", Some("ETIMEDOUT"))
        .thread("hs-client")
        // The kernel gave up: after 3 s, whether it tried twice or three times.
        .within("failed_after_ns", 2_900..=5_000)
        .within("retransmits.waited_ns", again * 950..=again * 1_000 + 1_500)
        .flags(&[])
        .nothing_else();
    expect_one(watch, &pair.client, to.port());
}

#[test]
fn a_socket_closed_in_syn_sent_is_cancelled() {
    if !is_fit("a_socket_closed_in_syn_sent_is_cancelled") {
        return;
    }
    for again in [0, 1] {
        let (pair, to) = nobody_answers();
        let watch = Watch::begin();
        pair.client.on_thread("hs-client", || {
            let _socket = connect_without_waiting(to);
            wait_for_state(to.port(), SYN_SENT);
            if again == 1 {
                wait_for_syn_again(to.port());
            }
        });
        // The application gave up, before or after the first retransmission.
        let record = watch.wait_in(&pair.client, "client", to.port());
        unanswered(&record, "cancelled", &pair.client, to.port(), again)
            .evidence("closed_in_syn_sent", None)
            .thread("hs-client")
            // 5.10 was seen to send the second SYN after two seconds.
            .within("failed_after_ns", again * 950..=again * 2_500 + 900)
            .also(again == 1, |whole| whole.within("retransmits.waited_ns", 950..=1_500))
            .flags(&["non_blocking"])
            .nothing_else();
        expect_one(watch, &pair.client, to.port());
    }
}

#[test]
fn a_connect_that_its_own_timeout_ended_is_cancelled_at_close() {
    if !is_fit("a_connect_that_its_own_timeout_ended_is_cancelled_at_close") {
        return;
    }
    let (pair, to) = nobody_answers();
    let watch = Watch::begin();
    pair.client.on_thread("hs-client", || {
        let socket = tcp_socket();
        socket.set_write_timeout(Some(Duration::from_millis(200))).expect("SO_SNDTIMEO can be set");
        let error = socket.connect(&to.into()).expect_err("nobody answers");
        assert_eq!(error.raw_os_error(), Some(Errno::INPROGRESS.raw_os_error()));
    });
    let record = watch.wait_in(&pair.client, "client", to.port());
    unanswered(&record, "cancelled", &pair.client, to.port(), 0)
        .evidence("closed_in_syn_sent", None)
        .thread("hs-client")
        .within("failed_after_ns", 190..=900)
        .flags(&["non_blocking"])
        .nothing_else();
    expect_one(watch, &pair.client, to.port());
}

#[test]
fn tcp_user_timeout_is_a_timeout_of_the_kernel() {
    if !is_fit("tcp_user_timeout_is_a_timeout_of_the_kernel") {
        return;
    }
    let (pair, to) = nobody_answers();
    let watch = Watch::begin();
    pair.client.on_thread("hs-client", || {
        let socket = tcp_socket();
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 1_500);
        let error = socket.connect(&to.into()).expect_err("nobody answers");
        assert_eq!(error.raw_os_error(), Some(Errno::TIMEDOUT.raw_os_error()));
    });
    let record = watch.wait_in(&pair.client, "client", to.port());
    // The timer may find the time over at its next turn only, and sends once more before that.
    let again = record.number("retransmits.syn").expect("SYNs are counted");
    assert!((1..=2).contains(&again), "{record}");
    unanswered(&record, "timed_out", &pair.client, to.port(), again)
        .evidence("retransmit_timeout", Some("ETIMEDOUT"))
        .thread("hs-client")
        .within("retransmits.waited_ns", 950..=3_500)
        .within("failed_after_ns", 1_450..=4_000)
        .flags(&[])
        .nothing_else();
    expect_one(watch, &pair.client, to.port());
}

#[test]
fn connect_to_af_unspec_in_syn_sent_cancels() {
    if !is_fit("connect_to_af_unspec_in_syn_sent_cancels") {
        return;
    }
    let (pair, to) = nobody_answers();
    let watch = Watch::begin();
    pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        disconnect(&socket);
        // The socket is as good as new: its next connect() is another handshake.
        let error = socket.connect(&to.into()).expect_err("it is non-blocking");
        assert_eq!(error.raw_os_error(), Some(Errno::INPROGRESS.raw_os_error()));
        wait_for_state(to.port(), SYN_SENT);
    });
    let records = || all_of(watch.records(), &pair.client);
    until("each connect() has its record", || records().len() >= 2);
    for record in records() {
        unanswered(&record, "cancelled", &pair.client, to.port(), 0)
            .evidence("closed_in_syn_sent", None)
            .thread("hs-client")
            .within("failed_after_ns", AT_ONCE)
            .flags(&["non_blocking"])
            .nothing_else();
    }
    let records = all_of(watch.end(), &pair.client);
    assert_eq!(records.len(), 2, "{records:?}");
    assert_ne!(records[0].get("key"), records[1].get("key"));
    assert_ne!(records[0].get("isn.local"), records[1].get("isn.local"));
}

/// connect() with AF_UNSPEC, which TCP takes for "give up".
fn disconnect(socket: &Socket) {
    let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let size = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address is a sockaddr of this function, of which the size is given.
    let result =
        unsafe { libc::connect(std::os::fd::AsRawFd::as_raw_fd(socket), &raw const unspecified, size) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_process_that_is_killed_while_it_connects_leaves_a_cancelled_handshake() {
    if !is_fit("a_process_that_is_killed_while_it_connects_leaves_a_cancelled_handshake") {
        return;
    }
    let (pair, to) = nobody_answers();
    let watch = Watch::begin();
    let name = pair.client.name().to_owned();
    let mut child = std::process::Command::new("ip")
        .args(["netns", "exec", &name, "busybox", "nc", "192.0.2.77", "181"])
        .stdin(std::process::Stdio::null())
        .spawn()
        .expect("it can be started");
    pair.client.on_thread("hs-wait", || wait_for_state(to.port(), SYN_SENT));
    child.kill().expect("it runs");
    child.wait().expect("it can be waited for");
    let record = watch.wait_in(&pair.client, "client", to.port());
    unanswered(&record, "cancelled", &pair.client, to.port(), 0)
        .evidence("closed_in_syn_sent", None)
        .process(u64::from(child.id()), "busybox")
        .within("failed_after_ns", AT_ONCE)
        // The signal interrupts connect() first; exit() closes the socket then.
        .flags(&["non_blocking"])
        .nothing_else();
    expect_one(watch, &pair.client, to.port());
}

#[test]
fn an_icmp_ends_a_handshake_without_any_rst() {
    const NAME: &str = "an_icmp_ends_a_handshake_without_any_rst";
    if !is_fit(NAME) {
        return;
    }
    if !in_vm() {
        skip(NAME, "this kernel has no nf_tables");
        return;
    }
    let cases = [
        ("port-unreachable", 191, "refused", "ECONNREFUSED"),
        ("host-unreachable", 192, "host_unreachable", "EHOSTUNREACH"),
        ("net-unreachable", 193, "net_unreachable", "ENETUNREACH"),
        ("admin-prohibited", 194, "host_unreachable", "EHOSTUNREACH"),
    ];
    let pair = Pair::new();
    let nft = |rule: &str| run(&format!("ip netns exec {} nft {rule}", pair.server.name()));
    nft("add table ip hs");
    nft("add chain ip hs input { type filter hook input priority 0 ; }");
    for (icmp, port, _, _) in cases {
        nft(&format!("add rule ip hs input tcp dport {port} reject with icmp type {icmp}"));
    }
    let watch = Watch::begin();
    for (_, port, outcome, errno) in cases {
        let to: SocketAddr = format!("{SERVER_V4}:{port}").parse().expect("an address");
        pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("it is rejected"));
        let record = watch.wait_in(&pair.client, "client", port);
        // An ICMP that comes while connect() still holds the socket, as over veth, only leaves sk_err_soft; then
        // the next SYN's ends it.
        let again = record.number("retransmits.syn").expect("SYNs are counted");
        assert!(again <= 1, "{record}");
        record
            .whole("client", outcome, &pair.client)
            .evidence("socket_error", Some(errno))
            .number("evidence.syns", again + 1)
            .ends(CLIENT_V4, SERVER_V4, port)
            .thread("hs-client")
            .present("isn.local")
            .within("phases.local_ns", AT_ONCE)
            // 5.10 was seen to send the second SYN after two seconds.
            .within("failed_after_ns", again * 950..=again * 2_500 + 900)
            .syns(again)
            .also(again == 1, |whole| whole.within("retransmits.waited_ns", 950..=3_400))
            .flags(&[])
            .nothing_else();
    }
    assert_eq!(all_of(watch.end(), &pair.client).len(), cases.len());
}

#[test]
fn a_namespace_that_goes_while_a_handshake_is_open_takes_it_along() {
    if !is_fit("a_namespace_that_goes_while_a_handshake_is_open_takes_it_along") {
        return;
    }
    let (pair, to) = nobody_answers();
    let watch = Watch::begin();
    // Without a name for it the namespace lives as long as its sockets, and here for the assertions below.
    let Pair { client, server } = pair;
    let socket = client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        socket
    });
    let client = client.lose_name();
    drop((server, socket));
    let record = watch.wait_in(&client, "client", to.port());
    // A busy machine may take its name away later than the kernel waits for an answer.
    let again = record.number("retransmits.syn").expect("SYNs are counted");
    assert!(again <= 2, "{record}");
    unanswered(&record, "cancelled", &client, to.port(), again)
        .evidence("closed_in_syn_sent", None)
        .thread("hs-client")
        .within("failed_after_ns", again * 950..=again * 2_500 + 900)
        .also(again > 0, |whole| whole.within("retransmits.waited_ns", 950..=3_500))
        .flags(&["non_blocking"])
        .nothing_else();
    assert_eq!(all_of(watch.end(), &client).len(), 1);
}

#[test]
fn a_namespace_that_goes_with_a_request_half_open_has_told_of_it() {
    if !is_fit("a_namespace_that_goes_with_a_request_half_open_has_told_of_it") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to, socket) = half_open(&pair);
    let Pair { client, server } = pair;
    // The request outlives its listener until its timer, in a namespace that has no name any more.
    let server = server.lose_name();
    drop((listener, client));
    if has_probes() {
        let record = watch.wait_in(&server, "server", to.port());
        let syn_acks = record.number("evidence.syn_acks").expect("SYN-ACKs are counted");
        record
            .whole("server", "cancelled", &server)
            .evidence("listener_closed", None)
            .number("evidence.syn_acks", syn_acks)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .thread("hs-listen")
            .joined()
            .agreed_half_open(ETHERNET_MSS)
            .within("failed_after_ns", 500..=3_500)
            .within("phases.synack_ns", 0..=500)
            .number("retransmits.syn_ack", syn_acks - 1)
            .present("retransmits.waited_ns")
            .number_in("retransmits.syn_seen", 1..=2)
            .flags(&[])
            .nothing_else();
    }
    drop(socket);
    let servers = all_of(watch.end(), &server);
    assert_eq!(servers.len(), usize::from(has_probes()), "{servers:?}");
}

#[test]
fn a_socket_that_lingers_in_syn_sent_after_its_timeout_can_still_be_established() {
    if !is_fit("a_socket_that_lingers_in_syn_sent_after_its_timeout_can_still_be_established") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = listen_in(&pair.server, 128);
    pair.client_reaches_server(false);
    let socket = pair.client.on_thread("hs-client", || {
        let socket = tcp_socket();
        socket.set_write_timeout(Some(Duration::from_millis(100))).expect("SO_SNDTIMEO can be set");
        let error = socket.connect(&to.into()).expect_err("the SYN goes nowhere");
        assert_eq!(error.raw_os_error(), Some(Errno::INPROGRESS.raw_os_error()));
        pair.client_reaches_server(true);
        finish(&socket).expect("the second SYN arrives");
        assert!(SockRef::from(&socket).peer_addr().is_ok());
        socket
    });
    let accepted = accept_in(&pair.server, &listener);
    let client = watch.wait_for_end("client", to.port());
    client
        .whole("client", "established", &pair.client)
        .ends(CLIENT_V4, SERVER_V4, to.port())
        .thread("hs-client")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("phases.local_ns", AT_ONCE)
        .within("latency_ns", 950..=2_700)
        .within("phases.wire_ns", 950..=2_700)
        // On a busy machine there may be a third SYN before the link leads somewhere.
        .number_in("retransmits.syn", 1..=2)
        .within("retransmits.waited_ns", 950..=2_400)
        .flags(&["non_blocking"])
        .nothing_else();
    // The lost SYN is nothing that a server could know of.
    let server = watch.wait_for_end("server", to.port());
    expect_server(&server, &pair.server, (SERVER_V4, CLIENT_V4, to.port()), "hs-server");
    expect_one_handshake(&client, &server);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 1)]);
    drop((socket, accepted));
}
