//! Builds small BTF blobs for tests, so that every corner of the format can be made on purpose.
//!
//! Types are numbered from 1 in the order in which they are added, as in a kernel. What a reader would get
//! wrong: the builder checks nothing. Tests make damaged blobs with it too.

/// A BTF blob in the making.
#[derive(Clone)]
pub(crate) struct Blob {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

/// A member: name, type, offset in bits, width in bits (0: no bit-field).
pub(crate) type MemberSpec<'a> = (&'a str, u32, u32, u32);

impl Blob {
    pub(crate) fn new() -> Self {
        Blob { types: Vec::new(), strings: vec![0], count: 0 }
    }

    /// Any type at all; `info` as the format has it (kind from bit 24 on, length, flag in bit 31).
    pub(crate) fn raw(&mut self, name: &str, info: u32, size_or_type: u32, tail: &[u32]) -> u32 {
        let name = self.string(name);
        for word in [name, info, size_or_type].iter().chain(tail) {
            self.types.extend(word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    pub(crate) fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let offset = self.strings.len() as u32;
        self.strings.extend(text.bytes().chain([0]));
        offset
    }

    pub(crate) fn int(&mut self, name: &str, bytes: u32) -> u32 {
        self.raw(name, 1 << 24, bytes, &[bytes * 8])
    }

    /// A struct whose members say their widths (flag set).
    pub(crate) fn structure(&mut self, name: &str, bytes: u32, members: &[MemberSpec<'_>]) -> u32 {
        self.container(4, name, bytes, members)
    }

    pub(crate) fn union(&mut self, name: &str, bytes: u32, members: &[MemberSpec<'_>]) -> u32 {
        self.container(5, name, bytes, members)
    }

    fn container(&mut self, kind: u32, name: &str, bytes: u32, members: &[MemberSpec<'_>]) -> u32 {
        let mut tail = Vec::new();
        for (name, type_id, bits, width) in members {
            tail.extend([self.string(name), *type_id, width << 24 | bits]);
        }
        self.raw(name, 1 << 31 | kind << 24 | members.len() as u32, bytes, &tail)
    }

    pub(crate) fn pointer(&mut self, target: u32) -> u32 {
        self.raw("", 2 << 24, target, &[])
    }

    pub(crate) fn array(&mut self, element: u32, length: u32) -> u32 {
        self.raw("", 3 << 24, 0, &[element, element, length])
    }

    pub(crate) fn typedef(&mut self, name: &str, target: u32) -> u32 {
        self.raw(name, 8 << 24, target, &[])
    }

    pub(crate) fn prototype(&mut self, arguments: &[u32]) -> u32 {
        let tail: Vec<u32> = arguments.iter().flat_map(|type_id| [0, *type_id]).collect();
        self.raw("", 13 << 24 | arguments.len() as u32, 0, &tail)
    }

    pub(crate) fn function(&mut self, name: &str, arguments: &[u32]) -> u32 {
        let prototype = self.prototype(arguments);
        self.raw(name, 12 << 24 | 1, prototype, &[])
    }

    pub(crate) fn enumeration(&mut self, name: &str, values: &[(&str, i32)]) -> u32 {
        let mut tail = Vec::new();
        for (name, value) in values {
            tail.extend([self.string(name), value.cast_unsigned()]);
        }
        self.raw(name, 1 << 31 | 6 << 24 | values.len() as u32, 4, &tail)
    }

    /// The bytes of the file.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let types = self.types.len() as u32;
        for word in [24, 0, types, types, self.strings.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&self.types);
        bytes.extend(&self.strings);
        bytes
    }
}

/// A little of everything that a kernel has.
pub(crate) fn small_kernel() -> Blob {
    let mut blob = Blob::new();
    let byte = blob.int("unsigned char", 1);
    let word = blob.int("unsigned int", 4);
    let address = blob.union("", 4, &[("skc_daddr", word, 0, 0), ("skc_addrpair", word, 0, 0)]);
    let inner = blob.structure("", 8, &[("skc_hash", word, 0, 0), ("", address, 32, 0)]);
    let sock_common = blob.structure("sock_common", 12, &[("", inner, 32, 0), ("first", word, 0, 0)]);
    let alias = blob.typedef("sock_common_t", sock_common);
    let constant = blob.raw("", 10 << 24, alias, &[]);
    let several = blob.array(constant, 3);
    blob.structure(
        "sock",
        64,
        &[
            ("common", constant, 64, 0),
            ("several", several, 128, 0),
            ("low", byte, 424, 3),
            ("high", byte, 427, 5),
        ],
    );
    let sock = blob.pointer(sock_common);
    blob.function("tcp_connect", &[sock]);
    blob.function("inet_csk_accept", &[sock, word, word, word]);
    let probe = blob.prototype(&[sock, sock, word, word]);
    let probe = blob.pointer(probe);
    blob.typedef("btf_trace_inet_sock_set_state", probe);
    blob.enumeration("skb_drop_reason", &[("NOT_YET", 0), ("NO_SOCKET", 3), ("NEGATIVE", -1)]);
    blob.raw("big", 19 << 24 | 1, 8, &[0, 7, 1]);
    blob.raw("forward", 7 << 24, 0, &[]);
    blob.raw("variable", 14 << 24, word, &[1]);
    blob.raw(".data", 15 << 24 | 1, 4, &[17, 0, 4]);
    blob.raw("float", 16 << 24, 4, &[]);
    blob.raw("declared", 17 << 24, sock_common, &[u32::MAX]);
    blob.raw("user", 18 << 24, word, &[]);
    blob.raw("", 9 << 24, word, &[]);
    blob.raw("", 11 << 24, word, &[]);
    blob
}
