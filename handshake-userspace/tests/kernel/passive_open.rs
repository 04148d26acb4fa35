//! Passive opens that go wrong half open, and those that began before we watched.
//!
//! What a reader would get wrong: a request that dies half open leaves no socket behind, so only probes see
//! it; in tracepoint mode its absence is what is asserted.

use std::{io::Write as _, net::TcpStream};

use super::{
    environment::{has_probes, is_fit},
    netns::{CLIENT_V4, Pair, SERVER_V4},
    plain::expect_cancelled,
    record::all_of,
    tracer::Tracer,
    traffic::{
        IPV4, Version, accept_in, finish, half_open, half_open_over, listen_in, reset, until,
        wait_for_no_request,
    },
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, expect_one_handshake},
};

#[test]
fn unanswered_syn_acks_time_out() {
    if is_fit("unanswered_syn_acks_time_out") {
        time_out_half_open(IPV4);
    }
}

/// A request whose SYN-ACKs nobody answers.
pub fn time_out_half_open(version: Version) {
    let pair = Pair::new();
    pair.server.set("ipv4/tcp_synack_retries", "1");
    let watch = Watch::begin();
    let (listener, to, socket) = half_open_over(version, &pair);
    // The client must not keep the request alive with further SYNs.
    drop(socket);
    pair.client_reaches_server(false);
    let ends = (version.client, version.server, to.port());
    expect_cancelled(&watch.wait_for_end("client", to.port()), &pair.client, ends);
    if has_probes() {
        watch
            .wait_for_end("server", to.port())
            .whole("server", "timed_out", &pair.server)
            .evidence("syn_ack_timeout", None)
            .number("evidence.syn_acks", 2)
            .ends(version.server, version.client, to.port())
            .thread("hs-listen")
            .joined()
            .agreed_half_open(version.mss)
            .within("phases.synack_ns", 0..=500)
            // After one second it was sent again, and two more the kernel waited for an answer.
            .within("failed_after_ns", 2_900..=5_000)
            .number("retransmits.syn_ack", 1)
            .number("retransmits.syn_seen", 1)
            .within("retransmits.waited_ns", 900..=1_500)
            .flags(&[])
            .nothing_else();
    } else {
        pair.server.on_thread("hs-wait", || wait_for_no_request(to.port()));
    }
    let servers = all_of(watch.end(), &pair.server);
    assert_eq!(servers.len(), usize::from(has_probes()), "{servers:?}");
    drop(listener);
}

#[test]
fn a_request_that_is_half_open_when_we_stop_is_told_as_incomplete() {
    if !is_fit("a_request_that_is_half_open_when_we_stop_is_told_as_incomplete") {
        return;
    }
    let pair = Pair::new();
    let tracer = Tracer::start(&[]);
    let (_listener, to, _socket) = half_open(&pair);
    let records = tracer.stop();
    let of = |role| records.iter().filter(|record| record.is(role, to.port())).collect::<Vec<_>>();
    let (clients, servers) = (of("client"), of("server"));
    assert_eq!((clients.len(), servers.len()), (1, usize::from(has_probes())), "{records:?}");
    // Without probes nobody knows whether a request that was seen to begin is still there.
    let Some(half) = servers.first() else { return };
    half.whole("server", "incomplete", &pair.server)
        .evidence("stopped_watching", None)
        .number("evidence.syn_acks", half.number("retransmits.syn_ack").expect("they are counted") + 1)
        .ends(SERVER_V4, CLIENT_V4, to.port())
        .thread("hs-listen")
        .joined()
        .within("phases.synack_ns", 0..=500)
        // A busy machine may stop us later than the kernel waits for the first answer.
        .number_in("retransmits.syn_ack", 0..=6)
        .number_in("retransmits.syn_seen", 1..=7)
        .within("retransmits.waited_ns", 0..=16_000)
        .flags(&[])
        .nothing_else();
    assert_eq!(half.get("isn.remote"), clients[0].get("isn.local"), "{half}\n{}", clients[0]);
}

#[test]
fn a_client_that_is_gone_resets_the_half_open_request() {
    if is_fit("a_client_that_is_gone_resets_the_half_open_request") {
        reset_half_open(IPV4);
    }
}

/// A request whose client is gone when the SYN-ACK comes.
pub fn reset_half_open(version: Version) {
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to, socket) = half_open_over(version, &pair);
    drop(socket);
    // The next SYN-ACK finds no socket and is answered by a RST.
    pair.server_reaches_client(true);
    let ends = (version.client, version.server, to.port());
    expect_cancelled(&watch.wait_for_end("client", to.port()), &pair.client, ends);
    if has_probes() {
        watch
            .wait_for_end("server", to.port())
            .whole("server", "reset", &pair.server)
            .evidence("reset_received", None)
            .number("evidence.syn_acks", 2)
            .ends(version.server, version.client, to.port())
            .thread("hs-listen")
            .joined()
            .agreed_half_open(version.mss)
            .within("phases.synack_ns", 0..=500)
            .within("failed_after_ns", 900..=1_700)
            .number("retransmits.syn_ack", 1)
            .number("retransmits.syn_seen", 1)
            .within("retransmits.waited_ns", 900..=1_500)
            .flags(&[])
            .nothing_else();
    } else {
        pair.server.on_thread("hs-wait", || wait_for_no_request(to.port()));
    }
    let servers = all_of(watch.end(), &pair.server);
    assert_eq!(servers.len(), usize::from(has_probes()), "{servers:?}");
    drop(listener);
}

#[test]
fn connections_that_either_end_closes_are_no_failures() {
    if !is_fit("connections_that_either_end_closes_are_no_failures") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = listen_in(&pair.server, 128);
    let made = |end: fn(TcpStream, TcpStream)| {
        let client = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
        let accepted = accept_in(&pair.server, &listener);
        end(client, accepted);
    };
    // Either end first, by FIN and by RST; after shutdown(); with data that nobody reads, which makes close() a RST.
    made(|client, accepted| drop((client, accepted)));
    made(|client, accepted| drop((accepted, client)));
    made(|client, accepted| {
        reset(client);
        drop(accepted);
    });
    made(|client, accepted| {
        reset(accepted);
        drop(client);
    });
    made(|client, accepted| {
        let _ = client.shutdown(std::net::Shutdown::Both);
        drop((client, accepted));
    });
    made(|mut client, accepted| {
        client.write_all(b"nobody reads this").expect("it is connected");
        until("the data arrived", || matches!(accepted.peek(&mut [0]), Ok(1)));
        drop((accepted, client));
    });
    drop(listener);
    let records = watch.end();
    let (clients, servers) = (all_of(records.clone(), &pair.client), all_of(records, &pair.server));
    assert_eq!((clients.len(), servers.len()), (6, 6), "one record each, and none of an end: {servers:?}");
    for client in &clients {
        client
            .whole("client", "established", &pair.client)
            .ends(CLIENT_V4, SERVER_V4, to.port())
            .thread("hs-client")
            .joined()
            .agreed(ETHERNET_MSS)
            .within("latency_ns", AT_ONCE)
            .answered(AT_ONCE)
            .called_and_returned()
            .flags(&[])
            .nothing_else();
        let server = servers.iter().find(|server| server.get("id") == client.get("id"));
        let server = server.unwrap_or_else(|| panic!("no other end: {client}"));
        expect_one_handshake(client, server);
        server
            .whole("server", "established", &pair.server)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .thread("hs-server")
            .joined()
            .agreed(ETHERNET_MSS)
            .served(AT_ONCE)
            .within("phases.accept_ns", AT_ONCE)
            .queued(1..=1, 128..=128)
            .flags(&[])
            .nothing_else();
    }
}

#[test]
fn a_syn_sent_before_the_tracer_and_filtered_by_port_is_left_out() {
    if !is_fit("a_syn_sent_before_the_tracer_and_filtered_by_port_is_left_out") {
        return;
    }
    let pair = Pair::new();
    let (listener, to, socket) = half_open(&pair);
    // Its beginning was not seen, and of its end the hooks can't say whether the filter wants it.
    let tracer = Tracer::start(&["--role", "client", "--port", &to.port().to_string()]);
    pair.server_reaches_client(true);
    finish(&socket).expect("the SYN-ACK is sent again");
    let first = accept_in(&pair.server, &listener);
    let later = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    let port = u64::from(later.local_addr().expect("it is bound").port());
    tracer.wait_for("the later connection", |record| record.number("local.port") == Some(port));
    let records = tracer.stop();
    assert_eq!(records.iter().filter(|record| record.is("client", to.port())).count(), 1, "{records:?}");
    drop((listener, first));
}
