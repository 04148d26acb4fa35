//! Segments that TCP refuses for what they carry, or don't: TCP-MD5 (RFC 2385).
//!
//! What a reader would get wrong: nothing is answered, neither SYN-ACK nor RST. To the client it looks like loss,
//! and only the kernel's drop reason tells the two apart.

use std::net::{IpAddr, TcpListener};
use std::os::fd::AsRawFd;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    environment::{has_drop_reasons, is_fit, skip},
    netns::Pair,
    record::all_of,
    traffic::{IPV4, IPV6, Version},
    watch::Watch,
    whole::AT_ONCE,
};

const LISTENERS_KEY: &[u8] = b"secret";

/// `struct tcp_md5sig`: address, flags, prefix length, key length, interface, key.
fn md5_key_for(peer: &str, key: &[u8]) -> Vec<u8> {
    const ADDRESS_BYTES: usize = 128;
    const KEY_BYTES: usize = 80;
    let mut option = match peer.parse().expect("an address") {
        IpAddr::V4(peer) => [&(libc::AF_INET as u16).to_ne_bytes()[..], &[0; 2], &peer.octets()].concat(),
        IpAddr::V6(peer) => [&(libc::AF_INET6 as u16).to_ne_bytes()[..], &[0; 6], &peer.octets()].concat(),
    };
    option.resize(ADDRESS_BYTES, 0);
    option.extend([0, 0]);
    option.extend((key.len() as u16).to_ne_bytes());
    option.extend([0; 4]);
    option.extend(key);
    option.resize(ADDRESS_BYTES + 8 + KEY_BYTES, 0);
    option
}

/// Signs what a socket exchanges with this peer, and takes nothing else from it.
fn sign(socket: &impl AsRawFd, peer: &str, key: &[u8]) -> std::io::Result<()> {
    let option = md5_key_for(peer, key);
    let size = option.len() as libc::socklen_t;
    // SAFETY: the option is read from a buffer of which the size is given.
    let result = unsafe {
        let option = option.as_ptr().cast();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_MD5SIG, option, size)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// A client with this key, or none, at a listener with that, or none: its SYNs are dropped with this reason.
fn dropped_for_its_signature(
    name: &str,
    version: Version,
    [clients_key, listeners_key]: [Option<&[u8]>; 2],
    reason: &str,
) {
    if !is_fit(name) {
        return;
    }
    let pair = Pair::new();
    pair.client.set("ipv4/tcp_syn_retries", "1");
    let watch = Watch::begin();
    let listener = pair
        .server
        .on_thread("hs-listen", || TcpListener::bind((version.server, 0)).expect("a port is free"));
    let to = listener.local_addr().expect("it is bound");
    let socket = pair.client.on_thread("hs-client", || {
        Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).expect("a socket")
    });
    let signed = listeners_key.map_or(Ok(()), |key| sign(&listener, version.client, key));
    let signed = signed.and_then(|()| clients_key.map_or(Ok(()), |key| sign(&socket, version.server, key)));
    if let Err(error) = signed {
        skip(name, &format!("no TCP-MD5 here: {error}"));
        watch.end();
        return;
    }
    pair.client.on_thread("hs-client", || {
        let error = socket.connect(&to.into()).expect_err("its SYN is not signed as it should be");
        assert_eq!(error.raw_os_error(), Some(Errno::TIMEDOUT.raw_os_error()));
    });
    let client = watch.wait_for_end("client", to.port());
    let syns = client.number("evidence.syns").expect("SYNs are counted");
    client
        .whole("client", "timed_out", &pair.client)
        .evidence("retransmit_timeout", Some("ETIMEDOUT"))
        .number("evidence.syns", syns)
        .ends(version.client, version.server, to.port())
        .thread("hs-client")
        .present("isn.local")
        .within("phases.local_ns", AT_ONCE)
        .within("failed_after_ns", 2_900..=5_000)
        .syns(syns - 1)
        .within("retransmits.waited_ns", 950..=3_500)
        .flags(&[])
        .nothing_else();
    if has_drop_reasons() {
        let server = watch.wait_for("the server's record", |record| record.is("server", to.port()));
        server
            .whole("server", "syn_dropped", &pair.server)
            // Every mode has this hook.
            .seen_by(&["tracepoint"])
            .evidence("drop_reason", None)
            .text("dropped.cause", "drop_reason")
            .text("dropped.reason", reason)
            .number("dropped.segments", syns)
            .number("retransmits.syn_seen", syns)
            .ends(version.server, version.client, to.port())
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
    drop((listener, socket));
}

#[test]
fn a_syn_without_the_listeners_md5_signature_is_dropped_without_an_answer() {
    dropped_for_its_signature(
        "a_syn_without_the_listeners_md5_signature_is_dropped_without_an_answer",
        IPV4,
        [None, Some(LISTENERS_KEY)],
        "TCP_MD5NOTFOUND",
    );
}

#[test]
fn a_syn_over_ipv6_that_is_signed_with_another_key_is_dropped_without_an_answer() {
    dropped_for_its_signature(
        "a_syn_over_ipv6_that_is_signed_with_another_key_is_dropped_without_an_answer",
        IPV6,
        [Some(b"another"), Some(LISTENERS_KEY)],
        "TCP_MD5FAILURE",
    );
}

#[test]
fn a_signed_syn_at_a_listener_that_wants_none_is_dropped_without_an_answer() {
    dropped_for_its_signature(
        "a_signed_syn_at_a_listener_that_wants_none_is_dropped_without_an_answer",
        IPV4,
        [Some(b"unexpected"), None],
        "TCP_MD5UNEXPECTED",
    );
}
