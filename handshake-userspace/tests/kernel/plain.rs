//! Records that many scenarios make beside the one they are about, whole: ends of which nothing was lost, clients
//! that gave up, SYNs that were dropped.
//!
//! What a reader would get wrong: a record is handed on unfinished. Who accepted, what only this scenario adds and
//! `nothing_else` are still to be asked, and a scenario that forgets the last asks for less than it seems to.

use std::net::{SocketAddr, TcpStream};

use super::{
    environment::{has_probes, names_no_drop_reasons},
    netns::Netns,
    record::{Record, all_of},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, LOOPBACK_MSS, LOOPBACK_V6_MSS, Whole, expect_one_handshake},
};

/// Our own address, the other end's, and the listening port.
pub type Ends<'a> = (&'a str, &'a str, u16);

/// What both ends announce: from an address to itself a segment goes through loopback.
pub fn mss_between(ends: Ends) -> u64 {
    match (ends.0 == ends.1, ends.0.contains(':')) {
        (true, false) => LOOPBACK_MSS,
        (true, true) => LOOPBACK_V6_MSS,
        (false, false) => ETHERNET_MSS,
        (false, true) => ETHERNET_MSS - 20,
    }
}

/// A client that was connected at once, but for who called, connect()'s call and return, and the flags.
#[track_caller]
pub fn connected<'a>(client: &'a Record, netns: &Netns, ends: Ends) -> Whole<'a> {
    client
        .whole("client", "established", netns)
        .ends(ends.0, ends.1, ends.2)
        .joined()
        .agreed(mss_between(ends))
        .within("latency_ns", AT_ONCE)
        .answered(AT_ONCE)
}

/// Such a client of a thread whose connect() waited, but for the flags.
#[track_caller]
pub fn client_of<'a>(client: &'a Record, netns: &Netns, ends: Ends, thread: &str) -> Whole<'a> {
    connected(client, netns, ends).thread(thread).called_and_returned()
}

/// Such a client, and nothing more: connect() waited.
#[track_caller]
pub fn expect_client(client: &Record, netns: &Netns, ends: Ends, thread: &str) {
    client_of(client, netns, ends, thread).flags(&[]).nothing_else();
}

/// A server that was connected at once, but for its queue, who accepted, and the flags.
#[track_caller]
pub fn server_of<'a>(server: &'a Record, outcome: &str, netns: &Netns, ends: Ends) -> Whole<'a> {
    server
        .whole("server", outcome, netns)
        .ends(ends.0, ends.1, ends.2)
        .joined()
        .agreed(mss_between(ends))
        .served(AT_ONCE)
}

/// Such a server, accepted at once by a thread, and nothing more.
#[track_caller]
pub fn expect_server(server: &Record, netns: &Netns, ends: Ends, thread: &str) {
    server_of(server, "established", netns, ends)
        .queued(1..=1, 1..=4_096)
        .thread(thread)
        .within("phases.accept_ns", AT_ONCE)
        .flags(&[])
        .nothing_else();
}

/// A client `hs-client` with tcp_syn_retries of 1 that nobody answered, but for the flags; and how many SYNs it sent.
#[track_caller]
pub fn timed_out<'a>(client: &'a Record, netns: &Netns, ends: Ends) -> (Whole<'a>, u64) {
    let (whole, syns) = given_up(client, netns, ends);
    (whole.within("retransmits.waited_ns", 950..=3_500), syns)
}

/// The same, but for when the last SYN left as well.
#[track_caller]
pub fn given_up<'a>(client: &'a Record, netns: &Netns, ends: Ends) -> (Whole<'a>, u64) {
    // Two from 6.5 on: the first ones don't count there (tcp_syn_linear_timeouts).
    let again = client.number("retransmits.syn").expect("SYNs are counted");
    assert!((1..=2).contains(&again), "{client}");
    let whole = client
        .whole("client", "timed_out", netns)
        .evidence("retransmit_timeout", Some("ETIMEDOUT"))
        .number("evidence.syns", again + 1)
        .ends(ends.0, ends.1, ends.2)
        .thread("hs-client")
        .present("isn.local")
        .within("phases.local_ns", AT_ONCE)
        .within("failed_after_ns", 2_900..=5_000)
        .syns(again);
    (whole, again + 1)
}

/// A client `hs-client` that closed its socket at once, in SYN-SENT, and nothing more.
#[track_caller]
pub fn expect_cancelled(client: &Record, netns: &Netns, ends: Ends) {
    client
        .whole("client", "cancelled", netns)
        .evidence("closed_in_syn_sent", None)
        .number("evidence.syns", 1)
        .ends(ends.0, ends.1, ends.2)
        .thread("hs-client")
        .present("isn.local")
        .within("phases.local_ns", AT_ONCE)
        .within("failed_after_ns", AT_ONCE)
        .syns(0)
        .flags(&["non_blocking"])
        .nothing_else();
}

/// SYNs to a listener of `hs-listen` that this host dropped, but for the two ends, the queue and the kernel's reason.
#[track_caller]
pub fn dropped<'a>(
    server: &'a Record,
    outcome: &str,
    netns: &Netns,
    cause: &str,
    segments: u64,
) -> Whole<'a> {
    server
        .whole("server", outcome, netns)
        .evidence(cause, None)
        .text("dropped.cause", cause)
        .number("dropped.segments", segments)
        .number("retransmits.syn_seen", segments)
        .thread("hs-listen")
        .present("isn.remote")
        .flags(&[])
}

/// Both records of the connections that filled an accept queue. `taken` says whether `hs-server` accepted them within
/// the second after which a record waits no longer.
#[track_caller]
pub fn expect_fillers(watch: &Watch, netns: &Netns, to: SocketAddr, streams: &[TcpStream], taken: bool) {
    fillers(watch, netns, to, streams, (taken, false));
}

/// The same, where a request was half open already: on some kernels that fills a SYN queue of one place.
#[track_caller]
pub fn expect_fillers_beside_a_request(watch: &Watch, netns: &Netns, to: SocketAddr, streams: &[TcpStream]) {
    fillers(watch, netns, to, streams, (false, names_no_drop_reasons()));
}

#[track_caller]
fn fillers(
    watch: &Watch,
    netns: &Netns,
    to: SocketAddr,
    streams: &[TcpStream],
    (taken, by_cookie): (bool, bool),
) {
    let address = to.ip().to_string();
    let ends = (address.as_str(), address.as_str(), to.port());
    // A cookie has room for the index of one of four sizes, of which this is the next smaller one.
    let mss_of_cookie = if to.is_ipv6() { 8_940 } else { ETHERNET_MSS };
    for stream in streams {
        let port = u64::from(stream.local_addr().expect("it is bound").port());
        let of = |role: &'static str, end: &'static str| {
            watch.wait_for(&format!("the {role} that filled the queue"), move |record| {
                record.is(role, to.port())
                    && record.number(end) == Some(port)
                    && record.number("netns") == Some(netns.inode())
            })
        };
        let (client, server) = (of("client", "local.port"), of("server", "remote.port"));
        expect_client(&client, netns, ends, "hs-filler");
        // A queue with room for one is full for as long as the SYN before this one is worked on, so any of them may get a
        // cookie.
        let by_cookie = by_cookie || server.has_flag("syn_cookie") || server.number("latency_ns").is_none();
        let whole = if by_cookie {
            // Nothing was kept of the SYN.
            server
                .whole("server", "established", netns)
                .ends(ends.0, ends.1, ends.2)
                .joined()
                .agreed_otherwise(mss_of_cookie, mss_between(ends), "none")
                .flags(if has_probes() { &["syn_cookie"] } else { &[] })
        } else {
            server_of(&server, "established", netns, ends).flags(&[])
        };
        whole
            .queued(1..=2, 1..=1)
            .also(taken, |whole| whole.thread("hs-server").within("phases.accept_ns", 0..=1_000))
            // Who listens is known where the listener is.
            .also(!taken && has_probes(), |whole| whole.thread("hs-listen"))
            .nothing_else();
        expect_one_handshake(&client, &server);
    }
}

/// So many handshakes were told of each namespace, and no more.
#[track_caller]
pub fn expect_counts(records: &[Record], counts: &[(&Netns, usize)]) {
    for (netns, count) in counts {
        let told = all_of(records.to_vec(), netns);
        assert_eq!(told.len(), *count, "{told:?}");
    }
}
