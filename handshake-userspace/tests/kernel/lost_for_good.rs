//! Segments that never arrive, however often they are sent; and a backlog so small that cookies take over.
//!
//! What a reader would get wrong: when the final ACK is lost for good the two ends disagree for ever. The client
//! is connected and the server has timed out, and both records are right.

use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::io::Errno;
use socket2::SockRef;

use super::{
    environment::{can_delay, has_probes, in_vm, is_fit, is_locked_down, run},
    netns::{Netns, Pair, SERVER_V4},
    record::{Record, all_of},
    traffic::{
        ESTABLISHED, SYN_SENT, connect_without_waiting, finish, tcp_socket, until, wait_for_request,
        wait_for_state,
    },
    watch::Watch,
    whole::expect_one_handshake,
};

/// What a server's record of a request that nobody answered has not.
const NOT_HALF_OPEN: [&str; 7] =
    ["latency_ns", "rtt_ns", "phases.ack_ns", "phases.accept_ns", "accept_queue", "dropped", "options"];

/// A listener of this process with a backlog, and where clients find it.
fn listener(netns: &Netns, backlog: i32) -> (TcpListener, SocketAddr) {
    netns.on_thread("hs-listen", || {
        let socket = tcp_socket();
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into()).expect("a port is free");
        socket.listen(backlog).expect("it can listen");
        let listener = TcpListener::from(socket);
        let port = listener.local_addr().expect("it is bound").port();
        (listener, format!("{SERVER_V4}:{port}").parse().expect("an address"))
    })
}

fn end_of(watch: &Watch, netns: &Netns, role: &str, port: u16) -> Record {
    let inode = netns.inode();
    watch.wait_for(&format!("the {role}'s record"), |record| {
        record.is(role, port) && record.number("netns") == Some(inode)
    })
}

#[test]
fn a_syn_ack_that_never_arrives_times_out_at_both_ends() {
    if !is_fit("a_syn_ack_that_never_arrives_times_out_at_both_ends") {
        return;
    }
    let pair = Pair::new();
    pair.client.set("ipv4/tcp_syn_retries", "1");
    pair.server.set("ipv4/tcp_synack_retries", "1");
    let watch = Watch::begin();
    let (listener, to) = listener(&pair.server, 8);
    pair.server_reaches_client(false);
    pair.client.on_thread("hs-client", || {
        let error = TcpStream::connect(to).expect_err("no answer arrives");
        assert_eq!(error.raw_os_error(), Some(Errno::TIMEDOUT.raw_os_error()));
    });
    let client = end_of(&watch, &pair.client, "client", to.port());
    let again = client.number("retransmits.syn").expect("SYNs are counted");
    assert!((1..=2).contains(&again), "tcp_syn_retries=1 means two from 6.5 on: {client}");
    client
        .expect_text("outcome", "timed_out")
        .expect_text("evidence.kind", "retransmit_timeout")
        .expect_text("evidence.errno", "ETIMEDOUT")
        .expect_number("evidence.syns", again + 1)
        .expect_within("failed_after_ns", 2_900..=5_000)
        .expect_within("retransmits.waited_ns", 950..=3_500)
        .expect_thread("hs-client")
        .expect_flags_are(&[])
        .expect_none_of(&[
            "id",
            "isn.remote",
            "latency_ns",
            "rtt_ns",
            "phases.wire_ns",
            "phases.wake_ns",
            "options",
        ]);
    if has_probes() {
        client.expect_present("isn.local");
        let server = end_of(&watch, &pair.server, "server", to.port());
        let syn_acks = server.number("evidence.syn_acks").expect("SYN-ACKs are counted");
        assert!(syn_acks >= 2, "it was sent again: {server}");
        server
            .expect_text("outcome", "timed_out")
            .expect_text("evidence.kind", "syn_ack_timeout")
            .expect_number("retransmits.syn_ack", syn_acks - 1)
            .expect_number("retransmits.syn_seen", again + 1)
            .expect_within("retransmits.waited_ns", 900..=3_500)
            .expect_within("failed_after_ns", 2_900..=5_000)
            .expect_within("phases.synack_ns", 0..=100)
            .expect_thread("hs-listen")
            .expect_present("id")
            .expect_flags_are(&[])
            .expect_none_of(&NOT_HALF_OPEN);
        assert_eq!(client.get("isn.local"), server.get("isn.remote"), "{client}\n{server}");
        assert_eq!(client.get("local"), server.get("remote"), "{client}\n{server}");
    }
    let servers = all_of(watch.end(), &pair.server);
    assert_eq!(servers.len(), usize::from(has_probes()), "{servers:?}");
    drop(listener);
}

#[test]
fn a_final_ack_that_never_arrives_leaves_a_client_that_believes_and_a_server_that_timed_out() {
    if !is_fit("a_final_ack_that_never_arrives_leaves_a_client_that_believes_and_a_server_that_timed_out") {
        return;
    }
    let pair = Pair::new();
    pair.server.set("ipv4/tcp_synack_retries", "1");
    let watch = Watch::begin();
    let (listener, to) = listener(&pair.server, 8);
    let by_firewall = in_vm();
    let socket = if by_firewall {
        // Every segment of the client with ACK and without SYN dies at the server's door.
        let nft = |rule: &str| run(&format!("ip netns exec {} nft {rule}", pair.server.name()));
        nft("add table ip hs");
        nft("add chain ip hs input { type filter hook input priority 0 ; }");
        nft("add rule ip hs input tcp flags & (syn|ack) == ack drop");
        pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("the SYN-ACK arrives")).into()
    } else {
        // The first SYN-ACK is lost too; from the second on only the client's segments are.
        pair.server_reaches_client(false);
        pair.client.on_thread("hs-client", || {
            let socket = connect_without_waiting(to);
            wait_for_state(to.port(), SYN_SENT);
            pair.client_reaches_server(false);
            pair.server_reaches_client(true);
            wait_for_state(to.port(), ESTABLISHED);
            socket
        })
    };
    let client = end_of(&watch, &pair.client, "client", to.port());
    client
        .expect_plainly_established()
        .expect_thread("hs-client")
        .expect_flags_are(if by_firewall { &[] } else { &["non_blocking"] })
        .expect_within("latency_ns", if by_firewall { 0..=300 } else { 900..=1_700 })
        .expect_within("phases.wire_ns", if by_firewall { 0..=300 } else { 900..=1_700 })
        .expect_present("id");
    if has_probes() {
        let server = end_of(&watch, &pair.server, "server", to.port());
        server
            .expect_text("outcome", "timed_out")
            .expect_text("evidence.kind", "syn_ack_timeout")
            .expect_number("evidence.syn_acks", 2)
            .expect_number("retransmits.syn_ack", 1)
            .expect_number("retransmits.syn_seen", 1)
            .expect_within("retransmits.waited_ns", 900..=1_500)
            .expect_within("failed_after_ns", 2_900..=5_000)
            .expect_thread("hs-listen")
            .expect_flags_are(&[])
            .expect_none_of(&NOT_HALF_OPEN);
        expect_one_handshake(&client, &server);
    }
    let servers = all_of(watch.end(), &pair.server);
    assert_eq!(servers.len(), usize::from(has_probes()), "{servers:?}");
    drop((listener, socket));
}

/// A client of which the server's answers never arrive.
const DEAF_V4: &str = "192.0.2.3";

/// Fills a SYN queue of one place: further SYNs are answered by cookies. Its SYN-ACKs go nowhere.
///
/// A kernel may take the queue for full when it is as long as its limit or only when it is longer; so there are
/// two, of which the second may be answered by a cookie too.
fn fill_syn_queue(pair: &Pair, to: SocketAddr) -> [socket2::Socket; 2] {
    pair.client.ip(&format!("address add {DEAF_V4}/24 dev veth0"));
    pair.server.ip(&format!("neigh replace {DEAF_V4} lladdr 02:00:00:00:99:ff dev veth0 nud permanent"));
    let sockets = pair.client.on_thread("hs-deaf", || {
        [(); 2].map(|()| {
            let socket = tcp_socket();
            let deaf: SocketAddr = format!("{DEAF_V4}:0").parse().expect("an address");
            socket.bind(&deaf.into()).expect("the address is ours");
            socket.set_nonblocking(true).expect("it can be set");
            let error = socket.connect(&to.into()).expect_err("it is non-blocking");
            assert_eq!(error.raw_os_error(), Some(Errno::INPROGRESS.raw_os_error()));
            socket
        })
    });
    pair.server.on_thread("hs-wait", || wait_for_request(to.port()));
    sockets
}

fn local_port(socket: &impl std::os::fd::AsFd) -> u64 {
    let address = SockRef::from(socket).local_addr().expect("it is bound").as_socket();
    u64::from(address.expect("it is an internet socket").port())
}

#[test]
fn a_full_syn_queue_falls_back_to_cookies_and_says_so() {
    if !is_fit("a_full_syn_queue_falls_back_to_cookies_and_says_so") {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = listener(&pair.server, 1);
    let deaf = fill_syn_queue(&pair, to);
    for _ in 0..3 {
        let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("a cookie answers"));
        let accepted = pair.server.on_thread("hs-server", || listener.accept().expect("a child is queued").0);
        let port = local_port(&stream);
        let client = watch.wait_for("the client's record", |record| {
            record.is("client", to.port()) && record.number("local.port") == Some(port)
        });
        client
            .expect_plainly_established()
            .expect_thread("hs-client")
            .expect_number("retransmits.syn", 0)
            .expect_within("rtt_ns", 0..=300)
            .expect_flags_are(&[]);
        let server = watch.wait_for("the server's record", |record| {
            record.is("server", to.port()) && record.number("remote.port") == Some(port)
        });
        server
            .expect_plainly_established()
            .expect_thread("hs-server")
            .expect_within("phases.accept_ns", 0..=900)
            .expect_flags_are(if has_probes() { &["syn_cookie"] } else { &[] })
            .expect_none_of(&[
                "latency_ns",
                "rtt_ns",
                "phases.synack_ns",
                "phases.ack_ns",
                "retransmits.syn_ack",
                "retransmits.syn_seen",
                "retransmits.waited_ns",
            ]);
        if has_probes() {
            server.expect_number("accept_queue.length", 1).expect_number("accept_queue.limit", 1);
        } else {
            server.expect_absent("accept_queue");
        }
        expect_one_handshake(&client, &server);
        drop((stream, accepted));
    }
    watch.end();
    drop((listener, deaf));
}

#[test]
fn three_syns_at_once_at_a_small_backlog_leave_one_client_that_only_believes() {
    const NAME: &str = "three_syns_at_once_at_a_small_backlog_leave_one_client_that_only_believes";
    if !is_fit(NAME) || !can_delay(NAME) {
        return;
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = listener(&pair.server, 1);
    let deaf = fill_syn_queue(&pair, to);
    // All SYNs are under way before the first ACK is, so all three get a cookie; two places are free.
    pair.delay_each_way(150);
    let sockets = pair.client.on_thread("hs-client", || {
        let sockets = [(); 3].map(|()| connect_without_waiting(to));
        sockets.iter().for_each(|socket| finish(socket).expect("a cookie answers"));
        sockets
    });
    let clients = sockets.each_ref().map(|socket| {
        let port = local_port(socket);
        let client = watch.wait_for("a client's record", |record| {
            record.is("client", to.port()) && record.number("local.port") == Some(port)
        });
        client
            .expect_plainly_established()
            .expect_flags_are(&["non_blocking"])
            .expect_within("latency_ns", 290..=900);
        client
    });
    // The ACKs are still under way; accept() must not make room for the third.
    pair.server.on_thread("hs-wait", || until("a child found no room", || overflows() > 0));
    let accepted =
        pair.server.on_thread("hs-server", || [(); 2].map(|()| listener.accept().expect("queued").0));
    let made: Vec<Record> = clients
        .iter()
        .filter_map(|client| {
            let found = until_told(&watch, to.port(), client, &accepted);
            found.inspect(|server| {
                server
                    .expect_thread("hs-server")
                    .expect_flags_are(if has_probes() { &["syn_cookie"] } else { &[] })
                    .expect_absent("latency_ns");
                expect_one_handshake(client, server);
            })
        })
        .collect();
    assert_eq!(made.len(), 2, "{made:?}");
    let unmade = clients.iter().find(|client| made.iter().all(|server| server.get("id") != client.get("id")));
    let unmade = unmade.expect("one of three is nobody's");
    if has_probes() {
        let lost = watch.wait_for("the dropped ACK", |record| {
            record.is("server", to.port()) && record.text("outcome") == Some("ack_dropped")
        });
        lost.expect_thread("hs-listen").expect_flags_are(&["syn_cookie", "ack_dropped"]).expect_none_of(&[
            "latency_ns",
            "rtt_ns",
            "phases.synack_ns",
            "phases.ack_ns",
            "phases.accept_ns",
            "retransmits.syn_ack",
            "retransmits.syn_seen",
        ]);
        assert_eq!(lost.get("isn.remote"), unmade.get("isn.local"), "{lost}\n{unmade}");
        // Under lockdown nobody may read whose segment it was.
        let remote = if is_locked_down() { None } else { unmade.get("local") };
        assert_eq!(lost.get("remote"), remote, "{lost}");
    }
    watch.end();
    drop((listener, deaf, sockets, accepted));
}

/// How often an accept queue of the thread's namespace had no room.
fn overflows() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").expect("it can be read");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    let value = both.find_map(|(name, value)| (name == "ListenOverflows").then(|| value.parse().ok()));
    value.flatten().expect("the kernel counts them")
}

/// The server's record of a client whose connection was accepted.
fn until_told(watch: &Watch, port: u16, client: &Record, accepted: &[TcpStream]) -> Option<Record> {
    let local = client.number("local.port");
    let is_its =
        |stream: &TcpStream| stream.peer_addr().is_ok_and(|peer| Some(u64::from(peer.port())) == local);
    accepted.iter().any(is_its).then(|| {
        watch.wait_for("the server's record", |record| {
            record.is("server", port) && record.number("remote.port") == local
        })
    })
}
