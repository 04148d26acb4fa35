//! What fits where: the usual line in 120 columns, long addresses, narrow terminals, escapes.
//!
//! The wide form is in the golden files of `tests/replay`. What a newcomer would get wrong: widths are counted
//! in characters, and escapes have none.

use std::sync::{Arc, Mutex};

use super::*;
use crate::sinks::json::tests::client;

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
fn the_usual_line_fits_120_columns_and_names_the_longest_phase() {
    let lines = lines(120, vec![client()]);
    assert_eq!(
        lines,
        [
            "TIME            ROLE      PID COMMAND LOCAL           REMOTE          LATENCY PHASES               RETRANS OUTCOME",
            "04:05:06.123456 client   1234 curl    10.9.0.1:40112  10.9.0.2:443    41.0 ms wire 41.0 ms + 13 µs 0       established",
        ]
    );
    assert!(lines.iter().all(|line| line.chars().count() <= 120));
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
