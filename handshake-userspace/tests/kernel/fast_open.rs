//! Fast Open (RFC 7413): the first connection asks for a cookie, the next one's SYN carries data.
//!
//! What a reader would get wrong: with a cookie accept() returns the child before the final ACK, while it is in
//! SYN-RECEIVED; so what is accepted first need not be ESTABLISHED first.

use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::Socket;

use super::{
    early_child::Willing,
    environment::{has_probes, is_fit},
    netns::{CLIENT_V4, Netns, SERVER_V4},
    record::{Record, all_of, count},
    traffic::{loopback_listener, set_option, tcp_socket, wait_for_state},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, LOOPBACK_MSS, Whole, expect_one_handshake},
};

const HERE: &str = "127.0.0.1";

/// A namespace in which both ends may use Fast Open.
pub fn willing() -> Netns {
    let netns = Netns::new("t");
    netns.set("ipv4/tcp_fastopen", "3");
    netns
}

/// A listener that takes data with a SYN.
pub fn fast_listener() -> (TcpListener, SocketAddr) {
    let (listener, to) = loopback_listener();
    set_option(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16);
    (listener, to)
}

/// connect() that leaves the SYN to the first write once there is a cookie, and that write of one byte.
pub fn connect_and_write(to: SocketAddr) -> Socket {
    let client = tcp_socket();
    set_option(&client, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1);
    client.connect(&to.into()).expect("it returns, before any SYN left if there is a cookie");
    client.send(b"x").expect("the SYN takes it along, or it follows");
    client
}

/// accept(), and the wait for that byte: it has arrived before the connection ends.
pub fn accept_and_read(listener: &TcpListener) -> TcpStream {
    let accepted = listener.accept().expect("a child is queued").0;
    assert_eq!(accepted.peek(&mut [0]).expect("one byte was sent"), 1);
    accepted
}

fn port_of(socket: &Socket) -> u64 {
    let local = socket.local_addr().expect("it is bound").as_socket();
    u64::from(local.expect("it is an internet socket").port())
}

/// Both records of the connection from this local port.
fn both_of(watch: &Watch, port: u16, local: u64) -> (Record, Record) {
    let of = |role: &'static str, end: &'static str| {
        watch.wait_for(&format!("the {role} of port {local}"), move |record| {
            record.is(role, port) && record.number(end) == Some(local)
        })
    };
    let (client, server) = (of("client", "local.port"), of("server", "remote.port"));
    expect_one_handshake(&client, &server);
    (client, server)
}

/// A client's whole record but for the call, with how far it came and whether the SYN-ACK had a cookie.
#[track_caller]
fn client_of<'a>(
    client: &'a Record,
    netns: &Netns,
    port: u16,
    (fast_open, cookie): (&str, Option<&str>),
) -> Whole<'a> {
    let whole = client
        .whole("client", "established", netns)
        .ends(HERE, HERE, port)
        .thread("hs-both")
        .joined()
        .within("latency_ns", AT_ONCE)
        .answered(AT_ONCE)
        .agreed_otherwise(LOOPBACK_MSS, LOOPBACK_MSS, fast_open);
    match cookie {
        Some(cookie) => whole.text("options.fast_open_cookie", cookie),
        None => whole,
    }
}

/// The whole record of a server that took no data with the SYN.
#[track_caller]
fn plain_server(server: &Record, netns: &Netns, port: u16) {
    server
        .whole("server", "established", netns)
        .ends(HERE, HERE, port)
        .thread("hs-both")
        .joined()
        .agreed(LOOPBACK_MSS)
        .served(AT_ONCE)
        .within("phases.accept_ns", AT_ONCE)
        .queued(1..=1, 128..=4096)
        .flags(&[])
        .nothing_else();
}

/// The whole record of a server that took data with the SYN: no round trip, for the child was there before the ACK.
#[track_caller]
fn fast_server(server: &Record, netns: &Netns, port: u16) {
    server
        .whole("server", "established", netns)
        .ends(HERE, HERE, port)
        .thread("hs-both")
        .joined()
        .agreed(LOOPBACK_MSS)
        .within("latency_ns", AT_ONCE)
        .within("phases.accept_ns", AT_ONCE)
        .number("retransmits.syn_ack", 0)
        .number("retransmits.waited_ns", 0)
        .also(has_probes(), |whole| {
            whole
                .within("phases.synack_ns", 0..=500)
                .within("phases.ack_ns", AT_ONCE)
                .number("retransmits.syn_seen", 1)
        })
        .queued(1..=1, 128..=4096)
        .flags(if has_probes() { &["fast_open"] } else { &[] })
        .nothing_else();
}

#[test]
fn fast_open_is_told_from_the_first_connection_to_the_one_with_data() {
    if !is_fit("fast_open_is_told_from_the_first_connection_to_the_one_with_data") {
        return;
    }
    let netns = willing();
    let watch = Watch::begin();
    let (port, locals) = netns.on_thread("hs-both", || {
        let (listener, to) = fast_listener();
        let locals = [(); 2].map(|()| {
            let client = connect_and_write(to);
            drop(accept_and_read(&listener));
            port_of(&client)
        });
        (to.port(), locals)
    });
    let (client, server) = both_of(&watch, port, locals[0]);
    client_of(&client, &netns, port, ("requested", Some("received")))
        .called_and_returned()
        .flags(&["fast_open"])
        .nothing_else();
    plain_server(&server, &netns, port);
    // A server that takes the data has nothing to add about the cookie that came with it.
    // The second connect() returned at once and sent nothing: until the write, time is the application's.
    let (client, server) = both_of(&watch, port, locals[1]);
    client_of(&client, &netns, port, ("data_accepted", Some("none")))
        .flags(&["fast_open", "non_blocking"])
        .nothing_else();
    fast_server(&server, &netns, port);
    let records = all_of(watch.end(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (2, 2), "{records:?}");
}

#[test]
fn a_server_that_does_no_fast_open_sends_no_cookie() {
    if !is_fit("a_server_that_does_no_fast_open_sends_no_cookie") {
        return;
    }
    let netns = willing();
    let watch = Watch::begin();
    let (port, local) = netns.on_thread("hs-both", || {
        let (listener, to) = loopback_listener();
        let client = connect_and_write(to);
        drop(accept_and_read(&listener));
        (to.port(), port_of(&client))
    });
    let (client, server) = both_of(&watch, port, local);
    client_of(&client, &netns, port, ("requested", Some("none")))
        .called_and_returned()
        .flags(&["fast_open"])
        .nothing_else();
    plain_server(&server, &netns, port);
    let records = all_of(watch.end(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (1, 1), "{records:?}");
}

#[test]
fn data_that_a_host_sends_without_a_cookie_leaves_it_open_whether_one_came() {
    // Client and server, both without cookies.
    const WITHOUT_COOKIES: u32 = 0x1 | 0x2 | 0x4 | 0x200;
    if !is_fit("data_that_a_host_sends_without_a_cookie_leaves_it_open_whether_one_came") {
        return;
    }
    let netns = willing();
    netns.set("ipv4/tcp_fastopen", &WITHOUT_COOKIES.to_string());
    let watch = Watch::begin();
    let (port, local) = netns.on_thread("hs-both", || {
        let (listener, to) = fast_listener();
        let client = connect_and_write(to);
        drop(accept_and_read(&listener));
        (to.port(), port_of(&client))
    });
    let (client, server) = both_of(&watch, port, local);
    client_of(&client, &netns, port, ("data_accepted", None))
        .flags(&["fast_open", "non_blocking"])
        .nothing_else();
    fast_server(&server, &netns, port);
    let records = all_of(watch.end(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (1, 1), "{records:?}");
}

#[test]
fn data_that_a_server_does_not_take_with_the_syn_is_sent_and_not_accepted() {
    if !is_fit("data_that_a_server_does_not_take_with_the_syn_is_sent_and_not_accepted") {
        return;
    }
    let netns = willing();
    let watch = Watch::begin();
    let (port, local) = netns.on_thread("hs-both", || {
        // A cookie is good for all ports of an address, and the second listener does not care for it.
        let (willing, to) = fast_listener();
        let first = connect_and_write(to);
        drop((accept_and_read(&willing), first));
        let (unwilling, to) = loopback_listener();
        let client = connect_and_write(to);
        drop(accept_and_read(&unwilling));
        (to.port(), port_of(&client))
    });
    let (client, server) = both_of(&watch, port, local);
    client_of(&client, &netns, port, ("data_sent", Some("none")))
        .flags(&["fast_open", "non_blocking"])
        .nothing_else();
    plain_server(&server, &netns, port);
    let records = all_of(watch.end(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (2, 2), "{records:?}");
}

#[test]
fn sendmsg_with_fast_open_is_an_active_open_too() {
    if !is_fit("sendmsg_with_fast_open_is_an_active_open_too") {
        return;
    }
    let netns = willing();
    let watch = Watch::begin();
    let (port, locals) = netns.on_thread("hs-both", || {
        let (listener, to) = fast_listener();
        let locals = [(); 2].map(|()| {
            let client = tcp_socket();
            let sent = client.send_to_with_flags(b"x", &to.into(), libc::MSG_FASTOPEN);
            // Without a cookie the data waits for the handshake; a blocking call does too.
            assert_eq!(sent.expect("it connects and sends"), 1);
            drop(accept_and_read(&listener));
            port_of(&client)
        });
        (to.port(), locals)
    });
    // There is no connect() whose return could be seen.
    let (client, server) = both_of(&watch, port, locals[0]);
    client_of(&client, &netns, port, ("requested", Some("received")))
        .within("phases.local_ns", AT_ONCE)
        .flags(&["fast_open"])
        .nothing_else();
    plain_server(&server, &netns, port);
    let (client, server) = both_of(&watch, port, locals[1]);
    client_of(&client, &netns, port, ("data_accepted", Some("none")))
        .within("phases.local_ns", AT_ONCE)
        .flags(&["fast_open"])
        .nothing_else();
    fast_server(&server, &netns, port);
    let records = all_of(watch.end(), &netns);
    assert_eq!((count(&records, "client"), count(&records, "server")), (2, 2), "{records:?}");
}

#[test]
fn a_fast_open_childs_syn_ack_that_is_sent_again_is_counted() {
    if !is_fit("a_fast_open_childs_syn_ack_that_is_sent_again_is_counted") {
        return;
    }
    // Accepted while it is half open, or only after the final ACK.
    for early in [true, false] {
        let watch = Watch::begin();
        let willing = Willing::new();
        let (client, port) = willing.half_open();
        let taken = early.then(|| willing.accept());
        willing.wait_for_syn_ack_again(port);
        willing.let_through(&client);
        willing.pair.server.on_thread("hs-wait", || wait_for_state(port, super::traffic::ESTABLISHED));
        let taken = taken.unwrap_or_else(|| willing.accept());
        let (client_record, server) = (willing.client_of(&watch, port), willing.server_of(&watch, port));
        expect_one_handshake(&client_record, &server);
        willing.expect_client(&client_record);
        // That accept() took it in SYN-RECEIVED is all that shows it where there are no probes.
        let is_known = has_probes() || early;
        server
            .whole("server", "established", &willing.pair.server)
            .ends(SERVER_V4, CLIENT_V4, willing.to.port())
            .thread("hs-server")
            .joined()
            .agreed(ETHERNET_MSS)
            .within("latency_ns", 900..=60_000)
            // It waits from the SYN on; where there are no probes, from when it is established, and this one had left
            // by then.
            .also(has_probes() && early, |whole| whole.within("phases.accept_ns", AT_ONCE))
            .also(has_probes() && !early, |whole| whole.within("phases.accept_ns", 900..=60_000))
            .also(!has_probes() && !early, |whole| whole.within("phases.accept_ns", AT_ONCE))
            .number_in("retransmits.syn_ack", 1..=20)
            .within("retransmits.waited_ns", 900..=60_000)
            .also(has_probes(), |whole| {
                whole
                    .within("phases.synack_ns", 0..=500)
                    .within("phases.ack_ns", 900..=60_000)
                    .number("retransmits.syn_seen", 1)
            })
            .queued(1..=1, 128..=4_096)
            .flags(if is_known { &["fast_open"] } else { &[] })
            .nothing_else();
        watch.end();
        drop((client, taken));
    }
}
