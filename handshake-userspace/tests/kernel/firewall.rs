//! Firewalls of either end, firewalls that forward, and firewalls that answer: whose handshake a dropped SYN is, and what its server tells.
//!
//! What a reader would get wrong: a router is a host too, with listeners of its own, often at the port that the SYN
//! which it forwards is for.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener, TcpStream},
};

use super::{
    drops::small_listener,
    environment::{has_drop_reasons, has_probes, in_vm, is_fit, is_locked_down, run, skip},
    netns::{CLIENT_V4, CLIENT_V6, Netns, Pair, SERVER_V4, SERVER_V6},
    plain::{dropped, expect_counts, given_up, timed_out},
    traffic::wait_for_no_request,
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS},
};

/// Drops every SYN in a chain; `None` where that can't be done.
fn firewall(test: &str, netns: &Netns, chain: &str) -> Option<()> {
    rule(test, netns, chain, "tcp flags & syn == syn drop")
}

/// One rule in a chain of that hook; `None` where that can't be done.
fn rule(test: &str, netns: &Netns, chain: &str, rule: &str) -> Option<()> {
    if !in_vm() {
        skip(test, "this kernel has no nf_tables");
        return None;
    }
    let nft = |rule: &str| run(&format!("ip netns exec {} nft {rule}", netns.name()));
    nft("add table inet hs");
    nft(&format!("add chain inet hs {chain} {{ type filter hook {chain} priority 0 ; }}"));
    nft(&format!("add rule inet hs {chain} {rule}"));
    Some(())
}

#[test]
fn a_syn_that_the_servers_firewall_drops_is_told_with_the_kernels_reason() {
    const NAME: &str = "a_syn_that_the_servers_firewall_drops_is_told_with_the_kernels_reason";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let Some(()) = firewall(NAME, &pair.server, "input") else { return };
    pair.client.set("ipv4/tcp_syn_retries", "1");
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("nothing is let in"));
    let client = watch.wait_for_end("client", to.port());
    let (whole, syns) = timed_out(&client, &pair.client, (CLIENT_V4, SERVER_V4, to.port()));
    whole.flags(&[]).nothing_else();
    if has_drop_reasons() {
        let server = watch.wait_for_end("server", to.port());
        dropped(&server, "syn_dropped", &pair.server, "drop_reason", syns)
            // Every mode has this hook.
            .seen_by(&["tracepoint"])
            .text("dropped.reason", "NETFILTER_DROP")
            .number("accept_queue.length", 0)
            .number("accept_queue.limit", 1)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .nothing_else();
        assert_eq!(server.get("isn.remote"), client.get("isn.local"), "{server}\n{client}");
        assert_eq!(server.get("remote"), client.get("local"), "{server}\n{client}");
    }
    let told = usize::from(has_drop_reasons());
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, told)]);
    drop(listener);
}

#[test]
fn a_syn_that_the_clients_own_firewall_drops_is_told_at_the_client() {
    const NAME: &str = "a_syn_that_the_clients_own_firewall_drops_is_told_at_the_client";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let Some(()) = firewall(NAME, &pair.client, "output") else { return };
    pair.client.set("ipv4/tcp_syn_retries", "1");
    let watch = Watch::begin();
    let to: SocketAddr = format!("{SERVER_V4}:95").parse().expect("an address");
    pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("nothing gets out"));
    let client = watch.wait_for_end("client", to.port());
    let (whole, syns) = given_up(&client, &pair.client, (CLIENT_V4, SERVER_V4, to.port()));
    let told = has_drop_reasons();
    whole
        .also(tells_failed_retransmissions(), |whole| whole.within("retransmits.waited_ns", 950..=3_500))
        .also(told, |whole| {
            whole
                .number("dropped.segments", syns)
                .text("dropped.cause", "drop_reason")
                .text("dropped.reason", "NETFILTER_DROP")
        })
        .flags(if told { &["syn_dropped"] } else { &[] })
        .nothing_else();
    // It never arrived.
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 0)]);
}

#[test]
fn a_syn_ack_that_the_clients_firewall_drops_is_no_syn_that_this_host_dropped() {
    const NAME: &str = "a_syn_ack_that_the_clients_firewall_drops_is_no_syn_that_this_host_dropped";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    // The rule takes every segment with SYN, which on its way in to a client is the SYN-ACK.
    let Some(()) = firewall(NAME, &pair.client, "input") else { return };
    pair.client.set("ipv4/tcp_syn_retries", "1");
    pair.server.set("ipv4/tcp_synack_retries", "1");
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("no answer gets in"));
    let client = watch.wait_for_end("client", to.port());
    let (whole, syns) = timed_out(&client, &pair.client, (CLIENT_V4, SERVER_V4, to.port()));
    whole.flags(&[]).nothing_else();
    if has_probes() {
        let server = watch.wait_for_end("server", to.port());
        let syn_acks = server.number("evidence.syn_acks").expect("SYN-ACKs are counted");
        server
            .whole("server", "timed_out", &pair.server)
            .evidence("syn_ack_timeout", None)
            .number("evidence.syn_acks", syn_acks)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .thread("hs-listen")
            .joined()
            .agreed_half_open(ETHERNET_MSS)
            .within("phases.synack_ns", 0..=500)
            .within("failed_after_ns", 2_900..=5_500)
            .number_in("retransmits.syn_ack", 1..=4)
            .number("retransmits.syn_seen", syns)
            .within("retransmits.waited_ns", 900..=3_500)
            .flags(&[])
            .nothing_else();
        assert_eq!(server.get("isn.remote"), client.get("isn.local"), "{server}\n{client}");
    } else {
        pair.server.on_thread("hs-wait", || wait_for_no_request(to.port()));
    }
    let told = usize::from(has_probes());
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, told)]);
    drop(listener);
}

/// Whether the kernel says when it tried to send a segment again, though nothing left: its tracepoint was behind the
/// sending at first. Of the kernels that we test only 7.2 does.
fn tells_failed_retransmissions() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    !["5.", "6."].iter().any(|old| release.starts_with(old))
}

/// A third namespace, behind the server's, which routes.
struct Behind {
    host: Netns,
}

const BEHIND_V4: &str = "198.51.100.2";

impl Behind {
    fn new(pair: &Pair) -> Self {
        let host = Netns::new("b");
        let router = &pair.server;
        run(&format!(
            "ip -n {} link add veth1 type veth peer name veth0 netns {}",
            router.name(),
            host.name()
        ));
        for (netns, link, address) in [(router, "veth1", "198.51.100.1"), (&host, "veth0", BEHIND_V4)] {
            netns.ip(&format!("address add {address}/24 dev {link}"));
            netns.ip(&format!("link set {link} up"));
        }
        host.ip("route add default via 198.51.100.1");
        pair.client.ip(&format!("route add 198.51.100.0/24 via {SERVER_V4}"));
        router.set("ipv4/ip_forward", "1");
        Behind { host }
    }
}

fn listener(netns: &Netns, port: u16) -> TcpListener {
    netns.on_thread("hs-listen", || TcpListener::bind(("0.0.0.0", port)).expect("the port is free"))
}

/// What the latest `health` record says of forwarded SYNs that were dropped; records come every ten seconds.
fn forwarded(watch: &Watch) -> u64 {
    let health = watch.wait_for("the account", |record| {
        record.text("kind") == Some("health")
            && record.number("kernel.drops_forwarded").is_some_and(|count| count > 0)
    });
    health.number("kernel.drops_forwarded").unwrap_or(0)
}

#[test]
fn a_forwarded_syn_that_the_router_drops_is_no_handshake_of_the_routers_listener() {
    const NAME: &str = "a_forwarded_syn_that_the_router_drops_is_no_handshake_of_the_routers_listener";
    if !is_fit(NAME) {
        return;
    }
    for (chain, verdict) in
        [("forward", "drop"), ("forward", "reject with tcp reset"), ("postrouting", "drop")]
    {
        let pair = Pair::new();
        let words = format!("tcp flags & (syn | ack) == syn {verdict}");
        let Some(()) = rule(NAME, &pair.server, chain, &words) else { return };
        let behind = Behind::new(&pair);
        pair.client.set("ipv4/tcp_syn_retries", "1");
        let watch = Watch::begin();
        let there = listener(&behind.host, 0);
        let port = there.local_addr().expect("it is bound").port();
        let here = listener(&pair.server, port);
        let to: SocketAddr = format!("{BEHIND_V4}:{port}").parse().expect("an address");
        pair.client
            .on_thread("hs-client", || TcpStream::connect(to).expect_err("the router lets nothing through"));
        let client = watch.wait_for_end("client", port);
        let ends = (CLIENT_V4, BEHIND_V4, port);
        if verdict == "drop" {
            timed_out(&client, &pair.client, ends).0.flags(&[]).nothing_else();
        } else {
            client
                .whole("client", "refused", &pair.client)
                .evidence("reset_received", Some("ECONNREFUSED"))
                .number("evidence.syns", 1)
                .ends(ends.0, ends.1, ends.2)
                .thread("hs-client")
                .present("isn.local")
                .within("failed_after_ns", AT_ONCE)
                .answered(AT_ONCE)
                .within("phases.local_ns", AT_ONCE)
                .flags(&[])
                .nothing_else();
        }
        if has_drop_reasons() {
            assert!(forwarded(&watch) > 0, "the router's drops are counted");
        }
        expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 0), (&behind.host, 0)]);
        drop((there, here));
    }
}

#[test]
fn a_syn_that_is_dropped_before_routing_is_told_where_somebody_listens_for_it() {
    const NAME: &str = "a_syn_that_is_dropped_before_routing_is_told_where_somebody_listens_for_it";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    let Some(()) = rule(NAME, &pair.server, "prerouting", "tcp flags & (syn | ack) == syn drop") else {
        return;
    };
    let behind = Behind::new(&pair);
    pair.client.set("ipv4/tcp_syn_retries", "1");
    let watch = Watch::begin();
    let there = listener(&behind.host, 0);
    let through: SocketAddr = format!("{BEHIND_V4}:{}", there.local_addr().expect("it is bound").port())
        .parse()
        .expect("an address");
    let (here, to) = small_listener(&pair.server);
    let clients = [(through, BEHIND_V4), (to, SERVER_V4)].map(|(to, address)| {
        pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("nothing is let in"));
        let client = watch.wait_for("the client's record", |record| {
            record.is("client", to.port()) && record.text("remote.address") == Some(address)
        });
        let (whole, syns) = timed_out(&client, &pair.client, (CLIENT_V4, address, to.port()));
        whole.flags(&[]).nothing_else();
        (client, syns)
    });
    if has_drop_reasons() {
        let (client, syns) = &clients[1];
        let server = watch.wait_in(&pair.server, "server", to.port());
        dropped(&server, "syn_dropped", &pair.server, "drop_reason", *syns)
            .seen_by(&["tracepoint"])
            .text("dropped.reason", "NETFILTER_DROP")
            .number("accept_queue.length", 0)
            .number("accept_queue.limit", 1)
            .ends(SERVER_V4, CLIENT_V4, to.port())
            .nothing_else();
        assert_eq!(server.get("isn.remote"), client.get("isn.local"), "{server}\n{client}");
        assert_eq!(server.get("remote"), client.get("local"), "{server}\n{client}");
    }
    // Of the other one nobody here can say that it was not to be forwarded.
    let told = usize::from(has_drop_reasons());
    expect_counts(&watch.end(), &[(&pair.client, 2), (&pair.server, told), (&behind.host, 0)]);
    drop((there, here));
}

#[test]
fn a_syn_that_the_servers_firewall_answers_is_refused_at_both_ends_and_told_once() {
    const NAME: &str = "a_syn_that_the_servers_firewall_answers_is_refused_at_both_ends_and_told_once";
    if !is_fit(NAME) {
        return;
    }
    let answers = [
        ("reject with tcp reset", SERVER_V4, "reset_sent", ErrorKind::ConnectionRefused),
        ("reject with tcp reset", SERVER_V6, "reset_sent", ErrorKind::ConnectionRefused),
        ("reject with icmp type host-prohibited", SERVER_V4, "icmp_sent", ErrorKind::HostUnreachable),
        ("reject with icmpx type port-unreachable", SERVER_V6, "icmp_sent", ErrorKind::ConnectionRefused),
    ];
    for (verdict, address, evidence, error) in answers {
        let pair = Pair::new();
        let words = format!("tcp flags & (syn | ack) == syn {verdict}");
        let Some(()) = rule(NAME, &pair.server, "input", &words) else { return };
        let watch = Watch::begin();
        let server =
            pair.server.on_thread("hs-listen", || TcpListener::bind("[::]:0").expect("a port is free"));
        let port = server.local_addr().expect("it is bound").port();
        let to = SocketAddr::new(address.parse().expect("an address"), port);
        let refused =
            pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("it is refused"));
        assert_eq!(refused.kind(), error, "{verdict} to {to}: {refused}");
        let client = watch.wait_for_end("client", port);
        let own = if address == SERVER_V4 { CLIENT_V4 } else { CLIENT_V6 };
        let is_reset = evidence == "reset_sent";
        let syns = client.number("evidence.syns").expect("SYNs are counted");
        // A RST is an answer to the first SYN. An ICMP that comes while connect() still sends ends nothing: over veth
        // it does, and only the one to the SYN that is sent again does.
        assert!(if is_reset { syns == 1 } else { (1..=2).contains(&syns) }, "{client}");
        let took = if syns == 1 { AT_ONCE } else { 900..=1_700 };
        let (outcome, errno) = match error {
            ErrorKind::HostUnreachable => ("host_unreachable", "EHOSTUNREACH"),
            _ => ("refused", "ECONNREFUSED"),
        };
        client
            .whole("client", outcome, &pair.client)
            .evidence(if is_reset { "reset_received" } else { "socket_error" }, Some(errno))
            .number("evidence.syns", syns)
            .ends(own, address, port)
            .thread("hs-client")
            .present("isn.local")
            .within("phases.local_ns", AT_ONCE)
            .within("failed_after_ns", took.clone())
            .also(is_reset, |whole| {
                whole.within("phases.wire_ns", took.clone()).within("rtt_ns", took.clone())
            })
            .syns(syns - 1)
            .also(syns > 1, |whole| whole.within("retransmits.waited_ns", took.clone()))
            .flags(&[])
            .nothing_else();
        // Who answers is not seen without a probe, which leaves a drop with a reason; under lockdown no header is read.
        let told = if has_probes() { !is_locked_down() } else { has_drop_reasons() };
        if told {
            let server = watch.wait_for_end("server", port);
            let whole = if has_probes() {
                dropped(&server, "refused", &pair.server, evidence, syns)
            } else {
                dropped(&server, "syn_dropped", &pair.server, "drop_reason", syns)
                    .seen_by(&["tracepoint"])
                    .text("dropped.reason", "NETFILTER_DROP")
            };
            whole
                .number("accept_queue.length", 0)
                // What std asks for, or less where net.core.somaxconn says so.
                .number_in("accept_queue.limit", 1..=4_096)
                .ends(address, own, port)
                .nothing_else();
            assert_eq!(server.get("remote"), client.get("local"), "{server}\n{client}");
            assert_eq!(server.get("isn.remote"), client.get("isn.local"), "{server}\n{client}");
        }
        expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, usize::from(told))]);
        drop(server);
    }
}
