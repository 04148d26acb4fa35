//! Errors that TCP notes and goes on trying for all that: evidence of a connect() that its application gave up.
//!
//! The server's host routes for the client's and says by ICMP that there is no way. What a reader would get wrong: an
//! ICMP ends a connect() only if it finds the socket at rest; over veth it mostly comes while connect() still sends, and
//! then it is noted (`sk_err_soft`). On a busy machine it may come later, so there are several attempts.

use std::net::SocketAddr;

use super::{
    environment::is_fit,
    netns::{CLIENT_V4, Pair, SERVER_V4},
    plain::expect_counts,
    record::Record,
    traffic::connect_without_waiting,
    watch::Watch,
    whole::AT_ONCE,
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
