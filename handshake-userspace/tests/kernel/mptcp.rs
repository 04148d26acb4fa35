//! MPTCP: the master socket, which an application holds, and its first subflow, which is the TCP connection.
//!
//! What a reader would get wrong: the master goes through states of TCP's names and is none of its sockets: it makes no
//! record. A client's socket stays a subflow of its master though the server speaks plain TCP, so a client's flag says
//! what was asked for; a server's says what was agreed on.

use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    environment::{attach, has_probes, is_fit, is_locked_down, skip},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    plain::{self, Ends, expect_counts, server_of},
    record::{Record, all_of},
    traffic::{SYN_SENT, wait_for_state},
    watch::Watch,
    whole::{AT_ONCE, expect_one_handshake},
};

const MPTCP: i32 = 262;

/// A master socket; `None` where there are none.
pub fn master(test: &str, netns: &Netns) -> Option<Socket> {
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

/// The whole record of a first subflow's client. Its connect() is the master socket's.
#[track_caller]
pub(super) fn expect_client(client: &Record, netns: &Netns, ends: Ends, thread: &str) {
    plain::connected(client, netns, ends)
        .thread(thread)
        .within("phases.local_ns", AT_ONCE)
        // Where a system call's return is seen, whose socket it was for does not matter. By fentry it is seen only where
        // the kernel connects the subflow by the function that system calls come to; 6.12 and later don't.
        .also(sees_return(client), |whole| whole.within("phases.wake_ns", AT_ONCE))
        .flags(&["mptcp"])
        .nothing_else();
}

/// Whether the return of a subflow's connect() must be there, or may and is.
fn sees_return(client: &Record) -> bool {
    attach() != "fentry" || client.get("phases.wake_ns").is_some()
}

/// The whole record of a first subflow's server, that a thread accepted, or that nobody may know to be accepted.
#[track_caller]
pub(super) fn expect_server(server: &Record, netns: &Netns, ends: Ends, acceptor: Option<&str>) {
    server_of(server, "established", netns, ends)
        .queued(1..=1, 1..=4_096)
        .thread(acceptor.unwrap_or("hs-listen"))
        .also(acceptor.is_some(), |whole| whole.within("phases.accept_ns", AT_ONCE))
        .flags(&["mptcp"])
        .nothing_else();
}

fn ends_of(port: u16) -> [Ends<'static>; 2] {
    [(CLIENT_V4, SERVER_V4, port), (SERVER_V4, CLIENT_V4, port)]
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
    let ends = ends_of(to.port());
    expect_client(&client, &pair.client, ends[0], "hs-client");
    expect_server(&server, &pair.server, ends[1], if is_locked_down() { None } else { Some("hs-server") });
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
    let ends = ends_of(to.port());
    expect_client(&client, &pair.client, ends[0], "hs-client");
    plain::expect_server(&server, &pair.server, ends[1], "hs-server");
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
    let ends = ends_of(to.port());
    plain::expect_client(&client, &pair.client, ends[0], "hs-client");
    plain::expect_server(&server, &pair.server, ends[1], "hs-server");
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
    let ends = ends_of(to.port());
    expect_client(&client_record, &pair.client, ends[0], "hs-client");
    server_of(&server, "never_accepted", &pair.server, ends[1])
        .evidence("child_destroyed", None)
        .number("evidence.syn_acks", 1)
        .queued(1..=1, 1..=4_096)
        .also(has_probes(), |whole| whole.thread("hs-listen"))
        .flags(&["mptcp"])
        .nothing_else();
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
        .whole("client", "refused", &pair.client)
        .evidence("reset_received", Some("ECONNREFUSED"))
        .number("evidence.syns", 1)
        .ends(CLIENT_V4, SERVER_V4, 921)
        .thread("hs-client")
        .present("isn.local")
        .within("failed_after_ns", AT_ONCE)
        .answered(AT_ONCE)
        .within("phases.local_ns", AT_ONCE)
        // What was never agreed on is asked for all the same.
        .flags(&[])
        .nothing_else();
    pair.client_reaches_server(false);
    pair.client.on_thread("hs-client", || {
        closed.set_nonblocking(true).expect("it can be set");
        let error = closed.connect(&to(922).into()).expect_err("nobody answers");
        assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
        wait_for_state(922, SYN_SENT);
        drop(closed);
    });
    let cancelled = watch.wait_for_end("client", 922);
    cancelled
        .whole("client", "cancelled", &pair.client)
        .evidence("closed_in_syn_sent", None)
        .number("evidence.syns", 1)
        .ends(CLIENT_V4, SERVER_V4, 922)
        .thread("hs-client")
        .present("isn.local")
        .within("phases.local_ns", AT_ONCE)
        .within("failed_after_ns", AT_ONCE)
        .syns(0)
        .flags(if attach() != "fentry" || cancelled.has_flag("non_blocking") {
            &["non_blocking"]
        } else {
            &[]
        })
        .nothing_else();
    // A master socket makes no record.
    expect_counts(&watch.end(), &[(&pair.client, 2), (&pair.server, 0)]);
}
