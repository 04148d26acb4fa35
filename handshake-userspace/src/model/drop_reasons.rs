//! The kernel's names for why it drops a segment, by the numbers that one kernel gives them.
//!
//! The numbers are others on every kernel, so only names are ever compared. What a newcomer would get wrong: not
//! every reason is a drop worth telling. A SYN to a closed port has the reason NO_SOCKET and is answered by RST:
//! that is a refusal, and a port scan is full of them. A SYN of a connection that exists is TCP_INVALID_SYN and is
//! answered by an ACK: it was sent again while its SYN-ACK was under way, and its handshake succeeded.

use std::{collections::BTreeMap, sync::Arc};

/// Named, and not told: they say nothing, or no drop, or a refusal that is answered, or a frame that was meant for
/// another host and that this one only overheard, or a SYN that came after its own handshake, or what a socket still
/// held when it was closed: a Fast Open child has its SYN, for the data in it, in its receive queue.
const NOT_TOLD: &[&str] = &[
    "NOT_SPECIFIED",
    "NOT_DROPPED_YET",
    "CONSUMED",
    "NO_SOCKET",
    "OTHERHOST",
    "QUEUE_PURGE",
    "TCP_INVALID_SYN",
    // What 6.1 calls the same when the SYN's timestamp is older than the final ACK's.
    "TCP_RFC7323_PAWS",
];

/// See the module. Empty before 5.17, which names none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DropReasons {
    names: Arc<BTreeMap<u32, Arc<str>>>,
}

impl DropReasons {
    /// As a kernel, or a recording, has them.
    pub fn from_names(names: impl IntoIterator<Item = (u32, Arc<str>)>) -> Self {
        DropReasons { names: Arc::new(names.into_iter().collect()) }
    }

    /// Names by number.
    pub fn names(&self) -> Arc<BTreeMap<u32, Arc<str>>> {
        Arc::clone(&self.names)
    }

    /// A bit for each number that the kernel side tells.
    pub fn told(&self) -> [u64; 4] {
        let mut bits = [0; 4];
        for (number, name) in &*self.names {
            if let Some(word) = bits.get_mut(*number as usize / 64)
                && !NOT_TOLD.contains(&&**name)
            {
                *word |= 1 << (number % 64);
            }
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::DropReasons;

    #[test]
    fn a_refusal_and_what_says_nothing_are_not_told() {
        let names = [
            (1, "NOT_SPECIFIED"),
            (3, "NO_SOCKET"),
            (4, "OTHERHOST"),
            (5, "NETFILTER_DROP"),
            (6, "QUEUE_PURGE"),
            (70, "TCP_MD5FAILURE"),
            (71, "TCP_INVALID_SYN"),
            (72, "TCP_RFC7323_PAWS"),
        ];
        let reasons = DropReasons::from_names(names.map(|(number, name)| (number, name.into())));
        assert_eq!(reasons.told(), [1 << 5, 1 << 6, 0, 0]);
    }

    #[test]
    fn numbers_beyond_what_the_kernel_side_holds_are_left_out() {
        let reasons = DropReasons::from_names([(400, "ELSEWHERE".into())]);
        assert_eq!(reasons.told(), [0; 4]);
    }
}
