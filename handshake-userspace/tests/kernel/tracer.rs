//! The program under test, running: started, waited for, asked for records, stopped as a user would.
//!
//! What a reader would get wrong: `stop` checks the accounting of every run, so that no scenario passes while
//! something was lost.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    environment::{attach, patience, program},
    record::Record,
    watch::end_shared,
};

#[derive(Default)]
struct Heard {
    records: Vec<Record>,
    log: Vec<String>,
    ended: usize,
}

type Shared = Arc<(Mutex<Heard>, Condvar)>;

/// A running `handshake`.
pub struct Tracer {
    child: Child,
    heard: Shared,
}

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
        Self::start_by(Command::spawn, command, arguments)
    }

    /// As `start_alone`, as a child of whoever spawns it.
    pub fn start_by(
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
        command: &[&str],
        arguments: &[&str],
    ) -> Self {
        let mut prepared = Command::new(program());
        prepared
            .args(command)
            .args(["--json", "--attach", &attach()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(&mut prepared).expect("the program can be started");
        let heard: Shared = Shared::default();
        let out = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let err = BufReader::new(child.stderr.take().expect("stderr is piped"));
        listen(out, &heard, |heard, line| {
            let value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            heard.records.push(Record(value));
        });
        listen(err, &heard, |heard, line| heard.log.push(line));
        let tracer = Tracer { child, heard };
        tracer.until("hooks are attached", |heard| {
            heard.log.iter().any(|line| line.starts_with("tracing")).then_some(())
        });
        tracer
    }

    /// Waits for a record.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        self.wait_for_since(0, what, wanted)
    }

    /// Waits for a record that is not one of the first few.
    #[track_caller]
    pub fn wait_for_since(&self, first: usize, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        self.until_since(first, what, |heard| {
            heard.records.iter().skip(first).find(|record| wanted(record)).cloned()
        })
    }

    /// How many records came so far.
    pub fn count(&self) -> usize {
        self.heard.0.lock().expect("no listener panicked").records.len()
    }

    /// Asks it to end.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Waits until it ended; records and what was written to stderr.
    #[track_caller]
    pub fn ended(&self) -> (Vec<Record>, Vec<String>) {
        self.until("the program ends", |heard| {
            (heard.ended == 2).then(|| (heard.records.clone(), heard.log.clone()))
        })
    }

    /// Waits for the record of one end of a connection to a listening port.
    #[track_caller]
    pub fn wait_for_end(&self, role: &str, port: u16) -> Record {
        self.wait_for(&format!("a {role} record for port {port}"), |record| record.is(role, port))
    }

    /// What came so far.
    pub fn records(&self) -> Vec<Record> {
        self.heard.0.lock().expect("no listener panicked").records.clone()
    }

    /// Stops its execution (SIGSTOP) or lets it go on (SIGCONT).
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the program runs");
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
        self.interrupt();
        let (records, log) = self.ended();
        let status = self.child.wait().expect("the program can be waited for");
        assert!(status.success(), "{status}: {log:?}");
        (records, log)
    }

    #[track_caller]
    fn until<R>(&self, what: &str, done: impl Fn(&Heard) -> Option<R>) -> R {
        self.until_since(0, what, done)
    }

    #[track_caller]
    fn until_since<R>(&self, first: usize, what: &str, done: impl Fn(&Heard) -> Option<R>) -> R {
        let deadline = Instant::now() + patience();
        let (lock, changed) = &*self.heard;
        let mut heard = lock.lock().expect("no listener panicked");
        loop {
            if let Some(result) = done(&heard) {
                return result;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                left > Duration::ZERO,
                "waited in vain: {what}\nrecords: {:#?}\nlog: {:#?}",
                heard.records.iter().skip(first).map(ToString::to_string).collect::<Vec<_>>(),
                heard.log
            );
            heard = changed.wait_timeout(heard, left).expect("no listener panicked").0;
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

fn listen(
    lines: BufReader<impl std::io::Read + Send + 'static>,
    heard: &Shared,
    take: impl Fn(&mut Heard, String) + Send + 'static,
) {
    let heard = Arc::clone(heard);
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            take(&mut heard.0.lock().expect("no listener panicked"), line);
            heard.1.notify_all();
        }
        heard.0.lock().expect("no listener panicked").ended += 1;
        heard.1.notify_all();
    });
}
