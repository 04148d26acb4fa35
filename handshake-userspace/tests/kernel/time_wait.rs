//! TIME-WAIT: a port that is in it is used again, by the end that closed first and by the one that did not.
//!
//! What a reader would get wrong: at the client it is tcp_twsk_unique() that lets connect() have the port; at the
//! server a SYN finds the old connection in TIME-WAIT and only then the listener. Either way it is a new handshake.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use super::{
    environment::is_fit,
    netns::{CLIENT_V4, Pair, SERVER_V4},
    record::{Record, all_of},
    traffic::{accept_in, tcp_socket, until},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, expect_one_handshake},
};

const CLIENT_PORT: u16 = 41_000;

/// Two connections from one port; `close_first` closes the end that keeps TIME-WAIT. Checks all four records.
fn again(bound: bool, close_first: fn(TcpStream, TcpStream), listen: u16) {
    let pair = Pair::new();
    pair.client.set("ipv4/tcp_tw_reuse", "1");
    pair.client.set("ipv4/ip_local_port_range", &format!("{CLIENT_PORT} {CLIENT_PORT}"));
    let watch = Watch::begin();
    let to: SocketAddr = format!("{SERVER_V4}:{listen}").parse().expect("an address");
    let listener =
        pair.server.on_thread("hs-listen", || TcpListener::bind(to).expect("the port is free here"));
    for nth in 0..2 {
        let stream = pair.client.on_thread("hs-client", || {
            let socket = tcp_socket();
            if bound {
                socket.set_reuse_address(true).expect("it can be set");
                let own: SocketAddr = format!("{CLIENT_V4}:{CLIENT_PORT}").parse().expect("an address");
                socket.bind(&own.into()).expect("nobody holds it at this end");
            }
            socket.connect(&to.into()).expect("the port in TIME-WAIT is used again");
            TcpStream::from(socket)
        });
        let accepted = accept_in(&pair.server, &listener);
        close_first(stream, accepted);
        if nth == 0 {
            // Timestamps of one second apart make it certain that the old connection is over (RFC 6191).
            std::thread::sleep(Duration::from_millis(1_100));
        }
    }
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    until("both connections have their records", || {
        let records = watch.records();
        ["client", "server"]
            .iter()
            .all(|role| records.iter().filter(|record| record.is(role, listen)).count() >= 2)
    });
    let records = watch.end();
    clients.extend(all_of(records.clone(), &pair.client));
    servers.extend(all_of(records, &pair.server));
    assert_eq!((clients.len(), servers.len()), (2, 2), "{clients:?} {servers:?}");
    for (client, server) in clients.iter().zip(&servers) {
        expect_both(&pair, client, server, listen);
    }
    for field in ["id", "key"] {
        assert_ne!(clients[0].get(field), clients[1].get(field), "{clients:?}");
        assert_ne!(servers[0].get(field), servers[1].get(field), "{servers:?}");
    }
}

#[track_caller]
fn expect_both(pair: &Pair, client: &Record, server: &Record, listen: u16) {
    client
        .whole("client", "established", &pair.client)
        .ends(CLIENT_V4, SERVER_V4, listen)
        .number("local.port", u64::from(CLIENT_PORT))
        .thread("hs-client")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("latency_ns", AT_ONCE)
        .answered(AT_ONCE)
        .called_and_returned()
        .flags(&[])
        .nothing_else();
    server
        .whole("server", "established", &pair.server)
        .ends(SERVER_V4, CLIENT_V4, listen)
        .thread("hs-server")
        .joined()
        .agreed(ETHERNET_MSS)
        .served(AT_ONCE)
        .within("phases.accept_ns", AT_ONCE)
        .queued(1..=1, 128..=4_096)
        .flags(&[])
        .nothing_else();
    expect_one_handshake(client, server);
}

#[test]
fn a_port_that_is_in_time_wait_at_the_client_is_used_again() {
    if is_fit("a_port_that_is_in_time_wait_at_the_client_is_used_again") {
        again(
            false,
            |stream, accepted| {
                drop(stream);
                until("the FIN arrived", || matches!(accepted.peek(&mut [0]), Ok(0)));
                drop(accepted);
            },
            7_100,
        );
    }
}

#[test]
fn a_syn_that_finds_time_wait_at_the_server_opens_a_new_connection() {
    if is_fit("a_syn_that_finds_time_wait_at_the_server_opens_a_new_connection") {
        again(
            true,
            |stream, accepted| {
                drop(accepted);
                until("the FIN arrived", || matches!(stream.peek(&mut [0]), Ok(0)));
                drop(stream);
            },
            7_101,
        );
    }
}
