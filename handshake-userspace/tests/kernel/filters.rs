//! Filters: each keeps what it names and drops the rest, at both ends.
//!
//! What a reader would get wrong: the connection that must be shown is made after the one that must not, so
//! that its record is the proof that the other would have come too.

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use super::{
    environment::{is_fit, is_fit_once},
    netns::Netns,
    record::Record,
    tracer::Tracer,
    watch::end_shared,
};

/// Makes one loopback connection on threads of these names; gives the port.
fn connection(netns: &Netns, client: &str, server: &str) -> u16 {
    let listener = netns.on_thread(server, || TcpListener::bind("127.0.0.1:0").expect("loopback is up"));
    let to = listener.local_addr().expect("it has an address");
    let _stream = netns.on_thread(client, || TcpStream::connect(to).expect("it listens"));
    netns.on_thread(server, || drop(listener.accept().expect("a child is queued")));
    to.port()
}

/// Connects a socket to its own port, and closes it; gives the port.
fn connection_with_itself() -> u16 {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().expect("an address");
    socket.bind(&any.into()).expect("loopback is up");
    let own = socket.local_addr().expect("it is bound");
    socket.connect(&own).expect("a socket can connect to itself");
    own.as_socket().expect("it is IPv4").port()
}

fn roles(records: &[Record], port: u16) -> Vec<&str> {
    let mut roles: Vec<&str> = ["client", "server"]
        .into_iter()
        .filter(|role| records.iter().any(|record| record.is(role, port)))
        .collect();
    roles.sort_unstable();
    roles
}

/// Runs with a filter; `dropped` and `kept` are made in this order.
fn both_ends(filter: &[&str], dropped: impl FnOnce() -> u16, kept: impl FnOnce() -> u16, shown: &[&str]) {
    let tracer = Tracer::start(filter);
    let hidden = dropped();
    let visible = kept();
    for role in shown {
        tracer.wait_for_end(role, visible);
    }
    let records = tracer.stop();
    assert_eq!(roles(&records, visible), shown, "{filter:?}: {records:?}");
    assert!(roles(&records, hidden).is_empty(), "{filter:?} shows port {hidden}: {records:?}");
}

#[test]
fn a_filter_by_namespace_keeps_only_that_namespace() {
    if !is_fit_once("a_filter_by_namespace_keeps_only_that_namespace") {
        return;
    }
    let (one, other) = (Netns::new("a"), Netns::new("b"));
    both_ends(
        &["--netns", one.name()],
        || connection(&other, "hs-c", "hs-s"),
        || connection(&one, "hs-c", "hs-s"),
        &["client", "server"],
    );
}

#[test]
fn a_filter_by_port_keeps_both_ends_of_it() {
    if !is_fit_once("a_filter_by_port_keeps_both_ends_of_it") {
        return;
    }
    let netns = Netns::new("f");
    let fixed = || {
        netns.on_thread("hs-both", || {
            let listener = TcpListener::bind("127.0.0.1:7011").expect("the port is free here");
            let _stream = TcpStream::connect("127.0.0.1:7011").expect("it listens");
            drop(listener.accept().expect("a child is queued"));
            7011
        })
    };
    both_ends(&["--port", "7011"], || connection(&netns, "hs-c", "hs-s"), fixed, &["client", "server"]);
}

#[test]
fn a_filter_by_command_keeps_who_connects_and_who_accepts() {
    if !is_fit_once("a_filter_by_command_keeps_who_connects_and_who_accepts") {
        return;
    }
    let netns = Netns::new("f");
    let other = || connection(&netns, "hs-c", "hs-s");
    both_ends(&["--comm", "hs-me"], other, || connection(&netns, "hs-me", "hs-s"), &["client"]);
    both_ends(&["--comm", "hs-me"], other, || connection(&netns, "hs-c", "hs-me"), &["server"]);
}

#[test]
fn a_filter_by_process_keeps_its_active_and_its_passive_opens() {
    if !is_fit_once("a_filter_by_process_keeps_its_active_and_its_passive_opens") {
        return;
    }
    let netns = Netns::new("f");
    let me = std::process::id().to_string();
    let tracer = Tracer::start(&["--pid", &me]);
    let port = connection(&netns, "hs-c", "hs-s");
    tracer.wait_for_end("client", port).expect_number("process.pid", u64::from(std::process::id()));
    tracer.wait_for_end("server", port);
    tracer.stop();
    for another in [["--pid", "1"], ["--uid", "54321"]] {
        let tracer = Tracer::start(&another);
        let hidden = connection(&netns, "hs-c", "hs-s");
        let records = tracer.stop();
        assert!(roles(&records, hidden).is_empty(), "{another:?}: {records:?}");
    }
    let tracer = Tracer::start(&["--uid", "0", "--netns", netns.name()]);
    let port = connection(&netns, "hs-c", "hs-s");
    tracer.wait_for_end("client", port).expect_number("process.uid", 0);
    tracer.wait_for_end("server", port).expect_number("process.uid", 0);
    tracer.stop();
}

/// Only what the thread that makes the namespace starts is in it, and that thread can start no other; the program is
/// process 1 there.
fn in_a_pid_namespace_of_its_own(command: &mut Command) -> std::io::Result<Child> {
    std::thread::scope(|scope| {
        let spawn = scope.spawn(move || {
            // SAFETY: it concerns the children of this thread alone, which has none and ends with the first.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWPID) }?;
            command.spawn()
        });
        spawn.join().expect("it does not panic")
    })
}

#[test]
fn in_another_pid_namespace_ids_are_the_first_ones_and_our_own_sockets_are_known() {
    if !is_fit("in_another_pid_namespace_ids_are_the_first_ones_and_our_own_sockets_are_known") {
        return;
    }
    let me = u64::from(std::process::id());
    let netns = Netns::new("f");
    // A listener from before, whose owner /proc would tell by another number.
    let listener = netns.on_thread("hs-before", || TcpListener::bind("127.0.0.1:0").expect("loopback is up"));
    for filter in [&["--pid".to_owned(), me.to_string()][..], &["--comm".to_owned(), "hs-c".to_owned()]] {
        let filter: Vec<&str> = filter.iter().map(String::as_str).collect();
        end_shared();
        let tracer = Tracer::start_by(in_a_pid_namespace_of_its_own, &["trace"], &filter);
        let port = connection(&netns, "hs-c", "hs-s");
        tracer
            .wait_for_end("client", port)
            .expect_number("process.pid", me)
            .expect_text("process.comm", "hs-c");
        let (records, log) = tracer.stop_with_log();
        // The canary is known by the mark of our own sockets where a filter by process is on.
        let health = records.last().expect("there is a last record");
        health.expect_text("canary", "passed");
        assert!(log.iter().any(|line| line.contains("first pid namespace")), "{filter:?}: {log:?}");
    }
    drop(listener);
}

#[test]
fn a_filter_by_family_keeps_that_family_and_takes_mapped_addresses_for_ipv4() {
    if !is_fit_once("a_filter_by_family_keeps_that_family_and_takes_mapped_addresses_for_ipv4") {
        return;
    }
    let netns = Netns::new("f");
    let over = |listen: &str, connect: &str| {
        netns.on_thread("hs-both", || {
            let listener = TcpListener::bind(listen).expect("loopback is up");
            let port = listener.local_addr().expect("it has an address").port();
            let _stream = TcpStream::connect(format!("{connect}:{port}")).expect("it listens");
            drop(listener.accept().expect("a child is queued"));
            port
        })
    };
    let v4 = || over("127.0.0.1:0", "127.0.0.1");
    let v6 = || over("[::1]:0", "[::1]");
    let mapped = || over("[::]:0", "[::ffff:127.0.0.1]");
    both_ends(&["-4"], v6, v4, &["client", "server"]);
    both_ends(&["-4"], v6, mapped, &["client", "server"]);
    both_ends(&["-6"], v4, v6, &["client", "server"]);
    both_ends(&["-6"], mapped, v6, &["client", "server"]);
}

#[test]
fn a_filter_by_role_keeps_one_end() {
    if !is_fit_once("a_filter_by_role_keeps_one_end") {
        return;
    }
    let netns = Netns::new("f");
    for role in ["client", "server"] {
        let tracer = Tracer::start(&["--role", role, "--netns", netns.name()]);
        let port = connection(&netns, "hs-c", "hs-s");
        tracer.wait_for_end(role, port);
        // A simultaneous open, here with itself, is active at both ends (RFC 9293 section 3.5).
        let crossing = netns.on_thread("hs-self", connection_with_itself);
        if role == "client" {
            tracer.wait_for("the simultaneous open", |record| {
                record.text("role") == Some("simultaneous")
                    && record.number("local.port") == Some(u64::from(crossing))
            });
        }
        let records = tracer.stop();
        assert_eq!(roles(&records, port), [role]);
        let crossed = |record: &&Record| record.number("local.port") == Some(u64::from(crossing));
        assert_eq!(records.iter().filter(crossed).count(), usize::from(role == "client"), "{records:?}");
    }
}

#[test]
fn a_filter_by_remote_network_keeps_connections_to_and_from_it() {
    if !is_fit_once("a_filter_by_remote_network_keeps_connections_to_and_from_it") {
        return;
    }
    let netns = Netns::new("f");
    // The kernel chooses 127.0.0.1 as the client's own address, so only the client's remote end is elsewhere.
    let elsewhere = || {
        netns.on_thread("hs-both", || {
            let listener = TcpListener::bind("127.9.9.9:0").expect("loopback is up");
            let to = listener.local_addr().expect("it has an address");
            let _stream = TcpStream::connect(to).expect("it listens");
            drop(listener.accept().expect("a child is queued"));
            to.port()
        })
    };
    both_ends(&["--remote", "127.9.9.0/24"], || connection(&netns, "hs-c", "hs-s"), elsewhere, &["client"]);
    // A network of IPv4 means mapped addresses too (::ffff:127.9.9.9).
    let mapped = || {
        netns.on_thread("hs-both", || {
            let listener = TcpListener::bind("[::]:0").expect("loopback is up");
            let port = listener.local_addr().expect("it has an address").port();
            let _stream = TcpStream::connect(format!("[::ffff:127.9.9.9]:{port}")).expect("it listens");
            drop(listener.accept().expect("a child is queued"));
            port
        })
    };
    both_ends(&["--remote", "127.9.9.0/24"], || connection(&netns, "hs-c", "hs-s"), mapped, &["client"]);
}
