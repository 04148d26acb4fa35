//! Fast Open's child between the SYN that made it and its final ACK: accepted, closed, abandoned by its listener.
//!
//! What a reader would get wrong: a server that answers at once has accepted, written and closed within one round trip,
//! so its socket goes from SYN-RECEIVED to FIN-WAIT-1, and the final ACK makes a good handshake of it all the same. Here
//! the SYN-ACK is held back, so that all of that comes first for certain.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use socket2::Socket;

use super::{
    environment::{has_probes, is_fit},
    netns::{CLIENT_V4, Pair, SERVER_V4},
    record::{Record, all_of, count},
    traffic::{
        ESTABLISHED, SYN_RECEIVED, accept_in, finish, reset, set_option, tcp_socket, until, wait_for_request,
        wait_for_state,
    },
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, Whole, expect_one_handshake},
};

/// Milliseconds until a SYN-ACK that was lost is sent again, on a busy machine too.
const SENT_AGAIN: std::ops::RangeInclusive<u64> = 900..=60_000;

/// Two ends that use Fast Open, of which the client has its cookie; what the server sends gets nowhere from then on.
pub struct Willing {
    pub pair: Pair,
    pub listener: Option<TcpListener>,
    pub to: SocketAddr,
}

impl Willing {
    pub fn new() -> Self {
        let pair = Pair::new();
        for netns in [&pair.client, &pair.server] {
            netns.set("ipv4/tcp_fastopen", "3");
        }
        let listener = pair.server.on_thread("hs-listen", || {
            let listener = TcpListener::bind((SERVER_V4, 0)).expect("a port is free");
            set_option(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16);
            listener
        });
        let to = listener.local_addr().expect("it is bound");
        let willing = Willing { pair, listener: Some(listener), to };
        willing.pair.client.on_thread("hs-cookie", || {
            let client = willing.connect();
            client.send(b"x").expect("it waits for the handshake");
            drop((willing.accept(), client));
        });
        willing.pair.server_reaches_client(false);
        willing
    }

    fn connect(&self) -> Socket {
        let client = tcp_socket();
        set_option(&client, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1);
        client.connect(&self.to.into()).expect("it returns before any SYN left");
        client
    }

    /// A client `hs-client` whose SYN takes a byte along and has made a child, and its port.
    pub fn half_open(&self) -> (Socket, u16) {
        let client = self.pair.client.on_thread("hs-client", || {
            let client = self.connect();
            client.set_nonblocking(true).expect("it can be set");
            client.send(b"x").expect("the SYN takes it along");
            client
        });
        let port = client.local_addr().expect("it is bound").as_socket().expect("it is IPv4").port();
        self.pair.server.on_thread("hs-wait", || {
            wait_for_request(self.to.port());
            wait_for_state(port, SYN_RECEIVED);
        });
        (client, port)
    }

    /// accept() by a thread `hs-server`.
    pub fn accept(&self) -> TcpStream {
        accept_in(&self.pair.server, self.listener.as_ref().expect("it listens"))
    }

    /// The SYN-ACK that is sent again arrives, and its ACK.
    pub fn let_through(&self, client: &Socket) {
        self.pair.server_reaches_client(true);
        self.pair.client.on_thread("hs-client", || finish(client).expect("a SYN-ACK arrives"));
    }

    /// Waits until a segment of the connection from this port was sent again: the kernel counts that in its own table.
    pub fn wait_for_syn_ack_again(&self, port: u16) {
        self.pair.server.on_thread("hs-wait", || {
            until("the SYN-ACK was sent again", || {
                std::fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|text| {
                    let child = format!(":{port:04X} 03 ");
                    let count = |line: &str| line.split_whitespace().nth(6).map(str::to_owned);
                    text.lines()
                        .filter(|line| line.contains(&child))
                        .any(|line| count(line).as_deref() != Some("00000000"))
                })
            });
        });
    }

    /// The server's record of the connection from this port, by that end: a child that is closed half open has lost its
    /// own port where there are no probes.
    pub fn server_of(&self, watch: &Watch, port: u16) -> Record {
        let inode = self.pair.server.inode();
        watch.wait_for("the server's end", move |record| {
            record.text("kind") == Some("handshake")
                && record.text("role") == Some("server")
                && record.number("netns") == Some(inode)
                && record.number("remote.port") == Some(u64::from(port))
        })
    }

    pub fn client_of(&self, watch: &Watch, port: u16) -> Record {
        let to = self.to.port();
        watch.wait_for("the client's end", move |record| {
            record.is("client", to) && record.number("local.port") == Some(u64::from(port))
        })
    }

    /// The client's whole record: its data was taken, and the SYN-ACK that said so came late.
    #[track_caller]
    pub fn expect_client(&self, record: &Record) {
        let again = record.number("retransmits.syn").expect("SYNs are counted");
        record
            .whole("client", "established", &self.pair.client)
            .ends(CLIENT_V4, SERVER_V4, self.to.port())
            .thread("hs-client")
            .joined()
            .agreed_otherwise(ETHERNET_MSS, ETHERNET_MSS, "data_accepted")
            .text("options.fast_open_cookie", "none")
            .within("latency_ns", SENT_AGAIN)
            .within("phases.wire_ns", SENT_AGAIN)
            .number_in("retransmits.syn", 0..=20)
            .also(again == 0, |whole| whole.number("retransmits.waited_ns", 0).within("rtt_ns", SENT_AGAIN))
            .also(again != 0, |whole| whole.within("retransmits.waited_ns", SENT_AGAIN))
            .flags(&["fast_open", "non_blocking"])
            .nothing_else();
    }

    /// What any record of the server's end has here, where its SYN-ACK was sent so many times again.
    #[track_caller]
    fn server_whole<'a>(
        &self,
        record: &'a Record,
        outcome: &str,
        again: std::ops::RangeInclusive<u64>,
    ) -> Whole<'a> {
        let none = record.number("retransmits.syn_ack") == Some(0);
        record
            .whole("server", outcome, &self.pair.server)
            .text("local.address", SERVER_V4)
            .text("remote.address", CLIENT_V4)
            .number_in("remote.port", 1..=65_535)
            .also(has_probes() || record.get("local.port").is_some(), |whole| {
                whole.number("local.port", u64::from(self.to.port()))
            })
            .number_in("retransmits.syn_ack", again)
            .also(none, |whole| whole.number("retransmits.waited_ns", 0))
            .also(!none, |whole| whole.within("retransmits.waited_ns", SENT_AGAIN))
            .also(has_probes(), |whole| {
                whole.within("phases.synack_ns", 0..=500).number("retransmits.syn_seen", 1)
            })
            .queued(1..=20, 128..=4_096)
            .flags(&["fast_open"])
    }
}

#[test]
fn a_fast_open_child_accepted_before_it_is_established_has_one_record() {
    const CONNECTIONS: usize = 5;
    if !is_fit("a_fast_open_child_accepted_before_it_is_established_has_one_record") {
        return;
    }
    let watch = Watch::begin();
    let willing = Willing::new();
    let taken: Vec<_> = std::iter::repeat_with(|| {
        let (client, port) = willing.half_open();
        (client, port, willing.accept())
    })
    .take(CONNECTIONS)
    .collect();
    for (client, port, accepted) in taken {
        willing.let_through(&client);
        willing.pair.server.on_thread("hs-wait", || wait_for_state(port, ESTABLISHED));
        // A child that was reset goes to CLOSED without FIN, and so is destroyed at once.
        reset(accepted);
        drop(client);
        let (client, server) = (willing.client_of(&watch, port), willing.server_of(&watch, port));
        expect_one_handshake(&client, &server);
        willing.expect_client(&client);
        willing
            .server_whole(&server, "established", 1..=20)
            .thread("hs-server")
            .joined()
            .agreed(ETHERNET_MSS)
            .within("latency_ns", SENT_AGAIN)
            .also(has_probes(), |whole| {
                whole.within("phases.ack_ns", SENT_AGAIN).within("phases.accept_ns", AT_ONCE)
            })
            .nothing_else();
    }
    let records = watch.end();
    let at = |netns| all_of(records.clone(), netns);
    assert_eq!(count(&at(&willing.pair.client), "client"), CONNECTIONS + 1, "{records:?}");
    assert_eq!(count(&at(&willing.pair.server), "server"), CONNECTIONS + 1, "{records:?}");
}

#[test]
fn a_fast_open_child_that_its_server_closes_before_the_final_ack_is_established_by_it() {
    if !is_fit("a_fast_open_child_that_its_server_closes_before_the_final_ack_is_established_by_it") {
        return;
    }
    let watch = Watch::begin();
    let willing = Willing::new();
    let (client, port) = willing.half_open();
    // The whole of what such a server does comes before the client has heard of it.
    let mut accepted = willing.accept();
    let asked = accepted.read(&mut [0; 8]).expect("the SYN brought it");
    accepted.write_all(b"answer").expect("it may answer before the final ACK");
    drop(accepted);
    assert_eq!(asked, 1);
    willing.let_through(&client);
    let mut client = TcpStream::from(client);
    client.set_nonblocking(false).expect("it can be set");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("the answer comes, and the end");
    assert_eq!(answer, "answer");
    drop(client);
    let (client, server) = (willing.client_of(&watch, port), willing.server_of(&watch, port));
    expect_one_handshake(&client, &server);
    willing.expect_client(&client);
    willing
        .server_whole(&server, "established", 1..=20)
        .thread("hs-server")
        .joined()
        .evidence("ack_after_close", None)
        .number_in("evidence.syn_acks", 2..=21)
        .number("options.mss", ETHERNET_MSS)
        .number_in("options.window_scale.local", 0..=14)
        .number_in("options.window_scale.remote", 0..=14)
        .is("options.sack", true)
        .is("options.timestamps", true)
        .is("options.ecn", false)
        // Without probes nothing says when the ACK came.
        .also(has_probes(), |whole| {
            whole
                .within("latency_ns", SENT_AGAIN)
                .within("phases.ack_ns", SENT_AGAIN)
                .within("phases.accept_ns", AT_ONCE)
        })
        .nothing_else();
    assert_eq!(count(&all_of(watch.end(), &willing.pair.server), "server"), 2);
}

#[test]
fn a_fast_open_child_that_its_server_resets_before_the_final_ack_is_cancelled() {
    if !is_fit("a_fast_open_child_that_its_server_resets_before_the_final_ack_is_cancelled") {
        return;
    }
    let watch = Watch::begin();
    let willing = Willing::new();
    let (_client, port) = willing.half_open();
    reset(willing.accept());
    let server = willing.server_of(&watch, port);
    willing
        .server_whole(&server, "cancelled", 0..=20)
        .thread("hs-server")
        .also(has_probes(), |whole| whole.joined().within("phases.accept_ns", AT_ONCE))
        .evidence("closed_in_syn_received", None)
        .number_in("evidence.syn_acks", 1..=21)
        .within("failed_after_ns", AT_ONCE)
        .nothing_else();
    assert_eq!(count(&all_of(watch.end(), &willing.pair.server), "server"), 2);
}

#[test]
fn a_fast_open_child_whose_listener_closes_half_open_is_cancelled() {
    if !is_fit("a_fast_open_child_whose_listener_closes_half_open_is_cancelled") {
        return;
    }
    let watch = Watch::begin();
    let mut willing = Willing::new();
    let (_client, port) = willing.half_open();
    drop(willing.listener.take());
    let server = willing.server_of(&watch, port);
    willing
        .server_whole(&server, "cancelled", 0..=20)
        .also(has_probes(), |whole| whole.thread("hs-listen").joined())
        .evidence("listener_closed", None)
        .number_in("evidence.syn_acks", 1..=21)
        .within("failed_after_ns", AT_ONCE)
        .nothing_else();
    let left = watch.wait_for("what became of it in the queue", |record| {
        record.text("kind") == Some("accept") && record.get("key") == server.get("key")
    });
    left.expect_text("outcome", "never_accepted");
    assert_eq!(count(&all_of(watch.end(), &willing.pair.server), "server"), 2);
}
