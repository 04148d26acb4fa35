//! Offsets and options, each against a second source that shares no code with us: `bpftool btf` and `ss -ti`.
//!
//! What a reader would get wrong: the first compares where we think that a field lies with what another reader of
//! the same BTF finds; the second what we read there with what the kernel itself says of a live connection.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
};

use handshake::kernel::{btf::Btf, offsets};
use handshake_common::offsets::{Offsets, UNAVAILABLE};
use zerocopy::IntoBytes as _;

use super::{
    environment::{has_probes, is_fit, run, skip},
    netns::{Pair, SERVER_V4},
    record::Record,
    watch::Watch,
};

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Types by id, as bpftool prints them.
#[derive(Default)]
struct Dump {
    /// Members of structs and unions: name, type, offset in bits.
    members: HashMap<u32, Vec<(String, u32, u32)>>,
    /// What modifiers and names stand for.
    stands_for: HashMap<u32, u32>,
    structs: HashMap<String, Vec<u32>>,
}

impl Dump {
    fn of_running_kernel() -> Option<Self> {
        let arguments = ["btf", "dump", "file", BTF, "format", "raw"];
        let mut bpftool = Command::new("bpftool")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut dump = Dump::default();
        let mut current = 0;
        for line in BufReader::new(bpftool.stdout.take().expect("it is piped")).lines() {
            let line = line.expect("it is text");
            let number = |name: &str| -> Option<u32> {
                line.split_once(name)?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
            };
            let name = line.split('\'').nth(1).unwrap_or_default().to_owned();
            if let Some(member) = line.strip_prefix('\t') {
                if member.contains("bits_offset=") {
                    let (of, at) =
                        (number("type_id=").expect("it has one"), number("bits_offset=").expect("so"));
                    dump.members.entry(current).or_default().push((name, of, at));
                }
                continue;
            }
            current = number("[").expect("a type begins with its id");
            match line.split(' ').nth(1) {
                Some("STRUCT") => dump.structs.entry(name).or_default().push(current),
                Some("TYPEDEF" | "CONST" | "VOLATILE" | "RESTRICT" | "TYPE_TAG") => {
                    dump.stands_for.insert(current, number("type_id=").expect("it stands for something"));
                }
                _ => {}
            }
        }
        bpftool.wait().expect("it was started").success().then_some(dump)
    }

    /// Where `path` lies in `of`, in bits, nameless members being transparent.
    fn bits(&self, of: u32, path: &str) -> Option<u32> {
        let of = std::iter::successors(Some(of), |id| self.stands_for.get(id).copied()).last()?;
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        self.members.get(&of)?.iter().find_map(|(name, inner, at)| {
            if name == first {
                return rest.map_or(Some(0), |rest| self.bits(*inner, rest)).map(|bits| at + bits);
            }
            (name == "(anon)").then(|| self.bits(*inner, path))?.map(|bits| at + bits)
        })
    }
}

#[test]
fn every_offset_is_where_bpftool_finds_it() {
    const NAME: &str = "every_offset_is_where_bpftool_finds_it";
    if !is_fit(NAME) {
        return;
    }
    let Some(dump) = Dump::of_running_kernel() else {
        return skip(NAME, "there is no bpftool, or it can't read this kernel's BTF");
    };
    let btf = Btf::from_file(BTF.as_ref()).expect("the kernel gives its BTF");
    let resolved = offsets::resolve(&btf).expect("this kernel has what we need");
    let words = resolved.offsets.as_bytes().chunks_exact(4);
    let mut compared = 0;
    for (word, (field, container, path)) in words.zip(Offsets::FIELDS) {
        let ours = u32::from_ne_bytes(word.try_into().expect("four bytes"));
        if ours == UNAVAILABLE {
            continue;
        }
        let found: Vec<u32> = dump
            .structs
            .get(*container)
            .into_iter()
            .flatten()
            .filter_map(|id| dump.bits(*id, path))
            .map(|bits| if field.ends_with("_bit") { bits } else { bits / 8 })
            .collect();
        assert_eq!(found, [ours], "{field}: {container}.{path}");
        compared += 1;
    }
    assert_eq!(compared + resolved.missing.len(), Offsets::FIELDS.len());
}

/// What `ss -ti` says of the one established connection in this namespace.
fn ss(netns: &str) -> String {
    let output = Command::new("ss").args(["-N", netns, "-tino", "state", "established"]).output();
    let output = output.expect("ss is there, as ip is");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("wscale:"), "{text}{output:?}");
    text
}

fn agrees(record: &Record, said: &str) {
    let words: Vec<&str> = said.split_whitespace().collect();
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name));
    let number = |name: &str| value(name).and_then(|value| value.parse::<u64>().ok());
    let is = |name: &str| record.get(name).and_then(serde_json::Value::as_bool);
    assert_eq!(is("options.sack"), Some(words.contains(&"sack")), "{record}\n{said}");
    assert_eq!(is("options.timestamps"), Some(words.contains(&"ts")), "{record}\n{said}");
    let (ours, said_now) = (record.number("options.local_mss"), number("advmss:"));
    // A server's socket has the room for timestamps (12 bytes) taken off its MSS when it becomes ESTABLISHED: just
    // before that from 6.16 on and in kernels with that change, and just after it in older ones.
    let before = said_now
        .map(|mss| mss + 12)
        .filter(|_| record.text("role") == Some("server") && words.contains(&"ts"));
    assert!(ours.is_some() && (ours == said_now || ours == before), "{record}\n{said}");
    // In milliseconds with three decimals; nothing was measured since.
    let rtt_us =
        value("rtt:").and_then(|rtt| rtt.split('/').next()?.parse::<f64>().ok()).map(|ms| ms * 1_000.0);
    // Without probes TCP_DEFER_ACCEPT, which makes a server's say nothing of the network, is not seen.
    let rtt_us = rtt_us.filter(|_| has_probes() || record.text("role") == Some("client"));
    assert_eq!(record.number("kernel_rtt_us"), rtt_us.map(|us| us.round() as u64), "{record}\n{said}");
    // It gives the peer's scale, which we send with, first.
    let scales = value("wscale:").and_then(|scales| scales.split_once(','));
    let (sent, received) = scales.expect("a scale was agreed on");
    assert_eq!(record.number("options.window_scale.remote"), sent.parse().ok(), "{record}\n{said}");
    assert_eq!(record.number("options.window_scale.local"), received.parse().ok(), "{record}\n{said}");
}

#[test]
fn what_was_agreed_on_is_what_ss_says_of_the_connection() {
    if !is_fit("what_was_agreed_on_is_what_ss_says_of_the_connection") {
        return;
    }
    for sack_and_timestamps in ["1", "0"] {
        let pair = Pair::new();
        // Different at both ends, so that ours and the peer's can't be mixed up unnoticed.
        pair.client.set("ipv4/tcp_rmem", "4096 65536 131072");
        pair.server.set("ipv4/tcp_rmem", "4096 131072 16777216");
        pair.client.set("ipv4/tcp_sack", sack_and_timestamps);
        pair.client.set("ipv4/tcp_timestamps", sack_and_timestamps);
        run(&format!("ip -n {} link set veth0 mtu 1400", pair.server.name()));
        let watch = Watch::begin();
        let (listener, to) = pair.server.on_thread("hs-server", || {
            let listener = TcpListener::bind((SERVER_V4, 0)).expect("the address is there");
            let to = listener.local_addr().expect("it has an address");
            (listener, to)
        });
        let client = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
        let accepted = pair.server.on_thread("hs-server", || listener.accept().expect("a child is queued").0);
        let (of_client, of_server) = (ss(pair.client.name()), ss(pair.server.name()));
        agrees(&watch.wait_for_end("client", to.port()), &of_client);
        agrees(&watch.wait_for_end("server", to.port()), &of_server);
        drop((client, accepted));
        watch.end();
    }
}
