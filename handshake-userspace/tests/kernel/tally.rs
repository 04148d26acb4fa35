//! A tracer under load: its records are counted and not kept, its memory is sampled all the time.
//!
//! A million records would need more memory here than in the program under test. What a reader would get wrong:
//! a line is searched, not parsed; only `health`, and what names one address that a scenario chose, is kept.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    record::Record,
    running::{Records, Running},
    watch::end_shared,
};

/// What is kept of the records.
#[derive(Default)]
struct Counted {
    /// The address that makes a record worth keeping, in quotation marks.
    address: String,
    /// Handshake records by role and outcome, without those that are kept.
    outcomes: BTreeMap<String, u64>,
    kept: Vec<Record>,
    /// Largest VmRSS since the last look, and since the start.
    peak_kib: u64,
    highest_kib: u64,
}

/// A running `handshake trace --json`.
pub struct Tally {
    running: Running<Counted>,
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
        let running: Running<Counted> = Running::start(&["trace"], arguments);
        running.heard().records.address = format!("\"{address}\"");
        sample(&running);
        let mut tally = Tally { running, begun: Instant::now(), cpu_before: Duration::ZERO };
        tally.begun = Instant::now();
        tally.cpu_before = tally.cpu();
        // What it needed to load the hooks is not what it needs to run.
        tally.peak_kib();
        tally.running.heard().records.highest_kib = 0;
        tally
    }

    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Waits for a record that names the address.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        self.running.until(0, what, |heard| heard.records.kept.iter().find(|record| wanted(record)).cloned())
    }

    /// The largest VmRSS since this was asked last.
    pub fn peak_kib(&self) -> u64 {
        let mut heard = self.running.heard();
        let now = resident_kib(self.pid()).unwrap_or(0);
        std::mem::replace(&mut heard.records.peak_kib, 0).max(now)
    }

    /// SIGINT, exit code 0; what was counted.
    #[track_caller]
    pub fn stop(mut self) -> Total {
        let took = self.begun.elapsed();
        let cpu = self.cpu().saturating_sub(self.cpu_before);
        let status = self.running.stop();
        let heard = std::mem::take(&mut *self.running.heard());
        assert!(status.success(), "{status}: {:?}", heard.log);
        let counted = heard.records;
        let health = counted.kept.into_iter().rev().find(|record| record.text("kind") == Some("health"));
        Total {
            outcomes: counted.outcomes,
            health: health.expect("the last record is the account"),
            log: heard.log,
            highest_kib: counted.highest_kib,
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
}

impl Records for Counted {
    fn take(&mut self, line: &str) {
        let is_named = !self.address.is_empty() && line.contains(&self.address);
        if line.contains("\"kind\":\"health\"") || is_named {
            let value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            self.kept.push(Record(value));
        } else if line.contains("\"kind\":\"handshake\"") {
            let role = text_of(line, "\"role\":\"");
            let outcome = text_of(line, "\"outcome\":\"");
            *self.outcomes.entry(format!("{role} {outcome}")).or_default() += 1;
        }
    }

    fn show(&self, _first: usize) -> String {
        let kept: Vec<_> = self.kept.iter().map(ToString::to_string).collect();
        format!("counted {:?}, kept {kept:#?}", self.outcomes)
    }
}

fn text_of<'a>(line: &'a str, opening: &str) -> &'a str {
    let found = line.split_once(opening).and_then(|(_, rest)| rest.split_once('"'));
    found.map_or("?", |(text, _)| text)
}

/// Looks at the memory until the process is gone.
fn sample(running: &Running<Counted>) {
    let (pid, kept) = (running.pid(), running.share());
    std::thread::spawn(move || {
        while let Some(kib) = resident_kib(pid) {
            let mut heard = kept.heard();
            heard.records.peak_kib = heard.records.peak_kib.max(kib);
            heard.records.highest_kib = heard.records.highest_kib.max(kib);
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
