//! Segments that are lost once: the wait is told apart from the round trip.
//!
//! Loss is made by a neighbour entry that leads nowhere, undone as soon as the kernel shows that the segment
//! was sent. What a reader would get wrong: the first retransmission comes one second after the first segment
//! (RFC 6298 section 2), which is what the tolerance is about.

use std::net::SocketAddr;

use super::{
    environment::{has_probes, is_fit},
    netns::{Pair, SERVER_V4},
    peer::Server,
    traffic::{ESTABLISHED, SYN_SENT, connect_without_waiting, finish, wait_for_state},
    watch::Watch,
};

#[test]
fn a_lost_syn_is_one_second_of_waiting_and_no_round_trip() {
    if !is_fit("a_lost_syn_is_one_second_of_waiting_and_no_round_trip") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let mut server = Server::start(&pair.server, "0.0.0.0:0");
    server.accept();
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    pair.client_reaches_server(false);
    let _socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        pair.client_reaches_server(true);
        finish(&socket).expect("the second SYN arrives");
        socket
    });
    let client = watch.wait_for_end("client", server.port);
    client
        .expect_text("outcome", "established")
        .expect_number("retransmits.syn", 1)
        .expect_within("retransmits.waited_ns", 950..=1_400)
        .expect_within("latency_ns", 950..=1_600)
        .expect_absent("rtt_ns");
    // By the timestamps the kernel knows that the second SYN was answered.
    assert!(client.number("kernel_rtt_us").is_some_and(|us| us < 500_000), "{client}");
    let accepted = watch.wait_for_end("server", server.port);
    accepted.expect_text("outcome", "established").expect_number("retransmits.syn_ack", 0);
    accepted.expect_within("latency_ns", 0..=300);
    if has_probes() {
        accepted.expect_number("retransmits.syn_seen", 1);
    }
    watch.end();
}

#[test]
fn a_lost_syn_ack_is_sent_again_and_counted_by_the_server() {
    if !is_fit("a_lost_syn_ack_is_sent_again_and_counted_by_the_server") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let mut server = Server::start(&pair.server, "0.0.0.0:0");
    server.accept();
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    pair.server_reaches_client(false);
    let _socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        pair.server_reaches_client(true);
        finish(&socket).expect("the second SYN-ACK arrives");
        socket
    });
    let accepted = watch.wait_for_end("server", server.port);
    accepted
        .expect_text("outcome", "established")
        .expect_within("latency_ns", 900..=1_700)
        .expect_absent("rtt_ns");
    if has_probes() {
        accepted.expect_within("retransmits.waited_ns", 900..=1_500);
    }
    assert!(accepted.number("retransmits.syn_ack").is_some_and(|count| count >= 1), "{accepted}");
    watch.wait_for_end("client", server.port).expect_text("outcome", "established");
    watch.end();
}

#[test]
fn a_lost_final_ack_makes_the_ends_disagree_about_the_latency() {
    if !is_fit("a_lost_final_ack_makes_the_ends_disagree_about_the_latency") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let mut server = Server::start(&pair.server, "0.0.0.0:0");
    server.accept();
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    pair.server_reaches_client(false);
    let _socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        // The SYN arrived, its SYN-ACK did not. From now on nothing of the client arrives, and the
        // server's next SYN-ACK does: the client is ESTABLISHED, and its ACK is lost.
        pair.client_reaches_server(false);
        pair.server_reaches_client(true);
        wait_for_state(to.port(), ESTABLISHED);
        pair.client_reaches_server(true);
        socket
    });
    let client = watch.wait_for_end("client", server.port);
    let accepted = watch.wait_for_end("server", server.port);
    client.expect_text("outcome", "established");
    accepted.expect_text("outcome", "established").expect_number("process.pid", server.pid());
    let (ours, theirs) = (client.number("latency_ns"), accepted.number("latency_ns"));
    assert!(theirs > ours, "the server waited for another ACK: {client}\n{accepted}");
    assert!(accepted.number("retransmits.syn_ack").is_some_and(|count| count >= 2), "{accepted}");
    watch.end();
}
