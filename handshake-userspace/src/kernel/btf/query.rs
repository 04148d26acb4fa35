//! The questions that BTF answers: members by path, arguments of functions and tracepoints, values of enums.
//!
//! What a newcomer would get wrong: members of anonymous structs and unions belong to the struct around
//! them (`sock_common.skc_daddr` lies two unions deep), and a walk through them can be made to explode
//! (each level twice the next), so depth **and** work are bounded.

use super::{Btf, BtfError, RECORD_BYTES, Record, damaged, kind};

/// No kernel struct nests deeper, nor do typedefs chain longer.
const MAX_DEPTH: usize = 32;

/// Members that one question may visit: a hundred times `task_struct`, and still under a millisecond.
const MAX_VISITS: usize = 100_000;

const STRUCTS: &[u8] = &[kind::STRUCT, kind::UNION];

/// Where a member lies in its struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Offset in bytes; for a bit-field, of the byte that holds its first bit.
    pub byte_offset: u32,
    /// Size of its type in bytes; `None` when the type has no size (a flexible array's element, void).
    pub size_bytes: Option<u32>,
    /// For a bit-field: which bits.
    pub bit_field: Option<BitField>,
}

/// The bits of a bit-field, counted from the least significant bit of its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitField {
    /// The first one.
    pub bit: u32,
    /// How many.
    pub width: u32,
}

/// One step of a path: a member inside one struct.
struct Step {
    bits: u32,
    width: u32,
    type_id: u32,
}

impl Btf {
    /// The member at `path` (`"skc_net.net"`) of every struct or union called `container`. Anonymous members
    /// are looked through, arrays mean their first element, pointers are not followed.
    pub fn member(&self, container: &str, path: &str) -> Result<Member, BtfError> {
        let mut visits = 0;
        let mut answer: Option<Option<Member>> = None;
        for record in self.named(container, STRUCTS) {
            let here = self.member_of(record, container, path, &mut visits)?;
            if answer.is_some_and(|before| before != here) {
                return Err(BtfError::Ambiguous {
                    what: "structs",
                    name: container.to_owned(),
                    about: path.to_owned(),
                });
            }
            answer = Some(here);
        }
        match answer {
            None => Err(BtfError::Absent { what: "struct", name: container.to_owned() }),
            Some(None) => Err(BtfError::NoMember { container: container.to_owned(), path: path.to_owned() }),
            Some(Some(member)) => Ok(member),
        }
    }

    /// Whether a struct or union of this name is defined.
    pub fn struct_exists(&self, name: &str) -> bool {
        self.named(name, STRUCTS).next().is_some()
    }

    /// Whether the kernel has such a function that BTF describes (so that fentry could take it).
    pub fn func_exists(&self, name: &str) -> bool {
        self.named(name, &[kind::FUNC]).next().is_some()
    }

    /// The number of a function's type; `None` when it is absent, or defined more than once.
    pub fn func_id(&self, name: &str) -> Option<u32> {
        let mut ids = self.named_ids(name, &[kind::FUNC]);
        let (id, _) = ids.next()?;
        ids.next().is_none().then_some(id)
    }

    /// How many arguments a function has; `None` when it is absent, or defined twice and differently.
    pub fn func_args(&self, name: &str) -> Option<usize> {
        same(self.named(name, &[kind::FUNC]).map(|func| self.prototype_args(func.size_or_type)))
    }

    /// Whether there is a typedef of this name.
    pub fn typedef_exists(&self, name: &str) -> bool {
        self.named(name, &[kind::TYPEDEF]).next().is_some()
    }

    /// How many arguments a tracepoint hands to its programs; `None` when the kernel lacks it.
    pub fn tracepoint_args(&self, name: &str) -> Option<usize> {
        let typedef = format!("btf_trace_{name}");
        same(self.named(&typedef, &[kind::TYPEDEF]).map(|typedef| {
            let pointer = self.strip(typedef.size_or_type).ok()?;
            // The prototype's first argument is the tracer's own `void *`, which programs never see.
            self.prototype_args((pointer.kind == kind::PTR).then_some(pointer.size_or_type)?)?.checked_sub(1)
        }))
    }

    /// Names and values of an enum, in the order of its definition. A 64-bit unsigned value above
    /// `i64::MAX` comes out as the negative number of the same bits.
    pub fn enum_values(&self, name: &str) -> Result<Vec<(&str, i64)>, BtfError> {
        let mut answer: Option<Vec<(&str, i64)>> = None;
        for record in self.named(name, &[kind::ENUM, kind::ENUM64]) {
            let here = self.values_of(record)?;
            if answer.as_ref().is_some_and(|before| *before != here) {
                let (name, about) = (name.to_owned(), "its values".to_owned());
                return Err(BtfError::Ambiguous { what: "enums", name, about });
            }
            answer = Some(here);
        }
        answer.ok_or_else(|| BtfError::Absent { what: "enum", name: name.to_owned() })
    }

    fn values_of(&self, record: Record) -> Result<Vec<(&str, i64)>, BtfError> {
        let size = if record.kind == kind::ENUM { 8 } else { 12 };
        (0..record.length)
            .map(|index| {
                let position = record.tail + size * index;
                let name = self.name(self.word(position)?)?;
                let name = name
                    .and_then(|name| std::str::from_utf8(name).ok())
                    .ok_or(damaged(position, "the name of an enum value is too long or no UTF-8"))?;
                let low = self.word(position + 4)?;
                let value = match (record.kind, record.flag) {
                    (kind::ENUM, true) => i64::from(low.cast_signed()),
                    (kind::ENUM, false) => i64::from(low),
                    _ => (u64::from(self.word(position + 8)?) << 32 | u64::from(low)).cast_signed(),
                };
                Ok((name, value))
            })
            .collect()
    }

    fn prototype_args(&self, id: u32) -> Option<usize> {
        let prototype = self.strip(id).ok()?;
        (prototype.kind == kind::FUNC_PROTO).then_some(prototype.length)
    }

    fn member_of(
        &self,
        mut record: Record,
        container: &str,
        path: &str,
        visits: &mut usize,
    ) -> Result<Option<Member>, BtfError> {
        let mut bits = 0_u32;
        let mut parts = path.split('.');
        let mut part = parts.next().unwrap_or_default();
        loop {
            let Some(step) = self.step(record, container, part.as_bytes(), 0, visits)? else {
                return Ok(None);
            };
            bits = add_bits(record, bits, step.bits)?;
            let Some(next) = parts.next() else { return self.at_end(bits, &step).map(Some) };
            part = next;
            record = self.element(step.type_id)?;
        }
    }

    /// Looks for one member in a struct, and in the anonymous structs and unions inside it.
    fn step(
        &self,
        record: Record,
        container: &str,
        name: &[u8],
        depth: usize,
        visits: &mut usize,
    ) -> Result<Option<Step>, BtfError> {
        if !STRUCTS.contains(&record.kind) || name.is_empty() {
            return Ok(None);
        }
        if depth > MAX_DEPTH {
            return Err(BtfError::TooDeep { name: container.to_owned() });
        }
        for index in 0..record.length {
            *visits += 1;
            if *visits > MAX_VISITS {
                return Err(BtfError::TooDeep { name: container.to_owned() });
            }
            let position = record.tail + RECORD_BYTES * index;
            let (name_offset, type_id) = (self.word(position)?, self.word(position + 4)?);
            let place = self.word(position + 8)?;
            // With the flag set the upper byte is the width of a bit-field, 0 for a plain member.
            let (bits, width) = if record.flag { (place & 0xff_ffff, place >> 24) } else { (place, 0) };
            if self.is_named(name_offset, name)? {
                return Ok(Some(Step { bits, width, type_id }));
            }
            if self.is_named(name_offset, b"")? {
                let inner = self.strip(type_id)?;
                if let Some(found) = self.step(inner, container, name, depth + 1, visits)? {
                    return Ok(Some(Step { bits: add_bits(record, bits, found.bits)?, ..found }));
                }
            }
        }
        Ok(None)
    }

    fn at_end(&self, bits: u32, step: &Step) -> Result<Member, BtfError> {
        let (mut bits, mut width) = (bits, step.width);
        // Before the flag existed, the type of a bit-field was an integer that says its own bits.
        if width == 0
            && let Ok(int) = self.strip(step.type_id)
            && int.kind == kind::INT
        {
            let encoding = self.word(int.tail)?;
            let (shift, int_bits) = (encoding >> 16 & 0xff, encoding & 0xff);
            if int_bits != int.size_or_type.saturating_mul(8) || !bits.is_multiple_of(8) {
                bits = add_bits(int, bits, shift)?;
                width = int_bits;
            }
        }
        let bit_field = (width != 0).then_some(BitField { bit: bits % 8, width });
        Ok(Member { byte_offset: bits / 8, size_bytes: self.size_of(step.type_id)?, bit_field })
    }

    fn size_of(&self, type_id: u32) -> Result<Option<u32>, BtfError> {
        let (mut id, mut times) = (type_id, 1_u32);
        for _ in 0..MAX_DEPTH {
            if id == 0 {
                return Ok(None);
            }
            let record = self.strip(id)?;
            let size = match record.kind {
                kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => {
                    record.size_or_type
                }
                // The kernel is as wide as we are: a 32-bit daemon cannot load programs into a 64-bit kernel's
                // structs anyway.
                kind::PTR => size_of::<usize>() as u32,
                kind::ARRAY => {
                    times = times.saturating_mul(self.word(record.tail + 8)?);
                    id = self.word(record.tail)?;
                    continue;
                }
                _ => return Ok(None),
            };
            return Ok(size.checked_mul(times));
        }
        Ok(None)
    }

    /// The type behind typedefs and qualifiers, and behind the arrays of a member on a path.
    fn element(&self, id: u32) -> Result<Record, BtfError> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let record = self.strip(id)?;
            if record.kind != kind::ARRAY {
                return Ok(record);
            }
            id = self.word(record.tail)?;
        }
        Err(BtfError::TooDeep { name: format!("type {id}") })
    }

    /// The type behind typedefs, qualifiers and tags.
    fn strip(&self, id: u32) -> Result<Record, BtfError> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let record = self.record(id)?;
            match record.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = record.size_or_type;
                }
                _ => return Ok(record),
            }
        }
        Err(BtfError::TooDeep { name: format!("type {id}") })
    }
}

/// The one answer that all definitions give; `None` when there is none or they differ.
fn same(mut answers: impl Iterator<Item = Option<usize>>) -> Option<usize> {
    let first = answers.next()??;
    answers.all(|answer| answer == Some(first)).then_some(first)
}

fn add_bits(record: Record, bits: u32, more: u32) -> Result<u32, BtfError> {
    bits.checked_add(more).ok_or(damaged(record.tail, "a member lies beyond four billion bits"))
}
