//! A SYN flood: raw segments from sources that nobody is, each a different one, in an order that a seed decides.
//!
//! The sources are all of 10.0.0.0/8, which the flooded namespace routes to a neighbour that does not exist, so
//! that what it answers ends on its own link. What a reader would get wrong: no source and port comes twice
//! before 2^39 segments, because a repeated one would be a retransmitted SYN and no accounting could be exact.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    environment::in_vm,
    netns::{CLIENT_V4, Pair},
};

/// Where answers are sent to, and nobody is.
const NOBODY: &str = "192.0.2.254";
const NOBODY_LINK: &str = "02:00:00:00:99:ff";

/// Segments in one system call.
const BATCH: usize = 128;
const IP_BYTES: usize = 20;
const TCP_BYTES: usize = 24;

/// Lets the server's namespace take segments from the flood's sources and answer them.
pub fn let_in(pair: &Pair) {
    for path in ["ipv4/conf/all/rp_filter", "ipv4/conf/veth0/rp_filter"] {
        pair.server.set(path, "0");
    }
    pair.server.ip(&format!("neigh replace {NOBODY} lladdr {NOBODY_LINK} dev veth0 nud permanent"));
    pair.server.ip(&format!("route add 10.0.0.0/8 via {NOBODY}"));
    if in_vm() {
        // Slow processors send thousands of SYN-ACKs again in one go. Where the link's queue has no room for one,
        // the kernel drops its request at once. The setting is for the whole guest, which is ours.
        std::fs::write("/proc/sys/net/core/netdev_max_backlog", "200000")
            .expect("the queue can be made longer");
    }
}

/// A generator; sends from the namespace of the thread that made it.
pub struct Flood {
    socket: Socket,
    to: SocketAddrV4,
    sent: u64,
}

impl Flood {
    /// At a listener.
    pub fn at(to: SocketAddr) -> Self {
        let SocketAddr::V4(to) = to else { panic!("{to} is not IPv4") };
        let socket =
            Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).expect("root may");
        Flood { socket, to, sent: 0 }
    }

    /// Sends so many more.
    pub fn send(&mut self, count: u64) {
        let to = SockAddr::from(SocketAddrV4::new(*self.to.ip(), 0));
        let end = self.sent + count;
        while self.sent < end {
            let batch = BATCH.min((end - self.sent) as usize);
            let mut segments = [[0; IP_BYTES + TCP_BYTES]; BATCH];
            for (segment, number) in segments.iter_mut().zip(self.sent..).take(batch) {
                *segment = syn(number, self.to);
            }
            self.send_batch(&mut segments[..batch], &to);
            self.sent += batch as u64;
        }
    }

    /// Sends one SYN from this end.
    pub fn send_syn(&self, from: SocketAddrV4, isn: u32) {
        self.send_one(from, Numbers { flags: SYN, sequence: isn, acknowledges: 0 });
    }

    /// Sends one ACK without data from this end.
    pub fn send_ack(&self, from: SocketAddrV4, sequence: u32, acknowledges: u32) {
        self.send_one(from, Numbers { flags: ACK, sequence, acknowledges });
    }

    /// Sends one RST without an ACK from this end.
    pub fn send_rst(&self, from: SocketAddrV4, sequence: u32) {
        self.send_one(from, Numbers { flags: RST, sequence, acknowledges: 0 });
    }

    /// Sends one SYN that acknowledges something from this end.
    pub fn send_syn_ack(&self, from: SocketAddrV4, sequence: u32, acknowledges: u32) {
        self.send_one(from, Numbers { flags: SYN | ACK, sequence, acknowledges });
    }

    fn send_one(&self, from: SocketAddrV4, numbers: Numbers) {
        self.send_batch(
            &mut [segment(from, self.to, numbers)],
            &SockAddr::from(SocketAddrV4::new(*self.to.ip(), 0)),
        );
    }

    fn send_batch(&self, segments: &mut [[u8; IP_BYTES + TCP_BYTES]], to: &SockAddr) {
        use std::os::fd::AsRawFd as _;
        let mut parts: Vec<libc::iovec> = segments
            .iter_mut()
            .map(|segment| libc::iovec { iov_base: segment.as_mut_ptr().cast(), iov_len: segment.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: a message of zeroes is an empty message.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
                message.msg_hdr.msg_namelen = to.len();
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let mut left = messages.as_mut_slice();
        while !left.is_empty() {
            // SAFETY: every message points to parts and an address of this function, which the call only reads.
            let sent =
                unsafe { libc::sendmmsg(self.socket.as_raw_fd(), left.as_mut_ptr(), left.len() as u32, 0) };
            assert!(sent > 0, "a SYN can be sent: {}", std::io::Error::last_os_error());
            left = &mut left[sent as usize..];
        }
    }
}

/// The SYN of this number.
fn syn(number: u64, to: SocketAddrV4) -> [u8; IP_BYTES + TCP_BYTES] {
    let mixed = mix(number);
    let from = Ipv4Addr::from(0x0a00_0000 | (mixed >> 15) as u32 & 0x00ff_ffff);
    let port = 0x8000 | mixed as u16 & 0x7fff;
    let isn = (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    segment(SocketAddrV4::new(from, port), to, Numbers { flags: SYN, sequence: isn, acknowledges: 0 })
}

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What a segment says beside its ends.
struct Numbers {
    flags: u8,
    sequence: u32,
    acknowledges: u32,
}

/// A segment without data.
fn segment(from: SocketAddrV4, to: SocketAddrV4, numbers: Numbers) -> [u8; IP_BYTES + TCP_BYTES] {
    let mut segment = [0; IP_BYTES + TCP_BYTES];
    let (ip, tcp) = segment.split_at_mut(IP_BYTES);
    // The kernel fills in total length, identification and checksum of the IPv4 header.
    ip[0] = 0x45;
    ip[8] = 64;
    ip[9] = libc::IPPROTO_TCP as u8;
    ip[12..16].copy_from_slice(&from.ip().octets());
    ip[16..20].copy_from_slice(&to.ip().octets());
    tcp[..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&numbers.sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&numbers.acknowledges.to_be_bytes());
    tcp[12] = (TCP_BYTES as u8 / 4) << 4;
    tcp[13] = numbers.flags;
    tcp[14..16].copy_from_slice(&64_240_u16.to_be_bytes());
    // Maximum segment size 1460 (RFC 9293 section 3.2).
    tcp[20..24].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    let pseudo = [0, libc::IPPROTO_TCP as u8, 0, TCP_BYTES as u8];
    let words = [&ip[12..20], &pseudo, tcp].concat();
    let sum: u32 = words.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// A permutation of the numbers below 2^39: odd factors and shifts can be undone, so no two become one.
fn mix(number: u64) -> u64 {
    const SEED: u64 = 0x2f_6e2b_1d35;
    const MASK: u64 = (1 << 39) - 1;
    let mut mixed = (number ^ SEED) & MASK;
    for shift in [20, 17, 21] {
        mixed = mixed.wrapping_mul(0x5851_f42d_4c95_7f2d) & MASK;
        mixed ^= mixed >> shift;
    }
    mixed
}

#[test]
fn a_floods_segments_have_right_checksums_and_all_different_sources() {
    let to: SocketAddrV4 = format!("{CLIENT_V4}:80").parse().expect("an address");
    let mut seen = std::collections::HashSet::new();
    for number in 0..100_000 {
        let segment = syn(number, to);
        let pseudo = [0, libc::IPPROTO_TCP as u8, 0, TCP_BYTES as u8];
        let words = [&segment[12..20], &pseudo, &segment[20..]].concat();
        let sum: u32 = words.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!(
            (sum & 0xffff) + (sum >> 16),
            0xffff,
            "RFC 1071: with its checksum a segment sums to ones"
        );
        assert!(seen.insert(segment[12..22].to_vec()), "source {number} came before");
    }
}
