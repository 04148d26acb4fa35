//! Calls of connect() that fail before any SYN leaves: no way, a way that is forbidden, no port.
//!
//! What a reader would get wrong: nothing of this was ever on the wire. Who called, whither and what the call
//! returned is all there is, and without reading the caller's sockaddr (lockdown) not even whither.

use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::io::Errno;

use super::{
    environment::{attach, is_fit, is_locked_down},
    netns::Netns,
    record::all_of,
    watch::Watch,
    whole::AT_ONCE,
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
