//! What goes wrong over IPv6: another family's functions of the kernel, the same records.
//!
//! What a reader would get wrong: tcp_v6_connect, cookie_v6_check and what destroys a request of IPv6 are hooks of their
//! own, so what holds over IPv4 is shown again here. Cookies and TCP_DEFER_ACCEPT of both families are in `kept_back`.

use std::net::{SocketAddr, TcpStream};

use super::{
    environment::{has_probes, is_fit, is_locked_down},
    netns::{CLIENT_V6, Netns, Pair, SERVER_V6},
    passive_open::{reset_half_open, time_out_half_open},
    plain::{
        dropped, expect_cancelled, expect_counts, expect_fillers, expect_fillers_beside_a_request,
        expect_server, timed_out,
    },
    record::Record,
    traffic::{
        ESTABLISHED, IPV6, SYN_SENT, accept_in, connect_without_waiting, finish, listen_over, until,
        wait_for_no_request, wait_for_request, wait_for_state,
    },
    watch::Watch,
    whole::{AT_ONCE, Whole, expect_one_handshake},
};

const NOBODY_V6: &str = "fd00:99::77";

/// A pair in which what is sent to [`NOBODY_V6`] leaves and is never answered, and a port of it.
fn nobody_answers(port: u16) -> (Pair, SocketAddr) {
    let pair = Pair::new();
    pair.nobody_has(NOBODY_V6);
    (pair, SocketAddr::new(NOBODY_V6.parse().expect("an address"), port))
}

#[test]
fn unanswered_syns_over_ipv6_time_out() {
    if !is_fit("unanswered_syns_over_ipv6_time_out") {
        return;
    }
    let (pair, to) = nobody_answers(281);
    pair.client.set("ipv4/tcp_syn_retries", "1");
    let watch = Watch::begin();
    pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("nobody answers"));
    let record = watch.wait_in(&pair.client, "client", to.port());
    let (whole, _) = timed_out(&record, &pair.client, (CLIENT_V6, NOBODY_V6, to.port()));
    whole.flags(&[]).nothing_else();
    expect_counts(&watch.end(), &[(&pair.client, 1)]);
}

#[test]
fn a_socket_closed_in_syn_sent_over_ipv6_is_cancelled() {
    if !is_fit("a_socket_closed_in_syn_sent_over_ipv6_is_cancelled") {
        return;
    }
    let (pair, to) = nobody_answers(282);
    let watch = Watch::begin();
    pair.client.on_thread("hs-client", || {
        let _socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
    });
    let record = watch.wait_in(&pair.client, "client", to.port());
    expect_cancelled(&record, &pair.client, (CLIENT_V6, NOBODY_V6, to.port()));
    expect_counts(&watch.end(), &[(&pair.client, 1)]);
}

#[test]
fn unanswered_syn_acks_over_ipv6_time_out() {
    if is_fit("unanswered_syn_acks_over_ipv6_time_out") {
        time_out_half_open(IPV6);
    }
}

#[test]
fn a_client_that_is_gone_resets_the_half_open_request_over_ipv6() {
    if is_fit("a_client_that_is_gone_resets_the_half_open_request_over_ipv6") {
        reset_half_open(IPV6);
    }
}

/// The whole record of a client that was connected about a second late, but for what it sent again.
#[track_caller]
fn connected_late<'a>(client: &'a Record, pair: &Pair, port: u16) -> Whole<'a> {
    client
        .whole("client", "established", &pair.client)
        .ends(CLIENT_V6, SERVER_V6, port)
        .thread("hs-client")
        .joined()
        .agreed(IPV6.mss)
        .within("phases.local_ns", AT_ONCE)
        .within("latency_ns", 900..=5_000)
        .within("phases.wire_ns", 900..=5_000)
        .flags(&["non_blocking"])
}

#[test]
fn a_syn_lost_over_ipv6_is_one_second_of_waiting_and_no_round_trip() {
    if !is_fit("a_syn_lost_over_ipv6_is_one_second_of_waiting_and_no_round_trip") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = listen_over(IPV6, &pair.server, 128);
    pair.client_reaches_server(false);
    let socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        pair.client_reaches_server(true);
        finish(&socket).expect("the second SYN arrives");
        socket
    });
    let accepted = accept_in(&pair.server, &listener);
    let client = watch.wait_for_end("client", to.port());
    connected_late(&client, &pair, to.port())
        .syns(1)
        .within("retransmits.waited_ns", 950..=1_400)
        .nothing_else();
    // The lost SYN is nothing that a server could know of.
    let server = watch.wait_for_end("server", to.port());
    expect_server(&server, &pair.server, (SERVER_V6, CLIENT_V6, to.port()), "hs-server");
    expect_one_handshake(&client, &server);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 1)]);
    drop((socket, accepted));
}

/// Fills the accept queue of a listener with a backlog of 1 from inside its own namespace.
fn fill(netns: &Netns, to: SocketAddr) -> [TcpStream; 2] {
    netns.on_thread("hs-filler", || {
        let streams = [(); 2].map(|()| TcpStream::connect(to).expect("there is room"));
        until("two children are queued", || {
            std::fs::read_to_string("/proc/thread-self/net/tcp6").is_ok_and(|text| {
                let end = format!(":{:04X} ", to.port());
                text.lines().filter(|line| line.contains(&end) && line.contains(" 01 ")).count() == 4
            })
        });
        streams
    })
}

#[test]
fn a_syn_over_ipv6_at_a_full_accept_queue_is_dropped_with_that_reason() {
    if !is_fit("a_syn_over_ipv6_at_a_full_accept_queue_is_dropped_with_that_reason") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = listen_over(IPV6, &pair.server, 1);
    let streams = fill(&pair.server, to);
    pair.client.on_thread("hs-client", || drop(connect_without_waiting(to)));
    let client = watch.wait_in(&pair.client, "client", to.port());
    expect_cancelled(&client, &pair.client, (CLIENT_V6, SERVER_V6, to.port()));
    if has_probes() {
        let server = watch.wait_for("the dropped SYN", |record| {
            record.is("server", to.port()) && record.text("outcome") == Some("syn_dropped")
        });
        dropped(&server, "syn_dropped", &pair.server, "accept_queue_full", 1)
            // Under lockdown nobody may read whose segment it was.
            .also(is_locked_down(), |whole| {
                whole.text("local.address", "::").number("local.port", u64::from(to.port()))
            })
            .also(!is_locked_down(), |whole| whole.ends(SERVER_V6, CLIENT_V6, to.port()))
            .number("accept_queue.length", 2)
            .number("accept_queue.limit", 1)
            .nothing_else();
        assert_eq!(server.get("isn.remote"), client.get("isn.local"), "{server}\n{client}");
    }
    expect_fillers(&watch, &pair.server, to, &streams, false);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 4 + usize::from(has_probes()))]);
    drop(listener);
}

#[test]
fn a_final_ack_over_ipv6_at_a_full_accept_queue_leaves_only_the_client_connected() {
    if !is_fit("a_final_ack_over_ipv6_at_a_full_accept_queue_leaves_only_the_client_connected") {
        return;
    }
    let pair = Pair::new();
    pair.server.set("ipv4/tcp_synack_retries", "1");
    let watch = Watch::begin();
    // The SYN is let in; until its SYN-ACK arrives the queue fills up.
    pair.server_reaches_client(false);
    let (listener, to) = listen_over(IPV6, &pair.server, 1);
    let socket = pair.client.on_thread("hs-client", || connect_without_waiting(to));
    pair.server.on_thread("hs-wait", || wait_for_request(to.port()));
    let streams = fill(&pair.server, to);
    pair.server_reaches_client(true);
    pair.client.on_thread("hs-client", || {
        finish(&socket).expect("the SYN-ACK is sent again");
        wait_for_state(to.port(), ESTABLISHED);
    });
    let client = watch.wait_in(&pair.client, "client", to.port());
    let again = client.number("retransmits.syn").expect("SYNs are counted");
    connected_late(&client, &pair, to.port())
        .number_in("retransmits.syn", 0..=4)
        .also(again == 0, |whole| whole.number("retransmits.waited_ns", 0).within("rtt_ns", 900..=5_000))
        .also(again > 0, |whole| whole.within("retransmits.waited_ns", 900..=5_000))
        .nothing_else();
    if has_probes() {
        let server = watch.wait_for("the dropped ACK", |record| {
            record.is("server", to.port()) && record.text("outcome") == Some("ack_dropped")
        });
        let syn_acks = server.number("evidence.syn_acks").expect("SYN-ACKs are counted");
        server
            .whole("server", "ack_dropped", &pair.server)
            .evidence("accept_queue_full", None)
            .number("evidence.syn_acks", syn_acks)
            .ends(SERVER_V6, CLIENT_V6, to.port())
            .thread("hs-listen")
            .joined()
            .agreed_half_open(IPV6.mss)
            .within("phases.synack_ns", 0..=500)
            .within("phases.ack_ns", 900..=5_000)
            .within("failed_after_ns", 2_900..=9_000)
            .number_in("retransmits.syn_ack", 1..=6)
            .number("retransmits.syn_seen", again + 1)
            .within("retransmits.waited_ns", 900..=7_000)
            .number("accept_queue.length", 2)
            .number("accept_queue.limit", 1)
            .flags(&["ack_dropped"])
            .nothing_else();
        expect_one_handshake(&client, &server);
    } else {
        // The request dies with its timer, and no tracepoint says so.
        pair.server.on_thread("hs-wait", || wait_for_no_request(to.port()));
    }
    expect_fillers_beside_a_request(&watch, &pair.server, to, &streams);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 4 + usize::from(has_probes()))]);
    drop(listener);
}
