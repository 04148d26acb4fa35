//! SYNs and final ACKs that the host drops: by full queues, for good or until there is room.
//!
//! What a reader would get wrong: a listener with a backlog of 1 takes two children, for the kernel asks whether
//! there are more than the limit; and under lockdown nobody may read whose SYN it was.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    ops::RangeInclusive,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    environment::{has_probes, is_fit, is_locked_down},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    plain::{dropped, expect_counts, expect_fillers, expect_fillers_beside_a_request, server_of},
    record::{Record, all_of},
    second_account::counter,
    tracer::Tracer,
    traffic::{
        ESTABLISHED, SYN_SENT, connect_without_waiting, finish, until, wait_for_no_request, wait_for_request,
        wait_for_state,
    },
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, Whole, expect_one_agreement, expect_one_handshake},
};

/// A listener of this process with room for two children.
pub fn small_listener(netns: &Netns) -> (TcpListener, SocketAddr) {
    netns.on_thread("hs-listen", || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        let any: SocketAddr = "0.0.0.0:0".parse().expect("an address");
        socket.bind(&any.into()).expect("a port is free");
        socket.listen(1).expect("it can listen");
        let listener = TcpListener::from(socket);
        let port = listener.local_addr().expect("it is bound").port();
        (listener, format!("{SERVER_V4}:{port}").parse().expect("an address"))
    })
}

/// Fills its accept queue from inside its own namespace.
pub fn fill(netns: &Netns, to: SocketAddr) -> [TcpStream; 2] {
    netns.on_thread("hs-filler", || {
        let stream = [(); 2].map(|()| TcpStream::connect(to).expect("there is room"));
        // The client's end is ESTABLISHED first; then the children are queued.
        until("two children are queued", || {
            std::fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|text| {
                let end = format!(":{:04X} ", to.port());
                text.lines().filter(|line| line.contains(&end) && line.contains(" 01 ")).count() == 4
            })
        });
        stream
    })
}

fn from_client(record: &Record, port: u16) -> bool {
    let remote = record.text("remote.address");
    record.is("server", port) && (remote == Some(CLIENT_V4) || is_locked_down() && remote.is_none())
}

#[test]
fn syns_at_a_full_accept_queue_are_dropped_with_that_reason() {
    if !is_fit("syns_at_a_full_accept_queue_are_dropped_with_that_reason") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    let streams = fill(&pair.server, to);
    pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_retransmissions(to.port(), 1);
        drop(socket);
    });
    let client = watch.wait_in(&pair.client, "client", to.port());
    let sent = client.number("evidence.syns").expect("SYNs are counted");
    // It is closed as soon as the kernel has counted the second; on a busy machine there may be a third.
    assert!((2..=3).contains(&sent), "{client}");
    client
        .whole("client", "cancelled", &pair.client)
        .evidence("closed_in_syn_sent", None)
        .number("evidence.syns", sent)
        .ends(CLIENT_V4, SERVER_V4, to.port())
        .thread("hs-client")
        .present("isn.local")
        .within("phases.local_ns", AT_ONCE)
        .within("failed_after_ns", 950..=3_500)
        .syns(sent - 1)
        .within("retransmits.waited_ns", 950..=3_500)
        .flags(&["non_blocking"])
        .nothing_else();
    let told = if has_probes() {
        let server = watch.wait_for("the dropped SYNs", |record| {
            from_client(record, to.port()) && record.text("outcome") == Some("syn_dropped")
        });
        expect_dropped_at_full_queue(&server, &client, &pair, sent);
        1
    } else {
        // A dropped SYN leaves no socket and no tracepoint.
        0
    };
    expect_fillers(&watch, &pair.server, to, &streams, false);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 4 + told as usize)]);
    drop(listener);
}

/// All that is known under lockdown of where a segment was going: which listener had it.
#[track_caller]
pub fn at_listener(whole: Whole<'_>, port: u16) -> Whole<'_> {
    whole.text("local.address", "0.0.0.0").number("local.port", u64::from(port))
}

/// The whole record of SYNs that a full accept queue dropped; under lockdown of nobody.
#[track_caller]
fn expect_dropped_at_full_queue(server: &Record, client: &Record, pair: &Pair, sent: u64) {
    let port = client.number("remote.port").and_then(|port| u16::try_from(port).ok()).expect("it is known");
    dropped(server, "syn_dropped", &pair.server, "accept_queue_full", sent)
        .number("accept_queue.length", 2)
        .number("accept_queue.limit", 1)
        .also(is_locked_down(), |whole| at_listener(whole, port))
        .also(!is_locked_down(), |whole| whole.ends(SERVER_V4, CLIENT_V4, port))
        .nothing_else();
    assert_eq!(server.get("isn.remote"), client.get("isn.local"), "{server}\n{client}");
    if !is_locked_down() {
        assert_eq!(server.get("remote"), client.get("local"), "{server}\n{client}");
    }
}

#[test]
fn a_syn_let_in_after_a_dropped_one_is_one_handshake_from_the_first_syn() {
    if !is_fit("a_syn_let_in_after_a_dropped_one_is_one_handshake_from_the_first_syn") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    let streams = fill(&pair.server, to);
    let socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        socket
    });
    // The SYN was processed before connect() came back: veth hands it over in the same softirq.
    let accepted =
        pair.server.on_thread("hs-server", || [(); 2].map(|()| listener.accept().expect("queued").0));
    pair.client.on_thread("hs-client", || finish(&socket).expect("the next SYN is let in"));
    let last = pair.server.on_thread("hs-server", || listener.accept().expect("queued").0);
    let record = watch.wait_for("the server's record", |record| {
        from_client(record, to.port()) && record.text("outcome") == Some("established")
    });
    let client = watch.wait_for("the client's record", |record| {
        record.is("client", to.port()) && record.text("local.address") == Some(CLIENT_V4)
    });
    client_again(&client, &pair, to.port(), 1, 900..=1_800).nothing_else();
    server_let_in(&record, &pair, to.port(), 1, 900..=1_800).nothing_else();
    expect_one_handshake(&client, &record);
    expect_fillers(&watch, &pair.server, to, &streams, true);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 5)]);
    drop((accepted, last));
}

/// The whole record of a client whose SYN was let in when it was sent again so many times.
#[track_caller]
fn client_again<'a>(
    client: &'a Record,
    pair: &Pair,
    port: u16,
    again: u64,
    took: RangeInclusive<u64>,
) -> Whole<'a> {
    client
        .whole("client", "established", &pair.client)
        .ends(CLIENT_V4, SERVER_V4, port)
        .thread("hs-client")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("latency_ns", took.clone())
        .within("phases.wire_ns", took.clone())
        .within("phases.local_ns", AT_ONCE)
        .syns(again)
        .within("retransmits.waited_ns", took)
        .flags(&["non_blocking"])
}

/// The whole record of its server; where nobody sees the drops, that of the SYN that was let in.
#[track_caller]
fn server_let_in<'a>(
    server: &'a Record,
    pair: &Pair,
    port: u16,
    dropped: u64,
    took: RangeInclusive<u64>,
) -> Whole<'a> {
    let ends = (SERVER_V4, CLIENT_V4, port);
    let accepted =
        |whole: Whole<'a>| whole.thread("hs-server").within("phases.accept_ns", AT_ONCE).queued(1..=1, 1..=1);
    if !has_probes() {
        return accepted(server_of(server, "established", &pair.server, ends).flags(&[]));
    }
    accepted(
        server
            .whole("server", "established", &pair.server)
            .ends(ends.0, ends.1, ends.2)
            .joined()
            .agreed(ETHERNET_MSS)
            .within("latency_ns", took.clone())
            // From the first SYN, which was dropped; the SYN-ACK and its ACK were sent once.
            .within("phases.synack_ns", took.clone())
            .within("phases.ack_ns", AT_ONCE)
            .within("rtt_ns", AT_ONCE)
            .text("dropped.cause", "accept_queue_full")
            .number("dropped.segments", dropped)
            .number("retransmits.syn_seen", dropped + 1)
            .number("retransmits.syn_ack", 0)
            .within("retransmits.waited_ns", took)
            .flags(&["syn_dropped"]),
    )
}

/// The kernel counts in /proc/net/tcp how often the SYN was sent again.
fn wait_for_retransmissions(port: u16, wanted: u32) {
    let end = format!(":{port:04X} 02 ");
    until("the SYN was sent again", || {
        std::fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|text| {
            text.lines().filter(|line| line.contains(&end)).any(|line| {
                let retransmits = line.split_whitespace().nth(6).unwrap_or("0");
                u32::from_str_radix(retransmits, 16).is_ok_and(|count| count >= wanted)
            })
        })
    });
}

#[test]
fn syns_dropped_at_gaps_of_one_to_eight_seconds_are_one_handshake() {
    if !is_fit("syns_dropped_at_gaps_of_one_to_eight_seconds_are_one_handshake") {
        return;
    }
    let pair = Pair::new();
    // Since 6.5 the first gaps are a second each; the doubling ones are the scenario.
    let linear = "/proc/sys/net/ipv4/tcp_syn_linear_timeouts";
    if std::path::Path::new(linear).exists() {
        pair.client.set("ipv4/tcp_syn_linear_timeouts", "0");
    }
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    let streams = fill(&pair.server, to);
    let socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        // Sent at 0, 1, 3 and 7 s; the next one, at 15 s, is let in.
        wait_for_retransmissions(to.port(), 3);
        socket
    });
    let accepted =
        pair.server.on_thread("hs-server", || [(); 2].map(|()| listener.accept().expect("queued").0));
    pair.client.on_thread("hs-client", || finish(&socket).expect("the next SYN is let in"));
    let last = pair.server.on_thread("hs-server", || listener.accept().expect("queued").0);
    let client = watch.wait_for("the client's record", |record| {
        record.is("client", to.port()) && record.text("local.address") == Some(CLIENT_V4)
    });
    let server = watch.wait_for("the server's record", |record| {
        from_client(record, to.port()) && record.text("outcome") == Some("established")
    });
    client_again(&client, &pair, to.port(), 4, 14_500..=17_000).nothing_else();
    server_let_in(&server, &pair, to.port(), 4, 14_500..=17_000).nothing_else();
    expect_one_handshake(&client, &server);
    expect_fillers(&watch, &pair.server, to, &streams, false);
    // One attempt is one handshake.
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 5)]);
    drop((accepted, last, listener));
}

#[test]
fn a_final_ack_at_a_full_accept_queue_leaves_only_the_client_connected() {
    if !is_fit("a_final_ack_at_a_full_accept_queue_leaves_only_the_client_connected") {
        return;
    }
    let pair = Pair::new();
    pair.server.set("ipv4/tcp_synack_retries", "1");
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    // The SYN is let in; until its SYN-ACK arrives the queue fills up.
    pair.server_reaches_client(false);
    let socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        socket
    });
    pair.server.on_thread("hs-wait", || wait_for_request(to.port()));
    let streams = fill(&pair.server, to);
    pair.server_reaches_client(true);
    pair.client.on_thread("hs-client", || {
        finish(&socket).expect("the SYN-ACK is sent again");
        wait_for_state(to.port(), ESTABLISHED);
    });
    let client = watch.wait_in(&pair.client, "client", to.port());
    connected_late(&client, &pair, to.port()).nothing_else();
    if has_probes() {
        let server = watch.wait_for("the dropped ACK", |record| {
            record.is("server", to.port()) && record.text("outcome") == Some("ack_dropped")
        });
        let syn_acks = server.number("evidence.syn_acks").expect("SYN-ACKs are counted");
        let syns = client.number("retransmits.syn").expect("SYNs are counted") + 1;
        server
            .whole("server", "ack_dropped", &pair.server)
            .evidence("accept_queue_full", None)
            .number("evidence.syn_acks", syn_acks)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .thread("hs-listen")
            .joined()
            .agreed_half_open(ETHERNET_MSS)
            .within("phases.synack_ns", 0..=500)
            .within("phases.ack_ns", 900..=5_000)
            .within("failed_after_ns", 2_900..=9_000)
            .number_in("retransmits.syn_ack", 1..=6)
            .number("retransmits.syn_seen", syns)
            .within("retransmits.waited_ns", 900..=7_000)
            .number("accept_queue.length", 2)
            .number("accept_queue.limit", 1)
            // The kernel marks this request as it marks one whose ACK waits for data (TCP_DEFER_ACCEPT).
            .flags(&["ack_dropped"])
            .nothing_else();
        expect_one_agreement(&client, &server);
    } else {
        // The request dies with its timer, and no tracepoint says so.
        pair.server.on_thread("hs-wait", || wait_for_no_request(to.port()));
    }
    expect_fillers_beside_a_request(&watch, &pair.server, to, &streams);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 4 + usize::from(has_probes()))]);
    drop(listener);
}

/// The whole record of a client whose first SYN-ACK was lost, and which had the second.
#[track_caller]
pub fn connected_late<'a>(client: &'a Record, pair: &Pair, port: u16) -> Whole<'a> {
    // How long it takes to fill the queue meanwhile, and who sends again first, client or server, is chance.
    let took = 900..=5_000;
    let again = client.number("retransmits.syn").expect("SYNs are counted");
    client
        .whole("client", "established", &pair.client)
        .ends(CLIENT_V4, SERVER_V4, port)
        .thread("hs-client")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("latency_ns", took.clone())
        .within("phases.wire_ns", took.clone())
        .within("phases.local_ns", AT_ONCE)
        .number_in("retransmits.syn", 0..=4)
        .also(again == 0, |whole| whole.number("retransmits.waited_ns", 0).within("rtt_ns", took.clone()))
        .also(again > 0, |whole| whole.within("retransmits.waited_ns", took.clone()))
        .flags(&["non_blocking"])
}

#[test]
fn a_listener_that_was_there_before_us_is_named_for_the_syns_that_it_drops() {
    if !is_fit("a_listener_that_was_there_before_us_is_named_for_the_syns_that_it_drops") {
        return;
    }
    let pair = Pair::new();
    let (listener, to) = small_listener(&pair.server);
    let _streams = fill(&pair.server, to);
    let tracer = Tracer::start(&["--netns", pair.server.name()]);
    let socket = pair.client.on_thread("hs-client", || connect_without_waiting(to));
    // That it was sent says not that it has arrived.
    until("the SYN was dropped", || counter(&pair.server, "netstat", "TcpExt:", "ListenOverflows") > 0);
    // With --duration or SIGINT an attempt that still waits for its next SYN is told too.
    let servers = all_of(tracer.stop(), &pair.server);
    // Without probes nothing tells of the drop.
    expect_counts(&servers, &[(&pair.server, usize::from(has_probes()))]);
    if let Some(server) = servers.first() {
        let sent = server.number("dropped.segments").expect("they are counted");
        let main_thread = std::fs::read_to_string("/proc/self/comm").expect("it can be read");
        server
            .whole("server", "syn_dropped", &pair.server)
            .evidence("accept_queue_full", None)
            .text("dropped.cause", "accept_queue_full")
            // A busy machine may stop us after the second one, or the third.
            .number_in("dropped.segments", 1..=4)
            .number("retransmits.syn_seen", sent)
            // The owner of a listener that was there before us is known as a process, not as a thread.
            .number("process.pid", u64::from(std::process::id()))
            .number("process.tid", u64::from(std::process::id()))
            .text("process.comm", main_thread.trim_end())
            .number("process.uid", 0)
            .present("isn.remote")
            .number("accept_queue.length", 2)
            .number("accept_queue.limit", 1)
            .also(is_locked_down(), |whole| at_listener(whole, to.port()))
            .also(!is_locked_down(), |whole| whole.ends(SERVER_V4, CLIENT_V4, to.port()))
            .flags(&[])
            .nothing_else();
    }
    drop((listener, socket));
}
