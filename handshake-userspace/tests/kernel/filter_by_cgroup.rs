//! The filter by cgroup: who connects, who accepts and who listens, in a cgroup and in those below it.
//!
//! A thread cannot change its cgroup alone, so processes of their own act here, on orders. What a reader would get wrong:
//! the cgroup beside the wanted one has its name with a letter more, so text that merely begins alike is not enough.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use super::{
    environment::{attach, has_probes, is_fit, patience, program, skip},
    neighbours::cgroup_root,
    netns::Netns,
    record::Record,
    tracer::Tracer,
};

const ORDER: &str = "HANDSHAKE_TEST_IN_CGROUP";
/// Begins each answer; libtest writes lines of its own.
const ANSWER: &str = "answer: ";

/// Folders of the hierarchy, removed in the end.
struct Folders(Vec<PathBuf>);

impl Folders {
    /// The wanted cgroup, one below it, one beside it, and one in which nobody is.
    fn make() -> Result<Self, String> {
        let wanted = cgroup_root().join(format!("hs-cg-{}", std::process::id()));
        let named = |more: &str| {
            let mut name = wanted.clone().into_os_string();
            name.push(more);
            PathBuf::from(name)
        };
        let folders = Folders(vec![wanted.clone(), wanted.join("inner"), named("x"), named("-empty")]);
        for folder in &folders.0 {
            std::fs::create_dir(folder).map_err(|error| format!("no cgroup can be made: {error}"))?;
        }
        Ok(folders)
    }

    fn wanted(&self) -> &Path {
        &self.0[0]
    }

    fn inner(&self) -> &Path {
        &self.0[1]
    }

    fn beside(&self) -> &Path {
        &self.0[2]
    }

    fn empty(&self) -> &Path {
        &self.0[3]
    }

    /// As when a service is stopped and started: the same names, other ids.
    fn make_anew(&self) {
        let before = id(self.inner());
        for folder in [self.inner(), self.wanted()] {
            // Who has ended leaves its cgroup a moment later.
            let deadline = Instant::now() + patience();
            while let Err(error) = std::fs::remove_dir(folder) {
                assert!(Instant::now() < deadline, "{}: {error}", folder.display());
                std::thread::yield_now();
            }
        }
        for folder in [self.wanted(), self.inner()] {
            std::fs::create_dir(folder).expect("it could be made before");
        }
        assert_ne!(id(self.inner()), before, "a new cgroup has a new id");
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

fn id(folder: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(folder).expect("the folder is there"))
}

/// A process in a cgroup that does as it is told.
struct Member {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Member {
    fn of(cgroup: &Path, netns: &Netns) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this binary has a path"))
            .args(["--exact", "filter_by_cgroup::a_process_in_a_cgroup", "--nocapture"])
            .env(ORDER, format!("{} {}", cgroup.display(), netns.name()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary can be run again");
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().expect("it is piped"));
        Member { process, orders, answers }
    }

    /// Gives an order, and waits until it was carried out; the answer is a port.
    fn does(&mut self, order: &str) -> u16 {
        writeln!(self.orders.as_mut().expect("it is piped"), "{order}").expect("it listens to orders");
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).expect("it can be read"), 0, "it ended too early");
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.trim().parse().expect("a port");
            }
        }
    }

    fn id(&self) -> u64 {
        u64::from(self.process.id())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It ends when there are no more orders, and then it is in no cgroup.
        drop(self.orders.take());
        let _ = self.process.wait();
    }
}

#[test]
fn a_process_in_a_cgroup() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let (cgroup, netns) = order.split_once(' ').expect("the parent says where");
    std::fs::write(format!("{cgroup}/cgroup.procs"), "0").expect("the cgroup exists");
    let file = std::fs::File::open(format!("/run/netns/{netns}")).expect("the namespace exists");
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&file),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .expect("the namespace can be entered");
    let (mut listeners, mut streams) = (Vec::new(), Vec::new());
    for line in std::io::stdin().lines() {
        let line = line.expect("orders are text");
        let port = match line.split_once(' ') {
            Some(("connect", port)) => {
                let to: SocketAddr = format!("127.0.0.1:{port}").parse().expect("a port");
                streams.push(TcpStream::connect(to).expect("it listens"));
                to.port()
            }
            None if line == "listen" => {
                listeners.push(TcpListener::bind("127.0.0.1:0").expect("loopback is up"));
                listeners[listeners.len() - 1].local_addr().expect("it has an address").port()
            }
            None if line == "accept" => {
                let listener = listeners.last().expect("it listens");
                let (stream, _) = listener.accept().expect("a child is queued");
                streams.push(stream);
                listener.local_addr().expect("it has an address").port()
            }
            _ => panic!("{line} is no order"),
        };
        println!("{ANSWER}{port}");
    }
}

/// One connection that is accepted; gives the port.
fn connection(client: &mut Member, server: &mut Member) -> u16 {
    let port = server.does("listen");
    client.does(&format!("connect {port}"));
    server.does("accept");
    port
}

fn roles(records: &[Record], port: u16) -> Vec<&'static str> {
    let is_there = |role: &&str| records.iter().any(|record| record.is(role, port));
    ["client", "server"].into_iter().filter(is_there).collect()
}

/// Before 5.15 no program may ask for the cgroups above a thread's own. Then the refusal must say so, and the way out.
fn refused_by_this_kernel(wanted: &Path) -> Option<String> {
    let output = Command::new(program())
        .args(["trace", "--json", "--duration", "1ms", "--attach", &attach(), "--cgroup"])
        .arg(wanted)
        .output()
        .expect("the program can be started");
    if output.status.success() {
        return None;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("before 5.15") && said.contains("--pid"), "{said}");
    Some(
        "this kernel's programs cannot ask for the cgroups above a thread's own, and the refusal says so"
            .to_owned(),
    )
}

#[test]
fn a_filter_by_cgroup_keeps_who_connects_and_who_accepts() {
    const NAME: &str = "a_filter_by_cgroup_keeps_who_connects_and_who_accepts";
    if !is_fit(NAME) {
        return;
    }
    let folders = match Folders::make() {
        Ok(folders) => folders,
        Err(problem) => return skip(NAME, &problem),
    };
    if let Some(why) = refused_by_this_kernel(folders.wanted()) {
        return skip(NAME, &why);
    }
    let netns = Netns::new("f");
    let mut beside = Member::of(folders.beside(), &netns);
    let mut other = Member::of(folders.beside(), &netns);
    let mut inner = Member::of(folders.inner(), &netns);
    let mut listens = Member::of(folders.inner(), &netns);
    // Listeners from before: whose they are, /proc says.
    let (before, hidden_before) = (listens.does("listen"), other.does("listen"));
    // As many as there can be, the one that counts last: the verifier must take that too.
    let text = |folder: &'_ Path| folder.to_str().expect("it is text").to_owned();
    let (wanted, empty) = (text(folders.wanted()), text(folders.empty()));
    let all: Vec<&str> =
        [&*empty; 7].into_iter().chain([&*wanted]).flat_map(|folder| ["--cgroup", folder]).collect();
    let tracer = Tracer::start(&all);

    let hidden = connection(&mut beside, &mut other);
    beside.does(&format!("connect {hidden_before}"));
    let from = connection(&mut inner, &mut beside);
    let to = connection(&mut beside, &mut inner);
    let within = connection(&mut inner, &mut listens);
    beside.does(&format!("connect {before}"));

    tracer.wait_for_end("client", from).expect_number("process.pid", inner.id());
    tracer.wait_for_end("server", to).expect_number("process.pid", inner.id());
    tracer.wait_for_end("client", within).expect_number("process.pid", inner.id());
    tracer.wait_for_end("server", within).expect_number("process.pid", listens.id());
    if has_probes() {
        // Nobody accepts; only probes know whose child it is.
        tracer.wait_for_end("server", before).expect_number("process.pid", listens.id());
    }

    drop((inner, listens));
    folders.make_anew();
    let mut anew = Member::of(folders.inner(), &netns);
    // The program looks at the folder now and then, so the first connections may be missed.
    let port = other.does("listen");
    let deadline = Instant::now() + patience();
    while !tracer.records().iter().any(|record| record.is("client", port)) {
        assert!(
            Instant::now() < deadline,
            "who is in the cgroup made anew is not shown: {:?}",
            tracer.records()
        );
        anew.does(&format!("connect {port}"));
        other.does("accept");
    }

    let records = tracer.stop();
    assert_eq!(roles(&records, from), ["client"], "{records:?}");
    assert_eq!(roles(&records, to), ["server"], "{records:?}");
    assert_eq!(roles(&records, within), ["client", "server"], "{records:?}");
    assert_eq!(roles(&records, port), ["client"], "{records:?}");
    for hidden in [hidden, hidden_before] {
        assert!(roles(&records, hidden).is_empty(), "port {hidden} is shown: {records:?}");
    }
    let health = records.last().expect("there is a last record");
    health.expect_text("kernel_counters.not_compared", "filtered").expect_text("canary", "passed");
}
