//! Calls of connect() that fail before any SYN leaves: no way, a way that is forbidden, no port.
//!
//! What a reader would get wrong: nothing of this was ever on the wire. Who called, whither and what the call
//! returned is all there is, and without reading the caller's sockaddr (lockdown) not even whither.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::{
    environment::{attach, is_fit, is_locked_down},
    netns::Netns,
    record::all_of,
    traffic::loopback_listener,
    watch::Watch,
    whole::{AT_ONCE, LOOPBACK_MSS, Whole},
};

#[test]
fn a_route_that_forbids_is_told_apart_from_one_that_is_missing() {
    if !is_fit("a_route_that_forbids_is_told_apart_from_one_that_is_missing") {
        return;
    }
    let cases = [
        ("203.0.113.9:91", "net_unreachable", Errno::NETUNREACH, "ENETUNREACH"),
        ("198.51.100.9:92", "host_unreachable", Errno::HOSTUNREACH, "EHOSTUNREACH"),
        ("198.51.100.130:93", "local_error", Errno::ACCESS, "EACCES"),
        ("198.51.100.200:94", "local_error", Errno::INVAL, "EINVAL"),
        ("[2001:db8::9]:95", "net_unreachable", Errno::NETUNREACH, "ENETUNREACH"),
        ("[::ffff:203.0.113.9]:96", "net_unreachable", Errno::NETUNREACH, "ENETUNREACH"),
    ];
    for (to, outcome, errno, name) in cases {
        let netns = Netns::new("r");
        netns.ip("route add unreachable 198.51.100.0/25");
        netns.ip("route add prohibit 198.51.100.128/26");
        netns.ip("route add blackhole 198.51.100.192/26");
        let watch = Watch::begin();
        let to: SocketAddr = to.parse().expect("an address");
        netns.on_thread("hs-client", || {
            let error = TcpStream::connect(to).expect_err("there is no way");
            assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{to}");
        });
        let inode = netns.inode();
        let record = watch.wait_for("the failed connect()", |record| {
            record.text("kind") == Some("handshake") && record.number("netns") == Some(inode)
        });
        let is_mapped = to.to_string().contains("ffff");
        let flags: &[&str] = if is_mapped && !is_locked_down() { &["v4_mapped"] } else { &[] };
        record
            .whole("client", outcome, &netns)
            .seen_by(if attach() == "kprobe" { &["tracepoint", "mixed"] } else { seen_by_default() })
            .evidence("connect_returned", Some(name))
            .thread("hs-client")
            .within("failed_after_ns", AT_ONCE)
            .also(!is_locked_down(), |whole| {
                whole
                    .text("remote.address", &to.ip().to_canonical().to_string())
                    .number("remote.port", u64::from(to.port()))
            })
            .flags(flags)
            .nothing_else();
        let records = all_of(watch.end(), &netns);
        assert_eq!(records.len(), 1, "one call, one record: {records:?}");
    }
}

fn seen_by_default() -> &'static [&'static str] {
    if attach() == "fentry" { &["fentry"] } else { &["tracepoint"] }
}

#[test]
fn no_free_port_is_a_local_error_and_no_refusal() {
    if !is_fit("no_free_port_is_a_local_error_and_no_refusal") {
        return;
    }
    let netns = Netns::new("p");
    netns.set("ipv4/ip_local_port_range", "40000 40000");
    let watch = Watch::begin();
    let to = netns.on_thread("hs-client", || {
        let listener = TcpListener::bind("127.0.0.1:7000").expect("loopback is up");
        let to = listener.local_addr().expect("it has an address");
        let _first = TcpStream::connect(to).expect("one port is free");
        let error = TcpStream::connect(to).expect_err("no port is left");
        assert_eq!(error.raw_os_error(), Some(Errno::ADDRNOTAVAIL.raw_os_error()));
        to
    });
    let inode = netns.inode();
    let record = watch.wait_for("the connect() without a port", |record| {
        record.text("outcome") == Some("local_error") && record.number("netns") == Some(inode)
    });
    record
        .whole("client", "local_error", &netns)
        .seen_by(if attach() == "kprobe" { &["tracepoint", "mixed"] } else { seen_by_default() })
        .evidence("connect_returned", Some("EADDRNOTAVAIL"))
        .thread("hs-client")
        .within("failed_after_ns", AT_ONCE)
        .text("remote.address", "127.0.0.1")
        .number("remote.port", u64::from(to.port()))
        // At TCP's entry it has no address yet. Who may not read the call's sockaddr, or has no probe there, hears of the
        // call later, by the change of state, and then it has one.
        .also(attach() == "tracepoint" || is_locked_down(), |whole| whole.text("local.address", "127.0.0.1"))
        .flags(&[])
        .nothing_else();
    let records = watch.end();
    let outcomes: Vec<_> = records.iter().filter(|record| record.is("client", to.port())).collect();
    assert_eq!(outcomes.len(), 2, "one record for each connect(): {outcomes:?}");
}

/// The whole record of a call that found no way, but for how it was seen.
#[track_caller]
fn no_way<'a>(whole: Whole<'a>, to: SocketAddr) -> Whole<'a> {
    whole
        .evidence("connect_returned", Some("ENETUNREACH"))
        .thread("hs-client")
        .within("failed_after_ns", AT_ONCE)
        .also(!is_locked_down(), |whole| {
            whole
                .text("remote.address", &to.ip().to_canonical().to_string())
                .number("remote.port", to.port().into())
        })
}

#[test]
fn a_sendmsg_that_found_no_way_lends_nothing_to_the_next_connect_of_its_socket() {
    const APART: Duration = Duration::from_millis(1_200);
    if !is_fit("a_sendmsg_that_found_no_way_lends_nothing_to_the_next_connect_of_its_socket") {
        return;
    }
    for is_mapped in [false, true] {
        let as_asked = |address: SocketAddr| {
            if is_mapped {
                format!("[::ffff:{}]:{}", address.ip(), address.port()).parse().expect("an address")
            } else {
                address
            }
        };
        let netns = Netns::new("f");
        netns.set("ipv4/tcp_fastopen", "3");
        let watch = Watch::begin();
        let first = as_asked(SocketAddr::from(([203, 0, 113, 9], 91)));
        let second = as_asked(SocketAddr::from(([203, 0, 113, 10], 92)));
        let (listener, to) = netns.on_thread("hs-listen", loopback_listener);
        let accepted = netns.on_thread("hs-client", || {
            let socket =
                Socket::new(Domain::for_address(first), Type::STREAM, None).expect("a socket can be made");
            let error = socket
                .send_to_with_flags(b"x", &first.into(), libc::MSG_FASTOPEN)
                .expect_err("there is no way");
            assert_eq!(error.raw_os_error(), Some(Errno::NETUNREACH.raw_os_error()));
            // What passes between two calls belongs to neither.
            std::thread::sleep(APART);
            let error = socket.connect(&second.into()).expect_err("there is no way either");
            assert_eq!(error.raw_os_error(), Some(Errno::NETUNREACH.raw_os_error()));
            let error =
                socket.send_to_with_flags(b"x", &first.into(), libc::MSG_FASTOPEN).expect_err("nor now");
            assert_eq!(error.raw_os_error(), Some(Errno::NETUNREACH.raw_os_error()));
            // As above.
            std::thread::sleep(APART);
            socket.connect(&as_asked(to).into()).expect("it listens");
            (listener.accept().expect("a child is queued"), socket)
        });
        let client = watch.wait_in(&netns, "client", to.port());
        let mapped: &[&str] = if is_mapped { &["v4_mapped"] } else { &[] };
        client
            .whole("client", "established", &netns)
            .ends("127.0.0.1", "127.0.0.1", to.port())
            .thread("hs-client")
            .joined()
            .within("latency_ns", AT_ONCE)
            .answered(AT_ONCE)
            .called_and_returned()
            .agreed(LOOPBACK_MSS)
            .flags(mapped)
            .nothing_else();
        let records = all_of(watch.end(), &netns);
        let failed: Vec<_> =
            records.iter().filter(|record| record.text("outcome") != Some("established")).collect();
        // Where sendmsg() has no hook on its return, its failures are not shown: `doctor` says so.
        let told = if attach() == "fentry" { vec![first, second, first] } else { vec![second] };
        assert_eq!(failed.len(), told.len(), "{failed:?}");
        let flags = if is_locked_down() { &[] } else { mapped };
        for (record, to) in failed.into_iter().zip(told) {
            let whole = record.whole("client", "net_unreachable", &netns).seen_by(if attach() == "kprobe" {
                &["tracepoint", "mixed"]
            } else {
                seen_by_default()
            });
            no_way(whole, to).flags(flags).nothing_else();
        }
        drop(accepted);
    }
}
