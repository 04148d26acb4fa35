//! What this kernel can do, hook by hook, found by doing it.
//!
//! What a newcomer would get wrong: the report attaches everything and detaches it again. Nothing less tells
//! the truth.

use super::{CanaryResult, HookStatus, StartError, TraceOptions, object::BUILT_WITH, offsets, start};

/// The whole report.
#[derive(Clone, Debug)]
pub struct DoctorReport {
    /// `uname -r`.
    pub kernel_release: String,
    /// `uname -m`.
    pub architecture: String,
    /// What built the kernel side.
    pub built_with: &'static str,
    /// lockdown=confidentiality.
    pub locked_down: bool,
    /// Possible CPUs.
    pub cpus: usize,
    /// What came of our own first handshakes.
    pub canary: CanaryResult,
    /// Every hook.
    pub hooks: Vec<HookStatus>,
    /// Fields that this kernel lacks: name, reason, consequence.
    pub missing_fields: Vec<MissingField>,
}

/// A kernel field that could not be resolved.
#[derive(Clone, Debug)]
pub struct MissingField {
    /// Its name.
    pub field: &'static str,
    /// Why.
    pub reason: String,
    /// What is not shown without it.
    pub without_it: &'static str,
}

/// Attaches everything, and reports. Needs a tokio runtime.
pub fn report(options: &TraceOptions) -> Result<DoctorReport, StartError> {
    let trace = start(options)?;
    let uname = rustix::system::uname();
    Ok(DoctorReport {
        kernel_release: uname.release().to_string_lossy().into_owned(),
        architecture: uname.machine().to_string_lossy().into_owned(),
        built_with: BUILT_WITH,
        locked_down: trace.locked_down,
        cpus: trace.cpus,
        canary: trace.canary,
        hooks: trace.hooks,
        missing_fields: trace
            .missing_fields
            .into_iter()
            .map(|(field, reason)| MissingField { field, reason, without_it: offsets::consequence(field) })
            .collect(),
    })
}
