//! What fits where: the usual line in 120 columns, long addresses, narrow terminals, escapes.
//!
//! The wide form is in the golden files of `tests/replay`. What a newcomer would get wrong: widths are counted
//! in characters, and escapes have none.

use std::sync::{Arc, Mutex};

use super::*;
use crate::{
    model::{
        handshake::Dropped,
        outcome::{Evidence, EvidenceKind, Flag},
    },
    sinks::json::tests::{accept, client},
};

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// 2026-11-21T04:05:06.123456789Z.
const TIME: u64 = 1_795_233_906_123_456_789;

fn lines(width: u16, handshakes: Vec<Handshake>) -> Vec<String> {
    let out = Shared::default();
    let options = TextOptions {
        colour: false,
        terminal: false,
        width: Some(width),
        zone: TimeZone::UTC,
        slow_ns: None,
        slow_accept_ns: None,
    };
    let mut sink = TextSink::new(out.clone(), options);
    for handshake in handshakes {
        Sink::accept(&mut sink, &Record::Handshake(Box::new(handshake), Some(TIME))).unwrap();
    }
    sink.flush().unwrap();
    let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn what_was_asked_for_is_said_after_the_outcome() {
    let led = Handshake { asked: Some("10.96.0.1:80".parse().unwrap()), ..client() };
    let lines = lines(120, vec![led]);
    assert!(lines[1].ends_with("established, asked for 10.96.0.1:80"), "{lines:?}");
}

#[test]
fn the_usual_line_fits_120_columns_and_names_the_longest_phase() {
    let lines = lines(120, vec![client()]);
    assert_eq!(
        lines,
        [
            "TIME         ROLE     PID COMMAND LOCAL           REMOTE          LATENCY PHASES               RETRANS OUTCOME",
            "04:05:06.123 client  1234 curl    10.9.0.1:40112  10.9.0.2:443    41.0 ms wire 41.0 ms + 13 µs 0       established",
        ]
    );
    assert!(lines.iter().all(|line| line.chars().count() <= 120));
}

#[test]
fn a_late_accept_says_who_was_late() {
    const MS: u64 = 1_000_000;
    for (wait_ns, call_ns, said) in [
        (300 * MS, Some(299 * MS), "accept 300 ms (called late)"),
        (300 * MS, Some(0), "accept 300 ms (woken late)"),
        (300 * MS, None, "accept 300 ms"),
        (MS / 2, Some(0), "accept 500 µs"),
    ] {
        assert_eq!(words::accept_wait(wait_ns, call_ns, Density::Wide), said);
    }
    assert_eq!(words::accept_wait(300 * MS, Some(0), Density::Usual), "accept 300 ms");
}

#[test]
fn a_narrow_terminal_keeps_what_matters_most() {
    assert_eq!(
        lines(80, vec![client()]),
        [
            "TIME     ROLE     PID COMMAND REMOTE          LATENCY OUTCOME",
            "04:05:06 client  1234 curl    10.9.0.2:443    41.0 ms established",
        ]
    );
}

#[test]
fn a_long_address_widens_its_column_for_the_lines_after_it() {
    let mut long = client();
    long.remote = Some("[2001:db8::1234:5678]:443".parse().unwrap());
    let lines = lines(80, vec![client(), long, client()]);
    assert_eq!(lines[2], "04:05:06 client  1234 curl    [2001:db8::1234:5678]:443 41.0 ms established");
    assert_eq!(lines[3], "04:05:06 client  1234 curl    10.9.0.2:443              41.0 ms established");
}

fn failed(outcome: Outcome, kind: EvidenceKind, errno: Option<u32>) -> Handshake {
    let mut handshake = client();
    handshake.outcome = outcome;
    handshake.evidence = Evidence { kind, errno, soft_errno: None, syns: Some(3), syn_acks: None };
    handshake.latency_ns = None;
    handshake
}

#[test]
fn failures_fit_a_terminal_of_120_and_of_80_columns() {
    let failures = || {
        vec![
            failed(Outcome::Refused, EvidenceKind::ResetReceived, Some(111)),
            failed(Outcome::TimedOut, EvidenceKind::RetransmitTimeout, Some(110)),
            failed(Outcome::HostUnreachable, EvidenceKind::SocketError, None),
            failed(Outcome::Cancelled, EvidenceKind::ClosedInSynSent, None),
            failed(Outcome::NeverAccepted, EvidenceKind::ChildDestroyed, None),
        ]
    };
    for width in [120, 80] {
        for line in lines(width, failures()) {
            assert!(line.chars().count() <= usize::from(width), "{line}");
        }
    }
    assert!(lines(120, failures())[1].ends_with(" refused: RST"));
    assert!(lines(120, failures())[2].ends_with(" timed out: 3 SYNs"));
}

#[test]
fn what_was_sent_again_has_a_column_that_grows_with_it() {
    let mut again = client();
    again.retransmits.syn = Some(2);
    again.retransmits.waited_ns = Some(3_004_000_000);
    let lines = lines(200, vec![again, client()]);
    let at = lines[0].find("OUTCOME").unwrap();
    assert!(lines[1].contains(" 2 SYN, 3.004 s "), "{}", lines[1]);
    let outcome = |line: &str| line.chars().skip(lines[0][..at].chars().count()).collect::<String>();
    assert_eq!(
        (outcome(&lines[1]), outcome(&lines[2])),
        ("established".to_owned(), "established".to_owned())
    );
}

#[test]
fn a_narrow_terminal_shows_how_long_accept_was_waited_for() {
    let out = Shared::default();
    let options = TextOptions {
        colour: false,
        terminal: false,
        width: Some(80),
        zone: TimeZone::UTC,
        slow_ns: None,
        slow_accept_ns: None,
    };
    let mut sink = TextSink::new(out.clone(), options);
    Sink::accept(&mut sink, &Record::Accept(Box::new(accept()), Some(TIME))).unwrap();
    sink.flush().unwrap();
    let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains(" 2.000 s accepted"), "{text}");
}

#[test]
fn a_drop_is_told_with_its_reason() {
    let mut dropped = client();
    dropped.flags = vec![Flag::SynDropped];
    dropped.dropped =
        Some(Dropped { segments: 2, cause: EvidenceKind::DropReason, reason: Some("NETFILTER_DROP".into()) });
    assert!(lines(200, vec![dropped])[1].ends_with(" established, 2 SYNs dropped here: NETFILTER_DROP"));
    let mut refused = failed(Outcome::SynDropped, EvidenceKind::AcceptQueueFull, None);
    refused.dropped = Some(Dropped { segments: 1, cause: EvidenceKind::AcceptQueueFull, reason: None });
    assert!(lines(200, vec![refused])[1].ends_with(" SYN dropped: accept queue full, 1 SYN"));
    let mut answered = failed(Outcome::Refused, EvidenceKind::ResetSent, None);
    answered.dropped = Some(Dropped { segments: 1, cause: EvidenceKind::ResetSent, reason: None });
    assert!(lines(200, vec![answered])[1].ends_with(" refused: RST sent, 1 SYN"));
}
