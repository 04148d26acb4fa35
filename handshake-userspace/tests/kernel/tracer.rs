//! The program under test, running: started, waited for, asked for records, stopped as a user would.
//!
//! What a reader would get wrong: `stop` checks the accounting of every run, so that no scenario passes while
//! something was lost.

use std::process::{Child, Command};

use rustix::process::Signal;

use super::{
    record::Record,
    running::{Records, Running},
    watch::end_shared,
};

/// What stands in for a line that is no JSON; `ended` fails because of it.
const NO_RECORD: &str = "no record";

impl Records for Vec<Record> {
    fn take(&mut self, line: &str) {
        // A panic would end the thread that listens, and with it all later scenarios.
        let value = serde_json::from_str(line).unwrap_or_else(
            |error| serde_json::json!({ "kind": NO_RECORD, "error": error.to_string(), "line": line }),
        );
        self.push(Record(value));
    }

    fn show(&self, first: usize) -> String {
        let shown: Vec<_> = self.iter().skip(first).map(ToString::to_string).collect();
        format!("{shown:#?}")
    }
}

/// A running `handshake`, all of whose records are kept.
pub struct Tracer(Running<Vec<Record>>);

impl Tracer {
    /// `handshake trace --json` in the mode that the tests run in.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_command(&["trace"], arguments)
    }

    /// Another command; waits until its hooks are attached.
    pub fn start_command(command: &[&str], arguments: &[&str]) -> Self {
        end_shared();
        Self::start_alone(command, arguments)
    }

    /// As `start_command`, beside whatever runs.
    pub fn start_alone(command: &[&str], arguments: &[&str]) -> Self {
        Tracer(Running::start(command, arguments))
    }

    /// As `start_alone`, as a child of whoever spawns it.
    pub fn start_by(
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
        command: &[&str],
        arguments: &[&str],
    ) -> Self {
        Tracer(Running::start_by(spawn, command, arguments))
    }

    /// Waits for a record.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        self.wait_for_since(0, what, wanted)
    }

    /// Waits for a record that is not one of the first few.
    #[track_caller]
    pub fn wait_for_since(&self, first: usize, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        self.0.until(first, what, |heard| {
            heard.records.iter().skip(first).find(|record| wanted(record)).cloned()
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// How many records came so far.
    pub fn count(&self) -> usize {
        self.0.heard().records.len()
    }

    /// Asks it to end.
    pub fn interrupt(&self) {
        self.0.signal(Signal::INT);
    }

    /// Waits until it ended; records and what was written to stderr.
    #[track_caller]
    pub fn ended(&self) -> (Vec<Record>, Vec<String>) {
        self.0.until_ended();
        let heard = self.0.heard();
        let spoilt = heard.records.iter().find(|record| record.text("kind") == Some(NO_RECORD));
        assert_eq!(spoilt, None, "every line is a record");
        (heard.records.clone(), heard.log.clone())
    }

    /// Waits for the record of one end of a connection to a listening port.
    #[track_caller]
    pub fn wait_for_end(&self, role: &str, port: u16) -> Record {
        self.wait_for(&format!("a {role} record for port {port}"), |record| record.is(role, port))
    }

    /// What came so far.
    pub fn records(&self) -> Vec<Record> {
        self.0.heard().records.clone()
    }

    /// Stops its execution (SIGSTOP) or lets it go on (SIGCONT).
    pub fn signal(&self, signal: Signal) {
        self.0.signal(signal);
    }

    /// SIGINT; exit code 0, `health` last, nothing lost. Gives all records.
    #[track_caller]
    pub fn stop(self) -> Vec<Record> {
        let (records, _) = self.stop_with_log();
        expect_nothing_lost(records.last().expect("there is a last record"));
        records
    }

    /// SIGINT, exit code 0; records and what was written to stderr.
    #[track_caller]
    pub fn stop_with_log(mut self) -> (Vec<Record>, Vec<String>) {
        let status = self.0.stop();
        let (records, log) = self.ended();
        assert!(status.success(), "{status}: {log:?}");
        (records, log)
    }
}

/// What a `health` record counts as lost must be nothing. A probe may have been skipped: what that took from a
/// record is told by the record, and made good where it can be.
#[track_caller]
pub fn expect_nothing_lost(health: &Record) {
    assert_eq!(health.text("kind"), Some("health"), "{health}");
    assert_eq!((health.number("lost"), health.number("late")), (Some(0), Some(0)), "{health}");
    assert_eq!(health.number("kernel.read_failed"), Some(0), "the kernel's counters were read: {health}");
    // A handshake may be missing altogether where the kernel skipped a hook; anything else is a fault of ours.
    assert!(matches!(health.number("kernel_counters.unexplained"), None | Some(0)), "{health}");
    for number in ["active_opens", "passive_opens", "failed_opens", "embryonic_resets"] {
        health.expect_absent(&format!("kernel_counters.{number}.surplus"));
    }
}
