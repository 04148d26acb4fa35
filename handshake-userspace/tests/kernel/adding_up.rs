//! What holds of any record of a handshake: a part is no longer than the whole, and counts that say the same agree.
//!
//! What a reader would get wrong: what is absent agrees with everything; that a field is there, `whole` asks.

use super::record::Record;

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
        let number = |path: &str| self.number(path);
        // Between any two of these acts some time passed. A SYN-ACK's is known to the microsecond only.
        for takes_time in TAKES_TIME {
            assert_ne!(number(takes_time), Some(0), "{takes_time} of {self}");
        }
        let all = number("latency_ns").or(number("failed_after_ns"));
        let parts = number("phases.synack_ns").unwrap_or(0) + number("phases.ack_ns").unwrap_or(0);
        for part in [number("phases.wire_ns"), Some(parts), number("retransmits.waited_ns")] {
            if let (Some(part), Some(all)) = (part, all) {
                assert!(part <= all, "a part is longer than the whole: {self}");
            }
        }
        if let Some(until_called) = number("phases.accept_call_ns") {
            assert!(number("phases.accept_ns").is_some_and(|all| until_called <= all), "{self}");
        }
        if let Some(round_trip) = number("rtt_ns") {
            let counted = [number("phases.wire_ns"), number("phases.ack_ns")];
            assert!(counted.contains(&Some(round_trip)), "the round trip is no phase: {self}");
        }
        for (sent, again) in
            [("evidence.syns", "retransmits.syn"), ("evidence.syn_acks", "retransmits.syn_ack")]
        {
            if let Some(sent) = number(sent) {
                assert_eq!(Some(sent - 1), number(again), "{self}");
            }
        }
    }
}

#[test]
fn a_record_that_does_not_add_up_is_a_failure() {
    let all_zero =
        serde_json::json!({ "latency_ns": 0, "phases": { "local_ns": 0, "wire_ns": 0, "wake_ns": 0 } });
    for wrong in [
        all_zero,
        serde_json::json!({ "latency_ns": 5, "rtt_ns": 5, "phases": { "wire_ns": 5, "wake_ns": 0 } }),
        serde_json::json!({ "latency_ns": 5, "phases": { "synack_ns": 0, "ack_ns": 0 } }),
        serde_json::json!({ "failed_after_ns": 0, "phases": { "local_ns": 5 } }),
        serde_json::json!({ "phases": { "accept_ns": 0, "accept_call_ns": 0 } }),
        serde_json::json!({ "latency_ns": 5, "phases": { "wire_ns": 6 } }),
        serde_json::json!({ "latency_ns": 5, "phases": { "synack_ns": 3, "ack_ns": 3 } }),
        serde_json::json!({ "failed_after_ns": 5, "retransmits": { "waited_ns": 6 } }),
        serde_json::json!({ "latency_ns": 5, "rtt_ns": 4, "phases": { "wire_ns": 5 } }),
        serde_json::json!({ "evidence": { "syns": 2 }, "retransmits": { "syn": 0 } }),
        serde_json::json!({ "phases": { "accept_ns": 5, "accept_call_ns": 6 } }),
        serde_json::json!({ "phases": { "accept_call_ns": 6 } }),
    ] {
        let record = Record(wrong);
        let add_up = std::panic::AssertUnwindSafe(|| record.expect_to_add_up());
        assert!(std::panic::catch_unwind(add_up).is_err(), "{record}");
    }
}
