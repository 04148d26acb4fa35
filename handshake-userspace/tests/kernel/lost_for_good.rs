//! Segments that never arrive, however often they are sent; and a backlog so small that cookies take over.
//!
//! What a reader would get wrong: when the final ACK is lost for good the two ends disagree for ever. The client
//! is connected and the server has timed out, and both records are right.

use std::net::{SocketAddr, TcpStream};

use rustix::io::Errno;
use socket2::SockRef;

use super::{
    drops::at_listener,
    environment::{can_delay, has_probes, in_vm, is_fit, is_locked_down, run},
    netns::{CLIENT_V4, Pair, SERVER_V4},
    record::{Record, all_of},
    traffic::{
        ESTABLISHED, SYN_SENT, accept_in, connect_without_waiting, finish, listen_in, tcp_socket, until,
        wait_for_request, wait_for_state,
    },
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, Whole, expect_one_agreement, expect_one_handshake},
};

/// The whole record of a request that timed out half open, but for how often its segments came and went.
#[track_caller]
fn timed_out<'a>(server: &'a Record, pair: &Pair, port: u16) -> Whole<'a> {
    server
        .whole("server", "timed_out", &pair.server)
        .evidence("syn_ack_timeout", None)
        .ends(SERVER_V4, CLIENT_V4, port)
        .thread("hs-listen")
        .joined()
        .agreed_half_open(ETHERNET_MSS)
        .within("phases.synack_ns", 0..=500)
        .within("failed_after_ns", 2_900..=5_000)
        .flags(&[])
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
    let (listener, to) = listen_in(&pair.server, 8);
    pair.server_reaches_client(false);
    pair.client.on_thread("hs-client", || {
        let error = TcpStream::connect(to).expect_err("no answer arrives");
        assert_eq!(error.raw_os_error(), Some(Errno::TIMEDOUT.raw_os_error()));
    });
    let client = watch.wait_for_end("client", to.port());
    let again = client.number("retransmits.syn").expect("SYNs are counted");
    assert!((1..=2).contains(&again), "tcp_syn_retries=1 means two from 6.5 on: {client}");
    client
        .whole("client", "timed_out", &pair.client)
        .evidence("retransmit_timeout", Some("ETIMEDOUT"))
        .number("evidence.syns", again + 1)
        .ends(CLIENT_V4, SERVER_V4, to.port())
        .thread("hs-client")
        .present("isn.local")
        .within("phases.local_ns", AT_ONCE)
        .within("failed_after_ns", 2_900..=5_000)
        .syns(again)
        .within("retransmits.waited_ns", 950..=3_500)
        .flags(&[])
        .nothing_else();
    if has_probes() {
        let server = watch.wait_for_end("server", to.port());
        let syn_acks = server.number("evidence.syn_acks").expect("SYN-ACKs are counted");
        assert!(syn_acks >= 2, "it was sent again: {server}");
        timed_out(&server, &pair, to.port())
            .number("evidence.syn_acks", syn_acks)
            .number("retransmits.syn_ack", syn_acks - 1)
            .number("retransmits.syn_seen", again + 1)
            .within("retransmits.waited_ns", 900..=3_500)
            .nothing_else();
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
    let (listener, to) = listen_in(&pair.server, 8);
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
    let client = watch.wait_for_end("client", to.port());
    let took = if by_firewall { 0..=300 } else { 900..=1_700 };
    let again = client.number("retransmits.syn");
    client
        .whole("client", "established", &pair.client)
        .ends(CLIENT_V4, SERVER_V4, to.port())
        .thread("hs-client")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("latency_ns", took.clone())
        .within("phases.wire_ns", took.clone())
        .within("phases.local_ns", AT_ONCE)
        .also(by_firewall, |whole| whole.within("phases.wake_ns", AT_ONCE))
        // Where the first SYN-ACK was lost, the client may have sent its SYN again before the second one came.
        .number_in("retransmits.syn", 0..=u64::from(!by_firewall))
        .also(again == Some(0), |whole| whole.number("retransmits.waited_ns", 0).within("rtt_ns", took))
        .also(again == Some(1), |whole| whole.within("retransmits.waited_ns", 900..=1_500))
        .flags(if by_firewall { &[] } else { &["non_blocking"] })
        .nothing_else();
    if has_probes() {
        let server = watch.wait_for_end("server", to.port());
        // In a namespace with a firewall every ACK that it drops is told apart from the handshake, if at all.
        timed_out(&server, &pair, to.port())
            .number("evidence.syn_acks", 2)
            .number("retransmits.syn_ack", 1)
            .number("retransmits.syn_seen", 1)
            .within("retransmits.waited_ns", 900..=1_500)
            .nothing_else();
        expect_one_agreement(&client, &server);
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
    let (listener, to) = listen_in(&pair.server, 1);
    let deaf = fill_syn_queue(&pair, to);
    for _ in 0..3 {
        let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("a cookie answers"));
        let accepted = accept_in(&pair.server, &listener);
        let port = local_port(&stream);
        let client = watch.wait_for("the client's record", |record| {
            record.is("client", to.port()) && record.number("local.port") == Some(port)
        });
        client
            .whole("client", "established", &pair.client)
            .ends(CLIENT_V4, SERVER_V4, to.port())
            .thread("hs-client")
            .joined()
            .agreed(ETHERNET_MSS)
            .within("latency_ns", AT_ONCE)
            .answered(AT_ONCE)
            .called_and_returned()
            .flags(&[])
            .nothing_else();
        let server = watch.wait_for("the server's record", |record| {
            record.is("server", to.port()) && record.number("remote.port") == Some(port)
        });
        // Nothing was kept of the SYN, so nothing is known of it: no time, no count.
        server
            .whole("server", "established", &pair.server)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .thread("hs-server")
            .joined()
            .agreed(ETHERNET_MSS)
            .within("phases.accept_ns", AT_ONCE)
            .queued(1..=1, 1..=1)
            .flags(if has_probes() { &["syn_cookie"] } else { &[] })
            .nothing_else();
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
    let (listener, to) = listen_in(&pair.server, 1);
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
            .whole("client", "established", &pair.client)
            .ends(CLIENT_V4, SERVER_V4, to.port())
            .thread("hs-client")
            .joined()
            .agreed(ETHERNET_MSS)
            .within("latency_ns", 290..=900)
            .answered(290..=900)
            .within("phases.local_ns", AT_ONCE)
            .flags(&["non_blocking"])
            .nothing_else();
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
                    .whole("server", "established", &pair.server)
                    .ends(SERVER_V4, CLIENT_V4, to.port())
                    .thread("hs-server")
                    .joined()
                    .agreed(ETHERNET_MSS)
                    .within("phases.accept_ns", AT_ONCE)
                    .queued(1..=2, 1..=1)
                    .flags(if has_probes() { &["syn_cookie"] } else { &[] })
                    .nothing_else();
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
        lost.whole("server", "ack_dropped", &pair.server)
            .evidence("accept_queue_full", None)
            .text("dropped.cause", "accept_queue_full")
            .number("dropped.segments", 1)
            .thread("hs-listen")
            .also(is_locked_down(), |whole| at_listener(whole, to.port()))
            .also(!is_locked_down(), |whole| whole.ends(SERVER_V4, CLIENT_V4, to.port()))
            .present("isn.remote")
            .number("accept_queue.length", 2)
            .number("accept_queue.limit", 1)
            .flags(&["syn_cookie", "ack_dropped"])
            .nothing_else();
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
