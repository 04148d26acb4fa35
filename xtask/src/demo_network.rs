//! The part of the demo with a network: two namespaces, a link between them, twenty milliseconds each way.
//!
//! Nothing of it is visible outside: the link is made inside the namespaces, the addresses are those reserved for
//! documentation, and the sysctl is per namespace.
//!
//! What one would get wrong: an address that nobody has doesn't time out on a local link. ARP fails first and the
//! outcome is `host_unreachable`; a fixed neighbour entry makes the SYN leave, and nobody answers it.

use crate::command;
use anyhow::{Context as _, Result, bail};
use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

const PREFIX: &str = "handshake-demo-";
const SERVER: &str = "192.0.2.2:7000";
const CLOSED: &str = "192.0.2.2:7001";
const SILENT: &str = "192.0.2.9:7000";

/// Makes them, connects, and removes them.
pub fn connections() -> Result<()> {
    let ip = command::find("ip").context("there is no ip program; package iproute2")?;
    remove_leftovers(&ip);
    let client = Namespace::new(&ip, "client")?;
    let server = Namespace::new(&ip, "server")?;
    let ip = |words: &str| command::output_of(Command::new(&ip).args(words.split_whitespace()));
    ip(&format!("link add name hs0 netns {} type veth peer name hs1 netns {}", client.name, server.name))?;
    for (namespace, link, address) in [(&client, "hs0", "192.0.2.1"), (&server, "hs1", "192.0.2.2")] {
        let name = &namespace.name;
        ip(&format!("-n {name} addr add {address}/24 dev {link}"))?;
        ip(&format!("-n {name} link set {link} up"))?;
    }
    ip(&format!("-n {} neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev hs0 nud permanent", client.name))?;
    let delayed = [(&client, "hs0"), (&server, "hs1")].iter().all(|(namespace, link)| {
        let words = format!("tc qdisc add dev {link} root netem delay 20ms");
        command::output_of(&mut namespace.command(&words)).is_ok()
    });
    if !delayed {
        println!("left out: 20 ms of delay each way (the kernel has no sch_netem, or there is no tc)");
    }
    // One retransmission: the kernel gives up after three seconds instead of two minutes.
    command::output_of(client.command("sh -c").arg("echo 1 >/proc/sys/net/ipv4/tcp_syn_retries"))?;

    let listener = Listener::start(&server)?;
    let latency = if delayed { "established after 40 ms: 20 ms each way" } else { "established" };
    connect(&client, SERVER, latency)?;
    connect(&client, CLOSED, "refused, by a RST from the other end")?;
    connect(&client, SILENT, "timed_out after retransmitting its SYN: nobody answers")?;
    drop(listener);
    Ok(())
}

fn connect(namespace: &Namespace, address: &str, expect: &str) -> Result<()> {
    let mut demo = namespace.command("");
    demo.arg(env::current_exe()?).args(["demo", "--connect", address, "--expect", expect]);
    command::run(&mut demo)
}

/// A network namespace that goes away with this value.
struct Namespace {
    ip: std::path::PathBuf,
    name: String,
}

impl Namespace {
    fn new(ip: &Path, role: &str) -> Result<Self> {
        let name = format!("{PREFIX}{}-{role}", std::process::id());
        command::output_of(Command::new(ip).args(["netns", "add", &name]))?;
        let namespace = Self { ip: ip.to_owned(), name };
        command::output_of(Command::new(ip).args(["-n", &namespace.name, "link", "set", "lo", "up"]))?;
        Ok(namespace)
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(&self.ip);
        command.args(["netns", "exec", &self.name]).args(words.split_whitespace());
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new(&self.ip).args(["netns", "del", &self.name]).status();
    }
}

/// A demo that was interrupted could not clean up; the next one does.
fn remove_leftovers(ip: &Path) {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else {
            continue;
        };
        if !Path::new("/proc").join(process).exists() {
            let _ = Command::new(ip).args(["netns", "del", &name]).status();
        }
    }
}

/// The server; it ends when its standard input is closed.
struct Listener(Child);

impl Listener {
    fn start(namespace: &Namespace) -> Result<Self> {
        let mut demo = namespace.command("");
        demo.arg(env::current_exe()?).args(["demo", "--listen", SERVER]);
        let child =
            demo.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the server")?;
        let mut listener = Self(child);
        let mut line = String::new();
        if let Some(output) = listener.0.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        if line.trim() != "listening" {
            bail!("the server did not start");
        }
        Ok(listener)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
