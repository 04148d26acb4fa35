//! A recording made by hand: one of each kind of handshake, with clocks, counters, loss and damage.
//!
//! Its events are built from the shared types, so the compiler keeps it in step with the kernel side. What a
//! newcomer would get wrong: times are chosen to be read in the golden files (phases of whole microseconds),
//! and the order is the ring's, not that of the records.

use bytes::Bytes;
use handshake::{
    model::observation::ClockAnchor,
    source::{
        CounterReading, SourceItem,
        recording::format::{RecordedCgroup, RecordingHeader},
    },
};
use handshake_common::{
    counter::{Counter, SLOTS},
    endpoint::{AF_INET, AF_INET6, Endpoints, V4_MAPPED},
    event::{
        ABI_VERSION, Attach, EventHeader, EventKind,
        accept_queue::{self, Accepted},
        active_open::{self, ConnectFailed, ConnectReturned, FastOpenAnswered, LeftSynSent, SynSent},
        passive_open::{self, PassiveOpen},
        retransmit::SynRetransmitted,
    },
    owner::{self, Owner},
    tcp::{Negotiated, TcpState, known, option_bits},
};
use zerocopy::{Immutable, IntoBytes};

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;

/// The first tick, and the wall time then: 2026-11-21T04:05:06.123456789Z.
const START: u64 = 1000 * S;
const START_WALL: u64 = 1_795_233_906_123_456_789;

pub fn header() -> RecordingHeader {
    RecordingHeader {
        canary: None,
        kernel_release: "6.12.0-hand-made".to_owned(),
        architecture: "x86_64".to_owned(),
        boot_id: "6f1e2c00-0000-4000-8000-000000000000".to_owned(),
        abi_version: ABI_VERSION,
        hooks: vec![("syn_sent".to_owned(), "fentry tcp_connect".to_owned())],
        drop_reasons: vec![(7, "NETFILTER_DROP".to_owned())],
        cgroups: [(70, "/user.slice"), (77, "/system.slice/web.service")]
            .map(|(id, path)| RecordedCgroup {
                id,
                path: path.to_owned(),
                typed: format!("/sys/fs/cgroup{path}"),
            })
            .into(),
    }
}

pub fn items() -> Vec<SourceItem> {
    let mut items = vec![
        SourceItem::Anchor(ClockAnchor {
            monotonic_ns: START,
            boottime_ns: START + 5 * S,
            realtime_ns: START_WALL,
        }),
        SourceItem::Tick { now_ns: START },
    ];
    let mut events = established();
    events.extend(refused());
    events.extend(timed_out());
    events.extend(failed_locally());
    events.extend(cancelled_over_ipv6());
    events.extend(accepted_late());
    events.extend(timed_out_half_open());
    events.extend(fast_opened());
    events.push((START + 9 * S, Bytes::from_static(b"\x77\x77\x01\0\x30\0\x01\0hostile")));
    events.push((START + 9 * S, unknown_kind()));
    events.sort_by_key(|(time, _)| *time);
    let mut events = events.into_iter().peekable();
    for step in 1..=24 {
        let now_ns = START + step * S / 2;
        while let Some((_, event)) = events.next_if(|(time, _)| *time < now_ns) {
            items.push(SourceItem::Event(event));
        }
        if step % 10 == 0 {
            items.push(SourceItem::Counters(Box::new(counters(if step == 10 { 0 } else { 3 }))));
        }
        items.push(SourceItem::Tick { now_ns });
    }
    items
}

/// Both ends of one connection over a wire of 40 ms: client 10.9.0.1 port 40112, server 10.9.0.2 port 443.
fn established() -> Vec<(u64, Bytes)> {
    let called = START + 100 * MS;
    let sent = called + 8 * US;
    let answered = sent + 41 * MS;
    let (client, server) = (ends("10.9.0.1:40112", "10.9.0.2:443"), ends("10.9.0.2:443", "10.9.0.1:40112"));
    let received = sent + 20 * MS;
    let final_ack = received + 9 * US + 40 * MS;
    let queued = final_ack + 2 * US;
    let child = PassiveOpen {
        endpoints: server,
        listener: 0xffff_8880_0000_0100,
        syn_ns: received,
        synack_ns: received + 9 * US,
        final_ack_ns: final_ack,
        queued_ns: queued,
        negotiated: negotiated(0x0bad_f00d, 0xdead_beef),
        flags: passive_open::flags::ACCEPT_IS_SEEN,
        accept_queue_limit: 128,
        syns_seen: 1,
        old_state: TcpState::SynReceived as u8,
        new_state: TcpState::Established as u8,
        ..PassiveOpen::default()
    };
    vec![
        event(EventKind::SynSent, 1, sent, &syn_sent(client, called, "curl")),
        event(
            EventKind::LeftSynSent,
            1,
            answered,
            &LeftSynSent {
                answered_ns: answered,
                negotiated: negotiated(0xdead_beef, 0x0bad_f00d),
                new_state: TcpState::Established as u8,
                ..left(client, called, sent, "curl")
            },
        ),
        event(EventKind::ConnectReturned, 1, answered + 5 * US, &ConnectReturned::default()),
        event(EventKind::ChildQueued, 2, queued, &PassiveOpen { new_state: 0, old_state: 0, ..child }),
        event(EventKind::LeftSynReceived, 2, queued + US, &child),
        event(
            EventKind::Accepted,
            2,
            queued + 31 * US,
            &Accepted {
                endpoints: server,
                owner: owner(99, "nginx"),
                queued_ns: queued,
                waiting_since_ns: sent,
                flags: accept_queue::flags::QUEUEING_SEEN,
                ..Accepted::default()
            },
        ),
    ]
}

fn refused() -> Vec<(u64, Bytes)> {
    let called = START + 300 * MS;
    let sent = called + 11 * US;
    let client = ends("10.9.0.1:40114", "10.9.0.2:81");
    vec![
        event(EventKind::SynSent, 3, sent, &syn_sent(client, called, "nc")),
        event(
            EventKind::LeftSynSent,
            3,
            sent + 812 * US,
            &LeftSynSent {
                answered_ns: sent + 812 * US,
                sk_err: 111,
                flags: active_open::flags::ERROR_KNOWN | active_open::flags::RESET_RECEIVED,
                new_state: TcpState::Closed as u8,
                ..left(client, called, sent, "nc")
            },
        ),
    ]
}

fn timed_out() -> Vec<(u64, Bytes)> {
    let called = START + 400 * MS;
    let sent = called + 7 * US;
    let client = ends("10.9.0.1:40116", "203.0.113.200:65000");
    let again = |attempt| SynRetransmitted { endpoints: client, attempt, reserved: 0 };
    vec![
        event(EventKind::SynSent, 4, sent, &syn_sent(client, called, "a\x1b[31mb")),
        event(EventKind::SynRetransmitted, 4, sent + S, &again(1)),
        event(EventKind::SynRetransmitted, 4, sent + 3 * S, &again(2)),
        event(
            EventKind::LeftSynSent,
            4,
            sent + 7 * S,
            &LeftSynSent {
                last_retransmit_ns: sent + 3 * S,
                sk_err: 110,
                flags: active_open::flags::ERROR_KNOWN,
                syn_retransmits: 2,
                new_state: TcpState::Closed as u8,
                ..left(client, called, sent, "a\x1b[31mb")
            },
        ),
    ]
}

fn failed_locally() -> Vec<(u64, Bytes)> {
    let called = START + 500 * MS;
    let failed = ConnectFailed {
        endpoints: ends("10.9.0.1:0", "10.9.0.2:443"),
        owner: owner(1235, "curl"),
        called_ns: called,
        errno: 99,
        flags: 0,
    };
    vec![event(EventKind::ConnectFailed, 5, called + 3 * US, &failed)]
}

/// A non-blocking socket that is closed in SYN-SENT.
fn cancelled_over_ipv6() -> Vec<(u64, Bytes)> {
    let called = START + 600 * MS;
    let sent = called + 20 * US;
    let client = ends("[2001:db8::1]:50000", "[2001:db8:0:1::ffff:1234]:8443");
    let flags = active_open::flags::CALL_RETURNED
        | active_open::flags::ERROR_KNOWN
        | active_open::flags::RETURN_IS_SEEN;
    vec![
        event(EventKind::SynSent, 6, sent, &syn_sent(client, called, "go")),
        event(EventKind::ConnectReturned, 6, sent + 4 * US, &ConnectReturned { errno: 115, flags: 0 }),
        event(
            EventKind::LeftSynSent,
            6,
            sent + 30 * MS,
            &LeftSynSent { flags, new_state: TcpState::Closed as u8, ..left(client, called, sent, "go") },
        ),
    ]
}

/// A client whose SYN asked for a Fast Open cookie, and whose SYN-ACK carried one.
fn fast_opened() -> Vec<(u64, Bytes)> {
    let called = START + 900 * MS;
    let sent = called + 9 * US;
    let answered = sent + 2 * MS;
    let client = ends("10.9.0.1:40118", "10.9.0.2:443");
    let end = LeftSynSent {
        answered_ns: answered,
        negotiated: negotiated(21, 22),
        flags: active_open::flags::FAST_OPEN | active_open::flags::COOKIE_FOLLOWS,
        new_state: TcpState::Established as u8,
        ..left(client, called, sent, "curl")
    };
    let brought = FastOpenAnswered { cookie: active_open::cookie::RECEIVED, reserved: 0 };
    vec![
        event(EventKind::SynSent, 8, sent, &syn_sent(client, called, "curl")),
        event(EventKind::LeftSynSent, 8, answered, &end),
        event(EventKind::FastOpenAnswered, 8, answered + 3 * US, &brought),
    ]
}

/// Over a mapped address, with a SYN-ACK that was sent again and an application that is busy for two seconds.
fn accepted_late() -> Vec<(u64, Bytes)> {
    let received = START + 700 * MS;
    let final_ack = received + 10 * US + S + 34 * MS;
    let queued = final_ack + 3 * US;
    let mut server = ends("[::ffff:10.9.0.2]:8080", "[::ffff:10.9.0.7]:51000");
    server.flags = V4_MAPPED;
    let child = PassiveOpen {
        endpoints: server,
        syn_ns: received,
        synack_ns: received + 10 * US,
        last_retransmit_ns: received + 10 * US + S,
        final_ack_ns: final_ack,
        queued_ns: queued,
        negotiated: negotiated(7, 8),
        flags: passive_open::flags::ACCEPT_IS_SEEN,
        accept_queue_length: 4,
        accept_queue_limit: 5,
        syns_seen: 1,
        synack_retransmits: 1,
        old_state: TcpState::SynReceived as u8,
        new_state: TcpState::Established as u8,
        ..PassiveOpen::default()
    };
    vec![
        event(EventKind::ChildQueued, 7, queued, &PassiveOpen { new_state: 0, old_state: 0, ..child }),
        event(EventKind::LeftSynReceived, 7, queued + US, &child),
        event(
            EventKind::Accepted,
            7,
            queued + 2 * S,
            &Accepted {
                endpoints: server,
                owner: owner(77, "java"),
                queued_ns: queued,
                waiting_since_ns: queued + 2 * S - 40 * US,
                flags: accept_queue::flags::QUEUEING_SEEN,
                ..Accepted::default()
            },
        ),
    ]
}

/// A request whose SYN-ACKs stayed unanswered: it tells what they agreed on, and not what a final ACK would have told.
fn timed_out_half_open() -> Vec<(u64, Bytes)> {
    let received = START + 800 * MS;
    let request = PassiveOpen {
        endpoints: ends("10.9.0.2:443", "10.9.0.8:52000"),
        listener: 0xffff_8880_0000_0100,
        syn_ns: received,
        synack_ns: received + 8 * US,
        last_retransmit_ns: received + S + 9 * US,
        negotiated: Negotiated {
            srtt_us: 0,
            known: known::LOCAL_ISN | known::REMOTE_ISN | known::OPTIONS | known::LOCAL_WINDOW,
            local_window: 65_160,
            ..negotiated(9, 10)
        },
        flags: passive_open::flags::TIMED_OUT,
        syns_seen: 1,
        synack_retransmits: 1,
        old_state: TcpState::NewSynReceived as u8,
        new_state: TcpState::Closed as u8,
        ..PassiveOpen::default()
    };
    vec![event(EventKind::RequestDied, 8, received + 3 * S, &request)]
}

fn unknown_kind() -> Bytes {
    let mut bytes = EventHeader { kind: 0x0777, ..event_header(EventKind::SynSent, 9, START, 56) };
    bytes.size_bytes = 56;
    [bytes.as_bytes(), &[0; 8]].concat().into()
}

fn counters(ring_full: u64) -> CounterReading {
    let mut by_cpu = vec![[0; SLOTS]; 2];
    by_cpu[0][Counter::Submitted as usize] = 20;
    by_cpu[1][Counter::RingFull as usize] = ring_full;
    CounterReading { by_cpu, missed_probes: Some(0) }
}

fn syn_sent(endpoints: Endpoints, called_ns: u64, comm: &str) -> SynSent {
    let flags = active_open::flags::RETURN_IS_SEEN;
    SynSent { endpoints, owner: owner(1234, comm), called_ns, flags, ..SynSent::default() }
}

fn left(endpoints: Endpoints, called_ns: u64, syn_sent_ns: u64, comm: &str) -> LeftSynSent {
    let flags = active_open::flags::RETURN_IS_SEEN;
    LeftSynSent {
        endpoints,
        owner: owner(1234, comm),
        called_ns,
        syn_sent_ns,
        flags,
        ..LeftSynSent::default()
    }
}

fn negotiated(local_isn: u32, remote_isn: u32) -> Negotiated {
    Negotiated {
        local_isn,
        remote_isn,
        srtt_us: 39_990,
        known: known::LOCAL_ISN | known::REMOTE_ISN | known::OPTIONS | known::SRTT,
        mss: 1460,
        options: option_bits::TIMESTAMPS | option_bits::WINDOW_SCALE | option_bits::SACK,
        local_window_scale: 7,
        remote_window_scale: 9,
        ..Negotiated::default()
    }
}

fn owner(pid: u32, comm: &str) -> Owner {
    // The server's process is in the second cgroup of the header, and nobody else is in any.
    let known = owner::known::FILLED | owner::known::in_cgroups(if pid == 99 { 0b10 } else { 0 });
    let mut owner = Owner { cgroup_id: 77, pid, tid: pid, uid: 1000, known, comm: [0; 16] };
    owner.comm[..comm.len()].copy_from_slice(comm.as_bytes());
    owner
}

fn ends(local: &str, remote: &str) -> Endpoints {
    let [local, remote] = [local, remote].map(|end| end.parse::<std::net::SocketAddr>().unwrap());
    let bytes = |end: std::net::SocketAddr| match end.ip() {
        std::net::IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(address) => address.octets(),
    };
    Endpoints {
        local_address: bytes(local),
        remote_address: bytes(remote),
        local_port: local.port(),
        remote_port: remote.port(),
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        netns: 4_026_531_840,
        ..Endpoints::default()
    }
}

fn event<T: IntoBytes + Immutable>(kind: EventKind, socket: u64, time_ns: u64, payload: &T) -> (u64, Bytes) {
    let payload = payload.as_bytes();
    let header = event_header(kind, socket, time_ns, payload.len());
    (time_ns, [header.as_bytes(), payload].concat().into())
}

fn event_header(kind: EventKind, socket: u64, time_ns: u64, payload_bytes: usize) -> EventHeader {
    EventHeader {
        kind: kind as u16,
        abi_version: ABI_VERSION,
        size_bytes: (size_of::<EventHeader>() + payload_bytes) as u16,
        attach: Attach::Fentry as u8,
        time_ns,
        socket: 0xffff_8880_1000_0000 + (socket << 12),
        generation_ns: START + socket,
        ..EventHeader::default()
    }
}
