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
    netns::{Netns, Pair, SERVER_V4},
    peer::Server,
    tracer::Tracer,
    traffic::{loopback_listener, reset, until},
    watch::Watch,
};

#[test]
fn an_accept_two_hundred_milliseconds_late_is_in_the_accept_phase_only() {
    if !is_fit("an_accept_two_hundred_milliseconds_late_is_in_the_accept_phase_only") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let mut server = Server::start(&pair.server, "0.0.0.0:0");
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    let _stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    // The lateness is the scenario.
    std::thread::sleep(Duration::from_millis(200));
    server.accept();
    let record = watch.wait_for_end("server", server.port);
    record
        .expect_text("outcome", "established")
        .expect_within("phases.accept_ns", 190..=600)
        .expect_within("latency_ns", 0..=150)
        .expect_number("process.pid", server.pid());
    if has_probes() {
        record.expect_number("accept_queue.length", 1).expect_present("accept_queue.limit");
        record.expect_within("phases.accept_call_ns", 190..=600);
        assert!(record.number("phases.accept_call_ns") < record.number("phases.accept_ns"), "{record}");
    } else {
        record.expect_absent("phases.accept_call_ns");
    }
    watch.end();
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

#[test]
fn an_accept_after_more_than_a_second_has_a_record_of_its_own() {
    if !is_fit("an_accept_after_more_than_a_second_has_a_record_of_its_own") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let mut server = Server::start(&pair.server, "0.0.0.0:0");
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    let _stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    let first = watch.wait_for_end("server", server.port);
    first.expect_text("outcome", "established").expect_absent("phases.accept_ns");
    server.accept();
    let key = first.text("key").expect("every record has a key").to_owned();
    let accept = watch.wait_for("the accept record", |record| {
        record.text("kind") == Some("accept") && record.text("key") == Some(&key)
    });
    accept
        .expect_text("outcome", "accepted")
        .expect_within("wait_ns", 1_000..=30_000)
        .expect_number("process.pid", server.pid());
    if has_probes() {
        accept.expect_within("call_ns", 900..=30_000);
    }
    watch.end();
}

#[test]
fn a_child_of_a_listener_that_closes_was_never_accepted() {
    if !is_fit("a_child_of_a_listener_that_closes_was_never_accepted") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let mut server = Server::start(&pair.server, "0.0.0.0:0");
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    // The client's end is ESTABLISHED one segment before the server's.
    pair.server.on_thread("hs-wait", || {
        super::traffic::wait_for_state(stream.local_addr().expect("it is bound").port(), 1);
    });
    server.close();
    watch
        .wait_for_end("server", server.port)
        .expect_text("outcome", "never_accepted")
        .expect_text("evidence.kind", "child_destroyed")
        .expect_absent("phases.accept_ns");
    watch.end();
}

#[test]
fn a_rst_in_the_accept_queue_does_not_undo_the_handshake() {
    if !is_fit("a_rst_in_the_accept_queue_does_not_undo_the_handshake") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let mut server = Server::start(&pair.server, "0.0.0.0:0");
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    pair.client.on_thread("hs-client", || reset(TcpStream::connect(to).expect("it listens")));
    server.accept();
    watch
        .wait_for_end("server", server.port)
        .expect_text("outcome", "established")
        .expect_flag("reset_in_queue")
        .expect_text("remote.address", super::netns::CLIENT_V4)
        .expect_number("process.pid", server.pid());
    watch.end();
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
    listener.listen(8).expect("it can listen");
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
    for record in [&server, &client] {
        record.expect_text("outcome", "established").expect_flag("mptcp");
    }
    client.expect_text("process.comm", "hs-mptcp");
    if !is_locked_down() {
        server.expect_text("process.comm", "hs-mptcp").expect_present("phases.accept_ns");
    }
    assert_eq!(client.text("id"), server.text("id"), "{client}\n{server}");
    let records = watch.end();
    let of = |role: &str| records.iter().filter(|record| record.is(role, port)).count();
    assert_eq!((of("client"), of("server")), (1, 1), "the master socket is no TCP socket: {records:?}");
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
    let all = |records: &[super::record::Record], role: &str| {
        records.iter().filter(|record| record.is(role, port)).cloned().collect::<Vec<_>>()
    };
    until("every connection has both records", || {
        let records = tracer.records();
        all(&records, "server").len() >= CONNECTIONS && all(&records, "client").len() >= CONNECTIONS
    });
    let records = tracer.stop();
    let servers = all(&records, "server");
    assert_eq!(servers.len(), CONNECTIONS);
    assert_eq!(all(&records, "client").len(), CONNECTIONS);
    for record in servers {
        record.expect_text("outcome", "established").expect_text("process.comm", "hs-acceptor");
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
