//! Every kind from its bytes to its words, and hostile bytes to an error.
//!
//! Events are made by `IntoBytes` from the shared crate's types, as the kernel side makes them. What a
//! reader would get wrong: the property tests look for panics; what an event means is in the others.

mod hostile;

use std::net::SocketAddr;

use handshake_common::{
    endpoint::{AF_INET, AF_INET6, Endpoints, V4_MAPPED},
    event::{
        ABI_VERSION, Attach, EventHeader, EventKind, accept_queue, active_open, drop, listener, passive_open,
        retransmit, snapshot,
    },
    owner::Owner,
    tcp::{Negotiated, TcpState, known, option_bits},
};
use zerocopy::{Immutable, IntoBytes};

use super::{DecodeError, decode};
use crate::model::{
    handshake::{Options, Windows},
    observation::{Act, Agreed, Ends, Observation, SocketKey},
};

fn event(kind: EventKind, payload: &(impl IntoBytes + Immutable)) -> Vec<u8> {
    let header = EventHeader {
        kind: kind as u16,
        abi_version: ABI_VERSION,
        size_bytes: kind.size_bytes() as u16,
        attach: Attach::Fentry as u8,
        time_ns: 1000,
        socket: 0xffff_8881_0000_0040,
        generation_ns: 900,
        lost_before: 3,
        cpu: 1,
        ..EventHeader::default()
    };
    [header.as_bytes(), payload.as_bytes()].concat()
}

fn act(kind: EventKind, payload: &(impl IntoBytes + Immutable)) -> Act {
    decode(&event(kind, payload)).expect("a valid event").act
}

fn mapped(v4: [u8; 4]) -> [u8; 16] {
    std::net::Ipv4Addr::from(v4).to_ipv6_mapped().octets()
}

fn endpoints() -> Endpoints {
    Endpoints {
        local_address: mapped([10, 9, 0, 1]),
        remote_address: mapped([10, 9, 0, 2]),
        local_port: 40112,
        remote_port: 443,
        family: AF_INET,
        netns: 4_026_531_840,
        ..Endpoints::default()
    }
}

fn address(text: &str) -> Option<SocketAddr> {
    Some(text.parse().expect("an address"))
}

fn the_ends() -> Ends {
    Ends {
        local: address("10.9.0.1:40112"),
        remote: address("10.9.0.2:443"),
        netns: Some(4_026_531_840),
        v4_mapped: false,
    }
}

fn owner(comm: &[u8]) -> Owner {
    let mut owner = Owner { cgroup_id: 77, pid: 12, tid: 13, uid: 1000, known: 1, ..Owner::default() };
    owner.comm[..comm.len()].copy_from_slice(comm);
    owner
}

fn negotiated() -> Negotiated {
    Negotiated {
        local_isn: 1,
        remote_isn: 2,
        srtt_us: 41_000,
        known: known::LOCAL_ISN | known::REMOTE_ISN | known::OPTIONS | known::SRTT,
        mss: 1460,
        options: option_bits::WINDOW_SCALE | option_bits::SACK,
        local_window_scale: 7,
        remote_window_scale: 9,
        ..Negotiated::default()
    }
}

fn the_agreed() -> Agreed {
    Agreed {
        local_isn: Some(1),
        remote_isn: Some(2),
        srtt_us: Some(41_000),
        mptcp: false,
        repair: false,
        options: Some(Options {
            mss: 1460,
            window_scale: Some((7, 9)),
            sack: true,
            timestamps: false,
            ecn: false,
            windows: None,
            fast_open: None,
            fast_open_cookie: None,
        }),
    }
}

/// One valid event of every kind; the match fails to compile when a kind is added.
fn valid_event(kind: EventKind) -> Vec<u8> {
    let passive = passive_open::PassiveOpen {
        endpoints: endpoints(),
        negotiated: negotiated(),
        old_state: TcpState::SynReceived as u8,
        new_state: TcpState::Established as u8,
        ..Default::default()
    };
    match kind {
        EventKind::SynSent => {
            event(kind, &active_open::SynSent { endpoints: endpoints(), ..Default::default() })
        }
        EventKind::ConnectFailed => {
            event(kind, &active_open::ConnectFailed { errno: 99, ..Default::default() })
        }
        EventKind::LeftSynSent => {
            let new_state = TcpState::Established as u8;
            event(kind, &active_open::LeftSynSent { owner: owner(b"curl"), new_state, ..Default::default() })
        }
        EventKind::ConnectReturned => event(kind, &active_open::ConnectReturned::default()),
        EventKind::FastOpenAnswered => event(kind, &active_open::FastOpenAnswered::default()),
        EventKind::AddressRewritten => event(kind, &active_open::AddressRewritten::default()),
        EventKind::ChildQueued | EventKind::LeftSynReceived | EventKind::RequestDied => event(kind, &passive),
        EventKind::Accepted => event(kind, &accept_queue::Accepted::default()),
        EventKind::ChildDestroyed => event(kind, &accept_queue::ChildDestroyed::default()),
        EventKind::ListenerOpened | EventKind::ListenerClosed => event(kind, &listener::Listener::default()),
        EventKind::ChildUndone => event(kind, &passive_open::ChildUndone { endpoints: endpoints() }),
        EventKind::SynRetransmitted => event(kind, &retransmit::SynRetransmitted::default()),
        EventKind::SegmentDropped => event(kind, &drop::SegmentDropped::default()),
        EventKind::SocketSeen => {
            event(kind, &snapshot::SocketSeen { state: TcpState::Listen as u8, ..Default::default() })
        }
    }
}

#[test]
fn the_header_says_when_where_which_socket_and_how() {
    let observation = decode(&valid_event(EventKind::SynRetransmitted)).expect("a valid event");
    let expected = Observation {
        time_ns: 1000,
        cpu: 1,
        lost_before: 3,
        socket: SocketKey { address: 0xffff_8881_0000_0040, generation_ns: Some(900) },
        attach: Attach::Fentry,
        act: Act::SynRetransmitted { ends: Ends::default(), attempt: None },
    };
    assert_eq!(observation, expected);
}

#[test]
fn syn_sent_says_who_called_connect_and_when() {
    let raw = active_open::SynSent {
        endpoints: endpoints(),
        owner: owner(b"curl"),
        called_ns: 990,
        negotiated: Negotiated { local_isn: 7, known: known::LOCAL_ISN, ..Default::default() },
        flags: active_open::flags::DEFERRED | active_open::flags::OWN,
        reserved: 0,
    };
    let Act::SynSent(seen) = act(EventKind::SynSent, &raw) else { panic!("another act") };
    assert_eq!((seen.ends, seen.called_ns, seen.local_isn), (the_ends(), Some(990), Some(7)));
    assert_eq!((seen.deferred, seen.fast_open, seen.own), (true, false, true));
    let process = seen.process.expect("a process");
    assert_eq!((process.pid, process.tid, process.uid, process.cgroup_id), (12, 13, 1000, Some(77)));
    assert_eq!(process.comm.as_str(), "curl");
}

#[test]
fn connect_failed_keeps_its_errno() {
    let raw = active_open::ConnectFailed { errno: 99, endpoints: endpoints(), ..Default::default() };
    let Act::ConnectFailed(seen) = act(EventKind::ConnectFailed, &raw) else { panic!("another act") };
    assert_eq!((seen.errno, seen.ends, seen.called_ns, seen.process), (99, the_ends(), None, None));
}

#[test]
fn round_trip_of_no_time_is_none() {
    let nothing_measured = Negotiated { srtt_us: 0, ..negotiated() };
    let raw = active_open::LeftSynSent { negotiated: nothing_measured, new_state: 7, ..Default::default() };
    let Act::LeftSynSent(seen) = act(EventKind::LeftSynSent, &raw) else { panic!("another act") };
    assert_eq!(seen.agreed.srtt_us, None);
}

#[test]
fn left_syn_sent_gives_times_state_and_what_was_agreed_on() {
    let raw = active_open::LeftSynSent {
        endpoints: endpoints(),
        owner: owner(b"curl"),
        called_ns: 1,
        syn_sent_ns: 2,
        answered_ns: 3,
        last_retransmit_ns: 0,
        negotiated: negotiated(),
        sk_err_soft: 113,
        flags: active_open::flags::ERROR_KNOWN
            | active_open::flags::RETURN_IS_SEEN
            | active_open::flags::RESET_SENT,
        syn_retransmits: 2,
        new_state: TcpState::Established as u8,
        ..Default::default()
    };
    let Act::LeftSynSent(seen) = act(EventKind::LeftSynSent, &raw) else { panic!("another act") };
    assert_eq!((seen.ends, seen.agreed, seen.new_state), (the_ends(), the_agreed(), TcpState::Established));
    assert_eq!((seen.called_ns, seen.syn_sent_ns, seen.answered_ns), (Some(1), Some(2), Some(3)));
    assert_eq!((seen.last_retransmit_ns, seen.syn_retransmits), (None, 2));
    assert_eq!((seen.sk_err, seen.sk_err_soft), (Some(0), 113));
    assert!(
        seen.return_is_seen && seen.reset_sent && !seen.call_returned && !seen.reset_received && !seen.own
    );
}

#[test]
fn connect_returned_keeps_its_errno() {
    let raw = active_open::ConnectReturned { errno: 115, flags: 0 };
    assert_eq!(act(EventKind::ConnectReturned, &raw), Act::ConnectReturned { errno: 115 });
}

#[test]
fn a_cookie_came_or_did_not_or_is_unknown() {
    let seen = |cookie| {
        let raw = active_open::FastOpenAnswered { cookie, reserved: 0 };
        let Act::FastOpenAnswered { cookie } = act(EventKind::FastOpenAnswered, &raw) else {
            panic!("another act")
        };
        cookie
    };
    assert_eq!([0, 1, 2, 3].map(seen), [None, Some(true), Some(false), None]);
}

#[test]
fn the_three_passive_kinds_share_a_payload_and_keep_their_kind() {
    let raw = passive_open::PassiveOpen {
        endpoints: endpoints(),
        listener: 0xffff_8881_0000_0080,
        syn_ns: 1,
        synack_ns: 2,
        final_ack_ns: 4,
        queued_ns: 5,
        negotiated: negotiated(),
        flags: passive_open::flags::SYN_COOKIE | passive_open::flags::ACCEPT_IS_SEEN,
        accept_queue_length: 3,
        accept_queue_limit: 128,
        syns_seen: 1,
        synack_retransmits: 2,
        new_state: TcpState::SynReceived as u8,
        ..Default::default()
    };
    let Act::ChildQueued(seen) = act(EventKind::ChildQueued, &raw) else { panic!("another act") };
    assert_eq!((seen.ends, seen.agreed, seen.listener), (the_ends(), the_agreed(), Some(raw.listener)));
    assert_eq!((seen.syn_ns, seen.synack_ns, seen.last_retransmit_ns), (Some(1), Some(2), None));
    assert_eq!((seen.final_ack_ns, seen.queued_ns, seen.sk_err), (Some(4), Some(5), None));
    assert_eq!((seen.accept_queue_length, seen.accept_queue_limit), (3, Some(128)));
    assert_eq!((seen.syns_seen, seen.synack_retransmits), (Some(1), 2));
    assert_eq!((seen.old_state, seen.new_state), (None, Some(TcpState::SynReceived)));
    assert!(seen.syn_cookie && seen.accept_is_seen);
    assert!(!seen.fast_open && !seen.defer_accept && !seen.timed_out && !seen.reset_received);
    assert_eq!(act(EventKind::LeftSynReceived, &raw), Act::LeftSynReceived(seen.clone()));
    assert_eq!(act(EventKind::RequestDied, &raw), Act::RequestDied(seen));
}

#[test]
fn a_request_that_died_announced_a_window_and_had_none_announced() {
    let negotiated = Negotiated {
        known: known::OPTIONS | known::LOCAL_WINDOW,
        local_window: 64_240,
        // Not known, whatever stands there.
        remote_window: 5,
        local_mss: 6,
        ..negotiated()
    };
    let raw = passive_open::PassiveOpen { endpoints: endpoints(), negotiated, ..Default::default() };
    let Act::RequestDied(seen) = act(EventKind::RequestDied, &raw) else { panic!("another act") };
    let options = seen.agreed.options.expect("they are known");
    assert_eq!((options.mss, options.window_scale, options.sack), (1460, Some((7, 9)), true));
    assert_eq!(options.windows, Some(Windows { local_mss: None, local: 64_240, remote: None }));
}

#[test]
fn accepted_and_destroyed_children_keep_the_time_of_a_reset() {
    let raw = accept_queue::Accepted {
        endpoints: endpoints(),
        owner: owner(b"nginx"),
        queued_ns: 5,
        reset_ns: 6,
        ..Default::default()
    };
    let Act::Accepted(seen) = act(EventKind::Accepted, &raw) else { panic!("another act") };
    assert_eq!((seen.queued_ns, seen.waiting_since_ns, seen.reset_ns), (Some(5), None, Some(6)));
    assert_eq!((seen.ends, seen.process.map(|process| process.pid)), (the_ends(), Some(12)));
    let raw = accept_queue::ChildDestroyed { queued_ns: 5, reset_ns: 6, ..Default::default() };
    let Act::ChildDestroyed(seen) = act(EventKind::ChildDestroyed, &raw) else { panic!("another act") };
    assert_eq!((seen.queued_ns, seen.reset_ns), (Some(5), Some(6)));
}

#[test]
fn a_listener_on_every_address_has_a_local_end_and_no_remote_one() {
    let mut raw = listener::Listener { accept_queue_limit: 128, own: 1, ..Default::default() };
    raw.endpoints = Endpoints { local_port: 80, family: AF_INET, ..Default::default() };
    let Act::ListenerOpened(seen) = act(EventKind::ListenerOpened, &raw) else { panic!("another act") };
    assert_eq!((seen.ends.local, seen.ends.remote), (address("0.0.0.0:80"), None));
    assert_eq!((seen.accept_queue_limit, seen.own), (Some(128), true));
    raw.endpoints.family = AF_INET6;
    let Act::ListenerClosed(seen) = act(EventKind::ListenerClosed, &raw) else { panic!("another act") };
    assert_eq!(seen.ends.local, address("[::]:80"));
}

#[test]
fn only_a_listener_that_was_there_before_us_has_an_accept_queue() {
    let mut raw = snapshot::SocketSeen {
        accept_queue_length: 1,
        accept_queue_limit: 128,
        queued: 1,
        inode: 9,
        state: TcpState::Listen as u8,
        ..Default::default()
    };
    let Act::SocketSeen(seen) = act(EventKind::SocketSeen, &raw) else { panic!("another act") };
    assert_eq!((seen.accept_queue, seen.queued, seen.inode), (Some((1, 128)), true, Some(9)));
    raw.state = TcpState::Established as u8;
    let Act::SocketSeen(seen) = act(EventKind::SocketSeen, &raw) else { panic!("another act") };
    assert_eq!((seen.accept_queue, seen.state), (None, TcpState::Established));
}

#[test]
fn a_mapped_address_is_folded_to_ipv4_and_the_mapping_is_remembered() {
    let ends = super::endpoint::ends(&Endpoints { family: AF_INET6, flags: V4_MAPPED, ..endpoints() });
    assert_eq!(ends, Ends { v4_mapped: true, ..the_ends() });
}

#[test]
fn an_address_without_a_port_is_kept_and_nothing_at_all_is_absent() {
    let known_address = Endpoints { local_port: 0, remote_port: 0, netns: 0, ..endpoints() };
    let ends = super::endpoint::ends(&known_address);
    assert_eq!((ends.local, ends.remote), (address("10.9.0.1:0"), address("10.9.0.2:0")));
    assert_eq!(ends.netns, None);
    let unknown = Endpoints { local_address: mapped([0; 4]), family: AF_INET, ..Default::default() };
    assert_eq!(super::endpoint::ends(&unknown), Ends::default());
}

#[test]
fn what_was_not_read_from_the_kernel_is_absent_and_not_zero() {
    let nothing = Negotiated { known: 0, ..negotiated() };
    assert_eq!(super::endpoint::agreed(&nothing), Agreed::default());
    assert_eq!(super::endpoint::process(&Owner { known: 0, ..owner(b"x") }), None);
    let process = super::endpoint::process(&Owner { cgroup_id: 0, ..owner(b"a\x1b[2J") }).expect("known");
    assert_eq!((process.cgroup_id, process.comm.as_str()), (None, "a\\u{1b}[2J"));
}

#[test]
fn another_version_kind_or_hook_is_named() {
    let good = valid_event(EventKind::ConnectReturned);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        decode(&bytes).expect_err("damaged")
    };
    assert_eq!(with(2, 9), DecodeError::AbiVersion { version: 9 });
    assert_eq!(with(1, 0x7f), DecodeError::UnknownKind { kind: 0x7f04, size_bytes: 56 });
    assert_eq!(with(6, 4), DecodeError::UnknownAttach { kind: EventKind::ConnectReturned, attach: 4 });
    let (kind, expected, bytes) = (EventKind::ConnectReturned, 56, 56);
    assert_eq!(with(4, 57), DecodeError::WrongSize { kind, expected, claimed: 57, bytes });
}

#[test]
fn a_state_that_does_not_exist_is_an_error() {
    let raw = active_open::LeftSynSent { new_state: 13, ..Default::default() };
    let error = decode(&event(EventKind::LeftSynSent, &raw)).expect_err("no state");
    assert_eq!(error, DecodeError::UnknownState { state: 13 });
    let raw = snapshot::SocketSeen::default();
    let error = decode(&event(EventKind::SocketSeen, &raw)).expect_err("no state");
    assert_eq!(error, DecodeError::UnknownState { state: 0 });
}
