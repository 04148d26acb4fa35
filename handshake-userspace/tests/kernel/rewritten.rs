//! connect() that ends up elsewhere than the application asked for: a program at the cgroup rewrote the address (socket
//! load balancing), or the kernel read an unspecified one as this host's.
//!
//! What a reader would get wrong: `remote` is the end that TCP connected to, in every record, and filters go by it; what
//! was asked for stands beside it, and only where it is another one.

use std::net::{SocketAddr, TcpListener, TcpStream};

use super::{
    cgroup::{self, Cgroup},
    environment::{is_fit, is_locked_down, skip},
    netns::Netns,
    plain::{client_of, connected, expect_counts},
    tracer::Tracer,
    watch::Watch,
    whole::Whole,
};

/// Where nobody is; the programs lead away from there.
const SERVICE_V4: &str = "10.96.0.1:80";
const SERVICE_V6: &str = "[2001:db8::60]:81";
const SERVICE_MAPPED: &str = "[::ffff:10.96.0.1]:82";

/// A program that leads every connect() over IPv4 to 127.0.0.1.
fn to_loopback_v4(port: u16) -> Vec<u64> {
    let mut program = Vec::new();
    program.extend(cgroup::store(4, u32::from_ne_bytes([127, 0, 0, 1])));
    program.extend(cgroup::store(24, u32::from(port.to_be())));
    program.extend([cgroup::answer(1), cgroup::EXIT]);
    program
}

/// A program that leads every connect() over IPv6 to ::1.
fn to_loopback_v6(port: u16) -> Vec<u64> {
    let mut program = Vec::new();
    for (word, value) in [0, 0, 0, 1_u32.to_be()].into_iter().enumerate() {
        program.extend(cgroup::store(8 + 4 * word as u16, value));
    }
    program.extend(cgroup::store(24, u32::from(port.to_be())));
    program.extend([cgroup::answer(1), cgroup::EXIT]);
    program
}

#[test]
fn a_process_that_is_led_elsewhere() {
    let Some(to) = cgroup::enter("hs-led") else { return };
    let to: SocketAddr = to.parse().expect("an address");
    drop(TcpStream::connect(to).expect("a program leads to where somebody listens"));
}

/// Asks for what connect() was given.
#[track_caller]
fn asked<'a>(whole: Whole<'a>, to: &str) -> Whole<'a> {
    let to: SocketAddr = to.parse().expect("an address");
    whole
        .text("asked.address", &to.ip().to_canonical().to_string())
        .number("asked.port", u64::from(to.port()))
}

#[test]
fn a_connect_that_a_program_at_the_cgroup_leads_elsewhere_says_what_was_asked_for() {
    const NAME: &str = "a_connect_that_a_program_at_the_cgroup_leads_elsewhere_says_what_was_asked_for";
    if !is_fit(NAME) {
        return;
    }
    let netns = Netns::new("w");
    let listener = netns.on_thread("hs-listen", || TcpListener::bind("[::]:0").expect("a port is free"));
    let port = listener.local_addr().expect("it is bound").port();
    let leads = [to_loopback_v4(port), to_loopback_v6(port)];
    let cgroup = match Cgroup::new(&[
        (cgroup::BPF_CGROUP_INET4_CONNECT, &leads[0]),
        (cgroup::BPF_CGROUP_INET6_CONNECT, &leads[1]),
    ]) {
        Ok(cgroup) => cgroup,
        Err(problem) => return skip(NAME, &problem),
    };
    let (already_v4, already_v6) = (format!("127.0.0.1:{port}"), format!("[::1]:{port}"));
    let watch = Watch::begin();
    // What is led to where it asked for has nothing to tell.
    for to in [SERVICE_V4, already_v4.as_str(), SERVICE_V6, already_v6.as_str(), SERVICE_MAPPED] {
        let pid = cgroup.run(&netns, "rewritten::a_process_that_is_led_elsewhere", to);
        let client = watch.wait_for("the record of a client that was led elsewhere", |record| {
            record.is("client", port) && record.number("process.pid") == Some(pid)
        });
        let is_v4 = to.parse::<SocketAddr>().expect("an address").is_ipv4();
        let loopback = if is_v4 { "127.0.0.1" } else { "::1" };
        // Under lockdown a sockaddr can be read as far as its type says: an IPv4 address.
        let is_told = !to.contains(&format!(":{port}")) && (is_v4 || !is_locked_down());
        connected(&client, &netns, (loopback, loopback, port))
            .process(pid, "hs-led")
            .called_and_returned()
            .also(is_told, |whole| asked(whole, to))
            .flags(&[])
            .nothing_else();
    }
    // Nobody accepted them: that is told when their listener closes.
    drop(listener);
    expect_counts(&watch.end(), &[(&netns, 10)]);
}

#[test]
fn a_filter_goes_by_where_tcp_connected_and_not_by_what_was_asked_for() {
    const NAME: &str = "a_filter_goes_by_where_tcp_connected_and_not_by_what_was_asked_for";
    if !is_fit(NAME) {
        return;
    }
    let netns = Netns::new("w");
    let listener = netns.on_thread("hs-listen", || TcpListener::bind("127.0.0.1:0").expect("a port is free"));
    let port = listener.local_addr().expect("it is bound").port();
    let leads = to_loopback_v4(port);
    let cgroup = match Cgroup::new(&[(cgroup::BPF_CGROUP_INET4_CONNECT, &leads)]) {
        Ok(cgroup) => cgroup,
        Err(problem) => return skip(NAME, &problem),
    };
    let mut told = Vec::new();
    for remote in ["127.0.0.1", "10.96.0.1"] {
        let tracer = Tracer::start(&["--role", "client", "--remote", remote]);
        cgroup.run(&netns, "rewritten::a_process_that_is_led_elsewhere", SERVICE_V4);
        told.push(tracer.stop().iter().filter(|record| record.is("client", port)).count());
    }
    assert_eq!(told, [1, 0], "the end that TCP connected to is asked for");
}

#[test]
fn a_connect_to_an_unspecified_address_says_so_beside_the_loopback_that_it_reached() {
    const NAME: &str = "a_connect_to_an_unspecified_address_says_so_beside_the_loopback_that_it_reached";
    if !is_fit(NAME) {
        return;
    }
    let netns = Netns::new("w");
    let watch = Watch::begin();
    let port = netns.on_thread("hs-client", || {
        let listener = TcpListener::bind("[::]:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        for to in [format!("0.0.0.0:{port}"), format!("[::]:{port}")] {
            drop(TcpStream::connect(to.parse::<SocketAddr>().expect("an address")).expect("it listens"));
        }
        port
    });
    for (to, loopback) in [(format!("0.0.0.0:{port}"), "127.0.0.1"), (format!("[::]:{port}"), "::1")] {
        let client = watch.wait_for("the client's record", |record| {
            record.is("client", port) && record.text("remote.address") == Some(loopback)
        });
        client_of(&client, &netns, (loopback, loopback, port), "hs-client")
            .also(!is_locked_down(), |whole| asked(whole, &to))
            .flags(&[])
            .nothing_else();
    }
    expect_counts(&watch.end(), &[(&netns, 4)]);
}
