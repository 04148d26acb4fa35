//! One SYN that two CPUs handle at once: the kernel makes two requests of it and keeps one.
//!
//! What a reader would get wrong: the race needs no luck. A socket filter on the listener runs between the look-up that
//! finds no request and the making of one, and this one runs for long.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicU16, Ordering},
};

use rustix::thread::{CpuSet, sched_setaffinity};
use socket2::{SockFilter, SockRef};

use super::{
    drops::small_listener,
    environment::{has_probes, is_fit, names_no_drop_reasons, skip},
    netns::{CLIENT_V4, Pair},
    record::Record,
    syn_flood::Flood,
    traffic::until,
    watch::Watch,
};

const SYNS: u16 = 1_000;
const FIRST_PORT: u16 = 10_000;
/// As many as the memory for a socket's options has room for, translated (net.core.optmem_max: 20 KiB before 6.7).
const LOADS: usize = 400;

/// A filter that takes every segment, after many numbers drawn at random.
fn slow_filter() -> Vec<SockFilter> {
    const LOAD_WORD: u16 = 0x20;
    const RETURN: u16 = 0x06;
    // SKF_AD_OFF + SKF_AD_RANDOM.
    const RANDOM: u32 = (-0x1000_i32 + 56) as u32;
    let loads = (0..LOADS).map(|_| SockFilter::new(LOAD_WORD, 0, 0, RANDOM));
    loads.chain([SockFilter::new(RETURN, 0, 0, 0xffff)]).collect()
}

fn pin_to(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).expect("there are two CPUs");
}

fn of_the_clients(record: &Record, port: u16) -> bool {
    record.is("server", port) && record.text("remote.address") == Some(CLIENT_V4)
}

#[test]
fn a_syn_that_two_cpus_handle_at_once_is_one_handshake() {
    const NAME: &str = "a_syn_that_two_cpus_handle_at_once_is_one_handshake";
    if !is_fit(NAME) {
        return;
    }
    if !has_probes() || names_no_drop_reasons() {
        skip(NAME, "half-open requests are not seen in this mode, or this kernel answers and keeps both");
        return;
    }
    let pair = Pair::new();
    for (path, value) in
        [("tcp_syncookies", "0"), ("tcp_synack_retries", "1"), ("tcp_max_syn_backlog", "8192")]
    {
        pair.server.set(&format!("ipv4/{path}"), value);
    }
    // No RST for the SYN-ACKs: each request dies by its timer, once.
    pair.server_reaches_client(false);
    let watch = Watch::begin();
    let (listener, to) = small_listener(&pair.server);
    rustix::net::listen(&listener, 4_096).expect("the backlog can be changed");
    SockRef::from(&listener).attach_filter(&slow_filter()).expect("a filter can be attached");
    let from = |number: u16| {
        SocketAddrV4::new(CLIENT_V4.parse::<Ipv4Addr>().expect("an address"), FIRST_PORT + number)
    };
    let latest = AtomicU16::new(0);
    pair.client.on_thread("hs-client", || {
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                pair.client.enter();
                pin_to(1);
                let raw = Flood::at(to);
                while latest.load(Ordering::Relaxed) < SYNS {
                    let number = latest.load(Ordering::Relaxed).min(SYNS - 1);
                    raw.send_syn(from(number), u32::from(number));
                }
            });
            pin_to(0);
            let raw = Flood::at(to);
            for number in 0..SYNS {
                latest.store(number, Ordering::Relaxed);
                raw.send_syn(from(number), u32::from(number));
            }
            latest.store(SYNS, Ordering::Relaxed);
            second.join().expect("it sends");
        });
    });
    until("every half-open connection has died", || {
        watch.records().iter().filter(|record| of_the_clients(record, to.port())).count() >= usize::from(SYNS)
    });
    let records = watch.end();
    let records: Vec<_> = records.iter().filter(|record| of_the_clients(record, to.port())).collect();
    let other = records.iter().find(|record| record.text("outcome") != Some("timed_out"));
    assert!(other.is_none(), "{other:?}");
    assert_eq!(records.len(), usize::from(SYNS), "one for each");
    drop(listener);
}
