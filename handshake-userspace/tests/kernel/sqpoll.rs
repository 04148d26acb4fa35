//! io_uring with a polling thread (IORING_SETUP_SQPOLL): nobody calls, a thread of the kernel finds the work.
//!
//! What a reader would get wrong: since 5.12 (and in 5.10.162, which took it over) that thread is one of the process, named
//! iou-sqp- and a number; before that it is a thread of the kernel, and nothing says for whom it works.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _},
};

use io_uring::{IoUring, opcode, types::Fixed};

use super::{
    environment::{has_probes, is_fit, names_no_drop_reasons, skip},
    netns::{CLIENT_V4, Pair, SERVER_V4},
    plain::expect_counts,
    record::Record,
    traffic::tcp_socket,
    unusual_callers::{complete, expect_client, expect_server, own, socket_address},
    watch::Watch,
    whole::expect_one_handshake,
};

/// The polling thread; in an old kernel one that nobody can be named for.
#[track_caller]
fn poller(record: &Record) -> (u64, &str) {
    let comm = record.text("process.comm").unwrap_or_default();
    let own = u64::from(std::process::id());
    let is_kernels = comm.starts_with("io_uring-sq") || comm.starts_with("io_wqe_worker");
    if is_kernels && names_no_drop_reasons() {
        return (record.number("process.pid").unwrap_or(own), comm);
    }
    assert!(comm.starts_with("iou-sqp-") || comm.starts_with("iou-wrk-"), "{record}");
    let tid = record.number("process.tid").expect("it is a thread");
    assert_ne!(tid, own, "{record}");
    (own, comm)
}

#[test]
fn connect_and_accept_by_the_polling_thread_of_io_uring_are_the_process() {
    const NAME: &str = "connect_and_accept_by_the_polling_thread_of_io_uring_are_the_process";
    if !is_fit(NAME) {
        return;
    }
    let ring = || IoUring::builder().setup_sqpoll(5_000).build(4);
    let (mut acceptor, mut connector) = match (ring(), ring()) {
        (Ok(acceptor), Ok(connector)) => (acceptor, connector),
        (Err(error), _) | (_, Err(error)) => {
            return skip(NAME, &format!("no polling io_uring here: {error} (kernel.io_uring_disabled)"));
        }
    };
    let pair = Pair::new();
    let watch = Watch::begin();
    let listener =
        pair.server.on_thread("hs-listen", || TcpListener::bind((SERVER_V4, 0)).expect("a port is free"));
    let to = listener.local_addr().expect("it is bound");
    let socket = pair.client.on_thread("hs-socket", tcp_socket);
    // Before 5.11 a polling thread takes registered files alone.
    acceptor.submitter().register_files(&[listener.as_raw_fd()]).expect("it is open");
    connector.submitter().register_files(&[socket.as_raw_fd()]).expect("it is open");
    let result = |result: i32, what: &str| {
        assert!(result >= 0, "{what}: {}", std::io::Error::from_raw_os_error(-result));
        result
    };
    let accepted = std::thread::scope(|scope| {
        let accepted = scope.spawn(|| {
            let null = std::ptr::null_mut();
            complete(&mut acceptor, &opcode::Accept::new(Fixed(0), null, null.cast()).build())
        });
        let address = socket_address(SocketAddr::new(to.ip(), to.port()));
        let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        let connect = opcode::Connect::new(Fixed(0), (&raw const address).cast(), length).build();
        result(complete(&mut connector, &connect), "connect");
        result(accepted.join().expect("the acceptor does not panic"), "accept")
    });
    // SAFETY: the kernel has just made this descriptor for us.
    let streams = (socket, unsafe { TcpStream::from_raw_fd(accepted) });
    let client = watch.wait_for_end("client", to.port());
    let server = watch.wait_for_end("server", to.port());
    let ends = [(CLIENT_V4, SERVER_V4, to.port()), (SERVER_V4, CLIENT_V4, to.port())];
    expect_client(&client, &pair.client, ends[0], poller(&client), false);
    expect_server(&server, &pair.server, ends[1], if has_probes() { poller(&server) } else { own("") });
    expect_one_handshake(&client, &server);
    drop(streams);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 1)]);
}
