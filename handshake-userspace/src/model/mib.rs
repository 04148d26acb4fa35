//! The kernel's own counters of TCP, and how our account compares with them.
//!
//! They are the one witness that does not depend on any hook of ours: /proc/PID/net/snmp and netstat count
//! every active and passive open, whoever watches. What a newcomer would get wrong: there is a set of them for
//! each network namespace, and none for the host, so every comparison is made namespace by namespace.

use std::collections::BTreeMap;

/// A counter of the kernel that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MibCounter {
    /// SYNs sent by tcp_connect().
    ActiveOpens = 0,
    /// Children made by tcp_create_openreq_child().
    PassiveOpens = 1,
    /// tcp_done() in SYN-SENT or SYN-RECEIVED, and requests that a RST or a bad SYN ended.
    AttemptFails = 2,
    /// Of those: requests that tcp_check_req() dropped.
    EmbryonicRsts = 3,
    /// Segments received. Compared with nothing: it shows that a namespace is another one than before.
    InSegs = 4,
    /// Segments sent; as [`MibCounter::InSegs`].
    OutSegs = 5,
    /// Inode of the namespace's own routing socket: the kernel gives a dead namespace's number to the next one, but
    /// this one it does not.
    Identity = 6,
}

/// How many of them there are.
pub const MIB_COUNTERS: usize = 7;

impl MibCounter {
    /// All, in the order of their numbers.
    pub const ALL: [MibCounter; MIB_COUNTERS] = [
        MibCounter::ActiveOpens,
        MibCounter::PassiveOpens,
        MibCounter::AttemptFails,
        MibCounter::EmbryonicRsts,
        MibCounter::InSegs,
        MibCounter::OutSegs,
        MibCounter::Identity,
    ];
}

/// The kernel's counters of one namespace at one moment, by [`MibCounter`]; one that this kernel lacks, or that
/// could not be read, is absent.
pub type MibValues = [Option<u64>; MIB_COUNTERS];

/// The kernel's counters of every namespace that could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MibReading {
    /// Why nothing was read, or can be compared.
    pub refused: Option<NotCompared>,
    /// Our hooks see requests die half open.
    pub requests_are_seen: bool,
    /// Namespaces that were there and could not be read.
    pub unread: u32,
    /// By the inode number of the namespace.
    pub namespaces: BTreeMap<u32, NamespaceMib>,
}

/// The kernel's counters of one namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceMib {
    /// When reading them began, CLOCK_MONOTONIC.
    pub from_ns: u64,
    /// When it had ended.
    pub to_ns: u64,
    /// What they were.
    pub values: MibValues,
}

/// Why our account cannot be compared with the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotCompared {
    /// A filter in the kernel leaves handshakes out, which the kernel's counters do not.
    Filtered,
    /// The run ended at a number of records, and what came after that was not looked at.
    StoppedEarly,
    /// Nothing has been compared yet.
    NotYet,
}

/// A number that the kernel counts and that we can count too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// A SYN left that opens actively: `ActiveOpens`.
    ActiveOpens = 0,
    /// A child was made: `PassiveOpens`.
    PassiveOpens = 1,
    /// A socket in SYN-SENT or SYN-RECEIVED was given up with an error: `AttemptFails` without `EmbryonicRsts`.
    FailedOpens = 2,
    /// A RST ended a half-open request: `EmbryonicRsts`.
    EmbryonicResets = 3,
}

/// How many of them there are.
pub const TALLIES: usize = 4;

impl Tally {
    /// All, in the order of their numbers.
    pub const ALL: [Tally; TALLIES] =
        [Tally::ActiveOpens, Tally::PassiveOpens, Tally::FailedOpens, Tally::EmbryonicResets];

    /// What the kernel's counters say of it; absent when one of them is.
    pub fn in_kernel(self, values: &MibValues) -> Option<u64> {
        let value = |counter: MibCounter| values[counter as usize];
        match self {
            Tally::ActiveOpens => value(MibCounter::ActiveOpens),
            Tally::PassiveOpens => value(MibCounter::PassiveOpens),
            // A request that is reset is in both.
            Tally::FailedOpens => {
                value(MibCounter::AttemptFails)?.checked_sub(value(MibCounter::EmbryonicRsts)?)
            }
            Tally::EmbryonicResets => value(MibCounter::EmbryonicRsts),
        }
    }
}

/// One number, counted twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// By the kernel.
    pub kernel: u64,
    /// By us.
    pub seen: u64,
    /// What the kernel counted and we did not see, namespace by namespace.
    pub missing: u64,
    /// What we saw and the kernel did not count, namespace by namespace.
    pub surplus: u64,
}

/// A namespace in which the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its inode number.
    pub netns: u32,
    /// In which number.
    pub tally: Tally,
    /// By how much.
    pub compared: Compared,
}

/// How our account compares with the kernel's, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciliation {
    /// Why there is nothing to compare.
    pub not_compared: Option<NotCompared>,
    /// Namespaces that were compared.
    pub namespaces: u64,
    /// Namespaces that were not: they began or ended meanwhile, or could not be read.
    pub left_out: u64,
    /// By [`Tally`]; absent where the kernel or our hooks don't say.
    pub tallies: [Option<Compared>; TALLIES],
    /// The first namespaces that differ.
    pub differences: Vec<Difference>,
}

impl Reconciliation {
    /// Nothing was compared, for this reason.
    pub fn without(reason: NotCompared) -> Self {
        Reconciliation { not_compared: Some(reason), ..Reconciliation::default() }
    }

    /// Whether the two say the same; absent when there is nothing to compare.
    pub fn agrees(&self) -> Option<bool> {
        if self.not_compared.is_some() || self.namespaces == 0 {
            return None;
        }
        Some(self.compared().all(|(_, row)| row.missing == 0 && row.surplus == 0))
    }

    /// What the kernel counted and we did not see, all numbers together.
    pub fn missing(&self) -> u64 {
        self.compared().map(|(_, row)| row.missing).fold(0, u64::saturating_add)
    }

    /// The numbers that could be compared.
    pub fn compared(&self) -> impl Iterator<Item = (Tally, Compared)> {
        Tally::ALL.into_iter().zip(self.tallies).filter_map(|(tally, row)| Some((tally, row?)))
    }
}
