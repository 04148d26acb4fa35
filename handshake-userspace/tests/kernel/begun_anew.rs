//! A client that begins anew from the same port while its first attempt is half open at the server.
//!
//! What a reader would get wrong: it is the number of the second SYN that decides (tcp_check_req). Inside the window that
//! the SYN-ACK announced it resets the request, and is not answered by a SYN-ACK itself; anywhere else it is a segment
//! of the past, which an ACK answers and nothing comes of.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{
    drops::small_listener,
    environment::{has_probes, is_fit, is_locked_down},
    netns::{CLIENT_V4, Pair, SERVER_V4},
    record::{Record, all_of},
    second_account::expect_agreement,
    syn_flood::Flood,
    tracer::Tracer,
    traffic::{wait_for_no_request, wait_for_request},
    whole::Whole,
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

#[test]
fn another_syn_inside_the_window_resets_a_half_open_request_and_one_outside_does_not() {
    if !is_fit("another_syn_inside_the_window_resets_a_half_open_request_and_one_outside_does_not") {
        return;
    }
    let pair = Pair::new();
    pair.server.set("ipv4/tcp_synack_retries", "1");
    pair.server_reaches_client(false);
    let tracer = Tracer::start(&[]);
    let (listener, to) = small_listener(&pair.server);
    rustix::net::listen(&listener, 64).expect("the backlog can be changed");
    let from = |port| SocketAddrV4::new(CLIENT_V4.parse::<Ipv4Addr>().expect("an address"), port);
    let send = |port, isn| pair.client.on_thread("hs-raw", || Flood::at(to).send_syn(from(port), isn));
    let wait = |is_there| {
        pair.server.on_thread("hs-look", || match is_there {
            true => wait_for_request(to.port()),
            false => wait_for_no_request(to.port()),
        });
    };
    send(INSIDE, ISN);
    wait(true);
    send(INSIDE, ISN.wrapping_add(1_000));
    wait(false);
    send(OUTSIDE, ISN);
    wait(true);
    send(OUTSIDE, ISN.wrapping_sub(1_000));
    wait(false);
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
    if servers.is_empty() {
        return;
    }
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
            // The SYNs had no options at all.
            .number("options.mss", 1_460)
            .number_in("options.window.local", 1..=65_535)
            .is("options.ecn", false)
            .is("options.sack", false)
            .is("options.timestamps", false)
            .flags(&[])
    }
    whole(&servers, "reset", &pair, (INSIDE, to.port()))
        .evidence("reset_sent", None)
        .number("evidence.syn_acks", 1)
        .number("retransmits.syn_ack", 0)
        .number("retransmits.waited_ns", 0)
        .within("failed_after_ns", 0..=900)
        .nothing_else();
    whole(&servers, "timed_out", &pair, (OUTSIDE, to.port()))
        .evidence("syn_ack_timeout", None)
        .number("evidence.syn_acks", 2)
        .number("retransmits.syn_ack", 1)
        .within("retransmits.waited_ns", 900..=1_500)
        .within("failed_after_ns", 2_900..=5_000)
        .nothing_else();
    drop(listener);
}
