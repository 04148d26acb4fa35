//! tcpdump on a namespace's link, from before the first segment until after the last.
//!
//! What a reader would get wrong: tcpdump ends at SIGINT without reading what the kernel still holds for it. So
//! it is ended only when a mark that was sent last is in its file; and it says itself whether it missed anything.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::fd::{AsFd as _, FromRawFd as _, IntoRawFd as _},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{super::netns::Netns, network::LINK, workload::END_PORT};

/// A running capture.
pub struct Capture {
    child: Child,
    said: BufReader<ChildStderr>,
    file: PathBuf,
}

impl Capture {
    /// Captures TCP, and the mark, on the link of a namespace; waits until it does.
    pub fn start(netns: &Netns, file: &Path) -> Self {
        let mut child = Command::new("ip")
            .args([
                "netns",
                "exec",
                netns.name(),
                "tcpdump",
                "-i",
                LINK,
                "-n",
                "-s",
                "128",
                "-U",
                "-Z",
                "root",
            ])
            // 32 MiB of room in the kernel, or an emulated reader would be too slow for it.
            .args(["--time-stamp-precision=nano", "-B", "32768", "-w"])
            .arg(file)
            .arg(format!("tcp or udp dst port {END_PORT}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump can be started");
        let mut said = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let (mut line, mut heard) = (String::new(), String::new());
        while !line.contains("listening on") {
            line.clear();
            let read = said.read_line(&mut line).expect("tcpdump writes text");
            heard.push_str(&line);
            assert!(read > 0, "tcpdump ended before it began: {heard}");
        }
        Capture { child, said, file: file.to_owned() }
    }

    /// Whether these bytes were captured.
    pub fn holds(&self, bytes: &[u8]) -> bool {
        let captured = std::fs::read(&self.file).expect("the capture can be read");
        captured.windows(bytes.len()).any(|window| window == bytes)
    }

    /// Ends it; it must have seen everything.
    pub fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("tcpdump runs");
        let mut said = String::new();
        self.said.read_to_string(&mut said).expect("tcpdump says how it went");
        self.child.wait().expect("tcpdump can be waited for");
        assert!(said.contains("\n0 packets dropped by kernel"), "the capture has holes: {said}");
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a line that a program can read, past libtest's capture.
pub fn say(line: &str) {
    let out = rustix::io::dup(std::io::stdout().as_fd()).expect("standard output can be duplicated");
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let mut out = unsafe { std::fs::File::from_raw_fd(out.into_raw_fd()) };
    write!(out, "\n{line}\n").expect("standard output can be written");
}
