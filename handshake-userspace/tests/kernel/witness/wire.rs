//! A network of ours between two namespaces, for kernels without netem: it delays, reorders and loses.
//!
//! Each host's link is a TUN device; a thread for each direction takes packets from one and gives them, later
//! and not all of them, to the other. What a reader would get wrong: the thread that hands a packet over also
//! runs the receiving host's softirq, so it must not wait for anything but packets.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{self, Read as _, Write as _},
    net::IpAddr,
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};

use super::{
    super::netns::Netns,
    network::{LINK, V4, V6},
    workload::Random,
};

const SHORTEST: Duration = Duration::from_millis(1);
const JITTER_US: u32 = 14_000;
const LOST_OF_1000: u32 = 15;

/// Carries packets until it is dropped.
pub struct Wire {
    ends: Arc<AtomicBool>,
    directions: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Makes the links of both and joins them.
    pub fn between(client: &Netns, server: &Netns) -> Self {
        let (one, other) = (Arc::new(tun(client)), Arc::new(tun(server)));
        let ends = Arc::new(AtomicBool::new(false));
        let ways = [(Arc::clone(&one), Arc::clone(&other), 1), (other, one, 2)];
        let directions = ways
            .into_iter()
            .map(|(from, to, seed)| {
                let ends = Arc::clone(&ends);
                std::thread::spawn(move || carry(&from, &to, Random(seed), &ends))
            })
            .collect();
        Wire { ends, directions }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for direction in self.directions.drain(..) {
            let _ = direction.join();
        }
    }
}

/// A TUN device named as the link is, in this namespace; it is gone when the file is closed.
fn tun(netns: &Netns) -> File {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    const IFF_TUN: u16 = 1;
    const IFF_NO_PI: u16 = 0x1000;
    netns.on_thread("hs-tun", || {
        let file = File::options().read(true).write(true).open("/dev/net/tun").expect("the kernel has TUN");
        // struct ifreq: the name, then the flags, in 40 bytes.
        let mut request = [0u8; 40];
        request[..LINK.len()].copy_from_slice(LINK.as_bytes());
        request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
        // SAFETY: the kernel reads and writes a struct ifreq, which these 40 bytes are.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(result, 0, "TUNSETIFF: {}", io::Error::last_os_error());
        rustix::io::ioctl_fionbio(&file, true).expect("it can be made non-blocking");
        file
    })
}

fn carry(mut from: &File, mut to: &File, mut random: Random, ends: &AtomicBool) {
    let mut under_way: BinaryHeap<Reverse<(Instant, Vec<u8>)>> = BinaryHeap::new();
    let mut packet = [0; 2048];
    while !ends.load(Ordering::Relaxed) {
        let due = under_way.peek().map(|Reverse((due, _))| due.saturating_duration_since(Instant::now()));
        let wait = due.unwrap_or(Duration::from_millis(50));
        let mut wanted = [PollFd::new(from, PollFlags::IN)];
        let timeout = Timespec::try_from(wait).expect("the wait is short");
        poll(&mut wanted, Some(&timeout)).expect("a device can be polled");
        while let Ok(length) = from.read(&mut packet) {
            let packet = &packet[..length];
            if is_lost(packet) || random.below(1000) < LOST_OF_1000 {
                continue;
            }
            let delay = SHORTEST + Duration::from_micros(random.below(JITTER_US).into());
            under_way.push(Reverse((Instant::now() + delay, packet.to_vec())));
        }
        while let Some(Reverse((due, _))) = under_way.peek()
            && *due <= Instant::now()
            && let Some(Reverse((_, packet))) = under_way.pop()
        {
            // A device that is still down takes nothing, as a wire without a host does.
            let _ = to.write(&packet);
        }
    }
}

/// Nobody lives at one of the addresses, and IPv6's questions to all that can hear them are not carried.
fn is_lost(packet: &[u8]) -> bool {
    let bytes = |at: usize, length: usize| packet.get(at..at + length);
    let to: Option<IpAddr> = match packet.first().map(|byte| byte >> 4) {
        Some(4) => bytes(16, 4).and_then(|to| <[u8; 4]>::try_from(to).ok()).map(IpAddr::from),
        Some(6) => bytes(24, 16).and_then(|to| <[u8; 16]>::try_from(to).ok()).map(IpAddr::from),
        _ => None,
    };
    to.is_none_or(|to| ![V4.client, V4.server, V6.client, V6.server].contains(&to))
}
