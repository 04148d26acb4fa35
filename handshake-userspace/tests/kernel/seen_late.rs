//! Handshakes that had begun before we watched: half open, queued, or in SYN-SENT when the program starts.
//!
//! What a reader would get wrong: such a record lacks what nobody counted then, and is flagged `seen_late`; but
//! how it ended is as certain as for any other.

use std::net::{SocketAddr, TcpListener, TcpStream};

use super::{
    environment::{has_probes, is_fit},
    netns::{Pair, SERVER_V4},
    record::Record,
    tracer::Tracer,
    traffic::{ESTABLISHED, connect_without_waiting, finish, until, wait_for_request, wait_for_state},
    whole::expect_one_handshake,
};

/// A listener of this process at the server, and where clients find it.
fn listener(pair: &Pair) -> (TcpListener, SocketAddr) {
    pair.server.on_thread("hs-listen", || {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        (listener, format!("{SERVER_V4}:{port}").parse().expect("an address"))
    })
}

/// A listener, and a client whose SYN arrived while nothing comes back.
fn half_open(pair: &Pair) -> (TcpListener, SocketAddr, socket2::Socket) {
    pair.server_reaches_client(false);
    let (listener, to) = listener(pair);
    let socket = pair.client.on_thread("hs-client", || connect_without_waiting(to));
    pair.server.on_thread("hs-wait", || wait_for_request(to.port()));
    (listener, to, socket)
}

/// A connection that waits for accept().
fn queued(pair: &Pair) -> (TcpListener, SocketAddr, TcpStream) {
    let (listener, to) = listener(pair);
    let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    let port = stream.local_addr().expect("it is bound").port();
    pair.server.on_thread("hs-wait", || wait_for_state(port, ESTABLISHED));
    (listener, to, stream)
}

fn servers(records: &[Record], port: u16) -> Vec<&Record> {
    records.iter().filter(|record| record.is("server", port)).collect()
}

/// What is before our time in any record of a child.
const BEFORE_US: [&str; 8] = [
    "latency_ns",
    "rtt_ns",
    "phases.synack_ns",
    "phases.ack_ns",
    "phases.accept_ns",
    "retransmits.syn_ack",
    "retransmits.syn_seen",
    "accept_queue",
];

#[test]
fn a_request_that_was_half_open_before_us_times_out_before_our_eyes() {
    if !is_fit("a_request_that_was_half_open_before_us_times_out_before_our_eyes") {
        return;
    }
    let pair = Pair::new();
    let (listener, to, socket) = half_open(&pair);
    let tracer = Tracer::start(&[]);
    // Its timer gives up after the next SYN-ACK; further SYNs would keep it alive.
    drop(socket);
    pair.client_reaches_server(false);
    pair.server.set("ipv4/tcp_synack_retries", "1");
    if has_probes() {
        let server = tracer.wait_for_end("server", to.port());
        server
            .expect_text("outcome", "timed_out")
            .expect_text("evidence.kind", "syn_ack_timeout")
            .expect_flags_are(&["seen_late"])
            // The owner of a listener that was there before us is known as a process, not as a thread.
            .expect_number("process.pid", u64::from(std::process::id()))
            .expect_within("failed_after_ns", 2_500..=60_000)
            .expect_present("id")
            .expect_none_of(&[
                "latency_ns",
                "rtt_ns",
                "phases.synack_ns",
                "phases.ack_ns",
                "phases.accept_ns",
                "retransmits.syn_seen",
                "accept_queue",
                "dropped",
            ]);
        let again = server.number("retransmits.syn_ack").expect("the kernel had counted them");
        assert!(again >= 1, "{server}");
        server.expect_number("evidence.syn_acks", again + 1);
    } else {
        let end = format!(":{:04X} ", to.port());
        pair.server.on_thread("hs-wait", || {
            until("the request is gone", || {
                let text = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("it can be read");
                !text.lines().any(|line| line.contains(&end) && line.contains(" 03 "))
            });
        });
    }
    let records = tracer.stop();
    assert_eq!(servers(&records, to.port()).len(), usize::from(has_probes()), "{records:?}");
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
    pair.server_reaches_client(true);
    pair.client.on_thread("hs-client", || finish(&socket).expect("the SYN-ACK is sent again"));
    let accepted = pair.server.on_thread("hs-server", || listener.accept().expect("a child is queued").0);
    let server = tracer.wait_for_end("server", to.port());
    server
        .expect_plainly_established()
        .expect_flags_are(&["seen_late"])
        .expect_thread("hs-server")
        .expect_within("phases.accept_ns", 0..=900)
        .expect_none_of(&["rtt_ns", "phases.synack_ns", "retransmits.syn_seen"]);
    if has_probes() {
        server.expect_within("latency_ns", 500..=60_000).expect_within("phases.ack_ns", 500..=60_000);
        assert!(server.number("retransmits.syn_ack").is_some_and(|again| again >= 1), "{server}");
    } else {
        server.expect_none_of(&["latency_ns", "phases.ack_ns", "retransmits.syn_ack"]);
    }
    let client = tracer.wait_for_end("client", to.port());
    client.expect_plainly_established().expect_flags_are(&["seen_late"]).expect_none_of(&[
        "rtt_ns",
        "latency_ns",
        "phases.local_ns",
        "phases.wire_ns",
        "phases.wake_ns",
        "process",
    ]);
    expect_one_handshake(&client, &server);
    let records = tracer.stop();
    assert_eq!(servers(&records, to.port()).len(), 1, "{records:?}");
    drop(accepted);
}

#[test]
fn a_child_that_was_queued_before_us_is_told_when_it_is_accepted() {
    if !is_fit("a_child_that_was_queued_before_us_is_told_when_it_is_accepted") {
        return;
    }
    let pair = Pair::new();
    let (listener, to, stream) = queued(&pair);
    let tracer = Tracer::start(&[]);
    let accepted = pair.server.on_thread("hs-server", || listener.accept().expect("a child is queued").0);
    let server = tracer.wait_for_end("server", to.port());
    server
        .expect_text("outcome", "established")
        .expect_text("evidence.kind", "accept_returned")
        .expect_flags_are(&["seen_late"])
        .expect_thread("hs-server")
        .expect_number("remote.port", u64::from(stream.local_addr().expect("it is bound").port()))
        .expect_none_of(&BEFORE_US)
        .expect_absent("failed_after_ns");
    drop((stream, accepted));
    let records = tracer.stop();
    assert_eq!(servers(&records, to.port()).len(), 1, "{records:?}");
    assert!(!records.iter().any(|record| record.is("client", to.port())), "it was connected: {records:?}");
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
    server
        .expect_text("outcome", "never_accepted")
        .expect_text("evidence.kind", "child_destroyed")
        .expect_flags_are(&["seen_late"])
        .expect_number("remote.port", u64::from(stream.local_addr().expect("it is bound").port()))
        .expect_none_of(&BEFORE_US)
        .expect_absent("process");
    let records = tracer.stop();
    assert_eq!(servers(&records, to.port()).len(), 1, "{records:?}");
}

#[test]
fn a_rst_that_hits_a_child_that_was_queued_before_us_is_a_flag() {
    if !is_fit("a_rst_that_hits_a_child_that_was_queued_before_us_is_a_flag") {
        return;
    }
    let pair = Pair::new();
    let (listener, to, stream) = queued(&pair);
    let tracer = Tracer::start(&[]);
    pair.client.on_thread("hs-client", || super::traffic::reset(stream));
    pair.server.on_thread("hs-server", || drop(listener.accept().expect("it is still queued")));
    tracer
        .wait_for_end("server", to.port())
        .expect_text("outcome", "established")
        .expect_text("evidence.kind", "accept_returned")
        .expect_flags_are(&["reset_in_queue", "seen_late"])
        .expect_text("remote.address", super::netns::CLIENT_V4)
        .expect_thread("hs-server")
        .expect_none_of(&BEFORE_US);
    let records = tracer.stop();
    assert_eq!(servers(&records, to.port()).len(), 1, "{records:?}");
}

#[test]
fn a_connection_that_was_accepted_before_us_is_no_handshake_of_ours() {
    if !is_fit("a_connection_that_was_accepted_before_us_is_no_handshake_of_ours") {
        return;
    }
    let pair = Pair::new();
    let (listener, to, stream) = queued(&pair);
    let accepted = pair.server.on_thread("hs-server", || listener.accept().expect("a child is queued").0);
    let tracer = Tracer::start(&[]);
    // Both ways to end: an owner's FIN, and a RST.
    super::traffic::reset(stream);
    drop((accepted, listener));
    // Whatever is told of it is told before what comes later.
    let (later, elsewhere) = super::traffic::loopback_listener();
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
