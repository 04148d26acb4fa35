//! The whole of a record: every field that it has is asked for, and one that nobody asked for is a failure.
//!
//! What a reader would get wrong: a test that asks only for what should be there passes when the program invents
//! more. [`Whole`] notes what was asked, so `nothing_else` finds what was not; what a mode can't know is simply
//! not asked for there. It ends with what holds of any record: a part is no longer than the whole, and counts
//! that say the same agree.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    os::unix::fs::MetadataExt as _,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use super::{
    environment::{attach, has_probes},
    neighbours::cgroup_root,
    netns::Netns,
    record::Record,
};

/// Milliseconds in which what waits for nobody is done, on an emulated processor too.
pub const AT_ONCE: RangeInclusive<u64> = 0..=900;

/// What TCP announces over Ethernet (IPv4), and on loopback, where a packet of IPv4 can't have the whole MTU.
pub const ETHERNET_MSS: u64 = 1_460;
pub const LOOPBACK_MSS: u64 = 65_495;
pub const LOOPBACK_V6_MSS: u64 = 65_476;

/// See the module.
pub struct Whole<'a> {
    pub(super) record: &'a Record,
    pub(super) asked: BTreeSet<String>,
    pub(super) seen_by: Vec<&'static str>,
    pub(super) has_old_calls: bool,
}

impl Record {
    /// Begins to ask for everything: what every record of a handshake has, and these three.
    #[track_caller]
    pub fn whole(&self, role: &str, outcome: &str, netns: &Netns) -> Whole<'_> {
        let seen_by = match attach().as_str() {
            "fentry" => vec!["fentry"],
            // The return of connect() is a system call's there.
            "kprobe" if role != "server" => vec!["kprobe", "mixed"],
            "kprobe" => vec!["kprobe"],
            "tracepoint" => vec!["tracepoint"],
            _ => vec!["fentry", "kprobe", "tracepoint", "mixed"],
        };
        let whole = Whole { record: self, asked: BTreeSet::new(), seen_by, has_old_calls: false };
        assert!(is_recent(self.text("time").unwrap_or_default()), "time of {self}");
        whole
            .number("schema", 1)
            .text("kind", "handshake")
            .present("time")
            .present("key")
            .text("role", role)
            .text("outcome", outcome)
            .number("netns", netns.inode())
    }

    /// Exactly these flags.
    #[track_caller]
    pub fn expect_flags_are(&self, expected: &[&str]) -> &Self {
        let found: Vec<&str> = self
            .get("flags")
            .and_then(Value::as_array)
            .map(|flags| flags.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        assert_eq!(found, expected, "flags of {self}");
        self
    }

    /// None of these fields.
    #[track_caller]
    pub fn expect_none_of(&self, paths: &[&str]) -> &Self {
        for path in paths {
            self.expect_absent(path);
        }
        self
    }

    /// A thread of this process, by its name.
    #[track_caller]
    pub fn expect_thread(&self, name: &str) -> &Self {
        self.expect_text("process.comm", name).expect_number("process.pid", u64::from(std::process::id()))
    }

    /// Established, with nothing said against it.
    #[track_caller]
    pub fn expect_plainly_established(&self) -> &Self {
        self.expect_text("outcome", "established").expect_none_of(&["evidence", "dropped", "failed_after_ns"])
    }
}

impl<'a> Whole<'a> {
    fn ask(mut self, path: &str) -> Self {
        self.asked.insert(path.to_owned());
        self
    }

    #[track_caller]
    pub fn text(self, path: &str, expected: &str) -> Self {
        self.record.expect_text(path, expected);
        self.ask(path)
    }

    #[track_caller]
    pub fn number(self, path: &str, expected: u64) -> Self {
        self.record.expect_number(path, expected);
        self.ask(path)
    }

    #[track_caller]
    pub fn number_in(self, path: &str, expected: RangeInclusive<u64>) -> Self {
        let found = self.record.number(path);
        assert!(found.is_some_and(|found| expected.contains(&found)), "{path} of {}", self.record);
        self.ask(path)
    }

    #[track_caller]
    pub fn within(self, path: &str, milliseconds: RangeInclusive<u64>) -> Self {
        self.record.expect_within(path, milliseconds);
        self.ask(path)
    }

    #[track_caller]
    pub fn is(self, path: &str, expected: bool) -> Self {
        assert_eq!(self.record.get(path), Some(&Value::Bool(expected)), "{path} of {}", self.record);
        self.ask(path)
    }

    #[track_caller]
    pub fn present(self, path: &str) -> Self {
        self.record.expect_present(path);
        self.ask(path)
    }

    /// Something more that only some modes know.
    pub fn also(self, is_known: bool, more: impl FnOnce(Self) -> Self) -> Self {
        if is_known { more(self) } else { self }
    }

    /// Other kinds of hooks than the mode's own.
    pub fn seen_by(mut self, kinds: &[&'static str]) -> Self {
        self.seen_by = kinds.to_vec();
        self
    }

    /// The thread may have waited in accept() since before us.
    pub fn old_calls(mut self) -> Self {
        self.has_old_calls = true;
        self
    }

    /// Both addresses, and the port at the listening end; the other port is whatever the kernel chose.
    #[track_caller]
    pub fn ends(self, local: &str, remote: &str, port: u16) -> Self {
        let (listening, chosen) = match self.record.text("role") {
            Some("server") => ("local.port", "remote.port"),
            _ => ("remote.port", "local.port"),
        };
        self.text("local.address", local)
            .text("remote.address", remote)
            .number(listening, u64::from(port))
            .number_in(chosen, 1..=65_535)
    }

    /// A thread of this process, and not its first one.
    #[track_caller]
    pub fn thread(self, name: &str) -> Self {
        let pid = u64::from(std::process::id());
        assert_ne!(self.record.number("process.tid"), Some(pid), "process.tid of {}", self.record);
        if let Some(own) = own_cgroup() {
            self.record.expect_text("process.cgroup_id", &own.to_string());
        }
        self.process(pid, name)
    }

    /// A process and the name of its thread.
    #[track_caller]
    pub fn process(self, pid: u64, comm: &str) -> Self {
        let cgroup = self.record.text("process.cgroup_id").and_then(|id| id.parse::<u64>().ok());
        assert!(cgroup.is_some_and(|id| id != 0), "process.cgroup_id of {}", self.record);
        self.number("process.pid", pid)
            .present("process.tid")
            .text("process.comm", comm)
            .number("process.uid", 0)
            .ask("process.cgroup_id")
    }

    /// Both ISNs, and the id that they make.
    #[track_caller]
    pub fn joined(self) -> Self {
        let (ours, theirs) = (self.record.number("isn.local"), self.record.number("isn.remote"));
        let (Some(ours), Some(theirs)) = (ours, theirs) else { panic!("ISNs of {}", self.record) };
        let id = format!("{:08x}{:08x}", ours.min(theirs), ours.max(theirs));
        self.text("id", &id).ask("isn.local").ask("isn.remote")
    }

    /// What was agreed on between two ends with their defaults, of which the other announced this MSS.
    #[track_caller]
    pub fn agreed(self, mss: u64) -> Self {
        self.agreed_otherwise(mss, mss, "none")
    }

    /// The same, where the ends announced different sizes, or a client used Fast Open.
    #[track_caller]
    pub fn agreed_otherwise(self, their_mss: u64, mss: u64, fast_open: &str) -> Self {
        let whole = self
            .number("options.mss", their_mss)
            // A server's, before 6.16, has the room for timestamps in it still.
            .number_in("options.local_mss", mss - 12..=mss)
            .number_in("options.window_scale.local", 0..=14)
            .number_in("options.window_scale.remote", 0..=14)
            .is("options.sack", true)
            .is("options.timestamps", true)
            .is("options.ecn", false)
            .number_in("options.window.local", 1..=1 << 20)
            .number_in("options.window.remote", 1..=1 << 20);
        let is_server = whole.record.text("role") == Some("server");
        whole.also(!is_server, |whole| whole.text("options.fast_open", fast_open))
    }

    /// What a request that died half open had agreed on with a client of default settings: all but what the final ACK
    /// would have told, and our MSS, which is the route's.
    #[track_caller]
    pub fn agreed_half_open(self, mss: u64) -> Self {
        self.number("options.mss", mss)
            .number_in("options.window_scale.local", 0..=14)
            .number_in("options.window_scale.remote", 0..=14)
            .is("options.sack", true)
            .is("options.timestamps", true)
            .is("options.ecn", false)
            .number_in("options.window.local", 1..=1 << 20)
    }

    /// A client whose first SYN was answered: the round trip is what it waited for.
    #[track_caller]
    pub fn answered(self, milliseconds: RangeInclusive<u64>) -> Self {
        self.within("phases.wire_ns", milliseconds.clone()).within("rtt_ns", milliseconds).syns(0)
    }

    /// A client's connect(): called, and gone back to its caller after the end.
    #[track_caller]
    pub fn called_and_returned(self) -> Self {
        self.within("phases.local_ns", AT_ONCE).within("phases.wake_ns", AT_ONCE)
    }

    /// A client's SYNs sent again, none or so many that the wait is asked for apart.
    #[track_caller]
    pub fn syns(self, again: u64) -> Self {
        let whole = self.number("retransmits.syn", again);
        if again == 0 { whole.number("retransmits.waited_ns", 0) } else { whole }
    }

    /// A server's own part of a handshake of which nothing was lost: SYN, SYN-ACK and ACK once each.
    #[track_caller]
    pub fn served(self, milliseconds: RangeInclusive<u64>) -> Self {
        self.within("latency_ns", milliseconds.clone())
            .number("retransmits.syn_ack", 0)
            .number("retransmits.waited_ns", 0)
            .also(has_probes(), |whole| {
                whole
                    .within("rtt_ns", milliseconds.clone())
                    .within("phases.synack_ns", 0..=500)
                    .within("phases.ack_ns", milliseconds)
                    .number("retransmits.syn_seen", 1)
            })
    }

    /// Where a child stood in the accept queue, where a mode sees that.
    #[track_caller]
    pub fn queued(self, length: RangeInclusive<u64>, limit: RangeInclusive<u64>) -> Self {
        self.also(has_probes(), |whole| {
            whole.number_in("accept_queue.length", length).number_in("accept_queue.limit", limit)
        })
    }

    /// Exactly these flags.
    #[track_caller]
    pub fn flags(self, expected: &[&str]) -> Self {
        self.record.expect_flags_are(expected);
        self.ask("flags")
    }

    /// What an outcome other than a change to ESTABLISHED rests on.
    #[track_caller]
    pub fn evidence(self, kind: &str, errno: Option<&str>) -> Self {
        let whole = self.text("evidence.kind", kind);
        match errno {
            Some(errno) => whole.text("evidence.errno", errno),
            None => whole,
        }
    }

    /// There is no other field.
    #[track_caller]
    pub fn nothing_else(mut self) {
        let by = self.record.text("attach").unwrap_or_default();
        assert!(self.seen_by.contains(&by), "attach is none of {:?}: {}", self.seen_by, self.record);
        self.asked.insert("attach".to_owned());
        self.ask_for_second_opinions();
        let mut leaves = BTreeSet::new();
        leaves_of(&self.record.0, "", &mut leaves);
        let unasked: Vec<_> = leaves.difference(&self.asked).collect();
        assert!(unasked.is_empty(), "nobody expected {unasked:?}: {}", self.record);
        self.record.expect_to_add_up();
    }
}

/// The cgroup of this process, by the number that the kernel knows it by.
fn own_cgroup() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(cgroup_root().join(path).metadata().ok()?.ino())
}

fn leaves_of(value: &Value, path: &str, leaves: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                leaves_of(field, &format!("{path}{dot}{name}"), leaves);
            }
        }
        _ => {
            leaves.insert(path.to_owned());
        }
    }
}

/// Whether a time in RFC 3339, to the nanosecond and in UTC, is of the last few minutes.
fn is_recent(time: &str) -> bool {
    let digits = |range: std::ops::Range<usize>| time.get(range).and_then(|text| text.parse::<i64>().ok());
    let fields = [0..4, 5..7, 8..10, 11..13, 14..16, 17..19, 20..29].map(digits);
    let [Some(year), Some(month), Some(day), Some(hour), Some(minute), Some(second), Some(_)] = fields else {
        return false;
    };
    // Years that begin in March, so that the leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469;
    let then = ((days * 24 + hour) * 60 + minute) * 60 + second;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_secs();
    time.ends_with('Z') && (now as i64 - then).abs() < 300
}

/// Both ends agree on which handshake it was.
#[track_caller]
pub fn expect_one_handshake(client: &Record, server: &Record) {
    client.expect_present("id");
    assert_eq!(client.text("id"), server.text("id"), "{client}\n{server}");
    assert_eq!(client.get("local"), server.get("remote"), "{client}\n{server}");
    assert_eq!(client.get("remote"), server.get("local"), "{client}\n{server}");
    assert_eq!(client.get("isn.local"), server.get("isn.remote"), "{client}\n{server}");
    assert_eq!(client.get("isn.remote"), server.get("isn.local"), "{client}\n{server}");
}

/// Both ends tell the same window scales, though the server's request never became a connection.
#[track_caller]
pub fn expect_one_agreement(client: &Record, server: &Record) {
    expect_one_handshake(client, server);
    client.expect_present("options.window_scale.local");
    for (one, other) in [("local", "remote"), ("remote", "local")] {
        let scale = |record: &Record, end: &str| record.number(&format!("options.window_scale.{end}"));
        assert_eq!(scale(client, one), scale(server, other), "{client}\n{server}");
    }
}

#[test]
fn a_field_that_nobody_asked_for_is_a_failure() {
    let record = Record(serde_json::json!({
        "role": "client", "outcome": "established", "attach": "fentry", "latency_ns": 5,
        "phases": { "wire_ns": 5 }, "flags": []
    }));
    let whole =
        || Whole { record: &record, asked: BTreeSet::new(), seen_by: vec!["fentry"], has_old_calls: false };
    let fails = |ask: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask)).is_err();
    let ends = || whole().text("role", "client").text("outcome", "established");
    let asked = || ends().within("latency_ns", 0..=1).flags(&[]);
    asked().within("phases.wire_ns", 0..=1).nothing_else();
    assert!(fails(&|| asked().nothing_else()), "phases.wire_ns was not asked for");
    assert!(fails(&|| asked().within("phases.wire_ns", 0..=1).seen_by(&["kprobe"]).nothing_else()));
}
