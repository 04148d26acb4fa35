//! A packet capture beside us: every handshake on the wire is in our records, none besides, and the times agree.
//!
//! tcpdump writes down what passes the client's link and the server's, each in its own namespace, while the
//! program traces thousands of connections over a bad network. tshark decodes it, and the two accounts are laid
//! side by side. What a reader would get wrong: a guest has no room for tshark (170 MB, 20 s to start on an
//! emulated processor). There the test ends when capture and records are kept, and the same test, run outside
//! with HANDSHAKE_WITNESS naming what came out, gives the verdict. What a failed run was judged by is kept.

mod capture;
mod comparison;
mod differences;
mod evidence;
mod network;
mod segment;
mod wire;
mod workload;

use std::path::{Path, PathBuf};

use super::{
    environment::{
        attach, in_vm, is_fit, is_fit_for_long, is_locked_down, program_exists, runs_once_here, skip,
    },
    record::Record,
    tracer::Tracer,
    traffic::until,
};
use capture::Capture;
use comparison::Report;
use evidence::{Evidence, Subject};
use network::Network;

const NAME: &str = "every_handshake_on_the_wire_is_in_our_records_and_none_besides";
/// Where a guest leaves what is compared outside.
const OUT_OF_A_GUEST: &str = "/out/witness";
/// How many the requirement asks for; some of those that are begun share nothing but their beginning.
const AT_LEAST: usize = 2_000;
/// Of them, over IPv6.
const AT_LEAST_OVER_IPV6: usize = AT_LEAST / 4;

#[test]
fn every_handshake_on_the_wire_is_in_our_records_and_none_besides() {
    if let Some(folder) = std::env::var_os("HANDSHAKE_WITNESS") {
        if can_run("tshark") {
            verdict(Path::new(&folder));
        }
        return;
    }
    // In the mode and on a kernel that most people have it always runs.
    let fits = if in_vm() && runs_once_here() { is_fit(NAME) } else { is_fit_for_long(NAME) };
    if !fits || !can_run("tcpdump") || !in_vm() && !can_run("tshark") {
        return;
    }
    if in_vm() {
        observe(Path::new(OUT_OF_A_GUEST));
        return;
    }
    let folder = tempfile::tempdir().expect("a folder can be made").keep();
    observe(&folder);
    verdict(&folder);
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}

fn can_run(program: &str) -> bool {
    let can = program_exists(program);
    if !can {
        skip(NAME, &format!("{program} is not installed; `cargo xtask setup --tests` installs it"));
    }
    can
}

/// Captures and traces the same connections, and keeps both accounts.
fn observe(folder: &Path) {
    std::fs::create_dir_all(folder).expect("the folder can be made");
    let network = Network::new();
    let captures = [
        Capture::start(&network.client, &client_capture(folder)),
        Capture::start(&network.server, &server_capture(folder)),
    ];
    let tracer = Tracer::start(&[]);
    workload::run(&network);
    until("no handshake is open any more", || network.has_none_half_open());
    let (records, _) = tracer.stop_with_log();
    expect_all_was_heard(records.last().expect("there is a last record"));
    workload::mark_the_end(&network, || captures.iter().all(|capture| capture.holds(workload::END)));
    for capture in captures {
        capture.stop();
    }
    let subject = Subject {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        mode: if is_locked_down() { "lockdown".to_owned() } else { attach() },
        emulated: in_vm(),
        client_netns: network.client.inode(),
        server_netns: network.server.inode(),
    };
    evidence::keep(folder, &subject, &records);
}

/// On a busy machine an emulated reader may be later than the ordering window, which takes nothing from anything:
/// what came late is in the comparison as it is.
fn expect_all_was_heard(health: &Record) {
    assert_eq!(health.number("lost"), Some(0), "{health}");
    assert_eq!(health.number("kernel.read_failed"), Some(0), "the kernel's counters were read: {health}");
}

/// Lays the accounts side by side; they must be the same.
fn verdict(folder: &Path) {
    let Evidence { subject, records } = evidence::read(folder);
    println!("captures and records are in {}", folder.display());
    let client = segment::decode(&client_capture(folder));
    let server = segment::decode(&server_capture(folder));
    let reports = [
        comparison::of_client(&subject, &client, &records),
        comparison::of_server(&subject, &server, &records),
    ];
    for report in &reports {
        capture::say(&report.line());
    }
    let disagreement: String = reports.iter().filter_map(Report::disagreement).collect();
    assert!(disagreement.is_empty(), "{disagreement}");
    for (begun, least, which) in [
        (reports[0].on_the_wire, AT_LEAST, "were begun"),
        (reports[0].over_ipv6, AT_LEAST_OVER_IPV6, "were over IPv6"),
    ] {
        assert!(begun >= least, "only {begun} handshakes {which}");
    }
}

fn client_capture(folder: &Path) -> PathBuf {
    folder.join("client.pcap")
}

fn server_capture(folder: &Path) -> PathBuf {
    folder.join("server.pcap")
}
