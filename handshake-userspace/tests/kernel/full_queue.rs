//! What a full accept queue does not do to a final ACK: where the kernel drops it for another reason, or answers it.
//!
//! What a reader would get wrong: at a full queue an ACK that the kernel would have ignored anyhow, or answers by a
//! RST, leaves no client that believes to be connected.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
};

use super::{
    drops::{fill, small_listener},
    environment::{has_probes, is_fit, is_fit_for_long},
    netns::{CLIENT_V4, Netns, Pair},
    record::{Record, all_of},
    syn_flood::Flood,
    tracer::Tracer,
    traffic::{
        ESTABLISHED, SYN_SENT, connect_without_waiting, finish, set_option, tcp_socket, until,
        wait_for_request, wait_for_state,
    },
    watch::Watch,
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
    let (socket, _streams) = half_open_at_a_full_queue(&pair, to);
    // The SYN-ACK that is sent again makes it ESTABLISHED, its ACK brings the RST; either may be seen first.
    pair.client.on_thread("hs-client", || {
        let _ = finish(&socket);
        until("the RST came", || socket.peer_addr().is_err());
    });
    if has_probes() {
        watch
            .wait_for("the reset", |record| of_the_client(record, to.port()))
            .expect_text("outcome", "reset")
            .expect_text("evidence.kind", "accept_queue_full")
            .expect_number("accept_queue.length", 2)
            .expect_number("accept_queue.limit", 1)
            .expect_number("process.pid", u64::from(std::process::id()))
            .expect_flags_are(&[])
            .expect_absent("latency_ns");
    }
    watch.end();
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
    let server = watch.wait_for("the server's record", |record| of_the_client(record, to.port()));
    server.expect_text("outcome", "established").expect_text("process.comm", "hs-server");
    if has_probes() {
        server.expect_flags_are(&["defer_accept"]).expect_absent("dropped");
    }
    watch.end();
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
    let _streams = fill(&pair.server, to);
    // Nobody knows the number that would be right, but this one it is once in four thousand million.
    raw.send_ack(from, 7_001, 1);
    if has_probes() {
        let server = watch.wait_for("the half-open connection", |record| of_the_client(record, to.port()));
        server
            .expect_text("outcome", "timed_out")
            .expect_text("evidence.kind", "syn_ack_timeout")
            .expect_absent("accept_queue")
            .expect_flags_are(&[])
            .expect_absent("phases.accept_ns");
    }
    watch.end();
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
