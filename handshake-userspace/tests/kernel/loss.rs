//! Segments that are lost once: the wait is told apart from the round trip.
//!
//! Loss is made by a neighbour entry that leads nowhere, undone as soon as the kernel shows that the segment
//! was sent. What a reader would get wrong: the first retransmission comes one second after the first segment
//! (RFC 6298 section 2), which is what the tolerance is about.

use std::ops::RangeInclusive;

use super::{
    environment::{has_probes, is_fit},
    netns::{CLIENT_V4, Pair, SERVER_V4},
    peer::Server,
    record::{Record, all_of},
    traffic::{ESTABLISHED, SYN_SENT, connect_without_waiting, finish, until, wait_for_state},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, Whole, expect_one_handshake},
};

/// A pair, a server in a process of its own that waits for one connection, and what is told of it.
fn scene() -> (Pair, Watch, Server, std::net::SocketAddr) {
    let pair = Pair::new();
    let watch = Watch::begin();
    let mut server = Server::start(&pair.server, "0.0.0.0:0");
    server.accept();
    let to = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    (pair, watch, server, to)
}

/// A client's whole record, but for what was sent again.
#[track_caller]
fn client_after<'a>(client: &'a Record, pair: &Pair, port: u16, took: RangeInclusive<u64>) -> Whole<'a> {
    client
        .whole("client", "established", &pair.client)
        .ends(CLIENT_V4, SERVER_V4, port)
        .thread("hs-client")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("phases.local_ns", AT_ONCE)
        .within("latency_ns", took.clone())
        .within("phases.wire_ns", took)
        .flags(&["non_blocking"])
}

/// Who sends first again when a SYN-ACK was lost, client or server, is chance. Without a SYN sent again the client
/// can't know that anything was lost.
#[track_caller]
fn perhaps_again<'a>(client: &'a Record, whole: Whole<'a>) -> Whole<'a> {
    match client.number("retransmits.syn") {
        Some(0) => whole.syns(0).within("rtt_ns", 900..=1_700),
        _ => whole.syns(1).within("retransmits.waited_ns", 900..=1_500),
    }
}

/// A server's whole record, but for what was sent again.
#[track_caller]
fn served_by<'a>(record: &'a Record, pair: &Pair, server: &Server) -> Whole<'a> {
    record
        .whole("server", "established", &pair.server)
        .ends(SERVER_V4, CLIENT_V4, server.port)
        .process(server.pid(), "hs-server")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("phases.accept_ns", AT_ONCE)
        .queued(1..=1, 128..=4096)
        .flags(&[])
}

/// One record at each end, of one handshake.
#[track_caller]
fn one_handshake(watch: Watch, pair: &Pair, client: &Record, server: &Record) {
    expect_one_handshake(client, server);
    let records = watch.end();
    for netns in [&pair.client, &pair.server] {
        let records = all_of(records.clone(), netns);
        assert_eq!(records.len(), 1, "{records:?}");
    }
}

#[test]
fn a_lost_syn_is_one_second_of_waiting_and_no_round_trip() {
    if !is_fit("a_lost_syn_is_one_second_of_waiting_and_no_round_trip") {
        return;
    }
    let (pair, watch, server, to) = scene();
    pair.client_reaches_server(false);
    let _socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        pair.client_reaches_server(true);
        finish(&socket).expect("the second SYN arrives");
        socket
    });
    let client = watch.wait_for_end("client", server.port);
    client_after(&client, &pair, server.port, 950..=1_600)
        .syns(1)
        .within("retransmits.waited_ns", 950..=1_400)
        .nothing_else();
    // The lost SYN is nothing that a server could know of.
    let accepted = watch.wait_for_end("server", server.port);
    served_by(&accepted, &pair, &server).served(0..=300).nothing_else();
    one_handshake(watch, &pair, &client, &accepted);
}

#[test]
fn a_syn_that_waits_for_its_neighbours_address_is_sent_once() {
    if !is_fit("a_syn_that_waits_for_its_neighbours_address_is_sent_once") {
        return;
    }
    let (pair, watch, server, to) = scene();
    pair.client.ip(&format!("neigh del {SERVER_V4} dev veth0"));
    // TCP's timer fires after one second, while the SYN is still here; ARP asks again after that.
    pair.client.set("ipv4/neigh/veth0/retrans_time_ms", "1600");
    pair.server.set("ipv4/conf/all/arp_ignore", "8");
    let _socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        let end = format!(":{:04X} 02 ", to.port());
        until("TCP's timer has fired", || {
            let sockets = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("it can be read");
            let fired = |line: &str| line.split_whitespace().nth(6) == Some("00000001");
            sockets.lines().any(|line| line.contains(&end) && fired(line))
        });
        pair.server.set("ipv4/conf/all/arp_ignore", "0");
        finish(&socket).expect("the SYN leaves");
        socket
    });
    let client = watch.wait_for_end("client", server.port);
    client_after(&client, &pair, server.port, 1_400..=3_000)
        .syns(0)
        .within("rtt_ns", 1_400..=3_000)
        .nothing_else();
    let accepted = watch.wait_for_end("server", server.port);
    served_by(&accepted, &pair, &server).served(0..=300).nothing_else();
    one_handshake(watch, &pair, &client, &accepted);
}

#[test]
fn a_lost_syn_ack_is_sent_again_and_counted_by_the_server() {
    if !is_fit("a_lost_syn_ack_is_sent_again_and_counted_by_the_server") {
        return;
    }
    let (pair, watch, server, to) = scene();
    pair.server_reaches_client(false);
    let _socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        pair.server_reaches_client(true);
        finish(&socket).expect("the second SYN-ACK arrives");
        socket
    });
    let client = watch.wait_for_end("client", server.port);
    perhaps_again(&client, client_after(&client, &pair, server.port, 900..=1_700)).nothing_else();
    let accepted = watch.wait_for_end("server", server.port);
    served_by(&accepted, &pair, &server)
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
    one_handshake(watch, &pair, &client, &accepted);
}

#[test]
fn a_lost_final_ack_makes_the_ends_disagree_about_the_latency() {
    if !is_fit("a_lost_final_ack_makes_the_ends_disagree_about_the_latency") {
        return;
    }
    let (pair, watch, server, to) = scene();
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
    perhaps_again(&client, client_after(&client, &pair, server.port, 900..=1_700)).nothing_else();
    // The server sends its SYN-ACK after one second and after two more; the ACK of that one arrives.
    let accepted = watch.wait_for_end("server", server.port);
    served_by(&accepted, &pair, &server)
        .within("latency_ns", 2_800..=4_500)
        .number("retransmits.syn_ack", 2)
        .within("retransmits.waited_ns", 2_800..=4_000)
        .also(has_probes(), |whole| {
            whole
                .within("phases.synack_ns", 0..=500)
                .within("phases.ack_ns", 2_800..=4_500)
                .number("retransmits.syn_seen", 1)
        })
        .nothing_else();
    one_handshake(watch, &pair, &client, &accepted);
}
