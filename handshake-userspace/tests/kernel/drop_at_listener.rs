//! Drops for which the kernel names a reason, joined to the listener that the SYN was for: its queue, its owner.
//!
//! A socket filter on the listener drops SYNs on every kernel, without a firewall. What a reader would get wrong: the
//! kernel names the segment and no listener, so where several listen at one port nothing is told of a queue.

use std::{
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    environment::{has_drop_reasons, is_fit, skip},
    netns::{Netns, Pair, SERVER_V4, SERVER_V6},
    record::Record,
    tracer::Tracer,
    traffic::connect_without_waiting,
    watch::Watch,
};

const NO_REASONS: &str = "the kernel names no drop reasons, or nobody may read whose segment it was";

/// From now on no segment gets in.
fn let_nothing_in(listener: &Socket) {
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

#[track_caller]
fn dropped(watch: &Watch, from: SocketAddr) -> Record {
    let record = watch.wait_for("the dropped SYN", |record| is_dropped(record, from));
    judged(&record);
    record.expect_text("process.comm", "hs-listen");
    record
}

#[track_caller]
fn judged(record: &Record) {
    record
        .expect_text("dropped.reason", "SOCKET_FILTER")
        .expect_text("evidence.kind", "drop_reason")
        .expect_number("dropped.segments", 1)
        .expect_number("process.pid", u64::from(std::process::id()));
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
    dropped(&watch, from).expect_number("accept_queue.length", 1).expect_number("accept_queue.limit", 5);
    watch.end();
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
    let from = send_a_syn(&pair, at(SERVER_V4, port));
    let records = tracer.stop();
    let dropped = records.iter().find(|record| is_dropped(record, from)).expect("its SYN was dropped");
    judged(dropped);
    dropped.expect_number("accept_queue.length", 0).expect_number("accept_queue.limit", 6);
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
    let from = send_a_syn(&pair, at(SERVER_V4, port));
    dropped(&watch, from).expect_absent("accept_queue");
    // Of IPv6 there is one, which takes nothing else.
    let from = send_a_syn(&pair, at(SERVER_V6, port));
    dropped(&watch, from).expect_number("accept_queue.limit", 7);
    drop(first);
    let from = send_a_syn(&pair, at(SERVER_V4, port));
    dropped(&watch, from).expect_number("accept_queue.length", 0).expect_number("accept_queue.limit", 4);
    watch.end();
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
    let from = send_a_syn(&pair, at(SERVER_V4, other_port));
    dropped(&watch, from).expect_number("local.port", u64::from(other_port));
    let told = watch.end().iter().filter(|record| record.is("server", port)).count();
    // Else nothing was hidden that could have been.
    assert!(told < MANY, "of {MANY} drops {told} were told");
    drop((flooded, quiet));
}
