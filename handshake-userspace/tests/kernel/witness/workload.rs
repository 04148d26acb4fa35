//! What is done over the network: thousands of connections that go well, and badly, in every way we claim to tell.
//!
//! The choices are seeded; what the network does to them is not. What a reader would get wrong: nobody here
//! knows how a connection ended, and nobody has to. Whether a SYN was lost is what the capture says.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    super::traffic::{connect_without_waiting, reset, until},
    network::{Addresses, Network, V4, V6},
};

/// Accepted and closed at once.
const ORDINARY: u16 = 8001;
/// Accepted when it pleases.
const LATE: u16 = 8002;
/// Accepted and closed by a RST.
const RESETTING: u16 = 8003;
/// Nobody listens.
const REFUSING: u16 = 8009;
/// Where the mark is sent.
pub const END_PORT: u16 = 8010;
/// The mark: the last that is captured.
pub const END: &[u8] = b"the witness may go now";

const CLIENTS: u32 = 24;
const EACH: u32 = 92;

/// Random numbers that are the same in every run (SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// One below a limit.
    pub fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        u32::try_from(mixed >> 32).map_or(0, |high| high % limit)
    }
}

/// Does it all, and waits until it is done.
pub fn run(network: &Network) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let done = &done;
        for (port, serve) in [(ORDINARY, drop as fn(_)), (LATE, drop), (RESETTING, reset)] {
            for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)] {
                let listener = network.server.on_thread("hs-listen", || listener(SocketAddr::new(any, port)));
                scope.spawn(move || accept_until(done, &listener, port == LATE, serve));
            }
        }
        let clients: Vec<_> = (0..CLIENTS)
            .map(|seed| {
                scope.spawn(move || {
                    network.client.enter();
                    let mut random = Random(seed.into());
                    (1..=EACH).for_each(|number| {
                        // Every fourth.
                        connect(&mut random, if number % 4 == 0 { &V6 } else { &V4 });
                    });
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        until("no handshake is open any more", || network.has_none_half_open());
        done.store(true, Ordering::Relaxed);
    });
}

/// One connection of some kind. Any of them may fail: a segment may be lost once too often.
fn connect(random: &mut Random, addresses: &Addresses) {
    let to = |port| SocketAddr::from((addresses.server, port));
    match random.below(100) {
        0..=54 => drop(TcpStream::connect(to(ORDINARY))),
        55..=66 => drop(TcpStream::connect(to(LATE))),
        67..=78 => drop(TcpStream::connect(to(RESETTING))),
        79..=86 => drop(TcpStream::connect(to(ORDINARY)).map(reset)),
        87..=95 => drop(TcpStream::connect(to(REFUSING))),
        96..=98 => {
            let socket = connect_without_waiting(to(ORDINARY));
            // How long a client waits before it gives up is the case.
            thread::sleep(Duration::from_micros(random.below(30_000).into()));
            drop(socket);
        }
        _ => drop(TcpStream::connect((addresses.nobody, ORDINARY))),
    }
}

/// With room for all: what a full queue drops is another test's case.
fn listener(at: SocketAddr) -> TcpListener {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP));
    let socket = socket.expect("a socket can be made");
    if at.is_ipv6() {
        socket.set_only_v6(true).expect("IPv4 has a listener of its own");
    }
    socket.bind(&at.into()).expect("the port is free");
    socket.listen(4096).expect("it can listen");
    socket.set_nonblocking(true).expect("it can be non-blocking");
    socket.into()
}

fn accept_until(done: &AtomicBool, listener: &TcpListener, late: bool, serve: fn(TcpStream)) {
    let mut random = Random(8000);
    let soon = Timespec::try_from(Duration::from_millis(50)).expect("it is short");
    while !done.load(Ordering::Relaxed) {
        poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&soon)).expect("a listener can be polled");
        while let Ok((stream, _)) = listener.accept() {
            serve(stream);
            if late {
                // The wait of those that are queued is the case.
                thread::sleep(Duration::from_micros(random.below(40_000).into()));
            }
        }
    }
}

/// Sends the mark until both captures have it; it may be lost too.
pub fn mark_the_end(network: &Network, is_captured: impl Fn() -> bool + Send + Sync) {
    network.client.on_thread("hs-mark", || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
        until("the mark is in both captures", || {
            // Nobody listens there, and an ICMP that says so is an error of the next send.
            let _ = socket.send_to(END, (V4.server, END_PORT));
            thread::sleep(Duration::from_millis(100)); // tcpdump reads once a second.
            is_captured()
        });
    });
}
