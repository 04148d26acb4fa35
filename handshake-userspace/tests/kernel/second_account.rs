//! The kernel's own counters (/proc/PID/net/snmp and netstat) beside ours: they agree whatever happens, and where
//! something was lost on purpose the difference is exactly that.
//!
//! What a reader would get wrong: the program compares every network namespace of the machine, not only the
//! scenario's; so others may be at work meanwhile, and a scenario looks at its own namespaces one by one.

use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::process::Signal;
use serde_json::Value;

use super::{
    environment::{has_probes, is_fit, is_fit_once},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4, SERVER_V6},
    peer::Server,
    record::{Record, all_of, count},
    tracer::Tracer,
    traffic::{
        SYN_SENT, connect_without_waiting, loopback_listener, set_option, tcp_socket, until,
        wait_for_request, wait_for_state,
    },
};

/// A counter of a namespace, read by this test itself.
pub fn counter(netns: &Netns, file: &str, group: &str, name: &str) -> u64 {
    let text = netns.on_thread("hs-counter", || {
        std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("the kernel counts")
    });
    let rows: Vec<Vec<&str>> =
        text.lines().filter(|line| line.starts_with(group)).map(|line| line.split(' ').collect()).collect();
    let at = rows[0].iter().position(|named| *named == name).expect("it counts this");
    rows[1][at].parse().expect("it is a number")
}

fn active_opens(netns: &Netns) -> u64 {
    counter(netns, "snmp", "Tcp:", "ActiveOpens")
}

fn passive_opens(netns: &Netns) -> u64 {
    counter(netns, "snmp", "Tcp:", "PassiveOpens")
}

/// The differences that the last record names for a namespace.
fn differences(health: &Record, netns: &Netns) -> Vec<Value> {
    let all =
        health.get("kernel_counters.differences").and_then(Value::as_array).cloned().unwrap_or_default();
    all.into_iter().filter(|difference| difference["netns"].as_u64() == Some(netns.inode())).collect()
}

#[track_caller]
pub fn expect_agreement(health: &Record, namespaces: &[&Netns]) {
    assert_eq!(health.get("kernel_counters.not_compared"), None, "{health}");
    for netns in namespaces {
        assert_eq!(differences(health, netns), [] as [Value; 0], "{health}");
    }
    // Nobody else's either: on a machine where nothing is lost the two accounts are one.
    assert_eq!(health.get("kernel_counters.agree"), Some(&Value::Bool(true)), "{health}");
}

/// A client whose SYN-ACK does not arrive; its request is half open at the server.
fn half_open(pair: &Pair, to: SocketAddr) -> socket2::Socket {
    let socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        socket
    });
    pair.server.on_thread("hs-look", || wait_for_request(to.port()));
    socket
}

#[test]
fn the_kernel_counted_every_handshake_of_a_mixed_load_that_we_saw() {
    const EACH: usize = 20;
    if !is_fit("the_kernel_counted_every_handshake_of_a_mixed_load_that_we_saw") {
        return;
    }
    let (pair, alone) = (Pair::new(), Netns::new("l"));
    // Made before we watch, so that its counters don't begin at 0.
    alone.on_thread("hs-before", || {
        let (listener, to) = loopback_listener();
        let _stream = TcpStream::connect(to).expect("it listens");
        drop(listener.accept().expect("a child is queued"));
    });
    alone.set("ipv4/tcp_syn_retries", "1");
    let before = active_opens(&alone);
    let tracer = Tracer::start(&[]);
    // A namespace that is younger than we are, and so in the records only.
    let young = Netns::new("y");
    for netns in [&alone, &young] {
        netns.on_thread("hs-both", || {
            for listen in ["127.0.0.1:0", "[::1]:0"] {
                let listener = TcpListener::bind(listen).expect("loopback is up");
                let to = listener.local_addr().expect("it has an address");
                for _ in 0..EACH {
                    let stream = TcpStream::connect(to).expect("it listens");
                    let accepted = listener.accept().expect("a child is queued");
                    drop((stream, accepted));
                }
                let _never_accepted = TcpStream::connect(to).expect("it listens");
                drop(listener);
                TcpStream::connect(to).expect_err("nobody listens");
            }
        });
    }
    // Closed in SYN-SENT, given up by the kernel, and a call that no SYN follows.
    alone.ip("link add dummy0 type veth peer name dummy1");
    alone.ip("address add 192.0.2.9/24 dev dummy0");
    alone.ip("link set dummy0 up");
    alone.ip("link set dummy1 up");
    alone.ip("neigh replace 192.0.2.77 lladdr 02:00:00:00:99:ff dev dummy0 nud permanent");
    let nobody: SocketAddr = "192.0.2.77:181".parse().expect("an address");
    alone.on_thread("hs-alone", || {
        drop(connect_without_waiting(nobody));
        TcpStream::connect(nobody).expect_err("nobody answers");
        TcpStream::connect("203.0.113.1:9").expect_err("no route leads there");
    });
    // A RST ends a half-open request: the SYN-ACK that is sent again finds no client.
    let server = Server::start(&pair.server, "0.0.0.0:0");
    let to = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    pair.server_reaches_client(false);
    drop(half_open(&pair, to));
    pair.server_reaches_client(true);
    until("the request was reset", || counter(&pair.server, "netstat", "TcpExt:", "EmbryonicRsts") == 1);
    let second = Server::start(&pair.server, "[::]:0");
    pair.client.on_thread("hs-client", || {
        let to = format!("[{SERVER_V6}]:{}", second.port);
        drop(TcpStream::connect(to).expect("it listens"));
    });
    let expected = [active_opens(&alone) - before, active_opens(&young), active_opens(&pair.client)];
    let children = [passive_opens(&young), passive_opens(&pair.server)];
    let records = tracer.stop();
    let health = records.last().expect("there is a last record");
    expect_agreement(health, &[&alone, &pair.client, &pair.server]);
    assert!(health.number("kernel_counters.failed_opens.seen").is_some_and(|failed| failed >= 3), "{health}");
    if has_probes() {
        let resets = health.number("kernel_counters.embryonic_resets.seen");
        assert!(resets.is_some_and(|resets| resets >= 1), "{health}");
    } else {
        health.expect_absent("kernel_counters.embryonic_resets");
    }
    // And the records themselves are as many as this test counts.
    let with_syn = |netns| {
        let ours = all_of(records.clone(), netns);
        ours.iter().filter(|record| record.number("retransmits.syn").is_some()).count() as u64
    };
    assert_eq!([with_syn(&alone), with_syn(&young), with_syn(&pair.client)], expected, "{health}");
    assert_eq!(count(&all_of(records.clone(), &young), "server") as u64, children[0], "{health}");
    assert_eq!(children[1], 1);
}

#[test]
fn a_handshake_that_is_open_when_we_start_or_stop_is_counted_once() {
    if !is_fit_once("a_handshake_that_is_open_when_we_start_or_stop_is_counted_once") {
        return;
    }
    let pair = Pair::new();
    let mut server = Server::start(&pair.server, "0.0.0.0:0");
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    pair.client.on_thread("hs-early", || {
        drop(TcpStream::connect(to).expect("it listens"));
    });
    pair.server_reaches_client(false);
    let early = half_open(&pair, to);
    let doomed = half_open(&pair, to);
    let tracer = Tracer::start(&[]);
    drop(doomed);
    server.accept();
    let late = half_open(&pair, to);
    pair.server_reaches_client(true);
    super::traffic::finish(&early).expect("its SYN-ACK is sent again");
    until("the doomed request was reset", || {
        counter(&pair.server, "netstat", "TcpExt:", "EmbryonicRsts") == 1
    });
    super::traffic::finish(&late).expect("its SYN-ACK is sent again");
    pair.server_reaches_client(false);
    let _open = half_open(&pair, to);
    let records = tracer.stop();
    let health = records.last().expect("there is a last record");
    expect_agreement(health, &[&pair.client, &pair.server]);
    assert!(health.number("kernel_counters.active_opens.seen").is_some_and(|opens| opens >= 2), "{health}");
    assert!(health.number("kernel_counters.passive_opens.seen").is_some_and(|opens| opens >= 2), "{health}");
}

#[test]
fn a_fast_open_child_that_is_reset_half_open_is_in_both_accounts() {
    if !is_fit_once("a_fast_open_child_that_is_reset_half_open_is_in_both_accounts") {
        return;
    }
    let pair = Pair::new();
    for netns in [&pair.client, &pair.server] {
        netns.set("ipv4/tcp_fastopen", "3");
    }
    let tracer = Tracer::start(&[]);
    let (listener, to) = pair.server.on_thread("hs-server", || {
        let listener = TcpListener::bind((SERVER_V4, 0)).expect("the address is there");
        set_option(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16);
        let to = listener.local_addr().expect("it has an address");
        (listener, to)
    });
    let fast = || {
        let client = tcp_socket();
        set_option(&client, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1);
        client.connect(&to.into()).expect("it returns before any SYN left");
        client.set_nonblocking(true).expect("a socket can be non-blocking");
        let _ = client.send(b"x");
        client
    };
    let failed = || counter(&pair.server, "snmp", "Tcp:", "AttemptFails");
    let children = || passive_opens(&pair.server);
    pair.client.on_thread("hs-cookie", || {
        let client = fast();
        super::traffic::finish(&client).expect("it listens");
        until("the cookie came with the first connection", || children() == 1);
        drop(client);
    });
    pair.server_reaches_client(false);
    let client = pair.client.on_thread("hs-fast", fast);
    until("Fast Open made a child of the SYN", || children() == 2);
    let port = client.local_addr().expect("it is bound").as_socket().expect("it is IPv4").port();
    drop(client);
    pair.server_reaches_client(true);
    until("the SYN-ACK that is sent again was answered by a RST", || failed() != 0);
    drop(listener);
    let records = tracer.stop();
    expect_agreement(records.last().expect("there is a last record"), &[&pair.client, &pair.server]);
    // The SYN's data dies with the child that holds it; nobody dropped the SYN.
    let is_dropped =
        |record: &&Record| record.text("outcome") == Some("syn_dropped") && record.is("server", to.port());
    assert_eq!(records.iter().find(is_dropped), None);
    expect_reset_child(&records, &pair, (to.port(), port));
}

/// The record of the child that was reset half open, and what became of it in the accept queue, where its listener left
/// it.
#[track_caller]
fn expect_reset_child(records: &[Record], pair: &Pair, (listening, port): (u16, u16)) {
    let ours = all_of(records.to_vec(), &pair.server);
    let of_port: Vec<_> =
        ours.iter().filter(|record| record.number("remote.port") == Some(u64::from(port))).collect();
    let [record] = of_port[..] else { panic!("one record has remote port {port}: {records:?}") };
    let whole = record.whole("server", "reset", &pair.server);
    let whole = if has_probes() {
        whole.joined().thread("hs-server").number("retransmits.syn_seen", 1)
    } else {
        whole
    };
    whole
        .text("local.address", SERVER_V4)
        .text("remote.address", CLIENT_V4)
        .number("remote.port", u64::from(port))
        .number("local.port", u64::from(listening))
        .evidence("reset_received", Some("ECONNRESET"))
        .number_in("evidence.syn_acks", 2..=20)
        .number_in("retransmits.syn_ack", 1..=19)
        .within("failed_after_ns", 900..=60_000)
        .within("retransmits.waited_ns", 900..=60_000)
        .also(has_probes(), |whole| whole.within("phases.synack_ns", 0..=500))
        // The connection that brought the cookie is in the queue too.
        .queued(2..=2, 128..=4_096)
        .flags(&["fast_open"])
        .nothing_else();
    let key = record.text("key");
    let left = |record: &&Record| record.text("kind") == Some("accept") && record.text("key") == key;
    let left: Vec<_> = records.iter().filter(left).map(|record| record.text("outcome")).collect();
    assert_eq!(left, [Some("never_accepted")], "{records:?}");
}

#[test]
fn what_the_ring_lost_is_what_the_kernel_counted_more() {
    const CONNECTIONS: u64 = 500;
    if !is_fit_once("what_the_ring_lost_is_what_the_kernel_counted_more") {
        return;
    }
    let netns = Netns::new("d");
    let tracer = Tracer::start(&["--netns", netns.name(), "--ring-bytes", "64KiB"]);
    // Nobody drains: 64 KiB hold some 300 events, and these connections make thousands.
    tracer.signal(Signal::STOP);
    netns.on_thread("hs-both", || {
        let (listener, to) = loopback_listener();
        for _ in 0..CONNECTIONS {
            let _stream = TcpStream::connect(to).expect("it listens");
            drop(listener.accept().expect("a child is queued"));
        }
    });
    assert_eq!(active_opens(&netns), CONNECTIONS);
    tracer.signal(Signal::CONT);
    let (records, log) = tracer.stop_with_log();
    let health = records.last().expect("there is a last record");
    let clients = count(&all_of(records.clone(), &netns), "client") as u64;
    assert!(clients < CONNECTIONS, "the ring was too large to lose a whole handshake: {health}");
    assert_eq!(health.get("kernel_counters.agree"), Some(&Value::Bool(false)), "{health}");
    health
        .expect_number("kernel_counters.namespaces", 1)
        .expect_number("kernel_counters.active_opens.kernel", CONNECTIONS)
        .expect_number("kernel_counters.active_opens.seen", clients)
        .expect_number("kernel_counters.active_opens.missing", CONNECTIONS - clients)
        .expect_number("kernel_counters.passive_opens.kernel", CONNECTIONS)
        .expect_present("kernel_counters.passive_opens.missing")
        .expect_number("kernel_counters.unexplained", 0);
    assert_eq!(differences(health, &netns).len(), 2, "{health}");
    let line = format!(
        "kernel counters disagree: the kernel counted {CONNECTIONS} active opens, {clients} were seen ({} missing)",
        CONNECTIONS - clients
    );
    assert!(log.iter().any(|said| said.starts_with(&line)), "{line}\n{log:#?}");
    assert!(log.iter().any(|said| said.contains("lost events may account for it")), "{log:#?}");
}

#[test]
fn a_health_record_while_we_run_has_both_accounts() {
    if !is_fit_once("a_health_record_while_we_run_has_both_accounts") {
        return;
    }
    let netns = Netns::new("h");
    let tracer = Tracer::start(&["--netns", netns.name()]);
    netns.on_thread("hs-both", || {
        let (listener, to) = loopback_listener();
        let _stream = TcpStream::connect(to).expect("it listens");
        drop(listener.accept().expect("a child is queued"));
    });
    let health = tracer.wait_for("a health record", |record| record.text("kind") == Some("health"));
    assert_eq!(health.get("kernel_counters.agree"), Some(&Value::Bool(true)), "{health}");
    health
        .expect_number("kernel_counters.namespaces", 1)
        .expect_number("kernel_counters.namespaces_left_out", 0)
        .expect_number("kernel_counters.active_opens.kernel", 1)
        .expect_number("kernel_counters.passive_opens.kernel", 1);
    tracer.stop();
}

#[test]
fn under_a_filter_by_port_the_kernel_counts_something_else() {
    if !is_fit_once("under_a_filter_by_port_the_kernel_counts_something_else") {
        return;
    }
    let tracer = Tracer::start(&["--port", "9"]);
    let (records, log) = tracer.stop_with_log();
    let health = records.last().expect("there is a last record");
    health.expect_text("kernel_counters.not_compared", "filtered").expect_absent("kernel_counters.agree");
    assert!(log.iter().any(|line| line.starts_with("kernel counters not compared: a filter")), "{log:#?}");
}

#[test]
fn a_namespace_that_ends_meanwhile_is_left_out_and_counted() {
    if !is_fit_once("a_namespace_that_ends_meanwhile_is_left_out_and_counted") {
        return;
    }
    let (old, young) = (Netns::new("o"), Netns::new("y"));
    let tracer = Tracer::start(&[]);
    let ports = [&old, &young].map(|netns| {
        netns.on_thread("hs-both", || {
            let (listener, to) = loopback_listener();
            let _stream = TcpStream::connect(to).expect("it listens");
            drop(listener.accept().expect("a child is queued"));
            to.port()
        })
    });
    ports.iter().for_each(|port| drop(tracer.wait_for_end("server", *port)));
    let inodes = [old.inode(), young.inode()];
    drop((old, young));
    let records = tracer.stop();
    let health = records.last().expect("there is a last record");
    assert_eq!(health.get("kernel_counters.agree"), Some(&Value::Bool(true)), "{health} {inodes:?}");
    assert!(
        health.number("kernel_counters.namespaces_left_out").is_some_and(|left_out| left_out >= 2),
        "{health}"
    );
}
