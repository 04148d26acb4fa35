//! Reads the kernel's drop reasons: `enum skb_drop_reason` of the running kernel's BTF.
//!
//! What a newcomer would get wrong: subsystems add reasons of their own with numbers far above, which this enum
//! doesn't have and no TCP segment dies of.

use std::sync::Arc;

use super::btf::Btf;
use crate::model::drop_reasons::DropReasons;

const PREFIX: &str = "SKB_DROP_REASON_";

/// All that have a name; none before 5.17.
pub(super) fn of(btf: &Btf) -> DropReasons {
    let values = btf.enum_values("skb_drop_reason").unwrap_or_default();
    DropReasons::from_names(values.into_iter().filter_map(|(name, number)| {
        let name = name.strip_prefix(PREFIX)?;
        // The last one only counts them.
        (name != "MAX").then(|| Some((u32::try_from(number).ok()?, Arc::from(name))))?
    }))
}
