//! Passive opens that go wrong half open, and those that began before we watched.
//!
//! What a reader would get wrong: a request that dies half open leaves no socket behind, so only probes see
//! it; in tracepoint mode its absence is what is asserted.

use std::net::SocketAddr;

use super::{
    environment::{attach, has_probes, is_fit},
    netns::{Pair, SERVER_V4},
    peer::Server,
    tracer::Tracer,
    traffic::{SYN_SENT, connect_without_waiting, finish, until, wait_for_request, wait_for_state},
    watch::Watch,
};

/// A listener, and a client whose SYN arrived while nothing comes back.
fn half_open(pair: &Pair) -> (Server, socket2::Socket) {
    pair.server_reaches_client(false);
    let server = Server::start(&pair.server, "0.0.0.0:0");
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    let socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        socket
    });
    pair.server.on_thread("hs-wait", || wait_for_request(server.port));
    (server, socket)
}

#[test]
fn unanswered_syn_acks_time_out() {
    if !is_fit("unanswered_syn_acks_time_out") {
        return;
    }
    let pair = Pair::new();
    pair.server.set("ipv4/tcp_synack_retries", "1");
    let watch = Watch::begin();
    let (server, socket) = half_open(&pair);
    // The client must not keep the request alive with further SYNs.
    drop(socket);
    pair.client_reaches_server(false);
    if has_probes() {
        watch
            .wait_for_end("server", server.port)
            .expect_text("outcome", "timed_out")
            .expect_text("evidence.kind", "syn_ack_timeout")
            .expect_number("retransmits.syn_ack", 1)
            .expect_number("evidence.syn_acks", 2)
            .expect_absent("latency_ns")
            .expect_absent("phases.ack_ns");
    } else {
        pair.server.on_thread("hs-wait", || {
            let end = format!(":{:04X} ", server.port);
            until("the request is gone", || {
                let text = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("it can be read");
                !text.lines().any(|line| line.contains(&end) && line.contains(" 03 "))
            });
        });
    }
    let records = watch.end();
    let servers = records.iter().filter(|record| record.is("server", server.port)).count();
    assert_eq!(servers, usize::from(has_probes()), "{records:?}");
}

#[test]
fn a_request_that_is_half_open_when_we_stop_is_told_as_incomplete() {
    if !is_fit("a_request_that_is_half_open_when_we_stop_is_told_as_incomplete") {
        return;
    }
    let pair = Pair::new();
    let tracer = Tracer::start(&[]);
    let (server, _socket) = half_open(&pair);
    let records = tracer.stop();
    let of = |role| records.iter().filter(|record| record.is(role, server.port)).collect::<Vec<_>>();
    let (clients, servers) = (of("client"), of("server"));
    assert_eq!((clients.len(), servers.len()), (1, usize::from(has_probes())), "{records:?}");
    // Without probes nobody knows whether a request that was seen to begin is still there.
    let Some(half) = servers.first() else { return };
    half.expect_text("outcome", "incomplete")
        .expect_text("evidence.kind", "stopped_watching")
        .expect_number("evidence.syn_acks", half.number("retransmits.syn_ack").expect("they are counted") + 1)
        .expect_number("netns", pair.server.inode())
        .expect_text("local.address", SERVER_V4)
        .expect_present("isn.local")
        .expect_present("phases.synack_ns")
        .expect_flags_are(&[])
        .expect_present("process.comm")
        .expect_none_of(&[
            "latency_ns",
            "failed_after_ns",
            "rtt_ns",
            "phases.ack_ns",
            "accept_queue",
            "options",
        ]);
    assert_eq!(half.get("isn.remote"), clients[0].get("isn.local"), "{half}\n{}", clients[0]);
}

#[test]
fn a_client_that_is_gone_resets_the_half_open_request() {
    if !is_fit("a_client_that_is_gone_resets_the_half_open_request") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (server, socket) = half_open(&pair);
    drop(socket);
    // The next SYN-ACK finds no socket and is answered by a RST.
    pair.server_reaches_client(true);
    watch.wait_for_end("client", server.port).expect_text("outcome", "cancelled");
    if has_probes() {
        watch
            .wait_for_end("server", server.port)
            .expect_text("outcome", "reset")
            .expect_text("evidence.kind", "reset_received")
            .expect_absent("latency_ns");
    }
    watch.end();
}

#[test]
fn a_syn_sent_before_the_tracer_and_filtered_by_port_is_left_out() {
    if !is_fit("a_syn_sent_before_the_tracer_and_filtered_by_port_is_left_out") {
        return;
    }
    let pair = Pair::new();
    let (mut server, socket) = half_open(&pair);
    // Its beginning was not seen, and of its end the hooks can't say whether the filter wants it.
    let tracer = Tracer::start(&["--role", "client", "--port", &server.port.to_string()]);
    pair.server_reaches_client(true);
    server.accept();
    finish(&socket).expect("the SYN-ACK is sent again");
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    let later = pair.client.on_thread("hs-client", || std::net::TcpStream::connect(to).expect("it listens"));
    let port = u64::from(later.local_addr().expect("it is bound").port());
    tracer.wait_for("the later connection", |record| record.number("local.port") == Some(port));
    let records = tracer.stop();
    assert_eq!(records.iter().filter(|record| record.is("client", server.port)).count(), 1, "{records:?}");
}

#[test]
fn a_request_older_than_the_tracer_is_marked_as_seen_late() {
    if !is_fit("a_request_older_than_the_tracer_is_marked_as_seen_late") {
        return;
    }
    let pair = Pair::new();
    let (mut server, socket) = half_open(&pair);
    let tracer = Tracer::start(&[]);
    pair.server_reaches_client(true);
    server.accept();
    finish(&socket).expect("the SYN-ACK is sent again");
    let record = tracer.wait_for_end("server", server.port);
    record.expect_text("outcome", "established").expect_flag("seen_late");
    record.expect_number("process.pid", server.pid()).expect_absent("phases.synack_ns");
    if attach() == "tracepoint" {
        record.expect_absent("latency_ns");
    }
    tracer.stop();
}
