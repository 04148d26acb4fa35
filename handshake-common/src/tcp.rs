//! TCP states as the kernel numbers them, and what a handshake negotiated.
//!
//! What a newcomer would get wrong: SYN-RECEIVED has two numbers in Linux. `NewSynReceived` (12) is the
//! half-open request sock, `SynReceived` (3) the full child socket that exists from the final ACK on (or
//! a simultaneous open, or Fast Open).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `sk_state`; names follow RFC 9293 section 3.3.2.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpState {
    /// ESTABLISHED.
    Established = 1,
    /// SYN-SENT.
    SynSent = 2,
    /// SYN-RECEIVED, as a full socket.
    SynReceived = 3,
    /// FIN-WAIT-1.
    FinWait1 = 4,
    /// FIN-WAIT-2.
    FinWait2 = 5,
    /// TIME-WAIT.
    TimeWait = 6,
    /// CLOSED.
    Closed = 7,
    /// CLOSE-WAIT.
    CloseWait = 8,
    /// LAST-ACK.
    LastAck = 9,
    /// LISTEN.
    Listen = 10,
    /// CLOSING.
    Closing = 11,
    /// SYN-RECEIVED, as a request sock.
    NewSynReceived = 12,
}

impl TryFrom<u8> for TcpState {
    type Error = u8;

    fn try_from(number: u8) -> Result<Self, u8> {
        Ok(match number {
            1 => TcpState::Established,
            2 => TcpState::SynSent,
            3 => TcpState::SynReceived,
            4 => TcpState::FinWait1,
            5 => TcpState::FinWait2,
            6 => TcpState::TimeWait,
            7 => TcpState::Closed,
            8 => TcpState::CloseWait,
            9 => TcpState::LastAck,
            10 => TcpState::Listen,
            11 => TcpState::Closing,
            12 => TcpState::NewSynReceived,
            other => return Err(other),
        })
    }
}

/// TCP header flag FIN.
pub const FIN: u8 = 0x01;
/// TCP header flag SYN.
pub const SYN: u8 = 0x02;
/// TCP header flag RST.
pub const RST: u8 = 0x04;
/// TCP header flag ACK.
pub const ACK: u8 = 0x10;

/// Bits of [`Negotiated::known`]: which fields hold something that was read.
pub mod known {
    /// `local_isn`.
    pub const LOCAL_ISN: u32 = 1;
    /// `remote_isn`.
    pub const REMOTE_ISN: u32 = 1 << 1;
    /// `mss`, `options` and both window scales.
    pub const OPTIONS: u32 = 1 << 2;
    /// `srtt_us`.
    pub const SRTT: u32 = 1 << 3;
    /// `local_mss` and both windows.
    pub const WINDOWS: u32 = 1 << 4;
    /// `local_window` alone: of a request, whose client has announced no window for it yet.
    pub const LOCAL_WINDOW: u32 = 1 << 5;
}

/// Bits of [`Negotiated::options`].
pub mod option_bits {
    /// The timestamps option was agreed on (RFC 7323).
    pub const TIMESTAMPS: u16 = 1;
    /// The window scale option was agreed on (RFC 7323).
    pub const WINDOW_SCALE: u16 = 1 << 1;
    /// Selective acknowledgements were agreed on (RFC 2018).
    pub const SACK: u16 = 1 << 2;
    /// Explicit congestion notification was agreed on (RFC 3168).
    pub const ECN: u16 = 1 << 3;
    /// The socket is a subflow of an MPTCP connection (RFC 8684).
    pub const MPTCP: u16 = 1 << 4;
    /// No segment made it: the socket was put together under TCP_REPAIR.
    pub const REPAIR: u16 = 1 << 5;
}

/// What the segments of a handshake agreed on; see [`known`] for what was readable.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Negotiated {
    /// Our initial sequence number.
    pub local_isn: u32,
    /// The peer's initial sequence number.
    pub remote_isn: u32,
    /// The kernel's smoothed round-trip time in microseconds, 0 before its first. It obeys Karn, or tells by
    /// timestamps which segment was answered.
    pub srtt_us: u32,
    /// Bits of [`known`].
    pub known: u32,
    /// The window that we announce, in bytes.
    pub local_window: u32,
    /// The window that the peer announced, in bytes.
    pub remote_window: u32,
    /// Maximum segment size that the peer announced, in bytes.
    pub mss: u16,
    /// Bits of [`option_bits`].
    pub options: u16,
    /// Shift count that we announced.
    pub local_window_scale: u8,
    /// Shift count that the peer announced.
    pub remote_window_scale: u8,
    /// Maximum segment size that we announced, in bytes.
    pub local_mss: u16,
}

crate::pod!(Negotiated);

const _: () = assert!(size_of::<Negotiated>() == 32);
