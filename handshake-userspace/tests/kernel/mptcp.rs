//! MPTCP: the master socket, which an application holds, and its first subflow, which is the TCP connection.
//!
//! What a reader would get wrong: the master goes through states of TCP's names and is none of its sockets: it makes no
//! record. A client's socket stays a subflow of its master though the server speaks plain TCP, so a client's flag says
//! what was asked for; a server's says what was agreed on.

use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    environment::{has_probes, is_fit, is_locked_down, skip},
    netns::{Netns, Pair, SERVER_V4},
    record::{Record, all_of},
    traffic::{SYN_SENT, wait_for_state},
    watch::Watch,
    whole::expect_one_handshake,
};

const MPTCP: i32 = 262;

/// A master socket; `None` where there are none.
fn master(test: &str, netns: &Netns) -> Option<Socket> {
    let socket =
        netns.on_thread("hs-mptcp", || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(MPTCP))));
    let enabled = netns.on_thread("hs-mptcp", || {
        std::fs::read_to_string("/proc/sys/net/mptcp/enabled").is_ok_and(|text| text.trim() == "1")
    });
    match socket {
        Ok(socket) if enabled => Some(socket),
        Ok(_) => {
            skip(test, "MPTCP is switched off (net.mptcp.enabled)");
            None
        }
        Err(error) => {
            skip(test, &format!("this kernel has no MPTCP: {error}"));
            None
        }
    }
}

fn masters(test: &str, one: &Netns, other: &Netns) -> Option<(Socket, Socket)> {
    let first = master(test, one)?;
    Some((first, master(test, other)?))
}

fn listen(socket: &Socket, address: &str) -> SocketAddr {
    let any: SocketAddr = format!("{address}:0").parse().expect("an address");
    socket.bind(&any.into()).expect("a port is free");
    socket.listen(8).expect("it can listen");
    socket.local_addr().expect("it is bound").as_socket().expect("it is IPv4")
}

/// Both records, and nothing else in these namespaces.
#[track_caller]
fn expect_both(watch: Watch, pair: &Pair, port: u16) -> (Record, Record) {
    let client = watch.wait_for_end("client", port);
    let server = watch.wait_for_end("server", port);
    expect_one_handshake(&client, &server);
    let records = watch.end();
    for (netns, end) in [(&pair.client, &client), (&pair.server, &server)] {
        let records = all_of(records.clone(), netns);
        assert_eq!(records.len(), 1, "a master socket makes no record: {records:?}");
        assert_eq!(records[0].get("key"), end.get("key"));
    }
    (client, server)
}

#[track_caller]
fn expect_client(client: &Record, flags: &[&str]) {
    client
        .expect_plainly_established()
        .expect_thread("hs-client")
        .expect_flags_are(flags)
        .expect_number("retransmits.syn", 0)
        .expect_number("retransmits.waited_ns", 0)
        .expect_within("phases.wire_ns", 0..=900)
        .expect_within("latency_ns", 0..=900)
        .expect_within("rtt_ns", 0..=900)
        .expect_present("options.mss");
}

#[track_caller]
fn expect_server(server: &Record, flags: &[&str]) {
    server
        .expect_plainly_established()
        .expect_flags_are(flags)
        .expect_number("retransmits.syn_ack", 0)
        .expect_within("latency_ns", 0..=900)
        .expect_present("options.mss");
    if has_probes() {
        server.expect_number("retransmits.syn_seen", 1).expect_present("accept_queue.limit");
    } else {
        server.expect_none_of(&["retransmits.syn_seen", "accept_queue", "phases.ack_ns"]);
    }
}

#[test]
fn an_mptcp_connection_is_its_first_subflow_at_both_ends() {
    const NAME: &str = "an_mptcp_connection_is_its_first_subflow_at_both_ends";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let Some((listener, client)) = masters(NAME, &pair.server, &pair.client) else { return };
    let watch = Watch::begin();
    let to = pair.server.on_thread("hs-listen", || listen(&listener, SERVER_V4));
    pair.client.on_thread("hs-client", || client.connect(&to.into()).expect("it listens"));
    let accepted = pair.server.on_thread("hs-server", || listener.accept().expect("a child is queued").0);
    // Under lockdown nobody may read which subflow a master socket has; what is closed was accepted.
    drop((accepted, client));
    let (client, server) = expect_both(watch, &pair, to.port());
    expect_client(&client, &["mptcp"]);
    expect_server(&server, &["mptcp"]);
    if is_locked_down() {
        server.expect_absent("phases.accept_ns").expect_thread("hs-listen");
    } else {
        server.expect_present("phases.accept_ns").expect_thread("hs-server");
    }
}

#[test]
fn an_mptcp_client_of_a_plain_listener_asked_for_it_and_the_server_did_not_agree() {
    const NAME: &str = "an_mptcp_client_of_a_plain_listener_asked_for_it_and_the_server_did_not_agree";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let Some(client) = master(NAME, &pair.client) else { return };
    let watch = Watch::begin();
    let listener =
        pair.server.on_thread("hs-listen", || TcpListener::bind((SERVER_V4, 0)).expect("a port is free"));
    let to = listener.local_addr().expect("it is bound");
    pair.client.on_thread("hs-client", || client.connect(&to.into()).expect("it listens"));
    drop((pair.server.on_thread("hs-server", || listener.accept().expect("a child is queued")), client));
    let (client, server) = expect_both(watch, &pair, to.port());
    expect_client(&client, &["mptcp"]);
    expect_server(&server, &[]);
    server.expect_thread("hs-server").expect_present("phases.accept_ns");
}

#[test]
fn a_plain_client_of_an_mptcp_listener_is_a_plain_handshake() {
    const NAME: &str = "a_plain_client_of_an_mptcp_listener_is_a_plain_handshake";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let Some(listener) = master(NAME, &pair.server) else { return };
    let watch = Watch::begin();
    let to = pair.server.on_thread("hs-listen", || listen(&listener, SERVER_V4));
    let client = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    drop((pair.server.on_thread("hs-server", || listener.accept().expect("a child is queued")), client));
    let (client, server) = expect_both(watch, &pair, to.port());
    expect_client(&client, &[]);
    expect_server(&server, &[]);
    server.expect_thread("hs-server").expect_present("phases.accept_ns");
}

#[test]
fn an_mptcp_connection_that_nobody_accepts_is_one_record_and_never_accepted() {
    const NAME: &str = "an_mptcp_connection_that_nobody_accepts_is_one_record_and_never_accepted";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let Some((listener, client)) = masters(NAME, &pair.server, &pair.client) else { return };
    let watch = Watch::begin();
    let to = pair.server.on_thread("hs-listen", || listen(&listener, SERVER_V4));
    pair.client.on_thread("hs-client", || client.connect(&to.into()).expect("it listens"));
    // A client's end is ESTABLISHED one segment before the server's.
    pair.server.on_thread("hs-wait", || {
        let port = client.local_addr().expect("it is bound").as_socket().expect("it is IPv4").port();
        wait_for_state(port, super::traffic::ESTABLISHED);
    });
    pair.server.on_thread("hs-closes", || drop(listener));
    let (client_record, server) = expect_both(watch, &pair, to.port());
    expect_client(&client_record, &["mptcp"]);
    server
        .expect_text("outcome", "never_accepted")
        .expect_text("evidence.kind", "child_destroyed")
        .expect_flags_are(&["mptcp"])
        .expect_within("latency_ns", 0..=900)
        .expect_none_of(&["phases.accept_ns", "failed_after_ns", "dropped"]);
    drop(client);
}

#[test]
fn an_mptcp_client_that_is_refused_or_gives_up_is_one_record() {
    const NAME: &str = "an_mptcp_client_that_is_refused_or_gives_up_is_one_record";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let Some((refused, closed)) = masters(NAME, &pair.client, &pair.client) else { return };
    let watch = Watch::begin();
    let to = |port: u16| SocketAddr::new(SERVER_V4.parse().expect("an address"), port);
    pair.client.on_thread("hs-client", || {
        let error = refused.connect(&to(921).into()).expect_err("nobody listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    });
    watch
        .wait_for_end("client", 921)
        .expect_text("outcome", "refused")
        .expect_text("evidence.kind", "reset_received")
        .expect_thread("hs-client")
        .expect_none_of(&["latency_ns", "options", "isn.remote", "id"]);
    pair.client_reaches_server(false);
    pair.client.on_thread("hs-client", || {
        closed.set_nonblocking(true).expect("it can be set");
        let error = closed.connect(&to(922).into()).expect_err("nobody answers");
        assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
        wait_for_state(922, SYN_SENT);
        drop(closed);
    });
    watch
        .wait_for_end("client", 922)
        .expect_text("outcome", "cancelled")
        .expect_text("evidence.kind", "closed_in_syn_sent")
        .expect_thread("hs-client")
        .expect_none_of(&["latency_ns", "options", "isn.remote", "id", "phases.wire_ns"]);
    let records = all_of(watch.end(), &pair.client);
    assert_eq!(records.len(), 2, "a master socket makes no record: {records:?}");
}
