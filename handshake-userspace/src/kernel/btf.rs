//! Reads a kernel's BTF: where the members of its structs lie, which functions and tracepoints it has.
//!
//! First in the flow of a start: `offsets` asks it for every field, the hook table for every function.
//! The bytes are hostile until checked (`--btf FILE` names any file): each read is bounds-checked, every
//! walk has a budget, nothing panics. What a newcomer would get wrong: a name is no identity. Unrelated
//! drivers may each define a struct of one name, so a question is answered only when all definitions agree.
//! Format: <https://docs.kernel.org/bpf/btf.html>.

#[cfg(test)]
pub(crate) mod blob;
mod query;
#[cfg(test)]
mod tests;

use std::{fs::File, io::Read, ops::Range, path::Path};

pub use query::{BitField, Member};

/// What can be wrong with BTF, or with a question to it.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file could not be read.
    #[error("cannot read BTF from {path}: {source}")]
    Unreadable {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// More bytes than any kernel's BTF has.
    #[error("this is no kernel BTF: it has more than {MAX_BYTES} bytes")]
    TooLarge,
    /// The magic number is not there.
    #[error("this is no BTF: it does not begin with the magic number 0xeb9f")]
    NoMagic,
    /// The other byte order, or a host that has it.
    #[error("big-endian BTF is not supported")]
    BigEndian,
    /// A later format.
    #[error("BTF version {version} is not known, only version 1 is")]
    UnknownVersion {
        /// The version that it has.
        version: u8,
    },
    /// Something lies outside its section.
    #[error("the BTF is damaged at byte {position}: {what}")]
    Damaged {
        /// Where in the file.
        position: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// A kind of type that this version can't skip, because it doesn't know its size.
    #[error("BTF type {id} is of kind {kind}, which is not known")]
    UnknownKind {
        /// Number of the type.
        id: usize,
        /// Its kind.
        kind: u8,
    },
    /// A type refers to one that does not exist.
    #[error("the BTF is damaged: it refers to type {id}, which does not exist")]
    NoType {
        /// The number that was asked for.
        id: u32,
    },
    /// There is none of this name.
    #[error("this kernel's BTF has no {what} `{name}`")]
    Absent {
        /// Struct or enum.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The struct exists and lacks the member.
    #[error("this kernel's `struct {container}` has no member `{path}`")]
    NoMember {
        /// The struct.
        container: String,
        /// The path that was asked for.
        path: String,
    },
    /// Definitions of one name disagree.
    #[error("this kernel's BTF has several {what} `{name}`, and they disagree about `{about}`")]
    Ambiguous {
        /// Struct or enum.
        what: &'static str,
        /// Its name.
        name: String,
        /// What was asked.
        about: String,
    },
    /// A walk found no end: types that contain themselves, or far too many of them.
    #[error("the BTF of `{name}` is nested too deeply")]
    TooDeep {
        /// Where the walk began.
        name: String,
    },
}

/// Ten times the BTF of the largest distribution kernel; keeps `--btf /dev/zero` from eating memory.
pub const MAX_BYTES: u64 = 64 << 20;

const HEADER_BYTES: usize = 24;
const RECORD_BYTES: usize = 12;

/// A kernel symbol has at most 512 bytes (KSYM_NAME_LEN). What is longer is not indexed, so that a section
/// without zeros costs no quadratic time.
const MAX_NAME_BYTES: usize = 512;

/// The kinds of BTF types, as the format numbers them.
mod kind {
    pub const INT: u8 = 1;
    pub const PTR: u8 = 2;
    pub const ARRAY: u8 = 3;
    pub const STRUCT: u8 = 4;
    pub const UNION: u8 = 5;
    pub const ENUM: u8 = 6;
    pub const FWD: u8 = 7;
    pub const TYPEDEF: u8 = 8;
    pub const VOLATILE: u8 = 9;
    pub const CONST: u8 = 10;
    pub const RESTRICT: u8 = 11;
    pub const FUNC: u8 = 12;
    pub const FUNC_PROTO: u8 = 13;
    pub const VAR: u8 = 14;
    pub const DATASEC: u8 = 15;
    pub const FLOAT: u8 = 16;
    pub const DECL_TAG: u8 = 17;
    pub const TYPE_TAG: u8 = 18;
    pub const ENUM64: u8 = 19;
}

/// Bytes after the record of a type; `None` for a kind that is not known.
fn trailing_bytes(kind: u8, length: usize) -> Option<usize> {
    Some(match kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * length,
        kind::ENUM | kind::FUNC_PROTO => 8 * length,
        kind::PTR
        | kind::FWD
        | kind::TYPEDEF
        | kind::VOLATILE
        | kind::CONST
        | kind::RESTRICT
        | kind::FUNC
        | kind::FLOAT
        | kind::TYPE_TAG => 0,
        _ => return None,
    })
}

/// A kernel's BTF, checked as far as its sections and the places of its types.
pub struct Btf {
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// Where each type's record begins; number 0 is `void` and has none.
    positions: Vec<u32>,
    /// Name hash in the upper half, number of the type in the lower; sorted, so that types of one name
    /// stand together in the order of the file.
    names: Vec<u64>,
}

/// The fixed part of one type.
#[derive(Clone, Copy)]
struct Record {
    /// Where what follows the fixed part begins.
    tail: usize,
    name: u32,
    kind: u8,
    /// How many members, values or parameters.
    length: usize,
    /// Struct: its members carry bit-field widths. Enum: its values are signed.
    flag: bool,
    size_or_type: u32,
}

impl Btf {
    /// Reads BTF from a file, as a rule /sys/kernel/btf/vmlinux.
    pub fn from_file(path: &Path) -> Result<Self, BtfError> {
        let unreadable = |source| BtfError::Unreadable { path: path.display().to_string(), source };
        let file = File::open(path).map_err(unreadable)?;
        // The size is only a hint (devices say 0); it saves growing the buffer step by step.
        let expected = file.metadata().map_or(0, |metadata| metadata.len()).min(MAX_BYTES);
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0) + 1);
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        Btf::parse(bytes)
    }

    /// Checks the sections and indexes the names.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Self, BtfError> {
        let bytes = bytes.into();
        if bytes.len() as u64 > MAX_BYTES {
            return Err(BtfError::TooLarge);
        }
        match bytes.get(..2) {
            Some([0x9f, 0xeb]) if cfg!(target_endian = "little") => {}
            Some([0x9f, 0xeb] | [0xeb, 0x9f]) => return Err(BtfError::BigEndian),
            _ => return Err(BtfError::NoMagic),
        }
        let header = bytes.get(..HEADER_BYTES).ok_or(damaged(0, "the header is cut off"))?;
        if header[2] != 1 {
            return Err(BtfError::UnknownVersion { version: header[2] });
        }
        let types = section(&bytes, 8, "the type section lies outside the file")?;
        let strings = section(&bytes, 16, "the string section lies outside the file")?;
        // Offset 0 is the empty name, and a last zero ends every scan inside the section.
        match &bytes[strings.clone()] {
            [0] | [0, .., 0] => {}
            _ => return Err(damaged(strings.start, "the string section does not begin and end with zero")),
        }
        let mut btf = Btf { bytes, strings, positions: vec![0], names: Vec::new() };
        btf.index(types)?;
        Ok(btf)
    }

    /// Notes where each type lies, and which have a name that somebody may ask for.
    fn index(&mut self, types: Range<usize>) -> Result<(), BtfError> {
        // Sixteen bytes a type is about what kernels have; too small a guess only costs a growth.
        self.positions.reserve(types.len() / 16);
        self.names.reserve(types.len() / 32);
        let mut position = types.start;
        while position < types.end {
            let id = self.positions.len();
            let record = self.record_at(position)?;
            let trailing = trailing_bytes(record.kind, record.length)
                .ok_or(BtfError::UnknownKind { id, kind: record.kind })?;
            let next = record.tail + trailing;
            if next > types.end {
                return Err(damaged(position, "a type reaches beyond the type section"));
            }
            // Both fit: positions stay below MAX_BYTES, and there are fewer types than bytes.
            self.positions.push(position as u32);
            if matches!(
                record.kind,
                kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::TYPEDEF | kind::FUNC
            ) && record.name != 0
                && let Some(name) = self.name(record.name)?
            {
                self.names.push(u64::from(hash(name)) << 32 | id as u64);
            }
            position = next;
        }
        self.names.sort_unstable();
        Ok(())
    }

    fn word(&self, position: usize) -> Result<u32, BtfError> {
        read_word(&self.bytes, position).ok_or(damaged(position, "the file ends here"))
    }

    fn record_at(&self, position: usize) -> Result<Record, BtfError> {
        let info = self.word(position + 4)?;
        Ok(Record {
            tail: position + RECORD_BYTES,
            name: self.word(position)?,
            // The length had 16 bits and the kind 5 with zeros above them, until both were widened into the
            // zeros: one reading serves both.
            kind: (info >> 24 & 0x7f) as u8,
            length: (info & 0xff_ffff) as usize,
            flag: info >> 31 == 1,
            size_or_type: self.word(position + 8)?,
        })
    }

    fn record(&self, id: u32) -> Result<Record, BtfError> {
        match self.positions.get(id as usize) {
            Some(position) if id != 0 => self.record_at(*position as usize),
            _ => Err(BtfError::NoType { id }),
        }
    }

    /// The string section from an offset on; never empty, and it ends with a zero.
    fn string_at(&self, offset: u32) -> Result<&[u8], BtfError> {
        self.bytes[self.strings.clone()]
            .get(offset as usize..)
            .filter(|rest| !rest.is_empty())
            .ok_or(damaged(self.strings.start, "a name lies outside the string section"))
    }

    /// The name at an offset of the string section; `None` when it is longer than any kernel's.
    fn name(&self, offset: u32) -> Result<Option<&[u8]>, BtfError> {
        let rest = self.string_at(offset)?;
        let window = &rest[..rest.len().min(MAX_NAME_BYTES)];
        Ok(window.iter().position(|byte| *byte == 0).map(|end| &window[..end]))
    }

    fn is_named(&self, offset: u32, name: &[u8]) -> Result<bool, BtfError> {
        Ok(self.string_at(offset)?.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0)))
    }

    /// Every type of this name and one of these kinds, in the order of the file.
    fn named(&self, name: &str, kinds: &'static [u8]) -> impl Iterator<Item = Record> {
        self.named_ids(name, kinds).map(|(_, record)| record)
    }

    /// The same, with their numbers.
    fn named_ids(&self, name: &str, kinds: &'static [u8]) -> impl Iterator<Item = (u32, Record)> {
        let hash = u64::from(hash(name.as_bytes()));
        let first = self.names.partition_point(|entry| entry >> 32 < hash);
        self.names[first..]
            .iter()
            .take_while(move |entry| **entry >> 32 == hash)
            .filter_map(|entry| Some((*entry as u32, self.record(*entry as u32).ok()?)))
            .filter(move |(_, record)| {
                kinds.contains(&record.kind)
                    && self.is_named(record.name, name.as_bytes()).is_ok_and(|equal| equal)
            })
    }
}

impl std::fmt::Debug for Btf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Btf({} bytes, {} types)", self.bytes.len(), self.positions.len() - 1)
    }
}

fn damaged(position: usize, what: &'static str) -> BtfError {
    BtfError::Damaged { position, what }
}

fn read_word(bytes: &[u8], position: usize) -> Option<u32> {
    let word = bytes.get(position..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*word))
}

/// A section whose offset (from the end of the header) and length stand at `field` of the header.
fn section(bytes: &[u8], field: usize, what: &'static str) -> Result<Range<usize>, BtfError> {
    let word = |position| read_word(bytes, position).map(u64::from).ok_or(damaged(position, what));
    // The header says its own size, so that later versions may append to it. In 64 bits no sum of three
    // 32-bit numbers overflows.
    let start = word(4)? + word(field)?;
    let end = start + word(field + 4)?;
    if word(4)? < HEADER_BYTES as u64 || end > bytes.len() as u64 {
        return Err(damaged(field, what));
    }
    Ok(start as usize..end as usize)
}

/// FNV-1a: short, and good enough where a collision costs one comparison.
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
