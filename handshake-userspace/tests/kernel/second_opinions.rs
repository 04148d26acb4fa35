//! Fields that say more of a fact that was asked for: they are in a record exactly where docs/EVENTS.md has them.
//!
//! What a reader would get wrong: a scenario need not ask for these, and is held to them all the same. By chance is
//! only what the kernel itself may have or not, as a round trip that it measured by timestamps of a SYN sent again.

use super::{environment::has_probes, record::Record, whole::Whole};

impl Whole<'_> {
    /// What says more of a fact that was asked for, where it must be there and is in bounds: how the kernel measured
    /// the round trip, which part of the wait for accept() was before the call, and that the error was noted before it
    /// ended anything. Tests of their own ask for their values.
    #[track_caller]
    pub(super) fn ask_for_second_opinions(&mut self) {
        let record = self.record;
        match knows_kernel_rtt(record) {
            Known::Always => _ = record.expect_present("kernel_rtt_us"),
            Known::Never => _ = record.expect_absent("kernel_rtt_us"),
            Known::ByChance => {}
        }
        if let (Some(rtt_us), Some(all)) = (record.number("kernel_rtt_us"), record.number("latency_ns")) {
            // With timestamps it counts in milliseconds.
            assert!(rtt_us > 0 && rtt_us <= all / 1_000 + 10_000, "{record}");
        }
        self.asked.insert("kernel_rtt_us".to_owned());
        // A call that began before us is of unknown time; a scenario that has those says so.
        if has_probes() && self.asked.contains("phases.accept_ns") && !self.has_old_calls {
            record.expect_present("phases.accept_call_ns");
        }
        if has_probes() && self.asked.contains("phases.accept_ns") {
            self.asked.insert("phases.accept_call_ns".to_owned());
        }
        // It was noted for an earlier SYN than the one that it ended, or ended none.
        let noted = record.text("evidence.soft_errno");
        let ends_later = record.text("role") == Some("client")
            && matches!(record.text("evidence.kind"), Some("socket_error" | "retransmit_timeout"))
            && record.number("retransmits.syn").is_some_and(|again| again > 0);
        if noted.is_some() && noted == record.text("evidence.errno") && ends_later {
            self.asked.insert("evidence.soft_errno".to_owned());
        }
    }
}

enum Known {
    Always,
    Never,
    ByChance,
}

/// Whether the kernel measured the round trip of a handshake before it was established.
fn knows_kernel_rtt(record: &Record) -> Known {
    let is_server = record.text("role") == Some("server");
    let blurred = ["syn_cookie", "defer_accept", "ack_dropped", "repair"];
    if record.get("latency_ns").is_none() && !record.has_flag("seen_late")
        || is_server && !has_probes()
        || blurred.iter().any(|flag| record.has_flag(flag))
    {
        return Known::Never;
    }
    let again = if is_server { "retransmits.syn_ack" } else { "retransmits.syn" };
    let crossed = record.text("role") == Some("simultaneous");
    let is_plain = record.number(again) == Some(0)
        && !crossed
        && ["fast_open", "seen_late"].iter().all(|flag| !record.has_flag(flag));
    if is_plain { Known::Always } else { Known::ByChance }
}

#[test]
fn a_second_opinion_that_is_missing_or_of_nobody_is_a_failure() {
    let holds = |record: serde_json::Value| {
        let record = Record(record);
        let ask = std::panic::AssertUnwindSafe(|| {
            let mut whole = Whole {
                record: &record,
                asked: std::collections::BTreeSet::new(),
                seen_by: Vec::new(),
                has_old_calls: false,
            };
            whole.ask_for_second_opinions();
            whole.asked.contains("evidence.soft_errno") == record.get("evidence.soft_errno").is_some()
        });
        std::panic::catch_unwind(ask).unwrap_or(false)
    };
    let made = |more: serde_json::Value| {
        let mut record =
            serde_json::json!({ "role": "client", "latency_ns": 5_000, "retransmits": { "syn": 0 } });
        let fields = record.as_object_mut().expect("it is an object");
        fields.extend(more.as_object().expect("it is an object").clone());
        record
    };
    assert!(holds(made(serde_json::json!({ "kernel_rtt_us": 5 }))));
    assert!(!holds(made(serde_json::json!({}))), "the kernel measures each that was sent once");
    assert!(!holds(made(serde_json::json!({ "kernel_rtt_us": 20_000 }))), "no round trip is longer than all");
    assert!(!holds(serde_json::json!({ "role": "client", "kernel_rtt_us": 5 })), "it was not established");
    let noted = |role: &str, soft: &str, again: u64| {
        serde_json::json!({
            "role": role,
            "evidence": { "kind": "socket_error", "errno": "EHOSTUNREACH", "soft_errno": soft },
            "retransmits": { "syn": again },
        })
    };
    assert!(holds(noted("client", "EHOSTUNREACH", 1)));
    assert!(!holds(noted("client", "EHOSTUNREACH", 0)), "what ended the first SYN was not noted before");
    assert!(!holds(noted("client", "ENETUNREACH", 1)));
    assert!(!holds(noted("server", "EHOSTUNREACH", 1)));
}
