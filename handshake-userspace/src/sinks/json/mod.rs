//! JSON Lines: one record per line, the contract with every program that reads us.
//!
//! Every line has `schema`, `kind` and, once the clock is known, `time` (RFC 3339, UTC, nanoseconds). A
//! field that is unknown is absent: never null, never 0. Fields are added and never renamed. 64-bit ids are
//! strings, since JSON readers keep 53 bits. What a newcomer would get wrong: `time` is when the handshake
//! began, so lines are not sorted by it.
//!
//! A client's handshake (here on several lines, in a file on one):
//!
//! ```json
//! {"schema":1,"kind":"handshake","time":"2026-11-21T04:05:06.123456789Z","key":"6f1e2c00-1042",
//!  "id":"0badf00ddeadbeef","role":"client","outcome":"established",
//!  "local":{"address":"10.9.0.1","port":40112},"remote":{"address":"10.9.0.2","port":443},
//!  "netns":4026531840,"process":{"pid":1234,"tid":1234,"comm":"curl","uid":1000,"cgroup_id":"77"},
//!  "latency_ns":41020331,"rtt_ns":41012210,"kernel_rtt_us":41010,
//!  "phases":{"local_ns":8121,"wire_ns":41012210,"wake_ns":5023},
//!  "retransmits":{"syn":0,"waited_ns":0},"isn":{"local":3735928559,"remote":195948557},
//!  "options":{"mss":1460,"window_scale":{"local":7,"remote":7},"sack":true,"timestamps":true,"ecn":false,"fast_open":"none",
//!  "local_mss":1460,"window":{"local":64240,"remote":65160}},
//!  "flags":[],"attach":"fentry"}
//! ```
//!
//! A server's differs in `"role":"server"`, `"phases":{"synack_ns":9120,"ack_ns":40110220,"accept_ns":31022,"accept_call_ns":0}`,
//! `"retransmits":{"syn_ack":0,"syn_seen":1,"waited_ns":0}` and `"accept_queue":{"length":1,"limit":128}`.
//! Whatever rests on more than the change of state to ESTABLISHED names its evidence:
//! `"outcome":"refused","evidence":{"kind":"reset_received","errno":"ECONNREFUSED","syns":1}`.
//!
//! The later fate of a child that was still queued when its handshake record was written; `key` joins them:
//!
//! ```json
//! {"schema":1,"kind":"accept","time":"2026-11-21T04:05:08.123456789Z","key":"6f1e2c00-1043",
//!  "id":"0badf00ddeadbeef","outcome":"accepted","local":{"address":"10.9.0.2","port":443},
//!  "remote":{"address":"10.9.0.1","port":40112},"netns":4026531840,
//!  "process":{"pid":99,"tid":99,"comm":"nginx","uid":33,"cgroup_id":"78"},"wait_ns":2000000000,
//!  "call_ns":1999990000,"attach":"fentry"}
//! ```
//!
//! The accounting, every 10 s and last of all (`lost` is the sum of everything that counts as lost; the
//! kernel's counters are absent when none were read):
//!
//! ```json
//! {"schema":1,"kind":"health","time":"2026-11-21T04:05:10.000000000Z","seen":3,"established":2,"failed":1,
//!  "in_flight":0,"incomplete":0,"queued":0,"lost":0,"unmatched":0,"table_full":0,"late":0,"ends_unseen":0,
//!  "outcomes":{"established":2,"refused":1},"kernel":{"filtered":0,"ring_full":0,"submitted":9},
//!  "ring_full_by_cpu":{},"missed_probes":0,"undecodable":0,"unknown_kind":0,"sink_dropped":0,
//!  "filtered_unknown":0,"canary":"passed","kernel_counters":{"agree":false,"namespaces":2,"namespaces_left_out":0,
//!  "active_opens":{"kernel":3,"seen":2,"missing":1},"passive_opens":{"kernel":1,"seen":1},
//!  "failed_opens":{"kernel":1,"seen":1},"unexplained":1,
//!  "differences":[{"netns":4026531840,"of":"active_opens","kernel":2,"seen":1,"missing":1}]}}
//! ```
//!
//! Loss, at the first one and then at each doubling:
//!
//! ```json
//! {"schema":1,"kind":"lost","time":"2026-11-21T04:05:10.000000000Z","total":3,"grown":3,
//!  "causes":{"ring_full":3}}
//! ```

mod account;
mod second_account;
mod wire;
pub mod words;

#[cfg(test)]
pub(in crate::sinks) mod tests;

use std::io::{self, Write};

use super::{Record, Sink, SinkError};

/// Appends one record and its line break.
pub fn write_line(record: &Record, out: &mut Vec<u8>) -> io::Result<()> {
    let before = out.len();
    let written = match record {
        Record::Handshake(handshake, time) => {
            serde_json::to_writer(&mut *out, &wire::Handshake::new(handshake, *time))
        }
        Record::Accept(accept, time) => serde_json::to_writer(&mut *out, &wire::Accept::new(accept, *time)),
        Record::Health(health, time) => {
            serde_json::to_writer(&mut *out, &account::Health::new(health, *time))
        }
        Record::Lost(lost, time) => serde_json::to_writer(&mut *out, &account::Lost::new(lost, *time)),
    };
    if let Err(error) = written {
        out.truncate(before);
        return Err(error.into());
    }
    out.push(b'\n');
    Ok(())
}

/// Writes JSON Lines.
pub struct JsonSink<W> {
    out: W,
    buffer: Vec<u8>,
}

/// A batch of this size is written before its end.
const BUFFER_BYTES: usize = 64 << 10;

impl<W: Write + Send> JsonSink<W> {
    /// Writes to `out`, which needs no buffer of its own.
    pub fn new(out: W) -> Self {
        JsonSink { out, buffer: Vec::with_capacity(BUFFER_BYTES) }
    }

    fn write_out(&mut self) -> Result<(), SinkError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let records = self.buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
        let result = self.out.write_all(&self.buffer).and_then(|()| self.out.flush());
        self.buffer.clear();
        result.map_err(|error| super::stdout::sink_error(error, records))
    }
}

impl<W: Write + Send> Sink for JsonSink<W> {
    fn accept(&mut self, record: &Record) -> Result<(), SinkError> {
        write_line(record, &mut self.buffer).map_err(|error| super::stdout::sink_error(error, 1))?;
        if self.buffer.len() >= BUFFER_BYTES { self.write_out() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        self.write_out()
    }
}
