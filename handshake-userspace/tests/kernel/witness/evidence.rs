//! What is kept of a run for the comparison: about the run, our records, and beside them the two captures.
//!
//! What a reader would get wrong: the comparison may run on another kernel than the one observed. It learns
//! kernel and mode from here and asks nothing of its own surroundings.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::super::record::Record;

/// What was observed, and how.
pub struct Subject {
    pub kernel: String,
    pub mode: String,
    /// On an emulated processor, where everything between two hooks takes longer.
    pub emulated: bool,
    pub client_netns: u64,
    pub server_netns: u64,
}

impl Subject {
    /// The kernel runs none of our programs where one of them was interrupted (KERNEL.md, "Known limits").
    pub fn skips_probes(&self) -> bool {
        self.mode != "tracepoint"
    }

    /// Without probes nobody sees a request that dies half open (KERNEL.md, "Tracepoint mode's limits"), and in kprobe
    /// mode nobody one whose beginning and end were both in a softirq that interrupted a program.
    pub fn misses_half_open(&self) -> bool {
        matches!(self.mode.as_str(), "tracepoint" | "kprobe")
    }
}

/// What `keep` kept, the captures aside.
pub struct Evidence {
    pub subject: Subject,
    pub records: Vec<Record>,
}

/// Writes it down.
pub fn keep(folder: &Path, subject: &Subject, records: &[Record]) {
    let about = json!({
        "kernel": subject.kernel,
        "mode": subject.mode,
        "emulated": subject.emulated,
        "client_netns": subject.client_netns,
        "server_netns": subject.server_netns,
    });
    fs::write(folder.join("about.json"), about.to_string()).expect("the folder can be written to");
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    fs::write(folder.join("records.json"), lines).expect("the folder can be written to");
}

/// Reads it again.
pub fn read(folder: &Path) -> Evidence {
    let text = |name: &str| {
        fs::read_to_string(folder.join(name))
            .unwrap_or_else(|error| panic!("{}: {error}", folder.join(name).display()))
    };
    let about: Value = serde_json::from_str(&text("about.json")).expect("about.json is JSON");
    let word = |key: &str| about[key].as_str().expect("it is a text").to_owned();
    let number = |key: &str| about[key].as_u64().expect("it is a number");
    let subject = Subject {
        kernel: word("kernel"),
        mode: word("mode"),
        emulated: about["emulated"].as_bool().expect("it is said"),
        client_netns: number("client_netns"),
        server_netns: number("server_netns"),
    };
    let records = text("records.json")
        .lines()
        .map(|line| Record(serde_json::from_str(line).expect("a record is JSON")))
        .collect();
    Evidence { subject, records }
}
