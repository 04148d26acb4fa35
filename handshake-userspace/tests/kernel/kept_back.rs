//! Listeners that make a child later than others would: from a SYN cookie, or when data comes (TCP_DEFER_ACCEPT).
//!
//! What a reader would get wrong: of a cookie's SYN nothing was kept, so there is no time from which a latency could be;
//! and TCP_DEFER_ACCEPT does not wait for ever. When its time is over, the answer to one more SYN-ACK makes the child.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use super::{
    environment::{has_probes, is_fit},
    netns::{Netns, Pair},
    plain::{client_of, expect_client, expect_counts, mss_between},
    record::Record,
    traffic::{IPV4, IPV6, Version, listen_over, set_option, wait_for_no_request},
    watch::Watch,
    whole::{AT_ONCE, Whole, expect_one_handshake},
};

/// Addresses of loopback, and the largest MSS for which a cookie has room that is no larger than that of loopback
/// (net/ipv4/syncookies.c, net/ipv6/syncookies.c).
const HERE: [(&str, u64); 2] = [("127.0.0.1", 1_460), ("::1", 8_940)];

fn listen_at(address: &str) -> (TcpListener, SocketAddr) {
    let address: std::net::IpAddr = address.parse().expect("an address");
    let listener = TcpListener::bind((address, 0)).expect("loopback is up");
    let to = listener.local_addr().expect("it has an address");
    (listener, to)
}

#[test]
fn a_connection_from_a_syn_cookie_has_a_server_record_without_invented_times() {
    if !is_fit("a_connection_from_a_syn_cookie_has_a_server_record_without_invented_times") {
        return;
    }
    for (here, mss) in HERE {
        let netns = Netns::new("k");
        netns.set("ipv4/tcp_syncookies", "2");
        let watch = Watch::begin();
        let port = netns.on_thread("hs-both", || {
            let (listener, to) = listen_at(here);
            let _client = TcpStream::connect(to).expect("it listens");
            drop(listener.accept().expect("a child is queued"));
            to.port()
        });
        let ends = (here, here, port);
        let (client, server) = (watch.wait_for_end("client", port), watch.wait_for_end("server", port));
        expect_client(&client, &netns, ends, "hs-both");
        // Of the SYN nothing was kept: no time from which a latency could be, and no count; and of its MSS only which
        // of the four sizes that a cookie has room for comes next below.
        server
            .whole("server", "established", &netns)
            .ends(here, here, port)
            .thread("hs-both")
            .joined()
            .agreed_otherwise(mss, mss_between(ends), "none")
            .within("phases.accept_ns", AT_ONCE)
            .queued(1..=1, 128..=4_096)
            .flags(if has_probes() { &["syn_cookie"] } else { &[] })
            .nothing_else();
        expect_one_handshake(&client, &server);
        expect_counts(&watch.end(), &[(&netns, 2)]);
    }
}

/// A server's whole record of a child that TCP_DEFER_ACCEPT held back, but for how long and what was sent again.
#[track_caller]
fn held_back<'a>(server: &'a Record, netns: &Netns, here: &str, port: u16) -> Whole<'a> {
    server
        .whole("server", "established", netns)
        .ends(here, here, port)
        .thread("hs-both")
        .joined()
        .agreed(mss_between((here, here, port)))
        .within("phases.accept_ns", AT_ONCE)
        .queued(1..=1, 128..=4_096)
        .also(has_probes(), |whole| {
            // The bare ACK came at once, and then there was nothing to wait for but the data.
            whole
                .within("phases.synack_ns", 0..=500)
                .within("phases.ack_ns", 0..=130)
                .number("retransmits.syn_seen", 1)
        })
        .flags(if has_probes() { &["defer_accept"] } else { &[] })
}

#[test]
fn tcp_defer_accept_waits_for_data_and_says_so() {
    if !is_fit("tcp_defer_accept_waits_for_data_and_says_so") {
        return;
    }
    for (here, _) in HERE {
        let netns = Netns::new("d");
        let watch = Watch::begin();
        let port = netns.on_thread("hs-both", || {
            let (listener, to) = listen_at(here);
            set_option(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 5);
            let mut client = TcpStream::connect(to).expect("it listens");
            // The wait for the application's data is the scenario.
            std::thread::sleep(Duration::from_millis(150));
            client.write_all(b"x").expect("it is connected");
            drop(listener.accept().expect("a child is queued"));
            to.port()
        });
        let (client, server) = (watch.wait_for_end("client", port), watch.wait_for_end("server", port));
        client_of(&client, &netns, (here, here, port), "hs-both").flags(&[]).nothing_else();
        held_back(&server, &netns, here, port)
            .within("latency_ns", 140..=900)
            .number("retransmits.syn_ack", 0)
            .number("retransmits.waited_ns", 0)
            .nothing_else();
        expect_one_handshake(&client, &server);
        expect_counts(&watch.end(), &[(&netns, 2)]);
    }
}

#[test]
fn where_the_data_never_comes_tcp_defer_accept_asks_once_more_and_gives_the_child_away() {
    const NAME: &str = "where_the_data_never_comes_tcp_defer_accept_asks_once_more_and_gives_the_child_away";
    if !is_fit(NAME) {
        return;
    }
    for (here, _) in HERE {
        let netns = Netns::new("d");
        let watch = Watch::begin();
        let (port, stream) = netns.on_thread("hs-both", || {
            let (listener, to) = listen_at(here);
            // As long as one SYN-ACK waits for its answer.
            set_option(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 1);
            let client = TcpStream::connect(to).expect("it listens");
            drop(listener.accept().expect("a child is queued"));
            (to.port(), client)
        });
        let (client, server) = (watch.wait_for_end("client", port), watch.wait_for_end("server", port));
        expect_client(&client, &netns, (here, here, port), "hs-both");
        held_back(&server, &netns, here, port)
            .within("latency_ns", 900..=1_900)
            .number("retransmits.syn_ack", 1)
            .within("retransmits.waited_ns", 900..=1_700)
            .nothing_else();
        expect_one_handshake(&client, &server);
        expect_counts(&watch.end(), &[(&netns, 2)]);
        drop(stream);
    }
}

#[test]
fn where_neither_data_nor_an_answer_comes_tcp_defer_accept_times_out() {
    if is_fit("where_neither_data_nor_an_answer_comes_tcp_defer_accept_times_out") {
        [IPV4, IPV6].into_iter().for_each(defer_in_vain);
    }
}

/// A client that is gone after its bare ACK, as nobody here knows.
fn defer_in_vain(version: Version) {
    let pair = Pair::new();
    pair.server.set("ipv4/tcp_synack_retries", "1");
    let watch = Watch::begin();
    let (listener, to) = listen_over(version, &pair.server, 128);
    set_option(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 1);
    let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    pair.client_reaches_server(false);
    let ends = (version.client, version.server, to.port());
    let client = watch.wait_for_end("client", to.port());
    expect_client(&client, &pair.client, ends, "hs-client");
    if has_probes() {
        let server = watch.wait_for_end("server", to.port());
        server
            .whole("server", "timed_out", &pair.server)
            .evidence("syn_ack_timeout", None)
            .number("evidence.syn_acks", 2)
            .ends(version.server, version.client, to.port())
            .thread("hs-listen")
            .joined()
            .agreed_half_open(version.mss)
            .within("phases.synack_ns", 0..=500)
            .within("phases.ack_ns", AT_ONCE)
            .within("failed_after_ns", 2_900..=5_000)
            .number("retransmits.syn_ack", 1)
            .number("retransmits.syn_seen", 1)
            .within("retransmits.waited_ns", 900..=1_500)
            .flags(&["defer_accept"])
            .nothing_else();
        expect_one_handshake(&client, &server);
    } else {
        // Without probes a request that dies leaves nothing that could be seen.
        pair.server.on_thread("hs-wait", || wait_for_no_request(to.port()));
    }
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, usize::from(has_probes()))]);
    drop((listener, stream));
}
