//! Turns the bytes of one ring-buffer record into an [`Observation`], or says why it can't.
//!
//! Between source and tracker: bytes in, words out. The bytes are hostile until checked (a recording may be
//! any file), so nothing here panics, and only integers are read from them. What a reader would get wrong:
//! a zero is never passed on as a measurement. Whatever the kernel side did not know becomes `None` here,
//! and the rest of the daemon never sees the difference between a 0 and a gap again.
//!
//! One file for each family of `handshake_common::event`; the match on the kind has no `_` arm, so a new
//! kind does not compile before it is decoded.

mod accept_queue;
mod active_open;
mod drop;
mod endpoint;
mod listener;
mod passive_open;
mod retransmit;
mod snapshot;
#[cfg(test)]
mod tests;

use handshake_common::{
    event::{ABI_VERSION, Attach, EventHeader, EventKind},
    tcp::TcpState,
};
use zerocopy::FromBytes;

use crate::model::observation::{Act, Observation, SocketKey};

/// Why bytes are no event of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not even a header.
    #[error("{bytes} bytes are no event: the header alone has {}", size_of::<EventHeader>())]
    NoHeader {
        /// How many there are.
        bytes: usize,
    },
    /// The kernel side (or the recording) is of another version.
    #[error("the event is of ABI version {version}, and this program reads version {ABI_VERSION}")]
    AbiVersion {
        /// Its version.
        version: u16,
    },
    /// A kind of a later version: to be skipped and counted, and no damage.
    #[error("events of kind {kind:#06x} ({size_bytes} bytes) are not known")]
    UnknownKind {
        /// Its number.
        kind: u16,
        /// The size that it claims.
        size_bytes: u16,
    },
    /// The record, what its header says, and what the kind has do not agree.
    #[error("an event {kind:?} has {expected} bytes; its header says {claimed}, and there are {bytes}")]
    WrongSize {
        /// Its kind.
        kind: EventKind,
        /// Size of this kind.
        expected: usize,
        /// What the header says.
        claimed: usize,
        /// What is there.
        bytes: usize,
    },
    /// A kind of hook that does not exist.
    #[error("an event {kind:?} names hook kind {attach}, which does not exist")]
    UnknownAttach {
        /// Its kind.
        kind: EventKind,
        /// The number.
        attach: u8,
    },
    /// A TCP state that does not exist.
    #[error("{state} is no TCP state")]
    UnknownState {
        /// The number.
        state: u8,
    },
}

/// Decodes one event. The size must be exactly that of its kind: within one ABI version a payload never
/// changes, so a longer one is damage and no later version.
pub fn decode(bytes: &[u8]) -> Result<Observation, DecodeError> {
    let (header, payload) =
        EventHeader::read_from_prefix(bytes).map_err(|_| DecodeError::NoHeader { bytes: bytes.len() })?;
    let EventHeader { kind, abi_version, size_bytes, attach, .. } = header;
    if abi_version != ABI_VERSION {
        return Err(DecodeError::AbiVersion { version: abi_version });
    }
    let kind = EventKind::try_from(kind).map_err(|kind| DecodeError::UnknownKind { kind, size_bytes })?;
    let (expected, claimed) = (kind.size_bytes(), usize::from(size_bytes));
    if claimed != expected || bytes.len() != expected {
        return Err(DecodeError::WrongSize { kind, expected, claimed, bytes: bytes.len() });
    }
    let attach = Attach::try_from(attach).map_err(|attach| DecodeError::UnknownAttach { kind, attach })?;
    Ok(Observation {
        time_ns: header.time_ns,
        cpu: header.cpu,
        lost_before: header.lost_before,
        socket: SocketKey { address: header.socket, generation_ns: known_ns(header.generation_ns) },
        attach,
        act: act(kind, payload)?,
    })
}

fn act(kind: EventKind, payload: &[u8]) -> Result<Act, DecodeError> {
    Ok(match kind {
        EventKind::SynSent => active_open::syn_sent(&read(kind, payload)?),
        EventKind::ConnectFailed => active_open::connect_failed(&read(kind, payload)?),
        EventKind::LeftSynSent => active_open::left_syn_sent(&read(kind, payload)?)?,
        EventKind::ConnectReturned => active_open::connect_returned(&read(kind, payload)?),
        EventKind::FastOpenAnswered => active_open::fast_open_answered(&read(kind, payload)?),
        EventKind::AddressRewritten => active_open::address_rewritten(&read(kind, payload)?),
        EventKind::ChildQueued => Act::ChildQueued(passive_open::passive_open(&read(kind, payload)?)?),
        EventKind::LeftSynReceived => {
            Act::LeftSynReceived(passive_open::passive_open(&read(kind, payload)?)?)
        }
        EventKind::RequestDied => Act::RequestDied(passive_open::passive_open(&read(kind, payload)?)?),
        EventKind::ChildUndone => passive_open::child_undone(&read(kind, payload)?),
        EventKind::Accepted => accept_queue::accepted(&read(kind, payload)?),
        EventKind::ChildDestroyed => accept_queue::child_destroyed(&read(kind, payload)?),
        EventKind::ListenerOpened => Act::ListenerOpened(listener::listener(&read(kind, payload)?)),
        EventKind::ListenerClosed => Act::ListenerClosed(listener::listener(&read(kind, payload)?)),
        EventKind::SynRetransmitted => retransmit::syn_retransmitted(&read(kind, payload)?),
        EventKind::SocketSeen => snapshot::socket_seen(&read(kind, payload)?)?,
        EventKind::SegmentDropped => drop::segment_dropped(&read(kind, payload)?),
    })
}

/// Copies a payload out. The size was checked already; the error is there so that nothing depends on that.
fn read<T: FromBytes>(kind: EventKind, payload: &[u8]) -> Result<T, DecodeError> {
    T::read_from_bytes(payload).map_err(|_| DecodeError::WrongSize {
        kind,
        expected: size_of::<EventHeader>() + size_of::<T>(),
        claimed: kind.size_bytes(),
        bytes: size_of::<EventHeader>() + payload.len(),
    })
}

/// CLOCK_MONOTONIC is never 0 while a program runs, so 0 can stand for unknown.
fn known_ns(time_ns: u64) -> Option<u64> {
    (time_ns != 0).then_some(time_ns)
}

fn state(number: u8) -> Result<TcpState, DecodeError> {
    TcpState::try_from(number).map_err(|state| DecodeError::UnknownState { state })
}
