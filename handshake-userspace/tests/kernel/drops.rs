//! SYNs and final ACKs that the host drops: by full queues, by a firewall, for good or until there is room.
//!
//! What a reader would get wrong: a listener with a backlog of 1 takes two children, for the kernel asks whether
//! there are more than the limit; and under lockdown nobody may read whose SYN it was.

use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    environment::{has_drop_reasons, has_probes, in_vm, is_fit, is_locked_down, run, skip},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    record::Record,
    tracer::Tracer,
    traffic::{
        ESTABLISHED, SYN_SENT, connect_without_waiting, finish, until, wait_for_request, wait_for_state,
    },
    watch::Watch,
    whole::expect_one_handshake,
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

/// Every SYN that was sent was dropped, and told.
#[track_caller]
fn all_dropped(record: &Record, sent: u64) {
    record.expect_number("dropped.segments", sent);
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
    let _streams = fill(&pair.server, to);
    pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_retransmissions(to.port(), 1);
        drop(socket);
    });
    let client = watch.wait_for("the client that gave up", |record| {
        record.is("client", to.port()) && record.text("outcome") == Some("cancelled")
    });
    assert!(client.number("retransmits.syn").is_some_and(|count| count >= 1), "{client}");
    if !has_probes() {
        // A dropped SYN leaves no socket and no tracepoint.
        let records = watch.end();
        assert!(!records.iter().any(|record| from_client(record, to.port())), "{records:?}");
        return;
    }
    let dropped = watch.wait_for("the dropped SYNs", |record| {
        from_client(record, to.port()) && record.text("outcome") == Some("syn_dropped")
    });
    dropped
        .expect_text("evidence.kind", "accept_queue_full")
        .expect_text("dropped.cause", "accept_queue_full")
        .expect_number("accept_queue.length", 2)
        .expect_number("accept_queue.limit", 1)
        .expect_number("process.pid", u64::from(std::process::id()))
        .expect_number("netns", pair.server.inode())
        .expect_number("isn.remote", client.number("isn.local").expect("it sent a SYN"))
        .expect_absent("latency_ns");
    if is_locked_down() {
        dropped.expect_number("dropped.segments", 1).expect_absent("remote");
    } else {
        let sent = client.number("retransmits.syn").expect("it is counted") + 1;
        all_dropped(&dropped, sent);
        assert_eq!(dropped.get("remote"), client.get("local"));
    }
    watch.end();
    drop(listener);
}

#[test]
fn a_syn_let_in_after_a_dropped_one_is_one_handshake_from_the_first_syn() {
    if !is_fit("a_syn_let_in_after_a_dropped_one_is_one_handshake_from_the_first_syn") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    let _streams = fill(&pair.server, to);
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
    client.expect_text("outcome", "established").expect_number("retransmits.syn", 1);
    assert_eq!(client.text("id"), record.text("id"));
    if has_probes() && !is_locked_down() {
        record
            .expect_flag("syn_dropped")
            .expect_text("dropped.cause", "accept_queue_full")
            .expect_number("dropped.segments", 1)
            .expect_number("retransmits.syn_seen", 2)
            .expect_within("retransmits.waited_ns", 900..=1_500)
            .expect_within("latency_ns", 900..=1_800);
    } else {
        record.expect_within("latency_ns", 0..=500);
    }
    watch.end();
    drop((accepted, last));
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
    let _streams = fill(&pair.server, to);
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
    client
        .expect_plainly_established()
        .expect_number("retransmits.syn", 4)
        .expect_within("retransmits.waited_ns", 14_500..=16_500)
        .expect_flags_are(&["non_blocking"]);
    expect_one_handshake(&client, &server);
    server.expect_text("outcome", "established").expect_thread("hs-server").expect_absent("evidence");
    let records = watch.end();
    let of_it = records.iter().filter(|record| from_client(record, to.port())).count();
    if is_locked_down() {
        // Nobody may read whose SYNs were dropped, so each is told by itself.
        assert_eq!(of_it, 5, "{records:?}");
        server.expect_flags_are(&[]).expect_absent("dropped").expect_within("latency_ns", 0..=900);
    } else if has_probes() {
        assert_eq!(of_it, 1, "one attempt is one handshake: {records:?}");
        server
            .expect_flags_are(&["syn_dropped"])
            .expect_text("dropped.cause", "accept_queue_full")
            .expect_number("dropped.segments", 4)
            .expect_number("retransmits.syn_seen", 5)
            .expect_number("retransmits.syn_ack", 0)
            .expect_within("retransmits.waited_ns", 14_500..=16_500)
            .expect_within("latency_ns", 14_500..=17_000);
    } else {
        assert_eq!(of_it, 1, "{records:?}");
        server.expect_flags_are(&[]).expect_absent("dropped").expect_within("latency_ns", 0..=900);
    }
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
    let _streams = fill(&pair.server, to);
    pair.server_reaches_client(true);
    pair.client.on_thread("hs-client", || {
        finish(&socket).expect("the SYN-ACK is sent again");
        wait_for_state(to.port(), ESTABLISHED);
    });
    watch
        .wait_for("the client's record", |record| {
            record.is("client", to.port()) && record.text("local.address") == Some(CLIENT_V4)
        })
        .expect_text("outcome", "established");
    if has_probes() {
        watch
            .wait_for("the dropped ACK", |record| {
                record.is("server", to.port()) && record.text("outcome") == Some("ack_dropped")
            })
            .expect_text("evidence.kind", "accept_queue_full")
            .expect_text("remote.address", CLIENT_V4)
            .expect_flag("ack_dropped")
            .expect_number("accept_queue.length", 2)
            .expect_number("accept_queue.limit", 1)
            .expect_number("process.pid", u64::from(std::process::id()))
            .expect_absent("latency_ns")
            .expect_absent("phases.accept_ns");
    }
    watch.end();
    drop(listener);
}

/// Drops every SYN in a chain; `None` where that can't be done.
fn firewall(test: &str, netns: &Netns, chain: &str) -> Option<()> {
    rule(test, netns, chain, "tcp flags & syn == syn drop")
}

/// One rule in a chain of that hook; `None` where that can't be done.
pub fn rule(test: &str, netns: &Netns, chain: &str, rule: &str) -> Option<()> {
    if !in_vm() {
        skip(test, "this kernel has no nf_tables");
        return None;
    }
    let nft = |rule: &str| run(&format!("ip netns exec {} nft {rule}", netns.name()));
    nft("add table inet hs");
    nft(&format!("add chain inet hs {chain} {{ type filter hook {chain} priority 0 ; }}"));
    nft(&format!("add rule inet hs {chain} {rule}"));
    Some(())
}

#[test]
fn a_syn_that_the_servers_firewall_drops_is_told_with_the_kernels_reason() {
    const NAME: &str = "a_syn_that_the_servers_firewall_drops_is_told_with_the_kernels_reason";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let Some(()) = firewall(NAME, &pair.server, "input") else { return };
    pair.client.set("ipv4/tcp_syn_retries", "1");
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("nothing is let in"));
    let client = watch.wait_for_end("client", to.port());
    client.expect_text("outcome", "timed_out").expect_absent("dropped");
    if has_drop_reasons() {
        watch
            .wait_for_end("server", to.port())
            .expect_text("outcome", "syn_dropped")
            .expect_text("evidence.kind", "drop_reason")
            .expect_text("dropped.reason", "NETFILTER_DROP")
            .expect_text("remote.address", CLIENT_V4)
            .expect_number("accept_queue.length", 0)
            .expect_number("accept_queue.limit", 1)
            .expect_number("netns", pair.server.inode());
        let dropped = watch.wait_for_end("server", to.port());
        all_dropped(&dropped, client.number("evidence.syns").expect("SYNs are counted"));
    }
    watch.end();
    drop(listener);
}

#[test]
fn a_syn_that_the_clients_own_firewall_drops_is_told_at_the_client() {
    const NAME: &str = "a_syn_that_the_clients_own_firewall_drops_is_told_at_the_client";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let Some(()) = firewall(NAME, &pair.client, "output") else { return };
    pair.client.set("ipv4/tcp_syn_retries", "1");
    let watch = Watch::begin();
    let to: SocketAddr = format!("{SERVER_V4}:95").parse().expect("an address");
    pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("nothing gets out"));
    let client = watch.wait_for_end("client", to.port());
    client.expect_text("outcome", "timed_out");
    assert!(client.number("evidence.syns").is_some_and(|count| count >= 2), "TCP tried again: {client}");
    if has_drop_reasons() {
        client.expect_flag("syn_dropped").expect_text("dropped.reason", "NETFILTER_DROP");
        all_dropped(&client, client.number("evidence.syns").expect("SYNs are counted"));
    }
    let records = watch.end();
    assert!(!records.iter().any(|record| record.is("server", to.port())), "it never arrived: {records:?}");
}

#[test]
fn a_syn_ack_that_the_clients_firewall_drops_is_no_syn_that_this_host_dropped() {
    const NAME: &str = "a_syn_ack_that_the_clients_firewall_drops_is_no_syn_that_this_host_dropped";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    // The rule takes every segment with SYN, which on its way in to a client is the SYN-ACK.
    let Some(()) = firewall(NAME, &pair.client, "input") else { return };
    pair.client.set("ipv4/tcp_syn_retries", "1");
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("no answer gets in"));
    watch
        .wait_for_end("client", to.port())
        .expect_text("outcome", "timed_out")
        .expect_absent("dropped")
        .expect_absent("latency_ns");
    watch.end();
    drop(listener);
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
    if has_probes() {
        // With --duration or SIGINT an attempt that still waits for its next SYN is told too.
        let records = tracer.stop();
        let dropped = records.iter().find(|record| record.text("outcome") == Some("syn_dropped"));
        dropped.expect("the SYN was dropped").expect_number("process.pid", u64::from(std::process::id()));
    } else {
        // Nothing tells of the drop; a child that nobody accepts is what names the listener's owner, where a
        // mode sees the listener at all.
        tracer.stop();
    }
    drop((listener, socket));
}
