//! Segments that reach a half-open request and are not its own: of a client that begins anew from the same port, of an
//! earlier connection, or of somebody who guesses.
//!
//! What a reader would get wrong: numbers decide (tcp_check_req). Another SYN inside the window that the SYN-ACK announced
//! resets the request, and is not answered by a SYN-ACK itself; so does a RST. Anywhere else they are segments of the
//! past, which an ACK answers at most and nothing comes of; and an acknowledgement of anything but the SYN-ACK is none of
//! the request's business, whatever else the segment says.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};

use super::{
    drops::small_listener,
    environment::{has_probes, is_fit, is_locked_down, skip},
    mptcp,
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    record::{Record, all_of},
    second_account::expect_agreement,
    syn_flood::Flood,
    tracer::Tracer,
    traffic::{wait_for_no_request, wait_for_request},
    whole::{ETHERNET_MSS, Whole},
};

const ISN: u32 = u32::MAX - 5;
/// Its client begins anew within the window, whose numbers begin anew too.
const INSIDE: u16 = 6_300;
/// Its client begins anew with a number that is before the window.
const OUTSIDE: u16 = 6_301;

/// Whether tcp_check_req says why it takes a segment for one of the past: from 6.15.
fn names_why() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}

/// A listener, and a request of each client's port that is half open when a segment comes.
struct Scene {
    pair: Pair,
    listener: TcpListener,
    to: SocketAddr,
    tracer: Tracer,
}

impl Scene {
    fn new() -> Self {
        Scene::with(Pair::new(), small_listener)
    }

    fn with(pair: Pair, listen: impl FnOnce(&Netns) -> (TcpListener, SocketAddr)) -> Self {
        pair.server.set("ipv4/tcp_synack_retries", "1");
        pair.server_reaches_client(false);
        let tracer = Tracer::start(&[]);
        let (listener, to) = listen(&pair.server);
        rustix::net::listen(&listener, 64).expect("the backlog can be changed");
        Scene { pair, listener, to, tracer }
    }

    /// Sends a SYN, and what else comes; waits until the request is gone.
    fn half_open(&self, port: u16, then: impl FnOnce(&Flood, SocketAddrV4) + Send) {
        let from = SocketAddrV4::new(CLIENT_V4.parse::<Ipv4Addr>().expect("an address"), port);
        let raw = self.pair.client.on_thread("hs-raw", || Flood::at(self.to));
        raw.send_syn(from, ISN);
        self.pair.server.on_thread("hs-look", || wait_for_request(self.to.port()));
        then(&raw, from);
        self.pair.server.on_thread("hs-look", || wait_for_no_request(self.to.port()));
    }
}

/// The whole record of the request of a port, but for how it ended.
fn whole<'a>(records: &'a [Record], outcome: &str, pair: &Pair, port: (u16, u16)) -> Whole<'a> {
    let ours = |record: &&Record| record.number("remote.port") == Some(u64::from(port.0));
    let record = records.iter().find(ours).unwrap_or_else(|| panic!("no record: {records:?}"));
    record
        .whole("server", outcome, &pair.server)
        .ends(SERVER_V4, CLIENT_V4, port.1)
        .thread("hs-listen")
        .joined()
        .number("isn.remote", u64::from(ISN))
        .within("phases.synack_ns", 0..=500)
        .number("retransmits.syn_seen", 1)
        // The SYNs had an MSS and no other option.
        .number("options.mss", ETHERNET_MSS)
        .number_in("options.window.local", 1..=65_535)
        .is("options.ecn", false)
        .is("options.sack", false)
        .is("options.timestamps", false)
        .flags(&[])
}

/// That nothing came of what reached it.
fn expect_timed_out(records: &[Record], pair: &Pair, port: (u16, u16)) {
    whole(records, "timed_out", pair, port)
        .evidence("syn_ack_timeout", None)
        .number("evidence.syn_acks", 2)
        .number("retransmits.syn_ack", 1)
        .within("retransmits.waited_ns", 900..=1_500)
        .within("failed_after_ns", 2_900..=5_000)
        .nothing_else();
}

/// That this host answered another SYN with a RST.
fn expect_reset_by_us(records: &[Record], pair: &Pair, port: (u16, u16)) {
    whole(records, "reset", pair, port)
        .evidence("reset_sent", None)
        .number("evidence.syn_acks", 1)
        .number("retransmits.syn_ack", 0)
        .number("retransmits.waited_ns", 0)
        .within("failed_after_ns", 0..=900)
        .nothing_else();
}

#[test]
fn another_syn_inside_the_window_resets_a_half_open_request_and_one_outside_does_not() {
    if !is_fit("another_syn_inside_the_window_resets_a_half_open_request_and_one_outside_does_not") {
        return;
    }
    let scene = Scene::new();
    scene.half_open(INSIDE, |raw, from| raw.send_syn(from, ISN.wrapping_add(1_000)));
    scene.half_open(OUTSIDE, |raw, from| raw.send_syn(from, ISN.wrapping_sub(1_000)));
    let Scene { pair, listener, to, tracer } = scene;
    let records = tracer.stop();
    expect_agreement(records.last().expect("there is a last record"), &[&pair.client, &pair.server]);
    let (dropped, servers): (Vec<_>, Vec<_>) = all_of(records, &pair.server)
        .into_iter()
        .partition(|record| record.text("outcome") == Some("syn_dropped"));
    // Where the kernel says why it drops the one outside, it is an attempt of its own, by its ISN.
    assert_eq!(dropped.len(), usize::from(names_why()), "{dropped:?}");
    // Under lockdown whose it was can't be read.
    for record in dropped.iter().filter(|_| !is_locked_down()) {
        record
            .whole("server", "syn_dropped", &pair.server)
            // By the hook that every mode has.
            .seen_by(&["tracepoint"])
            .evidence("drop_reason", None)
            .text("dropped.cause", "drop_reason")
            .text("dropped.reason", "TCP_OVERWINDOW")
            .number("dropped.segments", 1)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .thread("hs-listen")
            .number("isn.remote", u64::from(ISN.wrapping_sub(1_000)))
            .number("retransmits.syn_seen", 1)
            .number("remote.port", u64::from(OUTSIDE))
            .number("accept_queue.length", 0)
            .number("accept_queue.limit", 64)
            .flags(&[])
            .nothing_else();
    }
    // Half-open requests are seen by probes alone.
    assert_eq!(servers.len(), if has_probes() { 2 } else { 0 }, "{servers:?}");
    if has_probes() {
        expect_reset_by_us(&servers, &pair, (INSIDE, to.port()));
        expect_timed_out(&servers, &pair, (OUTSIDE, to.port()));
    }
    drop(listener);
}

#[test]
fn a_rst_outside_the_window_and_a_syn_ack_of_nobody_end_no_half_open_request() {
    if !is_fit("a_rst_outside_the_window_and_a_syn_ack_of_nobody_end_no_half_open_request") {
        return;
    }
    let scene = Scene::new();
    scene.half_open(INSIDE, |raw, from| raw.send_syn_ack(from, ISN.wrapping_add(1_000), 1));
    scene.half_open(OUTSIDE, |raw, from| {
        raw.send_rst(from, ISN.wrapping_sub(1_000));
        // And behind the window.
        raw.send_rst(from, ISN.wrapping_add(1_000_000));
    });
    let Scene { pair, listener, to, tracer } = scene;
    let records = tracer.stop();
    expect_agreement(records.last().expect("there is a last record"), &[&pair.client, &pair.server]);
    let servers = all_of(records, &pair.server);
    assert_eq!(servers.len(), if has_probes() { 2 } else { 0 }, "{servers:?}");
    for port in [INSIDE, OUTSIDE].into_iter().filter(|_| has_probes()) {
        expect_timed_out(&servers, &pair, (port, to.port()));
    }
    drop(listener);
}

#[test]
fn another_syn_resets_a_half_open_request_of_an_mptcp_listener_too() {
    const NAME: &str = "another_syn_resets_a_half_open_request_of_an_mptcp_listener_too";
    if !is_fit(NAME) {
        return;
    }
    if is_locked_down() {
        skip(NAME, "under lockdown an MPTCP listener's requests show no numbers (docs/KERNEL.md)");
        return;
    }
    let pair = Pair::new();
    let Some(master) = mptcp::master(NAME, &pair.server) else { return };
    let scene = Scene::with(pair, |netns| {
        netns.on_thread("hs-listen", || {
            let any: SocketAddr = format!("{SERVER_V4}:0").parse().expect("an address");
            master.bind(&any.into()).expect("a port is free");
            master.listen(1).expect("it can listen");
            let listener = TcpListener::from(master);
            let to = listener.local_addr().expect("it is bound");
            (listener, to)
        })
    });
    // Neither has an option of MPTCP's.
    scene.half_open(INSIDE, |raw, from| raw.send_syn(from, ISN.wrapping_add(1_000)));
    let Scene { pair, listener, to, tracer } = scene;
    let records = tracer.stop();
    expect_agreement(records.last().expect("there is a last record"), &[&pair.client, &pair.server]);
    let servers = all_of(records, &pair.server);
    assert_eq!(servers.len(), usize::from(has_probes()), "{servers:?}");
    if has_probes() {
        expect_reset_by_us(&servers, &pair, (INSIDE, to.port()));
    }
    drop(listener);
}
