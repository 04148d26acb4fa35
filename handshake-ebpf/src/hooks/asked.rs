//! What the application gave to connect(), where TCP connects to another end.
//!
//! A program at the cgroup (cgroup/connect4, connect6: socket load balancing) may rewrite the kernel's copy of the
//! address, which happens in tcp_v4_pre_connect, before tcp_v4_connect sees it. The kernel calls that function only
//! where such a program is attached to some cgroup, so these hooks cost nothing anywhere else. What a newcomer would get
//! wrong: the call that begins here is the same that then reaches tcp_v4_connect, and a program may forbid it too.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::{
    endpoint::Endpoints,
    event::{Attach, EventKind, active_open::AddressRewritten},
    filter::ROLE_CLIENT,
};

use super::{argument, connect_call, opener};
use crate::{
    emit::submit,
    filter,
    globals::LOCKED_DOWN,
    kernel::{
        endpoints::{halves, v4_mapped},
        preempt,
        read::{Copied, Direct, Memory},
        sock::Sock,
    },
    maps::{ASKED, ActiveOpen},
};

/// connect() is about to ask the programs at the cgroup. TCP is CLOSED, so what the table still holds of this socket
/// is a leftover.
#[inline(always)]
fn before_programs<M: Memory>(sock: Sock<M>, address: *const u8) {
    // Who is not wanted is counted when the call reaches TCP.
    if !filter::wants_role(ROLE_CLIENT) || !opener::is_wanted(sock) {
        return;
    }
    let Some(open) = connect_call::begin(sock, address) else { return };
    // SAFETY: the entry that was just made; this thread holds the socket's lock.
    unsafe { (*open).flags |= ASKED };
    if LOCKED_DOWN.load() != 0 {
        // SAFETY: the entry that was just made; this thread holds the socket's lock.
        remote_of_v4_sockaddr::<M>(address, unsafe { &mut (*open).endpoints });
    }
}

/// The part of a sockaddr that is within its BTF type, without the helper: an IPv4 address fits in, an IPv6 address
/// doesn't. From 6.19 on the type has no length, the verifier refuses the program, and it is left out.
#[inline(always)]
fn remote_of_v4_sockaddr<M: Memory>(address: *const u8, endpoints: &mut Endpoints) {
    if M::read::<u16>(address, 0) == Some(handshake_common::endpoint::AF_INET) {
        endpoints.remote_port = u16::from_be(M::read::<u16>(address, 2).unwrap_or(0));
        v4_mapped(M::read::<u32>(address, 4), &mut endpoints.remote_address);
    }
}

/// Keeps the remote end that is in the table before the socket's own takes its place, unless the system call told.
///
/// # Safety
/// `open` is a live entry, to which nobody else writes.
#[inline(always)]
pub unsafe fn keep(open: *mut ActiveOpen) {
    // SAFETY: the caller vouches for it.
    unsafe {
        if (*open).asked_port == 0 && (*open).asked[0] | (*open).asked[1] == 0 {
            let (high, low) = halves(&(*open).endpoints.remote_address);
            (*open).asked = [high, low];
            (*open).asked_port = u32::from((*open).endpoints.remote_port);
        }
    }
}

/// The SYN leaves: says so if it goes elsewhere than was asked for.
#[inline(always)]
pub fn tell(open: *const ActiveOpen, socket: u64, attach: Attach) {
    // SAFETY: the caller gives a live entry; this thread holds the socket's lock.
    let ([high, low], port, generation_ns) =
        unsafe { ((*open).asked, (*open).asked_port, (*open).generation_ns) };
    // SAFETY: as above.
    let (is_high, is_low) = unsafe { halves(&(*open).endpoints.remote_address) };
    // SAFETY: as above.
    let is_port = u32::from(unsafe { (*open).endpoints.remote_port });
    let is_known = high | low | u64::from(port) != 0;
    if !is_known || (high == is_high && low == is_low && port == is_port) {
        return;
    }
    submit(EventKind::AddressRewritten, attach, socket, generation_ns, |event: &mut AddressRewritten| {
        // SAFETY: sixteen bytes, of whatever alignment.
        unsafe { event.asked_address.as_mut_ptr().cast::<[u64; 2]>().write_unaligned([high, low]) };
        event.asked_port = port;
    });
}

/// connect() over IPv4, where programs at the cgroup are asked.
#[fentry(function = "tcp_v4_pre_connect")]
pub fn hs_asked4_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    before_programs(Sock::<Direct>::at(argument!(context, 0)), argument!(context, 1));
    preempt::enable();
    0
}

/// connect() over IPv6, where programs at the cgroup are asked.
#[fentry(function = "tcp_v6_pre_connect")]
pub fn hs_asked6_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    before_programs(Sock::<Direct>::at(argument!(context, 0)), argument!(context, 1));
    preempt::enable();
    0
}

/// connect() over IPv4 or IPv6, where programs at the cgroup are asked.
#[kprobe]
pub fn hs_asked_kp(context: ProbeContext) -> u32 {
    let (Some(sock), Some(address)) = (argument!(context, 0), argument!(context, 1)) else { return 0 };
    before_programs(Sock::<Copied>::at(sock), address);
    0
}
