//! A file that claims to be a recording: items, then an end or an error, in bounded memory.
//!
//! What a reader would get wrong: a recording that is cut off is no error of the file format; what it has is read.

#![no_main]

use handshake::source::recording::reader::RecordingReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut reader) = RecordingReader::new(bytes) else { return };
    let mut items = 0_usize;
    while let Ok(Some(_)) = reader.next_item() {
        items += 1;
        // Each item takes at least a frame's header of the file.
        assert!(items <= bytes.len(), "more items than bytes");
    }
    let _ = reader.ending();
});
