//! Calls of accept(): in vain, for MPTCP, and by threads that waited already when the connection came.
//!
//! What a reader would get wrong: a thread that waits in accept() is not late, so nothing of the wait is the
//! application's; and a call that began before us is of unknown time. What becomes of a child is in `accept_queue`.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::process::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    accept_queue::child,
    environment::{has_probes, is_fit, is_locked_down, skip},
    mptcp,
    netns::{Netns, Pair},
    plain::{expect_client, expect_counts, server_of},
    record::{Record, all_of},
    tracer::Tracer,
    traffic::{ESTABLISHED, listen_in, loopback_listener, until, wait_for_state},
    watch::Watch,
    whole::{AT_ONCE, expect_one_handshake},
};

const HERE: &str = "127.0.0.1";

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
    let ends = (HERE, HERE, port);
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
    // 7.2 preempts a thread within the tracepoint, and skips it for the others on that CPU: counted, and told so.
    let unseen = servers.iter().filter(|record| record.number("process.pid").is_none()).count() as u64;
    let skipped = records.last().and_then(|health| health.number("missed_probes")).unwrap_or(0);
    assert!(unseen <= skipped, "{unseen} were accepted unseen, and {skipped} hits skipped");
    for record in &servers {
        let is_seen = record.number("process.pid").is_some();
        server_of(record, "established", &netns, (HERE, HERE, port))
            .also(is_seen, |whole| whole.thread("hs-acceptor").within("phases.accept_ns", 0..=5_000))
            .old_calls()
            .queued(1..=CONNECTIONS as u64, 128..=4_096)
            .also(record.has_flag("reset_in_queue"), |whole| whole.flags(&["reset_in_queue"]))
            .also(!record.has_flag("reset_in_queue"), |whole| whole.flags(&[]))
            .nothing_else();
        let client = clients.iter().find(|client| client.get("id") == record.get("id"));
        let client = client.unwrap_or_else(|| panic!("no other end: {record}"));
        expect_client(client, &netns, (HERE, HERE, port), "hs-client");
        expect_one_handshake(client, record);
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

/// Waits until a thread of this process sleeps in accept().
pub fn until_in_accept(thread: Pid) {
    let sleeps_in = [libc::SYS_accept, libc::SYS_accept4]
        .map(|call| (format!("/proc/self/task/{}/syscall", thread.as_raw_nonzero()), call));
    until("the thread sleeps in accept()", || {
        sleeps_in.iter().any(|(path, call)| {
            std::fs::read_to_string(path).is_ok_and(|text| text.starts_with(&format!("{call} ")))
        })
    });
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
        let accepted = std::thread::Builder::new()
            .name("hs-server".to_owned())
            .spawn_scoped(scope, move || {
                send.send(rustix::thread::gettid()).expect("somebody waits for it");
                listener.accept().expect("a child is queued")
            })
            .expect("a thread can be started");
        until_in_accept(thread.recv().expect("it says who it is"));
        let client = netns.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
        drop((client, accepted.join().expect("it accepts")));
    });
    let ends = (HERE, HERE, to.port());
    let server = watch.wait_for_end("server", to.port());
    server_of(&server, "established", &netns, ends)
        .thread("hs-server")
        .queued(1..=1, 128..=4_096)
        .within("phases.accept_ns", AT_ONCE)
        .also(has_probes(), |whole| whole.number("phases.accept_call_ns", 0))
        .flags(&[])
        .nothing_else();
    let client = watch.wait_for_end("client", to.port());
    expect_client(&client, &netns, ends, "hs-client");
    expect_one_handshake(&client, &server);
    expect_counts(&watch.end(), &[(&netns, 2)]);
}
