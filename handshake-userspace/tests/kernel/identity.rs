//! Whose a handshake is, and when it was: descriptors that are used again, names that lie, a tracer that was late.
//!
//! What a reader would get wrong: a process chooses its own name, byte by byte, and a descriptor is a number that means
//! another socket a moment later. Neither may ever decide what a record says.

use std::{
    io::{BufRead as _, BufReader, ErrorKind},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::MetadataExt as _,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    process::Signal,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{
    environment::{is_fit, skip},
    neighbours::cgroup_root,
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    plain::{connected, expect_counts, server_of},
    record::{Record, all_of},
    tracer::Tracer,
    traffic::{accept_in, listen_in, loopback_listener},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, LOOPBACK_MSS, Whole, expect_one_handshake},
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

const ORDER: &str = "HANDSHAKE_TEST_WHOSE";

/// A cgroup of a scenario's own.
struct Group(PathBuf);

impl Group {
    fn new(role: &str) -> std::io::Result<Self> {
        let folder = cgroup_root().join(format!("hs-{role}-{}", std::process::id()));
        std::fs::create_dir(&folder)?;
        Ok(Group(folder))
    }

    /// The number that the kernel knows it by.
    fn id(&self) -> u64 {
        self.0.metadata().expect("it is there").ino()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // For a moment after its last process was waited for it is not empty yet.
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::fs::remove_dir(&self.0).is_err_and(|error| error.kind() == ErrorKind::ResourceBusy)
            && Instant::now() < deadline
        {
            std::thread::yield_now();
        }
    }
}

/// One end in a process of its own, in a cgroup of its own, by a thread of another user than the process's.
struct End {
    child: Child,
    uid: u64,
    thread: &'static str,
    tid: u64,
    port: u16,
    group: Group,
}

impl End {
    /// Connects, or listens where there is nobody to connect to.
    fn start(netns: &Netns, thread: &'static str, uid: u64, group: Group, to: Option<SocketAddr>) -> Self {
        let to = to.map_or("-".to_owned(), |to| to.to_string());
        let mut child = Command::new(std::env::current_exe().expect("this binary has a path"))
            .args(["--exact", "identity::a_thread_of_another_user", "--nocapture"])
            .env(ORDER, format!("{} {} {thread} {uid} {to}", group.0.display(), netns.name()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary can be run again");
        let mut answers = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let said = answers.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, numbers) = line.split_once("@thread ")?;
            let (tid, port) = numbers.split_once(' ')?;
            Some((tid.parse().ok()?, port.trim().parse().ok()?))
        });
        let (tid, port) = said.expect("it says which thread it is, and its port");
        // What else it says is of no interest, but its pipe must not fill.
        std::thread::spawn(move || answers.for_each(drop));
        End { child, uid, thread, tid, port, group }
    }

    /// Every number of who it was.
    #[track_caller]
    fn is_named_by<'a>(&self, whole: Whole<'a>) -> Whole<'a> {
        assert_ne!(self.tid, u64::from(self.child.id()), "it is not the process's first thread");
        whole
            .number("process.pid", u64::from(self.child.id()))
            .number("process.tid", self.tid)
            .text("process.comm", self.thread)
            .number("process.uid", self.uid)
            .text("process.cgroup_id", &self.group.id().to_string())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_thread_of_another_user() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let mut words = order.split(' ');
    let mut word = || words.next().expect("the parent says what to do").to_owned();
    let (group, netns, name, uid, to) = (word(), word(), word(), word(), word());
    std::fs::write(format!("{group}/cgroup.procs"), "0").expect("the cgroup exists");
    let file = std::fs::File::open(format!("/run/netns/{netns}")).expect("the namespace exists");
    let uid: libc::uid_t = uid.parse().expect("a number");
    let end = move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("the namespace can be entered");
        // SAFETY: the call takes three numbers. The C library's function would change every thread's user.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(changed, 0, "{}", std::io::Error::last_os_error());
        let tid = rustix::thread::gettid().as_raw_nonzero();
        match to.parse::<SocketAddr>() {
            Ok(to) => {
                let stream = TcpStream::connect(to).expect("it listens");
                println!("@thread {tid} {}", stream.local_addr().expect("it is bound").port());
                stream
            }
            Err(_) => {
                let listener = TcpListener::bind("0.0.0.0:0").expect("a port is free");
                println!("@thread {tid} {}", listener.local_addr().expect("it is bound").port());
                listener.accept().expect("a connection comes").0
            }
        }
    };
    let thread = std::thread::Builder::new().name(name).spawn(end).expect("a thread can be started");
    let held = thread.join().expect("it connects, or accepts");
    // Until the parent has read what was told of it.
    std::io::stdin().lines().for_each(drop);
    drop(held);
}

#[test]
fn each_end_is_told_with_its_own_thread_user_and_cgroup() {
    const NAME: &str = "each_end_is_told_with_its_own_thread_user_and_cgroup";
    if !is_fit(NAME) {
        return;
    }
    let (Ok(for_server), Ok(for_client)) = (Group::new("server"), Group::new("client")) else {
        return skip(NAME, "no cgroup can be made");
    };
    let pair = Pair::new();
    let watch = Watch::begin();
    let server = End::start(&pair.server, "hs-served-by", 41_002, for_server, None);
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    let client = End::start(&pair.client, "hs-called-by", 41_001, for_client, Some(to));
    let ends = (watch.wait_for_end("client", to.port()), watch.wait_for_end("server", to.port()));
    let whole = connected(&ends.0, &pair.client, (CLIENT_V4, SERVER_V4, to.port())).called_and_returned();
    client.is_named_by(whole).number("local.port", u64::from(client.port)).flags(&[]).nothing_else();
    let whole = server_of(&ends.1, "established", &pair.server, (SERVER_V4, CLIENT_V4, to.port()));
    server
        .is_named_by(whole)
        .queued(1..=1, 128..=4_096)
        .within("phases.accept_ns", AT_ONCE)
        .flags(&[])
        .nothing_else();
    expect_one_handshake(&ends.0, &ends.1);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 1)]);
}
