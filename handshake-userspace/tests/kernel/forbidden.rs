//! connect() that is forbidden on this host (EPERM): by a program at the cgroup before TCP is reached, and by an IPsec
//! policy inside of TCP.
//!
//! What a reader would get wrong: both are one failed handshake each. The two ways of hearing of a failed call, from TCP
//! and from the call's return, must not both tell it.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    process::Command,
};

use super::{
    cgroup::{self, Cgroup},
    environment::{attach, is_fit, is_locked_down, skip},
    netns::{Netns, Pair, SERVER_V4, SERVER_V6},
    record::{Record, all_of},
    traffic::until,
    watch::Watch,
    whole::AT_ONCE,
};

#[test]
fn a_process_that_may_not_connect() {
    let Some(to) = cgroup::enter("hs-jailed") else { return };
    let error =
        TcpStream::connect(to.parse::<SocketAddr>().expect("an address")).expect_err("it is forbidden");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
}

/// The call that comes after all others of a scenario.
const MARK: &str = "127.0.0.1:909";

/// What was told of the calls before the mark, in the order of the calls; one record of each. A failed call is held
/// for a moment, so its record comes after those of a handshake that was made later.
#[track_caller]
fn told(watch: Watch, netns: &Netns, calls: usize) -> Vec<Record> {
    let time = |record: &Record| record.text("time").expect("every record has a time").to_owned();
    until("the mark is told", || all_of(watch.records(), netns).len() > calls);
    let mut records = all_of(watch.end(), netns);
    records.sort_by_key(time);
    assert_eq!(records.len(), calls + 1, "one record of each call: {records:?}");
    records.pop();
    records
}

/// The whole record of a connect() that was forbidden: who called, whither, and what the call returned.
#[track_caller]
fn expect_forbidden(
    record: &Record,
    netns: &Netns,
    (pid, comm): (u64, &str),
    to: SocketAddr,
    is_known: bool,
) {
    let is_mapped = to.to_string().contains("ffff");
    record
        .whole("client", "local_error", netns)
        .seen_by(&[attach_of_returns()])
        .evidence("connect_returned", Some("EPERM"))
        .process(pid, comm)
        .within("failed_after_ns", AT_ONCE)
        .also(is_known, |whole| {
            whole
                .text("remote.address", &to.ip().to_canonical().to_string())
                .number("remote.port", u64::from(to.port()))
        })
        .flags(if is_mapped && is_known { &["v4_mapped"] } else { &[] })
        .nothing_else();
}

/// By which hook a call's return is seen.
fn attach_of_returns() -> &'static str {
    if attach() == "fentry" { "fentry" } else { "tracepoint" }
}

#[test]
fn a_connect_that_a_program_at_the_cgroup_forbids_is_one_failed_handshake() {
    const NAME: &str = "a_connect_that_a_program_at_the_cgroup_forbids_is_one_failed_handshake";
    if !is_fit(NAME) {
        return;
    }
    let forbids = [cgroup::answer(0), cgroup::EXIT];
    let jail = match Cgroup::new(&[
        (cgroup::BPF_CGROUP_INET4_CONNECT, &forbids),
        (cgroup::BPF_CGROUP_INET6_CONNECT, &forbids),
    ]) {
        Ok(jail) => jail,
        Err(problem) => return skip(NAME, &problem),
    };
    let netns = Netns::new("j");
    let watch = Watch::begin();
    let cases = ["127.0.0.1:901", "[::1]:902", "[::ffff:127.0.0.1]:903"];
    let mut callers = Vec::new();
    for to in cases.iter().copied().chain([MARK]) {
        callers.push(jail.run(&netns, "forbidden::a_process_that_may_not_connect", to));
    }
    let records = told(watch, &netns, cases.len());
    for ((record, to), pid) in records.iter().zip(cases).zip(callers) {
        let to: SocketAddr = to.parse().expect("an address");
        // Under lockdown a sockaddr can be read as far as its type says: an IPv4 address.
        expect_forbidden(record, &netns, (pid, "hs-jailed"), to, !is_locked_down() || to.is_ipv4());
    }
}

#[test]
fn a_connect_that_an_ipsec_policy_forbids_is_one_failed_handshake() {
    const NAME: &str = "a_connect_that_an_ipsec_policy_forbids_is_one_failed_handshake";
    if !is_fit(NAME) {
        return;
    }
    let pair = Pair::new();
    for destination in [SERVER_V4, SERVER_V6] {
        let policy = format!("xfrm policy add dst {destination} dir out action block");
        let output = Command::new("ip").args(["-n", pair.client.name()]).args(policy.split(' ')).output();
        let output = output.expect("ip can be run");
        if !output.status.success() {
            let problem = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
            return skip(NAME, &format!("this kernel takes no IPsec policy (module xfrm_user): {problem}"));
        }
    }
    let watch = Watch::begin();
    let cases = [
        format!("{SERVER_V4}:904"),
        format!("[{SERVER_V6}]:905"),
        format!("[::ffff:{SERVER_V4}]:906"),
        format!("{SERVER_V4}:909"),
    ]
    .map(|to| to.parse::<SocketAddr>().expect("an address"));
    pair.client.on_thread("hs-forbidden", || {
        for to in cases {
            let error = TcpStream::connect(to).expect_err("it is forbidden");
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{to}: {error}");
        }
    });
    let records = told(watch, &pair.client, cases.len() - 1);
    let pid = u64::from(std::process::id());
    for (record, to) in records.iter().zip(cases) {
        // Where a program of another cgroup is asked as well, an IPv4 address is known under lockdown too.
        let is_known = !is_locked_down() || to.is_ipv4() && record.get("remote.address").is_some();
        expect_forbidden(record, &pair.client, (pid, "hs-forbidden"), to, is_known);
    }
}
