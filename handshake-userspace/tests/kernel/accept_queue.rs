//! The accept queue: late, never, reset meanwhile, and threads that waited before we came.
//!
//! What a reader would get wrong: a child that waits longer than a second gets its handshake record first and
//! an `accept` record with the same key later.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    environment::{has_probes, is_fit, is_locked_down, skip},
    mptcp,
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    peer::Server,
    plain::expect_counts,
    record::{Record, all_of},
    tracer::Tracer,
    traffic::{ESTABLISHED, listen_in, loopback_listener, queued, reset, until, wait_for_state},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, LOOPBACK_MSS, Whole, expect_one_handshake},
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
fn child<'a>(record: &'a Record, outcome: &str, pair: &Pair, port: u16) -> Whole<'a> {
    record
        .whole("server", outcome, &pair.server)
        .ends(SERVER_V4, CLIENT_V4, port)
        .joined()
        .agreed(ETHERNET_MSS)
        .served(AT_ONCE)
        .queued(1..=1, 128..=4_096)
}

/// The client knows nothing of what happens in the queue.
#[track_caller]
fn expect_untouched_client(client: &Record, pair: &Pair, port: u16) {
    client
        .whole("client", "established", &pair.client)
        .ends(CLIENT_V4, SERVER_V4, port)
        .thread("hs-client")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("latency_ns", AT_ONCE)
        .answered(AT_ONCE)
        .called_and_returned()
        .flags(&[])
        .nothing_else();
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
    accept
        .expect_text("outcome", "accepted")
        .expect_within("wait_ns", 1_000..=30_000)
        .expect_number("process.pid", server.pid())
        .expect_text("process.comm", "hs-server")
        .expect_number("netns", pair.server.inode())
        .expect_fields_are(if has_probes() {
            &["process", "wait_ns", "call_ns"]
        } else {
            &["process", "wait_ns"]
        });
    for same in ["id", "local", "remote"] {
        assert_eq!(accept.get(same), first.get(same), "{accept}\n{first}");
    }
    assert_eq!(all_of(watch.end(), &pair.server).len(), 1, "the handshake itself is told once");
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
    first.expect_plainly_established().expect_flags_are(&[]).expect_absent("phases.accept_ns");
    drop(listener);
    let fate = of_key(&watch, &first);
    fate.expect_text("outcome", "never_accepted")
        .expect_within("wait_ns", 1_000..=30_000)
        .expect_fields_are(&["wait_ns"]);
    assert_eq!(fate.get("id"), first.get("id"), "{fate}\n{first}");
    assert_eq!(all_of(watch.end(), &pair.server).len(), 1);
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
    expect_one_handshake(&watch.wait_for_end("client", server.port), &record);
    assert_eq!(all_of(watch.end(), &pair.server).len(), 1);
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
    assert_eq!(all_of(watch.end(), &pair.server).len(), 1);
}

#[test]
fn an_accept_that_finds_nothing_is_no_handshake() {
    const CALLS: usize = 1_000;
    if !is_fit("an_accept_that_finds_nothing_is_no_handshake") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = listen_in(&pair.server, 128);
    listener.set_nonblocking(true).expect("a listener can be non-blocking");
    pair.server.on_thread("hs-server", || {
        for _ in 0..CALLS {
            let error = listener.accept().expect_err("nobody has connected");
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        }
    });
    let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    let port = stream.local_addr().expect("it is bound").port();
    pair.server.on_thread("hs-wait", || wait_for_state(port, ESTABLISHED));
    let accepted = super::traffic::accept_in(&pair.server, &listener);
    let record = watch.wait_for_end("server", to.port());
    child(&record, "established", &pair, to.port())
        .thread("hs-server")
        .within("phases.accept_ns", AT_ONCE)
        .flags(&[])
        .nothing_else();
    let records = watch.end();
    assert_eq!(all_of(records, &pair.server).len(), 1, "a thousand calls were in vain and are no drops");
    drop((stream, accepted));
}

#[test]
fn an_accepted_mptcp_connection_has_one_record_at_each_end() {
    const NAME: &str = "an_accepted_mptcp_connection_has_one_record_at_each_end";
    const MPTCP: i32 = 262;
    if !is_fit(NAME) {
        return;
    }
    let netns = Netns::new("m");
    let socket = || {
        netns.on_thread("hs-mptcp", || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(MPTCP))))
    };
    let (Ok(listener), Ok(client)) = (socket(), socket()) else {
        skip(NAME, "this kernel has no MPTCP");
        return;
    };
    let watch = Watch::begin();
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    listener.bind(&any.into()).expect("loopback is up");
    netns.on_thread("hs-listen", || listener.listen(8).expect("it can listen"));
    let to = listener.local_addr().expect("it is bound");
    let port = to.as_socket().expect("it is IPv4").port();
    netns.on_thread("hs-mptcp", || {
        client.connect(&to).expect("it listens");
        drop(listener.accept().expect("a child is queued"));
    });
    drop(client);
    // accept() returned MPTCP's master socket, whose first subflow is the child.
    let server = watch.wait_for_end("server", port);
    let client = watch.wait_for_end("client", port);
    let ends = ("127.0.0.1", "127.0.0.1", port);
    mptcp::expect_client(&client, &netns, ends, "hs-mptcp");
    mptcp::expect_server(&server, &netns, ends, if is_locked_down() { None } else { Some("hs-mptcp") });
    expect_one_handshake(&client, &server);
    // The master socket is no TCP socket.
    expect_counts(&watch.end(), &[(&netns, 2)]);
}

#[test]
fn threads_that_waited_in_accept_before_us_lose_no_connection() {
    const THREADS: usize = 40;
    const CONNECTIONS: usize = 200;
    if !is_fit("threads_that_waited_in_accept_before_us_lose_no_connection") {
        return;
    }
    let netns = Netns::new("w");
    let listener =
        Arc::new(netns.on_thread("hs-listen", || TcpListener::bind("127.0.0.1:0").expect("loopback is up")));
    let to = listener.local_addr().expect("it has an address");
    let (waiting, taken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (listener, waiting, taken) = (listener.clone(), waiting.clone(), taken.clone());
            std::thread::Builder::new()
                .name("hs-acceptor".to_owned())
                .spawn(move || {
                    waiting.fetch_add(1, Ordering::SeqCst);
                    while taken.fetch_add(1, Ordering::SeqCst) < CONNECTIONS {
                        drop(listener.accept().expect("a connection comes"));
                    }
                })
                .expect("a thread can be started")
        })
        .collect();
    until("all threads sleep in accept()", || {
        waiting.load(Ordering::SeqCst) == THREADS && sleepers("hs-acceptor") == THREADS
    });
    let tracer = Tracer::start(&[]);
    netns.on_thread("hs-client", || {
        for _ in 0..CONNECTIONS {
            drop(TcpStream::connect(to).expect("it listens"));
        }
    });
    threads.into_iter().for_each(|thread| thread.join().expect("an acceptor does not panic"));
    let port = to.port();
    let all = |records: &[Record], role: &str| {
        records.iter().filter(|record| record.is(role, port)).cloned().collect::<Vec<_>>()
    };
    until("every connection has both records", || {
        let records = tracer.records();
        all(&records, "server").len() >= CONNECTIONS && all(&records, "client").len() >= CONNECTIONS
    });
    let records = tracer.stop();
    let (clients, servers) = (all(&records, "client"), all(&records, "server"));
    assert_eq!((clients.len(), servers.len()), (CONNECTIONS, CONNECTIONS));
    for record in &servers {
        record
            .whole("server", "established", &netns)
            .ends("127.0.0.1", "127.0.0.1", port)
            .thread("hs-acceptor")
            .joined()
            .agreed(LOOPBACK_MSS)
            .served(AT_ONCE)
            .within("phases.accept_ns", 0..=5_000)
            .old_calls()
            .queued(1..=CONNECTIONS as u64, 128..=4_096)
            .also(record.has_flag("reset_in_queue"), |whole| whole.flags(&["reset_in_queue"]))
            .also(!record.has_flag("reset_in_queue"), |whole| whole.flags(&[]))
            .nothing_else();
        let client = clients.iter().find(|client| client.get("id") == record.get("id"));
        expect_one_handshake(client.unwrap_or_else(|| panic!("no other end: {record}")), record);
    }
}

/// Threads of this process with a name that sleep.
fn sleepers(name: &str) -> usize {
    std::fs::read_dir("/proc/self/task")
        .expect("this process has threads")
        .flatten()
        .filter(|task| {
            std::fs::read_to_string(task.path().join("stat"))
                .is_ok_and(|stat| stat.contains(&format!("({name}) S ")))
        })
        .count()
}

#[test]
fn a_thread_that_waits_in_accept_is_not_late() {
    if !is_fit("a_thread_that_waits_in_accept_is_not_late") {
        return;
    }
    let netns = Netns::new("q");
    let watch = Watch::begin();
    let (listener, to) = netns.on_thread("hs-listen", loopback_listener);
    std::thread::scope(|scope| {
        let (send, thread) = std::sync::mpsc::channel();
        let listener = &listener;
        let accepted = scope.spawn(move || {
            send.send(rustix::thread::gettid().as_raw_nonzero()).expect("somebody waits for it");
            listener.accept().expect("a child is queued")
        });
        let thread = thread.recv().expect("it says who it is");
        let sleeps_in = [libc::SYS_accept, libc::SYS_accept4]
            .map(|call| (format!("/proc/self/task/{thread}/syscall"), call));
        until("the thread sleeps in accept()", || {
            sleeps_in.iter().any(|(path, call)| {
                std::fs::read_to_string(path).is_ok_and(|text| text.starts_with(&format!("{call} ")))
            })
        });
        let client = netns.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
        drop((client, accepted.join().expect("it accepts")));
    });
    let record = watch.wait_for_end("server", to.port());
    record.expect_text("outcome", "established").expect_present("phases.accept_ns");
    if has_probes() {
        record.expect_number("phases.accept_call_ns", 0);
    } else {
        record.expect_absent("phases.accept_call_ns");
    }
    watch.end();
}
