//! What the tracker told so far, and what no record may say whatever it was told.
//!
//! What a reader would get wrong: the end of a handshake is no field of its record; but it is the time of an act, as
//! the end of each of its phases is, so that beginning and length together must lead to one that there was.

use std::collections::HashMap;

use handshake::model::{
    adding_up::Heard,
    handshake::{Accept, Handshake, HandshakeUpdate, Key},
    mib::Reconciliation,
    observation::Input,
    outcome::Outcome,
};

/// See the module.
#[derive(Default)]
pub struct Told {
    /// By key: whether its way out of the accept queue was told too.
    handshakes: HashMap<Key, bool>,
    heard: Heard,
    newest_ns: u64,
}

impl Told {
    pub fn hears(&mut self, input: &Input) {
        self.heard.hear(input);
        let time_ns = match input {
            Input::Observation(observation) => observation.time_ns,
            Input::Tick { now_ns } | Input::End { now_ns } => *now_ns,
            Input::Anchor(_) | Input::Mib(_) => 0,
        };
        self.newest_ns = self.newest_ns.max(time_ns);
    }

    pub fn handshakes(&self) -> usize {
        self.handshakes.len()
    }

    pub fn is_final(&self, key: Key) -> bool {
        self.handshakes.contains_key(&key)
    }

    pub fn check(&mut self, updates: impl Iterator<Item = HandshakeUpdate>) {
        for update in updates {
            match update {
                HandshakeUpdate::Handshake(record) => {
                    let left_the_queue =
                        record.phases.accept_ns.is_some() || record.outcome == Outcome::NeverAccepted;
                    let before = self.handshakes.insert(record.key, left_the_queue);
                    assert_eq!(before, None, "final twice: {record:#?}");
                    assert_eq!(self.heard.contradiction(&record), None, "{record:#?}");
                    is_in_order(&record, self.newest_ns);
                }
                HandshakeUpdate::Accept(record) => {
                    let before = self.handshakes.insert(record.key, true);
                    assert_eq!(before, Some(false), "accepted unseen, or twice: {record:#?}");
                    accept_adds_up(&record, self.newest_ns);
                }
            }
        }
    }
}

/// It is over by now, and its flags are in order.
fn is_in_order(record: &Handshake, newest_ns: u64) {
    let whole_ns = record.latency_ns.or(record.failed_after_ns).unwrap_or(0);
    let end_ns = [record.phases.local_ns.unwrap_or(0), whole_ns]
        .into_iter()
        .try_fold(record.began_ns, |time_ns, part_ns| time_ns.checked_add(part_ns));
    assert!(whole_ns == 0 || end_ns.is_some_and(|end_ns| end_ns <= newest_ns), "ends after all that was: {record:#?}");
    let mut flags = record.flags.clone();
    flags.sort_unstable();
    flags.dedup();
    assert_eq!(flags, record.flags, "sorted and without repeats: {record:#?}");
}

fn accept_adds_up(record: &Accept, newest_ns: u64) {
    assert!(record.time_ns <= newest_ns && record.wait_ns.unwrap_or(0) <= record.time_ns, "{record:#?}");
    if let Some(call_ns) = record.call_ns {
        assert!(record.wait_ns.is_some_and(|wait_ns| call_ns <= wait_ns), "{record:#?}");
    }
}

/// Each row is the sum of its namespaces, and nothing is missing and too many at once in one of them.
pub fn account_adds_up(account: &Reconciliation) {
    for difference in &account.differences {
        let row = difference.compared;
        assert!(row.missing == 0 || row.surplus == 0, "{account:#?}");
        assert_eq!(row.kernel - row.missing, row.seen - row.surplus, "{account:#?}");
    }
    for (tally, row) in account.compared() {
        let of_tally = || account.differences.iter().filter(|difference| difference.tally == tally);
        // Few namespaces, so every difference is named.
        assert_eq!(row.missing, of_tally().map(|difference| difference.compared.missing).sum::<u64>());
        assert_eq!(row.surplus, of_tally().map(|difference| difference.compared.surplus).sum::<u64>());
    }
    assert!(account.not_compared.is_none() || account.namespaces == 0, "{account:#?}");
}
