//! Fast Open (RFC 7413): the first connection asks for a cookie, the next one's SYN carries data.
//!
//! What a reader would get wrong: with a cookie accept() returns the child before the final ACK, while it is in
//! SYN-RECEIVED; so what is accepted first need not be ESTABLISHED first.

use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

use super::{
    environment::{attach, has_probes, is_fit},
    netns::{Netns, Pair, SERVER_V4},
    record::{all_of, count},
    traffic::{
        finish, loopback_listener, reset, set_option, tcp_socket, until, wait_for_request, wait_for_state,
    },
    watch::Watch,
    whole::expect_one_handshake,
};

#[test]
fn fast_open_is_told_from_the_first_connection_to_the_one_with_data() {
    if !is_fit("fast_open_is_told_from_the_first_connection_to_the_one_with_data") {
        return;
    }
    let netns = Netns::new("t");
    netns.set("ipv4/tcp_fastopen", "3");
    let watch = Watch::begin();
    let (port, locals) = netns.on_thread("hs-both", || {
        let (listener, to) = loopback_listener();
        set_option(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16);
        let locals = [(); 2].map(|()| {
            let client = tcp_socket();
            set_option(&client, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1);
            client.connect(&to.into()).expect("it returns before any SYN left");
            client.send(b"x").expect("the SYN takes it along once there is a cookie");
            let accepted = listener.accept().expect("a child is queued").0;
            let local = client.local_addr().expect("it is bound").as_socket().expect("it is IPv4").port();
            // The data has arrived before the connection ends.
            let _ = accepted.peek(&mut [0]).expect("one byte was sent");
            local
        });
        (to.port(), locals)
    });
    for (nth, local) in locals.into_iter().enumerate() {
        let of = |role: &'static str, end: &'static str| {
            watch.wait_for(&format!("the {role} of connection {nth}"), move |record| {
                record.is(role, port) && record.number(end) == Some(u64::from(local))
            })
        };
        let (client, server) = (of("client", "local.port"), of("server", "remote.port"));
        client.expect_text("outcome", "established").expect_text("process.comm", "hs-both");
        server.expect_text("outcome", "established").expect_text("process.comm", "hs-both");
        if attach() != "tracepoint" {
            client.expect_flag("fast_open");
            assert_eq!(server.has_flag("fast_open"), nth == 1, "only the second SYN has a cookie: {server}");
        }
        assert_eq!(client.text("id"), server.text("id"), "{client}\n{server}");
        server.expect_present("phases.accept_ns").expect_absent("evidence");
    }
    let records = all_of(watch.end(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (2, 2), "{records:?}");
}

#[test]
fn sendmsg_with_fast_open_is_an_active_open_too() {
    if !is_fit("sendmsg_with_fast_open_is_an_active_open_too") {
        return;
    }
    let netns = Netns::new("t");
    netns.set("ipv4/tcp_fastopen", "3");
    let watch = Watch::begin();
    let port = netns.on_thread("hs-sendmsg", || {
        let (listener, to) = loopback_listener();
        let client = tcp_socket();
        let sent = client.send_to_with_flags(b"x", &to.into(), libc::MSG_FASTOPEN);
        // Without a cookie the data waits for the handshake; a blocking call does too.
        assert_eq!(sent.expect("it connects and sends"), 1);
        drop(listener.accept().expect("a child is queued"));
        to.port()
    });
    watch
        .wait_for_end("client", port)
        .expect_text("outcome", "established")
        .expect_text("process.comm", "hs-sendmsg")
        .expect_present("latency_ns");
    watch.wait_for_end("server", port).expect_text("outcome", "established");
    let records = all_of(watch.end(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (1, 1), "{records:?}");
}

#[test]
fn a_fast_open_child_accepted_before_it_is_established_has_one_record() {
    const CONNECTIONS: usize = 50;
    if !is_fit("a_fast_open_child_accepted_before_it_is_established_has_one_record") {
        return;
    }
    let netns = Netns::new("t");
    netns.set("ipv4/tcp_fastopen", "3");
    let watch = Watch::begin();
    let port = netns.on_thread("hs-fast", || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
        let to = listener.local_addr().expect("it has an address");
        set_option(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16);
        for _ in 0..CONNECTIONS {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be made");
            set_option(&client, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1);
            client.connect(&to.into()).expect("it returns before any SYN left");
            client.send(b"x").expect("the SYN takes data along, once there is a cookie");
            let accepted = listener.accept().expect("a child is queued").0;
            // A child that was reset goes to CLOSED without FIN, and so is destroyed at once.
            reset(accepted);
            drop(client);
        }
        to.port()
    });
    let servers = || {
        let records = watch.records();
        records.into_iter().filter(|record| record.is("server", port)).collect::<Vec<_>>()
    };
    until("every connection has its record", || servers().len() >= CONNECTIONS);
    let records = watch.end();
    let servers: Vec<_> = records.iter().filter(|record| record.is("server", port)).collect();
    assert_eq!(servers.len(), CONNECTIONS);
    for record in servers {
        record.expect_text("outcome", "established").expect_text("process.comm", "hs-fast");
    }
}

#[test]
fn a_fast_open_childs_syn_ack_that_is_sent_again_is_counted() {
    if !is_fit("a_fast_open_childs_syn_ack_that_is_sent_again_is_counted") {
        return;
    }
    // Accepted while it is half open, or only after the final ACK.
    for early in [true, false] {
        let pair = Pair::new();
        for netns in [&pair.client, &pair.server] {
            netns.set("ipv4/tcp_fastopen", "3");
        }
        let watch = Watch::begin();
        let listener = pair.server.on_thread("hs-listen", || {
            let listener = TcpListener::bind((SERVER_V4, 0)).expect("a port is free");
            set_option(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16);
            listener
        });
        let to: SocketAddr = listener.local_addr().expect("it is bound");
        let accept =
            || pair.server.on_thread("hs-server", || listener.accept().expect("a child is queued").0);
        let connect = || {
            let client = tcp_socket();
            set_option(&client, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1);
            client.connect(&to.into()).expect("it returns before any SYN left");
            client
        };
        pair.client.on_thread("hs-cookie", || {
            let client = connect();
            client.send(b"x").expect("it waits for the handshake");
            drop((accept(), client));
        });
        // With the cookie the SYN carries data and makes a child at once; its SYN-ACK gets nowhere.
        pair.server_reaches_client(false);
        let client = pair.client.on_thread("hs-client", || {
            let client = connect();
            client.set_nonblocking(true).expect("it can be set");
            client.send(b"x").expect("the SYN takes it along");
            client
        });
        let port = client.local_addr().expect("it is bound").as_socket().expect("it is IPv4").port();
        pair.server.on_thread("hs-wait", || wait_for_request(to.port()));
        let taken = early.then(accept);
        // The retransmissions stand in the kernel's own table, for the child in SYN-RECEIVED.
        pair.server.on_thread("hs-wait", || {
            until("the SYN-ACK was sent again", || {
                std::fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|text| {
                    let child = format!(":{port:04X} 03 ");
                    let count = |line: &str| line.split_whitespace().nth(6).map(str::to_owned);
                    text.lines()
                        .filter(|line| line.contains(&child))
                        .any(|line| count(line).as_deref() != Some("00000000"))
                })
            });
        });
        pair.server_reaches_client(true);
        pair.client.on_thread("hs-client", || finish(&client).expect("a SYN-ACK arrives"));
        pair.server.on_thread("hs-wait", || wait_for_state(port, super::traffic::ESTABLISHED));
        let taken = taken.unwrap_or_else(accept);
        let of = |role: &'static str, end: &'static str| {
            watch.wait_for(&format!("the {role}, accepted early: {early}"), move |record| {
                record.is(role, to.port()) && record.number(end) == Some(u64::from(port))
            })
        };
        let (client_record, server) = (of("client", "local.port"), of("server", "remote.port"));
        expect_one_handshake(&client_record, &server);
        server
            .expect_plainly_established()
            .expect_thread("hs-server")
            .expect_within("latency_ns", 900..=60_000)
            .expect_none_of(&["rtt_ns", "dropped"]);
        let again = server.number("retransmits.syn_ack");
        assert!(again.is_some_and(|count| (1..=20).contains(&count)), "accepted early: {early}: {server}");
        if has_probes() {
            server
                .expect_flags_are(&["fast_open"])
                .expect_within("retransmits.waited_ns", 900..=60_000)
                .expect_number("retransmits.syn_seen", 1);
        } else {
            // That accept() took it in SYN-RECEIVED is all that shows it.
            server
                .expect_flags_are(if early { &["fast_open"] } else { &[] })
                .expect_none_of(&["retransmits.waited_ns", "retransmits.syn_seen"]);
        }
        watch.end();
        drop((client, taken));
    }
}
