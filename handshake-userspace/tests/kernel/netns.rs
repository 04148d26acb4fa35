//! Two network namespaces of a scenario's own, joined by a veth pair: a client's host and a server's.
//!
//! Neighbours are entered by hand, so that no address resolution delays a first segment, and loss is made by
//! entering a wrong one: segments leave and nobody takes them. What a reader would get wrong: a thread that
//! entered a namespace stays in it, so work runs on a thread that ends with it.

use std::{
    fs::File,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{environment::run, traffic::until};

static COUNT: AtomicU32 = AtomicU32::new(0);

pub const CLIENT_V4: &str = "192.0.2.1";
pub const SERVER_V4: &str = "192.0.2.2";
pub const SERVER_V6: &str = "fd00:99::2";
pub const CLIENT_V6: &str = "fd00:99::1";
const CLIENT_LINK: &str = "02:00:00:00:99:01";
const SERVER_LINK: &str = "02:00:00:00:99:02";
const NOBODY_LINK: &str = "02:00:00:00:99:ff";

/// One namespace.
pub struct Netns {
    /// Empty when its name was taken away again.
    name: String,
    /// Keeps it, with or without a name.
    file: File,
}

impl Netns {
    /// A new one with its loopback up.
    pub fn new(role: &str) -> Self {
        let name = format!("hs{}-{}{role}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name}"));
        let file = File::open(format!("/run/netns/{name}")).expect("the namespace can be opened");
        let netns = Netns { name, file };
        netns.ip("link set lo up");
        netns
    }

    /// A new one that ends with this process, however that ends: nobody else finds it.
    pub fn without_name(role: &str) -> Self {
        Netns::new(role).lose_name()
    }

    /// Deletes it: from now on what is open in it keeps it, and who holds this knows which it was.
    pub fn lose_name(mut self) -> Self {
        run(&format!("ip netns del {}", std::mem::take(&mut self.name)));
        self
    }

    fn link_is_up(&self) -> bool {
        let shown = Command::new("ip").args(["-n", &self.name, "link", "show", "veth0"]).output();
        let text = String::from_utf8(shown.expect("ip can be run").stdout).expect("it prints text");
        text.contains(" state UP ") && !text.contains(" qdisc noop ")
    }

    /// The inode number that records name it by.
    pub fn inode(&self) -> u64 {
        self.file.metadata().expect("the namespace is open").ino()
    }

    /// Runs `ip` in it.
    pub fn ip(&self, arguments: &str) {
        run(&format!("ip -n {} {arguments}", self.name));
    }

    /// Sets a value under /proc/sys/net of it.
    pub fn set(&self, path: &str, value: &str) {
        self.on_thread("hs-sysctl", || {
            std::fs::write(format!("/proc/sys/net/{path}"), value)
                .unwrap_or_else(|error| panic!("{path}: {error}"));
        });
    }

    /// Runs work on a thread of this name inside the namespace, and waits for it.
    pub fn on_thread<R: Send>(&self, thread: &str, work: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            let handle = std::thread::Builder::new()
                .name(thread.to_owned())
                .spawn_scoped(scope, || {
                    self.enter();
                    work()
                })
                .expect("a thread can be started");
            handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into it, for good.
    pub fn enter(&self) {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("the namespace can be entered");
    }

    /// Its name, for `--netns` and for child processes.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.name.is_empty() {
            return;
        }
        // A panic in a test must not become an abort; what is left behind has this process's id in its name.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A client's namespace and a server's, joined.
pub struct Pair {
    pub client: Netns,
    pub server: Netns,
}

impl Pair {
    /// Joined, with addresses of both families and permanent neighbours.
    pub fn new() -> Self {
        let pair = Pair { client: Netns::new("c"), server: Netns::new("s") };
        run(&format!(
            "ip -n {} link add veth0 address {CLIENT_LINK} type veth peer name veth0 address {SERVER_LINK} netns {}",
            pair.client.name, pair.server.name
        ));
        for (netns, v4, v6) in [(&pair.client, CLIENT_V4, CLIENT_V6), (&pair.server, SERVER_V4, SERVER_V6)] {
            netns.ip(&format!("address add {v4}/24 dev veth0"));
            netns.ip(&format!("address add {v6}/64 dev veth0 nodad"));
            netns.ip("link set veth0 up");
        }
        pair.client_reaches_server(true);
        pair.server_reaches_client(true);
        for netns in [&pair.client, &pair.server] {
            // On a busy machine the link carries nothing yet when the command returns, and drops what is sent.
            until("the link is up", || netns.link_is_up());
        }
        pair
    }

    /// Whether what the client sends arrives.
    pub fn client_reaches_server(&self, arrives: bool) {
        let link = if arrives { SERVER_LINK } else { NOBODY_LINK };
        for address in [SERVER_V4, SERVER_V6] {
            self.client.ip(&format!("neigh replace {address} lladdr {link} dev veth0 nud permanent"));
        }
    }

    /// Whether what the server sends arrives.
    pub fn server_reaches_client(&self, arrives: bool) {
        let link = if arrives { CLIENT_LINK } else { NOBODY_LINK };
        for address in [CLIENT_V4, CLIENT_V6] {
            self.server.ip(&format!("neigh replace {address} lladdr {link} dev veth0 nud permanent"));
        }
    }

    /// What the client sends to this address of their network leaves and is never answered.
    pub fn nobody_has(&self, address: &str) {
        self.client.ip(&format!("neigh replace {address} lladdr {NOBODY_LINK} dev veth0 nud permanent"));
    }

    /// Delays every segment, each way.
    pub fn delay_each_way(&self, milliseconds: u32) {
        for netns in [&self.client, &self.server] {
            run(&format!(
                "tc -n {} qdisc replace dev veth0 root netem delay {milliseconds}ms limit 10000",
                netns.name
            ));
        }
    }
}
