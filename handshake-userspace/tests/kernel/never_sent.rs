//! connect() that succeeded, and whose SYN never left: Fast Open leaves it to the first write.
//!
//! What a reader would get wrong: nothing failed here, on this host or elsewhere. The application closed the socket,
//! as it may close one that is in SYN-SENT.

use super::{
    environment::is_fit,
    fast_open::{accept_and_read, connect_and_write, fast_listener, willing},
    record::all_of,
    traffic::{set_option, tcp_socket},
    watch::Watch,
    whole::AT_ONCE,
};

#[test]
fn a_deferred_connect_that_is_closed_before_its_first_write_is_cancelled() {
    if !is_fit("a_deferred_connect_that_is_closed_before_its_first_write_is_cancelled") {
        return;
    }
    let netns = willing();
    let watch = Watch::begin();
    let port = netns.on_thread("hs-both", || {
        let (listener, to) = fast_listener();
        // Without its cookie the next connect() would send a SYN at once.
        let first = connect_and_write(to);
        drop((accept_and_read(&listener), first));
        let client = tcp_socket();
        set_option(&client, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1);
        client.connect(&to.into()).expect("it returns before any SYN left");
        to.port()
    });
    let record = watch.wait_for("the one that was closed", |record| {
        record.is("client", port) && record.text("outcome") == Some("cancelled")
    });
    record
        .whole("client", "cancelled", &netns)
        // Its end was seen by a hook that every mode has.
        .seen_by(&["tracepoint"])
        .evidence("closed_in_syn_sent", None)
        .ends("127.0.0.1", "127.0.0.1", port)
        .thread("hs-both")
        .within("failed_after_ns", AT_ONCE)
        .flags(&["non_blocking"])
        .nothing_else();
    let clients = all_of(watch.end(), &netns).into_iter().filter(|record| record.is("client", port)).count();
    assert_eq!(clients, 2, "the first connection's, and this one");
}
