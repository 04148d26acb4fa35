//! Floods: memory stays flat, what is not told is counted to the last SYN, and a connection afterwards is told right.
//!
//! Each load comes in thirds, so that memory in the last can be compared with that in the one before. What is
//! told and what is counted must add up to what was sent; each scenario states its sum. What a reader would get
//! wrong: in a VM the numbers are smaller, unless HANDSHAKE_BOUNDS=full asks for all (docs/TESTING.md, Bounds).

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{
    environment::{attach, has_probes, in_vm, is_fit_for_long, patience},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    plain::{expect_client, server_of},
    syn_flood::{Flood, let_in},
    tally::{Tally, Total},
    traffic::be_refused,
    whole::{AT_ONCE, expect_one_handshake},
};

/// No flood makes the daemon have more of its memory resident than this (docs/TESTING.md, Bounds).
const LIMIT_KIB: u64 = 64 << 10;
/// What the last third may need more than the one before: blocks of events and the allocator's grain.
const GRAIN_KIB: u64 = 4 << 10;
/// Requests that the kernel side remembers at a time, whatever comes (docs/KERNEL.md, Maps).
const REMEMBERED: u64 = 32_768;

/// All of a scenario's numbers, or what an emulated processor can do in a minute.
fn scaled(all: u64, emulated: u64) -> u64 {
    let full = std::env::var("HANDSHAKE_BOUNDS").is_ok_and(|value| value == "full");
    if in_vm() && !full { emulated } else { all }
}

/// Gives the load in three parts; memory must be flat, and below the limit in the end.
fn in_thirds(tally: &Tally, count: u64, mut load: impl FnMut(u64)) -> Load {
    let begun = Instant::now();
    let mut peaks_kib = [0; 3];
    let mut left = count;
    for (place, peak_kib) in peaks_kib.iter_mut().enumerate() {
        let part = left / (3 - place as u64);
        left -= part;
        load(part);
        *peak_kib = tally.peak_kib();
    }
    Load { count, lost: 0, peaks_kib, took: begun.elapsed() }
}

/// A load that was given.
struct Load {
    count: u64,
    /// What was sent and never arrived: the link had no room for it, and the kernel may say so.
    lost: u64,
    peaks_kib: [u64; 3],
    took: Duration,
}

impl Load {
    /// Memory, and one line of numbers.
    #[track_caller]
    fn judge(&self, scenario: &str, told: u64, counted: u64, total: &Total) {
        let [_, middle, last] = self.peaks_kib;
        let events = total.health("kernel.submitted");
        println!(
            "bounds: scenario={scenario} mode={} kernel={} sent={} told={told} counted={counted} events={events} \
             load_ms={} events_per_s={:.0} daemon_cpu_ms={} of_ms={} rss_kib={},{middle},{last} rss_peak_kib={} \
             ring_full={} sink_dropped={} missed_probes={}",
            attach(),
            rustix::system::uname().release().to_string_lossy(),
            self.count,
            self.took.as_millis(),
            events as f64 / self.took.as_secs_f64(),
            total.cpu.as_millis(),
            total.took.as_millis(),
            self.peaks_kib[0],
            total.highest_kib,
            total.health("kernel.ring_full"),
            total.health("sink_dropped"),
            total.health.number("missed_probes").map_or("unknown".to_owned(), |count| count.to_string()),
        );
        assert!(total.highest_kib <= LIMIT_KIB, "{} KiB resident", total.highest_kib);
        assert!(last <= middle + GRAIN_KIB, "memory grows: {:?} KiB", self.peaks_kib);
    }
}

/// Handshakes of the load that ended: all that were told of, or would have been had the reader of standard output
/// not been too slow. None of a load is established; what a scenario connects beside it is.
#[track_caller]
fn told(total: &Total) -> u64 {
    let told = total.health("failed");
    let printed: u64 = total.outcomes.values().sum();
    let unprinted = total.health("sink_dropped");
    assert!(
        printed <= told && told - printed <= unprinted,
        "{told} told, {printed} printed, {unprinted} not"
    );
    told
}

/// What was not told because there was no room for it.
#[track_caller]
fn without_room(total: &Total) -> u64 {
    ["kernel.requests_full", "kernel.ring_full", "table_full"].iter().map(|path| total.health(path)).sum()
}

/// Told and counted must be what was sent; a hit that the kernel skipped may be missing, and is counted too.
#[track_caller]
fn adds_up(sent: u64, told: u64, counted: u64, total: &Total) {
    let skipped = total.health.number("missed_probes").unwrap_or(0);
    assert!(
        sent.abs_diff(told + counted) <= skipped,
        "{sent} sent, {told} told, {counted} counted, {skipped} skipped: {:?} {}",
        total.outcomes,
        total.health
    );
}

/// One connection from the client's host, accepted: both ends with all that the mode can know.
#[track_caller]
pub fn an_ordinary_connection_is_told_right(
    tally: &Tally,
    pair: &Pair,
    listener: &TcpListener,
    to: SocketAddr,
) {
    let stream = pair.client.on_thread("hs-client", || TcpStream::connect(to).expect("it listens"));
    let accepted = pair.server.on_thread("hs-server", || listener.accept().expect("a child is queued").0);
    let port = u64::from(stream.local_addr().expect("it is bound").port());
    let client = tally.wait_for("the client's end", |record| {
        record.is("client", to.port()) && record.number("local.port") == Some(port)
    });
    let server = tally.wait_for("the server's end", |record| {
        record.is("server", to.port()) && record.number("remote.port") == Some(port)
    });
    expect_client(&client, &pair.client, (CLIENT_V4, SERVER_V4, to.port()), "hs-client");
    server_of(&server, "established", &pair.server, (SERVER_V4, CLIENT_V4, to.port()))
        // The queue is as long as the load needs it.
        .queued(1..=1, 1..=131_072)
        .thread("hs-server")
        .within("phases.accept_ns", AT_ONCE)
        .flags(&[])
        .nothing_else();
    expect_one_handshake(&client, &server);
    drop((stream, accepted));
}

/// Both hosts, a listener that has room for `backlog` half-open connections, and a tracer of these hosts.
fn flooded(backlog: i32, settings: &[(&str, &str)]) -> (Pair, TcpListener, SocketAddr, Tally) {
    let pair = Pair::new();
    let_in(&pair);
    pair.server.set("core/somaxconn", &backlog.to_string());
    // Without cookies the kernel keeps a quarter of this for peers that it has heard of before.
    pair.server.set("ipv4/tcp_max_syn_backlog", &(2 * backlog).to_string());
    for (path, value) in settings {
        pair.server.set(path, value);
    }
    let tally = Tally::start(CLIENT_V4, &["--netns", pair.client.name(), "--netns", pair.server.name()]);
    let listener = pair.server.on_thread("hs-listen", || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        let any: SocketAddr = "0.0.0.0:0".parse().expect("an address");
        socket.bind(&any.into()).expect("a port is free");
        socket.listen(backlog).expect("it can listen");
        TcpListener::from(socket)
    });
    let port = listener.local_addr().expect("it is bound").port();
    (pair, listener, format!("{SERVER_V4}:{port}").parse().expect("an address"), tally)
}

/// A counter of TCP in a namespace, as the kernel counts it.
fn kernels_count(netns: &Netns, name: &str) -> u64 {
    netns.on_thread("hs-count", || {
        let text = ["snmp", "netstat"].map(|file| {
            std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("the kernel counts")
        });
        let lines: Vec<&str> = text.iter().flat_map(|text| text.lines()).collect();
        lines
            .chunks(2)
            .filter_map(|pair| {
                let place = pair[0].split_whitespace().position(|word| word == name)?;
                pair[1].split_whitespace().nth(place)?.parse().ok()
            })
            .next()
            .unwrap_or_else(|| panic!("the kernel does not count {name}"))
    })
}

/// Waits until no connection of this listener is half open.
fn wait_until_none_is_half_open(netns: &Netns, port: u16) {
    let end = format!(":{port:04X} ");
    netns.on_thread("hs-wait", || {
        let deadline = Instant::now() + 2 * patience();
        loop {
            let text =
                std::fs::read_to_string("/proc/thread-self/net/tcp").expect("the kernel lists sockets");
            let left = text.lines().filter(|line| line.contains(" 03 ") && line.contains(&end)).count();
            if left == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "{left} connections are still half open");
            // The list is long, and it is written under the locks that the flood needs.
            std::thread::sleep(Duration::from_millis(200));
        }
    });
}

/// Sends a flood in thirds; gives how many SYNs the kernel counted as dropped by the listener.
fn send(pair: &Pair, to: SocketAddr, tally: &Tally, count: u64) -> (Load, u64) {
    let (arrived, dropped) =
        (kernels_count(&pair.server, "InSegs"), kernels_count(&pair.server, "ListenDrops"));
    let mut load = pair.client.on_thread("hs-flood", || {
        let mut flood = Flood::at(to);
        in_thirds(tally, count, |part| flood.send(part))
    });
    let arrived = kernels_count(&pair.server, "InSegs") - arrived;
    // On a busy machine the link between the hosts may have no room for some; only what arrives is the kernel's.
    assert!(arrived <= count && arrived >= count / 100 * 98, "{arrived} of {count} SYNs arrived");
    load.count = arrived;
    load.lost = count - arrived;
    (load, kernels_count(&pair.server, "ListenDrops") - dropped)
}

#[test]
fn a_syn_flood_without_cookies_is_told_or_counted_to_the_last_syn() {
    if !is_fit_for_long("a_syn_flood_without_cookies_is_told_or_counted_to_the_last_syn") {
        return;
    }
    // More than the kernel side remembers (in a VM they die faster than they come), and fewer than come: the
    // listener drops the rest.
    let settings = [("ipv4/tcp_syncookies", "0"), ("ipv4/tcp_synack_retries", "0")];
    let (pair, listener, to, tally) = flooded(scaled(65_536, 2_048) as i32, &settings);
    let count = scaled(1_000_000, 75_000);
    let (load, dropped) = send(&pair, to, &tally, count);
    let count = load.count;
    wait_until_none_is_half_open(&pair.server, to.port());
    an_ordinary_connection_is_told_right(&tally, &pair, &listener, to);
    let total = tally.stop();
    let (told, room) = (told(&total), without_room(&total));
    if has_probes() {
        // Sent = told (timed out, or dropped by the listener) + dropped beyond the ten a second that are told
        // + no room; and told as dropped + beyond those = dropped by the kernel's own count.
        let untold = total.health("kernel.drops_untold");
        load.judge("flood", told, untold + room, &total);
        adds_up(count, told, untold + room, &total);
        let told_drops = total.health.number("outcomes.syn_dropped").unwrap_or(0);
        adds_up(dropped, told_drops, untold, &total);
        // With all numbers on an emulated processor requests die faster than they come, so nothing is dropped.
        assert!((untold > 0 || dropped == 0) && told > told_drops, "{}", total.health);
    } else {
        // Neither a drop nor the death of a request can be seen. Requests = remembered + no room.
        load.judge("flood", told, room, &total);
        let requests = count - dropped;
        assert!(told <= load.lost, "{} lost on the way: {:?}", load.lost, total.outcomes);
        assert!(
            room <= requests && requests - room >= REMEMBERED,
            "{requests} requests, {room} without room"
        );
    }
}

#[test]
fn a_syn_flood_answered_by_cookies_hides_no_connection() {
    if !is_fit_for_long("a_syn_flood_answered_by_cookies_hides_no_connection") {
        return;
    }
    // Room for 256 requests; the kernel answers all else by a cookie and keeps nothing.
    let settings = [("ipv4/tcp_syncookies", "1"), ("ipv4/tcp_synack_retries", "0")];
    let (pair, listener, to, tally) = flooded(256, &settings);
    let count = scaled(1_000_000, 75_000);
    let cookies = kernels_count(&pair.server, "SyncookiesSent");
    let (load, dropped) = send(&pair, to, &tally, count);
    let count = load.count;
    let cookies = kernels_count(&pair.server, "SyncookiesSent") - cookies;
    wait_until_none_is_half_open(&pair.server, to.port());
    an_ordinary_connection_is_told_right(&tally, &pair, &listener, to);
    let total = tally.stop();
    let (told, room) = (told(&total), without_room(&total));
    assert!(cookies > count / 2 && dropped == 0, "{cookies} cookies sent, {dropped} SYNs dropped");
    // Sent = answered by cookies, as the kernel counts them + told as timed out (where probes see that) + no room.
    load.judge("cookies", told, cookies + room, &total);
    if has_probes() {
        adds_up(count, told, cookies + room, &total);
    } else {
        assert!(told <= load.lost && room <= count - cookies, "{cookies} cookies sent: {}", total.health);
    }
}

#[test]
fn connections_left_half_open_are_told_or_counted_and_hide_no_other() {
    if !is_fit_for_long("connections_left_half_open_are_told_or_counted_and_hide_no_other") {
        return;
    }
    // Long enough that all are half open at once: SYN-ACKs after 1 and 3 s, after 7 s if the kernel has patience.
    let settings = [("ipv4/tcp_syncookies", "0"), ("ipv4/tcp_synack_retries", "3")];
    let (pair, listener, to, tally) = flooded(scaled(131_072, 65_536) as i32, &settings);
    let count = scaled(100_000, 45_000);
    let (load, dropped) = send(&pair, to, &tally, count);
    let count = load.count;
    assert_eq!(dropped, 0, "the listener has room for all");
    an_ordinary_connection_is_told_right(&tally, &pair, &listener, to);
    wait_until_none_is_half_open(&pair.server, to.port());
    let total = tally.stop();
    let (told, room) = (told(&total), without_room(&total));
    // Sent = told as timed out (where probes see that) + no room; else remembered + no room.
    load.judge("half_open", told, room, &total);
    if has_probes() {
        adds_up(count, told, room, &total);
    } else {
        assert!(told <= load.lost, "{} lost on the way: {:?}", load.lost, total.outcomes);
    }
    assert!(room > 0 && count - room >= REMEMBERED, "{room} without room");
}

#[test]
fn refused_connections_are_all_told() {
    if !is_fit_for_long("refused_connections_are_all_told") {
        return;
    }
    let pair = Pair::new();
    let tally = Tally::start(CLIENT_V4, &["--netns", pair.client.name(), "--netns", pair.server.name()]);
    let count = scaled(1_000_000, 30_000);
    let load = in_thirds(&tally, count, |part| {
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let netns = &pair.client;
                scope.spawn(move || {
                    netns.enter();
                    (0..part).filter(|number| number % 2 == thread).for_each(be_refused);
                });
            }
        });
    });
    let listener =
        pair.server.on_thread("hs-listen", || TcpListener::bind("0.0.0.0:0").expect("a port is free"));
    let port = listener.local_addr().expect("it is bound").port();
    let to = format!("{SERVER_V4}:{port}").parse().expect("an address");
    an_ordinary_connection_is_told_right(&tally, &pair, &listener, to);
    let total = tally.stop();
    // Sent = told. An event that found no room is not a handshake: what it told, a later one may tell too.
    let (told, room) = (told(&total), without_room(&total));
    load.judge("refused", told, room, &total);
    assert!(told <= count, "{told} told of {count}");
    adds_up(count, told, room.min(count - told), &total);
    // Where the kernel skips the change of state, the socket's destruction tells the end, and not its cause.
    let others: u64 = told - total.health("outcomes.refused");
    let skipped = total.health.number("missed_probes").unwrap_or(0);
    assert!(others <= room + skipped, "{:?} {}", total.outcomes, total.health);
}
