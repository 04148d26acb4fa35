//! Hostile bytes: whatever comes in, decode answers with an observation or an error.
//!
//! What a reader would get wrong: arbitrary bytes alone hardly ever get past the header, so the stronger
//! property damages valid events, a few bytes at a time.

use handshake_common::event::EventKind;
use proptest::prelude::*;

use super::{DecodeError, decode, valid_event};

#[test]
fn every_kind_decodes_and_every_cut_or_longer_one_is_refused() {
    for kind in EventKind::ALL {
        let mut bytes = valid_event(kind);
        assert!(decode(&bytes).is_ok(), "{kind:?}");
        for end in 0..bytes.len() {
            let error = decode(&bytes[..end]).expect_err("cut off");
            let expected = match end {
                0..48 => DecodeError::NoHeader { bytes: end },
                _ => DecodeError::WrongSize {
                    kind,
                    expected: kind.size_bytes(),
                    claimed: kind.size_bytes(),
                    bytes: end,
                },
            };
            assert_eq!(error, expected);
        }
        bytes.push(0);
        assert!(matches!(decode(&bytes), Err(DecodeError::WrongSize { .. })), "{kind:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn damaged_events_never_panic(
        kind in proptest::sample::select(EventKind::ALL.to_vec()),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = valid_event(kind);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = decode(&bytes);
    }

    #[test]
    fn any_payload_of_the_right_size_never_panics(
        kind in proptest::sample::select(EventKind::ALL.to_vec()),
        noise in proptest::collection::vec(any::<u8>(), 256),
    ) {
        let mut bytes = valid_event(kind);
        let payload = &mut bytes[48..];
        let length = payload.len();
        payload.copy_from_slice(&noise[..length]);
        // Only a number that is no TCP state can be wrong with it.
        if let Err(error) = decode(&bytes) {
            prop_assert!(matches!(error, DecodeError::UnknownState { .. }), "{}", error);
        }
    }
}
