//! A BTF file that can be made wrong: two members of one struct change places.
//!
//! What a reader would get wrong: only where the members lie is exchanged, in every struct that has both. Ids and
//! sizes stay, so that everything else that a loader takes from the file is still true.

use std::{collections::HashMap, fs};

/// Words that follow each kind of type (`BTF_KIND_*`, include/uapi/linux/btf.h), per entry where it has entries.
fn words_behind(kind: u32, entries: usize) -> usize {
    match kind {
        // Struct, union: name, type, offset each.
        4 | 5 => 3 * entries,
        // Enum, function prototype: two words each.
        6 | 13 => 2 * entries,
        // 64-bit enum, section: three.
        15 | 19 => 3 * entries,
        // Integer, variable, tag of a declaration: one.
        1 | 14 | 17 => 1,
        3 => 3,
        _ => 0,
    }
}

/// The whole file.
pub struct BtfFile {
    bytes: Vec<u8>,
    types: std::ops::Range<usize>,
    strings: usize,
}

impl BtfFile {
    pub fn read(path: &str) -> Self {
        let bytes = fs::read(path).expect("the kernel gives its BTF");
        let word = |at: usize| word(&bytes, at) as usize;
        let header = word(4);
        let types = header + word(8)..header + word(8) + word(12);
        let strings = header + word(16);
        BtfFile { types, strings, bytes }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Exchanges the offsets of two members in every struct that has both.
    pub fn swap_members(&mut self, one: &str, other: &str) {
        let structs = self.structs();
        let (ones, others) = (self.members_called(&structs, one), self.members_called(&structs, other));
        let mut swapped = 0;
        for (one, inside) in ones {
            for (other, _) in others.iter().filter(|(_, other)| *other == inside) {
                self.exchange(one + 8, other + 8);
                swapped += 1;
            }
        }
        assert!(swapped > 0, "{one} and {other} are in no struct together");
    }

    /// Place in the file of the members called `name`, each with the struct it is in.
    fn members_called(&self, structs: &HashMap<u32, (usize, usize)>, name: &str) -> Vec<(usize, u32)> {
        let mut found = Vec::new();
        for (id, (first, entries)) in structs {
            for at in (0..*entries).map(|entry| first + 12 * entry) {
                if self.text(word(&self.bytes, at)) == name.as_bytes() {
                    found.push((at, *id));
                }
            }
        }
        found
    }

    /// Structs and unions by id: where their members begin, and how many there are.
    fn structs(&self) -> HashMap<u32, (usize, usize)> {
        let (mut at, mut id, mut structs) = (self.types.start, 1, HashMap::new());
        while at < self.types.end {
            let info = word(&self.bytes, at + 4);
            let (kind, entries) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            if kind == 4 || kind == 5 {
                structs.insert(id, (at + 12, entries));
            }
            at += 12 + 4 * words_behind(kind, entries);
            id += 1;
        }
        structs
    }

    fn text(&self, offset: u32) -> &[u8] {
        let text = &self.bytes[self.strings + offset as usize..];
        &text[..text.iter().position(|byte| *byte == 0).expect("strings end with a zero")]
    }

    fn exchange(&mut self, one: usize, other: usize) {
        for byte in 0..4 {
            self.bytes.swap(one + byte, other + byte);
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
