//! How many observations a second the tracker takes: `cargo run --release --example tracker_throughput`.
//!
//! Loopback connections, both ends, six acts each, a tenth of them out of order, a tick every 50 ms of their
//! time. What a newcomer would get wrong: decoding and the allocation of the observations are not in it.

use std::{
    error::Error,
    net::SocketAddr,
    time::{Duration, Instant},
};

use handshake::{
    model::{
        observation::{
            Accepted, Act, Agreed, Ends, Input, LeftSynSent, Observation, PassiveOpen, SocketKey, SynSent,
        },
        process::{Process, SafeText},
    },
    tracker::{Tracker, TrackerConfig},
};
use handshake_common::{event::Attach, tcp::TcpState};

const CONNECTIONS: u64 = 100_000;
/// A hundred thousand connections a second, more than a host makes.
const GAP_NS: u64 = 10_000;
const START_NS: u64 = 1_000_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut best = Duration::MAX;
    let mut observed = 0;
    for _ in 0..5 {
        let inputs = inputs();
        observed = inputs.len();
        let mut tracker = Tracker::new(TrackerConfig::default());
        let mut records = Vec::with_capacity(1024);
        let mut written = 0;
        let began = Instant::now();
        for input in inputs {
            tracker.observe(input, &mut records);
            if records.len() >= 1000 {
                written += records.len();
                records.clear();
            }
        }
        best = best.min(began.elapsed());
        written += records.len();
        let counts = tracker.counts();
        if written as u64 != 2 * CONNECTIONS || counts.established != 2 * CONNECTIONS || counts.late != 0 {
            return Err(format!("{written} records, {counts:?}").into());
        }
    }
    println!(
        "{observed} inputs in {best:?}: {:.2} million a second",
        observed as f64 / best.as_secs_f64() / 1e6
    );
    Ok(())
}

fn inputs() -> Vec<Input> {
    let mut acts: Vec<(u64, Input)> = (0..CONNECTIONS).flat_map(connection).collect();
    let last_ns = START_NS + CONNECTIONS * GAP_NS;
    acts.extend((START_NS..last_ns).step_by(50_000_000).map(|now_ns| (now_ns, Input::Tick { now_ns })));
    acts.sort_by_key(|(arrival_ns, _)| *arrival_ns);
    let end = Input::End { now_ns: last_ns + 1_000_000_000 };
    acts.into_iter().map(|(_, input)| input).chain([end]).collect()
}

/// The acts of one connection, each with the time at which it arrives.
fn connection(number: u64) -> Vec<(u64, Input)> {
    let began_ns = START_NS + number * GAP_NS;
    let local = Some(SocketAddr::from(([127, 0, 0, 1], (number % 28_000 + 32_768) as u16)));
    let remote = Some(SocketAddr::from(([127, 0, 0, 1], 443)));
    let client = Ends { local, remote, netns: Some(1), v4_mapped: false };
    let server = Ends { local: remote, remote: local, ..client };
    let process = Process {
        pid: 1,
        tid: 1,
        uid: 0,
        comm: SafeText::from_kernel_bytes(b"bench\0"),
        cgroup_id: Some(1),
        in_cgroups: 0,
    };
    let agreed = Agreed {
        local_isn: Some(1),
        remote_isn: Some(number as u32),
        srtt_us: Some(30),
        options: None,
        mptcp: false,
        repair: false,
    };
    let child = PassiveOpen {
        ends: server,
        listener: Some(1),
        syn_ns: Some(began_ns + 3_000),
        synack_ns: Some(began_ns + 6_000),
        last_retransmit_ns: None,
        final_ack_ns: Some(began_ns + 20_000),
        queued_ns: Some(began_ns + 22_000),
        agreed,
        sk_err: None,
        accept_queue_length: 0,
        accept_queue_limit: Some(128),
        syns_seen: Some(1),
        synack_retransmits: 0,
        old_state: Some(TcpState::SynReceived),
        new_state: Some(TcpState::Established),
        syn_cookie: false,
        fast_open: false,
        defer_accept: false,
        syn_not_seen: false,
        syn_table_full: false,
        reset_received: false,
        timed_out: false,
        accept_is_seen: true,
        ack_dropped: false,
        end_not_seen: false,
        still_open: false,
        reset_sent: false,
        mptcp_join: false,
        icmp_received: false,
        acknowledged: false,
        other_syn: false,
        own: false,
    };
    let left = LeftSynSent {
        ends: client,
        process: Some(process.clone()),
        called_ns: Some(began_ns),
        syn_sent_ns: Some(began_ns + 1_000),
        answered_ns: Some(began_ns + 10_000),
        last_retransmit_ns: None,
        agreed,
        sk_err: Some(0),
        sk_err_soft: 0,
        syn_retransmits: 0,
        new_state: TcpState::Established,
        deferred: false,
        fast_open: false,
        reset_received: false,
        reset_sent: false,
        call_returned: false,
        end_time_unknown: false,
        found_late: false,
        syn_time_lost: false,
        mptcp_join: false,
        syn_data: false,
        syn_data_acked: false,
        cookie_follows: false,
        return_is_seen: true,
        own: false,
    };
    let syn = SynSent {
        ends: client,
        process: Some(process.clone()),
        called_ns: Some(began_ns),
        local_isn: Some(1),
        deferred: false,
        fast_open: false,
        own: false,
    };
    let accepted = Accepted {
        ends: server,
        process: Some(process),
        queued_ns: Some(began_ns + 22_000),
        waiting_since_ns: None,
        reset_ns: None,
        before_established: false,
        call_not_seen: false,
    };
    // Sockets are used again, as the kernel's allocator does it.
    let socket = |base: u64| SocketKey {
        address: 0xffff_8880_0000_0000 + base + number % 5_000 * 2_432,
        generation_ns: Some(began_ns),
    };
    let (ours, theirs) = (socket(0), socket(0x1000_0000));
    let acts = [
        (1_000, ours, Act::SynSent(syn)),
        (12_000, ours, Act::LeftSynSent(Box::new(left))),
        (22_000, theirs, Act::ChildQueued(Box::new(child.clone()))),
        (23_000, theirs, Act::LeftSynReceived(Box::new(child))),
        (30_000, ours, Act::ConnectReturned { errno: 0 }),
        (40_000, theirs, Act::Accepted(accepted)),
    ];
    let observed = |(index, (after_ns, socket, act)): (usize, (u64, SocketKey, Act))| {
        let time_ns = began_ns + after_ns;
        let cpu = (number % 4) as u32;
        let observation = Observation { time_ns, cpu, lost_before: 0, socket, attach: Attach::Fentry, act };
        let delay_ns = if (number + index as u64).is_multiple_of(10) { 5_000_000 } else { 0 };
        (time_ns + delay_ns, Input::Observation(Box::new(observation)))
    };
    acts.into_iter().enumerate().map(observed).collect()
}
