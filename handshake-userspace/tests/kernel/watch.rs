//! One tracer for all scenarios that need no options of their own: each watches what it prints from now on.
//!
//! Loading and verifying the hooks takes most of a scenario's time on an emulated processor, and a user's
//! tracer runs for months, not for one connection. It ends, and its account is looked at, when a scenario
//! starts a tracer of its own: two at once would be another load. What a reader would get wrong: records of an
//! earlier scenario may still arrive here, so a scenario asks by its own port or namespace; `end` waits until
//! all that happened before it was told.

use std::{
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, Once, PoisonError},
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

static SHARED: Mutex<Option<Arc<Shared>>> = Mutex::new(None);

/// Ends the shared tracer, if one runs; nothing may have been lost in any scenario that watched it.
#[track_caller]
pub fn end_shared() {
    let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(shared) = shared else { return };
    shared.tracer.interrupt();
    let (records, _) = shared.tracer.ended();
    expect_nothing_lost(records.last().expect("there is a last record"));
}

/// What is still shared when this process ends, because a filter left out the scenario that ends it, goes with it:
/// nobody drops a static, and a tracer that stayed would be another load for the next run.
extern "C" fn leave_nothing_behind() {
    let shared = SHARED.try_lock().map(|mut slot| slot.take());
    drop(shared);
}

/// What the shared tracer prints from some moment on.
pub struct Watch {
    shared: Arc<Shared>,
    from: usize,
}

impl Watch {
    /// From now on.
    pub fn begin() -> Self {
        static AT_EXIT: Once = Once::new();
        AT_EXIT.call_once(|| {
            // SAFETY: the function takes nothing, returns nothing and never unwinds.
            unsafe { libc::atexit(leave_nothing_behind) };
        });
        let mut slot = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = slot
            .get_or_insert_with(|| {
                Arc::new(Shared {
                    marks: Netns::without_name("mark"),
                    tracer: Tracer::start_alone(&["trace"], &[]),
                })
            })
            .clone();
        Watch { from: shared.tracer.count(), shared }
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

    /// The same, in one namespace.
    #[track_caller]
    pub fn wait_in(&self, netns: &Netns, role: &str, port: u16) -> Record {
        let inode = netns.inode();
        self.wait_for(&format!("a {role} record for port {port} in its namespace"), |record| {
            record.is(role, port) && record.number("netns") == Some(inode)
        })
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
fn a_scenario_that_fails_leaves_the_tracer_to_its_neighbours() {
    if !is_fit("a_scenario_that_fails_leaves_the_tracer_to_its_neighbours") {
        return;
    }
    let neighbour = Watch::begin();
    let failing = Watch { from: 0, shared: Arc::clone(&neighbour.shared) };
    let (listener, to) = super::traffic::loopback_listener();
    let stream = TcpStream::connect(to).expect("it listens");
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        failing.wait_for("a record that fails an assertion", |record| panic!("it is no good: {record}"))
    }));
    assert!(failed.is_err());
    neighbour.wait_for_end("client", to.port()).expect_text("outcome", "established");
    drop((stream, listener));
    neighbour.end();
}

#[test]
fn nothing_was_lost_in_any_scenario() {
    if !is_fit("nothing_was_lost_in_any_scenario") {
        return;
    }
    // libtest runs tests by name, and none that watches the shared tracer has a later one.
    end_shared();
}
