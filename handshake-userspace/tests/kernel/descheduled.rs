//! Threads that get no processor: a handshake was over long ago when connect() and accept() go back to their callers.
//!
//! A thread of real-time priority keeps the one processor on which both may run, from before the SYN leaves until long
//! after the last ACK. What a reader would get wrong: that wait is nobody's network, so it is in `wake` and in the
//! accept phase, and in no latency.

use std::{
    fs::File,
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

use super::{
    accept_calls::until_in_accept,
    environment::{has_probes, is_fit, skip},
    netns::{CLIENT_V4, Pair, SERVER_V4},
    plain::{expect_counts, server_of},
    record::Record,
    traffic::{ESTABLISHED, SYN_SENT, listen_in, wait_for_state},
    watch::Watch,
    whole::{AT_ONCE, ETHERNET_MSS, expect_one_handshake},
};

/// How long the processor is kept after the handshake. A record waits for connect()'s return for 200 ms at most
/// (decisions/0010), and what comes later is in no record.
const KEPT: Duration = Duration::from_millis(100);

/// The kernel lets others in now and then, however important a thread is, and a busy machine keeps the processor for
/// longer than that; so the best of a few decides.
const TRIES: usize = 6;

/// From now on the calling thread runs on the last processor that it may use.
fn stay_on_one_processor() {
    let mine = sched_getaffinity(None).expect("it can be read");
    let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| mine.is_set(*cpu)).expect("it runs on one");
    let mut one = CpuSet::new();
    one.set(last);
    sched_setaffinity(None, &one).expect("it may run there");
}

/// From now on no ordinary thread runs where the calling one does.
fn be_more_important() -> std::io::Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters are this function's, and the call only reads them.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// One connection whose SYN waits for its neighbour's address until the processor is kept.
fn connection(pair: &Pair, listener: &TcpListener, to: SocketAddr) -> (TcpStream, TcpStream) {
    pair.client.ip(&format!("neigh del {SERVER_V4} dev veth0"));
    pair.server.set("ipv4/conf/all/arp_ignore", "8");
    let mut answer = pair.server.on_thread("hs-sysctl", || {
        File::options()
            .write(true)
            .open("/proc/sys/net/ipv4/conf/all/arp_ignore")
            .expect("the setting is there")
    });
    std::thread::scope(|scope| {
        let (send, thread) = std::sync::mpsc::channel();
        let server =
            std::thread::Builder::new().name("hs-server".to_owned()).spawn_scoped(scope, move || {
                stay_on_one_processor();
                send.send(gettid()).expect("somebody waits for it");
                listener.accept().expect("a child is queued").0
            });
        until_in_accept(thread.recv().expect("it says who it is"));
        let client = std::thread::Builder::new().name("hs-client".to_owned()).spawn_scoped(scope, || {
            pair.client.enter();
            stay_on_one_processor();
            TcpStream::connect(to).expect("it listens")
        });
        pair.client.on_thread("hs-wait", || wait_for_state(to.port(), SYN_SENT));
        pair.client.on_thread("hs-keeper", || {
            stay_on_one_processor();
            be_more_important().expect("it was possible before");
            answer.write_all(b"0").expect("it can be set");
            wait_for_state(to.port(), ESTABLISHED);
            let until = Instant::now() + KEPT;
            while Instant::now() < until {
                std::hint::spin_loop();
            }
        });
        let [client, server] = [client, server].map(|thread| thread.expect("a thread can be started"));
        (client.join().expect("it connects"), server.join().expect("it accepts"))
    })
}

#[test]
fn a_caller_that_gets_no_processor_is_late_and_its_handshake_is_not() {
    const NAME: &str = "a_caller_that_gets_no_processor_is_late_and_its_handshake_is_not";
    if !is_fit(NAME) {
        return;
    }
    if let Err(error) = std::thread::spawn(be_more_important).join().expect("it does not panic") {
        return skip(NAME, &format!("no thread may have a real-time priority: {error}"));
    }
    let pair = Pair::new();
    // The address is asked for ten times a second, for as long as it takes.
    pair.client.set("ipv4/neigh/veth0/retrans_time_ms", "100");
    pair.client.set("ipv4/neigh/veth0/mcast_solicit", "1000");
    let watch = Watch::begin();
    let (listener, to) = listen_in(&pair.server, 128);
    let mut made = 0;
    let was_late = (0..TRIES).any(|_| {
        made += 1;
        let (stream, accepted) = connection(&pair, &listener, to);
        let port = u64::from(stream.local_addr().expect("it is bound").port());
        let of = |role: &'static str, end: &'static str| {
            watch.wait_for("its record", |record| {
                record.is(role, to.port()) && record.number(end) == Some(port)
            })
        };
        let (client, server) = (of("client", "local.port"), of("server", "remote.port"));
        drop((stream, accepted));
        expect_late(&client, &server, &pair, to.port())
    });
    assert!(was_late, "of {made} callers none was late: {:?}", watch.records());
    expect_counts(&watch.end(), &[(&pair.client, made), (&pair.server, made)]);
}

/// Both whole records; whether both callers were as late as they should be.
#[track_caller]
fn expect_late(client: &Record, server: &Record, pair: &Pair, port: u16) -> bool {
    let late = 0..=10_000;
    client
        .whole("client", "established", &pair.client)
        .ends(CLIENT_V4, SERVER_V4, port)
        .thread("hs-client")
        .joined()
        .agreed(ETHERNET_MSS)
        .within("phases.local_ns", AT_ONCE)
        .also(client.get("phases.wake_ns").is_some(), |whole| whole.within("phases.wake_ns", 0..=250))
        // What the SYN waited for its neighbour's address is the network's.
        .within("latency_ns", late.clone())
        .answered(late.clone())
        .flags(&[])
        .nothing_else();
    server_of(server, "established", &pair.server, (SERVER_V4, CLIENT_V4, port))
        .thread("hs-server")
        .queued(1..=1, 128..=128)
        .within("phases.accept_ns", late)
        .also(has_probes(), |whole| whole.number("phases.accept_call_ns", 0))
        .flags(&[])
        .nothing_else();
    expect_one_handshake(client, server);
    let kept = KEPT.as_nanos() as u64 - 10_000_000;
    [client.number("phases.wake_ns"), server.number("phases.accept_ns")].iter().all(|ns| *ns >= Some(kept))
}
