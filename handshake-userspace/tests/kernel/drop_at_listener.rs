//! Drops for which the kernel names a reason, joined to the listener that the SYN was for: its queue, its owner.
//!
//! A socket filter on the listener drops SYNs on every kernel, without a firewall. What a reader would get wrong: the
//! kernel names the segment and no listener, so where several listen at one port nothing is told of a queue.

use std::{
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    environment::{has_drop_reasons, is_fit, skip},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4, SERVER_V6},
    plain,
    record::Record,
    tracer::Tracer,
    traffic::connect_without_waiting,
    watch::Watch,
    whole::Whole,
};

const NO_REASONS: &str = "the kernel names no drop reasons, or nobody may read whose segment it was";

/// From now on no segment gets in.
pub(super) fn let_nothing_in(listener: &impl AsRawFd) {
    let mut nothing = libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the option is read from a program of one instruction, both of this function.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    };
    assert_eq!(result, 0, "a socket filter: {}", std::io::Error::last_os_error());
}

/// A listener that a thread `hs-listen` opened; one of IPv6 takes no IPv4.
fn listen_at(netns: &Netns, at: &str, backlog: i32, shares: bool) -> (Socket, u16) {
    netns.on_thread("hs-listen", || {
        let at: SocketAddr = at.parse().expect("an address");
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).expect("a socket");
        if at.is_ipv6() {
            socket.set_only_v6(true).expect("it has the option");
        }
        socket.set_reuse_port(shares).expect("it has the option");
        socket.bind(&SockAddr::from(at)).expect("the port is free");
        socket.listen(backlog).expect("it can listen");
        let port = socket.local_addr().ok().and_then(|at| at.as_socket()).expect("it is bound").port();
        (socket, port)
    })
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), port)
}

/// Sends one SYN, and gives up at once; where it came from.
fn send_a_syn(pair: &Pair, to: SocketAddr) -> SocketAddr {
    pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        socket.local_addr().ok().and_then(|at| at.as_socket()).expect("it has a port")
    })
}

/// Whether this is the record of a dropped SYN from there.
fn is_dropped(record: &Record, from: SocketAddr) -> bool {
    record.text("role") == Some("server")
        && record.text("outcome") == Some("syn_dropped")
        && record.number("remote.port") == Some(u64::from(from.port()))
}

/// The whole record of a SYN that died before a listener of `hs-listen`, but for the queue; its client, which gave up
/// at once, is told as well.
#[track_caller]
fn expect_dropped(watch: &Watch, pair: &Pair, to: SocketAddr, from: SocketAddr, queue: Option<(u64, u64)>) {
    let record = watch.wait_for("the dropped SYN", |record| is_dropped(record, from));
    judged(plain::dropped(&record, "syn_dropped", &pair.server, "drop_reason", 1), to, from, queue);
    let client = watch.wait_for("its client", |record| {
        record.is("client", to.port()) && record.number("local.port") == Some(u64::from(from.port()))
    });
    plain::expect_cancelled(&client, &pair.client, (&from.ip().to_string(), &to.ip().to_string(), to.port()));
    assert_eq!(record.get("isn.remote"), client.get("isn.local"), "{record}\n{client}");
}

/// What the kernel and the listener's queue tell of such a SYN, and nothing more.
#[track_caller]
pub(super) fn judged(whole: Whole<'_>, to: SocketAddr, from: SocketAddr, queue: Option<(u64, u64)>) {
    let whole = whole
        // Every mode has this hook.
        .seen_by(&["tracepoint"])
        .text("dropped.reason", "SOCKET_FILTER")
        .ends(&to.ip().to_string(), &from.ip().to_string(), to.port())
        .number("remote.port", u64::from(from.port()));
    match queue {
        Some((length, limit)) => {
            whole.number("accept_queue.length", length).number("accept_queue.limit", limit)
        }
        None => whole,
    }
    .nothing_else();
}

#[test]
fn a_syn_that_dies_before_its_listener_is_told_with_that_listeners_queue_and_owner() {
    const NAME: &str = "a_syn_that_dies_before_its_listener_is_told_with_that_listeners_queue_and_owner";
    if !is_fit(NAME) {
        return;
    }
    if !has_drop_reasons() {
        skip(NAME, NO_REASONS);
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, port) = listen_at(&pair.server, "0.0.0.0:0", 5, false);
    let to = at(SERVER_V4, port);
    let stream = pair.client.on_thread("hs-first", || TcpStream::connect(to).expect("there is room"));
    watch.wait_for("the one that waits in the queue", |record| record.is("server", port));
    let_nothing_in(&listener);
    let from = send_a_syn(&pair, to);
    expect_dropped(&watch, &pair, to, from, Some((1, 5)));
    // The one that waits in the queue, and this one.
    plain::expect_counts(&watch.end(), &[(&pair.client, 2), (&pair.server, 2)]);
    drop((stream, listener));
}

#[test]
fn a_listener_that_was_there_before_us_is_joined_to_what_dies_before_it() {
    const NAME: &str = "a_listener_that_was_there_before_us_is_joined_to_what_dies_before_it";
    if !is_fit(NAME) {
        return;
    }
    if !has_drop_reasons() {
        skip(NAME, NO_REASONS);
        return;
    }
    let pair = Pair::new();
    let (listener, port) = listen_at(&pair.server, "0.0.0.0:0", 6, false);
    let_nothing_in(&listener);
    let tracer = Tracer::start(&["--netns", pair.server.name()]);
    let to = at(SERVER_V4, port);
    let from = send_a_syn(&pair, to);
    let records = tracer.stop();
    let dropped = records.iter().find(|record| is_dropped(record, from)).expect("its SYN was dropped");
    let main_thread = std::fs::read_to_string("/proc/self/comm").expect("it can be read");
    let pid = u64::from(std::process::id());
    let whole = dropped
        .whole("server", "syn_dropped", &pair.server)
        .evidence("drop_reason", None)
        .text("dropped.cause", "drop_reason")
        .number("dropped.segments", 1)
        .number("retransmits.syn_seen", 1)
        // The owner of a listener that was there before us is known as a process, not as a thread.
        .number("process.pid", pid)
        .number("process.tid", pid)
        .text("process.comm", main_thread.trim_end())
        .number("process.uid", 0)
        .present("isn.remote")
        .flags(&[]);
    judged(whole, to, from, Some((0, 6)));
    plain::expect_counts(&records, &[(&pair.server, 1)]);
    drop(listener);
}

#[test]
fn where_several_listen_at_a_port_no_queue_is_guessed() {
    const NAME: &str = "where_several_listen_at_a_port_no_queue_is_guessed";
    if !is_fit(NAME) {
        return;
    }
    if !has_drop_reasons() {
        skip(NAME, NO_REASONS);
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (first, port) = listen_at(&pair.server, "0.0.0.0:0", 3, true);
    let (second, _) = listen_at(&pair.server, &format!("0.0.0.0:{port}"), 4, true);
    let (other_version, _) = listen_at(&pair.server, &format!("[::]:{port}"), 7, false);
    for listener in [&first, &second, &other_version] {
        let_nothing_in(listener);
    }
    let (over_ipv4, over_ipv6) = (at(SERVER_V4, port), at(SERVER_V6, port));
    let from = send_a_syn(&pair, over_ipv4);
    expect_dropped(&watch, &pair, over_ipv4, from, None);
    // Of IPv6 there is one, which takes nothing else.
    let from = send_a_syn(&pair, over_ipv6);
    expect_dropped(&watch, &pair, over_ipv6, from, Some((0, 7)));
    drop(first);
    let from = send_a_syn(&pair, over_ipv4);
    expect_dropped(&watch, &pair, over_ipv4, from, Some((0, 4)));
    plain::expect_counts(&watch.end(), &[(&pair.client, 3), (&pair.server, 3)]);
    drop((second, other_version));
}

#[test]
fn many_drops_at_one_port_hide_none_at_another() {
    const NAME: &str = "many_drops_at_one_port_hide_none_at_another";
    const MANY: usize = 60;
    if !is_fit(NAME) {
        return;
    }
    if !has_drop_reasons() {
        skip(NAME, NO_REASONS);
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (flooded, port) = listen_at(&pair.server, "0.0.0.0:0", 5, false);
    let (quiet, other_port) = listen_at(&pair.server, "0.0.0.0:0", 5, false);
    for listener in [&flooded, &quiet] {
        let_nothing_in(listener);
    }
    pair.client.on_thread("hs-flood", || {
        for _ in 0..MANY {
            drop(connect_without_waiting(at(SERVER_V4, port)));
        }
    });
    let to = at(SERVER_V4, other_port);
    let from = send_a_syn(&pair, to);
    expect_dropped(&watch, &pair, to, from, Some((0, 5)));
    let records = watch.end();
    let told: Vec<_> = records.iter().filter(|record| record.is("server", port)).collect();
    // Else nothing was hidden that could have been.
    assert!(!told.is_empty() && told.len() < MANY, "of {MANY} drops {} were told", told.len());
    for record in told {
        let sender = record.number("remote.port").and_then(|port| u16::try_from(port).ok());
        let whole = plain::dropped(record, "syn_dropped", &pair.server, "drop_reason", 1);
        judged(whole, at(SERVER_V4, port), at(CLIENT_V4, sender.unwrap_or(0)), Some((0, 5)));
    }
    drop((flooded, quiet));
}
