//! accept() that no hook sees, as that of io_uring where there are no probes: what comes later shows that it was made.
//!
//! The same is done where accept() is seen, and then the record names the acceptor. What a reader would get wrong: a
//! child that was accepted and reset is destroyed like one that nobody accepted, and is none of those.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::FromRawFd as _,
};

use io_uring::{IoUring, squeue::Flags};

use super::{
    environment::{has_probes, is_fit},
    netns::{Netns, Pair, SERVER_V4},
    record::{Record, all_of},
    traffic::{reset, until},
    unusual_callers::{accept_by, ring},
    watch::Watch,
};

/// A listener, a client that connects to it, and a ring that may accept.
struct Scene {
    pair: Pair,
    watch: Watch,
    ring: IoUring,
    listener: TcpListener,
    to: SocketAddr,
}

impl Scene {
    fn new(test: &str) -> Option<Self> {
        if !is_fit(test) {
            return None;
        }
        let ring = ring(test)?;
        let pair = Pair::new();
        let watch = Watch::begin();
        let listener =
            pair.server.on_thread("hs-listen", || TcpListener::bind((SERVER_V4, 0)).expect("a port is free"));
        let to = listener.local_addr().expect("it is bound");
        Some(Scene { pair, watch, ring, listener, to })
    }

    /// Connects, and waits until the child is in the queue.
    fn connect(&self) -> TcpStream {
        let client =
            self.pair.client.on_thread("hs-client", || TcpStream::connect(self.to).expect("it listens"));
        let port = client.local_addr().expect("it is bound").port();
        self.pair.server.on_thread("hs-wait", || super::traffic::wait_for_state(port, 1));
        client
    }

    fn accept(&mut self) -> TcpStream {
        let (ring, listener) = (&mut self.ring, &self.listener);
        let accepted =
            self.pair.server.on_thread("hs-ring-server", || accept_by(ring, listener, Flags::empty()));
        assert!(accepted >= 0, "{}", std::io::Error::from_raw_os_error(-accepted));
        // SAFETY: the kernel has just made this descriptor for us.
        unsafe { TcpStream::from_raw_fd(accepted) }
    }

    /// The server's record, and all that has its key when everything is told.
    fn end(self) -> (Record, Vec<Record>) {
        let server = self.watch.wait_for_end("server", self.to.port());
        let mut records = self.watch.end();
        records.retain(|record| record.get("key").is_some() && record.get("key") == server.get("key"));
        (server, records)
    }
}

/// The child, whose remote port is this, is in no table of the namespace any more.
fn wait_until_gone(netns: &Netns, port: u16) {
    let end = format!(":{port:04X} ");
    netns.on_thread("hs-wait", || {
        until("the child is gone", || {
            std::fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|text| !text.contains(&end))
        });
    });
}

#[track_caller]
fn expect_accepted_by_ring(record: &Record, phase: &str) {
    if has_probes() {
        record.expect_thread("hs-ring-server").expect_present(phase);
    } else {
        record.expect_none_of(&["process", phase]);
    }
}

#[test]
fn an_accepted_connection_that_a_rst_ends_was_accepted_though_nobody_saw_the_call() {
    const NAME: &str = "an_accepted_connection_that_a_rst_ends_was_accepted_though_nobody_saw_the_call";
    let Some(mut scene) = Scene::new(NAME) else { return };
    let client = scene.connect();
    let port = client.local_addr().expect("it is bound").port();
    let server_end = scene.accept();
    scene.pair.client.on_thread("hs-client", || reset(client));
    wait_until_gone(&scene.pair.server, port);
    drop(server_end);
    let (server, records) = scene.end();
    server.expect_plainly_established().expect_flags_are(&[]);
    expect_accepted_by_ring(&server, "phases.accept_ns");
    assert_eq!(records.len(), 1, "nothing is left to be told: {records:?}");
}

#[test]
fn a_child_that_was_reset_in_the_queue_was_accepted_though_nobody_saw_the_call() {
    const NAME: &str = "a_child_that_was_reset_in_the_queue_was_accepted_though_nobody_saw_the_call";
    let Some(mut scene) = Scene::new(NAME) else { return };
    let client = scene.connect();
    let port = client.local_addr().expect("it is bound").port();
    scene.pair.client.on_thread("hs-client", || reset(client));
    wait_until_gone(&scene.pair.server, port);
    drop(scene.accept());
    let (server, records) = scene.end();
    server.expect_plainly_established().expect_flags_are(&["reset_in_queue"]);
    expect_accepted_by_ring(&server, "phases.accept_ns");
    assert_eq!(records.len(), 1, "nothing is left to be told: {records:?}");
}

#[test]
fn an_accept_record_does_not_wait_for_the_programs_end_though_nobody_saw_the_call() {
    const NAME: &str = "an_accept_record_does_not_wait_for_the_programs_end_though_nobody_saw_the_call";
    let Some(mut scene) = Scene::new(NAME) else { return };
    let client = scene.connect();
    let first = scene.watch.wait_for_end("server", scene.to.port());
    first.expect_plainly_established().expect_absent("phases.accept_ns");
    // Its record went out after a second; the owner's FIN shows that there is an owner.
    drop(scene.accept());
    let key = first.text("key").expect("every record has a key").to_owned();
    let accept = scene.watch.wait_for("the accept record", |record| {
        record.text("kind") == Some("accept") && record.text("key") == Some(&key)
    });
    accept
        .expect_text("outcome", "accepted")
        .expect_number("netns", scene.pair.server.inode())
        .expect_present("time");
    assert_eq!(accept.get("id"), first.get("id"), "{accept}");
    expect_accepted_by_ring(&accept, "wait_ns");
    let (_, records) = scene.end();
    assert_eq!(records.len(), 2, "a handshake and its accept: {records:?}");
    drop(client);
}

#[test]
fn a_child_that_nobody_accepts_is_destroyed_with_its_listener_reset_or_not() {
    const NAME: &str = "a_child_that_nobody_accepts_is_destroyed_with_its_listener_reset_or_not";
    for is_reset in [false, true] {
        let Some(scene) = Scene::new(NAME) else { return };
        let client = scene.connect();
        let port = client.local_addr().expect("it is bound").port();
        let held = (!is_reset).then_some(client.try_clone().expect("a descriptor"));
        if is_reset {
            scene.pair.client.on_thread("hs-client", || reset(client));
            wait_until_gone(&scene.pair.server, port);
        }
        let Scene { pair, watch, listener, to, .. } = scene;
        pair.server.on_thread("hs-closes", || drop(listener));
        let server = watch.wait_for_end("server", to.port());
        server
            .expect_text("outcome", "never_accepted")
            .expect_text("evidence.kind", "child_destroyed")
            .expect_flags_are(if is_reset { &["reset_in_queue"] } else { &[] })
            .expect_none_of(&["phases.accept_ns", "failed_after_ns", "dropped"])
            .expect_within("latency_ns", 0..=900);
        let records = all_of(watch.end(), &pair.server);
        assert_eq!(records.len(), 1, "{records:?}");
        drop(held);
    }
}
