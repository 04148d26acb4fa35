//! `kernel_counters` of a `health` record: the kernel's own counters beside ours.
//!
//! What a newcomer would get wrong: a number that this kernel, or these hooks, don't tell is absent; one that is 0
//! was compared.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::words;
use crate::model::{
    health,
    mib::{Compared, Difference, Reconciliation},
};

#[derive(Serialize)]
pub(super) struct SecondAccount<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    agree: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_compared: Option<&'static str>,
    namespaces: u64,
    namespaces_left_out: u64,
    #[serde(flatten)]
    rows: Rows<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unexplained: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<Differs>,
}

impl<'a> SecondAccount<'a> {
    pub(super) fn of(health: &'a health::Health) -> Option<Self> {
        let compared = health.reconciliation.as_ref()?;
        let agree = compared.agrees();
        Some(SecondAccount {
            agree,
            not_compared: compared.not_compared.map(words::not_compared),
            namespaces: compared.namespaces,
            namespaces_left_out: compared.left_out,
            rows: Rows(compared),
            unexplained: (agree == Some(false)).then(|| health.unexplained()),
            differences: compared.differences.iter().map(Differs::new).collect(),
        })
    }
}

/// The numbers, under their names.
struct Rows<'a>(&'a Reconciliation);

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (tally, compared) in self.0.compared() {
            map.serialize_entry(words::tally(tally), &Row::new(compared))?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Row {
    kernel: u64,
    seen: u64,
    #[serde(skip_serializing_if = "is_zero")]
    missing: u64,
    #[serde(skip_serializing_if = "is_zero")]
    surplus: u64,
}

impl Row {
    fn new(compared: Compared) -> Self {
        let Compared { kernel, seen, missing, surplus } = compared;
        Row { kernel, seen, missing, surplus }
    }
}

#[derive(Serialize)]
struct Differs {
    netns: u32,
    of: &'static str,
    #[serde(flatten)]
    row: Row,
}

impl Differs {
    fn new(difference: &Difference) -> Self {
        let Difference { netns, tally, compared } = *difference;
        Differs { netns, of: words::tally(tally), row: Row::new(compared) }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}
