//! A server that is another process than the client: this binary, run again as one "test".
//!
//! What a reader would get wrong: `peer_process` is no test. Without its environment variable it returns at
//! once; with it, it is the server of a scenario in the parent, and takes its orders on stdin.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    process::{Child, ChildStdin, Command, Stdio},
};

use super::netns::Netns;

const ORDER: &str = "HANDSHAKE_TEST_PEER";
const NETNS: &str = "HANDSHAKE_TEST_PEER_NETNS";

/// A listening process.
pub struct Server {
    child: Child,
    orders: ChildStdin,
    /// Where it listens.
    pub port: u16,
}

impl Server {
    /// Listens on an address in a namespace; accepts when told to.
    pub fn start(netns: &Netns, listen: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary has a path"))
            .args(["--exact", "peer::peer_process", "--nocapture"])
            .env(ORDER, listen)
            .env(NETNS, netns.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary can be run again");
        let orders = child.stdin.take().expect("stdin is piped");
        let mut answers = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let port = answers
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("@listening ")?.1.trim().parse().ok())
            .expect("the peer says where it listens");
        // What else it says is of no interest, but its pipe must not fill.
        std::thread::spawn(move || answers.for_each(drop));
        Server { child, orders, port }
    }

    /// Its process id.
    pub fn pid(&self) -> u64 {
        u64::from(self.child.id())
    }

    /// Accepts one connection and holds it.
    pub fn accept(&mut self) {
        writeln!(self.orders, "accept").expect("the peer listens to orders");
    }

    /// Ends it as nobody can prevent.
    pub fn kill(&mut self) {
        self.child.kill().expect("the peer runs");
    }

    /// Closes the listener.
    pub fn close(&mut self) {
        writeln!(self.orders, "close").expect("the peer listens to orders");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn peer_process() {
    let Ok(address) = std::env::var(ORDER) else { return };
    let name = std::env::var(NETNS).expect("the parent says which namespace");
    let file = std::fs::File::open(format!("/run/netns/{name}")).expect("the namespace exists");
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&file),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .expect("the namespace can be entered");
    std::fs::write("/proc/thread-self/comm", "hs-server").expect("a thread can be named");
    let address: SocketAddr = address.parse().expect("the parent gives an address");
    let mut listener = Some(TcpListener::bind(address).expect("the address is free"));
    let port = listener.as_ref().expect("it listens").local_addr().expect("it has an address").port();
    println!("@listening {port}");
    let mut held = Vec::new();
    for order in std::io::stdin().lines().map_while(Result::ok) {
        match (order.as_str(), &listener) {
            ("accept", Some(listener)) => held.push(listener.accept().expect("a connection comes")),
            _ => listener = None,
        }
    }
}
