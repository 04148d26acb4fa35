//! Simultaneous open (RFC 9293 section 3.5, figure 7): two SYNs that cross, and a socket that meets its own.
//!
//! What a reader would get wrong: both ends opened actively, so there is no server and no listener; and an end whose
//! own SYN left too late meets a SYN-ACK and is a client like any other.

use std::net::SocketAddr;

use socket2::Socket;

use super::{
    environment::is_fit,
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    record::{Record, all_of},
    traffic::{finish, tcp_socket},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, LOOPBACK_MSS, expect_one_handshake},
};

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
    let open = |netns: &Netns, own: &str, other: &str| -> Socket {
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
    expect_end(&one, &pair.client, (CLIENT_V4, 6001), (SERVER_V4, 6002));
    expect_end(&other, &pair.server, (SERVER_V4, 6002), (CLIENT_V4, 6001));
    let crossed = [&one, &other].iter().filter(|record| record.text("role") == Some("simultaneous")).count();
    assert!(crossed >= 1, "{one}\n{other}");
    expect_one_handshake(&one, &other);
    let records = watch.end();
    for netns in [&pair.client, &pair.server] {
        let records = all_of(records.clone(), netns);
        assert_eq!(records.len(), 1, "one record at each end: {records:?}");
    }
}

/// One of the second SYNs is sent first. Its receiver answers from SYN-SENT; if its own SYN has not left by then, the
/// other end meets a SYN-ACK and is a client like any other.
#[track_caller]
fn expect_end(record: &Record, netns: &Netns, local: (&str, u64), remote: (&str, u64)) {
    let role = record.text("role").unwrap_or_default();
    assert!(["client", "simultaneous"].contains(&role), "{record}");
    let crossed = role == "simultaneous";
    let again = record.number("retransmits.syn").expect("SYNs are counted");
    record
        .whole(role, "established", netns)
        .text("local.address", local.0)
        .number("local.port", local.1)
        .text("remote.address", remote.0)
        .number("remote.port", remote.1)
        .thread("hs-crossing")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("phases.local_ns", AT_ONCE)
        .within("latency_ns", 900..=1_800)
        .within("phases.wire_ns", 900..=1_800)
        .number_in("retransmits.syn", 0..=1)
        .also(again == 0, |whole| whole.number("retransmits.waited_ns", 0))
        .also(again == 0 && !crossed, |whole| whole.within("rtt_ns", 900..=1_800))
        .also(again == 1, |whole| whole.within("retransmits.waited_ns", 900..=1_500))
        .flags(if crossed { &["simultaneous_open", "non_blocking"] } else { &["non_blocking"] })
        .nothing_else();
}

#[test]
fn a_socket_that_connects_to_itself_is_one_handshake_with_one_end() {
    if !is_fit("a_socket_that_connects_to_itself_is_one_handshake_with_one_end") {
        return;
    }
    let netns = Netns::new("x");
    let watch = Watch::begin();
    let port = netns.on_thread("hs-self", || {
        let socket = tcp_socket();
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        socket.bind(&any.into()).expect("loopback is up");
        let own = socket.local_addr().expect("it is bound");
        socket.connect(&own).expect("a socket can connect to itself");
        u64::from(own.as_socket().expect("it is IPv4").port())
    });
    let inode = netns.inode();
    let record = watch.wait_for("the one end", |record| {
        record.text("kind") == Some("handshake") && record.number("netns") == Some(inode)
    });
    record
        .whole("simultaneous", "established", &netns)
        .text("local.address", "127.0.0.1")
        .number("local.port", port)
        .text("remote.address", "127.0.0.1")
        .number("remote.port", port)
        .thread("hs-self")
        .joined()
        .agreed(LOOPBACK_MSS)
        .called_and_returned()
        .within("latency_ns", AT_ONCE)
        .within("phases.wire_ns", AT_ONCE)
        .syns(0)
        .flags(&["simultaneous_open"])
        .nothing_else();
    assert_eq!(record.get("isn.local"), record.get("isn.remote"), "both are its own: {record}");
    assert_eq!(all_of(watch.end(), &netns).len(), 1);
}
