//! A machine that is suspended, and a wall clock that is set, while handshakes are open.
//!
//! The kernel's own test of suspending (/sys/power/pm_test) stops its clocks and waits five seconds before it resumes, so
//! nothing has to wake the guest. What a reader would get wrong: CLOCK_MONOTONIC stands still meanwhile and TCP's timers
//! with it; so a duration has nothing of it, and `time` has all of it.

use std::{
    fs::{read_to_string, write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::{
    environment::{has_probes, in_vm, is_fit, skip},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    plain::{expect_client, expect_counts, expect_server, server_of},
    record::Record,
    traffic::{SYN_SENT, connect_without_waiting, finish, loopback_listener, wait_for_state},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, expect_one_handshake},
};

const MS: i128 = 1_000_000;
const SECOND: i128 = 1_000 * MS;

fn now(clock: ClockId) -> i128 {
    let time = clock_gettime(clock);
    i128::from(time.tv_sec) * SECOND + i128::from(time.tv_nsec)
}

/// `time` of a record, in nanoseconds since 1970.
#[track_caller]
fn time_of(record: &Record) -> i128 {
    let time = record.text("time").expect("every record has a time here");
    time.parse::<jiff::Timestamp>().expect("it is RFC 3339").as_nanosecond()
}

/// Began between two readings of the wall clock.
#[track_caller]
fn expect_time(record: &Record, from: i128, to: i128) {
    // The clocks are read one after the other.
    let (from, to, time) = (from - MS, to + MS, time_of(record));
    assert!(
        (from..=to).contains(&time),
        "{} ms before, {} ms after: {record}",
        (from - time) / MS,
        (time - to) / MS
    );
}

/// Suspends and resumes; gives how long the clocks stood still.
fn suspend() -> Result<i128, String> {
    let asleep = || now(ClockId::Boottime) - now(ClockId::Monotonic);
    let set = |file: &str, value: &str| {
        write(format!("/sys/power/{file}"), value).map_err(|error| format!("/sys/power/{file}: {error}"))
    };
    let can = |file: &str, value: &str| {
        read_to_string(format!("/sys/power/{file}")).is_ok_and(|all| all.contains(value))
    };
    if !can("pm_test", "core") || !can("state", "mem") || !can("mem_sleep", "deep") {
        return Err("no pm_test of suspending to memory (CONFIG_PM_SLEEP_DEBUG, ACPI S3)".to_owned());
    }
    let before = asleep();
    set("mem_sleep", "deep")?;
    set("pm_test", "core")?;
    let done = set("state", "mem");
    set("pm_test", "none")?;
    done.map(|()| asleep() - before)
}

/// One connection of loopback; its port, and the wall clock before and after.
fn connection(netns: &Netns) -> (u16, i128, i128) {
    netns.on_thread("hs-both", || {
        let (listener, to) = loopback_listener();
        let before = now(ClockId::Realtime);
        let client = TcpStream::connect(to).expect("it listens");
        drop((listener.accept().expect("a child is queued"), client));
        (to.port(), before, now(ClockId::Realtime))
    })
}

#[test]
fn a_suspend_is_in_the_time_of_what_comes_after_it_and_in_no_duration() {
    const NAME: &str = "a_suspend_is_in_the_time_of_what_comes_after_it_and_in_no_duration";
    if !is_fit(NAME) {
        return;
    }
    if !in_vm() {
        return skip(NAME, "it suspends the machine; only guests are");
    }
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = pair.server.on_thread("hs-listen", || {
        let listener = TcpListener::bind((SERVER_V4, 0)).expect("a port is free");
        let to: SocketAddr = listener.local_addr().expect("it is bound");
        (listener, to)
    });
    let (queue, queued_to) = pair.server.on_thread("hs-listen", loopback_listener);
    // Three stages: a SYN that nobody answers, a child that nobody has accepted, and what begins after it.
    pair.client_reaches_server(false);
    let began = [now(ClockId::Monotonic), now(ClockId::Realtime)];
    let socket = pair.client.on_thread("hs-client", || {
        let socket = connect_without_waiting(to);
        wait_for_state(to.port(), SYN_SENT);
        socket
    });
    let queued = pair.server.on_thread("hs-queued", || TcpStream::connect(queued_to).expect("it listens"));
    let asleep = match suspend() {
        Ok(asleep) => asleep,
        Err(problem) => {
            watch.end();
            return skip(NAME, &problem);
        }
    };
    let resumed = now(ClockId::Realtime);
    let accepted = pair.server.on_thread("hs-accepts", || queue.accept().expect("a child is queued"));
    let accepted_at = now(ClockId::Monotonic);
    let fresh = connection(&pair.server);
    assert!(asleep > 3 * SECOND, "the clocks stood still for {} ms", asleep / MS);
    pair.client_reaches_server(true);
    pair.client.on_thread("hs-client", || finish(&socket).expect("the SYN is sent again"));
    let finished = now(ClockId::Monotonic);
    let child = pair.server.on_thread("hs-accepts", || listener.accept().expect("a child is queued"));

    let client = watch.wait_for_end("client", to.port());
    let server = watch.wait_for_end("server", to.port());
    let open = u64::try_from((finished - began[0]) / MS).expect("time goes on");
    client
        .whole("client", "established", &pair.client)
        .ends(CLIENT_V4, SERVER_V4, to.port())
        .thread("hs-client")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("phases.local_ns", AT_ONCE)
        // Of the clock that stood still there is nothing in them.
        .within("latency_ns", 900..=open)
        .within("phases.wire_ns", 900..=open)
        .number_in("retransmits.syn", 1..=4)
        .within("retransmits.waited_ns", 900..=open)
        .flags(&["non_blocking", "suspended"])
        .nothing_else();
    expect_server(&server, &pair.server, (SERVER_V4, CLIENT_V4, to.port()), "hs-accepts");
    expect_one_handshake(&client, &server);
    expect_time(&client, began[1], resumed - asleep);
    expect_time(&server, resumed - MS, now(ClockId::Realtime));

    let ends = ("127.0.0.1", "127.0.0.1", queued_to.port());
    let connected = watch.wait_for_end("client", queued_to.port());
    expect_client(&connected, &pair.server, ends, "hs-queued");
    let held = watch.wait_for_end("server", queued_to.port());
    let whole = server_of(&held, "established", &pair.server, ends).queued(1..=1, 1..=4_096);
    let waited = u64::try_from((accepted_at - began[0]) / MS).expect("time goes on");
    if held.get("phases.accept_ns").is_some() {
        whole
            .thread("hs-accepts")
            .within("phases.accept_ns", 0..=waited)
            .flags(&["suspended"])
            .nothing_else();
    } else {
        // Freezing, suspending and resuming took a second of the clock that stood still in between. The record may
        // have gone out before all that.
        whole
            .also(has_probes(), |whole| whole.thread("hs-listen"))
            .flags(if held.has_flag("suspended") { &["suspended"] } else { &[] })
            .nothing_else();
        watch
            .wait_for("the accept record", |record| {
                record.text("kind") == Some("accept") && record.text("key") == held.text("key")
            })
            .expect_text("outcome", "accepted")
            .expect_within("wait_ns", 0..=waited);
    }
    expect_one_handshake(&connected, &held);
    let (port, before, after) = fresh;
    expect_fresh(&watch, &pair.server, port, before, after);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 5)]);
    drop((accepted, queued, child));
}

/// Both whole records of a connection that `connection` made.
#[track_caller]
fn expect_fresh(watch: &Watch, netns: &Netns, port: u16, before: i128, after: i128) {
    let ends = ("127.0.0.1", "127.0.0.1", port);
    let (client, server) = (watch.wait_for_end("client", port), watch.wait_for_end("server", port));
    expect_client(&client, netns, ends, "hs-both");
    expect_server(&server, netns, ends, "hs-both");
    expect_one_handshake(&client, &server);
    expect_time(&client, before, after);
    expect_time(&server, before, after);
}

#[test]
fn a_wall_clock_that_is_set_is_followed_in_both_directions() {
    const NAME: &str = "a_wall_clock_that_is_set_is_followed_in_both_directions";
    if !is_fit(NAME) {
        return;
    }
    if !in_vm() {
        return skip(NAME, "it sets the clock of the machine; only guests' are");
    }
    let netns = Netns::new("w");
    let watch = Watch::begin();
    for step in [3600, -7200, 3600] {
        let time = clock_gettime(ClockId::Realtime);
        clock_settime(ClockId::Realtime, Timespec { tv_sec: time.tv_sec + step, ..time })
            .expect("a guest's clock");
        // A step is known at the next reading of the clocks, after 40 ms.
        std::thread::sleep(Duration::from_millis(300));
        let (port, before, after) = connection(&netns);
        expect_fresh(&watch, &netns, port, before, after);
    }
    expect_counts(&watch.end(), &[(&netns, 6)]);
}
