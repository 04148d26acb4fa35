//! Active opens: made, refused, unanswered, given up, impossible.
//!
//! What a reader would get wrong: latencies are asserted against what the scenario imposes (netem delays, the
//! kernel's timers) and not against another measurement.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use super::{
    environment::{can_delay, has_probes, is_fit, is_locked_down, skip},
    netns::{Netns, Pair, SERVER_V4, SERVER_V6},
    peer::Server,
    record::Record,
    traffic::{SYN_SENT, connect_without_waiting, finish, wait_for_state},
    watch::Watch,
};

/// An address in the pair's network that nobody has.
const NOBODY: &str = "192.0.2.77:81";

/// An emulated processor may stall for longer than the delay, so the best of a few connections decides; none may
/// ever be shorter than what the wire imposes.
const TRIES: usize = 6;

fn delayed_connection(listen: &str, connect: &str) {
    let pair = Pair::new();
    pair.delay_each_way(20);
    let watch = Watch::begin();
    let mut server = Server::start(&pair.server, listen);
    let to: SocketAddr = format!("{connect}:{}", server.port).parse().expect("an address");
    let undisturbed = (0..TRIES).any(|_| {
        server.accept();
        let stream =
            pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("the server listens"));
        let port = u64::from(stream.local_addr().expect("it is bound").port());
        let client = watch.wait_for("the client's record", |record| {
            record.is("client", to.port()) && record.number("local.port") == Some(port)
        });
        let accepted = watch.wait_for("the server's record", |record| {
            record.is("server", to.port()) && record.number("remote.port") == Some(port)
        });
        both_ends_agree(&pair, &server, &client, &accepted);
        let short = |record: &Record| record.number("latency_ns").is_some_and(|ns| ns <= 75_000_000);
        short(&client) && short(&accepted)
    });
    assert!(undisturbed, "none of {TRIES} connections took 40 ms: {:?}", watch.records());
    watch.end();
}

fn both_ends_agree(pair: &Pair, server: &Server, client: &Record, accepted: &Record) {
    client
        .expect_text("outcome", "established")
        .expect_absent("evidence")
        .expect_within("latency_ns", 38..=2_000)
        .expect_within("phases.wire_ns", 38..=2_000)
        .expect_within("rtt_ns", 38..=2_000)
        .expect_present("phases.local_ns")
        .expect_present("phases.wake_ns")
        .expect_number("retransmits.syn", 0)
        .expect_number("retransmits.waited_ns", 0)
        .expect_number("process.pid", u64::from(std::process::id()))
        .expect_text("process.comm", "hs-client")
        .expect_number("netns", pair.client.inode())
        .expect_absent("phases.accept_ns");
    accepted
        .expect_text("outcome", "established")
        .expect_within("latency_ns", 38..=2_000)
        .expect_within("phases.ack_ns", 38..=2_000)
        .expect_present("phases.accept_ns")
        .expect_number("retransmits.syn_ack", 0)
        .expect_number("process.pid", server.pid())
        .expect_text("process.comm", "hs-server")
        .expect_number("netns", pair.server.inode())
        .expect_absent("phases.wire_ns");
    assert_eq!(client.text("id"), accepted.text("id"), "{client}\n{accepted}");
    assert!(client.text("id").is_some(), "{client}");
    assert_eq!(client.get("isn.local"), accepted.get("isn.remote"));
    assert_eq!(client.get("local"), accepted.get("remote"));
}

#[test]
fn twenty_milliseconds_each_way_are_forty_at_both_ends_over_ipv4() {
    const NAME: &str = "twenty_milliseconds_each_way_are_forty_at_both_ends_over_ipv4";
    if is_fit(NAME) && can_delay(NAME) {
        delayed_connection("0.0.0.0:0", SERVER_V4);
    }
}

#[test]
fn twenty_milliseconds_each_way_are_forty_at_both_ends_over_ipv6() {
    const NAME: &str = "twenty_milliseconds_each_way_are_forty_at_both_ends_over_ipv6";
    if is_fit(NAME) && can_delay(NAME) {
        delayed_connection("[::]:0", &format!("[{SERVER_V6}]"));
    }
}

#[test]
fn twenty_milliseconds_each_way_are_forty_at_both_ends_over_a_mapped_address() {
    const NAME: &str = "twenty_milliseconds_each_way_are_forty_at_both_ends_over_a_mapped_address";
    if is_fit(NAME) && can_delay(NAME) {
        delayed_connection("[::]:0", &format!("[::ffff:{SERVER_V4}]"));
    }
}

#[test]
fn a_mapped_address_is_shown_as_ipv4_at_both_ends() {
    if !is_fit("a_mapped_address_is_shown_as_ipv4_at_both_ends") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let mut server = Server::start(&pair.server, "[::]:0");
    server.accept();
    let mapped: std::net::Ipv4Addr = SERVER_V4.parse().expect("an address");
    let to = SocketAddr::from((mapped.to_ipv6_mapped(), server.port));
    let _stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    for role in ["client", "server"] {
        let record = watch.wait_for_end(role, server.port);
        let address = if role == "client" { "remote.address" } else { "local.address" };
        record.expect_text("outcome", "established").expect_text(address, SERVER_V4).expect_flag("v4_mapped");
    }
    let records = watch.end();
    assert_eq!(
        records.iter().filter(|record| record.is("client", server.port)).count(),
        1,
        "nested connect()"
    );
}

#[test]
fn a_loopback_connection_has_both_ends_and_every_phase() {
    if !is_fit("a_loopback_connection_has_both_ends_and_every_phase") {
        return;
    }
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let netns = Netns::new("l");
        let watch = Watch::begin();
        let (port, accepted) = netns.on_thread("hs-both", || {
            let listener = TcpListener::bind(listen).expect("loopback is up");
            let to = listener.local_addr().expect("it has an address");
            let client = TcpStream::connect(to).expect("it listens");
            (to.port(), (client, listener.accept().expect("a child is queued")))
        });
        let client = watch.wait_for_end("client", port);
        client
            .expect_text("outcome", "established")
            .expect_present("latency_ns")
            .expect_present("phases.local_ns")
            .expect_present("phases.wake_ns")
            .expect_text("process.comm", "hs-both")
            .expect_number("netns", netns.inode());
        let server = watch.wait_for_end("server", port);
        server
            .expect_text("outcome", "established")
            .expect_present("latency_ns")
            .expect_present("phases.accept_ns")
            .expect_text("process.comm", "hs-both");
        assert_eq!(client.text("id"), server.text("id"));
        if has_probes() {
            server.expect_present("phases.synack_ns").expect_number("retransmits.syn_seen", 1);
        }
        drop(accepted);
        watch.end();
    }
}

#[test]
fn a_connect_that_does_not_wait_is_established_and_marked() {
    if !is_fit("a_connect_that_does_not_wait_is_established_and_marked") {
        return;
    }
    let pair = Pair::new();
    // The SYN-ACK comes after connect() returned only if it is held up; on loopback it would not be.
    pair.server_reaches_client(false);
    let watch = Watch::begin();
    let mut server = Server::start(&pair.server, "0.0.0.0:0");
    server.accept();
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    let _socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        pair.server_reaches_client(true);
        finish(&socket).expect("the server listens");
        socket
    });
    watch
        .wait_for_end("client", server.port)
        .expect_text("outcome", "established")
        .expect_flag("non_blocking")
        .expect_absent("phases.wake_ns");
    watch.end();
}

#[test]
fn a_closed_port_refuses_by_rst() {
    if !is_fit("a_closed_port_refuses_by_rst") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    for to in [format!("{SERVER_V4}:82"), format!("[{SERVER_V6}]:83"), "127.0.0.1:84".to_owned()] {
        let to: SocketAddr = to.parse().expect("an address");
        pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("nobody listens"));
        watch
            .wait_for_end("client", to.port())
            .expect_text("outcome", "refused")
            .expect_text("evidence.kind", "reset_received")
            .expect_text("evidence.errno", "ECONNREFUSED")
            .expect_number("evidence.syns", 1)
            .expect_number("process.pid", u64::from(std::process::id()))
            .expect_absent("latency_ns")
            .expect_absent("id");
    }
    let records = watch.end();
    assert!(!records.iter().any(|record| record.text("role") == Some("server") && is_of(record, &pair)));
}

fn is_of(record: &Record, pair: &Pair) -> bool {
    [pair.client.inode(), pair.server.inode()].into_iter().any(|inode| record.number("netns") == Some(inode))
}

#[test]
fn unanswered_syns_time_out() {
    if !is_fit("unanswered_syns_time_out") {
        return;
    }
    let pair = Pair::new();
    nobody_answers(&pair);
    pair.client.set("ipv4/tcp_syn_retries", "1");
    let watch = Watch::begin();
    let to: SocketAddr = NOBODY.parse().expect("an address");
    pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("nobody answers"));
    let record = watch.wait_for_end("client", to.port());
    record
        .expect_text("outcome", "timed_out")
        .expect_text("evidence.kind", "retransmit_timeout")
        .expect_text("evidence.errno", "ETIMEDOUT")
        .expect_absent("latency_ns")
        .expect_absent("rtt_ns");
    // One retry before 6.5, two since (tcp_syn_linear_timeouts).
    let again = record.number("retransmits.syn").expect("SYNs are counted");
    assert!((1..=2).contains(&again), "{record}");
    record.expect_number("evidence.syns", again + 1).expect_within("retransmits.waited_ns", 900..=4_000);
    watch.end();
}

fn nobody_answers(pair: &Pair) {
    pair.client.ip("neigh replace 192.0.2.77 lladdr 02:00:00:00:99:ff dev veth0 nud permanent");
}

#[test]
fn a_socket_closed_in_syn_sent_is_cancelled() {
    if !is_fit("a_socket_closed_in_syn_sent_is_cancelled") {
        return;
    }
    let pair = Pair::new();
    nobody_answers(&pair);
    let watch = Watch::begin();
    let to: SocketAddr = NOBODY.parse().expect("an address");
    pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        drop(socket);
    });
    watch
        .wait_for_end("client", to.port())
        .expect_text("outcome", "cancelled")
        .expect_text("evidence.kind", "closed_in_syn_sent")
        .expect_text("process.comm", "hs-client");
    watch.end();
}

#[test]
fn a_route_that_forbids_is_told_apart_from_one_that_is_missing() {
    const NAME: &str = "a_route_that_forbids_is_told_apart_from_one_that_is_missing";
    if !is_fit(NAME) {
        return;
    }
    let netns = Netns::new("r");
    netns.ip("route add unreachable 198.51.100.0/25");
    netns.ip("route add prohibit 198.51.100.128/25");
    let watch = Watch::begin();
    if is_locked_down() {
        skip(NAME, "under lockdown the sockaddr of a connect() that fails at once can't be read, so no port");
        return;
    }
    let cases = [
        ("203.0.113.9:91", "net_unreachable", "ENETUNREACH"),
        ("198.51.100.9:92", "host_unreachable", "EHOSTUNREACH"),
        ("198.51.100.200:93", "local_error", "EACCES"),
    ];
    for (to, outcome, errno) in cases {
        let to: SocketAddr = to.parse().expect("an address");
        netns.on_thread("hs-client", || TcpStream::connect(to).expect_err("there is no way"));
        watch
            .wait_for_end("client", to.port())
            .expect_text("outcome", outcome)
            .expect_text("evidence.kind", "connect_returned")
            .expect_text("evidence.errno", errno)
            .expect_text("remote.address", &to.ip().to_string())
            .expect_number("process.pid", u64::from(std::process::id()))
            .expect_absent("latency_ns")
            .expect_absent("phases.wire_ns");
    }
    watch.end();
}

#[test]
fn a_connect_that_fails_at_once_is_told_under_lockdown_too() {
    if !is_fit("a_connect_that_fails_at_once_is_told_under_lockdown_too") {
        return;
    }
    let netns = Netns::new("r");
    let watch = Watch::begin();
    let to = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9), 94));
    netns.on_thread("hs-client", || TcpStream::connect(to).expect_err("there is no way"));
    watch
        .wait_for("the failed connect()", |record| {
            record.text("kind") == Some("handshake") && record.number("netns") == Some(netns.inode())
        })
        .expect_text("outcome", "net_unreachable")
        .expect_text("evidence.errno", "ENETUNREACH");
    watch.end();
}

#[test]
fn a_later_connect_that_collects_the_error_is_no_second_handshake() {
    if !is_fit("a_later_connect_that_collects_the_error_is_no_second_handshake") {
        return;
    }
    let pair = Pair::new();
    // Nobody has the address, so its resolution fails: after 30 ms instead of three seconds.
    pair.client.set("ipv4/neigh/veth0/retrans_time_ms", "10");
    let watch = Watch::begin();
    let to: SocketAddr = NOBODY.parse().expect("an address");
    pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        let mut wanted = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::OUT)];
        rustix::event::poll(&mut wanted, None).expect("a socket can be polled");
        let error = socket.connect(&to.into()).expect_err("it collects the error of the first");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::HOSTUNREACH.raw_os_error()));
    });
    watch
        .wait_for_end("client", to.port())
        .expect_text("outcome", "host_unreachable")
        .expect_text("evidence.errno", "EHOSTUNREACH")
        .expect_number("evidence.syns", 1);
    let records = watch.end();
    let of_it = records.iter().filter(|record| {
        record.is("client", to.port()) && record.number("netns") == Some(pair.client.inode())
    });
    assert_eq!(of_it.count(), 1, "{records:?}");
}

#[test]
fn no_free_port_is_a_local_error_and_no_refusal() {
    if !is_fit("no_free_port_is_a_local_error_and_no_refusal") {
        return;
    }
    let netns = Netns::new("p");
    netns.set("ipv4/ip_local_port_range", "40000 40000");
    let watch = Watch::begin();
    let port = netns.on_thread("hs-client", || {
        let listener = TcpListener::bind("127.0.0.1:7000").expect("loopback is up");
        let to = listener.local_addr().expect("it has an address");
        let _first = TcpStream::connect(to).expect("one port is free");
        let error = TcpStream::connect(to).expect_err("no port is left");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::ADDRNOTAVAIL.raw_os_error()));
        to.port()
    });
    watch
        .wait_for("the connect() without a port", |record| {
            record.text("outcome") == Some("local_error") && record.number("netns") == Some(netns.inode())
        })
        .expect_text("evidence.errno", "EADDRNOTAVAIL")
        .expect_number("remote.port", u64::from(port))
        .expect_absent("latency_ns")
        .expect_absent("retransmits.syn");
    let records = watch.end();
    let outcomes: Vec<_> = records.iter().filter(|record| record.is("client", port)).collect();
    assert_eq!(outcomes.len(), 2, "one record for each connect(): {outcomes:?}");
}
