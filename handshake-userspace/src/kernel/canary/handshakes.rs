//! Makes the canary's handshakes, and keeps what the socket calls and the clock said of each.
//!
//! What a newcomer would get wrong: the ports are taken before the programs are loaded, because the kernel side's
//! filters are constants and must let exactly these through; but listen() is called after, so that the listener's
//! beginning is seen like any other's.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, accept_with, bind, connect, getpeername, getsockname, listen,
        socket_with,
        sockopt::{Timeout, set_socket_linger, set_socket_timeout},
    },
};

use crate::source::ring_buffer::monotonic_ns;

/// The listener's. A client of another address on the same loopback shows that local and remote are not mixed up.
const SERVER_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(127, 83, 72, 67);
/// Loopback has one IPv6 address only.
const LOOPBACK_V6: Ipv6Addr = Ipv6Addr::LOCALHOST;
/// After which a call on loopback is taken to be stopped by a firewall.
const LONGEST_CALL: Duration = Duration::from_secs(1);

/// One handshake that was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    /// Nobody listens there.
    pub(super) refused: bool,
    /// Before connect() was called, CLOCK_MONOTONIC.
    pub(super) began_ns: u64,
    /// After accept() (or the refused connect()) had returned.
    pub(super) ended_ns: u64,
}

/// A port that is taken, and who will connect to it.
struct Bait {
    socket: OwnedFd,
    server: SocketAddr,
    client: SocketAddr,
    listens: bool,
}

/// The sockets that the handshakes are made with.
pub(crate) struct Baits(Vec<Bait>);

impl Baits {
    /// Takes a port each. Without IPv6 there is one handshake less; without IPv4 loopback there is none.
    pub(super) fn lay() -> Result<Self, String> {
        let v4 = |listens| lay(SERVER_V4.into(), CLIENT_V4.into(), listens);
        let loopback = |errno| format!("no port on the loopback interface: {}", text(errno));
        let mut baits = vec![v4(true).map_err(loopback)?, v4(false).map_err(loopback)?];
        match lay(LOOPBACK_V6.into(), LOOPBACK_V6.into(), true) {
            Ok(bait) => baits.push(bait),
            Err(errno) => log::info!("canary: no IPv6 on loopback ({}), so IPv4 only", text(errno)),
        }
        Ok(Baits(baits))
    }

    /// Where it will be connected to.
    pub(super) fn servers(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().map(|bait| bait.server)
    }

    /// Makes one handshake with each.
    pub(super) fn make(&self) -> Result<Vec<Made>, String> {
        self.0
            .iter()
            .map(|bait| {
                let made = if bait.listens { bait.establish() } else { bait.be_refused() };
                made.map_err(|errno| {
                    let what = if bait.listens { "a connection" } else { "a refused connection" };
                    let error = match errno {
                        Errno::INPROGRESS | Errno::AGAIN => format!("no answer within {LONGEST_CALL:?}"),
                        other => text(other),
                    };
                    let server = bait.server;
                    format!("{what} to {server} did not go as it should ({error}); is `lo` up, without a firewall?")
                })
            })
            .collect()
    }
}

fn lay(server: std::net::IpAddr, client: std::net::IpAddr, listens: bool) -> Result<Bait, Errno> {
    let socket = tcp(server)?;
    bind(&socket, &SocketAddr::new(server, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(LONGEST_CALL))?;
    let server = SocketAddr::try_from(getsockname(&socket)?)?;
    Ok(Bait { socket, server, client: SocketAddr::new(client, 0), listens })
}

impl Bait {
    fn establish(&self) -> Result<Made, Errno> {
        listen(&self.socket, 8)?;
        let client = self.client()?;
        let began_ns = monotonic_ns();
        connect(&client, &self.server)?;
        let local = SocketAddr::try_from(getsockname(&client)?)?;
        // Whoever else found the port in this moment is not ours.
        let accepted = loop {
            let accepted = accept_with(&self.socket, SocketFlags::CLOEXEC)?;
            if peer(&accepted)? == local {
                break accepted;
            }
        };
        let ended_ns = monotonic_ns();
        // A RST leaves nothing in TIME-WAIT; the child goes last, so that nobody waits for it.
        set_socket_linger(&client, Some(Duration::ZERO))?;
        drop(client);
        drop(accepted);
        Ok(Made { client: local, server: self.server, refused: false, began_ns, ended_ns })
    }

    fn be_refused(&self) -> Result<Made, Errno> {
        let client = self.client()?;
        let began_ns = monotonic_ns();
        match connect(&client, &self.server) {
            Err(Errno::CONNREFUSED) => {}
            Err(other) => return Err(other),
            // Somebody listens on a port that is ours alone: not on this host's TCP.
            Ok(()) => return Err(Errno::ISCONN),
        }
        let ended_ns = monotonic_ns();
        let local = SocketAddr::try_from(getsockname(&client)?)?;
        Ok(Made { client: local, server: self.server, refused: true, began_ns, ended_ns })
    }

    fn client(&self) -> Result<OwnedFd, Errno> {
        let client = tcp(self.client.ip())?;
        // A port of its own, which connect()'s failure does not take away.
        bind(&client, &self.client)?;
        set_socket_timeout(&client, Timeout::Send, Some(LONGEST_CALL))?;
        Ok(client)
    }
}

fn tcp(address: std::net::IpAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

fn peer(socket: &OwnedFd) -> Result<SocketAddr, Errno> {
    SocketAddr::try_from(getpeername(socket)?.ok_or(Errno::NOTCONN)?)
}

fn text(errno: Errno) -> String {
    std::io::Error::from(errno).to_string()
}
