//! The records of the ring buffer: a header, then one payload per kind.
//!
//! The header stands first and its own layout never changes: a reader skips a kind that it doesn't know by
//! `size_bytes`. Kinds are never renumbered or reused. What a newcomer would get wrong: an event at the end
//! of a handshake repeats what earlier events said (from the kernel side's tables), so that one lost event
//! costs a detail and not the record.

pub mod accept_queue;
pub mod active_open;
pub mod drop;
pub mod listener;
pub mod passive_open;
pub mod retransmit;
pub mod snapshot;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of everything in this module; raised when a payload changes.
pub const ABI_VERSION: u16 = 3;

/// What happened. Families are a hundred apart (hex), so that each can grow.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// [`active_open::SynSent`]: the first SYN was handed to IP.
    SynSent = 0x0101,
    /// [`active_open::ConnectFailed`]: connect() returned an error before any SYN.
    ConnectFailed = 0x0102,
    /// [`active_open::LeftSynSent`]: the socket went from SYN-SENT to another state.
    LeftSynSent = 0x0103,
    /// [`active_open::ConnectReturned`]: a connect() call went back to its caller.
    ConnectReturned = 0x0104,
    /// [`active_open::FastOpenAnswered`]: whether the SYN-ACK carried a Fast Open cookie.
    FastOpenAnswered = 0x0105,
    /// [`active_open::AddressRewritten`]: TCP connects to another end than the application asked for.
    AddressRewritten = 0x0106,
    /// [`passive_open::PassiveOpen`]: the final ACK made a child, which was queued for accept().
    ChildQueued = 0x0201,
    /// [`passive_open::PassiveOpen`]: a child (or a simultaneous open) left SYN-RECEIVED.
    LeftSynReceived = 0x0202,
    /// [`passive_open::PassiveOpen`]: a request sock died half open.
    RequestDied = 0x0203,
    /// [`passive_open::ChildUndone`]: a child was made of a request that another segment had ended already.
    ChildUndone = 0x0204,
    /// [`accept_queue::Accepted`]: accept() took the child.
    Accepted = 0x0301,
    /// [`accept_queue::ChildDestroyed`]: the child was destroyed and nobody had accepted it.
    ChildDestroyed = 0x0302,
    /// [`listener::Listener`]: a socket entered LISTEN.
    ListenerOpened = 0x0401,
    /// [`listener::Listener`]: a socket left LISTEN.
    ListenerClosed = 0x0402,
    /// [`retransmit::SynRetransmitted`]: the kernel sent a SYN again.
    SynRetransmitted = 0x0501,
    /// [`snapshot::SocketSeen`]: a socket that was there before us.
    SocketSeen = 0x0601,
    /// [`drop::SegmentDropped`]: a segment of a handshake was dropped on this host.
    SegmentDropped = 0x0701,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [EventKind; 17] = [
        EventKind::SynSent,
        EventKind::ConnectFailed,
        EventKind::LeftSynSent,
        EventKind::ConnectReturned,
        EventKind::FastOpenAnswered,
        EventKind::AddressRewritten,
        EventKind::ChildQueued,
        EventKind::LeftSynReceived,
        EventKind::RequestDied,
        EventKind::ChildUndone,
        EventKind::Accepted,
        EventKind::ChildDestroyed,
        EventKind::ListenerOpened,
        EventKind::ListenerClosed,
        EventKind::SynRetransmitted,
        EventKind::SocketSeen,
        EventKind::SegmentDropped,
    ];

    /// Size of the whole event, header included. No `_` arm: a new kind must say its size.
    pub const fn size_bytes(self) -> usize {
        size_of::<EventHeader>()
            + match self {
                EventKind::SynSent => size_of::<active_open::SynSent>(),
                EventKind::ConnectFailed => size_of::<active_open::ConnectFailed>(),
                EventKind::LeftSynSent => size_of::<active_open::LeftSynSent>(),
                EventKind::ConnectReturned => size_of::<active_open::ConnectReturned>(),
                EventKind::FastOpenAnswered => size_of::<active_open::FastOpenAnswered>(),
                EventKind::AddressRewritten => size_of::<active_open::AddressRewritten>(),
                EventKind::ChildQueued | EventKind::LeftSynReceived | EventKind::RequestDied => {
                    size_of::<passive_open::PassiveOpen>()
                }
                EventKind::ChildUndone => size_of::<passive_open::ChildUndone>(),
                EventKind::Accepted => size_of::<accept_queue::Accepted>(),
                EventKind::ChildDestroyed => size_of::<accept_queue::ChildDestroyed>(),
                EventKind::ListenerOpened | EventKind::ListenerClosed => size_of::<listener::Listener>(),
                EventKind::SynRetransmitted => size_of::<retransmit::SynRetransmitted>(),
                EventKind::SocketSeen => size_of::<snapshot::SocketSeen>(),
                EventKind::SegmentDropped => size_of::<drop::SegmentDropped>(),
            }
    }
}

impl TryFrom<u16> for EventKind {
    type Error = u16;

    fn try_from(number: u16) -> Result<Self, u16> {
        let mut i = 0;
        while i < EventKind::ALL.len() {
            if EventKind::ALL[i] as u16 == number {
                return Ok(EventKind::ALL[i]);
            }
            i += 1;
        }
        Err(number)
    }
}

/// By which kind of hook an act was seen ([`EventHeader::attach`]).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attach {
    /// A BTF tracepoint that every mode uses; says nothing about the mode.
    Common = 0,
    /// fentry or fexit.
    Fentry = 1,
    /// kprobe.
    Kprobe = 2,
    /// A tracepoint, sock_ops callback or iterator that stands in for a probe.
    Tracepoint = 3,
}

impl TryFrom<u8> for Attach {
    type Error = u8;

    fn try_from(number: u8) -> Result<Self, u8> {
        Ok(match number {
            0 => Attach::Common,
            1 => Attach::Fentry,
            2 => Attach::Kprobe,
            3 => Attach::Tracepoint,
            other => return Err(other),
        })
    }
}

/// The first 48 bytes of every event.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EventHeader {
    /// An [`EventKind`].
    pub kind: u16,
    /// [`ABI_VERSION`] of the kernel side.
    pub abi_version: u16,
    /// Size of header and payload together.
    pub size_bytes: u16,
    /// An [`Attach`].
    pub attach: u8,
    /// Keeps the layout free of padding.
    pub reserved: u8,
    /// When it happened, CLOCK_MONOTONIC, read after the slot was reserved: ring order is nearly time order.
    pub time_ns: u64,
    /// Address of the kernel's `struct sock` (for `RequestDied`: of the request sock). Reused within
    /// milliseconds: an identity only together with `generation_ns`.
    pub socket: u64,
    /// When this handshake entered the kernel side's tables; tells two lives of one address apart. 0 when
    /// the tables did not hold it.
    pub generation_ns: u64,
    /// How many events this CPU had lost when it submitted this one: a rise between two events of one CPU
    /// says where the loss was.
    pub lost_before: u64,
    /// The CPU.
    pub cpu: u32,
    /// Keeps the layout free of padding.
    pub reserved2: u32,
}

/// Header and payload, as they lie in the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event<T> {
    /// Always first: readers find the kind and the size here.
    pub header: EventHeader,
    /// What the kind says.
    pub payload: T,
}

const _: () = assert!(size_of::<EventHeader>() == 48);
