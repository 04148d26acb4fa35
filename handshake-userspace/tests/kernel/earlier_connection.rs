//! A client that comes back from the same port while its peer still holds the connection of before (RFC 9293, 3.5.1).
//!
//! The old socket goes without a word, as in a crash or a move to another machine: TCP_REPAIR lets close() send
//! nothing. What a reader would get wrong: the peer answers the new SYN with an ACK of the old connection, the client
//! that with a RST, and only the next SYN reaches the listener; the kernel may send that one at once.

use std::net::{SocketAddr, TcpListener, TcpStream};

use super::{
    environment::is_fit,
    netns::{CLIENT_V4, Pair, SERVER_V4},
    plain::{expect_client, expect_counts, expect_server},
    traffic::{set_option, tcp_socket},
    watch::Watch,
    whole::{ETHERNET_MSS, expect_one_handshake},
};

const TCP_REPAIR: i32 = 19;

#[test]
fn a_syn_that_meets_an_earlier_connection_is_answered_by_its_ack_and_that_by_a_rst() {
    if !is_fit("a_syn_that_meets_an_earlier_connection_is_answered_by_its_ack_and_that_by_a_rst") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = pair.server.on_thread("hs-server", || {
        let listener = TcpListener::bind((SERVER_V4, 0)).expect("the address is there");
        let to = listener.local_addr().expect("it has an address");
        (listener, to)
    });
    let own: SocketAddr = format!("{CLIENT_V4}:6200").parse().expect("an address");
    let connect = || -> TcpStream {
        pair.client.on_thread("hs-client", || {
            let socket = tcp_socket();
            socket.set_reuse_address(true).expect("it can be set");
            socket.bind(&own.into()).expect("the port is free");
            socket.connect(&to.into()).expect("it listens");
            socket.into()
        })
    };
    let first = connect();
    let accept = || pair.server.on_thread("hs-accept", || listener.accept().expect("a child is queued").0);
    let held = accept();
    let ends = [(CLIENT_V4, SERVER_V4, to.port()), (SERVER_V4, CLIENT_V4, to.port())];
    let before = watch.wait_for_end("client", to.port());
    expect_client(&before, &pair.client, ends[0], "hs-client");
    let at_server = watch.wait_for_end("server", to.port());
    expect_server(&at_server, &pair.server, ends[1], "hs-accept");
    expect_one_handshake(&before, &at_server);
    set_option(&first, libc::IPPROTO_TCP, TCP_REPAIR, 1);
    drop(first);
    let second = connect();
    let accepted = accept();
    let after = watch.wait_for("the second connection", |record| {
        record.is("client", to.port()) && record.text("key") != before.text("key")
    });
    after
        .whole("client", "established", &pair.client)
        .ends(CLIENT_V4, SERVER_V4, to.port())
        .number("local.port", u64::from(own.port()))
        .thread("hs-client")
        .joined()
        .agreed(ETHERNET_MSS)
        .called_and_returned()
        .within("latency_ns", 0..=1_700)
        .within("phases.wire_ns", 0..=1_700)
        .syns(1)
        .within("retransmits.waited_ns", 0..=1_500)
        .flags(&["reset_sent"])
        .nothing_else();
    let server = watch.wait_for("the server's end of it", |record| {
        record.is("server", to.port()) && record.text("id") == after.text("id")
    });
    // Of the first SYN this listener never heard.
    expect_server(&server, &pair.server, ends[1], "hs-accept");
    expect_one_handshake(&after, &server);
    drop((held, second, accepted));
    expect_counts(&watch.end(), &[(&pair.client, 2), (&pair.server, 2)]);
}
