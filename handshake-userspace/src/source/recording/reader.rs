//! Reads a recording frame by frame, and believes nothing in it.
//!
//! Damage is an error that names the byte; a frame of a kind that we don't know is skipped by its length
//! and counted, because a later version may have written it. What a newcomer would get wrong: whatever
//! stood before the damage is good and has been handed on already; the caller ends, it doesn't start over.

use std::io::{self, BufReader, Read};

use bytes::{Buf, BytesMut};
use handshake_common::counter::SLOTS;

use super::{
    format::{
        ANCHOR, COUNTERS, END, EVENT, FORMAT_VERSION, FRAME_HEADER_BYTES, GAP, HEADER, MAGIC,
        MAX_FRAME_BYTES, MIB, RecordingHeader, TICK,
    },
    mib,
};
use crate::{
    model::observation::ClockAnchor,
    source::{CounterReading, SourceError, SourceItem},
};

/// Gives the items of a recording one by one.
pub struct RecordingReader<R> {
    input: BufReader<R>,
    offset: u64,
    header: RecordingHeader,
    ending: Ending,
}

/// What was odd about a recording, known when all of it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// Frames of kinds that this version doesn't know.
    pub unknown_frames: u64,
    /// Frames that the recorder could not keep up with.
    pub missing_frames: u64,
    /// The recorder said that it ended in good order.
    pub complete: bool,
}

impl<R: Read> RecordingReader<R> {
    /// Checks magic and version and reads the header.
    pub fn new(input: R) -> Result<Self, SourceError> {
        let mut reader = RecordingReader {
            input: BufReader::new(input),
            offset: 0,
            header: RecordingHeader::default(),
            ending: Ending::default(),
        };
        let mut preamble = [0; MAGIC.len() + 4];
        if !reader.fill(&mut preamble)? || preamble[..MAGIC.len()] != MAGIC {
            return Err(damage(0, "this is no recording of handshake"));
        }
        let version = (&preamble[MAGIC.len()..]).get_u32_le();
        if version != FORMAT_VERSION {
            return Err(damage(
                MAGIC.len() as u64,
                format!("format version {version}; this program reads version {FORMAT_VERSION}"),
            ));
        }
        let at = reader.offset;
        let Some((HEADER, payload)) = reader.next_frame()? else {
            return Err(damage(at, "the header frame is missing"));
        };
        let text = std::str::from_utf8(&payload).map_err(|_| damage(at, "the header is no UTF-8"))?;
        reader.header = RecordingHeader::from_text(text).map_err(|problem| damage(at, problem))?;
        Ok(reader)
    }

    /// Where and how it was recorded.
    pub fn header(&self) -> &RecordingHeader {
        &self.header
    }

    /// What was odd so far.
    pub fn ending(&self) -> Ending {
        self.ending
    }

    /// The next item, `None` at the end.
    pub fn next_item(&mut self) -> Result<Option<SourceItem>, SourceError> {
        loop {
            let at = self.offset;
            let Some((kind, payload)) = self.next_frame()? else { return Ok(None) };
            let item = match kind {
                EVENT if payload.len() > usize::from(u16::MAX) => {
                    return Err(damage(at, "an event longer than events can be"));
                }
                EVENT => SourceItem::Event(payload.freeze()),
                TICK => {
                    SourceItem::Tick { now_ns: fixed::<8>(at, &payload, "tick")?.as_slice().get_u64_le() }
                }
                ANCHOR => {
                    let bytes = fixed::<24>(at, &payload, "clock anchor")?;
                    let mut bytes = bytes.as_slice();
                    SourceItem::Anchor(ClockAnchor {
                        monotonic_ns: bytes.get_u64_le(),
                        boottime_ns: bytes.get_u64_le(),
                        realtime_ns: bytes.get_u64_le(),
                    })
                }
                COUNTERS => SourceItem::Counters(Box::new(counters(at, &payload)?)),
                MIB => match mib::reading(&payload) {
                    Some(reading) => SourceItem::Mib(Box::new(reading)),
                    None => return Err(damage(at, "a reading of the kernel's counters that is none")),
                },
                GAP => {
                    let missing = fixed::<8>(at, &payload, "gap")?.as_slice().get_u64_le();
                    self.ending.missing_frames = self.ending.missing_frames.saturating_add(missing);
                    continue;
                }
                END => {
                    self.ending.complete = true;
                    return Ok(None);
                }
                HEADER => return Err(damage(at, "a second header")),
                _ => {
                    self.ending.unknown_frames += 1;
                    continue;
                }
            };
            return Ok(Some(item));
        }
    }

    fn next_frame(&mut self) -> Result<Option<(u16, BytesMut)>, SourceError> {
        let at = self.offset;
        let mut bytes = [0; FRAME_HEADER_BYTES];
        if !self.fill(&mut bytes)? {
            return Ok(None);
        }
        let mut fields = bytes.as_slice();
        let kind = fields.get_u16_le();
        let reserved = fields.get_u16_le();
        let length = fields.get_u32_le();
        if reserved != 0 || length > MAX_FRAME_BYTES {
            return Err(damage(at, format!("a frame of kind {kind} that claims {length} bytes")));
        }
        let mut payload = BytesMut::zeroed(length as usize);
        if length != 0 && !self.fill(&mut payload)? {
            return Err(damage(self.offset, "it ends inside a frame"));
        }
        Ok(Some((kind, payload)))
    }

    /// Fills the buffer; `false` when the input ends exactly here, an error when it ends inside.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, SourceError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(damage(self.offset, "it ends inside a frame")),
                Ok(read) => {
                    filled += read;
                    self.offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(damage(self.offset, error.to_string())),
            }
        }
        Ok(true)
    }
}

fn counters(at: u64, payload: &[u8]) -> Result<CounterReading, SourceError> {
    let mut bytes = payload;
    if bytes.len() < 24 {
        return Err(damage(at, "counters that are too short"));
    }
    let cpus = bytes.get_u32_le() as usize;
    let slots = bytes.get_u32_le() as usize;
    let missed_known = bytes.get_u64_le() != 0;
    let missed = bytes.get_u64_le();
    let expected = cpus.checked_mul(slots).and_then(|count| count.checked_mul(8));
    if expected != Some(bytes.len()) || (slots == 0 && cpus != 0) {
        return Err(damage(at, "counters whose length does not fit their number"));
    }
    let by_cpu = bytes
        .chunks_exact(slots.max(1) * 8)
        .map(|cpu| {
            let mut ours = [0; SLOTS];
            for (slot, mut value) in ours.iter_mut().zip(cpu.chunks_exact(8)) {
                *slot = value.get_u64_le();
            }
            ours
        })
        .collect();
    Ok(CounterReading { by_cpu, missed_probes: missed_known.then_some(missed) })
}

fn fixed<const N: usize>(at: u64, payload: &[u8], what: &str) -> Result<[u8; N], SourceError> {
    payload.try_into().map_err(|_| damage(at, format!("a {what} of {} bytes, not {N}", payload.len())))
}

fn damage(offset: u64, problem: impl Into<String>) -> SourceError {
    SourceError::Recording { offset, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        model::mib::{MIB_COUNTERS, MibReading, NamespaceMib, NotCompared},
        source::recording::format::{RecordedCgroup, put_frame, put_item, put_preamble},
    };

    fn header() -> RecordingHeader {
        RecordingHeader {
            kernel_release: "6.12.0".to_owned(),
            architecture: "x86_64".to_owned(),
            boot_id: "6f1e2c00-0000-4000-8000-000000000000".to_owned(),
            abi_version: 1,
            hooks: vec![("syn_sent".to_owned(), "fentry tcp_connect".to_owned())],
            drop_reasons: vec![(5, "NETFILTER_DROP".to_owned())],
            canary: Some(crate::model::health::Canary::CouldNotRun),
            cgroups: vec![
                RecordedCgroup { id: 77, path: "/a b/c".to_owned(), typed: "a b/c/".to_owned() },
                RecordedCgroup { id: 1, path: "/".to_owned(), typed: "1".to_owned() },
            ],
        }
    }

    fn recording(items: &[SourceItem]) -> BytesMut {
        let mut bytes = BytesMut::new();
        put_preamble(&header(), &mut bytes);
        for item in items {
            put_item(item, &mut bytes);
        }
        bytes
    }

    fn read_all(bytes: &[u8]) -> (Vec<SourceItem>, Result<Ending, SourceError>) {
        let mut items = Vec::new();
        let mut reader = match RecordingReader::new(bytes) {
            Ok(reader) => reader,
            Err(error) => return (items, Err(error)),
        };
        loop {
            match reader.next_item() {
                Ok(Some(item)) => items.push(item),
                Ok(None) => return (items, Ok(reader.ending())),
                Err(error) => return (items, Err(error)),
            }
        }
    }

    fn any_item() -> impl Strategy<Value = SourceItem> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300)
                .prop_map(|bytes| SourceItem::Event(Bytes::from(bytes))),
            any::<u64>().prop_map(|now_ns| SourceItem::Tick { now_ns }),
            any::<[u64; 3]>().prop_map(|[monotonic_ns, boottime_ns, realtime_ns]| {
                SourceItem::Anchor(ClockAnchor { monotonic_ns, boottime_ns, realtime_ns })
            }),
            (proptest::collection::vec(any::<[u64; SLOTS]>(), 0..4), any::<Option<u64>>()).prop_map(
                |(by_cpu, missed_probes)| SourceItem::Counters(Box::new(CounterReading {
                    by_cpu,
                    missed_probes
                }))
            ),
            any_mib().prop_map(|reading| SourceItem::Mib(Box::new(reading))),
        ]
    }

    fn any_mib() -> impl Strategy<Value = MibReading> {
        let namespace = (any::<(u64, u64)>(), any::<[Option<u64>; MIB_COUNTERS]>())
            .prop_map(|((from_ns, to_ns), values)| NamespaceMib { from_ns, to_ns, values });
        let namespaces = proptest::collection::btree_map(any::<u32>(), namespace, 0..4);
        (any::<bool>(), any::<bool>(), any::<u32>(), namespaces).prop_map(
            |(refused, requests_are_seen, unread, namespaces)| MibReading {
                refused: refused.then_some(NotCompared::Filtered),
                requests_are_seen,
                unread,
                namespaces,
            },
        )
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(items in proptest::collection::vec(any_item(), 0..20)) {
            let mut bytes = recording(&items);
            put_frame(END, &[], &mut bytes);
            let (read, ending) = read_all(&bytes);
            prop_assert_eq!(read, items);
            prop_assert!(ending.unwrap().complete);
        }

        #[test]
        fn arbitrary_bytes_after_the_header_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = recording(&[]);
            bytes.extend_from_slice(&noise);
            let _ = read_all(&bytes);
            let _ = read_all(&noise);
        }

        #[test]
        fn a_flipped_byte_never_panics(items in proptest::collection::vec(any_item(), 0..6), at: usize, to: u8) {
            let mut bytes = recording(&items);
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = read_all(&bytes);
        }
    }

    #[test]
    fn the_header_comes_back() {
        let bytes = recording(&[]);
        assert_eq!(RecordingReader::new(&bytes[..]).unwrap().header(), &header());
        assert_eq!(header().boot(), 0x6f1e_2c00);
    }

    #[test]
    fn a_frame_of_a_later_version_is_skipped_and_counted() {
        let mut bytes = recording(&[]);
        put_frame(0x10, b"a container", &mut bytes);
        put_item(&SourceItem::Tick { now_ns: 7 }, &mut bytes);
        let (items, ending) = read_all(&bytes);
        assert_eq!(items, [SourceItem::Tick { now_ns: 7 }]);
        assert_eq!(ending.unwrap(), Ending { unknown_frames: 1, missing_frames: 0, complete: false });
    }

    #[test]
    fn a_recording_cut_off_gives_what_it_has_and_names_the_byte() {
        let bytes = recording(&[SourceItem::Tick { now_ns: 7 }, SourceItem::Tick { now_ns: 8 }]);
        let cut = bytes.len() - 3;
        let (items, ending) = read_all(&bytes[..cut]);
        assert_eq!(items, [SourceItem::Tick { now_ns: 7 }]);
        let message = ending.unwrap_err().to_string();
        assert_eq!(message, format!("the recording is damaged at byte {cut}: it ends inside a frame"));
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_allocated() {
        let mut bytes = recording(&[]);
        let at = bytes.len();
        bytes.extend_from_slice(&[2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        let message = read_all(&bytes).1.unwrap_err().to_string();
        assert!(message.contains(&format!("byte {at}")), "{message}");
    }

    #[test]
    fn another_file_is_no_recording() {
        let message = read_all(b"{\"schema\":1}\n").1.unwrap_err().to_string();
        assert_eq!(message, "the recording is damaged at byte 0: this is no recording of handshake");
    }
}
