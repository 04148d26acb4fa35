//! Active opens: made, refused, asked about again and again. Who gives up is in `giving_up`.
//!
//! What a reader would get wrong: latencies are asserted against what the scenario imposes (netem delays, the
//! kernel's timers) and not against another measurement.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use rustix::io::Errno;

use super::{
    environment::{can_delay, has_probes, in_vm, is_fit},
    netns::{CLIENT_V4, CLIENT_V6, Netns, Pair, SERVER_V4, SERVER_V6},
    peer::Server,
    plain::{expect_counts, expect_server},
    record::{Record, all_of},
    traffic::{SYN_SENT, accept_in, connect_without_waiting, finish, listen_in, until, wait_for_state},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, LOOPBACK_MSS, LOOPBACK_V6_MSS, expect_one_handshake},
};

/// An address in the pair's network that nobody has.
const NOBODY: &str = "192.0.2.77:81";

/// An emulated processor may stall for longer than the delay, so the best of a few connections decides; none may
/// ever be shorter than what the wire imposes.
const TRIES: usize = 6;

/// How a connection between the pair's ends is made, and how it is shown.
struct Way {
    listen: &'static str,
    connect: &'static str,
    shown: (&'static str, &'static str),
    mss: u64,
    flags: &'static [&'static str],
}

const OVER_IPV4: Way = Way {
    listen: "0.0.0.0:0",
    connect: SERVER_V4,
    shown: (CLIENT_V4, SERVER_V4),
    mss: ETHERNET_MSS,
    flags: &[],
};

const OVER_IPV6: Way = Way {
    listen: "[::]:0",
    connect: "[fd00:99::2]",
    shown: (CLIENT_V6, SERVER_V6),
    mss: ETHERNET_MSS - 20,
    flags: &[],
};

const OVER_MAPPED: Way =
    Way { listen: "[::]:0", connect: "[::ffff:192.0.2.2]", flags: &["v4_mapped"], ..OVER_IPV4 };

/// Both records of one connection between the pair's ends, the server's in a process of its own.
fn both_ends(watch: &Watch, pair: &Pair, server: &mut Server, way: &Way, least: u64) -> (Record, Record) {
    let to: SocketAddr = format!("{}:{}", way.connect, server.port).parse().expect("an address");
    server.accept();
    let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("the server listens"));
    let port = u64::from(stream.local_addr().expect("it is bound").port());
    let client = watch.wait_for("the client's record", |record| {
        record.is("client", to.port()) && record.number("local.port") == Some(port)
    });
    let accepted = watch.wait_for("the server's record", |record| {
        record.is("server", to.port()) && record.number("remote.port") == Some(port)
    });
    client
        .whole("client", "established", &pair.client)
        .ends(way.shown.0, way.shown.1, to.port())
        .thread("hs-client")
        .joined()
        .agreed(way.mss)
        .within("latency_ns", least..=2_000)
        .answered(least..=2_000)
        .called_and_returned()
        .flags(way.flags)
        .nothing_else();
    accepted
        .whole("server", "established", &pair.server)
        .ends(way.shown.1, way.shown.0, to.port())
        .process(server.pid(), "hs-server")
        .joined()
        .agreed(way.mss)
        .served(least..=2_000)
        .within("phases.accept_ns", AT_ONCE)
        .queued(1..=1, 128..=4096)
        .flags(way.flags)
        .nothing_else();
    expect_one_handshake(&client, &accepted);
    (client, accepted)
}

fn delayed_connection(way: &Way) {
    let pair = Pair::new();
    pair.delay_each_way(20);
    let watch = Watch::begin();
    let mut server = Server::start(&pair.server, way.listen);
    let undisturbed = (0..TRIES).any(|_| {
        let (client, accepted) = both_ends(&watch, &pair, &mut server, way, 38);
        let short = |record: &Record| record.number("latency_ns").is_some_and(|ns| ns <= 75_000_000);
        short(&client) && short(&accepted)
    });
    assert!(undisturbed, "none of {TRIES} connections took 40 ms: {:?}", watch.records());
    watch.end();
}

#[test]
fn twenty_milliseconds_each_way_are_forty_at_both_ends_over_ipv4() {
    const NAME: &str = "twenty_milliseconds_each_way_are_forty_at_both_ends_over_ipv4";
    if is_fit(NAME) && can_delay(NAME) {
        delayed_connection(&OVER_IPV4);
    }
}

#[test]
fn twenty_milliseconds_each_way_are_forty_at_both_ends_over_ipv6() {
    const NAME: &str = "twenty_milliseconds_each_way_are_forty_at_both_ends_over_ipv6";
    if is_fit(NAME) && can_delay(NAME) {
        delayed_connection(&OVER_IPV6);
    }
}

#[test]
fn twenty_milliseconds_each_way_are_forty_at_both_ends_over_a_mapped_address() {
    const NAME: &str = "twenty_milliseconds_each_way_are_forty_at_both_ends_over_a_mapped_address";
    if is_fit(NAME) && can_delay(NAME) {
        delayed_connection(&OVER_MAPPED);
    }
}

#[test]
fn a_connection_between_two_processes_is_told_by_each_end_for_its_own() {
    if !is_fit("a_connection_between_two_processes_is_told_by_each_end_for_its_own") {
        return;
    }
    for way in [OVER_IPV4, OVER_IPV6, OVER_MAPPED] {
        let pair = Pair::new();
        let watch = Watch::begin();
        let mut server = Server::start(&pair.server, way.listen);
        both_ends(&watch, &pair, &mut server, &way, 0);
        let records = watch.end();
        for netns in [&pair.client, &pair.server] {
            let records = all_of(records.clone(), netns);
            assert_eq!(records.len(), 1, "connect() is nested where the address is mapped: {records:?}");
        }
    }
}

#[test]
fn a_loopback_connection_has_both_ends_and_every_phase() {
    if !is_fit("a_loopback_connection_has_both_ends_and_every_phase") {
        return;
    }
    for (listen, address, mss) in
        [("127.0.0.1:0", "127.0.0.1", LOOPBACK_MSS), ("[::1]:0", "::1", LOOPBACK_V6_MSS)]
    {
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
            .whole("client", "established", &netns)
            .ends(address, address, port)
            .thread("hs-both")
            .joined()
            .agreed(mss)
            .within("latency_ns", AT_ONCE)
            .answered(AT_ONCE)
            .called_and_returned()
            .flags(&[])
            .nothing_else();
        let server = watch.wait_for_end("server", port);
        server
            .whole("server", "established", &netns)
            .ends(address, address, port)
            .thread("hs-both")
            .joined()
            .agreed(mss)
            .served(AT_ONCE)
            .within("phases.accept_ns", AT_ONCE)
            .queued(1..=1, 128..=4096)
            .flags(&[])
            .nothing_else();
        expect_one_handshake(&client, &server);
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
    let (listener, to) = listen_in(&pair.server, 128);
    // The SYN-ACK comes after connect() returned only if it is held up; over veth it would not be.
    if in_vm() {
        pair.delay_each_way(100);
    } else {
        pair.server_reaches_client(false);
    }
    let watch = Watch::begin();
    let socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        pair.server_reaches_client(true);
        finish(&socket).expect("the server listens");
        socket
    });
    let accepted = accept_in(&pair.server, &listener);
    let (client, server) = (watch.wait_for_end("client", to.port()), watch.wait_for_end("server", to.port()));
    let took = if in_vm() { 195..=900 } else { 900..=1_700 };
    let again = client.number("retransmits.syn");
    client
        .whole("client", "established", &pair.client)
        .ends(CLIENT_V4, SERVER_V4, to.port())
        .thread("hs-client")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("latency_ns", took.clone())
        .within("phases.wire_ns", took.clone())
        .within("phases.local_ns", AT_ONCE)
        // Who sends again first, client or server, is chance; a delay alone makes neither do it.
        .number_in("retransmits.syn", 0..=u64::from(!in_vm()))
        .also(again == Some(0), |whole| whole.number("retransmits.waited_ns", 0).within("rtt_ns", took))
        .also(again == Some(1), |whole| whole.within("retransmits.waited_ns", 900..=1_500))
        .flags(&["non_blocking"])
        .nothing_else();
    let whole = server
        .whole("server", "established", &pair.server)
        .ends(SERVER_V4, CLIENT_V4, to.port())
        .thread("hs-server")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("phases.accept_ns", AT_ONCE)
        .queued(1..=1, 128..=128)
        .flags(&[]);
    if in_vm() {
        whole.served(195..=900).nothing_else();
    } else {
        // Its first SYN-ACK was lost.
        whole
            .within("latency_ns", 900..=1_700)
            .number_in("retransmits.syn_ack", 1..=2)
            .within("retransmits.waited_ns", 900..=1_500)
            .also(has_probes(), |whole| {
                whole
                    .within("phases.synack_ns", 0..=500)
                    .within("phases.ack_ns", 900..=1_700)
                    .number_in("retransmits.syn_seen", 1..=2)
            })
            .nothing_else();
    }
    expect_one_handshake(&client, &server);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 1)]);
    drop((socket, accepted));
}

#[test]
fn connect_called_again_and_again_is_one_handshake_from_the_first_call() {
    if !is_fit("connect_called_again_and_again_is_one_handshake_from_the_first_call") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = listen_in(&pair.server, 128);
    pair.client_reaches_server(false);
    let socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        let call_again = || {
            let error = socket.connect(&to.into()).err().and_then(|error| error.raw_os_error());
            error.map(Errno::from_raw_os_error)
        };
        wait_for_state(to.port(), SYN_SENT);
        (0..10).for_each(|_| assert_eq!(call_again(), Some(Errno::ALREADY)));
        pair.client_reaches_server(true);
        // As programs do that poll by connect(): EALREADY until it says that it is connected, once; then EISCONN.
        until("connect() says that it is connected", || call_again() != Some(Errno::ALREADY));
        (0..10).for_each(|_| assert_eq!(call_again(), Some(Errno::ISCONN)));
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
        .within("latency_ns", 950..=1_700)
        .within("phases.wire_ns", 950..=1_700)
        .within("phases.local_ns", AT_ONCE)
        .syns(1)
        .within("retransmits.waited_ns", 950..=1_400)
        .flags(&["non_blocking"])
        .nothing_else();
    // The lost SYN is nothing that a server could know of.
    let server = watch.wait_for_end("server", to.port());
    expect_server(&server, &pair.server, (SERVER_V4, CLIENT_V4, to.port()), "hs-server");
    expect_one_handshake(&client, &server);
    // Twenty calls more are no handshakes more.
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 1)]);
    drop((socket, accepted));
}

#[test]
fn a_closed_port_refuses_by_rst() {
    if !is_fit("a_closed_port_refuses_by_rst") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let cases = [
        (format!("{SERVER_V4}:82"), CLIENT_V4),
        (format!("[{SERVER_V6}]:83"), CLIENT_V6),
        ("127.0.0.1:84".to_owned(), "127.0.0.1"),
    ];
    for (to, from) in cases {
        let to: SocketAddr = to.parse().expect("an address");
        pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("nobody listens"));
        watch
            .wait_for_end("client", to.port())
            .whole("client", "refused", &pair.client)
            .evidence("reset_received", Some("ECONNREFUSED"))
            .number("evidence.syns", 1)
            .ends(from, &to.ip().to_string(), to.port())
            .thread("hs-client")
            .present("isn.local")
            .within("failed_after_ns", AT_ONCE)
            .answered(AT_ONCE)
            .within("phases.local_ns", AT_ONCE)
            .flags(&[])
            .nothing_else();
    }
    let records = watch.end();
    assert_eq!(all_of(records.clone(), &pair.client).len(), 3, "{records:?}");
    assert_eq!(all_of(records, &pair.server), [], "a refusal is nobody's passive open");
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
        assert_eq!(error.raw_os_error(), Some(Errno::HOSTUNREACH.raw_os_error()));
    });
    let record = watch.wait_in(&pair.client, "client", to.port());
    // The SYN that waited for the address dies with the resolution, and where the kernel names a reason, it says so.
    let told = record.get("dropped").is_some();
    assert_eq!(told, super::environment::has_drop_reasons(), "{record}");
    record
        .whole("client", "host_unreachable", &pair.client)
        .evidence("socket_error", Some("EHOSTUNREACH"))
        .number("evidence.syns", 1)
        .ends(CLIENT_V4, &Ipv4Addr::new(192, 0, 2, 77).to_string(), to.port())
        .thread("hs-client")
        .present("isn.local")
        .within("failed_after_ns", 20..=900)
        .within("phases.local_ns", AT_ONCE)
        .syns(0)
        .also(told, |whole| {
            whole
                .number("dropped.segments", 1)
                .text("dropped.cause", "drop_reason")
                .text("dropped.reason", "NEIGH_FAILED")
        })
        .flags(if told { &["non_blocking", "syn_dropped"] } else { &["non_blocking"] })
        .nothing_else();
    let records = all_of(watch.end(), &pair.client);
    assert_eq!(records.len(), 1, "{records:?}");
}
