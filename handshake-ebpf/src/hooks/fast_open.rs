//! The answer to a Fast Open SYN: whether the SYN-ACK carried a cookie (RFC 7413 section 4.1.1).
//!
//! TCP tells its cache of cookies about each SYN-ACK whose SYN asked for one or showed one, and that call is the hook;
//! where nothing can be probed, sock_ops looks for the option. What a newcomer would get wrong: both come after the
//! socket went to ESTABLISHED, while the same segment is processed. So the event of the end says that this one
//! follows, and the entry stays until then.

use aya_ebpf::{
    bindings::bpf_sock_ops,
    helpers::generated,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use handshake_common::{
    event::{
        Attach, EventKind,
        active_open::{FastOpenAnswered, cookie, flags},
    },
    tcp::TcpState,
};

use super::{active_open, argument};
use crate::{
    emit::submit,
    globals::offset,
    kernel::{
        preempt,
        read::{Copied, Direct, Memory},
        sock::Sock,
    },
    maps::{ACTIVE_OPENS, ActiveOpen, RUNTIME},
};

/// `tcp_sock.syn_fastopen`: the SYN had Fast Open's option. Without it (data without a cookie, as an administrator may
/// allow) the kernel forgets whatever cookie comes.
const SYN_HAD_THE_OPTION: u8 = 1 << 3;

/// Whether a hook will look at the SYN-ACK that takes the socket to `new_state`.
#[inline(always)]
pub fn cookie_follows<M: Memory>(sock: Sock<M>, new_state: u8) -> bool {
    let Some(runtime) = RUNTIME.get_ptr(0) else { return false };
    // SAFETY: the array's one live entry; aligned u32.
    let is_seen = unsafe { (*runtime).cookie_is_seen } != 0;
    is_seen
        && new_state == TcpState::Established as u8
        && sock.fast_open_bits() & SYN_HAD_THE_OPTION != 0
        && !sock.is_under_repair()
}

/// The entry of a socket that became ESTABLISHED a moment ago, if its SYN-ACK is to be told about.
#[inline(always)]
fn awaited(socket: u64) -> Option<*mut ActiveOpen> {
    let open = ACTIVE_OPENS.get_ptr_mut(socket)?;
    // SAFETY: a live entry; the socket's lock is held.
    let held = unsafe { (*open).flags };
    if held & flags::COOKIE_FOLLOWS == 0 { None } else { Some(open) }
}

#[inline(always)]
fn tell(socket: u64, open: *mut ActiveOpen, found: u32, attach: Attach) {
    // SAFETY: a live entry; the socket's lock is held.
    let (held, generation_ns) = unsafe {
        (*open).flags &= !flags::COOKIE_FOLLOWS;
        ((*open).flags, (*open).generation_ns)
    };
    submit(EventKind::FastOpenAnswered, attach, socket, generation_ns, |event: &mut FastOpenAnswered| {
        event.cookie = found;
    });
    if !active_open::awaits_return(held) {
        let _ = ACTIVE_OPENS.remove(socket);
    }
}

/// TCP tells its cache what a SYN-ACK brought.
#[inline(always)]
fn cached<M: Memory>(sock: Sock<M>, brought: *const u8, attach: Attach) {
    if brought.is_null() {
        return;
    }
    let Some(open) = awaited(sock.key()) else { return };
    // Not sent: -1. An empty option, with which a server would ask and not give: 0.
    let found = match M::read::<i8>(brought, offset!(fast_open_cookie_len)) {
        Some(length) if length > 0 => cookie::RECEIVED,
        Some(_) => cookie::NOT_SENT,
        None => cookie::UNKNOWN,
    };
    tell(sock.key(), open, found, attach);
}

/// TCP's kinds of options.
const FAST_OPEN: u8 = 34;
/// RFC 6994: followed by a number of the experiment's own.
const EXPERIMENTAL: u8 = 254;
/// Fast Open's number, from before it had a kind.
const EXPERIMENT: [u8; 2] = [0xf9, 0x89];
/// Kind, length, the experiment's number, and the longest cookie.
const LONGEST: usize = 2 + 2 + 16;
/// The helper found no such option in the segment.
const ENOMSG: i64 = 42;
/// It is longer than any cookie.
const ENOSPC: i64 = 28;

/// sock_ops, right after the change of state: the SYN-ACK is at hand.
#[inline(always)]
pub fn established(ops: *mut bpf_sock_ops, socket: u64) {
    let Some(open) = awaited(socket) else { return };
    let mut found = cookie_of_option(ops, FAST_OPEN, 0);
    if found == cookie::NOT_SENT {
        found = cookie_of_option(ops, EXPERIMENTAL, EXPERIMENT.len());
    }
    tell(socket, open, found, Attach::Tracepoint);
}

/// Looks for an option that has `number` more bytes before the cookie.
#[inline(always)]
fn cookie_of_option(ops: *mut bpf_sock_ops, kind: u8, number: usize) -> u32 {
    let mut option = [0_u8; LONGEST];
    option[0] = kind;
    if number != 0 {
        // What is looked for, and how long that is.
        option[1] = (2 + number) as u8;
        option[2] = EXPERIMENT[0];
        option[3] = EXPERIMENT[1];
    }
    // SAFETY: the context is the program's own, and the helper writes no more than it is told.
    let length = unsafe { generated::bpf_load_hdr_opt(ops, option.as_mut_ptr().cast(), LONGEST as u32, 0) };
    if length < 0 {
        return if length == -ENOMSG || length == -ENOSPC { cookie::NOT_SENT } else { cookie::UNKNOWN };
    }
    // What TCP takes for a cookie: 4 to 16 bytes, and an even number of them.
    let bytes = length - 2 - number as i64;
    if (4..=16).contains(&bytes) && bytes & 1 == 0 { cookie::RECEIVED } else { cookie::NOT_SENT }
}

/// The cache of cookies hears of a SYN-ACK.
#[fentry(function = "tcp_fastopen_cache_set")]
pub fn hs_fo_answer_fe(context: FEntryContext) -> i32 {
    preempt::disable();
    cached(Sock::<Direct>::at(argument!(context, 0)), argument!(context, 2), Attach::Fentry);
    preempt::enable();
    0
}

/// The cache of cookies hears of a SYN-ACK.
#[kprobe]
pub fn hs_fo_answer_kp(context: ProbeContext) -> u32 {
    let (Some(sock), Some(brought)) = (argument!(context, 0), argument!(context, 2)) else { return 0 };
    cached(Sock::<Copied>::at(sock), brought, Attach::Kprobe);
    0
}
