//! Whose a handshake is, and when it was: descriptors that are used again, names that lie, a tracer that was late.
//!
//! What a reader would get wrong: a process chooses its own name, byte by byte, and a descriptor is a number that means
//! another socket a moment later. Neither may ever decide what a record says.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    time::Duration,
};

use rustix::process::Signal;

use super::{
    environment::is_fit,
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    record::{Record, all_of},
    tracer::Tracer,
    traffic::{accept_in, listen_in, loopback_listener},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, LOOPBACK_MSS, expect_one_handshake},
};

#[test]
fn a_descriptor_that_was_a_clients_and_is_an_accepted_ones_now_is_told_as_that() {
    if !is_fit("a_descriptor_that_was_a_clients_and_is_an_accepted_ones_now_is_told_as_that") {
        return;
    }
    let netns = Netns::new("f");
    let watch = Watch::begin();
    let (elsewhere, port) = netns.on_thread("hs-both", || {
        let (other, elsewhere) = loopback_listener();
        let (listener, to) = loopback_listener();
        let client = TcpStream::connect(to).expect("it listens");
        // Whose descriptor is free again is the first that the next socket gets.
        let outbound = TcpStream::connect(elsewhere).expect("it listens");
        let descriptor = outbound.as_raw_fd();
        drop(outbound);
        let accepted = listener.accept().expect("a child is queued").0;
        assert_eq!(accepted.as_raw_fd(), descriptor, "the number is used again");
        drop((other, client));
        (elsewhere.port(), to.port())
    });
    let (outbound, server) = (watch.wait_for_end("client", elsewhere), watch.wait_for_end("server", port));
    for (record, role, port) in [(&outbound, "client", elsewhere), (&server, "server", port)] {
        let whole = record
            .whole(role, "established", &netns)
            .ends("127.0.0.1", "127.0.0.1", port)
            .thread("hs-both")
            .joined()
            .agreed(LOOPBACK_MSS)
            .flags(&[]);
        match role {
            "client" => whole.within("latency_ns", AT_ONCE).answered(AT_ONCE).called_and_returned(),
            _ => whole.served(AT_ONCE).within("phases.accept_ns", AT_ONCE).queued(1..=1, 128..=4_096),
        }
        .nothing_else();
    }
    expect_one_handshake(&watch.wait_for_end("client", port), &server);
    watch.end();
}

#[test]
fn a_name_that_would_write_to_a_terminal_is_shown_harmless() {
    if !is_fit("a_name_that_would_write_to_a_terminal_is_shown_harmless") {
        return;
    }
    let netns = Netns::new("n");
    let watch = Watch::begin();
    let port = netns.on_thread("hs-both", || {
        // Red, a line of its own, and the order of letters reversed.
        std::fs::write("/proc/thread-self/comm", "\u{1b}[31m\rx\u{202e}y").expect("a thread can be named");
        let (listener, to) = loopback_listener();
        let client = TcpStream::connect(to).expect("it listens");
        drop((listener.accept().expect("a child is queued"), client));
        to.port()
    });
    for role in ["client", "server"] {
        let record = watch.wait_for_end(role, port);
        record.expect_text("process.comm", r"\u{1b}[31m\u{d}x\u{202e}y");
    }
    watch.end();
}

#[test]
fn another_thread_than_the_listeners_owner_accepts_and_is_named() {
    if !is_fit("another_thread_than_the_listeners_owner_accepts_and_is_named") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = listen_in(&pair.server, 128);
    let mut tids = Vec::new();
    for name in ["hs-first", "hs-second"] {
        let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
        let port = u64::from(stream.local_addr().expect("it is bound").port());
        let tid = pair.server.on_thread(name, || {
            drop(listener.accept().expect("a child is queued"));
            rustix::thread::gettid().as_raw_nonzero().get()
        });
        let server = watch.wait_for("the server's record", |record| {
            record.is("server", to.port()) && record.number("remote.port") == Some(port)
        });
        server
            .whole("server", "established", &pair.server)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .thread(name)
            .number("process.tid", u64::try_from(tid).expect("it is no negative number"))
            .joined()
            .agreed(ETHERNET_MSS)
            .served(AT_ONCE)
            .within("phases.accept_ns", AT_ONCE)
            .queued(1..=1, 128..=128)
            .flags(&[])
            .nothing_else();
        tids.push(tid);
        drop(stream);
    }
    assert_ne!(tids[0], tids[1]);
    assert_eq!(all_of(watch.end(), &pair.server).len(), 2);
}

#[test]
fn a_tracer_that_reads_late_tells_the_times_at_which_things_happened() {
    const LATE: Duration = Duration::from_millis(1_500);
    if !is_fit("a_tracer_that_reads_late_tells_the_times_at_which_things_happened") {
        return;
    }
    let pair = Pair::new();
    let tracer = Tracer::start(&["--netns", pair.client.name(), "--netns", pair.server.name()]);
    tracer.signal(Signal::STOP);
    let (listener, to) = listen_in(&pair.server, 128);
    let connection = |to: SocketAddr, listener: &TcpListener| {
        let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
        drop((accept_in(&pair.server, listener), stream));
    };
    connection(to, &listener);
    // Nobody reads for a second and a half; the second connection is made at the end of it.
    std::thread::sleep(LATE);
    connection(to, &listener);
    tracer.signal(Signal::CONT);
    let of = |role: &str| {
        super::traffic::until("both connections have their records", || {
            tracer.records().iter().filter(|record| record.is(role, to.port())).count() == 2
        });
        tracer.records().into_iter().filter(|record| record.is(role, to.port())).collect::<Vec<_>>()
    };
    let (clients, servers) = (of("client"), of("server"));
    for (client, server) in clients.iter().zip(&servers) {
        client
            .expect_plainly_established()
            .expect_within("latency_ns", AT_ONCE)
            .expect_within("rtt_ns", AT_ONCE);
        server.expect_plainly_established().expect_within("latency_ns", AT_ONCE);
        server.expect_within("phases.accept_ns", AT_ONCE).expect_flags_are(&[]);
        expect_one_handshake(client, server);
    }
    for records in [&clients, &servers] {
        let apart = seconds(&records[1]) - seconds(&records[0]);
        assert!(apart >= LATE.as_secs_f64() && apart < 5.0, "{apart} s: {records:?}");
    }
    tracer.stop();
}

/// Seconds within the hour.
fn seconds(record: &Record) -> f64 {
    let time = record.text("time").expect("every record has its time");
    let part = |range: std::ops::Range<usize>| time[range].parse::<f64>().expect("it is a number");
    part(14..16) * 60.0 + part(17..29)
}
