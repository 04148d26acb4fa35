//! Handshakes that options, sysctls and chance lead along other ways through the kernel: a listener that closes,
//! SO_REUSEPORT, repair, RST at once. Cookies and TCP_DEFER_ACCEPT are in `kept_back`.
//!
//! What a reader would get wrong: a variant is as real a handshake as any other. It has exactly one record at
//! each end, and what can't be known of it is absent.

use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::SockRef;

use super::{
    environment::{has_probes, is_fit},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    plain,
    record::{Record, all_of, count},
    traffic::{finish, half_open, loopback_listener, reset, set_option, tcp_socket, until},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, LOOPBACK_MSS, Whole, expect_one_handshake},
};

const HERE: &str = "127.0.0.1";

/// A client's whole record of an undisturbed connection on loopback, but for its flags.
#[track_caller]
fn client_of<'a>(client: &'a Record, netns: &Netns, port: u16, thread: &str) -> Whole<'a> {
    plain::client_of(client, netns, (HERE, HERE, port), thread)
}

/// What a server's record of a connection on loopback has, whichever way it came about.
#[track_caller]
fn server_of<'a>(server: &'a Record, netns: &Netns, port: u16, thread: &str) -> Whole<'a> {
    server
        .whole("server", "established", netns)
        .ends(HERE, HERE, port)
        .thread(thread)
        .joined()
        .agreed(LOOPBACK_MSS)
}

#[test]
fn a_listener_that_closes_with_a_request_pending_has_told_of_it() {
    if !is_fit("a_listener_that_closes_with_a_request_pending_has_told_of_it") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to, socket) = half_open(&pair);
    // Without migration (5.14) the request dies with its listener, at its next timer or segment.
    drop(listener);
    pair.server_reaches_client(true);
    // The client's next SYN finds nobody and is refused.
    pair.client.on_thread("hs-client", || finish(&socket).expect_err("nobody listens any more"));
    let client = watch.wait_for_end("client", to.port());
    client
        .whole("client", "refused", &pair.client)
        .evidence("reset_received", Some("ECONNREFUSED"))
        .number("evidence.syns", 2)
        .ends(CLIENT_V4, SERVER_V4, to.port())
        .thread("hs-client")
        .present("isn.local")
        .within("phases.local_ns", AT_ONCE)
        .within("phases.wire_ns", 950..=1_700)
        .within("failed_after_ns", 950..=1_700)
        .syns(1)
        .within("retransmits.waited_ns", 950..=1_400)
        .flags(&["non_blocking"])
        .nothing_else();
    if has_probes() {
        let server = watch.wait_for_end("server", to.port());
        server
            .whole("server", "cancelled", &pair.server)
            .evidence("listener_closed", None)
            .number("evidence.syn_acks", 1)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .thread("hs-listen")
            .joined()
            .agreed_half_open(ETHERNET_MSS)
            .within("phases.synack_ns", 0..=500)
            .within("failed_after_ns", 900..=1_700)
            .number("retransmits.syn_ack", 0)
            .number("retransmits.waited_ns", 0)
            .number_in("retransmits.syn_seen", 1..=2)
            .flags(&[])
            .nothing_else();
        assert_eq!(client.get("isn.local"), server.get("isn.remote"), "{client}\n{server}");
    }
    let servers = all_of(watch.end(), &pair.server);
    assert_eq!(servers.len(), usize::from(has_probes()), "{servers:?}");
}

#[test]
fn each_listener_of_a_reuseport_group_accepts_its_own() {
    const CONNECTIONS: usize = 20;
    if !is_fit("each_listener_of_a_reuseport_group_accepts_its_own") {
        return;
    }
    let netns = Netns::new("g");
    let watch = Watch::begin();
    let port = netns.on_thread("hs-client", || {
        let group = |port: u16| {
            let socket = tcp_socket();
            socket.set_reuse_port(true).expect("it can be set");
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("the group shares the port");
            socket.listen(64).expect("it can listen");
            TcpListener::from(socket)
        };
        let first = group(0);
        let to = first.local_addr().expect("it is bound");
        let second = group(to.port());
        let clients: Vec<TcpStream> =
            (0..CONNECTIONS).map(|_| TcpStream::connect(to).expect("it listens")).collect();
        for (listener, name) in [(&first, "hs-one"), (&second, "hs-two")] {
            listener.set_nonblocking(true).expect("it can be set");
            std::thread::scope(|scope| {
                std::thread::Builder::new()
                    .name(name.to_owned())
                    .spawn_scoped(scope, || while listener.accept().is_ok() {})
                    .expect("a thread can be started");
            });
        }
        drop(clients);
        to.port()
    });
    until("every connection has its record", || {
        watch.records().iter().filter(|record| record.is("server", port)).count() >= CONNECTIONS
    });
    let records = watch.end();
    let servers: Vec<_> = records.iter().filter(|record| record.is("server", port)).collect();
    assert_eq!(servers.len(), CONNECTIONS, "{records:?}");
    let of = |name: &str| servers.iter().filter(|record| record.text("process.comm") == Some(name)).count();
    assert!(of("hs-one") > 0 && of("hs-two") > 0, "both took some");
    for server in servers {
        let acceptor = server.text("process.comm").filter(|name| ["hs-one", "hs-two"].contains(name));
        server_of(server, &netns, port, acceptor.unwrap_or_else(|| panic!("one of the two: {server}")))
            .served(AT_ONCE)
            .within("phases.accept_ns", AT_ONCE)
            .queued(1..=CONNECTIONS as u64, 64..=64)
            .flags(&[])
            .nothing_else();
        let client =
            records.iter().find(|record| record.is("client", port) && record.get("id") == server.get("id"));
        let client = client.unwrap_or_else(|| panic!("no other end: {server}"));
        client_of(client, &netns, port, "hs-client").flags(&[]).nothing_else();
        expect_one_handshake(client, server);
    }
}

#[test]
fn a_socket_under_repair_is_no_handshake_on_the_wire() {
    if !is_fit("a_socket_under_repair_is_no_handshake_on_the_wire") {
        return;
    }
    const TCP_REPAIR: i32 = 19;
    let netns = Netns::new("r");
    let watch = Watch::begin();
    netns.on_thread("hs-repair", || {
        let socket = tcp_socket();
        set_option(&socket, libc::IPPROTO_TCP, TCP_REPAIR, 1);
        let own: SocketAddr = "127.0.0.1:6100".parse().expect("an address");
        let peer: SocketAddr = "127.0.0.1:6101".parse().expect("an address");
        socket.bind(&own.into()).expect("the port is free");
        socket.connect(&peer.into()).expect("under repair nobody has to be there");
        assert_eq!(SockRef::from(&socket).peer_addr().expect("it is ESTABLISHED").as_socket(), Some(peer));
    });
    // Nothing was exchanged, so there is nothing but who did it, and with whom in mind.
    watch
        .wait_for_end("client", 6101)
        .whole("client", "established", &netns)
        .ends(HERE, HERE, 6101)
        .number("local.port", 6100)
        .thread("hs-repair")
        .flags(&["repair"])
        .nothing_else();
    assert_eq!(all_of(watch.end(), &netns).len(), 1);
}

#[test]
fn a_client_that_resets_at_once_is_established_and_then_accepted() {
    if !is_fit("a_client_that_resets_at_once_is_established_and_then_accepted") {
        return;
    }
    const CONNECTIONS: usize = 200;
    let netns = Netns::new("x");
    let watch = Watch::begin();
    // Addresses of socks are used again within microseconds here.
    let port = netns.on_thread("hs-both", || {
        let (listener, to) = loopback_listener();
        for _ in 0..CONNECTIONS {
            reset(TcpStream::connect(to).expect("it listens"));
            reset(listener.accept().expect("a child is queued").0);
        }
        to.port()
    });
    until("every connection has both records", || {
        let records = watch.records();
        ["client", "server"]
            .iter()
            .all(|role| records.iter().filter(|record| record.is(role, port)).count() >= CONNECTIONS)
    });
    let records = all_of(watch.end(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (CONNECTIONS, CONNECTIONS));
    let mut keys: Vec<_> = records.iter().filter_map(|record| record.text("key")).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 2 * CONNECTIONS, "no two lives of one address share a record");
    let mut before_the_rst = 0;
    for server in records.iter().filter(|record| record.is("server", port)) {
        // The RST may wait for ksoftirqd, and accept() be faster. Then it hit a connection that somebody has.
        let accepted_first =
            server.get("flags").and_then(|flags| flags.as_array()).is_some_and(Vec::is_empty);
        before_the_rst += usize::from(accepted_first);
        server_of(server, &netns, port, "hs-both")
            .served(AT_ONCE)
            .within("phases.accept_ns", AT_ONCE)
            .queued(1..=1, 128..=4_096)
            .flags(if accepted_first { &[] } else { &["reset_in_queue"] })
            .nothing_else();
        let client =
            records.iter().find(|record| record.is("client", port) && record.get("id") == server.get("id"));
        let client = client.unwrap_or_else(|| panic!("no other end: {server}"));
        client_of(client, &netns, port, "hs-both").flags(&[]).nothing_else();
        expect_one_handshake(client, server);
    }
    assert!(
        before_the_rst * 10 < CONNECTIONS,
        "{before_the_rst} of {CONNECTIONS} were accepted before the RST came"
    );
}
