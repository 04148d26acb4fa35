//! Subflows that join an MPTCP connection (RFC 8684 section 3.2): handshakes of their own that nobody accepts.
//!
//! What a reader would get wrong: the joining SYN is sent by a worker of the kernel, to the listener's address, but for
//! the thread that opened the connection; and its child never enters the accept queue. A server that allows no further
//! subflow answers the SYN all the same, and refuses the final ACK: its client was ESTABLISHED.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    environment::{attach, has_probes, is_fit, is_locked_down, skip},
    mptcp,
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    plain::{self, expect_counts, server_of},
    record::Record,
    traffic::until,
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, expect_one_agreement, expect_one_handshake},
};

const MPTCP: i32 = 262;
const SECOND_V4: &str = "192.0.2.11";
const SECOND_LINK: &str = "02:00:00:00:99:01";
/// The address as /proc/net/tcp writes it, before a port.
const SECOND_IN_TABLE: &str = " 0B0200C0:";

fn socket(netns: &Netns) -> Option<Socket> {
    netns.on_thread("hs-mptcp", || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(MPTCP)))).ok()
}

/// A client with two addresses, of which its kernel uses both, and a server that allows so many further subflows;
/// false where that can't be.
fn two_ways(test: &str, pair: &Pair, allowed_by_server: u32) -> bool {
    pair.client.ip(&format!("address add {SECOND_V4}/24 dev veth0"));
    pair.server.ip(&format!("neigh replace {SECOND_V4} lladdr {SECOND_LINK} dev veth0 nud permanent"));
    if socket(&pair.client).is_none() {
        skip(test, "this kernel has no MPTCP");
        return false;
    }
    for (netns, allowed) in [(&pair.client, 2), (&pair.server, allowed_by_server)] {
        netns.ip(&format!("mptcp limits set subflows {allowed} add_addr_accepted {allowed}"));
    }
    pair.client.ip(&format!("mptcp endpoint add {SECOND_V4} dev veth0 subflow"));
    true
}

/// An MPTCP connection of two threads `hs-mptcp`, of which both ends know that the other speaks MPTCP.
struct Connection {
    _listener: Socket,
    client: TcpStream,
    accepted: TcpStream,
    port: u16,
}

impl Connection {
    /// A socket takes the path manager's settings along when it is made, so these come first.
    fn new(pair: &Pair) -> Self {
        let listener = socket(&pair.server).expect("its client's kernel has MPTCP");
        let client = socket(&pair.client).expect("it was made before");
        let any: SocketAddr = "0.0.0.0:0".parse().expect("an address");
        listener.bind(&any.into()).expect("a port is free");
        pair.server.on_thread("hs-listen", || listener.listen(8).expect("it can listen"));
        let port = listener.local_addr().expect("it is bound").as_socket().expect("it is IPv4").port();
        let to: SocketAddr = format!("{SERVER_V4}:{port}").parse().expect("an address");
        pair.client.on_thread("hs-mptcp", || client.connect(&to.into()).expect("it listens"));
        let accepted = pair.server.on_thread("hs-mptcp", || listener.accept().expect("a child is queued").0);
        let mut connection = Connection {
            _listener: listener,
            client: TcpStream::from(client),
            accepted: TcpStream::from(accepted),
            port,
        };
        // By data they learn it; then the client's kernel adds its second address.
        connection.talk();
        connection
    }

    /// Data, there and back.
    fn talk(&mut self) {
        for _ in 0..3 {
            self.client.write_all(b"x").expect("it is connected");
            self.accepted.read_exact(&mut [0]).expect("it arrives");
            self.accepted.write_all(b"y").expect("it is connected");
            self.client.read_exact(&mut [0]).expect("it arrives");
        }
    }
}

/// The record of one end of a subflow, by one of its addresses.
#[track_caller]
fn subflow(watch: &Watch, role: &'static str, port: u16, end: &'static str, address: &'static str) -> Record {
    watch.wait_for("a subflow's record", |record| record.is(role, port) && record.text(end) == Some(address))
}

/// Both whole records of the subflow that the connection began with.
#[track_caller]
fn expect_first(watch: &Watch, pair: &Pair, port: u16) {
    let server = subflow(watch, "server", port, "remote.address", CLIENT_V4);
    // Its client's record waits a little for connect()'s return, which is the master socket's.
    let client = subflow(watch, "client", port, "local.address", CLIENT_V4);
    mptcp::expect_client(&client, &pair.client, (CLIENT_V4, SERVER_V4, port), "hs-mptcp");
    let acceptor = if is_locked_down() { None } else { Some("hs-mptcp") };
    mptcp::expect_server(&server, &pair.server, (SERVER_V4, CLIENT_V4, port), acceptor);
    expect_one_handshake(&client, &server);
}

/// The whole record of the joining subflow's client.
#[track_caller]
fn expect_joining_client(client: &Record, pair: &Pair, port: u16) {
    // It does not wait for the answer; over veth that may be there before its call returns, which only fentry sees.
    let was_early = client.has_flag("non_blocking");
    // Nobody may read what tells it from other subflows under lockdown.
    let own = if is_locked_down() { vec!["mptcp"] } else { vec!["mptcp", "mptcp_join"] };
    let early = (attach() == "fentry" && was_early).then_some("non_blocking");
    let flags: Vec<&str> = early.into_iter().chain(own).collect();
    plain::connected(client, &pair.client, (SECOND_V4, SERVER_V4, port))
        // A worker of the kernel called connect() for it, for the thread that opened the connection. Which subflow
        // belongs to which nobody may read under lockdown.
        .also(!is_locked_down(), |whole| whole.thread("hs-mptcp"))
        .within("phases.local_ns", AT_ONCE)
        .also(attach() == "fentry" && !was_early, |whole| whole.within("phases.wake_ns", AT_ONCE))
        .flags(&flags)
        .nothing_else();
}

#[test]
fn a_subflow_that_joins_an_mptcp_connection_is_told_as_one_at_both_ends() {
    const NAME: &str = "a_subflow_that_joins_an_mptcp_connection_is_told_as_one_at_both_ends";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    if !two_ways(NAME, &pair, 2) {
        return;
    }
    let watch = Watch::begin();
    let connection = Connection::new(&pair);
    let port = connection.port;
    pair.server.on_thread("hs-wait", || {
        until("the second subflow is ESTABLISHED", || {
            std::fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|text| {
                let own = format!(":{port:04X} ");
                text.lines().filter(|line| line.contains(&own) && line.contains(" 01 ")).count() == 2
            })
        });
    });
    expect_first(&watch, &pair, port);
    let client = subflow(&watch, "client", port, "local.address", SECOND_V4);
    let server = subflow(&watch, "server", port, "remote.address", SECOND_V4);
    expect_joining_client(&client, &pair, port);
    server_of(&server, "established", &pair.server, (SERVER_V4, SECOND_V4, port))
        .also(has_probes(), |whole| whole.thread("hs-listen"))
        .flags(&["mptcp", "mptcp_join"])
        .nothing_else();
    expect_one_handshake(&client, &server);
    drop(connection);
    let records = watch.end();
    expect_counts(&records, &[(&pair.client, 2), (&pair.server, 2)]);
    expect_never_accepted(&records, &server);
}

/// No application is told to have taken it.
#[track_caller]
fn expect_never_accepted(records: &[Record], join: &Record) {
    let fates = records
        .iter()
        .filter(|record| record.text("kind") == Some("accept") && record.text("key") == join.text("key"));
    assert_eq!(fates.count(), 0, "nobody accepts it: {records:?}");
}

#[test]
fn a_subflow_beyond_the_servers_limit_is_answered_and_then_reset_by_its_final_ack() {
    const NAME: &str = "a_subflow_beyond_the_servers_limit_is_answered_and_then_reset_by_its_final_ack";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    if !two_ways(NAME, &pair, 0) {
        return;
    }
    let watch = Watch::begin();
    let mut connection = Connection::new(&pair);
    let port = connection.port;
    // Its SYN-ACK was as any other, so this end was ESTABLISHED when the RST came.
    let client = subflow(&watch, "client", port, "local.address", SECOND_V4);
    pair.client.on_thread("hs-wait", || {
        until("the RST ended it", || {
            std::fs::read_to_string("/proc/thread-self/net/tcp")
                .is_ok_and(|text| !text.contains(SECOND_IN_TABLE))
        });
    });
    // The connection goes on without it.
    connection.talk();
    expect_first(&watch, &pair, port);
    expect_joining_client(&client, &pair, port);
    if has_probes() {
        let server = subflow(&watch, "server", port, "remote.address", SECOND_V4);
        server
            .whole("server", "reset", &pair.server)
            .evidence("reset_sent", None)
            .number("evidence.syn_acks", 1)
            .ends(SERVER_V4, SECOND_V4, port)
            .thread("hs-listen")
            // What beyond its ends a request of an MPTCP listener holds, nobody may read under lockdown.
            .also(!is_locked_down(), |whole| whole.joined().agreed_half_open(ETHERNET_MSS))
            .within("phases.synack_ns", 0..=500)
            .within("phases.ack_ns", AT_ONCE)
            .within("rtt_ns", AT_ONCE)
            .within("failed_after_ns", AT_ONCE)
            .number("retransmits.syn_ack", 0)
            .number("retransmits.syn_seen", 1)
            .number("retransmits.waited_ns", 0)
            .flags(&["mptcp", "mptcp_join"])
            .nothing_else();
        if !is_locked_down() {
            expect_one_agreement(&client, &server);
        }
    }
    drop(connection);
    let records = watch.end();
    // Without probes a request that dies leaves nothing that could be seen, and no handshake is made up for it.
    expect_counts(&records, &[(&pair.client, 2), (&pair.server, 1 + usize::from(has_probes()))]);
}
