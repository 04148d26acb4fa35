//! The canary: offsets that are wrong on purpose are found before the first line, and nothing else stops us.
//!
//! What a reader would get wrong: the members that are swapped here have one size each, so the verifier accepts
//! the programs and every record would look plausible. Only knowing the truth of a handshake tells.

use std::{
    fs,
    process::{Command, Output},
};

use super::{
    btf_file::BtfFile,
    environment::{attach, has_probes, is_fit, is_fit_once, program, skip},
    netns::Netns,
    tracer::Tracer,
};

const BTF: &str = "/sys/kernel/btf/vmlinux";

fn trace_with_swapped(one: &str, other: &str, more: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = folder.path().join("vmlinux");
    let mut btf = BtfFile::read(BTF);
    btf.swap_members(one, other);
    fs::write(&path, btf.bytes()).expect("there is room");
    let path = path.to_str().expect("the path is text");
    let arguments = ["trace", "--json", "--duration", "1s", "--attach", &attach(), "--btf", path];
    Command::new(program()).args(arguments).args(more).output().expect("the program can be started")
}

/// One that is not found would trace, and end with success after a second.
fn expect_refusal(one: &str, other: &str, named: &str) {
    let output = trace_with_swapped(one, other, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{one} for {other}: {said}");
    assert!(said.contains("the canary failed") && said.contains(named), "{one} for {other}: {said}");
    assert!(output.stdout.is_empty(), "a line came before the refusal");
}

#[test]
fn swapped_addresses_are_found_before_the_first_line() {
    if !is_fit("swapped_addresses_are_found_before_the_first_line") {
        return;
    }
    expect_refusal("skc_daddr", "skc_rcv_saddr", "end 127.");
    let output = trace_with_swapped("skc_daddr", "skc_rcv_saddr", &["--no-canary"]);
    assert!(output.status.success(), "the way out that the refusal names does not work");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(r#""canary":"not_wanted""#), "{said}");
}

#[test]
fn swapped_ports_are_found_before_the_first_line() {
    if !is_fit_once("swapped_ports_are_found_before_the_first_line") {
        return;
    }
    expect_refusal("skc_dport", "skc_num", "127.");
}

#[test]
fn a_wrong_error_field_is_found_before_the_first_line() {
    if !is_fit_once("a_wrong_error_field_is_found_before_the_first_line") {
        return;
    }
    expect_refusal("sk_err", "sk_err_soft", "outcome");
}

#[test]
fn swapped_isns_are_found_before_the_first_line() {
    const NAME: &str = "swapped_isns_are_found_before_the_first_line";
    if !is_fit_once(NAME) {
        return;
    }
    if !has_probes() {
        return skip(NAME, "without probes nothing reads the request sock, whose two ISNs these are");
    }
    expect_refusal("rcv_isn", "snt_isn", "ISN");
}

#[test]
fn a_wrong_round_trip_is_found_before_the_first_line() {
    if !is_fit_once("a_wrong_round_trip_is_found_before_the_first_line") {
        return;
    }
    // A sequence number, read as microseconds: minutes, where all took less than a second.
    expect_refusal("srtt_us", "copied_seq", "a time of");
}

#[test]
fn a_wrong_time_of_the_syn_ack_is_found_before_the_first_line() {
    let name = "a_wrong_time_of_the_syn_ack_is_found_before_the_first_line";
    if !is_fit(name) {
        return;
    }
    match attach().as_str() {
        "kprobe" => {}
        "fentry" => return skip(name, "the verifier itself refuses a time that is no number"),
        _ => return skip(name, "without probes nobody reads when the SYN-ACK left"),
    }
    // An address of the kernel's, read as a time. No record would show it: they would only lack two phases.
    expect_refusal("snt_synack", "af_specific", "the SYN-ACK at");
}

#[test]
fn the_canary_passes_every_filter_and_shows_in_none() {
    if !is_fit_once("the_canary_passes_every_filter_and_shows_in_none") {
        return;
    }
    for filter in [
        &[
            "--port",
            "1",
            "--netns",
            "1",
            "--remote",
            "192.0.2.1",
            "-6",
            "--pid",
            "1",
            "--comm",
            "x",
            "--uid",
            "77",
        ][..],
        &["--role", "server", "--port", "1"],
    ] {
        let tracer = Tracer::start(filter);
        let records = tracer.stop();
        let health = records.last().expect("the last record is the account");
        assert_eq!(health.text("canary"), Some("passed"), "{filter:?}");
        assert_eq!(health.number("seen"), Some(0), "the canary's own handshakes are nobody's: {filter:?}");
    }
}

#[test]
fn a_loopback_that_is_down_is_a_warning_and_no_refusal() {
    if !is_fit_once("a_loopback_that_is_down_is_a_warning_and_no_refusal") {
        return;
    }
    let netns = Netns::new("d");
    netns.ip("link set lo down");
    let (records, log) = netns.on_thread("hs-down", || Tracer::start(&[]).stop_with_log());
    let health = records.last().expect("the last record is the account");
    assert_eq!(health.text("canary"), Some("could_not_run"));
    assert!(log.iter().any(|line| line.contains("canary could not run") && line.contains("`lo`")), "{log:?}");
}
