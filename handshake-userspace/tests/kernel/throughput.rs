//! Connections as fast as the machine makes them: every one has both records, or is counted as lost.
//!
//! What a reader would get wrong: with SO_LINGER 0 nearly every child is reset in the accept queue, and all
//! are accepted all the same.

use std::net::{TcpListener, TcpStream};

use super::{
    environment::{in_vm, is_fit},
    netns::Netns,
    tracer::Tracer,
    traffic::{reset, until},
};

fn churn(close: fn(TcpStream)) {
    let connections: usize = if in_vm() { 2_000 } else { 20_000 };
    let netns = Netns::new("t");
    let tracer = Tracer::start(&["--netns", netns.name()]);
    let listener = netns.on_thread("hs-listen", || TcpListener::bind("127.0.0.1:0").expect("loopback is up"));
    let to = listener.local_addr().expect("it has an address");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..connections {
                drop(listener.accept().expect("a connection comes"));
            }
        });
        netns.on_thread("hs-client", || {
            for _ in 0..connections {
                close(TcpStream::connect(to).expect("it listens"));
            }
        });
    });
    let count = |role: &str| tracer.records().iter().filter(|record| record.is(role, to.port())).count();
    until("every connection has both records", || {
        count("client") >= connections && count("server") >= connections
    });
    let records = tracer.stop();
    let of = |role| records.iter().filter(move |record| record.is(role, to.port()));
    assert_eq!(of("client").count(), connections);
    assert_eq!(of("server").count(), connections);
    let mut keys: Vec<_> = records.iter().filter_map(|record| record.text("key")).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 2 * connections, "a key names one handshake");
    for record in of("client").chain(of("server")) {
        record.expect_text("outcome", "established").expect_present("process.pid");
        assert!(record.number("latency_ns").is_some_and(|ns| ns < 60_000_000_000), "{record}");
    }
}

#[test]
fn connections_closed_by_fin_all_have_both_records() {
    if is_fit("connections_closed_by_fin_all_have_both_records") {
        churn(drop);
    }
}

#[test]
fn connections_closed_by_rst_all_have_both_records() {
    if is_fit("connections_closed_by_rst_all_have_both_records") {
        churn(reset);
    }
}
