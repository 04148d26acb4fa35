//! Both ends of a connection, from the `sock_common` that socks and request socks begin with.
//!
//! What a newcomer would get wrong: addresses are kept in one form, IPv4 as ::ffff:a.b.c.d, and moved in whole words,
//! because the verifier follows a copy byte by byte.

use handshake_common::endpoint::{AF_INET6, Endpoints, V4_MAPPED};

use super::read::Memory;
use crate::globals::offset;

/// Ends of anything that begins with a `sock_common`: socks and request socks.
#[inline(always)]
pub fn common_ends<M: Memory>(common: *const u8, ends: &mut Endpoints) {
    ends.family = M::read::<u16>(common, offset!(skc_family)).unwrap_or(0);
    ends.local_port = M::read::<u16>(common, offset!(skc_num)).unwrap_or(0);
    ends.remote_port = u16::from_be(M::read::<u16>(common, offset!(skc_dport)).unwrap_or(0));
    if ends.family == AF_INET6 {
        v6::<M>(common, offset!(skc_v6_rcv_saddr), &mut ends.local_address);
        v6::<M>(common, offset!(skc_v6_daddr), &mut ends.remote_address);
        if is_mapped(&ends.remote_address) {
            ends.flags |= V4_MAPPED;
        }
    } else {
        v4_mapped(M::read::<u32>(common, offset!(skc_rcv_saddr)), &mut ends.local_address);
        v4_mapped(M::read::<u32>(common, offset!(skc_daddr)), &mut ends.remote_address);
    }
    ends.netns = netns::<M>(common);
}

/// Inode of the network namespace, 0 when unknown.
#[inline(always)]
pub fn netns<M: Memory>(common: *const u8) -> u32 {
    let Some(net) = M::read::<*const u8>(common, offset!(skc_net)) else { return 0 };
    M::read::<u32>(net, offset!(net_ns_inum)).unwrap_or(0)
}

/// Whether a socket bound to this one's address takes segments to that of `to`.
#[inline(always)]
pub fn is_bound_to<M: Memory>(common: *const u8, to: &Endpoints) -> bool {
    let (high, low) = halves(&to.local_address);
    if M::read::<u16>(common, offset!(skc_family)).unwrap_or(0) == AF_INET6 {
        let offset = offset!(skc_v6_rcv_saddr);
        let own_high = M::read::<u64>(common, offset).unwrap_or(u64::MAX);
        let own_low = M::read::<u64>(common, offset.wrapping_add(8)).unwrap_or(u64::MAX);
        return own_high | own_low == 0 || (own_high == high && own_low == low);
    }
    let own = M::read::<u32>(common, offset!(skc_rcv_saddr)).unwrap_or(u32::MAX);
    own == 0 || own == (low >> 32) as u32
}

/// An address in network order, as ::ffff:a.b.c.d.
#[inline(always)]
pub fn v4_mapped(address: Option<u32>, to: &mut [u8; 16]) {
    let Some(address) = address else { return };
    let halves = [0u64, u64::from(address) << 32 | 0xffff_0000];
    write_halves(halves, to);
}

#[inline(always)]
fn v6<M: Memory>(common: *const u8, offset: u32, to: &mut [u8; 16]) {
    // Two loads of eight bytes: sixteen at once is no load that BPF has. Each half is a number in any case: of an
    // `Option` that is not there the compiler copies the undefined part too, which the verifier refuses.
    let high = M::read::<u64>(common, offset).unwrap_or(0);
    let low = M::read::<u64>(common, offset.wrapping_add(8)).unwrap_or(0);
    write_halves([high, low], to);
}

#[inline(always)]
fn write_halves(halves: [u64; 2], to: &mut [u8; 16]) {
    // SAFETY: the destination is sixteen bytes; unaligned, because it is an array of bytes.
    unsafe { to.as_mut_ptr().cast::<[u64; 2]>().write_unaligned(halves) };
}

/// The two words of an address, as they lie in memory.
#[inline(always)]
pub fn halves(address: &[u8; 16]) -> (u64, u64) {
    let words = address.as_ptr().cast::<u64>();
    // SAFETY: sixteen bytes are read, as u64 of whatever alignment.
    unsafe { (words.read_unaligned(), words.add(1).read_unaligned()) }
}

/// Whether it is an IPv4 address in IPv6 form.
#[inline(always)]
pub fn is_mapped(address: &[u8; 16]) -> bool {
    // SAFETY: sixteen bytes are read, as u64 and u32 of whatever alignment.
    let (high, middle) = unsafe {
        (
            address.as_ptr().cast::<u64>().read_unaligned(),
            address.as_ptr().add(8).cast::<u32>().read_unaligned(),
        )
    };
    high == 0 && middle == 0xffff_0000
}
