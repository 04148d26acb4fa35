//! Children that never were ESTABLISHED: one that lost a race for its request, and Fast Open's that its owner closes first.
//!
//! What a newcomer would get wrong: the second kind may well have completed its handshake. It goes on in FIN-WAIT-1,
//! and the final ACK is told when the child is CLOSED.

use handshake_common::{
    event::{
        Attach, EventKind,
        passive_open::{ChildUndone, PassiveOpen, flags},
    },
    tcp::{TcpState, known},
};

use super::{state::finish, subflow::closed_before_queued};
use crate::{
    emit::{Slot, submit},
    kernel::{read::Memory, sock::Sock},
    maps::Queued,
    words,
};

/// Two segments that each complete the handshake (the ACK and a FIN that overtook it) can make a child each, on
/// two CPUs, and a RST on one CPU can end the request of which the ACK makes a child on the other. inet_ehash_nolisten
/// lets no child into the table whose request has left it, and closes it, without an error on it; that one
/// was never queued, and the request's facts are the winner's.
#[inline(always)]
pub fn lost_its_race<M: Memory>(child: Sock<M>, new: u8) -> bool {
    let lost =
        new == TcpState::Closed as u8 && child.error().unwrap_or(0) == 0 && !child.is_fast_open_child();
    if lost {
        closed_before_queued(child);
        child_undone(child);
    }
    lost
}

/// Tells that the kernel has counted a child too many. One that MPTCP refuses is closed by tcp_done(), which takes its port
/// away, and its request tells of it; inet_ehash_nolisten leaves the port to what destroys the socket.
#[inline(always)]
fn child_undone<M: Memory>(child: Sock<M>) {
    let slot = Slot::<ChildUndone>::reserve(0, EventKind::ChildUndone, Attach::Common, child.key(), 0);
    let Some(mut slot) = slot else { return };
    let event = slot.payload();
    child.ends(&mut event.endpoints);
    if event.endpoints.local_port == 0 {
        slot.discard();
        return;
    }
    slot.submit();
}

/// Fast Open's child whose owner closes it before the final ACK, as a server does that answers at once. The handshake
/// goes on in FIN-WAIT-1. What the SYN announced is known; the client's window and the round trip are not yet.
#[inline(always)]
pub fn closed_early<M: Memory>(sock: Sock<M>, queued: *mut Queued) {
    // SAFETY: a live entry; the socket's lock is held.
    unsafe {
        (*queued).closed_early = 1;
        let negotiated = &mut (*queued).passive.negotiated;
        sock.negotiated(negotiated, false);
        negotiated.known &= !(known::SRTT | known::WINDOWS);
    }
}

/// Such a child is CLOSED, from the state `old`. Every state but FIN-WAIT-1 is reached by an acceptable ACK alone.
#[inline(always)]
pub fn closed_early_ends<M: Memory>(sock: Sock<M>, queued: *const Queued, old: u8) {
    // SAFETY: a live entry, here and below.
    let generation_ns = unsafe { (*queued).generation_ns };
    submit(
        EventKind::LeftSynReceived,
        Attach::Common,
        sock.key(),
        generation_ns,
        |event: &mut PassiveOpen| {
            // SAFETY: as above.
            unsafe { words::copy(&raw const (*queued).passive, event) };
            finish(sock, TcpState::Closed as u8, false, event);
            event.old_state = old;
            if old != TcpState::FinWait1 as u8 || event.final_ack_ns != 0 || sock.syn_was_acknowledged() {
                event.flags |= flags::ACKNOWLEDGED;
            }
        },
    );
}
