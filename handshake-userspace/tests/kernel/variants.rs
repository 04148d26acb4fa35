//! Handshakes that options, sysctls and chance lead along other ways through the kernel: cookies,
//! TCP_DEFER_ACCEPT, simultaneous open, TIME-WAIT, repair, SO_REUSEPORT.
//!
//! What a reader would get wrong: a variant is as real a handshake as any other. It has exactly one record at
//! each end, and what can't be known of it is absent.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use socket2::SockRef;

use super::{
    environment::{has_probes, is_fit},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    record::{all_of, count},
    traffic::{
        connect_without_waiting, finish, loopback_listener, reset, set_option, tcp_socket, until,
        wait_for_request,
    },
    watch::Watch,
};

#[test]
fn a_connection_from_a_syn_cookie_has_a_server_record_without_invented_times() {
    if !is_fit("a_connection_from_a_syn_cookie_has_a_server_record_without_invented_times") {
        return;
    }
    let netns = Netns::new("k");
    netns.set("ipv4/tcp_syncookies", "2");
    let watch = Watch::begin();
    let port = netns.on_thread("hs-both", || {
        let (listener, to) = loopback_listener();
        let _client = TcpStream::connect(to).expect("it listens");
        drop(listener.accept().expect("a child is queued"));
        to.port()
    });
    let client = watch.wait_for_end("client", port);
    let server = watch.wait_for_end("server", port);
    client.expect_text("outcome", "established");
    server
        .expect_text("outcome", "established")
        .expect_text("process.comm", "hs-both")
        .expect_absent("rtt_ns")
        .expect_absent("phases.synack_ns")
        .expect_absent("phases.ack_ns")
        .expect_absent("retransmits.syn_ack")
        .expect_present("phases.accept_ns");
    if has_probes() {
        server.expect_flag("syn_cookie");
    }
    assert_eq!(client.text("id"), server.text("id"), "{client}\n{server}");
    let records = all_of(watch.end(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (1, 1), "{records:?}");
}

#[test]
fn tcp_defer_accept_waits_for_data_and_says_so() {
    if !is_fit("tcp_defer_accept_waits_for_data_and_says_so") {
        return;
    }
    let netns = Netns::new("d");
    let watch = Watch::begin();
    let port = netns.on_thread("hs-both", || {
        let (listener, to) = loopback_listener();
        set_option(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5);
        let mut client = TcpStream::connect(to).expect("it listens");
        // The wait for the application's data is the scenario.
        std::thread::sleep(Duration::from_millis(150));
        client.write_all(b"x").expect("it is connected");
        drop(listener.accept().expect("a child is queued"));
        to.port()
    });
    watch
        .wait_for_end("client", port)
        .expect_text("outcome", "established")
        .expect_within("latency_ns", 0..=100);
    let server = watch.wait_for_end("server", port);
    server
        .expect_text("outcome", "established")
        .expect_text("process.comm", "hs-both")
        .expect_absent("rtt_ns")
        .expect_absent("kernel_rtt_us")
        .expect_within("latency_ns", 140..=900);
    if has_probes() {
        server.expect_flag("defer_accept");
    }
    let records = all_of(watch.end(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (1, 1), "{records:?}");
}

#[test]
fn two_syns_that_cross_are_one_handshake_at_each_end() {
    if !is_fit("two_syns_that_cross_are_one_handshake_at_each_end") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    // Both SYNs are sent into the void; the second ones meet.
    pair.client_reaches_server(false);
    pair.server_reaches_client(false);
    let open = |netns: &Netns, own: &str, other: &str| {
        let (own, other): (SocketAddr, SocketAddr) =
            (own.parse().expect("an address"), other.parse().expect("an address"));
        netns.on_thread("hs-crossing", move || {
            let socket = tcp_socket();
            socket.set_reuse_address(true).expect("it can be set");
            socket.bind(&own.into()).expect("the port is free");
            socket.set_nonblocking(true).expect("it can be set");
            let error = socket.connect(&other.into()).expect_err("it is non-blocking");
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::INPROGRESS.raw_os_error()));
            socket
        })
    };
    let (one, other) = (format!("{CLIENT_V4}:6001"), format!("{SERVER_V4}:6002"));
    let first = open(&pair.client, &one, &other);
    let second = open(&pair.server, &other, &one);
    pair.client_reaches_server(true);
    pair.server_reaches_client(true);
    pair.client.on_thread("hs-wait", || finish(&first).expect("they cross"));
    pair.server.on_thread("hs-wait", || finish(&second).expect("they cross"));
    let of = |netns: &Netns| {
        let inode = netns.inode();
        watch.wait_for("the end of a simultaneous open", move |record| {
            record.text("kind") == Some("handshake") && record.number("netns") == Some(inode)
        })
    };
    let (one, other) = (of(&pair.client), of(&pair.server));
    for record in [&one, &other] {
        record.expect_text("outcome", "established").expect_text("process.comm", "hs-crossing");
    }
    // One of the second SYNs is sent first. Its receiver answers from SYN-SENT; if its own SYN has not left by
    // then, the other end meets a SYN-ACK and is a client like any other.
    let crossed = [&one, &other].into_iter().filter(|record| record.text("role") == Some("simultaneous"));
    assert!(crossed.clone().count() >= 1, "{one}\n{other}");
    for record in crossed {
        record.expect_flag("simultaneous_open").expect_absent("rtt_ns");
    }
    assert_eq!(one.text("id"), other.text("id"), "{one}\n{other}");
    let records = watch.end();
    for netns in [&pair.client, &pair.server] {
        let records = all_of(records.clone(), netns);
        assert_eq!(records.len(), 1, "one record at each end: {records:?}");
    }
}

#[test]
fn a_port_in_time_wait_is_used_again_at_both_ends() {
    if !is_fit("a_port_in_time_wait_is_used_again_at_both_ends") {
        return;
    }
    let netns = Netns::new("w");
    netns.set("ipv4/tcp_tw_reuse", "1");
    netns.set("ipv4/ip_local_port_range", "41000 41000");
    let watch = Watch::begin();
    let port = netns.on_thread("hs-both", || {
        let listener = TcpListener::bind("127.0.0.1:7100").expect("the port is free here");
        let to = listener.local_addr().expect("it has an address");
        for nth in 0..2 {
            let client = TcpStream::connect(to).expect("the port in TIME-WAIT is used again");
            let accepted = listener.accept().expect("a child is queued").0;
            // Who closes first keeps TIME-WAIT: the client's side.
            drop(client);
            until("the FIN arrived", || matches!(accepted.peek(&mut [0]), Ok(0)));
            drop(accepted);
            if nth == 0 {
                // Timestamps of one second apart make it certain that the old connection is over (RFC 6191).
                std::thread::sleep(Duration::from_millis(1_100));
            }
        }
        to.port()
    });
    let ends = |role: &'static str| {
        until("both connections have their records", || {
            watch.records().iter().filter(|record| record.is(role, port)).count() == 2
        });
        watch.records().into_iter().filter(|record| record.is(role, port)).collect::<Vec<_>>()
    };
    let (clients, servers) = (ends("client"), ends("server"));
    for record in clients.iter().chain(&servers) {
        record.expect_text("outcome", "established").expect_text("process.comm", "hs-both");
    }
    assert_eq!(clients[0].number("local.port"), clients[1].number("local.port"));
    assert_ne!(clients[0].text("id"), clients[1].text("id"));
    assert_ne!(clients[0].text("key"), clients[1].text("key"));
    watch.end();
}

#[test]
fn a_listener_that_closes_with_a_request_pending_has_told_of_it() {
    if !is_fit("a_listener_that_closes_with_a_request_pending_has_told_of_it") {
        return;
    }
    let pair = Pair::new();
    // Without migration (5.14) the request dies with its listener, at its next timer or segment.
    let watch = Watch::begin();
    pair.server_reaches_client(false);
    let (listener, to) = pair.server.on_thread("hs-listen", || {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        (listener, format!("{SERVER_V4}:{port}").parse::<SocketAddr>().expect("an address"))
    });
    let socket = pair.client.on_thread("hs-client", || connect_without_waiting(to));
    pair.server.on_thread("hs-wait", || wait_for_request(to.port()));
    drop(listener);
    pair.server_reaches_client(true);
    // The client's next SYN finds nobody and is refused.
    pair.client.on_thread("hs-client", || finish(&socket).expect_err("nobody listens any more"));
    watch.wait_for_end("client", to.port()).expect_text("outcome", "refused");
    if has_probes() {
        let server = watch.wait_for_end("server", to.port());
        server
            .expect_text("outcome", "cancelled")
            .expect_text("evidence.kind", "listener_closed")
            .expect_text("process.comm", "hs-listen")
            .expect_absent("latency_ns");
    }
    let records = watch.end();
    let servers = records.iter().filter(|record| record.is("server", to.port())).count();
    assert_eq!(servers, usize::from(has_probes()), "{records:?}");
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
    let of = |name: &str| {
        records
            .iter()
            .filter(|record| record.is("server", port) && record.text("process.comm") == Some(name))
            .count()
    };
    assert_eq!(of("hs-one") + of("hs-two"), CONNECTIONS, "{records:?}");
    assert!(of("hs-one") > 0 && of("hs-two") > 0, "both took some");
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
    let record = watch.wait_for_end("client", 6101);
    record
        .expect_text("outcome", "established")
        .expect_flag("repair")
        .expect_absent("latency_ns")
        .expect_absent("rtt_ns")
        .expect_absent("phases.wire_ns")
        .expect_absent("id");
    watch.end();
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
    for record in &records {
        record.expect_text("outcome", "established").expect_text("process.comm", "hs-both");
    }
}
