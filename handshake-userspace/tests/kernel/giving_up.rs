//! Who gave up, and after how long: the application, its own time-out, the kernel's, or the way there.
//!
//! What a reader would get wrong: a connect() that returned EINPROGRESS because SO_SNDTIMEO ran out has not
//! failed; its socket stays in SYN-SENT until somebody closes it.

use std::{net::SocketAddr, time::Duration};

use rustix::io::Errno;
use socket2::{SockRef, Socket};

use super::{
    environment::{in_vm, is_fit, run, skip},
    netns::{Netns, Pair, SERVER_V4},
    record::Record,
    traffic::{SYN_SENT, connect_without_waiting, set_option, tcp_socket, wait_for_state},
    watch::Watch,
};

const NOBODY: &str = "192.0.2.77:181";

/// A pair in which what is sent to [`NOBODY`] leaves and is never answered.
fn nobody_answers() -> (Pair, SocketAddr) {
    let pair = Pair::new();
    pair.client.ip("neigh replace 192.0.2.77 lladdr 02:00:00:00:99:ff dev veth0 nud permanent");
    (pair, NOBODY.parse().expect("an address"))
}

fn of_netns(netns: &Netns, port: u16) -> impl Fn(&Record) -> bool {
    let inode = netns.inode();
    move |record| record.is("client", port) && record.number("netns") == Some(inode)
}

#[test]
fn a_connect_that_its_own_timeout_ended_is_cancelled_at_close() {
    if !is_fit("a_connect_that_its_own_timeout_ended_is_cancelled_at_close") {
        return;
    }
    let (pair, to) = nobody_answers();
    let watch = Watch::begin();
    pair.client.on_thread("hs-client", || {
        let socket = tcp_socket();
        socket.set_write_timeout(Some(Duration::from_millis(200))).expect("SO_SNDTIMEO can be set");
        let error = socket.connect(&to.into()).expect_err("nobody answers");
        assert_eq!(error.raw_os_error(), Some(Errno::INPROGRESS.raw_os_error()));
    });
    let record = watch.wait_for("the cancelled connect()", of_netns(&pair.client, to.port()));
    record
        .expect_text("outcome", "cancelled")
        .expect_text("evidence.kind", "closed_in_syn_sent")
        .expect_flag("non_blocking")
        .expect_number("process.pid", u64::from(std::process::id()))
        .expect_absent("latency_ns")
        .expect_absent("rtt_ns")
        .expect_absent("phases.wire_ns")
        .expect_absent("phases.wake_ns")
        .expect_within("failed_after_ns", 190..=900);
    watch.end();
}

#[test]
fn tcp_user_timeout_is_a_timeout_of_the_kernel() {
    if !is_fit("tcp_user_timeout_is_a_timeout_of_the_kernel") {
        return;
    }
    let (pair, to) = nobody_answers();
    let watch = Watch::begin();
    pair.client.on_thread("hs-client", || {
        let socket = tcp_socket();
        set_option(&socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 1_500);
        let error = socket.connect(&to.into()).expect_err("nobody answers");
        assert_eq!(error.raw_os_error(), Some(Errno::TIMEDOUT.raw_os_error()));
    });
    let record = watch.wait_for("the timed out connect()", of_netns(&pair.client, to.port()));
    record
        .expect_text("outcome", "timed_out")
        .expect_text("evidence.kind", "retransmit_timeout")
        .expect_text("evidence.errno", "ETIMEDOUT")
        .expect_absent("latency_ns")
        .expect_within("failed_after_ns", 1_000..=4_000);
    assert!(record.number("retransmits.syn").is_some_and(|again| again >= 1), "{record}");
    watch.end();
}

#[test]
fn connect_to_af_unspec_in_syn_sent_cancels() {
    if !is_fit("connect_to_af_unspec_in_syn_sent_cancels") {
        return;
    }
    let (pair, to) = nobody_answers();
    let watch = Watch::begin();
    pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        disconnect(&socket);
        // The socket is as good as new: its next connect() is another handshake.
        let error = socket.connect(&to.into()).expect_err("it is non-blocking");
        assert_eq!(error.raw_os_error(), Some(Errno::INPROGRESS.raw_os_error()));
        wait_for_state(to.port(), SYN_SENT);
    });
    for nth in 1..=2 {
        let records = || {
            let ours = of_netns(&pair.client, to.port());
            watch.records().into_iter().filter(move |record| ours(record)).collect::<Vec<_>>()
        };
        super::traffic::until("each connect() has its record", || records().len() >= nth);
        records()[nth - 1].expect_text("outcome", "cancelled").expect_number("evidence.syns", 1);
    }
    let records = watch.end();
    assert_eq!(records.iter().filter(|record| of_netns(&pair.client, to.port())(record)).count(), 2);
}

/// connect() with AF_UNSPEC, which TCP takes for "give up".
fn disconnect(socket: &Socket) {
    let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let size = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address is a sockaddr of this function, of which the size is given.
    let result =
        unsafe { libc::connect(std::os::fd::AsRawFd::as_raw_fd(socket), &raw const unspecified, size) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_process_that_is_killed_while_it_connects_leaves_a_cancelled_handshake() {
    if !is_fit("a_process_that_is_killed_while_it_connects_leaves_a_cancelled_handshake") {
        return;
    }
    let (pair, to) = nobody_answers();
    let watch = Watch::begin();
    let name = pair.client.name().to_owned();
    let mut child = std::process::Command::new("ip")
        .args(["netns", "exec", &name, "busybox", "nc", "192.0.2.77", "181"])
        .stdin(std::process::Stdio::null())
        .spawn()
        .expect("it can be started");
    pair.client.on_thread("hs-wait", || wait_for_state(to.port(), SYN_SENT));
    child.kill().expect("it runs");
    child.wait().expect("it can be waited for");
    watch
        .wait_for("the cancelled connect()", of_netns(&pair.client, to.port()))
        .expect_text("outcome", "cancelled")
        .expect_number("process.pid", u64::from(child.id()));
    watch.end();
}

#[test]
fn an_icmp_ends_a_handshake_without_any_rst() {
    const NAME: &str = "an_icmp_ends_a_handshake_without_any_rst";
    if !is_fit(NAME) {
        return;
    }
    if !in_vm() {
        skip(NAME, "this kernel has no nf_tables");
        return;
    }
    let cases = [
        ("port-unreachable", 191, "refused", "ECONNREFUSED"),
        ("host-unreachable", 192, "host_unreachable", "EHOSTUNREACH"),
        ("net-unreachable", 193, "net_unreachable", "ENETUNREACH"),
        ("admin-prohibited", 194, "host_unreachable", "EHOSTUNREACH"),
    ];
    let pair = Pair::new();
    let nft = |rule: &str| run(&format!("ip netns exec {} nft {rule}", pair.server.name()));
    nft("add table ip hs");
    nft("add chain ip hs input { type filter hook input priority 0 ; }");
    for (icmp, port, _, _) in cases {
        nft(&format!("add rule ip hs input tcp dport {port} reject with icmp type {icmp}"));
    }
    let watch = Watch::begin();
    for (_, port, outcome, errno) in cases {
        let to: SocketAddr = format!("{SERVER_V4}:{port}").parse().expect("an address");
        pair.client.on_thread("hs-client", || std::net::TcpStream::connect(to).expect_err("it is rejected"));
        let record = watch.wait_for("the rejected connect()", of_netns(&pair.client, port));
        // An ICMP that comes while connect() still holds the socket, as over veth, only leaves sk_err_soft; then
        // the next SYN's ends it.
        assert!(record.number("evidence.syns").is_some_and(|syns| (1..=2).contains(&syns)), "{record}");
        record
            .expect_text("outcome", outcome)
            .expect_text("evidence.kind", "socket_error")
            .expect_text("evidence.errno", errno)
            .expect_absent("latency_ns")
            .expect_absent("phases.wire_ns");
    }
    watch.end();
}

#[test]
fn a_namespace_that_goes_while_a_handshake_is_open_takes_it_along() {
    if !is_fit("a_namespace_that_goes_while_a_handshake_is_open_takes_it_along") {
        return;
    }
    let (pair, to) = nobody_answers();
    let watch = Watch::begin();
    let inode = pair.client.inode();
    let socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        socket
    });
    drop(pair);
    // The socket keeps its namespace alive; with the socket the last of it goes.
    drop(socket);
    watch
        .wait_for("the cancelled connect()", |record| {
            record.is("client", to.port()) && record.number("netns") == Some(inode)
        })
        .expect_text("outcome", "cancelled");
    watch.end();
}

#[test]
fn a_socket_that_lingers_in_syn_sent_after_its_timeout_can_still_be_established() {
    if !is_fit("a_socket_that_lingers_in_syn_sent_after_its_timeout_can_still_be_established") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let server = super::peer::Server::start(&pair.server, "0.0.0.0:0");
    let to: SocketAddr = format!("{SERVER_V4}:{}", server.port).parse().expect("an address");
    pair.client_reaches_server(false);
    pair.client.on_thread("hs-client", || {
        let socket = tcp_socket();
        socket.set_write_timeout(Some(Duration::from_millis(100))).expect("SO_SNDTIMEO can be set");
        let error = socket.connect(&to.into()).expect_err("the SYN goes nowhere");
        assert_eq!(error.raw_os_error(), Some(Errno::INPROGRESS.raw_os_error()));
        pair.client_reaches_server(true);
        super::traffic::finish(&socket).expect("the second SYN arrives");
        assert!(SockRef::from(&socket).peer_addr().is_ok());
    });
    watch
        .wait_for_end("client", server.port)
        .expect_text("outcome", "established")
        .expect_flag("non_blocking")
        .expect_number("retransmits.syn", 1)
        .expect_within("latency_ns", 950..=1_700)
        .expect_absent("rtt_ns");
    watch.end();
}
