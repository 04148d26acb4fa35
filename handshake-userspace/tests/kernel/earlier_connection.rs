//! A client that comes back from the same port while its peer still holds the connection of before (RFC 9293, 3.5.1).
//!
//! The old socket goes without a word, as in a crash or a move to another machine: TCP_REPAIR lets close() send
//! nothing. What a reader would get wrong: the peer answers the new SYN with an ACK of the old connection, the client
//! that with a RST, and only the next SYN reaches the listener; the kernel may send that one at once.

use std::net::{SocketAddr, TcpListener, TcpStream};

use super::{
    environment::is_fit,
    netns::{CLIENT_V4, Pair, SERVER_V4},
    traffic::{set_option, tcp_socket},
    watch::Watch,
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
    let held = listener.accept().expect("a child is queued").0;
    let before = watch.wait_for_end("client", to.port());
    assert!(!before.has_flag("reset_sent"), "{before}");
    set_option(&first, libc::IPPROTO_TCP, TCP_REPAIR, 1);
    drop(first);
    let second = connect();
    let after = watch.wait_for("the second connection", |record| {
        record.is("client", to.port()) && record.text("key") != before.text("key")
    });
    after
        .expect_text("outcome", "established")
        .expect_flags_are(&["reset_sent"])
        .expect_number("retransmits.syn", 1)
        .expect_present("retransmits.waited_ns")
        .expect_absent("rtt_ns");
    let accepted = listener.accept().expect("a child is queued").0;
    watch
        .wait_for("the server's end of it", |record| {
            record.is("server", to.port()) && record.text("id") == after.text("id")
        })
        .expect_text("outcome", "established");
    drop((held, second, accepted));
    watch.end();
}
