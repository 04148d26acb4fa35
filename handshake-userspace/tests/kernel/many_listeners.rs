//! More listeners than the kernel side has room for: what is told of a drop then, and that it is counted.
//!
//! What a reader would get wrong: the daemon remembers more of them than the kernel side, so who listens is told of a
//! port whose queue is not; and an owner's name says nothing of the room in the kernel's tables.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    drop_at_listener::{judged, let_nothing_in},
    environment::{has_drop_reasons, is_fit_once},
    netns::Netns,
    plain,
    tracer::Tracer,
    traffic::{connect_without_waiting, tcp_socket},
};

/// LISTENING and LISTENERS_AT (docs/KERNEL.md, Maps).
const ROOM: usize = 16_384;
/// Beyond it; others of this host listen too.
const BEYOND: usize = 16;
const OTHERS: usize = 4_096;
const FIRST_PORT: u16 = 1_024;
const BACKLOG: u64 = 1;

fn listen(number: usize) -> TcpListener {
    let socket = tcp_socket();
    let port = FIRST_PORT + u16::try_from(number).expect("they fit");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).expect("nobody else is in here");
    socket.listen(BACKLOG as i32).expect("it can listen");
    socket.into()
}

/// A SYN that dies before a listener: where to, and where from.
fn lose_a_syn(netns: &Netns, listener: &TcpListener) -> (SocketAddr, SocketAddr) {
    let to = listener.local_addr().expect("it is bound");
    let_nothing_in(listener);
    let from = netns.on_thread("hs-client", || {
        connect_without_waiting(to).local_addr().expect("it is bound").as_socket().expect("it is IPv4")
    });
    (to, from)
}

/// Its whole record: the listener's owner in any case, its queue only where there was room for that.
#[track_caller]
fn expect_lost(tracer: &Tracer, netns: &Netns, (to, from): (SocketAddr, SocketAddr), has_room: bool) {
    let record = tracer.wait_for("the dropped SYN", |record| {
        record.is("server", to.port()) && record.number("remote.port") == Some(u64::from(from.port()))
    });
    let whole = plain::dropped(&record, "syn_dropped", netns, "drop_reason", 1);
    judged(whole, to, from, has_room.then_some((0, BACKLOG)));
}

#[test]
fn a_listener_that_finds_no_room_is_counted_and_a_drop_there_tells_its_owner_and_no_queue() {
    if !is_fit_once("a_listener_that_finds_no_room_is_counted_and_a_drop_there_tells_its_owner_and_no_queue")
    {
        return;
    }
    let files = getrlimit(Resource::Nofile);
    let wanted = (ROOM + BEYOND + 512) as u64;
    if files.current.is_some_and(|current| current < wanted) {
        let maximum = files.maximum.map(|maximum| maximum.max(wanted));
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).expect("root may");
    }
    let netns = Netns::new("l");
    let tracer = Tracer::start(&[]);
    let listeners: Vec<TcpListener> =
        netns.on_thread("hs-listen", || (0..ROOM + BEYOND).map(listen).collect());
    if has_drop_reasons() {
        // A record waits for the SYN that would be sent again, so both are lost before the first is waited for.
        let lost = [(0, true), (listeners.len() - 1, false)]
            .map(|(number, has_room)| (lose_a_syn(&netns, &listeners[number]), has_room));
        for (ends, has_room) in lost {
            expect_lost(&tracer, &netns, ends, has_room);
        }
    }
    // Their places are free again.
    drop(listeners);
    let again = netns.on_thread("hs-listen", || listen(ROOM + BEYOND));
    if has_drop_reasons() {
        let ends = lose_a_syn(&netns, &again);
        expect_lost(&tracer, &netns, ends, true);
    }
    let (records, log) = tracer.stop_with_log();
    let health = records.last().expect("there is a last record");
    // Each finds both tables full.
    let full = health.number("kernel.listeners_full").expect("it is counted");
    assert!((2 * BEYOND as u64..2 * (BEYOND + OTHERS) as u64).contains(&full), "{health}: {log:?}");
    setrlimit(Resource::Nofile, files).expect("less is always allowed");
}
