//! A client's host and a server's, and between them a network that delays, reorders and loses segments.
//!
//! In a guest that network is a third namespace, which forwards and whose links have netem. Where the kernel has
//! no netem it is a thread of ours (`wire.rs`). What a reader would get wrong: the delay is between the two hosts
//! and not on a link of theirs, for tcpdump sees what leaves a host behind its qdisc, after the delay.

use std::{fs, net::Ipv4Addr};

use super::{
    super::{
        environment::{in_vm, run},
        netns::Netns,
    },
    wire::Wire,
};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// What is sent there is lost.
pub const NOBODY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
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
        for (netns, address) in [(&client, CLIENT), (&server, SERVER)] {
            netns.ip(&format!("address add {address}/24 dev {LINK}"));
            netns.ip(&format!("link set {LINK} up"));
            let router = router_of(address);
            match middle {
                Middle::Router { .. } => netns.ip(&format!("route add default via {router}")),
                Middle::Wire { .. } => netns.ip(&format!("route add default dev {LINK}")),
            }
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
                fs::read_to_string("/proc/thread-self/net/tcp")
                    .expect("sockets are listed")
                    .lines()
                    .all(|line| line.split_whitespace().nth(3) != Some(state))
            })
        };
        none_in(&self.client, "02") && none_in(&self.server, "03")
    }
}

/// The router's address on the network of a host.
fn router_of(host: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(host.to_bits() & !0xff | 0xfe)
}

/// A namespace that forwards between them with netem on both links.
fn router(client: &Netns, server: &Netns) -> Netns {
    let router = Netns::new("r");
    for (netns, host, link) in [(client, CLIENT, "client0"), (server, SERVER, "server0")] {
        let [.., third, _] = host.octets();
        let address = |last: u8| format!("02:00:00:00:{third:02x}:{last:02x}");
        run(&format!(
            "ip -n {} link add {LINK} address {} type veth peer name {link} address {} netns {}",
            netns.name(),
            address(1),
            address(2),
            router.name()
        ));
        let own = router_of(host);
        router.ip(&format!("address add {own}/24 dev {link}"));
        router.ip(&format!("link set {link} up"));
        router.ip(&format!("neigh replace {host} lladdr {} dev {link} nud permanent", address(1)));
        netns.ip(&format!("neigh replace {own} lladdr {} dev {LINK} nud permanent", address(2)));
        run(&format!(
            "tc -n {} qdisc replace dev {link} root netem delay 8ms 7ms loss 1.5% limit 100000",
            router.name()
        ));
    }
    router.ip(&format!("route add blackhole {NOBODY}/32"));
    router.set("ipv4/ip_forward", "1");
    router
}
