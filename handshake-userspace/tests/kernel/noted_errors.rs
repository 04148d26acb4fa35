//! Errors that come by ICMP: what TCP notes and goes on trying for all that, evidence of a connect() that its application
//! gave up; and what ends a half-open request.
//!
//! The server's host routes for the client's and says by ICMP that there is no way. What a reader would get wrong: an
//! ICMP ends a connect() only if it finds the socket at rest; over veth it mostly comes while connect() still sends, and
//! then it is noted (`sk_err_soft`). On a busy machine it may come later, so there are several attempts.

use std::net::SocketAddr;

use socket2::Socket;

use super::{
    environment::{has_probes, is_fit},
    netns::{CLIENT_V4, Pair, SERVER_V4},
    plain::expect_counts,
    record::{Record, all_of},
    traffic::{
        connect_without_waiting, listen_in, set_option, tcp_socket, wait_for_no_request, wait_for_request,
    },
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS},
};

/// The kernel sends so many ICMPs in a row to one host before it limits their rate.
const ATTEMPTS: u16 = 4;

#[test]
fn an_icmp_that_connect_did_not_end_for_is_evidence_when_the_application_gives_up() {
    if !is_fit("an_icmp_that_connect_did_not_end_for_is_evidence_when_the_application_gives_up") {
        return;
    }
    let pair = Pair::new();
    pair.server.set("ipv4/ip_forward", "1");
    pair.server.set("ipv4/icmp_ratelimit", "0");
    pair.server.ip("route add unreachable 198.51.100.0/24");
    pair.client.ip(&format!("route add 198.51.100.0/24 via {SERVER_V4}"));
    let watch = Watch::begin();
    let given_up = |port: u16| -> Record {
        let to = SocketAddr::from(([198, 51, 100, 1], port));
        pair.client.on_thread("hs-client", || drop(connect_without_waiting(to)));
        watch.wait_for_end("client", port)
    };
    let records: Vec<Record> = (0..ATTEMPTS).map(|nth| given_up(7_000 + nth)).collect();
    for (record, nth) in records.iter().zip(0..) {
        let whole = match record.text("outcome") {
            // Nobody waited for a second SYN.
            Some("cancelled") => {
                let noted = record.get("evidence.soft_errno").is_some();
                record
                    .whole("client", "cancelled", &pair.client)
                    .evidence("closed_in_syn_sent", None)
                    .also(noted, |whole| whole.text("evidence.soft_errno", "EHOSTUNREACH"))
            }
            _ => record
                .whole("client", "host_unreachable", &pair.client)
                .evidence("socket_error", Some("EHOSTUNREACH")),
        };
        whole
            .number("evidence.syns", 1)
            .ends(CLIENT_V4, "198.51.100.1", 7_000 + nth)
            .thread("hs-client")
            .present("isn.local")
            .within("phases.local_ns", AT_ONCE)
            .within("failed_after_ns", AT_ONCE)
            .syns(0)
            .flags(&["non_blocking"])
            .nothing_else();
    }
    let noted = records.iter().any(|record| {
        record.text("outcome") == Some("cancelled")
            && record.text("evidence.soft_errno") == Some("EHOSTUNREACH")
    });
    assert!(noted, "none was noted: {records:?}");
    expect_counts(&watch.end(), &[(&pair.client, usize::from(ATTEMPTS)), (&pair.server, 0)]);
}

/// Where a client is, as its SYN says, and nobody knows the way.
const NOWHERE: &str = "198.51.100.1";

/// A client whose SYN has an address that is not its own, and which gives up at once.
fn connect_from_nowhere(to: SocketAddr) {
    let socket: Socket = tcp_socket();
    set_option(&socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1);
    let from: SocketAddr = format!("{NOWHERE}:0").parse().expect("an address");
    socket.bind(&from.into()).expect("a transparent socket may have any address");
    socket.set_nonblocking(true).expect("a socket can be non-blocking");
    let error = socket.connect(&to.into()).expect_err("nobody answers as yet");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::INPROGRESS.raw_os_error()));
}

#[test]
fn a_syn_ack_that_an_icmp_answers_ends_the_request_as_unreachable() {
    if !is_fit("a_syn_ack_that_an_icmp_answers_ends_the_request_as_unreachable") {
        return;
    }
    // A router that has no host there ends the request; one that forbids the way (ICMP code 13) does not.
    for (route, is_fatal) in [("unreachable", true), ("prohibit", false)] {
        let pair = Pair::new();
        pair.client.set("ipv4/ip_forward", "1");
        pair.client.set("ipv4/icmp_ratelimit", "0");
        pair.client.ip(&format!("route add {route} {NOWHERE}/32"));
        pair.server.ip(&format!("route add {NOWHERE}/32 via {CLIENT_V4}"));
        pair.server.set("ipv4/tcp_synack_retries", "1");
        let watch = Watch::begin();
        let (listener, to) = listen_in(&pair.server, 128);
        pair.client.on_thread("hs-client", || connect_from_nowhere(to));
        if !is_fatal {
            pair.server.on_thread("hs-wait", || wait_for_request(to.port()));
        }
        if has_probes() {
            let server = watch.wait_in(&pair.server, "server", to.port());
            let again = u64::from(!is_fatal);
            let outcome = if is_fatal { "host_unreachable" } else { "timed_out" };
            server
                .whole("server", outcome, &pair.server)
                .evidence(if is_fatal { "icmp_received" } else { "syn_ack_timeout" }, None)
                .number("evidence.syn_acks", again + 1)
                .ends(SERVER_V4, NOWHERE, to.port())
                .thread("hs-listen")
                .joined()
                .agreed_half_open(ETHERNET_MSS)
                .within("phases.synack_ns", 0..=500)
                .within("failed_after_ns", again * 2_500..=again * 6_000 + 900)
                .number("retransmits.syn_ack", again)
                .number("retransmits.syn_seen", 1)
                .within("retransmits.waited_ns", again * 900..=again * 2_500)
                .flags(&[])
                .nothing_else();
        } else {
            pair.server.on_thread("hs-wait", || wait_for_no_request(to.port()));
        }
        let servers = all_of(watch.end(), &pair.server);
        assert_eq!(servers.len(), usize::from(has_probes()), "{servers:?}");
        drop(listener);
    }
}
