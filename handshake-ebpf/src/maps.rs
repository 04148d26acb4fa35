//! Every map, with its lifecycle: who inserts, who reads, who deletes, and what bounds it.
//!
//! No LRU maps, but for one where nothing but a name is lost: they evict silently. A full table refuses, and that is
//! counted. What a newcomer would get
//! wrong: sizes here are defaults; the daemon sets them before it loads the object.

mod entries;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_NOEXIST},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use handshake_common::{
    counter::{Counter, CpuCounters},
    endpoint::Endpoints,
    filter::MAX_ENTRIES,
    owner::{COMM_BYTES, Owner},
    request::{LatestRequest, Request},
    runtime::Runtime,
};

pub use self::entries::{
    ASKED, AcceptCall, ActiveOpen, CALLED_OVER_IPV6, ConnectCall, DropRate, ENDED, INTERNAL, InSoftirq,
    ListenersAt, Listening, Queued, answer,
};
use crate::emit::count;

/// Events to the daemon. Submitted by `emit`, drained by the daemon; a full ring refuses and is counted.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// One entry per possible CPU, memory-mapped by the daemon. Only the CPU itself writes to its entry.
#[map]
pub static COUNTERS: Array<CpuCounters> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// One entry: what the daemon knows only after it attached everything.
#[map]
pub static RUNTIME: Array<Runtime> = Array::with_max_entries(1, 0);

/// One entry: ids of the wanted cgroups, 0 where there is none. The daemon sets it before any hook is attached, and again
/// when a folder was made anew.
#[map]
pub static CGROUPS: Array<[u64; MAX_ENTRIES]> = Array::with_max_entries(1, 0);

/// Active opens by sock. Inserted when connect() is called (or at CLOSED->SYN-SENT), updated until the
/// answer, deleted when the call returned after the end, when the end came after the call returned, and in
/// any case at tcp_destroy_sock.
#[map]
pub static ACTIVE_OPENS: HashMap<u64, ActiveOpen> = HashMap::with_max_entries(16384, 0);

/// Half-open passive opens by request sock (or, in tracepoint mode, by socket cookie, which is the child's
/// later; cookies are small numbers and addresses are not, so one table serves both). Inserted when the
/// request is created (by the snapshot, if that was before us), deleted when it becomes a child or dies; the
/// daemon sweeps what neither happened to.
#[map]
static REQUESTS: HashMap<u64, Request> = HashMap::with_max_entries(32768, 0);

/// The latest requests that found [`REQUESTS`] full. Each has one place, by its key, and the latest comer takes
/// it; who is driven out is counted. So what a flood left half open can't hide the connections that come after
/// it. Emptied as `REQUESTS` is; what nothing empties waits for the next comer.
#[map]
static LATEST_REQUESTS: Array<LatestRequest> = Array::with_max_entries(1 << LATEST_BITS, 0);

const LATEST_BITS: u32 = 13;

/// Children from the final ACK (or from the snapshot, if that was before us) until accept() takes them or they
/// are destroyed.
#[map]
pub static QUEUED: HashMap<u64, Queued> = HashMap::with_max_entries(16384, 0);

/// connect() calls under way, by thread, in the modes that learn of the return from sys_exit_connect.
/// Inserted at sys_enter_connect or by the probe, deleted at sys_exit_connect; a thread has one at most.
#[map]
pub static CONNECT_CALLS: HashMap<u64, ConnectCall> = HashMap::with_max_entries(16384, 0);

/// Who opened each of the latest MPTCP connections, by the connection's token on this host. Inserted when its first
/// subflow is opened, read when another one joins. Nothing deletes: a connection may outlive its first subflow, and no
/// hook of ours sees it end; tokens are random, and the oldest make room. What was driven out costs a joining subflow
/// its process, which then is absent.
#[map]
pub static MPTCP_OPENERS: LruHashMap<u32, Owner> = LruHashMap::with_max_entries(4_096, 0);

/// accept() calls under way, by thread. Inserted at inet_csk_accept, deleted when a child is returned; a
/// call that returns none leaves an entry that the thread's next call overwrites, the daemon sweeps.
#[map]
pub static ACCEPT_CALLS: HashMap<u64, AcceptCall> = HashMap::with_max_entries(16384, 0);

/// The SYN (or timer) that this CPU works on: set at the outer function, read in those it calls. Softirq
/// work on one CPU is not interrupted by other softirq work, so one entry per CPU is enough.
#[map]
pub static IN_SOFTIRQ: PerCpuArray<InSoftirq> = PerCpuArray::with_max_entries(1, 0);

/// How many drops each listener has told of in this second. Key: sock of the listener; before one is known, its
/// place (see [`LISTENERS_AT`]); for ports at which nobody listens a small number. Inserted at the first drop,
/// deleted when the listener closes; swept after ten minutes without a drop.
#[map]
pub static DROPS: HashMap<u64, DropRate> = HashMap::with_max_entries(1_024, 0);

/// Listeners by sock. Inserted when one enters LISTEN (by the snapshot, if that was before us), deleted when it
/// leaves. What is not in here is no listener, whatever [`LISTENERS_AT`] holds.
#[map]
pub static LISTENING: HashMap<u64, Listening> = HashMap::with_max_entries(16_384, 0);

/// How many listen at a place: network namespace, IP version and port in one number. Kept by whoever changes
/// [`LISTENING`], deleted with the last of them.
#[map]
pub static LISTENERS_AT: HashMap<u64, ListenersAt> = HashMap::with_max_entries(16_384, 0);

/// What a new entry of [`ACTIVE_OPENS`] is copied from. A constant of the program: 184 zero bytes on the
/// stack would be a third of it.
static NO_ACTIVE_OPEN: ActiveOpen = ActiveOpen {
    generation_ns: 0,
    called_ns: 0,
    syn_sent_ns: 0,
    answered_ns: 0,
    last_retransmit_ns: 0,
    endpoints: Endpoints {
        local_address: [0; 16],
        remote_address: [0; 16],
        local_port: 0,
        remote_port: 0,
        family: 0,
        reserved: 0,
        netns: 0,
        flags: 0,
    },
    asked: [0; 2],
    asked_port: 0,
    reserved: 0,
    owner: Owner { cgroup_id: 0, pid: 0, tid: 0, uid: 0, known: 0, comm: [0; COMM_BYTES] },
    flags: 0,
    syn_retransmits: 0,
    answer_flags: 0,
    sent_again_before: 0,
};

/// What a new entry of [`QUEUED`] is copied from: all zeroes, as words because the payload has no constant
/// constructor.
static NO_QUEUED: [u64; size_of::<Queued>() / 8] = [0; size_of::<Queued>() / 8];

/// Remembers a request. Where that drives another one out of a full table, that one is counted.
#[inline(always)]
pub fn insert_request(key: u64, request: &Request) {
    if REQUESTS.insert(key, request, 0).is_err() {
        insert_latest(key, request);
    }
}

/// Remembers a request that has just begun; `false`, and nothing is done, when an earlier one at the same address is
/// still there, whose end nobody saw.
#[inline(always)]
pub fn insert_new_request(key: u64, request: &Request) -> bool {
    const EEXIST: i64 = 17;
    match REQUESTS.insert(key, request, u64::from(BPF_NOEXIST)) {
        Err(error) if i64::from(error) == -EEXIST => return false,
        Err(_) => insert_latest(key, request),
        Ok(()) => {}
    }
    true
}

#[inline(always)]
fn insert_latest(key: u64, request: &Request) {
    let Some((key, place)) = latest_place(key) else { return };
    // SAFETY: a live entry. CPUs may race for it: while it changes it has no key, so that a reader finds either
    // of the two requests or none, but for one that has compared the key already, whose times are then the
    // other's, microseconds away.
    unsafe {
        let before = (&raw const (*place).key).read_volatile();
        (&raw mut (*place).key).write_volatile(0);
        (*place).request = *request;
        (&raw mut (*place).key).write_volatile(key);
        if before != 0 && before != key {
            count(Counter::RequestsFull);
        }
    }
}

/// The request of this key.
#[inline(always)]
pub fn request(key: u64) -> Option<*mut Request> {
    if let Some(entry) = REQUESTS.get_ptr_mut(key) {
        return Some(entry);
    }
    let (key, place) = latest_place(key)?;
    // SAFETY: a live entry; see `insert_request`.
    unsafe {
        if key == 0 || (&raw const (*place).key).read_volatile() != key {
            return None;
        }
        Some(&raw mut (*place).request)
    }
}

/// Whether a request that is not there may have been driven out: another one has its place.
#[inline(always)]
pub fn may_be_driven_out(key: u64) -> bool {
    let Some((key, place)) = latest_place(key) else { return false };
    // SAFETY: a live entry; an aligned word.
    let holder = unsafe { (&raw const (*place).key).read_volatile() };
    holder != 0 && holder != key
}

/// Forgets a request.
#[inline(always)]
pub fn remove_request(key: u64) {
    let _ = REQUESTS.remove(key);
    let Some((key, place)) = latest_place(key) else { return };
    // SAFETY: a live entry; an aligned word.
    unsafe {
        if (&raw const (*place).key).read_volatile() == key {
            (&raw mut (*place).key).write_volatile(0);
        }
    }
}

/// The place of a request in [`LATEST_REQUESTS`], and its key as a number. By Fibonacci hashing: addresses of
/// request socks have equal low bits, and cookies equal high ones.
#[inline(always)]
fn latest_place(key: u64) -> Option<(u64, *mut LatestRequest)> {
    let key = as_number(key)?;
    let place = LATEST_REQUESTS
        .get_ptr_mut((key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - LATEST_BITS)) as u32)?;
    Some((key, place))
}

/// The verifier allows no arithmetic on an argument that it knows as a pointer to a request sock. Read back from a
/// map, its address is a number. Who handles requests is not interrupted by others who do (softirqs are off).
#[inline(always)]
pub fn as_number(key: u64) -> Option<u64> {
    let work = IN_SOFTIRQ.get_ptr_mut(0)?;
    // SAFETY: this CPU's own entry.
    unsafe {
        (&raw mut (*work).request).write_volatile(key);
        Some((&raw const (*work).request).read_volatile())
    }
}

/// A new (or cleared) entry of [`ACTIVE_OPENS`]; `None`, and counted, when the table is full.
#[expect(clippy::needless_borrows_for_generic_args, reason = "by value it would be copied over the stack")]
#[inline(always)]
pub fn new_active_open(socket: u64) -> Option<*mut ActiveOpen> {
    if ACTIVE_OPENS.insert(socket, &NO_ACTIVE_OPEN, 0).is_err() {
        count(Counter::ActiveOpensFull);
        return None;
    }
    ACTIVE_OPENS.get_ptr_mut(socket)
}

/// A new (or cleared) entry of [`QUEUED`]; `None`, and counted, when the table is full.
#[inline(always)]
pub fn new_queued(child: u64) -> Option<*mut Queued> {
    // SAFETY: as large and as aligned as a Queued, which is plain integers.
    let empty = unsafe { &*(&raw const NO_QUEUED).cast::<Queued>() };
    if QUEUED.insert(child, empty, 0).is_err() {
        count(Counter::QueuedFull);
        return None;
    }
    QUEUED.get_ptr_mut(child)
}
