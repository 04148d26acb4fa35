//! The sockets of a scenario: connections that block or don't, and waiting for what the kernel shows of them.
//!
//! What a reader would get wrong: state is waited for in /proc/net/tcp of the namespace, so that a scenario
//! goes on when a segment was really sent and not after a guess of time.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    environment::patience,
    netns::{CLIENT_V4, CLIENT_V6, Netns, Pair, SERVER_V4, SERVER_V6},
};

/// A socket that has called connect() and not waited.
pub fn connect_without_waiting(to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))
        .expect("a socket can be made");
    socket.set_nonblocking(true).expect("a socket can be non-blocking");
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        other => panic!("connect() to {to} did not go on in the background: {other:?}"),
    }
    socket
}

/// Waits until it is connected, or gives its error.
pub fn finish(socket: &Socket) -> io::Result<()> {
    let mut wanted = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::OUT)];
    let timeout = rustix::time::Timespec::try_from(patience()).expect("patience is short");
    rustix::event::poll(&mut wanted, Some(&timeout)).expect("a socket can be polled");
    match socket.take_error()? {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Closes with a RST instead of a FIN.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER can be set");
}

/// Connects to a port of loopback where nobody listens, from one of loopback's many addresses.
pub fn be_refused(number: u64) {
    let from = Ipv4Addr::new(127, 0, (number >> 8) as u8, (number % 250) as u8 + 2);
    let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, (number % 1_000) as u16 + 1);
    let socket = tcp_socket();
    // Without this the kernel would look for a port that is free for every remote end.
    set_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
    socket.bind(&SocketAddrV4::new(from, 0).into()).expect("loopback has this address");
    let error = socket.connect(&to.into()).expect_err("nobody listens");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
}

/// Sets an option that has a number for its value.
pub fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) {
    let size = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the option's value is read from an i32 of this function, of which the size is given.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size) };
    assert_eq!(result, 0, "option {name} of level {level}: {}", io::Error::last_os_error());
}

/// Waits until a socket of the thread's namespace with this remote port is in a state, by the kernel's number.
pub fn wait_for_state(remote_port: u16, state: u8) {
    let end = format!(":{remote_port:04X} {state:02X} ");
    until(&format!("a socket with remote port {remote_port} in state {state}"), || {
        ["tcp", "tcp6"].iter().any(|table| {
            std::fs::read_to_string(format!("/proc/thread-self/net/{table}"))
                .is_ok_and(|text| text.lines().any(|line| line.contains(&end)))
        })
    });
}

/// Waits until the SYN to a port was sent again: the kernel counts that in the same table.
pub fn wait_for_syn_again(remote_port: u16) {
    let end = format!(":{remote_port:04X} {SYN_SENT:02X} ");
    until("the SYN was sent again", || {
        std::fs::read_to_string("/proc/thread-self/net/tcp").is_ok_and(|text| {
            text.lines().filter(|line| line.contains(&end)).any(|line| {
                let again = line.split_whitespace().nth(6).unwrap_or("0");
                u32::from_str_radix(again, 16).is_ok_and(|count| count > 0)
            })
        })
    });
}

/// Half-open requests are listed in SYN-RECEIVED under the listener's port.
pub fn wait_for_request(port: u16) {
    let end = format!(":{port:04X} ");
    let state = format!(" {SYN_RECEIVED:02X} ");
    until("the listener has a half-open request", || {
        ["tcp", "tcp6"].iter().any(|table| {
            std::fs::read_to_string(format!("/proc/thread-self/net/{table}"))
                .is_ok_and(|text| text.lines().any(|line| line.contains(&end) && line.contains(&state)))
        })
    });
}

/// Waits until something holds, looking often.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + patience();
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

pub const ESTABLISHED: u8 = 1;
pub const SYN_SENT: u8 = 2;
pub const SYN_RECEIVED: u8 = 3;

/// A TCP socket over IPv4.
pub fn tcp_socket() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be made")
}

/// A listener on a free port of loopback, and where it is.
pub fn loopback_listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
    let to = listener.local_addr().expect("it has an address");
    (listener, to)
}

/// The two hosts of a pair by one version of IP.
#[derive(Clone, Copy)]
pub struct Version {
    pub any: &'static str,
    pub client: &'static str,
    pub server: &'static str,
    /// What TCP announces over Ethernet.
    pub mss: u64,
}

pub const IPV4: Version = Version { any: "0.0.0.0", client: CLIENT_V4, server: SERVER_V4, mss: 1_460 };
pub const IPV6: Version = Version { any: "::", client: CLIENT_V6, server: SERVER_V6, mss: 1_440 };

/// A listener of this process in a server's namespace, opened by a thread `hs-listen`, and where clients find it.
pub fn listen_in(netns: &Netns, backlog: i32) -> (TcpListener, SocketAddr) {
    listen_over(IPV4, netns, backlog)
}

/// The same by one version of IP.
pub fn listen_over(version: Version, netns: &Netns, backlog: i32) -> (TcpListener, SocketAddr) {
    netns.on_thread("hs-listen", || {
        let any = SocketAddr::new(version.any.parse().expect("an address"), 0);
        let socket = Socket::new(Domain::for_address(any), Type::STREAM, None).expect("a socket can be made");
        socket.bind(&any.into()).expect("a port is free");
        socket.listen(backlog).expect("it can listen");
        let listener = TcpListener::from(socket);
        let port = listener.local_addr().expect("it is bound").port();
        (listener, SocketAddr::new(version.server.parse().expect("an address"), port))
    })
}

/// Such a listener, and a client `hs-client` whose SYN arrived while nothing comes back.
pub fn half_open(pair: &Pair) -> (TcpListener, SocketAddr, Socket) {
    half_open_over(IPV4, pair)
}

/// The same by one version of IP.
pub fn half_open_over(version: Version, pair: &Pair) -> (TcpListener, SocketAddr, Socket) {
    pair.server_reaches_client(false);
    let (listener, to) = listen_over(version, &pair.server, 128);
    let socket = pair.client.on_thread("hs-client", || connect_without_waiting(to));
    pair.server.on_thread("hs-wait", || wait_for_request(to.port()));
    (listener, to, socket)
}

/// Such a listener, and a connection of `hs-client` that waits for accept().
pub fn queued(pair: &Pair) -> (TcpListener, SocketAddr, TcpStream) {
    let (listener, to) = listen_in(&pair.server, 128);
    let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    let port = stream.local_addr().expect("it is bound").port();
    // The client's end is ESTABLISHED one segment before the server's.
    pair.server.on_thread("hs-wait", || wait_for_state(port, ESTABLISHED));
    (listener, to, stream)
}

/// accept() by a thread `hs-server`.
pub fn accept_in(netns: &Netns, listener: &TcpListener) -> TcpStream {
    netns.on_thread("hs-server", || listener.accept().expect("a child is queued").0)
}

/// Waits until no request of a listener is half open any more.
pub fn wait_for_no_request(port: u16) {
    let end = format!(":{port:04X} ");
    let state = format!(" {SYN_RECEIVED:02X} ");
    until("the requests are gone", || {
        ["tcp", "tcp6"].iter().all(|table| {
            let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}"));
            let text = text.expect("it can be read");
            !text.lines().any(|line| line.contains(&end) && line.contains(&state))
        })
    });
}
