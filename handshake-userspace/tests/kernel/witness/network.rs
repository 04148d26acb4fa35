//! A client's host and a server's, and between them a network that delays, reorders and loses segments.
//!
//! In a guest that network is a third namespace, which forwards and whose links have netem. Where the kernel has
//! no netem it is a thread of ours (`wire.rs`). What a reader would get wrong: the delay is between the two hosts
//! and not on a link of theirs, for tcpdump sees what leaves a host behind its qdisc, after the delay.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
};

use super::{
    super::{
        environment::{in_vm, run},
        netns::Netns,
        traffic::until,
    },
    wire::Wire,
};

/// Addresses of one version of IP.
pub struct Addresses {
    pub client: IpAddr,
    pub server: IpAddr,
    /// What is sent there is lost.
    pub nobody: IpAddr,
}

pub const V4: Addresses = Addresses {
    client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    server: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    nobody: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
};
pub const V6: Addresses = Addresses {
    client: IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1)),
    server: IpAddr::V6(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1)),
    nobody: IpAddr::V6(Ipv6Addr::new(0xfd00, 3, 0, 0, 0, 0, 0, 1)),
};
/// The one link of either host.
pub const LINK: &str = "wire0";

/// Two hosts and what joins them.
pub struct Network {
    pub client: Netns,
    pub server: Netns,
    _middle: Middle,
}

/// Kept for as long as the hosts are.
enum Middle {
    Router { _forwards: Netns },
    Wire { _carries: Wire },
}

impl Network {
    /// Joined, and bad.
    pub fn new() -> Self {
        let (client, server) = (Netns::new("c"), Netns::new("s"));
        let middle = if in_vm() {
            Middle::Router { _forwards: router(&client, &server) }
        } else {
            Middle::Wire { _carries: Wire::between(&client, &server) }
        };
        for (netns, addresses) in [(&client, [V4.client, V6.client]), (&server, [V4.server, V6.server])] {
            for address in addresses {
                netns.ip(&format!("address add {} dev {LINK}{}", with_prefix(address), nodad(address)));
            }
            netns.ip(&format!("link set {LINK} up"));
            for address in addresses {
                let version = version_of(address);
                let way = match middle {
                    Middle::Router { .. } => format!("via {} dev {LINK} onlink", router_of(address)),
                    Middle::Wire { .. } => format!("dev {LINK}"),
                };
                netns.ip(&format!("{version} route add default {way}"));
            }
        }
        // Until the link is known to be up an IPv6 address is there and cannot be used.
        for (netns, from, to) in [(&client, V6.client, V6.server), (&server, V6.server, V6.client)] {
            let can_use = || UdpSocket::bind((from, 0)).is_ok_and(|socket| socket.connect((to, 9)).is_ok());
            until("the IPv6 address can be used", || netns.on_thread("hs-look", can_use));
        }
        // A lost SYN, or its answer, is waited for once and a lost SYN-ACK twice: a few seconds each.
        client.set("ipv4/tcp_syn_retries", "1");
        server.set("ipv4/tcp_synack_retries", "2");
        Network { client, server, _middle: middle }
    }

    /// Whether no socket is in SYN-SENT and no request is half open.
    pub fn has_none_half_open(&self) -> bool {
        let none_in = |netns: &Netns, state: &str| {
            netns.on_thread("hs-look", || {
                ["tcp", "tcp6"].iter().all(|table| {
                    fs::read_to_string(format!("/proc/thread-self/net/{table}"))
                        .expect("sockets are listed")
                        .lines()
                        .all(|line| line.split_whitespace().nth(3) != Some(state))
                })
            })
        };
        none_in(&self.client, "02") && none_in(&self.server, "03")
    }
}

/// The router's address on the network of a host.
fn router_of(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(host) => Ipv4Addr::from_bits(host.to_bits() & !0xff | 0xfe).into(),
        IpAddr::V6(host) => Ipv6Addr::from_bits(host.to_bits() & !0xff | 0xfe).into(),
    }
}

fn with_prefix(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv6() { 64 } else { 24 })
}

/// Nobody else has these, so nothing is to be sent to find that out.
fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

/// The switch of `ip` that its routes need.
fn version_of(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "-6" } else { "-4" }
}

/// A namespace that forwards between them with netem on both links.
fn router(client: &Netns, server: &Netns) -> Netns {
    let router = Netns::new("r");
    for (netns, hosts, link, number) in
        [(client, [V4.client, V6.client], "client0", 1), (server, [V4.server, V6.server], "server0", 2)]
    {
        let address = |last: u8| format!("02:00:00:00:{number:02x}:{last:02x}");
        run(&format!(
            "ip -n {} link add {LINK} address {} type veth peer name {link} address {} netns {}",
            netns.name(),
            address(1),
            address(2),
            router.name()
        ));
        for host in hosts {
            let own = router_of(host);
            router.ip(&format!("address add {} dev {link}{}", with_prefix(own), nodad(own)));
        }
        router.ip(&format!("link set {link} up"));
        for host in hosts {
            let own = router_of(host);
            router.ip(&format!("neigh replace {host} lladdr {} dev {link} nud permanent", address(1)));
            netns.ip(&format!("neigh replace {own} lladdr {} dev {LINK} nud permanent", address(2)));
        }
        run(&format!(
            "tc -n {} qdisc replace dev {link} root netem delay 8ms 7ms loss 1.5% limit 100000",
            router.name()
        ));
    }
    router.ip(&format!("route add blackhole {}/32", V4.nobody));
    router.ip(&format!("-6 route add blackhole {}/128", V6.nobody));
    router.set("ipv4/ip_forward", "1");
    router.set("ipv6/conf/all/forwarding", "1");
    router
}
