//! Acts in any order, of any socket, at any times, with the kernel's counters and suspends in between: the sums
//! close, nothing is final twice, and no record contradicts itself.
//!
//! What a reader would get wrong: acts arrive in one order and happened in another. The time in a header may lie
//! within the tracker's window, before it (then it comes late) or hours ahead.

#![no_main]

mod script;
mod told;

use handshake::{
    model::observation::Input,
    tracker::{Step, Tracker, TrackerConfig},
};
use libfuzzer_sys::fuzz_target;
use script::Script;
use told::Told;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script::new(bytes);
    let limits = script.byte();
    let config = TrackerConfig {
        max_open: usize::from(limits & 7),
        max_queued: usize::from(limits >> 3 & 3),
        max_held: if limits & 0x80 == 0 { 1_000 } else { 2 },
        ..TrackerConfig::default()
    };
    let (max_open, max_queued) = (config.max_open as u64, config.max_queued as u64);
    let mut tracker = Tracker::new(config);
    let mut told = Told::default();
    let mut out = Vec::new();
    let mut late = 0;
    while let Some(input) = script.next() {
        let Some(input) = input else { continue };
        told.hears(&input);
        let is_act = matches!(input, Input::Observation(_));
        tracker.observe(input, &mut out);
        told.check(out.drain(..));
        let counts = tracker.counts();
        assert_eq!(counts.seen, counts.established + counts.failed + counts.in_flight);
        assert_eq!(told.handshakes() as u64, counts.established + counts.failed);
        assert!(counts.in_flight <= max_open + 1 && counts.queued <= max_queued);
        assert!(counts.late == late || is_act && counts.late == late + 1, "only an act is late, and once");
        late = counts.late;
        let mut open = 0;
        for handshake in tracker.open_handshakes() {
            open += 1;
            assert!(
                !told.is_final(handshake.key) || handshake.step == Step::InAcceptQueue,
                "final and open: {handshake:?}"
            );
        }
        assert_eq!(open, counts.in_flight + counts.queued);
        tracker.reconciliation().into_iter().for_each(told::account_adds_up);
    }
    let end = Input::End { now_ns: script.now_ns };
    told.hears(&end);
    tracker.observe(end, &mut out);
    told.check(out.drain(..));
    let counts = tracker.counts();
    assert_eq!((counts.in_flight, counts.queued), (0, 0));
    assert_eq!(told.handshakes() as u64, counts.seen);
    tracker.reconciliation().into_iter().for_each(told::account_adds_up);
});
