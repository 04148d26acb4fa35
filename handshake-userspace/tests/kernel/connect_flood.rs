//! A host that connects to peers that never answer, more often than the kernel side can remember: each attempt is
//! told, what was forgotten of them is counted, and a connection afterwards is told whole.
//!
//! What a reader would get wrong: an attempt for which there was no room is not lost. Its end is told all the same,
//! by the socket alone, and only its early facts are missing.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::Socket;

use super::{
    bounds::an_ordinary_connection_is_told_right,
    environment::is_fit_for_long,
    netns::{CLIENT_V4, Pair, SERVER_V4},
    tally::Tally,
    traffic::{set_option, tcp_socket},
};

/// Active opens that the kernel side remembers at a time (docs/KERNEL.md, Maps).
const REMEMBERED: u64 = 16_384;
/// More than it remembers.
const BEYOND: u64 = 400;
/// Another address of the client's host, so that what the flood does and what is looked at are told apart.
const FLOODER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// Nobody has it: what is sent there leaves and is never answered.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);

/// Room for a file each; gives what there was before.
fn room_for_files(count: u64) -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    let maximum = before.maximum.map(|maximum| maximum.max(count));
    let wanted = Rlimit { current: Some(count), maximum };
    setrlimit(Resource::Nofile, wanted).expect("root may open many files");
    before
}

/// A connection attempt that stays in SYN-SENT.
fn unanswered(number: u64) -> Socket {
    let socket = tcp_socket();
    // Without this the kernel would look for a port that is free for every remote end.
    set_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
    socket.bind(&SocketAddr::from((FLOODER, 0)).into()).expect("the host has this address");
    socket.set_nonblocking(true).expect("a socket can be non-blocking");
    let to = SocketAddr::from((NOBODY, 1 + (number % 1_000) as u16));
    let error = socket.connect(&to.into()).expect_err("nobody answers");
    let in_progress = rustix::io::Errno::INPROGRESS.raw_os_error();
    assert_eq!(error.raw_os_error(), Some(in_progress), "{error}");
    socket
}

#[test]
fn more_unanswered_connects_than_are_remembered_are_told_and_hide_no_other() {
    if !is_fit_for_long("more_unanswered_connects_than_are_remembered_are_told_and_hide_no_other") {
        return;
    }
    let pair = Pair::new();
    pair.client.ip(&format!("address add {FLOODER}/24 dev veth0"));
    pair.nobody_has(&NOBODY.to_string());
    let tally = Tally::start(CLIENT_V4, &["--netns", pair.client.name(), "--netns", pair.server.name()]);
    let listener =
        pair.server.on_thread("hs-listen", || TcpListener::bind("0.0.0.0:0").expect("a port is free"));
    let port = listener.local_addr().expect("it is bound").port();
    let to: SocketAddr = format!("{SERVER_V4}:{port}").parse().expect("an address");
    let count = REMEMBERED + BEYOND;
    let limit = room_for_files(count + 1_024);
    let open: Vec<Socket> = pair.client.on_thread("hs-flood", || (0..count).map(unanswered).collect());

    // With no room left, a connection has no early facts, and is told.
    let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    let local_port = u64::from(stream.local_addr().expect("it is bound").port());
    let crowded = tally.wait_for("the connection for which there was no room", |record| {
        record.is("client", port) && record.number("local.port") == Some(local_port)
    });
    crowded
        .expect_text("outcome", "established")
        .expect_absent("latency_ns")
        .expect_absent("phases.local_ns")
        .expect_absent("retransmits")
        // Its beginning was not before our time: there was no room for it.
        .expect_flags_are(&["syn_time_lost"]);
    drop((listener.accept().expect("a child is queued"), stream));

    drop(open);
    setrlimit(Resource::Nofile, limit).expect("fewer files are allowed to all");
    an_ordinary_connection_is_told_right(&tally, &pair, &listener, to);
    let total = tally.stop();
    let full = total.health("kernel.active_opens_full");
    let cancelled = total.outcomes.get("client cancelled").copied().unwrap_or(0);
    println!("connects: sent={count} cancelled={cancelled} active_opens_full={full} crowded={crowded}");
    assert_eq!(cancelled, count, "{:?} {}", total.outcomes, total.health);
    // Each attempt looks for room once or twice: at connect(), and at its SYN where that has a hook of its own.
    assert!(matches!(total.health.number("kernel_counters.unexplained"), None | Some(0)), "{}", total.health);
    assert!((BEYOND + 1..=3 * (BEYOND + 1)).contains(&full), "{full} found no room: {}", total.health);
}
