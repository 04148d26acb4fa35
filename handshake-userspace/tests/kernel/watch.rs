//! One tracer for all scenarios that need no options of their own: each watches what it prints from now on.
//!
//! Loading and verifying the hooks takes most of a scenario's time on an emulated processor, and a user's
//! tracer runs for months, not for one connection. What a reader would get wrong: records of an earlier
//! scenario may still arrive here, so a scenario asks by its own port or namespace; `end` waits until all that
//! happened before it was told.

use std::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, OnceLock, PoisonError},
};

use super::{
    environment::is_fit,
    netns::Netns,
    record::Record,
    tracer::{Tracer, expect_nothing_lost},
};

/// What the scenarios share.
struct Shared {
    tracer: Tracer,
    /// Where the connections are made that mark the end of a scenario.
    marks: Netns,
}

static SHARED: OnceLock<Shared> = OnceLock::new();
static STARTING: Mutex<()> = Mutex::new(());

fn shared() -> &'static Shared {
    let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    SHARED.get_or_init(|| Shared { marks: Netns::new("mark"), tracer: Tracer::start(&[]) })
}

/// What the shared tracer prints from some moment on.
pub struct Watch {
    shared: &'static Shared,
    from: usize,
}

impl Watch {
    /// From now on.
    pub fn begin() -> Self {
        let shared = shared();
        Watch { shared, from: shared.tracer.count() }
    }

    /// Waits for a record.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        self.shared.tracer.wait_for_since(self.from, what, wanted)
    }

    /// Waits for the record of one end of a connection to a listening port.
    #[track_caller]
    pub fn wait_for_end(&self, role: &str, port: u16) -> Record {
        self.wait_for(&format!("a {role} record for port {port}"), |record| record.is(role, port))
    }

    /// What came so far.
    pub fn records(&self) -> Vec<Record> {
        self.shared.tracer.records().split_off(self.from)
    }

    /// Waits until all that happened so far was told, and gives it. Nothing may be lost.
    #[track_caller]
    pub fn end(self) -> Vec<Record> {
        let (port, accepted) = self.shared.marks.on_thread("hs-mark", || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
            let to = listener.local_addr().expect("it has an address");
            let client = TcpStream::connect(to).expect("it listens");
            (client.local_addr().expect("it is bound").port(), listener.accept().expect("a child is queued"))
        });
        // The listening port is one of the ephemeral ports and could be a scenario's too; so both are asked.
        for (role, end) in [("client", "local.port"), ("server", "remote.port")] {
            self.wait_for("the mark", |record| {
                record.text("role") == Some(role)
                    && record.number(end) == Some(u64::from(port))
                    && record.number("netns") == Some(self.shared.marks.inode())
            });
        }
        drop(accepted);
        let records = self.records();
        records.iter().filter(|record| record.text("kind") == Some("health")).for_each(expect_nothing_lost);
        records
    }
}

#[test]
fn nothing_was_lost_in_any_scenario() {
    if !is_fit("nothing_was_lost_in_any_scenario") {
        return;
    }
    // libtest runs tests by name, and this module's name is the last.
    let Some(shared) = SHARED.get() else { return };
    shared.tracer.interrupt();
    let (records, _) = shared.tracer.ended();
    expect_nothing_lost(records.last().expect("there is a last record"));
    let _ = std::process::Command::new("ip").args(["netns", "del", shared.marks.name()]).status();
}
