//! A tracer under load: its records are counted and not kept, its memory is sampled all the time.
//!
//! A million records would need more memory here than in the program under test. What a reader would get wrong:
//! a line is searched, not parsed; only `health`, and what names one address that a scenario chose, is kept.

use std::{
    collections::BTreeMap,
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
    /// Handshake records by role and outcome, without those that are kept.
    outcomes: BTreeMap<String, u64>,
    kept: Vec<Record>,
    log: Vec<String>,
    ended: usize,
    /// Largest VmRSS since the last look, and since the start.
    peak_kib: u64,
    highest_kib: u64,
}

type Shared = Arc<(Mutex<Heard>, Condvar)>;

/// A running `handshake trace --json`.
pub struct Tally {
    child: Child,
    heard: Shared,
    begun: Instant,
    cpu_before: Duration,
}

/// What one counted in the end.
pub struct Total {
    /// Handshake records by role and outcome, for instance `client refused`.
    pub outcomes: BTreeMap<String, u64>,
    /// The last record.
    pub health: Record,
    pub log: Vec<String>,
    pub highest_kib: u64,
    /// Of the daemon, from the first hook on.
    pub cpu: Duration,
    pub took: Duration,
}

impl Total {
    #[track_caller]
    pub fn health(&self, path: &str) -> u64 {
        self.health.number(path).unwrap_or_else(|| panic!("{path} is absent from {}", self.health))
    }
}

impl Tally {
    /// Starts it; records that name `address` are kept.
    pub fn start(address: &str, arguments: &[&str]) -> Self {
        end_shared();
        let mut child = Command::new(program())
            .args(["trace", "--json", "--attach", &attach()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let heard: Shared = Shared::default();
        let kept = format!("\"{address}\"");
        let out = child.stdout.take().expect("stdout is piped");
        let err = child.stderr.take().expect("stderr is piped");
        listen(out, &heard, move |heard, line| heard.line(line, &kept));
        listen(err, &heard, |heard, line| heard.log.push(line.to_owned()));
        sample(child.id(), &heard);
        let mut tally = Tally { child, heard, begun: Instant::now(), cpu_before: Duration::ZERO };
        tally.until("hooks are attached", |heard| {
            heard.log.iter().any(|line| line.starts_with("tracing")).then_some(())
        });
        tally.begun = Instant::now();
        tally.cpu_before = tally.cpu();
        // What it needed to load the hooks is not what it needs to run.
        tally.peak_kib();
        tally.heard.0.lock().expect("no listener panicked").highest_kib = 0;
        tally
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a record that names the address.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        self.until(what, |heard| heard.kept.iter().find(|record| wanted(record)).cloned())
    }

    /// The largest VmRSS since this was asked last.
    pub fn peak_kib(&self) -> u64 {
        let mut heard = self.heard.0.lock().expect("no listener panicked");
        let now = resident_kib(self.pid()).unwrap_or(0);
        std::mem::replace(&mut heard.peak_kib, 0).max(now)
    }

    /// SIGINT, exit code 0; what was counted.
    #[track_caller]
    pub fn stop(mut self) -> Total {
        let took = self.begun.elapsed();
        let cpu = self.cpu().saturating_sub(self.cpu_before);
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("the program runs");
        self.until("the program ends", |heard| (heard.ended == 2).then_some(()));
        let status = self.child.wait().expect("the program can be waited for");
        let heard = std::mem::take(&mut *self.heard.0.lock().expect("no listener panicked"));
        assert!(status.success(), "{status}: {:?}", heard.log);
        let health = heard.kept.into_iter().rev().find(|record| record.text("kind") == Some("health"));
        Total {
            outcomes: heard.outcomes,
            health: health.expect("the last record is the account"),
            log: heard.log,
            highest_kib: heard.highest_kib,
            cpu,
            took,
        }
    }

    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // After the name in parentheses: state is the first, utime and stime are the 12th and 13th.
        let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
        let ticks: u64 =
            behind.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
    }

    #[track_caller]
    fn until<R>(&self, what: &str, done: impl Fn(&Heard) -> Option<R>) -> R {
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
                "waited in vain: {what}\ncounted: {:?}\nkept: {:#?}\nlog: {:#?}",
                heard.outcomes,
                heard.kept.iter().map(ToString::to_string).collect::<Vec<_>>(),
                heard.log
            );
            heard = changed.wait_timeout(heard, left).expect("no listener panicked").0;
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Heard {
    fn line(&mut self, line: &str, kept: &str) {
        if line.contains("\"kind\":\"health\"") || line.contains(kept) {
            let value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            self.kept.push(Record(value));
        } else if line.contains("\"kind\":\"handshake\"") {
            let role = text_of(line, "\"role\":\"");
            let outcome = text_of(line, "\"outcome\":\"");
            *self.outcomes.entry(format!("{role} {outcome}")).or_default() += 1;
        }
    }
}

fn text_of<'a>(line: &'a str, opening: &str) -> &'a str {
    let found = line.split_once(opening).and_then(|(_, rest)| rest.split_once('"'));
    found.map_or("?", |(text, _)| text)
}

/// Takes lines as they come, all that one read gave under one lock: a slow reader would make the program drop
/// records.
fn listen(
    mut out: impl std::io::Read + Send + 'static,
    heard: &Shared,
    take: impl Fn(&mut Heard, &str) + Send + 'static,
) {
    let heard = Arc::clone(heard);
    std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 20];
        let mut held = 0;
        while let Ok(more @ 1..) = out.read(&mut bytes[held..]) {
            let end = held + more;
            let whole = bytes[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            {
                let mut heard = heard.0.lock().expect("no listener panicked");
                let text = std::str::from_utf8(&bytes[..whole]).expect("records are text");
                text.lines().for_each(|line| take(&mut heard, line));
            }
            heard.1.notify_all();
            bytes.copy_within(whole..end, 0);
            held = end - whole;
        }
        heard.0.lock().expect("no listener panicked").ended += 1;
        heard.1.notify_all();
    });
}

/// Looks at the memory until the process is gone.
fn sample(pid: u32, heard: &Shared) {
    let heard = Arc::clone(heard);
    std::thread::spawn(move || {
        while let Some(kib) = resident_kib(pid) {
            let mut heard = heard.0.lock().expect("no listener panicked");
            heard.peak_kib = heard.peak_kib.max(kib);
            heard.highest_kib = heard.highest_kib.max(kib);
            drop(heard);
            // Nothing tells that memory has grown; this is how often it is looked at.
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

/// VmRSS; a process that has ended has none.
fn resident_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}
