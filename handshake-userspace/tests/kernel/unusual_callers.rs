//! Sockets that no system call tracepoint sees: of io_uring, of 32-bit programs, of the kernel itself.
//!
//! What a reader would get wrong: these are handshakes like any other on the wire, so what the wire tells is
//! always there. Only who accepted, and when a call returned, can be unknown, and is absent then.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, RawFd},
};

use io_uring::{IoUring, opcode, squeue::Flags, types::Fd};

use super::{
    environment::{attach, has_probes, is_fit, names_no_drop_reasons, skip},
    netns::{CLIENT_V4, Netns, Pair, SERVER_V4},
    plain::{self, Ends, expect_counts, server_of},
    record::Record,
    traffic::{loopback_listener, tcp_socket},
    watch::Watch,
    whole::{AT_ONCE, expect_one_handshake},
};

/// `struct sockaddr_in`.
pub(super) fn socket_address(to: SocketAddr) -> libc::sockaddr_in {
    let SocketAddr::V4(to) = to else { panic!("the scenarios are IPv4") };
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*to.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

/// A ring; `None` where that is forbidden, which is said.
pub(super) fn ring(test: &str) -> Option<IoUring> {
    IoUring::new(4)
        .inspect_err(|error| {
            skip(test, &format!("no io_uring here: {error} (CONFIG_IO_URING, kernel.io_uring_disabled)"));
        })
        .ok()
}

/// Submits one operation and waits for its result.
pub(super) fn complete(ring: &mut IoUring, entry: &io_uring::squeue::Entry) -> i32 {
    // SAFETY: what the entry points to outlives this function, which waits for the result.
    unsafe { ring.submission().push(entry).expect("the queue is empty") };
    ring.submit_and_wait(1).expect("it is submitted");
    ring.completion().next().expect("one was waited for").result()
}

fn connect_by(ring: &mut IoUring, socket: RawFd, to: SocketAddr, flags: Flags) -> i32 {
    let address = socket_address(to);
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    complete(
        ring,
        &opcode::Connect::new(Fd(socket), (&raw const address).cast(), length).build().flags(flags),
    )
}

pub(super) fn accept_by(ring: &mut IoUring, listener: &TcpListener, flags: Flags) -> i32 {
    let null = std::ptr::null_mut();
    complete(ring, &opcode::Accept::new(Fd(listener.as_raw_fd()), null, null.cast()).build().flags(flags))
}

/// What every client's record here has, whoever called; `waits` unless the call that the kernel made did not.
#[track_caller]
pub(super) fn expect_client(client: &Record, netns: &Netns, ends: Ends, caller: (u64, &str), waits: bool) {
    let whole =
        plain::connected(client, netns, ends).process(caller.0, caller.1).within("phases.local_ns", AT_ONCE);
    if attach() != "fentry" {
        // Only there the return of a call that is no system call is seen.
        whole.flags(&[]).nothing_else();
    } else if !waits && client.has_flag("non_blocking") {
        // It connects without waiting; over veth the answer may be there before that call returns.
        whole.flags(&["non_blocking"]).nothing_else();
    } else {
        whole.within("phases.wake_ns", AT_ONCE).flags(&[]).nothing_else();
    }
}

/// What every server's record here has, though nobody may know who accepted.
#[track_caller]
pub(super) fn expect_server(server: &Record, netns: &Netns, ends: Ends, acceptor: (u64, &str)) {
    server_of(server, "established", netns, ends)
        .queued(1..=1, 1..=4_096)
        .also(has_probes(), |whole| whole.process(acceptor.0, acceptor.1).within("phases.accept_ns", AT_ONCE))
        .flags(&[])
        .nothing_else();
}

/// A thread of this process.
pub(super) fn own(thread: &str) -> (u64, &str) {
    (u64::from(std::process::id()), thread)
}

/// Connects and accepts through rings of two threads; the acceptor waits first. Gives both records, the namespaces and
/// the listening port.
fn through_rings(name: &str, flags: Flags) -> Option<(Record, Record, Pair, u16)> {
    let (mut acceptor, mut connector) = (ring(name)?, ring(name)?);
    let pair = Pair::new();
    let watch = Watch::begin();
    let (listener, to) = pair.server.on_thread("hs-listen", || {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        (listener, format!("{SERVER_V4}:{port}").parse::<SocketAddr>().expect("an address"))
    });
    let streams = std::thread::scope(|scope| {
        let accepted = scope
            .spawn(|| pair.server.on_thread("hs-ring-server", || accept_by(&mut acceptor, &listener, flags)));
        let client = pair.client.on_thread("hs-ring-client", || {
            let socket = tcp_socket();
            let result = connect_by(&mut connector, socket.as_raw_fd(), to, flags);
            assert_eq!(result, 0, "{}", std::io::Error::from_raw_os_error(-result));
            TcpStream::from(socket)
        });
        let accepted = accepted.join().expect("the acceptor does not panic");
        assert!(accepted >= 0, "{}", std::io::Error::from_raw_os_error(-accepted));
        // SAFETY: the kernel has just made this descriptor for us.
        (client, unsafe { TcpStream::from_raw_fd(accepted) })
    });
    let client = watch.wait_for_end("client", to.port());
    let server = watch.wait_for_end("server", to.port());
    drop(streams);
    expect_one_handshake(&client, &server);
    expect_counts(&watch.end(), &[(&pair.client, 1), (&pair.server, 1)]);
    Some((client, server, pair, to.port()))
}

#[test]
fn connect_and_accept_through_io_uring_are_the_submitting_threads() {
    const NAME: &str = "connect_and_accept_through_io_uring_are_the_submitting_threads";
    if !is_fit(NAME) {
        return;
    }
    let Some((client, server, pair, port)) = through_rings(NAME, Flags::empty()) else { return };
    // io_uring calls connect() without waiting, and again when the socket is ready.
    expect_client(&client, &pair.client, (CLIENT_V4, SERVER_V4, port), own("hs-ring-client"), false);
    expect_server(&server, &pair.server, (SERVER_V4, CLIENT_V4, port), own("hs-ring-server"));
}

#[test]
fn connect_and_accept_by_workers_of_io_uring_are_the_process() {
    const NAME: &str = "connect_and_accept_by_workers_of_io_uring_are_the_process";
    if !is_fit(NAME) {
        return;
    }
    let Some((client, server, pair, port)) = through_rings(NAME, Flags::ASYNC) else { return };
    let ends = [(CLIENT_V4, SERVER_V4, port), (SERVER_V4, CLIENT_V4, port)];
    expect_client(&client, &pair.client, ends[0], worker(&client, None), true);
    // Some kernels wait for a connection without a worker, and accept on the submitting thread.
    let acceptor = if has_probes() { worker(&server, Some("hs-ring-server")) } else { own("") };
    expect_server(&server, &pair.server, ends[1], acceptor);
}

/// A worker of io_uring, or this thread.
#[track_caller]
fn worker<'a>(record: &'a Record, or_thread: Option<&str>) -> (u64, &'a str) {
    let comm = record.text("process.comm").unwrap_or_default();
    let is_worker_of_nobody = names_no_drop_reasons() && comm.starts_with("io_wqe_worker");
    assert!(comm.starts_with("iou-wrk-") || is_worker_of_nobody || or_thread == Some(comm), "{record}");
    // Before 5.12 the workers are threads of the kernel, and nothing says for whom they work.
    let pid = if is_worker_of_nobody { record.number("process.pid") } else { None };
    (pid.unwrap_or(u64::from(std::process::id())), comm)
}

/// System calls as a 32-bit program makes them: numbers, addresses and all.
#[cfg(target_arch = "x86_64")]
mod ia32 {
    use std::{arch::asm, process::Command};

    pub const GETPID: u32 = 20;
    pub const SOCKET: u32 = 359;
    pub const CONNECT: u32 = 362;
    pub const ACCEPT4: u32 = 364;
    const ASKED: &str = "HANDSHAKE_TEST_IA32";

    /// One system call through interrupt 0x80, which is the 32-bit entry whatever the program is.
    pub fn call(number: u32, arguments: [u32; 4]) -> i32 {
        let [first, second, third, fourth] = arguments.map(u64::from);
        let result: u64;
        // SAFETY: the caller passes what the kernel expects; rbx, which the compiler keeps for itself, is
        // restored, and what the entry may clear is named.
        unsafe {
            asm!(
                "xchg rbx, {first}",
                "int 0x80",
                "xchg rbx, {first}",
                first = inout(reg) first => _,
                inlateout("rax") u64::from(number) => result,
                in("rcx") second,
                in("rdx") third,
                in("rsi") fourth,
                lateout("r8") _,
                lateout("r9") _,
                lateout("r10") _,
                lateout("r11") _,
            );
        }
        result as i32
    }

    /// Whether the kernel takes such calls: a process that makes one where it doesn't is killed.
    pub fn is_possible() -> bool {
        Command::new(std::env::current_exe().expect("this binary has a path"))
            .args(["--exact", "unusual_callers::ia32::asks_for_its_number", "--nocapture"])
            .env(ASKED, "1")
            .output()
            .expect("this binary can be run again")
            .status
            .success()
    }

    /// Room for an address that 32 bits can name.
    pub fn low_page() -> *mut u8 {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        page.cast()
    }

    #[test]
    fn asks_for_its_number() {
        if std::env::var_os(ASKED).is_some() {
            assert_eq!(call(GETPID, [0; 4]), i32::try_from(std::process::id()).expect("it is small"));
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_32_bit_program_is_seen_though_no_system_call_tracepoint_sees_it() {
    const NAME: &str = "a_32_bit_program_is_seen_though_no_system_call_tracepoint_sees_it";
    if !is_fit(NAME) {
        return;
    }
    if !ia32::is_possible() {
        skip(NAME, "this kernel takes no 32-bit system calls (CONFIG_IA32_EMULATION, ia32_emulation=)");
        return;
    }
    let netns = Netns::new("n");
    let watch = Watch::begin();
    let page = ia32::low_page();
    let address = u32::try_from(page as usize).expect("MAP_32BIT");
    let (to, streams) = netns.on_thread("hs-ia32", || {
        let (listener, to) = loopback_listener();
        let size = size_of::<libc::sockaddr_in>() as u32;
        // SAFETY: a page of our own, aligned and large enough.
        unsafe { (address as *mut libc::sockaddr_in).write(socket_address(to)) };
        let checked = |result: i32| {
            assert!(result >= 0, "{}", std::io::Error::from_raw_os_error(-result));
            result
        };
        let client =
            checked(ia32::call(ia32::SOCKET, [libc::AF_INET as u32, libc::SOCK_STREAM as u32, 0, 0]));
        checked(ia32::call(ia32::CONNECT, [client as u32, address, size, 0]));
        let accepted = checked(ia32::call(ia32::ACCEPT4, [listener.as_raw_fd() as u32, 0, 0, 0]));
        // SAFETY: the kernel has just made these descriptors for us.
        (to, [client, accepted].map(|descriptor| unsafe { TcpStream::from_raw_fd(descriptor) }))
    });
    let client = watch.wait_for_end("client", to.port());
    let server = watch.wait_for_end("server", to.port());
    drop(streams);
    let ends = ("127.0.0.1", "127.0.0.1", to.port());
    expect_client(&client, &netns, ends, own("hs-ia32"), true);
    expect_server(&server, &netns, ends, own("hs-ia32"));
    expect_one_handshake(&client, &server);
    expect_counts(&watch.end(), &[(&netns, 2)]);
}

#[test]
fn a_connect_that_the_kernel_makes_for_a_mount_is_the_mounting_threads() {
    const NAME: &str = "a_connect_that_the_kernel_makes_for_a_mount_is_the_mounting_threads";
    if !is_fit(NAME) {
        return;
    }
    let netns = Netns::new("k");
    let watch = Watch::begin();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let at =
        std::ffi::CString::new(folder.path().to_str().expect("the path is text")).expect("no zero in it");
    let (listener, to) = netns.on_thread("hs-listen", loopback_listener);
    let options =
        std::ffi::CString::new(format!("trans=tcp,port={},version=9p2000.L", to.port())).expect("text");
    let errno = std::thread::scope(|scope| {
        // The file server that hangs up ends the mount.
        let (netns, listener) = (&netns, &listener);
        let hang_up = move || {
            listener.set_nonblocking(true).expect("it can be set");
            let deadline = std::time::Instant::now() + super::environment::patience();
            while listener.accept().is_err() && std::time::Instant::now() < deadline {
                std::thread::yield_now();
            }
        };
        scope.spawn(move || netns.on_thread("hs-accept", hang_up));
        netns.on_thread("hs-mounter", || {
            // SAFETY: four texts that end in zero.
            let result = unsafe {
                libc::mount(c"127.0.0.1".as_ptr(), at.as_ptr(), c"9p".as_ptr(), 0, options.as_ptr().cast())
            };
            assert_ne!(result, 0, "nobody speaks 9P");
            let errno = std::io::Error::last_os_error().raw_os_error();
            if errno == Some(libc::ENODEV) {
                // Nobody will connect; the waiting thread above needs somebody.
                drop(TcpStream::connect(to).expect("it listens"));
            }
            errno
        })
    });
    if errno == Some(libc::ENODEV) {
        skip(NAME, "this kernel has no 9p file system (module 9p)");
        watch.end();
        return;
    }
    let client = watch.wait_for_end("client", to.port());
    let server = watch.wait_for_end("server", to.port());
    let ends = ("127.0.0.1", "127.0.0.1", to.port());
    expect_client(&client, &netns, ends, own("hs-mounter"), true);
    plain::expect_server(&server, &netns, ends, "hs-accept");
    expect_one_handshake(&client, &server);
    expect_counts(&watch.end(), &[(&netns, 2)]);
}
