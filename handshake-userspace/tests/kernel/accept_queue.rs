//! What becomes of a child in the accept queue: accepted late, never, or reset meanwhile.
//!
//! What a reader would get wrong: a child that waits longer than a second gets its handshake record first and
//! an `accept` record with the same key later. Who calls accept(), and when, is in `accept_calls`.

use std::{
    net::{SocketAddr, TcpStream},
    ops::RangeInclusive,
    time::Duration,
};

use super::{
    environment::{has_probes, is_fit},
    netns::{CLIENT_V4, Pair, SERVER_V4},
    peer::Server,
    plain::{expect_client, expect_counts, server_of},
    record::{Record, all_of},
    traffic::{ESTABLISHED, queued, reset, until, wait_for_state},
    watch::Watch,
    whole::{AT_ONCE, Whole, expect_one_handshake},
};

/// A server in a process of its own, and a connection of `hs-client` that waits for its accept().
fn queued_at(pair: &Pair) -> (Server, TcpStream) {
    let server = Server::start(&pair.server, "0.0.0.0:0");
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    let port = stream.local_addr().expect("it is bound").port();
    // The client's end is ESTABLISHED one segment before the server's.
    pair.server.on_thread("hs-wait", || wait_for_state(port, ESTABLISHED));
    (server, stream)
}

/// The whole record of a child that was queued at once, but for what became of it there and who did that.
#[track_caller]
pub fn child<'a>(record: &'a Record, outcome: &str, pair: &Pair, port: u16) -> Whole<'a> {
    server_of(record, outcome, &pair.server, (SERVER_V4, CLIENT_V4, port)).queued(1..=1, 128..=4_096)
}

/// The client knows nothing of what happens in the queue.
#[track_caller]
fn expect_untouched_client(client: &Record, pair: &Pair, port: u16) {
    expect_client(client, &pair.client, (CLIENT_V4, SERVER_V4, port), "hs-client");
}

#[test]
fn an_accept_two_hundred_milliseconds_late_is_in_the_accept_phase_only() {
    if !is_fit("an_accept_two_hundred_milliseconds_late_is_in_the_accept_phase_only") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (mut server, _stream) = queued_at(&pair);
    // The lateness is the scenario.
    std::thread::sleep(Duration::from_millis(200));
    server.accept();
    let record = watch.wait_for_end("server", server.port);
    child(&record, "established", &pair, server.port)
        .process(server.pid(), "hs-server")
        .within("phases.accept_ns", 190..=900)
        // The application came late; what waited then was no thread of it.
        .also(has_probes(), |whole| whole.within("phases.accept_call_ns", 190..=900))
        .within("latency_ns", 0..=150)
        .flags(&[])
        .nothing_else();
    let client = watch.wait_for_end("client", server.port);
    expect_untouched_client(&client, &pair, server.port);
    expect_one_handshake(&client, &record);
    watch.end();
}

#[test]
fn an_accept_after_more_than_a_second_has_a_record_of_its_own() {
    if !is_fit("an_accept_after_more_than_a_second_has_a_record_of_its_own") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (mut server, _stream) = queued_at(&pair);
    let first = watch.wait_for_end("server", server.port);
    child(&first, "established", &pair, server.port)
        .also(has_probes(), |whole| whole.process(server.pid(), "hs-server"))
        .flags(&[])
        .nothing_else();
    server.accept();
    let accept = of_key(&watch, &first);
    accept.expect_fate_of(&first, "accepted");
    accept.expect_accepted_late(server.pid(), "hs-server", 1_000..=30_000);
    let client = watch.wait_for_end("client", server.port);
    expect_untouched_client(&client, &pair, server.port);
    expect_one_handshake(&client, &first);
    // The handshake itself is told once.
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 1)]);
}

/// The record of what became of a child after its own record.
#[track_caller]
fn of_key(watch: &Watch, handshake: &Record) -> Record {
    let key = handshake.text("key").expect("every record has a key").to_owned();
    watch.wait_for("the accept record", |record| {
        record.text("kind") == Some("accept") && record.text("key") == Some(&key)
    })
}

impl Record {
    /// What became of a child after its own record went out, for one reason or another.
    #[track_caller]
    fn expect_fate_of(&self, handshake: &Record, outcome: &str) {
        self.expect_text("outcome", outcome).expect_within("wait_ns", 1_000..=30_000);
        for same in ["key", "id", "local", "remote", "netns"] {
            self.expect_present(same);
            assert_eq!(self.get(same), handshake.get(same), "{same} of {self}\n{handshake}");
        }
    }

    /// A thread took it, and called accept() when it had waited for so many milliseconds already.
    #[track_caller]
    pub(super) fn expect_accepted_late(&self, pid: u64, thread: &str, called: RangeInclusive<u64>) {
        self.expect_number("process.pid", pid).expect_text("process.comm", thread);
        if has_probes() {
            self.expect_within("call_ns", called).expect_fields_are(&["process", "wait_ns", "call_ns"]);
            assert!(
                self.number("call_ns") <= self.number("wait_ns"),
                "a part is longer than the whole: {self}"
            );
        } else {
            self.expect_fields_are(&["process", "wait_ns"]);
        }
    }

    /// What every accept record has, these, and nothing else.
    #[track_caller]
    pub(super) fn expect_fields_are(&self, more: &[&str]) {
        let always = ["schema", "kind", "time", "key", "id", "outcome", "local", "remote", "netns", "attach"];
        let fields = self.0.as_object().expect("a record is an object");
        let mut expected: Vec<&str> = always.iter().chain(more).copied().collect();
        expected.sort_unstable();
        let mut found: Vec<&str> = fields.keys().map(String::as_str).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{self}");
    }
}

#[test]
fn a_child_of_a_listener_that_closes_was_never_accepted() {
    if !is_fit("a_child_of_a_listener_that_closes_was_never_accepted") {
        return;
    }
    // By its owner, and by the kernel for an owner that was killed.
    for close in [Server::close as fn(&mut Server), Server::kill] {
        let pair = Pair::new();
        let watch = Watch::begin();
        let (mut server, _stream) = queued_at(&pair);
        close(&mut server);
        let record = watch.wait_for_end("server", server.port);
        child(&record, "never_accepted", &pair, server.port)
            .evidence("child_destroyed", None)
            .number("evidence.syn_acks", 1)
            .also(has_probes(), |whole| whole.process(server.pid(), "hs-server"))
            .flags(&[])
            .nothing_else();
        let client = watch.wait_for_end("client", server.port);
        expect_untouched_client(&client, &pair, server.port);
        expect_one_handshake(&client, &record);
        let records = watch.end();
        assert!(!records.iter().any(|record| record.text("kind") == Some("accept")), "{records:?}");
        assert_eq!(all_of(records, &pair.server).len(), 1);
    }
}

#[test]
fn a_child_that_waits_for_long_and_is_never_accepted_is_told_twice_by_one_key() {
    if !is_fit("a_child_that_waits_for_long_and_is_never_accepted_is_told_twice_by_one_key") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to, stream) = queued(&pair);
    let first = watch.wait_for_end("server", to.port());
    child(&first, "established", &pair, to.port())
        // Nobody accepted it, so it is its listener's.
        .also(has_probes(), |whole| whole.thread("hs-listen"))
        .flags(&[])
        .nothing_else();
    drop(listener);
    let fate = of_key(&watch, &first);
    fate.expect_fate_of(&first, "never_accepted");
    fate.expect_fields_are(&["wait_ns"]);
    let client = watch.wait_for_end("client", to.port());
    expect_untouched_client(&client, &pair, to.port());
    expect_one_handshake(&client, &first);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 1)]);
    drop(stream);
}

#[test]
fn a_rst_in_the_accept_queue_does_not_undo_the_handshake() {
    if !is_fit("a_rst_in_the_accept_queue_does_not_undo_the_handshake") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (mut server, stream) = queued_at(&pair);
    reset(stream);
    server.accept();
    let record = watch.wait_for_end("server", server.port);
    child(&record, "established", &pair, server.port)
        .process(server.pid(), "hs-server")
        .within("phases.accept_ns", AT_ONCE)
        .flags(&["reset_in_queue"])
        .nothing_else();
    let client = watch.wait_for_end("client", server.port);
    expect_untouched_client(&client, &pair, server.port);
    expect_one_handshake(&client, &record);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 1)]);
}

#[test]
fn a_child_that_was_reset_and_whose_listener_closes_was_never_accepted() {
    if !is_fit("a_child_that_was_reset_and_whose_listener_closes_was_never_accepted") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (mut server, stream) = queued_at(&pair);
    reset(stream);
    pair.server.on_thread("hs-wait", || {
        let end = format!(":{:04X} ", server.port);
        until("the RST arrived", || {
            std::fs::read_to_string("/proc/thread-self/net/tcp")
                .is_ok_and(|text| !text.lines().any(|line| line.contains(&end) && line.contains(" 01 ")))
        });
    });
    server.close();
    let record = watch.wait_for_end("server", server.port);
    child(&record, "never_accepted", &pair, server.port)
        .evidence("child_destroyed", None)
        .number("evidence.syn_acks", 1)
        .also(has_probes(), |whole| whole.process(server.pid(), "hs-server"))
        .flags(&["reset_in_queue"])
        .nothing_else();
    let client = watch.wait_for_end("client", server.port);
    expect_untouched_client(&client, &pair, server.port);
    expect_one_handshake(&client, &record);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 1)]);
}
