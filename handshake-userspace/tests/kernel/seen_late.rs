//! Handshakes that had begun before we watched: half open, queued, or in SYN-SENT when the program starts.
//!
//! What a reader would get wrong: such a record lacks what nobody counted then, and is flagged `seen_late`; but
//! how it ended is as certain as for any other.

use std::{
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use socket2::Socket;

use super::{
    environment::{attach, has_probes, in_vm, is_fit},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    record::{Record, all_of},
    tracer::Tracer,
    traffic::{
        accept_in, connect_without_waiting, finish, half_open, loopback_listener, queued, until,
        wait_for_no_request,
    },
    whole::{AT_ONCE, ETHERNET_MSS, Whole, expect_one_handshake},
};

/// What the iterator found first is told by a tracepoint's kind of hook too.
fn seen_by() -> &'static [&'static str] {
    if attach() == "tracepoint" { &["tracepoint"] } else { &["fentry", "kprobe", "mixed", "tracepoint"] }
}

/// What a record has of a child that was in the queue before us: which it was, and nothing of its handshake.
#[track_caller]
fn old_child<'a>(record: &'a Record, outcome: &str, pair: &Pair, stream_port: u64, port: u16) -> Whole<'a> {
    record
        .whole("server", outcome, &pair.server)
        .seen_by(seen_by())
        .ends(SERVER_V4, CLIENT_V4, port)
        .number("remote.port", stream_port)
}

fn port_of(stream: &TcpStream) -> u64 {
    u64::from(stream.local_addr().expect("it is bound").port())
}

/// The one record of the server's end.
#[track_caller]
fn only_server(records: Vec<Record>, pair: &Pair) {
    let servers = all_of(records, &pair.server);
    assert_eq!(servers.len(), 1, "{servers:?}");
}

/// No connection to a listener is told twice at one end: of a client's port there are as many records as connections were
/// made from it. Ends tell what ISNs can't, for a record that saw little has none.
#[track_caller]
fn expect_told_once(records: &[Record], listening: u16, made: &[u64]) {
    let (mut told, mut twice) = (0, Vec::new());
    for (role, end) in [("client", "local.port"), ("server", "remote.port")] {
        let mut left = made.to_vec();
        for record in records.iter().filter(|record| record.is(role, listening)) {
            told += 1;
            match left.iter().position(|port| Some(*port) == record.number(end)) {
                Some(place) => drop(left.swap_remove(place)),
                None => twice.push(record),
            }
        }
    }
    println!("told once: made={} told={told} twice={}", made.len(), twice.len());
    let all_of_it = |twice: &&Record| {
        let ends = [twice.number("local.port"), twice.number("remote.port")];
        records
            .iter()
            .filter(|record| {
                let theirs = [record.number("local.port"), record.number("remote.port")];
                record.text("role") == twice.text("role") && theirs == ends
            })
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert!(twice.is_empty(), "told twice: {:#?}", twice.iter().map(all_of_it).collect::<Vec<_>>());
}

/// Waits until the thread's namespace counts one more SYN-ACK of the listener's only request.
fn wait_for_next_syn_ack(port: u16) {
    let sent = || {
        let text = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("it can be read");
        let (own, state) = (format!(":{port:04X} "), " 03 ");
        let line = text.lines().find(|line| line.contains(&own) && line.contains(state)).map(str::to_owned);
        line.and_then(|line| line.split_whitespace().nth(6).map(str::to_owned))
    };
    let before = sent().expect("it is half open");
    until("a SYN-ACK is sent again", || sent().is_some_and(|now| now != before));
}

#[test]
fn a_request_that_was_half_open_before_us_times_out_before_our_eyes() {
    if !is_fit("a_request_that_was_half_open_before_us_times_out_before_our_eyes") {
        return;
    }
    let pair = Pair::new();
    let (listener, to, socket) = half_open(&pair);
    let tracer = Tracer::start(&[]);
    // Further SYNs would keep it alive.
    drop(socket);
    pair.client_reaches_server(false);
    // When a SYN-ACK was sent before us nobody knows; so one is before our eyes, and with it the timer gives up.
    pair.server.on_thread("hs-wait", || wait_for_next_syn_ack(to.port()));
    pair.server.set("ipv4/tcp_synack_retries", "1");
    if has_probes() {
        let server = tracer.wait_for_end("server", to.port());
        let again = server.number("retransmits.syn_ack").expect("the kernel had counted them");
        assert!(again >= 1, "{server}");
        let main_thread = std::fs::read_to_string("/proc/self/comm").expect("it can be read");
        server
            .whole("server", "timed_out", &pair.server)
            .seen_by(seen_by())
            .evidence("syn_ack_timeout", None)
            .number("evidence.syn_acks", again + 1)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            // The owner of a listener that was there before us is known as a process, not as a thread.
            .number("process.pid", u64::from(std::process::id()))
            .number("process.tid", u64::from(std::process::id()))
            .text("process.comm", main_thread.trim_end())
            .number("process.uid", 0)
            .joined()
            .agreed_half_open(ETHERNET_MSS)
            // From the first SYN-ACK, of which the request sock has the time.
            .within("failed_after_ns", 2_500..=60_000)
            .number("retransmits.syn_ack", again)
            .within("retransmits.waited_ns", 900..=60_000)
            .flags(&["seen_late"])
            .nothing_else();
    } else {
        pair.server.on_thread("hs-wait", || wait_for_no_request(to.port()));
    }
    let servers = all_of(tracer.stop(), &pair.server);
    assert_eq!(servers.len(), usize::from(has_probes()), "{servers:?}");
    drop(listener);
}

#[test]
fn a_request_that_was_half_open_before_us_is_established_from_its_syn_ack() {
    if !is_fit("a_request_that_was_half_open_before_us_is_established_from_its_syn_ack") {
        return;
    }
    let pair = Pair::new();
    let (listener, to, socket) = half_open(&pair);
    let tracer = Tracer::start(&[]);
    // No hook has a place to count this one.
    pair.client.on_thread("hs-wait", || wait_for_next_syn(to.port()));
    pair.server_reaches_client(true);
    pair.client.on_thread("hs-client", || finish(&socket).expect("the SYN-ACK is sent again"));
    let again = sent_again(&socket);
    let accepted = accept_in(&pair.server, &listener);
    let server = tracer.wait_for_end("server", to.port());
    server
        .whole("server", "established", &pair.server)
        .seen_by(seen_by())
        .ends(SERVER_V4, CLIENT_V4, to.port())
        .thread("hs-server")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("phases.accept_ns", AT_ONCE)
        .also(has_probes(), |whole| {
            whole
                .within("latency_ns", 500..=60_000)
                .within("phases.ack_ns", 500..=60_000)
                // While the hooks are verified in a guest, both ends send again and again.
                .number_in("retransmits.syn_ack", 1..=60)
                .within("retransmits.waited_ns", 500..=60_000)
        })
        .queued(1..=1, 128..=128)
        .flags(&["seen_late"])
        .nothing_else();
    let client = tracer.wait_for_end("client", to.port());
    // The kernel had counted its SYNs; when the first left, and who called, is before our time.
    assert!(again >= 1, "{client}");
    client
        .whole("client", "established", &pair.client)
        .seen_by(seen_by())
        .ends(CLIENT_V4, SERVER_V4, to.port())
        .joined()
        .agreed(ETHERNET_MSS)
        .number("retransmits.syn", again)
        .flags(&["seen_late"])
        .nothing_else();
    expect_one_handshake(&client, &server);
    only_server(tracer.stop(), &pair);
    drop(accepted);
}

/// Waits until the thread's namespace counts one more SYN to this port.
fn wait_for_next_syn(port: u16) {
    let sent = || {
        let text = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("it can be read");
        let end = format!(":{port:04X} 02 ");
        let line = text.lines().find(|line| line.contains(&end)).map(str::to_owned);
        line.and_then(|line| line.split_whitespace().nth(6).map(str::to_owned))
    };
    let before = sent().expect("it is in SYN-SENT");
    until("a SYN is sent again", || sent().is_some_and(|now| now != before));
}

/// How many segments a socket has sent again: before it is ESTABLISHED, SYNs.
fn sent_again(socket: &Socket) -> u64 {
    // SAFETY: plain integers, for which zeroes are values.
    let mut facts: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes no more than the given size to a tcp_info of this function.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut facts).cast(),
            &raw mut size,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    u64::from(facts.tcpi_total_retrans)
}

#[test]
fn a_connect_that_had_begun_before_us_is_given_up_refused_or_times_out_before_our_eyes() {
    const NOBODY: &str = "192.0.2.77";
    if !is_fit("a_connect_that_had_begun_before_us_is_given_up_refused_or_times_out_before_our_eyes") {
        return;
    }
    let pair = Pair::new();
    pair.nobody_has(NOBODY);
    // Nobody listens there either, which shows when a SYN arrives.
    pair.client_reaches_server(false);
    let connect = |address: &str, port: u16| {
        let to: SocketAddr = format!("{address}:{port}").parse().expect("an address");
        pair.client.on_thread("hs-client", || connect_without_waiting(to))
    };
    let (given_up, refused, out_of_time) =
        (connect(NOBODY, 7_001), connect(SERVER_V4, 7_002), connect(NOBODY, 7_003));
    let tracer = Tracer::start(&[]);
    let expect = |port: u16, address: &str, outcome: &str, evidence: (&str, Option<&str>), again: u64| {
        let record = tracer.wait_for_end("client", port);
        record
            .whole("client", outcome, &pair.client)
            .seen_by(seen_by())
            .evidence(evidence.0, evidence.1)
            .number("evidence.syns", again + 1)
            .ends(CLIENT_V4, address, port)
            .present("isn.local")
            .number("retransmits.syn", again)
            .flags(&["seen_late"])
            .nothing_else();
    };
    let again = sent_again(&given_up);
    drop(given_up);
    expect(7_001, NOBODY, "cancelled", ("closed_in_syn_sent", None), again);

    // The next SYN arrives: one that no hook has a place to count. It comes ever later, so no other is waited for.
    pair.client_reaches_server(true);
    pair.client.on_thread("hs-client", || finish(&refused).expect_err("nobody listens"));
    let by_reset = ("reset_received", Some("ECONNREFUSED"));
    expect(7_002, SERVER_V4, "refused", by_reset, sent_again(&refused));

    // One retry before 6.5, since then so many after the linear ones: the timer gives up when it fires next.
    pair.client.set("ipv4/tcp_syn_retries", "1");
    pair.client.on_thread("hs-client", || finish(&out_of_time).expect_err("nobody answers"));
    let by_timer = ("retransmit_timeout", Some("ETIMEDOUT"));
    expect(7_003, NOBODY, "timed_out", by_timer, sent_again(&out_of_time));

    let records = all_of(tracer.stop(), &pair.client);
    assert_eq!(records.len(), 3, "{records:?}");
}

#[test]
fn a_child_that_was_queued_before_us_is_told_when_it_is_accepted() {
    if !is_fit("a_child_that_was_queued_before_us_is_told_when_it_is_accepted") {
        return;
    }
    let pair = Pair::new();
    let (listener, to, stream) = queued(&pair);
    let tracer = Tracer::start(&[]);
    let accepted = accept_in(&pair.server, &listener);
    let server = tracer.wait_for_end("server", to.port());
    old_child(&server, "established", &pair, port_of(&stream), to.port())
        .evidence("accept_returned", None)
        .thread("hs-server")
        .flags(&["seen_late"])
        .nothing_else();
    drop((stream, accepted));
    let records = tracer.stop();
    assert!(!records.iter().any(|record| record.is("client", to.port())), "it was connected: {records:?}");
    only_server(records, &pair);
}

#[test]
fn a_child_that_was_queued_before_us_and_is_never_accepted_is_told_too() {
    if !is_fit("a_child_that_was_queued_before_us_and_is_never_accepted_is_told_too") {
        return;
    }
    let pair = Pair::new();
    let (listener, to, stream) = queued(&pair);
    let tracer = Tracer::start(&[]);
    pair.server.on_thread("hs-server", move || drop(listener));
    let server = tracer.wait_for_end("server", to.port());
    old_child(&server, "never_accepted", &pair, port_of(&stream), to.port())
        .evidence("child_destroyed", None)
        .flags(&["seen_late"])
        .nothing_else();
    only_server(tracer.stop(), &pair);
}

#[test]
fn a_rst_that_hits_a_child_that_was_queued_before_us_is_a_flag() {
    if !is_fit("a_rst_that_hits_a_child_that_was_queued_before_us_is_a_flag") {
        return;
    }
    let pair = Pair::new();
    let (listener, to, stream) = queued(&pair);
    let port = port_of(&stream);
    let tracer = Tracer::start(&[]);
    pair.client.on_thread("hs-client", || super::traffic::reset(stream));
    drop(accept_in(&pair.server, &listener));
    let server = tracer.wait_for_end("server", to.port());
    old_child(&server, "established", &pair, port, to.port())
        .evidence("accept_returned", None)
        .thread("hs-server")
        .flags(&["reset_in_queue", "seen_late"])
        .nothing_else();
    only_server(tracer.stop(), &pair);
}

#[test]
fn a_connection_that_was_accepted_before_us_is_no_handshake_of_ours() {
    if !is_fit("a_connection_that_was_accepted_before_us_is_no_handshake_of_ours") {
        return;
    }
    let pair = Pair::new();
    let (listener, to, stream) = queued(&pair);
    let accepted = accept_in(&pair.server, &listener);
    let tracer = Tracer::start(&[]);
    // Both ways to end: an owner's FIN, and a RST.
    super::traffic::reset(stream);
    drop((accepted, listener));
    // Whatever is told of it is told before what comes later.
    let (later, elsewhere) = loopback_listener();
    drop(TcpStream::connect(elsewhere).expect("it listens"));
    tracer.wait_for_end("client", elsewhere.port());
    drop(later);
    let records = tracer.stop();
    let told: Vec<_> = records
        .iter()
        .filter(|record| record.is("server", to.port()) || record.is("client", to.port()))
        .collect();
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn connections_made_while_we_looked_at_what_was_there_are_not_late() {
    if !is_fit("connections_made_while_we_looked_at_what_was_there_are_not_late") {
        return;
    }
    // Each namespace that is looked at takes its time, together more than the window in which events are ordered.
    let others: Vec<Netns> = (0..if in_vm() { 12 } else { 40 }).map(|_| Netns::new("o")).collect();
    let netns = Netns::new("b");
    let enough = AtomicBool::new(false);
    let (tracer, port, made) = std::thread::scope(|scope| {
        let maker = scope.spawn(|| {
            netns.on_thread("hs-both", || {
                let (listener, to) = loopback_listener();
                let mut made = Vec::new();
                while !enough.load(Ordering::Acquire) {
                    let client = TcpStream::connect(to).expect("it listens");
                    made.push(port_of(&client));
                    drop((listener.accept().expect("a child is queued"), client));
                    // Not a flood: some in every window.
                    std::thread::sleep(Duration::from_millis(2));
                }
                (to.port(), made)
            })
        });
        let tracer = Tracer::start(&[]);
        enough.store(true, Ordering::Release);
        let (port, made) = maker.join().expect("connections are made");
        (tracer, port, made)
    });
    // A clean account: nothing late, so nothing lost.
    let records = all_of(tracer.stop(), &netns);
    assert!(records.iter().any(|record| record.is("client", port)), "none of {} was seen", made.len());
    expect_told_once(&records, port, &made);
    for record in &records {
        // Hooks are attached one after the other, the one on changes of state last: of a handshake of that time the
        // end may not have been seen. A child's comes to nothing after a while, a client's is open until we stop.
        let half_seen = matches!(
            (record.text("role"), record.text("evidence.kind")),
            (Some("server"), Some("nothing_more_seen")) | (Some("client"), Some("stopped_watching"))
        );
        record.expect_text("outcome", if half_seen { "incomplete" } else { "established" });
        assert!(!record.has_flag("events_lost"), "{record}");
    }
    // One that stayed open until we stopped is told last.
    let whole = |record: &&Record| record.is("client", port) && record.text("outcome") == Some("established");
    let last = records.iter().rev().find(whole).expect("some were seen whole");
    last.expect_plainly_established().expect_thread("hs-both").expect_flags_are(&[]);
    drop(others);
}
