//! What the program says to the person who started it, on stderr, one line each.
//!
//! Data never goes here and notices never go to stdout. What a newcomer would get wrong: `eprintln!` panics
//! when stderr is closed or full; a daemon must outlive its terminal, so a failed notice is not an error.

use std::io::{self, Write};

/// Writes one line as it is.
pub fn say(line: &str) {
    // Nobody is left to be told that nobody can be told.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Writes one line that begins with the program's name: something is wrong.
pub fn warn(line: &str) {
    say(&format!("handshake: {line}"));
}

/// Says yes at the first and then at each doubling, so that a storm of failures is told in a few lines.
#[derive(Debug, Default)]
pub struct Doubling {
    told: u64,
}

impl Doubling {
    /// Whether a total of this size is to be told, and how much of it is new; 0 is never told.
    pub fn grown(&mut self, total: u64) -> Option<u64> {
        if total == 0 || total < self.told.saturating_mul(2) || total == self.told {
            return None;
        }
        Some(total - std::mem::replace(&mut self.told, total))
    }
}

#[cfg(test)]
mod tests {
    use super::Doubling;

    #[test]
    fn loss_is_told_at_first_and_at_each_doubling() {
        let mut doubling = Doubling::default();
        let told: Vec<u64> = (0..20).filter(|total| doubling.grown(*total).is_some()).collect();
        assert_eq!(told, [1, 2, 4, 8, 16]);
    }
}
