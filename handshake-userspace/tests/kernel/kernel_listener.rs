//! A listener of the kernel's own: nobody called listen() or accept(), and a worker takes the connections.
//!
//! RDS over TCP is one that comes with its module alone. What a reader would get wrong: the module makes every network
//! namespace listen, those too that were there before; so it is loaded for this test and goes with it.

use std::net::TcpStream;

use super::{
    environment::{has_probes, is_fit, run, skip},
    netns::Netns,
    plain::{expect_client, expect_counts, server_of},
    traffic::until,
    watch::Watch,
    whole::{AT_ONCE, expect_one_handshake},
};

const RDS_TCP_PORT: u16 = 16_385;

/// Modules that are loaded as long as this lives.
struct Loaded(Vec<String>);

impl Loaded {
    /// Those that the guest keeps for later, in order; none on a machine.
    fn all() -> Self {
        let list = std::fs::read_to_string("/modules/later").unwrap_or_default();
        let mut loaded = Loaded(vec![]);
        for module in list.lines() {
            run(&format!("insmod /modules/{module}.ko"));
            loaded.0.push(module.to_owned());
        }
        loaded
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        for module in self.0.iter().rev() {
            let tried = std::process::Command::new("rmmod").arg(module).status();
            assert!(tried.is_ok_and(|status| status.success()) || std::thread::panicking(), "rmmod {module}");
        }
    }
}

#[test]
fn a_connection_that_the_kernel_accepts_for_itself_is_its_workers() {
    const NAME: &str = "a_connection_that_the_kernel_accepts_for_itself_is_its_workers";
    if !is_fit(NAME) {
        return;
    }
    let netns = Netns::new("k");
    let watch = Watch::begin();
    let loaded = Loaded::all();
    if loaded.0.is_empty() {
        skip(NAME, "this machine has no module rds_tcp, whose listener is the kernel's own");
        watch.end();
        return;
    }
    let stream = netns.on_thread("hs-client", || {
        TcpStream::connect(("127.0.0.1", RDS_TCP_PORT)).expect("the kernel listens")
    });
    let ends = ("127.0.0.1", "127.0.0.1", RDS_TCP_PORT);
    let client = watch.wait_for_end("client", RDS_TCP_PORT);
    // It is of use to RDS alone if it comes from the lower address, so RDS resets it.
    drop(stream);
    until("the kernel has closed its end", || {
        netns.on_thread("hs-look", || {
            let text = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("it can be read");
            !text.lines().any(|line| line.contains(":4001 ") && line.contains(" 01 "))
        })
    });
    let server = watch.wait_for_end("server", RDS_TCP_PORT);
    expect_client(&client, &netns, ends, "hs-client");
    expect_one_handshake(&client, &server);
    // RDS listens over IPv6.
    let whole = server_of(&server, "established", &netns, ends).queued(1..=1, 1..=4_096);
    if has_probes() {
        let worker = server.text("process.comm").expect("a worker accepted");
        assert!(worker.starts_with("kworker/"), "{server}");
        whole
            .process(server.number("process.pid").expect("a worker is a process"), worker)
            .within("phases.accept_ns", AT_ONCE)
            .flags(&["v4_mapped"])
            .nothing_else();
    } else {
        whole.flags(&["v4_mapped"]).nothing_else();
    }
    drop(loaded);
    expect_counts(&watch.end(), &[(&netns, 2)]);
}
