//! `id`: both ends of a connection compute the same one, and no two connections the same.
//!
//! What a reader would get wrong: nothing but the two ISNs is in it, so two networks with the same addresses, and a
//! balancer that rewrites them, don't matter; a record that joins another one than its peer's would be a lie.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Barrier,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    environment::{has_probes, is_fit, is_fit_once},
    netns::{CLIENT_V4, Pair, SERVER_V4, SERVER_V6},
    record::Record,
    traffic::{set_option, until},
    watch::Watch,
    whole::expect_one_handshake,
};

const CONNECTIONS: usize = 1_000;

/// The handshakes of some namespaces.
fn of(mut records: Vec<Record>, inodes: &[u64]) -> Vec<Record> {
    records.retain(|record| {
        record.text("kind") == Some("handshake")
            && record.number("netns").is_some_and(|netns| inodes.contains(&netns))
    });
    records
}

/// Groups records by `id` alone.
fn by_id(records: &[Record]) -> HashMap<String, Vec<Record>> {
    let mut joined = HashMap::<String, Vec<Record>>::new();
    for record in records {
        let id = record.text("id").unwrap_or_else(|| panic!("no id: {record}"));
        joined.entry(id.to_owned()).or_default().push(record.clone());
    }
    joined
}

/// A client's and a server's record with one id; gives both.
#[track_caller]
fn expect_two_ends(ends: &[Record]) -> (&Record, &Record) {
    let of = |role: &str| ends.iter().filter(|record| record.text("role") == Some(role)).collect::<Vec<_>>();
    let (clients, servers) = (of("client"), of("server"));
    assert_eq!((clients.len(), servers.len(), ends.len()), (1, 1, 2), "{ends:?}");
    let (client, server) = (clients[0], servers[0]);
    expect_one_handshake(client, server);
    let isn = |end: &str| client.number(end).expect("it is known");
    let (one, other) = (isn("isn.local"), isn("isn.remote"));
    client.expect_text("id", &format!("{:08x}{:08x}", one.min(other), one.max(other)));
    for record in [client, server] {
        record.expect_plainly_established().expect_present("process.comm").expect_present("latency_ns");
    }
    client.expect_number("retransmits.syn", 0).expect_present("phases.wire_ns");
    server.expect_number("retransmits.syn_ack", 0).expect_present("phases.accept_ns");
    if has_probes() {
        server.expect_number("retransmits.syn_seen", 1).expect_present("accept_queue.limit");
    } else {
        server.expect_none_of(&[
            "retransmits.syn_seen",
            "phases.synack_ns",
            "phases.ack_ns",
            "rtt_ns",
            "accept_queue",
        ]);
    }
    (client, server)
}

/// A thousand connections over veth; every id is there exactly twice.
fn a_thousand(listen: &str, to: &str, flags: &[&str]) {
    let pair = Pair::new();
    let watch = Watch::begin();
    let listener =
        pair.server.on_thread("hs-listen", || TcpListener::bind(listen).expect("the address is free"));
    let port = listener.local_addr().expect("it is bound").port();
    let to: SocketAddr = format!("{to}:{port}").parse().expect("an address");
    pair.client.on_thread("hs-client", || {
        for _ in 0..CONNECTIONS {
            // An AF_INET6 socket where the address is a mapped one.
            let client = TcpStream::connect(to).expect("it listens");
            drop((client, listener.accept().expect("a child is queued")));
        }
    });
    let inodes = [pair.client.inode(), pair.server.inode()];
    until("both records of every connection", || of(watch.records(), &inodes).len() >= 2 * CONNECTIONS);
    let records = of(watch.end(), &inodes);
    let joined = by_id(&records);
    assert_eq!((joined.len(), records.len()), (CONNECTIONS, 2 * CONNECTIONS));
    for ends in joined.values() {
        let (client, server) = expect_two_ends(ends);
        client.expect_number("netns", inodes[0]).expect_flags_are(flags);
        server.expect_number("netns", inodes[1]).expect_flags_are(flags);
    }
}

#[test]
fn both_ends_of_a_thousand_ipv4_connections_have_one_id() {
    if is_fit("both_ends_of_a_thousand_ipv4_connections_have_one_id") {
        a_thousand("0.0.0.0:0", SERVER_V4, &[]);
    }
}

#[test]
fn both_ends_of_a_thousand_ipv6_connections_have_one_id() {
    if is_fit_once("both_ends_of_a_thousand_ipv6_connections_have_one_id") {
        a_thousand("[::]:0", &format!("[{SERVER_V6}]"), &[]);
    }
}

#[test]
fn both_ends_of_a_thousand_connections_to_a_mapped_address_have_one_id() {
    if is_fit_once("both_ends_of_a_thousand_connections_to_a_mapped_address_have_one_id") {
        a_thousand("[::]:0", &format!("[::ffff:{SERVER_V4}]"), &["v4_mapped"]);
    }
}

#[test]
fn networks_with_the_same_addresses_and_ports_share_no_id() {
    const EACH: u16 = 100;
    const PORT: u16 = 7_000;
    if !is_fit_once("networks_with_the_same_addresses_and_ports_share_no_id") {
        return;
    }
    // Two networks that know nothing of each other, and have the same two addresses.
    let pairs = [Pair::new(), Pair::new()];
    let watch = Watch::begin();
    let together = Barrier::new(pairs.len());
    std::thread::scope(|scope| {
        for pair in &pairs {
            let together = &together;
            scope.spawn(move || {
                let listener = pair.server.on_thread("hs-listen", || {
                    TcpListener::bind((SERVER_V4, PORT)).expect("the port is free in this namespace")
                });
                pair.client.on_thread("hs-client", || {
                    for number in 0..EACH {
                        let client =
                            Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
                        set_option(&client, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
                        let from: SocketAddr =
                            format!("{CLIENT_V4}:{}", 20_000 + number).parse().expect("ours");
                        let to: SocketAddr = format!("{SERVER_V4}:{PORT}").parse().expect("an address");
                        client.bind(&from.into()).expect("the port is free in this namespace");
                        together.wait();
                        client.connect(&to.into()).expect("it listens");
                        drop((listener.accept().expect("a child is queued"), client));
                    }
                });
            });
        }
    });
    let inodes = pairs.each_ref().map(|pair| [pair.client.inode(), pair.server.inode()]);
    let all = usize::from(EACH) * pairs.len();
    let told = || of(watch.records(), inodes.as_flattened());
    until("both records of every connection", || told().len() >= 2 * all);
    let records = of(watch.end(), inodes.as_flattened());
    let joined = by_id(&records);
    assert_eq!((joined.len(), records.len()), (all, 2 * all));
    let mut same_ends = HashMap::<String, usize>::new();
    for ends in joined.values() {
        let (client, server) = expect_two_ends(ends);
        let netns = |record: &Record| record.number("netns").expect("it is known");
        assert!(inodes.contains(&[netns(client), netns(server)]), "ends of two networks: {client}\n{server}");
        *same_ends.entry(client.get("local").expect("it is known").to_string()).or_default() += 1;
    }
    assert!(same_ends.values().all(|count| *count == pairs.len()), "the ports were the same: {same_ends:?}");
}
