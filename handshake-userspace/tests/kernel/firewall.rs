//! Firewalls that forward, and firewalls that answer: whose handshake a dropped SYN is, and what its server tells.
//!
//! What a reader would get wrong: a router is a host too, with listeners of its own, often at the port that the SYN
//! which it forwards is for.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener, TcpStream},
};

use super::{
    drops::{rule, small_listener},
    environment::{has_drop_reasons, has_probes, is_fit, is_locked_down, run},
    netns::{Netns, Pair, SERVER_V4, SERVER_V6},
    watch::Watch,
};

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
        let outcome = if verdict == "drop" { "timed_out" } else { "refused" };
        watch.wait_for_end("client", port).expect_text("outcome", outcome).expect_absent("dropped");
        if has_drop_reasons() {
            assert!(forwarded(&watch) > 0, "the router's drops are counted");
        }
        let records = watch.end();
        assert!(!records.iter().any(|record| record.is("server", port)), "{chain} {verdict}: {records:?}");
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
    for to in [through, to] {
        pair.client.on_thread("hs-client", || TcpStream::connect(to).expect_err("nothing is let in"));
        watch.wait_for_end("client", to.port()).expect_text("outcome", "timed_out");
    }
    if has_drop_reasons() {
        watch
            .wait_for_end("server", to.port())
            .expect_text("outcome", "syn_dropped")
            .expect_text("dropped.reason", "NETFILTER_DROP")
            .expect_text("process.comm", "hs-listen")
            .expect_number("accept_queue.limit", 1)
            .expect_number("netns", pair.server.inode());
    }
    let records = watch.end();
    assert!(!records.iter().any(|record| record.is("server", through.port())), "nobody here: {records:?}");
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
        let outcome = if error == ErrorKind::HostUnreachable { "host_unreachable" } else { "refused" };
        client.expect_text("outcome", outcome).expect_absent("dropped");
        if has_probes() && !is_locked_down() {
            let server = watch.wait_for_end("server", port);
            server
                .expect_text("outcome", "refused")
                .expect_text("evidence.kind", evidence)
                .expect_text("dropped.cause", evidence)
                .expect_number("dropped.segments", client.number("evidence.syns").expect("SYNs are counted"))
                .expect_number("netns", pair.server.inode())
                .expect_text("process.comm", "hs-listen")
                .expect_absent("latency_ns");
            assert_eq!(server.get("remote"), client.get("local"), "{server}\n{client}");
            assert_eq!(server.get("isn.remote"), client.get("isn.local"), "{server}\n{client}");
        }
        let records = watch.end();
        let servers = records.iter().filter(|record| record.is("server", port)).count();
        assert_eq!(servers, usize::from(has_probes() && !is_locked_down()), "{verdict} to {to}: {records:?}");
        let clients = records.iter().filter(|record| record.is("client", port)).count();
        assert_eq!(clients, 1, "{verdict} to {to}: {records:?}");
    }
}
