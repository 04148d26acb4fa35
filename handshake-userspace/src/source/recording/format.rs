//! The recording format: a magic, a version, then frames of kind, length and payload, little-endian.
//!
//! A recording holds all that the tracker was given, in order: raw events, ticks, clock anchors and the
//! kernel side's counters; so it replays to the same records on any machine. What a newcomer would get
//! wrong: events are the kernel side's bytes untouched, even those that `decode` refused, and their layout
//! is versioned by `abi_version` in the header, not by the format version here.
//!
//! ```text
//! magic "hsrec\x1a\r\n"   version u32   frame*
//! frame: kind u16   reserved u16 (0)   length u32   payload
//! 1 header    lines name=value: kernel, architecture, byte_order, boot_id, abi_version, canary, hook.NAME,
//!             drop_reason.NUMBER, cgroup.BIT (its id and path), cgroup_typed.BIT
//! 2 event     one ring buffer record
//! 3 tick      CLOCK_MONOTONIC u64
//! 4 anchor    monotonic u64, boottime u64, realtime u64
//! 5 counters  cpus u32, slots u32, missed probes known u64 (0 or 1), missed probes u64, cpus * slots u64
//! 6 gap       u64: how many frames the recorder could not keep up with here
//! 7 end       the recorder ended in good order
//! 8 mib       refused u32 (0 no, 1 filtered), requests are seen u32 (0 or 1), unread namespaces u32, counters u32;
//!             for each namespace: inode u32, reserved u32 (0), from u64, to u64 (CLOCK_MONOTONIC), known u64
//!             (bit n: counter n is), counters u64 each, in the order of MibCounter
//! 0x10-0x1f   reserved for answers of enrichment (process, container)
//! ```

use bytes::{BufMut, BytesMut};
use handshake_common::filter::MAX_ENTRIES;

use super::mib;
use crate::{
    model::health::Canary,
    source::{CounterReading, SourceItem},
};

/// The first bytes of every recording: a control character and a line break betray a transfer as text.
pub const MAGIC: [u8; 8] = *b"hsrec\x1a\r\n";

/// Raised when frames change their meaning. New kinds of frame don't raise it: readers skip them.
pub const FORMAT_VERSION: u32 = 1;

/// No frame is longer: the counters of 8192 CPUs (Linux has no more) fit. It bounds what a hostile length
/// can make us allocate.
pub const MAX_FRAME_BYTES: u32 = 2 << 20;

/// Bytes before each payload.
pub const FRAME_HEADER_BYTES: usize = 8;

/// Kind of the header frame, which comes first.
pub const HEADER: u16 = 1;
/// Kind of an event.
pub const EVENT: u16 = 2;
/// Kind of a tick.
pub const TICK: u16 = 3;
/// Kind of a clock anchor.
pub const ANCHOR: u16 = 4;
/// Kind of a reading of the counters.
pub const COUNTERS: u16 = 5;
/// Kind of a gap.
pub const GAP: u16 = 6;
/// Kind of a reading of the kernel's own counters.
pub const MIB: u16 = 8;
/// Kind of the last frame.
pub const END: u16 = 7;

/// Where and how a recording was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordingHeader {
    /// `uname -r`.
    pub kernel_release: String,
    /// `uname -m`.
    pub architecture: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// [`handshake_common::event::ABI_VERSION`] of the writer.
    pub abi_version: u16,
    /// Name of each hook, and how it was attached.
    pub hooks: Vec<(String, String)>,
    /// The kernel's drop reasons, by number.
    pub drop_reasons: Vec<(u32, String)>,
    /// What came of the canary.
    pub canary: Option<Canary>,
    /// The cgroups that `--cgroup` named: what the bits of an owner stand for.
    pub cgroups: Vec<RecordedCgroup>,
}

/// A cgroup that `record --cgroup` was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordedCgroup {
    /// Its id then.
    pub id: u64,
    /// Its path below the root of the hierarchy.
    pub path: String,
    /// What the user had typed, which may be something else again.
    pub typed: String,
}

impl RecordingHeader {
    /// The part of the boot id that goes into every record's key.
    pub fn boot(&self) -> u32 {
        boot_number(&self.boot_id)
    }

    /// The payload of the header frame.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            // A line break would forge a field; none of these values has one on a sane kernel.
            text.push_str(&name.replace(['\n', '='], " "));
            text.push('=');
            text.push_str(&value.replace('\n', " "));
            text.push('\n');
        };
        line("kernel", &self.kernel_release);
        line("architecture", &self.architecture);
        line("byte_order", "little");
        line("boot_id", &self.boot_id);
        line("abi_version", &self.abi_version.to_string());
        if let Some(canary) = self.canary {
            line("canary", canary.word());
        }
        for (hook, attached) in &self.hooks {
            line(&format!("hook.{hook}"), attached);
        }
        for (number, name) in &self.drop_reasons {
            line(&format!("drop_reason.{number}"), name);
        }
        for (bit, cgroup) in self.cgroups.iter().enumerate() {
            line(&format!("cgroup.{bit}"), &format!("{} {}", cgroup.id, cgroup.path));
            line(&format!("cgroup_typed.{bit}"), &cgroup.typed);
        }
        text
    }

    /// Reads what [`Self::to_text`] wrote; names that we don't know are skipped.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let mut header = RecordingHeader::default();
        for line in text.lines() {
            let (name, value) = line.split_once('=').ok_or("a header line without `=`")?;
            match name {
                "kernel" => header.kernel_release = value.to_owned(),
                "architecture" => header.architecture = value.to_owned(),
                "boot_id" => header.boot_id = value.to_owned(),
                "canary" => header.canary = Canary::of_word(value),
                "abi_version" => {
                    header.abi_version = value.parse().map_err(|_| "an abi_version that is no number")?;
                }
                "byte_order" if value != "little" => {
                    return Err("it was made on a big-endian machine".to_owned());
                }
                _ => {
                    if let Some(hook) = name.strip_prefix("hook.") {
                        header.hooks.push((hook.to_owned(), value.to_owned()));
                    } else if let Some(number) = name.strip_prefix("drop_reason.") {
                        let number =
                            number.parse().map_err(|_| "a drop_reason that has no number".to_owned())?;
                        header.drop_reasons.push((number, value.to_owned()));
                    } else if let Some(bit) = name.strip_prefix("cgroup.") {
                        // In the order of their bits, as they were written.
                        let next = header.cgroups.len();
                        let cgroup =
                            recorded_cgroup(value).filter(|_| bit.parse() == Ok(next) && next < MAX_ENTRIES);
                        header.cgroups.push(cgroup.ok_or("a cgroup without its bit, id and path")?);
                    } else if let Some(bit) = name.strip_prefix("cgroup_typed.") {
                        let bit: usize = bit.parse().map_err(|_| "a cgroup_typed that has no number")?;
                        let cgroup =
                            header.cgroups.get_mut(bit).ok_or("a cgroup_typed without its cgroup")?;
                        cgroup.typed = value.to_owned();
                    }
                }
            }
        }
        Ok(header)
    }
}

fn recorded_cgroup(value: &str) -> Option<RecordedCgroup> {
    let (id, path) = value.split_once(' ')?;
    Some(RecordedCgroup { id: id.parse().ok()?, path: path.to_owned(), typed: String::new() })
}

/// The first 32 bits of a boot id, 0 when it has no hexadecimal digits to give.
pub fn boot_number(boot_id: &str) -> u32 {
    let digits: String = boot_id.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    u32::from_str_radix(&digits, 16).unwrap_or(0)
}

/// Magic, version and header frame.
pub fn put_preamble(header: &RecordingHeader, out: &mut BytesMut) {
    out.put_slice(&MAGIC);
    out.put_u32_le(FORMAT_VERSION);
    put_frame(HEADER, header.to_text().as_bytes(), out);
}

/// One item of the source as a frame.
pub fn put_item(item: &SourceItem, out: &mut BytesMut) {
    match item {
        SourceItem::Event(bytes) => put_frame(EVENT, bytes, out),
        SourceItem::Tick { now_ns } => put_frame(TICK, &now_ns.to_le_bytes(), out),
        SourceItem::Anchor(anchor) => {
            let mut payload = [0; 24];
            payload[..8].copy_from_slice(&anchor.monotonic_ns.to_le_bytes());
            payload[8..16].copy_from_slice(&anchor.boottime_ns.to_le_bytes());
            payload[16..].copy_from_slice(&anchor.realtime_ns.to_le_bytes());
            put_frame(ANCHOR, &payload, out);
        }
        SourceItem::Counters(reading) => put_frame(COUNTERS, &counters_payload(reading), out),
        SourceItem::Mib(reading) => put_frame(MIB, &mib::payload(reading), out),
    }
}

/// A frame of any kind. The payload is one of ours, which are all shorter than [`MAX_FRAME_BYTES`].
pub fn put_frame(kind: u16, payload: &[u8], out: &mut BytesMut) {
    debug_assert!(payload.len() <= MAX_FRAME_BYTES as usize);
    out.put_u16_le(kind);
    out.put_u16_le(0);
    out.put_u32_le(payload.len() as u32);
    out.put_slice(payload);
}

fn counters_payload(reading: &CounterReading) -> Vec<u8> {
    let slots = reading.by_cpu.first().map_or(0, |cpu| cpu.len());
    let mut payload = Vec::with_capacity(24 + reading.by_cpu.len() * slots * 8);
    payload.put_u32_le(reading.by_cpu.len() as u32);
    payload.put_u32_le(slots as u32);
    payload.put_u64_le(u64::from(reading.missed_probes.is_some()));
    payload.put_u64_le(reading.missed_probes.unwrap_or(0));
    for slot in reading.by_cpu.iter().flatten() {
        payload.put_u64_le(*slot);
    }
    payload
}
