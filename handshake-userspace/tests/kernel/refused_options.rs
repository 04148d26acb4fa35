//! Segments that TCP refuses for what they carry, or don't: TCP-MD5 (RFC 2385).
//!
//! What a reader would get wrong: nothing is answered, neither SYN-ACK nor RST. To the client it looks like loss,
//! and only the kernel's drop reason tells the two apart.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use rustix::io::Errno;

use super::{
    environment::{has_drop_reasons, is_fit, skip},
    netns::{CLIENT_V4, Pair, SERVER_V4},
    record::all_of,
    watch::Watch,
    whole::AT_ONCE,
};

/// `struct tcp_md5sig`: address, flags, prefix length, key length, interface, key.
fn md5_key_for(peer: &str) -> Vec<u8> {
    const ADDRESS_BYTES: usize = 128;
    const KEY_BYTES: usize = 80;
    let peer: std::net::Ipv4Addr = peer.parse().expect("an address");
    let key = b"secret";
    let mut option = (libc::AF_INET as u16).to_ne_bytes().to_vec();
    option.extend([0, 0]);
    option.extend(peer.octets());
    option.resize(ADDRESS_BYTES, 0);
    option.extend([0, 0]);
    option.extend((key.len() as u16).to_ne_bytes());
    option.extend([0; 4]);
    option.extend(key);
    option.resize(ADDRESS_BYTES + 8 + KEY_BYTES, 0);
    option
}

#[test]
fn a_syn_without_the_listeners_md5_signature_is_dropped_without_an_answer() {
    const NAME: &str = "a_syn_without_the_listeners_md5_signature_is_dropped_without_an_answer";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    pair.client.set("ipv4/tcp_syn_retries", "1");
    let watch = Watch::begin();
    let listener =
        pair.server.on_thread("hs-listen", || TcpListener::bind("0.0.0.0:0").expect("a port is free"));
    let port = listener.local_addr().expect("it is bound").port();
    let to: SocketAddr = format!("{SERVER_V4}:{port}").parse().expect("an address");
    let option = md5_key_for(CLIENT_V4);
    let size = option.len() as libc::socklen_t;
    // SAFETY: the option is read from a buffer of which the size is given.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MD5SIG,
            option.as_ptr().cast(),
            size,
        )
    };
    if result != 0 {
        skip(NAME, &format!("no TCP-MD5 here: {}", std::io::Error::last_os_error()));
        watch.end();
        return;
    }
    pair.client.on_thread("hs-client", || {
        let error = TcpStream::connect(to).expect_err("its SYN is not signed");
        assert_eq!(error.raw_os_error(), Some(Errno::TIMEDOUT.raw_os_error()));
    });
    let client = watch.wait_for_end("client", port);
    let syns = client.number("evidence.syns").expect("SYNs are counted");
    client
        .whole("client", "timed_out", &pair.client)
        .evidence("retransmit_timeout", Some("ETIMEDOUT"))
        .number("evidence.syns", syns)
        .ends(CLIENT_V4, SERVER_V4, port)
        .thread("hs-client")
        .present("isn.local")
        .within("phases.local_ns", AT_ONCE)
        .within("failed_after_ns", 2_900..=5_000)
        .syns(syns - 1)
        .within("retransmits.waited_ns", 950..=3_500)
        .flags(&[])
        .nothing_else();
    if has_drop_reasons() {
        let server = watch.wait_for("the server's record", |record| record.is("server", port));
        server
            .whole("server", "syn_dropped", &pair.server)
            // Every mode has this hook.
            .seen_by(&["tracepoint"])
            .evidence("drop_reason", None)
            .text("dropped.cause", "drop_reason")
            .text("dropped.reason", "TCP_MD5NOTFOUND")
            .number("dropped.segments", syns)
            .number("retransmits.syn_seen", syns)
            .ends(SERVER_V4, CLIENT_V4, port)
            .thread("hs-listen")
            .present("isn.remote")
            .number("accept_queue.length", 0)
            // What std asks for, or less where net.core.somaxconn says so.
            .number_in("accept_queue.limit", 1..=4_096)
            .flags(&[])
            .nothing_else();
        assert_eq!(client.get("isn.local"), server.get("isn.remote"), "{client}\n{server}");
        assert_eq!(client.get("local"), server.get("remote"), "{client}\n{server}");
    }
    // Without reasons the kernel lets nobody know, and nothing is invented.
    let servers = all_of(watch.end(), &pair.server);
    assert_eq!(servers.len(), usize::from(has_drop_reasons()), "{servers:?}");
    drop(listener);
}
