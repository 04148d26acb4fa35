//! What holds of any record of a handshake: its phases add up to the whole, and counts that say the same agree.
//!
//! What a reader would get wrong: what is absent agrees with everything; that a field is there, `whole` asks. What
//! adds up to what is said in one place, the library's `model::adding_up`, for the tracker's properties and the fuzzer
//! too; only how long a real kernel takes is asked here.

use handshake::model::{
    adding_up::Sums,
    handshake::{Phases, Retransmits},
    outcome::Role,
};

use super::record::Record;

/// For the kernel's work on the segment that establishes a connection. Half of what TCP waits at least before it sends
/// a SYN or a SYN-ACK again, so that no such wait hides in it, and a thousand times what an emulated CPU takes.
const LONGEST_REST_NS: u64 = 500_000_000;

/// What is never 0; what is not known is absent.
const TAKES_TIME: [&str; 9] = [
    "latency_ns",
    "failed_after_ns",
    "rtt_ns",
    "kernel_rtt_us",
    "phases.local_ns",
    "phases.wire_ns",
    "phases.wake_ns",
    "phases.ack_ns",
    "phases.accept_ns",
];

impl Record {
    /// What holds of any record of a handshake.
    #[track_caller]
    pub fn expect_to_add_up(&self) {
        // Between any two of these acts some time passed. A SYN-ACK's is known to the microsecond only.
        for takes_time in TAKES_TIME {
            assert_ne!(self.number(takes_time), Some(0), "{takes_time} of {self}");
        }
        let sums = self.sums();
        if let Some(what) = sums.contradiction() {
            panic!("{what}: {self}");
        }
        // A simultaneous open goes on for half a round trip after the SYN that its phase ends with, and these two are
        // requests that the kernel kept for another ACK.
        let waits_on =
            sums.role == Role::Simultaneous || self.has_flag("defer_accept") || self.has_flag("ack_dropped");
        let is_done_at_once = sums.is_made && !waits_on;
        if let Some(rest_ns) = sums.rest_ns().filter(|_| is_done_at_once) {
            assert!(rest_ns <= LONGEST_REST_NS, "{rest_ns} ns are in no phase: {self}");
        }
    }

    /// Its times and counts, as the tracker had them.
    fn sums(&self) -> Sums {
        let number = |path: &str| self.number(path);
        let count = |path: &str| number(path).map(|count| u32::try_from(count).expect("counts are small"));
        Sums {
            role: match self.text("role") {
                Some("server") => Role::Server,
                Some("simultaneous") => Role::Simultaneous,
                _ => Role::Client,
            },
            is_made: matches!(self.text("outcome"), Some("established" | "never_accepted")),
            latency_ns: number("latency_ns"),
            failed_after_ns: number("failed_after_ns"),
            rtt_ns: number("rtt_ns"),
            phases: Phases {
                local_ns: number("phases.local_ns"),
                wire_ns: number("phases.wire_ns"),
                wake_ns: number("phases.wake_ns"),
                synack_ns: number("phases.synack_ns"),
                ack_ns: number("phases.ack_ns"),
                accept_ns: number("phases.accept_ns"),
                accept_call_ns: number("phases.accept_call_ns"),
            },
            retransmits: Retransmits {
                syn: count("retransmits.syn"),
                syn_ack: count("retransmits.syn_ack"),
                syn_seen: count("retransmits.syn_seen"),
                waited_ns: number("retransmits.waited_ns"),
            },
            sent: count("evidence.syns").or(count("evidence.syn_acks")),
            syn_dropped: self.has_flag("syn_dropped"),
        }
    }
}

#[test]
fn a_record_that_does_not_add_up_is_a_failure() {
    // A client's, then a server's: each adds up until one field is another.
    let right = [
        serde_json::json!({
            "role": "client", "outcome": "established", "latency_ns": 9, "rtt_ns": 8,
            "phases": { "local_ns": 3, "wire_ns": 8, "wake_ns": 2 }, "retransmits": { "syn": 0, "waited_ns": 0 },
            "evidence": { "syns": 1 }
        }),
        serde_json::json!({
            "role": "server", "outcome": "established", "latency_ns": 9, "rtt_ns": 6,
            "phases": { "synack_ns": 2, "ack_ns": 6, "accept_ns": 5, "accept_call_ns": 4 },
            "retransmits": { "syn_ack": 0, "syn_seen": 1, "waited_ns": 0 }, "evidence": { "syn_acks": 1 }
        }),
    ];
    let adds_up = |record: &serde_json::Value| {
        let record = Record(record.clone());
        let add_up = std::panic::AssertUnwindSafe(|| record.expect_to_add_up());
        std::panic::catch_unwind(add_up).is_ok()
    };
    for record in &right {
        assert!(adds_up(record), "{record}");
    }
    let long = LONGEST_REST_NS + 9;
    for (which, field, wrong) in [
        (0, "/latency_ns", 0),
        (0, "/phases/wake_ns", 0),
        (0, "/latency_ns", 7),
        (0, "/latency_ns", long),
        (0, "/rtt_ns", 7),
        (0, "/retransmits/syn", 1),
        (0, "/retransmits/waited_ns", 1),
        (0, "/evidence/syns", 2),
        (1, "/phases/synack_ns", 4),
        (1, "/latency_ns", long),
        (1, "/rtt_ns", 8),
        (1, "/phases/accept_call_ns", 6),
        (1, "/retransmits/syn_seen", 2),
        (1, "/evidence/syn_acks", 3),
    ] {
        let mut record = right[which].clone();
        *record.pointer_mut(field).expect("it is there") = wrong.into();
        assert!(!adds_up(&record), "{record}");
    }
}
