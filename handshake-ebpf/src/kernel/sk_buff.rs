//! `struct sk_buff`: what TCP left in the control block, and the headers themselves.
//!
//! What a newcomer would get wrong: the headers are behind a plain byte pointer that a direct load may not
//! follow, so reading them needs the helper, which lockdown forbids. TCP copies flags and sequence number into
//! `tcp_skb_cb` before any of its own hooks runs; before that (netfilter, routing) the block is somebody else's.

use aya_ebpf::helpers::bpf_probe_read_kernel;
use handshake_common::{
    endpoint::{AF_INET, AF_INET6, Endpoints, V4_MAPPED},
    offsets::UNAVAILABLE,
};

use super::{
    endpoints::v4_mapped,
    read::{Copied, Memory},
};
use crate::globals::{LOCKED_DOWN, offset};

const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
const TCP: u8 = 6;
/// `transport_header` before anybody set it.
const UNSET: u16 = u16::MAX;

/// Flags of the TCP header. From 6.17 the field is two bytes; ours is the low one (little endian).
#[inline(always)]
pub fn tcp_flags<M: Memory>(skb: *const u8) -> Option<u8> {
    M::read::<u8>(skb, in_control_block(offset!(tcp_cb_flags))?)
}

/// Sequence number of the TCP header.
#[inline(always)]
pub fn sequence<M: Memory>(skb: *const u8) -> Option<u32> {
    M::read::<u32>(skb, in_control_block(offset!(tcp_cb_seq))?)
}

/// The number after its last one, SYN and FIN included.
#[inline(always)]
pub fn end_sequence<M: Memory>(skb: *const u8) -> Option<u32> {
    M::read::<u32>(skb, in_control_block(offset!(tcp_cb_end_seq))?)
}

/// The number that it acknowledges.
#[inline(always)]
pub fn acknowledges<M: Memory>(skb: *const u8) -> Option<u32> {
    M::read::<u32>(skb, in_control_block(offset!(tcp_cb_ack_seq))?)
}

#[inline(always)]
fn in_control_block(offset: u32) -> Option<u32> {
    let control_block = offset!(skb_cb);
    if control_block == UNAVAILABLE || offset == UNAVAILABLE {
        return None;
    }
    Some(control_block.wrapping_add(offset))
}

/// Whether it is IPv4 or IPv6.
#[inline(always)]
pub fn is_ip<M: Memory>(skb: *const u8) -> bool {
    matches!(M::read::<u16>(skb, offset!(skb_protocol)), Some(IPV4 | IPV6))
}

/// The socket that it belongs to, on its way out.
#[inline(always)]
pub fn sock<M: Memory>(skb: *const u8) -> Option<*const u8> {
    let sock = M::read::<*const u8>(skb, offset!(skb_sk))?;
    if sock.is_null() { None } else { Some(sock) }
}

/// Inode of the network namespace of the device that it is on, 0 when it is on none.
#[inline(always)]
pub fn netns<M: Memory>(skb: *const u8) -> u32 {
    let Some(device) = M::read::<*const u8>(skb, offset!(skb_dev)) else { return 0 };
    if device.is_null() {
        return 0;
    }
    let Some(net) = M::read::<*const u8>(device, offset!(dev_net)) else { return 0 };
    M::read::<u32>(net, offset!(net_ns_inum)).unwrap_or(0)
}

/// Where routing sends an incoming segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To a socket of this host, if there is one.
    Here,
    /// To another host.
    Elsewhere,
    /// Routing has not been asked, or can't be.
    Unknown,
}

/// Where it goes, by the route that it has. A route is behind a number that is no pointer to the verifier, so this
/// needs the helper.
#[inline(always)]
pub fn destination<M: Memory>(skb: *const u8) -> Destination {
    if LOCKED_DOWN.load() != 0 {
        return Destination::Unknown;
    }
    // The lowest bit says whether the segment holds a reference.
    let route = (M::read::<u64>(skb, offset!(skb_dst)).unwrap_or(0) & !1) as *const u8;
    if route.is_null() {
        return Destination::Unknown;
    }
    let Some(ops) = Copied::read::<*const u8>(route, offset!(dst_ops)) else { return Destination::Unknown };
    // A tunnel's metadata is in the same place, and is of no family.
    let family = Copied::read::<u16>(ops, offset!(dst_ops_family)).unwrap_or(0);
    if family == AF_INET {
        let Some(flags) = Copied::read::<u32>(route, offset!(rt_flags)) else { return Destination::Unknown };
        if flags & LOCAL != 0 {
            return Destination::Here;
        }
        // A firewall that answers before routing gives the segment the route of the answer.
        if Copied::read::<u8>(route, offset!(rt_is_input)).unwrap_or(0) == 0 {
            return Destination::Unknown;
        }
        return Destination::Elsewhere;
    }
    if family == AF_INET6 {
        let Some(flags) = Copied::read::<u32>(route, offset!(rt6_flags)) else { return Destination::Unknown };
        return if flags & (LOCAL | ANYCAST) != 0 { Destination::Here } else { Destination::Elsewhere };
    }
    Destination::Unknown
}

/// RTCF_LOCAL and RTF_LOCAL.
const LOCAL: u32 = 0x8000_0000;
/// RTF_ANYCAST: an address of ours that others have too.
const ANYCAST: u32 = 0x0010_0000;

/// The ends and the numbers of an IP and a TCP header.
#[derive(Default)]
pub struct Headers {
    source: [u8; 16],
    destination: [u8; 16],
    source_port: u16,
    destination_port: u16,
    family: u16,
    /// Sequence number, host order.
    pub sequence: u32,
    /// Flags.
    pub tcp_flags: u8,
}

impl Headers {
    /// As the receiver's socket has them.
    #[inline(always)]
    pub fn incoming(&self, ends: &mut Endpoints) {
        ends.local_address = self.destination;
        ends.remote_address = self.source;
        ends.local_port = self.destination_port;
        ends.remote_port = self.source_port;
        if ends.family == 0 {
            ends.family = self.family;
        } else if ends.family == AF_INET6 && self.family == AF_INET {
            ends.flags |= V4_MAPPED;
        }
    }
}

/// Reads them; false when it is no TCP over IP, or when memory may not be copied.
#[inline(always)]
pub fn headers<M: Memory>(skb: *const u8, headers: &mut Headers) -> bool {
    if LOCKED_DOWN.load() != 0 {
        return false;
    }
    // One by one: of three options side by side the compiler moves the undefined half of one that is not there.
    let Some(head) = M::read::<*const u8>(skb, offset!(skb_head)) else { return false };
    let Some(network) = M::read::<u16>(skb, offset!(skb_network_header)) else { return false };
    let Some(transport) = M::read::<u16>(skb, offset!(skb_transport_header)) else { return false };
    if transport == UNSET || transport <= network {
        return false;
    }
    read(head.wrapping_add(network as usize), head.wrapping_add(transport as usize), headers).is_ok()
}

#[inline(always)]
fn read(ip: *const u8, tcp: *const u8, headers: &mut Headers) -> Result<(), i32> {
    // SAFETY: here and below, the helper fails instead of faulting; offsets are those of RFC 791, 8200 and 9293.
    let version = unsafe { bpf_probe_read_kernel(ip) }? >> 4;
    if version == 4 {
        // SAFETY: as above.
        let (protocol, source, destination) = unsafe {
            (
                bpf_probe_read_kernel(ip.wrapping_add(9))?,
                bpf_probe_read_kernel(ip.wrapping_add(12).cast::<u32>())?,
                bpf_probe_read_kernel(ip.wrapping_add(16).cast::<u32>())?,
            )
        };
        if protocol != TCP {
            return Err(0);
        }
        headers.family = AF_INET;
        v4_mapped(Some(source), &mut headers.source);
        v4_mapped(Some(destination), &mut headers.destination);
    } else {
        // SAFETY: as above.
        unsafe {
            // A SYN behind extension headers is rare, and its reason stays untold.
            if version != 6 || bpf_probe_read_kernel(ip.wrapping_add(6))? != TCP {
                return Err(0);
            }
            headers.source = bpf_probe_read_kernel(ip.wrapping_add(8).cast::<[u8; 16]>())?;
            headers.destination = bpf_probe_read_kernel(ip.wrapping_add(24).cast::<[u8; 16]>())?;
        }
        headers.family = AF_INET6;
    }
    // SAFETY: as above.
    unsafe {
        headers.source_port = u16::from_be(bpf_probe_read_kernel(tcp.cast::<u16>())?);
        headers.destination_port = u16::from_be(bpf_probe_read_kernel(tcp.wrapping_add(2).cast::<u16>())?);
        headers.sequence = u32::from_be(bpf_probe_read_kernel(tcp.wrapping_add(4).cast::<u32>())?);
        headers.tcp_flags = bpf_probe_read_kernel(tcp.wrapping_add(13))?;
    }
    Ok(())
}
