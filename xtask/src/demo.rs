//! `cargo xtask demo`: a handful of good, slow, refused and timed-out connections, so that a tail in another
//! terminal has something to show.
//!
//! Everything stays on loopback and in two network namespaces of its own, is made of plain sockets, and is over
//! in less than fifteen seconds. Each line says what the tail should show for it.
//!
//! What one would get wrong: a full accept queue doesn't refuse. Linux drops the SYN, so the client retransmits
//! and times out; that is how a time-out is made here without leaving the machine.

use crate::{command, demo_network};
use anyhow::{Context as _, Result};
use std::{
    io::{self, Read as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// How long the slow server lets a connection wait in its accept queue.
const ACCEPT_DELAY: Duration = Duration::from_millis(300);
/// How long the impatient client waits.
const CANCEL_AFTER: Duration = Duration::from_millis(200);
/// After this long without an answer the kernel gives up, at the first retransmission timer that sees it.
const USER_TIMEOUT_MS: u32 = 2500;

/// The demo takes none; the hidden ones are for the parts that it starts in namespaces.
#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long, hide = true)]
    listen: Option<SocketAddr>,
    #[arg(long, hide = true)]
    connect: Option<SocketAddr>,
    #[arg(long, hide = true, default_value = "")]
    expect: String,
}

/// Runs the command.
pub fn main(arguments: &Arguments) -> Result<()> {
    if let Some(address) = arguments.listen {
        return serve_until_stdin_closes(address);
    }
    if let Some(address) = arguments.connect {
        connect(address, &arguments.expect);
        return Ok(());
    }
    println!("Watch these in another terminal with: cargo xtask run");
    good(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), "IPv4").context("loopback has no IPv4")?;
    if let Err(error) = good(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), "IPv6") {
        println!("left out: IPv6 on loopback ({error:#})");
    }
    slow_accept()?;
    refused()?;
    // Both wait for a kernel timer, so they wait together.
    thread::scope(|scope| {
        let namespaces = scope.spawn(|| {
            if command::is_root() { demo_network::connections() } else { Err(anyhow::anyhow!("needs root")) }
        });
        let queue = full_accept_queue();
        let namespaces = namespaces.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the thread died")));
        if let Err(error) = namespaces {
            println!("left out: a slow network in namespaces of its own ({error:#})");
        }
        queue
    })
}

fn good(address: SocketAddr, family: &str) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    let server = listener.local_addr()?;
    connect(server, &format!("established, a client and a server record, well below 1 ms ({family})"));
    listener.accept()?;
    Ok(())
}

fn slow_accept() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = listener.local_addr()?;
    let milliseconds = ACCEPT_DELAY.as_millis();
    connect(
        server,
        &format!(
            "established; the server's record has {milliseconds} ms in its accept phase, its latency not"
        ),
    );
    thread::sleep(ACCEPT_DELAY);
    listener.accept()?;
    Ok(())
}

fn refused() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = listener.local_addr()?;
    drop(listener);
    connect(server, "refused, answered by a RST");
    Ok(())
}

fn full_accept_queue() -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let server = listener.local_addr()?;
    // A second listen() shortens the queue; zero still lets one connection in.
    rustix::net::listen(&listener, 0)?;
    connect(server, "established; a row of its own says later that nobody accepted it");
    let begun = Instant::now();
    let answer = TcpStream::connect_timeout(&server, CANCEL_AFTER);
    print_line(
        server,
        begun.elapsed(),
        &answer.map(drop),
        "cancelled: the client closed before an answer came",
    );
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        Some(rustix::net::ipproto::TCP),
    )?;
    rustix::net::sockopt::set_tcp_user_timeout(&socket, USER_TIMEOUT_MS)?;
    let begun = Instant::now();
    let answer = rustix::net::connect(&socket, &server).map_err(io::Error::from);
    print_line(
        server,
        begun.elapsed(),
        &answer,
        "timed_out after retransmitting its SYN: the accept queue of its listener is full",
    );
    Ok(())
}

fn connect(address: SocketAddr, expect: &str) {
    let begun = Instant::now();
    let answer = TcpStream::connect(address);
    print_line(address, begun.elapsed(), &answer.map(drop), expect);
}

fn print_line(address: SocketAddr, took: Duration, answer: &io::Result<()>, expect: &str) {
    let milliseconds = took.as_secs_f64() * 1000.0;
    let said = match answer {
        Ok(()) => "connected".to_owned(),
        Err(error) => error.kind().to_string(),
    };
    println!("{address:<22} {milliseconds:>8.1} ms  {said:<20} expect: {expect}");
}

/// The server that the demo starts in a namespace.
fn serve_until_stdin_closes(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    println!("listening");
    thread::spawn(move || {
        // Each connection is closed as soon as it is accepted; the handshake is all that is shown.
        for accepted in listener.incoming() {
            drop(accepted);
        }
    });
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
