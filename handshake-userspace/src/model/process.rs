//! A thread and its process, and the safe form of text that came from the kernel.
//!
//! What a newcomer would get wrong: `comm` is chosen by the process, so it can hold terminal escapes,
//! line breaks and direction overrides. It is escaped once, here, and is plain text from then on.

use std::fmt;

/// The thread that connected, accepted, listened or closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id in the host's first pid namespace.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// User id of the thread.
    pub uid: u32,
    /// The thread's command name.
    pub comm: SafeText,
    /// Id of its cgroup (v2); absent where the host has none.
    pub cgroup_id: Option<u64>,
    /// Which of the cgroups that `--cgroup` named it was in, or in one below, a bit each; not for records.
    pub in_cgroups: u32,
}

impl Process {
    /// Whether it goes by the name of a kernel's worker. A thread may call itself so; that costs it its mention.
    pub fn is_kernel_worker(&self) -> bool {
        self.uid == 0 && self.comm.as_str().starts_with("kworker/")
    }
}

/// Text in which every character is printable and none changes the direction of writing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SafeText(Box<str>);

impl SafeText {
    /// Takes the bytes up to the first zero; what is no UTF-8 or not printable becomes `\xNN` or `\u{NNNN}`.
    pub fn from_kernel_bytes(bytes: &[u8]) -> Self {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let mut text = String::with_capacity(end);
        for chunk in bytes[..end].utf8_chunks() {
            for character in chunk.valid().chars() {
                if is_unsafe(character) {
                    text.extend(character.escape_unicode());
                } else {
                    text.push(character);
                }
            }
            for byte in chunk.invalid() {
                text.push_str(&format!("\\x{byte:02x}"));
            }
        }
        SafeText(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SafeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// C0, DEL, C1, and the characters that reorder or hide what stands beside them (UAX #9).
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

#[cfg(test)]
mod tests {
    use super::SafeText;

    #[test]
    fn a_terminal_escape_in_comm_is_shown_and_not_obeyed() {
        let text = SafeText::from_kernel_bytes(b"a\x1b[31mb\n\0rest");
        assert_eq!(text.as_str(), "a\\u{1b}[31mb\\u{a}");
    }

    #[test]
    fn a_direction_override_in_comm_is_shown_and_not_obeyed() {
        let text = SafeText::from_kernel_bytes("x\u{202e}y".as_bytes());
        assert_eq!(text.as_str(), "x\\u{202e}y");
    }

    #[test]
    fn bytes_that_are_no_utf8_are_shown_as_hex() {
        assert_eq!(SafeText::from_kernel_bytes(b"n\xffc\0").as_str(), "n\\xffc");
    }
}
