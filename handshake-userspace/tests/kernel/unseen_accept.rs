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
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    plain::{expect_client, expect_counts, server_of},
    record::Record,
    traffic::{reset, until},
    unusual_callers::{accept_by, ring},
    watch::Watch,
    whole::{AT_ONCE, Whole},
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

    /// The server's record, and how many have its key when everything is told; the client's is as ever.
    fn end(self) -> (Record, usize, Pair) {
        let server = self.watch.wait_for_end("server", self.to.port());
        let records = self.watch.end();
        expect_untouched_client(&records, &self.pair, self.to.port());
        expect_counts(&records, &[(&self.pair.client, 1), (&self.pair.server, 1)]);
        let count = records.iter().filter(|record| record.get("key") == server.get("key")).count();
        (server, count, self.pair)
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

/// The whole record of a server here, but for who accepted and the flags.
#[track_caller]
fn child<'a>(server: &'a Record, outcome: &str, pair: &Pair, port: u16) -> Whole<'a> {
    server_of(server, outcome, &pair.server, (SERVER_V4, CLIENT_V4, port)).queued(1..=1, 1..=4_096)
}

/// The same, that the ring accepted: only probes see that it did, and when.
#[track_caller]
fn expect_accepted_by_ring(server: &Record, pair: &Pair, port: u16, flags: &[&str]) {
    child(server, "established", pair, port)
        .also(has_probes(), |whole| whole.thread("hs-ring-server").within("phases.accept_ns", AT_ONCE))
        .flags(flags)
        .nothing_else();
}

/// The whole record of the client, which knows nothing of all this.
#[track_caller]
fn expect_untouched_client(records: &[Record], pair: &Pair, port: u16) {
    let clients: Vec<_> = records.iter().filter(|record| record.is("client", port)).collect();
    assert_eq!(clients.len(), 1, "{records:?}");
    expect_client(clients[0], &pair.client, (CLIENT_V4, SERVER_V4, port), "hs-client");
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
    let listening = scene.to.port();
    let (server, told, pair) = scene.end();
    expect_accepted_by_ring(&server, &pair, listening, &[]);
    assert_eq!(told, 1, "nothing is left to be told");
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
    let listening = scene.to.port();
    let (server, told, pair) = scene.end();
    expect_accepted_by_ring(&server, &pair, listening, &["reset_in_queue"]);
    assert_eq!(told, 1, "nothing is left to be told");
}

#[test]
fn an_accept_record_does_not_wait_for_the_programs_end_though_nobody_saw_the_call() {
    const NAME: &str = "an_accept_record_does_not_wait_for_the_programs_end_though_nobody_saw_the_call";
    let Some(mut scene) = Scene::new(NAME) else { return };
    let client = scene.connect();
    let first = scene.watch.wait_for_end("server", scene.to.port());
    child(&first, "established", &scene.pair, scene.to.port())
        .also(has_probes(), |whole| whole.thread("hs-listen"))
        .flags(&[])
        .nothing_else();
    // Its record went out after a second; the owner's FIN shows that there is an owner.
    drop(scene.accept());
    let key = first.text("key").expect("every record has a key").to_owned();
    let accept = scene.watch.wait_for("the accept record", |record| {
        record.text("kind") == Some("accept") && record.text("key") == Some(&key)
    });
    accept.expect_text("outcome", "accepted").expect_number("netns", scene.pair.server.inode());
    if has_probes() {
        accept.expect_within("wait_ns", 1_000..=30_000);
        accept.expect_accepted_late(u64::from(std::process::id()), "hs-ring-server", 1_000..=30_000);
    } else {
        accept.expect_fields_are(&[]);
    }
    for same in ["id", "local", "remote"] {
        assert_eq!(accept.get(same), first.get(same), "{accept}\n{first}");
    }
    let (_, told, _) = scene.end();
    assert_eq!(told, 2, "a handshake and its accept");
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
        child(&server, "never_accepted", &pair, to.port())
            .evidence("child_destroyed", None)
            .number("evidence.syn_acks", 1)
            .also(has_probes(), |whole| whole.thread("hs-listen"))
            .flags(if is_reset { &["reset_in_queue"] } else { &[] })
            .nothing_else();
        let records = watch.end();
        expect_untouched_client(&records, &pair, to.port());
        expect_counts(&records, &[(&pair.client, 1), (&pair.server, 1)]);
        drop(held);
    }
}
