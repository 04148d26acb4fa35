//! Subflows that join an MPTCP connection (RFC 8684 section 3.2): handshakes of their own that nobody accepts.
//!
//! What a reader would get wrong: the joining SYN is sent by a worker of the kernel, to the listener's address, but for
//! the thread that opened the connection; and its child never enters the accept queue.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    environment::{attach, has_probes, is_fit, is_locked_down, run, skip},
    mptcp,
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    plain::{self, expect_counts, server_of},
    traffic::until,
    watch::Watch,
    whole::{AT_ONCE, expect_one_handshake},
};

const MPTCP: i32 = 262;
const SECOND_V4: &str = "192.0.2.11";
const SECOND_LINK: &str = "02:00:00:00:99:01";

fn socket(netns: &Netns) -> Option<Socket> {
    netns.on_thread("hs-mptcp", || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(MPTCP)))).ok()
}

/// A client with two addresses, which its kernel uses both; `None` where that can't be.
fn two_ways(test: &str, pair: &Pair) -> Option<()> {
    pair.client.ip(&format!("address add {SECOND_V4}/24 dev veth0"));
    pair.server.ip(&format!("neigh replace {SECOND_V4} lladdr {SECOND_LINK} dev veth0 nud permanent"));
    if socket(&pair.client).is_none() {
        skip(test, "this kernel has no MPTCP");
        return None;
    }
    for netns in [&pair.client, &pair.server] {
        run(&format!("ip -n {} mptcp limits set subflows 2 add_addr_accepted 2", netns.name()));
    }
    run(&format!("ip -n {} mptcp endpoint add {SECOND_V4} dev veth0 subflow", pair.client.name()));
    Some(())
}

#[test]
fn a_subflow_that_joins_an_mptcp_connection_is_told_as_one_at_both_ends() {
    const NAME: &str = "a_subflow_that_joins_an_mptcp_connection_is_told_as_one_at_both_ends";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    // A socket takes the path manager's settings along when it is made.
    let Some(()) = two_ways(NAME, &pair) else { return };
    let (Some(listener), Some(client)) = (socket(&pair.server), socket(&pair.client)) else {
        skip(NAME, "this kernel has no MPTCP");
        return;
    };
    let watch = Watch::begin();
    let any: SocketAddr = "0.0.0.0:0".parse().expect("an address");
    listener.bind(&any.into()).expect("a port is free");
    pair.server.on_thread("hs-listen", || listener.listen(8).expect("it can listen"));
    let port = listener.local_addr().expect("it is bound").as_socket().expect("it is IPv4").port();
    let to: SocketAddr = format!("{SERVER_V4}:{port}").parse().expect("an address");
    pair.client.on_thread("hs-mptcp", || client.connect(&to.into()).expect("it listens"));
    let accepted = pair.server.on_thread("hs-mptcp", || listener.accept().expect("a child is queued").0);
    // Both ends know by data that the other speaks MPTCP; then the client's kernel adds its second address.
    let (mut client, mut accepted) = (TcpStream::from(client), TcpStream::from(accepted));
    for _ in 0..3 {
        client.write_all(b"x").expect("it is connected");
        accepted.read_exact(&mut [0]).expect("it arrives");
        accepted.write_all(b"y").expect("it is connected");
        client.read_exact(&mut [0]).expect("it arrives");
    }
    pair.server.on_thread("hs-wait", || {
        until("the second subflow is ESTABLISHED", || {
            std::fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|text| {
                let own = format!(":{port:04X} ");
                text.lines().filter(|line| line.contains(&own) && line.contains(" 01 ")).count() == 2
            })
        });
    });
    let of = |role: &'static str, end: &'static str, address: &'static str| {
        watch.wait_for("a subflow's record", |record| {
            record.is(role, port) && record.text(end) == Some(address)
        })
    };
    // Its client's record waits a little for connect()'s return, which is the master socket's.
    let first = of("server", "remote.address", CLIENT_V4);
    let first_client = of("client", "local.address", CLIENT_V4);
    mptcp::expect_client(&first_client, &pair.client, (CLIENT_V4, SERVER_V4, port), "hs-mptcp");
    mptcp::expect_server(
        &first,
        &pair.server,
        (SERVER_V4, CLIENT_V4, port),
        if is_locked_down() { None } else { Some("hs-mptcp") },
    );
    expect_one_handshake(&first_client, &first);
    let (client_join, join) =
        (of("client", "local.address", SECOND_V4), of("server", "remote.address", SECOND_V4));
    // It does not wait for the answer; over veth that may be there before its call returns, which only fentry sees.
    let was_early = client_join.has_flag("non_blocking");
    // Nobody may read what tells it from other subflows under lockdown.
    let mut flags = if is_locked_down() { vec!["mptcp"] } else { vec!["mptcp", "mptcp_join"] };
    flags.extend((attach() == "fentry" && was_early).then_some("non_blocking"));
    plain::connected(&client_join, &pair.client, (SECOND_V4, SERVER_V4, port))
        // A worker of the kernel called connect() for it, for the thread that opened the connection. Which subflow
        // belongs to which nobody may read under lockdown.
        .also(!is_locked_down(), |whole| whole.thread("hs-mptcp"))
        .within("phases.local_ns", AT_ONCE)
        .also(attach() == "fentry" && !was_early, |whole| whole.within("phases.wake_ns", AT_ONCE))
        .flags(&flags)
        .nothing_else();
    server_of(&join, "established", &pair.server, (SERVER_V4, SECOND_V4, port))
        .also(has_probes(), |whole| whole.thread("hs-listen"))
        .flags(&["mptcp", "mptcp_join"])
        .nothing_else();
    expect_one_handshake(&client_join, &join);
    drop((client, accepted, listener));
    let records = watch.end();
    expect_counts(&records, &[(&pair.client, 2), (&pair.server, 2)]);
    let fates = records
        .iter()
        .filter(|record| record.text("kind") == Some("accept") && record.text("key") == join.text("key"));
    assert_eq!(fates.count(), 0, "nobody accepts it: {records:?}");
}
