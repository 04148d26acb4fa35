//! Who listens where: by this a SYN that dies before any listener sees it is joined to the one that it was for.
//!
//! A firewall's drop, or one for a missing signature, names a segment and no socket. What a newcomer would get wrong:
//! several sockets can listen at one port (SO_REUSEPORT, one for each address), and which of them the kernel would
//! have chosen is not known here. Then none is named, and no queue is told.

use aya_ebpf::bindings::BPF_NOEXIST;
use handshake_common::{
    counter::Counter,
    endpoint::{AF_INET6, Endpoints},
    event::drop::{SegmentDropped, flags},
    tcp::TcpState,
};

use crate::{
    emit::{add, count},
    globals::LOCKED_DOWN,
    kernel::{
        read::{Copied, Memory},
        sock::Sock,
    },
    maps::{DROPS, LISTENERS_AT, LISTENING, ListenersAt, Listening},
};

/// In a place: IPv6.
const V6: u64 = 1 << 16;

/// All ports of the host at which nobody listens share this many limits. Each of them having its own would let a
/// port scan take all of `DROPS`, and then drops at listeners would have no room.
const LIMITS_WITHOUT_LISTENER: u64 = 16;

/// The key in `LISTENERS_AT`. Numbers of namespaces begin with 0xf0, so a place is not one of the small numbers, nor
/// the address of a sock.
#[inline(always)]
fn place(netns: u32, family: u16, port: u16) -> u64 {
    let version = if family == AF_INET6 { V6 } else { 0 };
    u64::from(netns) << 32 | version | u64::from(port)
}

/// A socket listens: it has just begun to, or the snapshot found it so.
#[inline(always)]
pub fn begins<M: Memory>(sock: Sock<M>) {
    let port = sock.local_port();
    if port == 0 {
        // listen() without bind() chooses a port later, and no hook tells which.
        return;
    }
    let at = place(sock.netns(), sock.family(), port);
    let is_for_both = u64::from(sock.is_for_both());
    let listening = Listening { socket: sock.key(), at, is_for_both };
    let found_room = LISTENING.insert(sock.key(), listening, u64::from(BPF_NOEXIST)).is_ok();
    let Some(entry) = LISTENING.get_ptr(sock.key()) else {
        // How many listen there will never be known again: two more, that nobody takes away. Of more than one the sum
        // means nothing; but adding 0 to it would become an atomic OR, which 5.10 has not.
        count(Counter::ListenersFull);
        more_listen(at, is_for_both, 2, 1);
        return;
    };
    if found_room {
        // SAFETY: a live entry. The verifier allows arithmetic on an address only when it came out of a map.
        more_listen(at, is_for_both, 1, unsafe { (&raw const (*entry).socket).read_volatile() });
    }
}

/// A socket listens no longer, if it did.
#[inline(always)]
pub fn ends(socket: u64) {
    let Some(entry) = LISTENING.get_ptr(socket) else { return };
    // SAFETY: a live entry; who changes a listener's state holds its lock.
    let Listening { socket: address, at, is_for_both } = unsafe { entry.read_volatile() };
    let _ = LISTENING.remove(socket);
    fewer_listen(at, address);
    if is_for_both != 0 {
        fewer_listen(at & !V6, address);
    }
}

#[inline(always)]
fn more_listen(at: u64, is_for_both: u64, more: u64, address: u64) {
    more_listen_at(at, more, address);
    if is_for_both != 0 {
        more_listen_at(at & !V6, more, address);
    }
}

/// The count goes up before the sum changes, and down after: while the count is one, the sum is that one's address.
#[inline(always)]
fn more_listen_at(at: u64, more: u64, address: u64) {
    let first = ListenersAt { count: more, sum: address };
    if LISTENERS_AT.insert(at, first, u64::from(BPF_NOEXIST)).is_ok() {
        return;
    }
    let Some(entry) = LISTENERS_AT.get_ptr_mut(at) else {
        count(Counter::ListenersFull);
        return;
    };
    // SAFETY: a live entry; aligned words.
    unsafe {
        add(&raw mut (*entry).count, more);
        add(&raw mut (*entry).sum, address);
    }
}

#[inline(always)]
fn fewer_listen(at: u64, address: u64) {
    let Some(entry) = LISTENERS_AT.get_ptr_mut(at) else { return };
    // SAFETY: a live entry; aligned words.
    let left = unsafe {
        add(&raw mut (*entry).sum, address.wrapping_neg());
        add(&raw mut (*entry).count, u64::MAX);
        (&raw const (*entry).count).read_volatile()
    };
    if left == 0 {
        let _ = LISTENERS_AT.remove(at);
        let _ = DROPS.remove(at);
    }
}

/// What is known of the listener that a SYN was for.
pub struct Meant {
    /// Its sock, if only one listens there; else 0.
    pub socket: u64,
    /// Whose limit of told drops this is.
    pub limited_by: u64,
}

/// The listener that a SYN to these ends would have come to.
#[inline(always)]
pub fn meant_by(ends: &Endpoints) -> Meant {
    let at = place(ends.netns, ends.family, ends.local_port);
    let Some(entry) = LISTENERS_AT.get_ptr(at) else {
        let limit = (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % LIMITS_WITHOUT_LISTENER;
        return Meant { socket: 0, limited_by: limit };
    };
    // SAFETY: a live entry; aligned words.
    let (listeners, sum) =
        unsafe { ((&raw const (*entry).count).read_volatile(), (&raw const (*entry).sum).read_volatile()) };
    // While another CPU changes the two, the sum may be nobody's address.
    if listeners == 1 && LISTENING.get_ptr(sum).is_some() {
        return Meant { socket: sum, limited_by: sum };
    }
    Meant { socket: 0, limited_by: at }
}

/// Tells of the listener and its queues, if it is still what it was when it entered the table: its memory may be
/// another socket's by now.
#[inline(always)]
pub fn tell_queues(socket: u64, event: &mut SegmentDropped) {
    if socket == 0 || LOCKED_DOWN.load() != 0 {
        return;
    }
    let listener = Sock::<Copied>::at(socket as *const u8);
    if listener.state() != TcpState::Listen as u8
        || listener.local_port() != event.endpoints.local_port
        || listener.netns() != event.endpoints.netns
        || !listener.is_bound_to(&event.endpoints)
    {
        return;
    }
    event.listener = socket;
    let Some((length, limit)) = listener.accept_queue() else { return };
    event.accept_queue_length = length;
    event.accept_queue_limit = limit;
    event.syn_queue_length = listener.syn_queue().unwrap_or(0);
    event.flags |= flags::QUEUES_KNOWN;
}
