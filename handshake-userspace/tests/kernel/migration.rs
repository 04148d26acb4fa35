//! A listener of a SO_REUSEPORT group closes and another one takes its connections over (5.14, tcp_migrate_req).
//!
//! What a reader would get wrong: the kernel copies a half-open request and frees the original. To the peer, and
//! so to a record, it is one handshake all the time; nothing was dropped, cancelled or left unaccepted.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    environment::{has_probes, is_fit, skip},
    netns::{CLIENT_V4, Pair, SERVER_V4},
    record::{Record, all_of},
    traffic::{connect_without_waiting, finish, tcp_socket, until},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, expect_one_handshake},
};

/// Enough connections that each of two listeners gets some.
const CONNECTIONS: usize = 12;

/// Two listeners of one group, and their address; `None` where nothing moves between them.
fn group(test: &str, pair: &Pair) -> Option<([TcpListener; 2], SocketAddr)> {
    // Debian's 5.10 has the setting and not what it sets.
    let symbols = std::fs::read_to_string("/proc/kallsyms").expect("the kernel lists its functions");
    if !symbols.contains(" reuseport_migrate_sock\n") {
        skip(test, "this kernel moves no requests between listeners (reuseport_migrate_sock, 5.14)");
        return None;
    }
    pair.server.set("ipv4/tcp_migrate_req", "1");
    Some(pair.server.on_thread("hs-listen", || {
        let member = |port: u16| {
            let socket = tcp_socket();
            socket.set_reuse_port(true).expect("it can be set");
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into()).expect("the group shares the port");
            socket.listen(64).expect("it can listen");
            TcpListener::from(socket)
        };
        let first = member(0);
        let port = first.local_addr().expect("it is bound").port();
        let second = member(port);
        ([first, second], format!("{SERVER_V4}:{port}").parse().expect("an address"))
    }))
}

fn has_children(listener: &TcpListener) -> bool {
    let mut wanted = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
    poll(&mut wanted, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("a listener can be polled") != 0
}

/// Takes everything, on a thread of this name.
fn accept_all(pair: &Pair, listener: &TcpListener, name: &str, count: usize) -> Vec<TcpStream> {
    pair.server.on_thread(name, || {
        (0..count)
            .map(|_| {
                until("each connection comes here", || has_children(listener));
                listener.accept().expect("a child is queued").0
            })
            .collect()
    })
}

/// The records of both ends, by the client's port.
fn ends(watch: &Watch, pair: &Pair, port: u16) -> Vec<(Record, Record)> {
    until("every connection has both records", || {
        let records = watch.records();
        let count = |role: &str| records.iter().filter(|record| record.is(role, port)).count();
        count("client") >= CONNECTIONS && count("server") >= CONNECTIONS
    });
    let records = watch.records();
    let servers = all_of(records.clone(), &pair.server);
    let clients = all_of(records, &pair.client);
    assert_eq!((clients.len(), servers.len()), (CONNECTIONS, CONNECTIONS), "one record each: {servers:?}");
    clients
        .into_iter()
        .map(|client| {
            let server = servers.iter().find(|server| server.get("remote") == client.get("local"));
            let server = server.unwrap_or_else(|| panic!("no other end: {client}")).clone();
            (client, server)
        })
        .collect()
}

#[test]
fn children_that_move_to_another_listener_are_accepted_there() {
    const NAME: &str = "children_that_move_to_another_listener_are_accepted_there";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let Some(([first, second], to)) = group(NAME, &pair) else { return };
    let watch = Watch::begin();
    let streams: Vec<_> = pair.client.on_thread("hs-client", || {
        (0..CONNECTIONS).map(|_| TcpStream::connect(to).expect("they listen")).collect()
    });
    until("both have children", || has_children(&first) && has_children(&second));
    pair.server.on_thread("hs-closer", move || drop(first));
    let accepted = accept_all(&pair, &second, "hs-heir", CONNECTIONS);
    for (client, server) in ends(&watch, &pair, to.port()) {
        server
            .whole("server", "established", &pair.server)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .thread("hs-heir")
            .joined()
            .agreed(ETHERNET_MSS)
            .served(AT_ONCE)
            .within("phases.accept_ns", 0..=5_000)
            .queued(1..=CONNECTIONS as u64, 64..=64)
            .flags(&[])
            .nothing_else();
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
        expect_one_handshake(&client, &server);
    }
    let records = watch.end();
    assert!(!records.iter().any(|record| record.text("kind") == Some("accept")), "{records:?}");
    drop((streams, accepted));
}

#[test]
fn a_half_open_request_that_moves_to_another_listener_is_one_handshake() {
    const NAME: &str = "a_half_open_request_that_moves_to_another_listener_is_one_handshake";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let Some(([first, second], to)) = group(NAME, &pair) else { return };
    let watch = Watch::begin();
    pair.server_reaches_client(false);
    let sockets: Vec<_> = pair
        .client
        .on_thread("hs-client", || (0..CONNECTIONS).map(|_| connect_without_waiting(to)).collect());
    pair.server.on_thread("hs-wait", || {
        let end = format!(":{:04X} ", to.port());
        until("all are half open", || {
            std::fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|text| {
                text.lines().filter(|line| line.contains(&end) && line.contains(" 03 ")).count()
                    == CONNECTIONS
            })
        });
    });
    // The clients' next SYNs are lost: it is the SYN-ACKs' timers that find their listener gone.
    pair.client_reaches_server(false);
    pair.server.on_thread("hs-closer", move || drop(first));
    pair.server_reaches_client(true);
    pair.server.on_thread("hs-wait", || {
        let end = format!(":{:04X} ", to.port());
        until("every SYN-ACK was sent again", || {
            std::fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|text| {
                let again =
                    text.lines().filter(|line| line.contains(&end) && line.contains(" 03 ")).filter(|line| {
                        let count = line.split_whitespace().nth(6).unwrap_or("0");
                        u32::from_str_radix(count, 16).is_ok_and(|count| count > 0)
                    });
                again.count() == CONNECTIONS
            })
        });
    });
    pair.client_reaches_server(true);
    pair.client.on_thread("hs-client", || {
        sockets.iter().for_each(|socket| finish(socket).expect("the SYN-ACK is sent again"));
    });
    let accepted = accept_all(&pair, &second, "hs-heir", CONNECTIONS);
    for (client, server) in ends(&watch, &pair, to.port()) {
        server
            .whole("server", "established", &pair.server)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .thread("hs-heir")
            .joined()
            .agreed(ETHERNET_MSS)
            .within("latency_ns", 900..=20_000)
            .number_in("retransmits.syn_ack", 1..=6)
            .within("retransmits.waited_ns", 900..=20_000)
            .also(has_probes(), |whole| {
                whole
                    .within("phases.synack_ns", 0..=500)
                    .within("phases.ack_ns", 900..=20_000)
                    .number_in("retransmits.syn_seen", 1..=6)
            })
            .within("phases.accept_ns", 0..=5_000)
            .queued(1..=CONNECTIONS as u64, 64..=64)
            .flags(&[])
            .nothing_else();
        let again = client.number("retransmits.syn");
        client
            .whole("client", "established", &pair.client)
            .ends(CLIENT_V4, SERVER_V4, to.port())
            .thread("hs-client")
            .joined()
            .agreed(ETHERNET_MSS)
            .within("latency_ns", 900..=20_000)
            .within("phases.wire_ns", 900..=20_000)
            .within("phases.local_ns", AT_ONCE)
            .number_in("retransmits.syn", 0..=6)
            .also(again == Some(0), |whole| {
                whole.number("retransmits.waited_ns", 0).within("rtt_ns", 900..=20_000)
            })
            .also(again != Some(0), |whole| whole.within("retransmits.waited_ns", 900..=20_000))
            .flags(&["non_blocking"])
            .nothing_else();
        expect_one_handshake(&client, &server);
    }
    watch.end();
    drop(accepted);
}
