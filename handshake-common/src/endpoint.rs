//! The two ends of a connection, as one socket sees them.
//!
//! IPv4 travels as IPv4-mapped IPv6, so there is one address form from the accessor on. What a newcomer
//! would get wrong: local and remote are relative to the socket, not to the direction of the connection;
//! source and destination are words for a segment.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `AF_INET`.
pub const AF_INET: u16 = 2;
/// `AF_INET6`.
pub const AF_INET6: u16 = 10;

/// [`Endpoints::flags`]: an AF_INET6 socket that speaks to an IPv4-mapped address.
pub const V4_MAPPED: u32 = 1;

/// Addresses, ports and network namespace of one socket. Ports are in host order; 0 is unknown. Aligned to a word, so that
/// the kernel side copies it by words.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Endpoints {
    /// Local address, IPv4 as ::ffff:a.b.c.d. Unspecified when not yet chosen.
    pub local_address: [u8; 16],
    /// Remote address, in the same form.
    pub remote_address: [u8; 16],
    /// Local port, host order, 0 when not yet (or no longer) known.
    pub local_port: u16,
    /// Remote port, host order, 0 when unknown.
    pub remote_port: u16,
    /// [`AF_INET`] or [`AF_INET6`]: what the application asked for. 0 when unknown.
    pub family: u16,
    /// Keeps the layout free of padding.
    pub reserved: u16,
    /// Inode number of the network namespace, 0 when unknown.
    pub netns: u32,
    /// [`V4_MAPPED`].
    pub flags: u32,
}

crate::pod!(Endpoints);

const _: () = assert!(size_of::<Endpoints>() == 48);
