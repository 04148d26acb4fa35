//! What a full accept queue does not do to a final ACK: where the kernel drops it for another reason, or answers it.
//!
//! What a reader would get wrong: at a full queue an ACK that the kernel would have ignored anyhow, or answers by a
//! RST, leaves no client that believes to be connected.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
};

use super::{
    drops::{connected_late, fill, small_listener},
    environment::{has_probes, is_fit, is_fit_for_long},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    plain::{expect_counts, expect_fillers_beside_a_request},
    record::{Record, all_of},
    syn_flood::Flood,
    tracer::Tracer,
    traffic::{
        ESTABLISHED, SYN_SENT, connect_without_waiting, finish, set_option, tcp_socket, until,
        wait_for_no_request, wait_for_request, wait_for_state,
    },
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, expect_one_agreement, expect_one_handshake},
};

/// A client whose SYN was let in, and whose ACK will find the accept queue full.
fn half_open_at_a_full_queue(pair: &Pair, to: SocketAddr) -> (socket2::Socket, [TcpStream; 2]) {
    pair.server_reaches_client(false);
    let socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        socket
    });
    pair.server.on_thread("hs-wait", || wait_for_request(to.port()));
    let streams = fill(&pair.server, to);
    pair.server_reaches_client(true);
    (socket, streams)
}

fn of_the_client(record: &Record, port: u16) -> bool {
    record.is("server", port) && record.text("remote.address") == Some(CLIENT_V4)
}

#[test]
fn with_abort_on_overflow_a_full_accept_queue_resets_the_connection() {
    if !is_fit("with_abort_on_overflow_a_full_accept_queue_resets_the_connection") {
        return;
    }
    let pair = Pair::new();
    pair.server.set("ipv4/tcp_abort_on_overflow", "1");
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    let (socket, streams) = half_open_at_a_full_queue(&pair, to);
    // The SYN-ACK that is sent again makes it ESTABLISHED, its ACK brings the RST; either may be seen first.
    pair.client.on_thread("hs-client", || {
        let _ = finish(&socket);
        until("the RST came", || socket.peer_addr().is_err());
    });
    let client = watch.wait_in(&pair.client, "client", to.port());
    connected_late(&client, &pair, to.port()).nothing_else();
    if has_probes() {
        let server = watch.wait_for("the reset", |record| of_the_client(record, to.port()));
        let syns = client.number("retransmits.syn").expect("SYNs are counted") + 1;
        let syn_acks = server.number("evidence.syn_acks").expect("SYN-ACKs are counted");
        server
            .whole("server", "reset", &pair.server)
            .evidence("accept_queue_full", None)
            .number("evidence.syn_acks", syn_acks)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .thread("hs-listen")
            .joined()
            .agreed_half_open(ETHERNET_MSS)
            .within("phases.synack_ns", 0..=500)
            .within("phases.ack_ns", 900..=5_000)
            .within("failed_after_ns", 900..=5_000)
            // By its timer, and as the answer to a SYN that was sent again.
            .number_in("retransmits.syn_ack", 1..=6)
            .number("retransmits.syn_seen", syns)
            .within("retransmits.waited_ns", 900..=5_000)
            .number("accept_queue.length", 2)
            .number("accept_queue.limit", 1)
            .flags(&[])
            .nothing_else();
        expect_one_agreement(&client, &server);
    }
    // Without probes a request that dies leaves nothing that could be seen.
    expect_fillers_beside_a_request(&watch, &pair.server, to, &streams);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 4 + usize::from(has_probes()))]);
    drop(listener);
}

#[test]
fn a_bare_ack_that_tcp_defer_accept_ignores_is_not_dropped_by_a_full_accept_queue() {
    if !is_fit("a_bare_ack_that_tcp_defer_accept_ignores_is_not_dropped_by_a_full_accept_queue") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    let mut streams = fill(&pair.server, to);
    let taken = pair.server.on_thread("hs-server", || [(); 2].map(|()| listener.accept().expect("queued").0));
    // Long enough that the data comes before TCP_DEFER_ACCEPT gives up.
    set_option(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 60);
    pair.server_reaches_client(false);
    let socket = pair.client.on_thread("hs-client", || connect_without_waiting(to));
    pair.server.on_thread("hs-wait", || wait_for_request(to.port()));
    let more = pair.server.on_thread("hs-filler", || {
        let more = [(); 2].map(|()| TcpStream::connect(to).expect("it listens"));
        for mut stream in &more {
            stream.write_all(b"x").expect("it is connected");
        }
        until("both are queued", || {
            std::fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|text| {
                // State LISTEN, and the length of the accept queue in the place of the receive queue.
                let own = format!(":{:04X} 00000000:0000 0A 00000000:00000002", to.port());
                text.lines().any(|line| line.contains(&own))
            })
        });
        more
    });
    pair.server_reaches_client(true);
    pair.client.on_thread("hs-client", || {
        finish(&socket).expect("the SYN-ACK is sent again");
        wait_for_state(to.port(), ESTABLISHED);
    });
    // Its bare ACK has found the queue full by now or will: veth hands it over in the same softirq. Then there is
    // room, and the data makes the child.
    let last = pair.server.on_thread("hs-server", || [(); 2].map(|()| listener.accept().expect("queued").0));
    (&TcpStream::from(socket.try_clone().expect("it can be duplicated")))
        .write_all(b"x")
        .expect("it is connected");
    let own = pair.server.on_thread("hs-server", || listener.accept().expect("the data made a child").0);
    let client = watch.wait_in(&pair.client, "client", to.port());
    connected_late(&client, &pair, to.port()).nothing_else();
    let server = watch.wait_for("the server's record", |record| of_the_client(record, to.port()));
    let syns = client.number("retransmits.syn").expect("SYNs are counted") + 1;
    server
        .whole("server", "established", &pair.server)
        .ends(SERVER_V4, CLIENT_V4, to.port())
        .thread("hs-server")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("latency_ns", 900..=9_000)
        .within("phases.accept_ns", AT_ONCE)
        .number_in("retransmits.syn_ack", 1..=6)
        .within("retransmits.waited_ns", 900..=5_000)
        .also(has_probes(), |whole| {
            whole
                .within("phases.synack_ns", 0..=500)
                .within("phases.ack_ns", 900..=5_000)
                .number("retransmits.syn_seen", syns)
        })
        .queued(1..=1, 1..=1)
        .flags(if has_probes() { &["defer_accept"] } else { &[] })
        .nothing_else();
    expect_one_handshake(&client, &server);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 9)]);
    streams[0].flush().expect("it is open");
    drop((taken, more, last, own));
}

#[test]
fn an_ack_of_a_wrong_number_at_a_full_accept_queue_is_no_final_ack() {
    if !is_fit("an_ack_of_a_wrong_number_at_a_full_accept_queue_is_no_final_ack") {
        return;
    }
    let pair = Pair::new();
    pair.server.set("ipv4/tcp_synack_retries", "1");
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    pair.server_reaches_client(false);
    let from = SocketAddrV4::new(CLIENT_V4.parse::<Ipv4Addr>().expect("an address"), 5_000);
    let raw = pair.client.on_thread("hs-client", || {
        let raw = Flood::at(to);
        raw.send_syn(from, 7_000);
        raw
    });
    pair.server.on_thread("hs-wait", || wait_for_request(to.port()));
    let streams = fill(&pair.server, to);
    // Nobody knows the number that would be right, but this one it is once in four thousand million.
    raw.send_ack(from, 7_001, 1);
    if has_probes() {
        let server = watch.wait_for("the half-open connection", |record| of_the_client(record, to.port()));
        server
            .whole("server", "timed_out", &pair.server)
            .evidence("syn_ack_timeout", None)
            .number("evidence.syn_acks", 2)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .number("remote.port", u64::from(from.port()))
            .thread("hs-listen")
            .joined()
            .number("isn.remote", 7_000)
            // Its SYN has an MSS, and no other option.
            .number("options.mss", ETHERNET_MSS)
            .is("options.sack", false)
            .is("options.timestamps", false)
            .is("options.ecn", false)
            .number_in("options.window.local", 1..=65_535)
            .within("phases.synack_ns", 0..=500)
            .within("failed_after_ns", 2_900..=5_000)
            .number("retransmits.syn_ack", 1)
            .number("retransmits.syn_seen", 1)
            .within("retransmits.waited_ns", 900..=1_500)
            .flags(&[])
            .nothing_else();
    } else {
        // Without probes a request that dies leaves nothing that could be seen.
        pair.server.on_thread("hs-wait", || wait_for_no_request(to.port()));
    }
    expect_fillers_beside_a_request(&watch, &pair.server, to, &streams);
    // No socket of the client's host sent anything.
    expect_counts(&watch.end(), &[(&pair.client, 0), (&pair.server, 4 + usize::from(has_probes()))]);
    drop(listener);
}

/// Room in the kernel side's table of queued children.
const PLACES: usize = 16_384;

#[test]
fn a_child_that_finds_no_room_among_the_queued_is_told_once_and_counted_once() {
    const MORE: usize = 100;
    if !is_fit_for_long("a_child_that_finds_no_room_among_the_queued_is_told_once_and_counted_once") {
        return;
    }
    let netns = Netns::new("q");
    netns.set("core/somaxconn", "65535");
    let tracer = Tracer::start(&["--netns", netns.name(), "--role", "server"]);
    let port = netns.on_thread("hs-both", || {
        let socket = tcp_socket();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port is free");
        socket.listen(65_535).expect("it can listen");
        let listener = std::net::TcpListener::from(socket);
        let to = listener.local_addr().expect("it is bound");
        for _ in 0..PLACES + MORE {
            // What its client closes stays in the queue.
            drop(TcpStream::connect(to).expect("there is room"));
        }
        for _ in 0..PLACES + MORE {
            drop(listener.accept().expect("queued"));
        }
        to.port()
    });
    until("every connection has its record", || {
        tracer.records().iter().filter(|record| record.is("server", port)).count() >= PLACES + MORE
    });
    let (records, _) = tracer.stop_with_log();
    let health = records.last().expect("there is a last record").clone();
    let records = all_of(records, &netns);
    let other: Vec<_> =
        records.iter().filter(|record| record.text("outcome") != Some("established")).take(3).collect();
    assert_eq!(records.len(), PLACES + MORE, "{other:?}");
    assert!(other.is_empty(), "{other:?}");
    health.expect_number("kernel.queued_full", MORE as u64);
    if has_probes() {
        let unknown = records.iter().find(|record| record.get("latency_ns").is_none());
        assert!(unknown.is_none(), "each is told whole: {unknown:?}");
    }
}
