//! What the segments said: ECN, window scale, MSS and initial windows, each as one end sent it and the other took it.
//!
//! What a reader would get wrong: a window in a SYN is never scaled, and the first that is comes with the final ACK,
//! in steps of its scale. So a server knows a client's window a step more roughly than the client does.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
};

use super::{
    environment::is_fit,
    netns::{CLIENT_V4, Pair, SERVER_V4},
    record::Record,
    traffic::{accept_in, tcp_socket},
    watch::Watch,
    whole::expect_one_handshake,
};

/// Both records of a connection whose ends have receive buffers of these sizes, 0 the system's own.
fn connection(pair: &Pair, client_bytes: usize, server_bytes: usize) -> (Record, Record) {
    let watch = Watch::begin();
    let (listener, to) = pair.server.on_thread("hs-listen", || {
        let socket = tcp_socket();
        if server_bytes != 0 {
            socket.set_recv_buffer_size(server_bytes).expect("SO_RCVBUF can be set");
        }
        let any: SocketAddr = format!("{SERVER_V4}:0").parse().expect("an address");
        socket.bind(&any.into()).expect("the address is there");
        socket.listen(8).expect("it can listen");
        let listener = TcpListener::from(socket);
        let to = listener.local_addr().expect("it has an address");
        (listener, to)
    });
    let stream = pair.client.on_thread("hs-client", || {
        let socket = tcp_socket();
        if client_bytes != 0 {
            socket.set_recv_buffer_size(client_bytes).expect("SO_RCVBUF can be set");
        }
        socket.connect(&to.into()).expect("it listens");
        TcpStream::from(socket)
    });
    let accepted = accept_in(&pair.server, &listener);
    let (client, server) = (watch.wait_for_end("client", to.port()), watch.wait_for_end("server", to.port()));
    for (record, address) in [(&client, CLIENT_V4), (&server, SERVER_V4)] {
        record.expect_plainly_established().expect_text("local.address", address).expect_flags_are(&[]);
    }
    expect_one_handshake(&client, &server);
    watch.end();
    drop((stream, accepted));
    (client, server)
}

fn number(record: &Record, path: &str) -> u64 {
    record.number(path).unwrap_or_else(|| panic!("{path} is absent from {record}"))
}

#[test]
fn ecn_is_agreed_on_when_both_ends_want_it() {
    if !is_fit("ecn_is_agreed_on_when_both_ends_want_it") {
        return;
    }
    // 1 asks for it, 2 grants it to who asks, 0 refuses (Documentation/networking/ip-sysctl).
    let mut cases =
        vec![("1", "1", true), ("1", "2", true), ("1", "0", false), ("2", "1", false), ("0", "1", false)];
    // 3 asks for accurate ECN and grants it. A kernel that can has a setting for its TCP option; 6.18 has that already,
    // and refuses the 3.
    const ACCURATE: &str = "/proc/sys/net/ipv4/tcp_ecn_option";
    let takes_3 = || std::fs::write("/proc/sys/net/ipv4/tcp_ecn", "3").is_ok();
    if Path::new(ACCURATE).exists() && Pair::new().client.on_thread("hs-sysctl", takes_3) {
        cases.extend([("3", "3", true), ("3", "1", true), ("1", "3", true), ("3", "0", false)]);
    }
    for (client_wants, server_wants, expected) in cases {
        let pair = Pair::new();
        pair.client.set("ipv4/tcp_ecn", client_wants);
        pair.server.set("ipv4/tcp_ecn", server_wants);
        let (client, server) = connection(&pair, 0, 0);
        for record in [&client, &server] {
            let found = record.get("options.ecn").and_then(serde_json::Value::as_bool);
            assert_eq!(found, Some(expected), "tcp_ecn {client_wants} and {server_wants}: {record}");
        }
    }
}

#[test]
fn window_scales_and_windows_are_at_one_end_what_the_other_sent() {
    if !is_fit("window_scales_and_windows_are_at_one_end_what_the_other_sent") {
        return;
    }
    let mut scales = Vec::new();
    for (client_bytes, server_bytes) in [(0, 0), (4_096, 0), (0, 8_192), (6_000, 20_000)] {
        let pair = Pair::new();
        // Without SO_RCVBUF the scale comes from the largest buffer that TCP may take by itself.
        pair.client.set("ipv4/tcp_rmem", "4096 65536 262144");
        pair.server.set("ipv4/tcp_rmem", "4096 131072 16777216");
        let (client, server) = connection(&pair, client_bytes, server_bytes);
        for (one, other) in [(&client, &server), (&server, &client)] {
            assert_eq!(
                number(one, "options.window_scale.local"),
                number(other, "options.window_scale.remote"),
                "{client}\n{server}"
            );
        }
        // The SYN-ACK's window is not scaled, and so is known exactly.
        assert_eq!(
            number(&client, "options.window.remote"),
            number(&server, "options.window.local"),
            "{client}\n{server}"
        );
        // The client's came scaled, with the final ACK, rounded to a step.
        let step = 1 << number(&client, "options.window_scale.local");
        let (ours, theirs) =
            (number(&client, "options.window.local"), number(&server, "options.window.remote"));
        assert!(ours.abs_diff(theirs) <= step, "steps of {step}: {client}\n{server}");
        if client_bytes != 0 {
            // The kernel doubles what was asked for, and a window is no larger than its buffer.
            assert!(ours <= 2 * client_bytes as u64, "{client}");
        }
        scales.push((
            number(&client, "options.window_scale.local"),
            number(&server, "options.window_scale.local"),
        ));
    }
    // The cases are really different.
    assert!(scales.iter().any(|(client, server)| client != server), "{scales:?}");
    assert!(scales.iter().any(|scale| *scale != scales[0]), "{scales:?}");
}

#[test]
fn without_window_scaling_no_scale_is_told_at_either_end() {
    if !is_fit("without_window_scaling_no_scale_is_told_at_either_end") {
        return;
    }
    for unwilling in ["client", "server"] {
        let pair = Pair::new();
        let netns = if unwilling == "client" { &pair.client } else { &pair.server };
        netns.set("ipv4/tcp_window_scaling", "0");
        let (client, server) = connection(&pair, 0, 0);
        for record in [&client, &server] {
            record.expect_absent("options.window_scale");
            assert!(number(record, "options.window.local") <= 65_535, "{record}");
            assert!(number(record, "options.window.remote") <= 65_535, "{record}");
        }
    }
}

#[test]
fn each_end_tells_the_mss_that_the_other_announced() {
    if !is_fit("each_end_tells_the_mss_that_the_other_announced") {
        return;
    }
    let pair = Pair::new();
    super::environment::run(&format!("ip -n {} link set veth0 mtu 1400", pair.server.name()));
    let (client, server) = connection(&pair, 0, 0);
    client.expect_number("options.mss", 1_360).expect_number("options.local_mss", 1_448);
    server.expect_number("options.mss", 1_460);
    // Before 6.16 the room for timestamps is in it still.
    let announced = number(&server, "options.local_mss");
    assert!([1_348, 1_360].contains(&announced), "{server}");
}
