//! Whether docs/EVENTS.md names whatever the program can print: every field and every word of its closed lists.
//!
//! Fields are taken from the golden records and from the source of the structs that serde writes, words from the source
//! of the names. What a newcomer would get wrong: a field is looked for in the table of its own kind of record and by its
//! path, for `outcome` of an `accept` is another one than that of a handshake.

use std::{collections::BTreeSet, fs, path::Path};

use handshake_common::event::{ABI_VERSION, EventHeader, EventKind};
use serde_json::Value;

use super::{folder, hand_made, stdout};

const MANUAL: &str = include_str!("../../../docs/EVENTS.md");

/// The part of the manual under a heading, to the next of the same depth.
fn section(heading: &str) -> &'static str {
    let begins = MANUAL.find(&format!("\n{heading}")).unwrap_or_else(|| panic!("no heading {heading}"));
    let text = &MANUAL[begins + 1 + heading.len()..];
    let depth = heading.chars().take_while(|letter| *letter == '#').count();
    let ends = (1..=depth).filter_map(|depth| text.find(&format!("\n{} ", "#".repeat(depth)))).min();
    &text[..ends.unwrap_or(text.len())]
}

/// What stands between backquotes in a text.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Whether a field is documented: by its whole path, or by its name in a row of its object (`process.pid`, `tid`).
fn is_named(path: &str, section: &str) -> bool {
    let (object, name) = (path.split('.').next().unwrap_or(path), path.rsplit('.').next().unwrap_or(path));
    let is_of_object = |row: &&str| {
        let first = row.split('|').nth(1).unwrap_or("");
        quoted(first).iter().any(|word| word.split('.').next() == Some(object))
    };
    let mut rows = section.lines().filter(|line| line.starts_with('|')).filter(is_of_object);
    quoted(section).contains(path) || path != object && rows.any(|row| quoted(row).contains(name))
}

/// The path of every value that is no object; those under a map of counts or causes are told as a whole.
fn paths(value: &Value, under: &str, into: &mut BTreeSet<String>) {
    const MAPS: [&str; 3] = ["outcomes", "ring_full_by_cpu", "causes"];
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if under.is_empty() { name.clone() } else { format!("{under}.{name}") };
                if MAPS.contains(&path.as_str())
                    || !(value.is_object()
                        || value.as_array().is_some_and(|values| values.iter().any(Value::is_object)))
                {
                    into.insert(path);
                } else {
                    paths(value, &path, into);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| paths(value, under, into)),
        _ => {}
    }
}

fn section_of(kind: &str) -> &'static str {
    match kind {
        "handshake" => section("### `handshake`"),
        "accept" => section("### `accept`"),
        "health" => section("### `health`"),
        "lost" => section("### `lost`"),
        other => panic!("the manual has no kind {other}"),
    }
}

#[test]
fn every_field_of_the_golden_records_is_in_the_manual() {
    let (_folder, recording) = hand_made();
    let goldens =
        ["hand-made.jsonl", "format-1.jsonl"].map(|name| fs::read_to_string(folder().join(name)).unwrap());
    let lines: String = goldens.concat() + &stdout(&recording, &["--json", "--own"]);
    let mut kinds = BTreeSet::new();
    for line in lines.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let kind = record["kind"].as_str().unwrap().to_owned();
        let mut found = BTreeSet::new();
        paths(&record, "", &mut found);
        for path in &found {
            let everywhere = ["schema", "kind", "time"].contains(&path.as_str());
            // In the second account the manual says `active_opens`, and `....kernel` for the numbers below each.
            let path = path.strip_prefix("kernel_counters.").map_or(path.as_str(), |rest| {
                match rest.split_once('.') {
                    Some((
                        "active_opens" | "passive_opens" | "failed_opens" | "embryonic_resets",
                        number,
                    )) => number,
                    _ => rest,
                }
            });
            let dotted = format!("....{path}");
            let section = section_of(&kind);
            // What it has in common with a handshake it only names.
            let root = path.split('.').next().unwrap_or(path);
            let common = kind == "accept" && path != root && quoted(section).contains(root);
            let section = if common { section_of("handshake") } else { section };
            assert!(
                everywhere || is_named(path, section) || quoted(section).contains(dotted.as_str()),
                "{kind}: `{path}`"
            );
        }
        kinds.insert(kind);
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["accept", "handshake", "health", "lost"]);
}

/// The fields of every struct of a source file that derives Serialize.
fn serialised(source: &str) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    for block in source.split("#[derive(Serialize)]").skip(1) {
        let body = block.split_once('{').unwrap().1;
        let body = body.split_once("\n}").unwrap().0;
        let named = body.lines().filter(|line| !line.trim_start().starts_with(['#', '/']));
        fields.extend(named.filter_map(|line| Some(line.trim().split_once(": ")?.0.to_owned())));
    }
    fields
}

fn source(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sinks/json").join(name)).unwrap()
}

#[test]
fn every_field_that_can_be_printed_is_in_the_manual() {
    let records = &MANUAL[..MANUAL.find("\n## Events").unwrap()];
    let words: BTreeSet<&str> = quoted(records).into_iter().flat_map(|word| word.split('.')).collect();
    for (file, least) in [("wire.rs", 50), ("account.rs", 20), ("second_account.rs", 9)] {
        let fields = serialised(&source(file));
        assert!(fields.len() >= least, "{file} was read wrongly: {fields:?}");
        for field in fields {
            // `rows` is flattened: its names are words.
            assert!(field == "rows" || field == "row" || words.contains(field.as_str()), "{file}: `{field}`");
        }
    }
}

#[test]
fn every_word_of_a_closed_list_is_in_the_manual() {
    let records = &MANUAL[..MANUAL.find("\n## Events").unwrap()];
    let words = quoted(records);
    let source = source("words.rs");
    let names: Vec<&str> = source
        .lines()
        .filter(|line| line.contains(" => ") && !line.trim_start().starts_with("//"))
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    assert!(names.len() > 60, "words.rs was read wrongly: {names:?}");
    for name in names {
        // What an established handshake rests on is not printed.
        assert!(name == "state_established" || words.contains(name), "`{name}`");
    }
}

#[test]
fn every_event_is_in_the_manual_with_its_number_and_size() {
    for kind in EventKind::ALL {
        let payload_bytes = kind.size_bytes() - size_of::<EventHeader>();
        let row = format!("| {kind:?} | {:#06x} | {payload_bytes} |", kind as u16);
        assert!(MANUAL.contains(&row), "{row}");
    }
    assert!(MANUAL.contains(&format!("| `abi_version` | 2 | {ABI_VERSION} ")), "abi_version");
}
