//! A `handshake` process under test: started, heard by two threads, waited for, asked to end.
//!
//! What is kept of its records is up to who starts it. What a reader would get wrong: a wait that ends in vain
//! panics, and so does an assertion within one. Neither may spoil what was heard for the scenarios that come
//! after, so nobody here cares whether somebody panicked while holding the lock.

use std::{
    io::Read,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::environment::{attach, patience, patience_at_start, program};

/// What is made of the records.
pub trait Records: Default + Send + 'static {
    /// Takes one line of standard output.
    fn take(&mut self, line: &str);

    /// All but the first few, for a wait in vain.
    fn show(&self, first: usize) -> String;
}

/// What was heard so far.
#[derive(Default)]
pub struct Heard<R> {
    pub records: R,
    pub log: Vec<String>,
    /// Of standard output and standard error, how many came to their end.
    ended: usize,
}

type Shared<R> = Arc<(Mutex<Heard<R>>, Condvar)>;

/// See the module.
pub struct Running<R> {
    child: Child,
    heard: Shared<R>,
}

impl<R: Records> Running<R> {
    /// A command with JSON for its output, in the mode that the tests run in; waits until its hooks are attached.
    pub fn start(command: &[&str], arguments: &[&str]) -> Self {
        Self::start_by(Command::spawn, command, arguments)
    }

    /// As `start`, as a child of whoever spawns it.
    pub fn start_by(
        spawn: impl FnOnce(&mut Command) -> std::io::Result<Child>,
        command: &[&str],
        arguments: &[&str],
    ) -> Self {
        let mut prepared = Command::new(program());
        prepared
            .args(command)
            .args(["--json", "--attach", &attach()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(&mut prepared).expect("the program can be started");
        let heard: Shared<R> = Shared::default();
        let out = child.stdout.take().expect("stdout is piped");
        let err = child.stderr.take().expect("stderr is piped");
        listen(out, &heard, |heard, line| heard.records.take(line));
        listen(err, &heard, |heard, line| heard.log.push(line.to_owned()));
        let running = Running { child, heard };
        running.until_in(patience_at_start(), 0, "hooks are attached", |heard| {
            let attached = heard.log.iter().any(|line| line.starts_with("tracing"));
            // One that ended instead has said why.
            assert!(attached || heard.ended < 2, "the program ended at its start: {:#?}", heard.log);
            attached.then_some(())
        });
        running
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What was heard so far; nothing more is while this is held.
    pub fn heard(&self) -> MutexGuard<'_, Heard<R>> {
        lock(&self.heard)
    }

    /// What was heard, for another thread.
    pub fn share(&self) -> Kept<R> {
        Kept(Arc::clone(&self.heard))
    }

    /// Waits until something was heard; the first few records are not shown if that is in vain.
    #[track_caller]
    pub fn until<T>(&self, first: usize, what: &str, done: impl Fn(&Heard<R>) -> Option<T>) -> T {
        self.until_in(patience(), first, what, done)
    }

    #[track_caller]
    fn until_in<T>(
        &self,
        patience: Duration,
        first: usize,
        what: &str,
        done: impl Fn(&Heard<R>) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + patience;
        let mut heard = self.heard();
        loop {
            if let Some(result) = done(&heard) {
                return result;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                left > Duration::ZERO,
                "waited in vain: {what}\nrecords: {}\nlog: {:#?}",
                heard.records.show(first),
                heard.log
            );
            heard = self.heard.1.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the program runs");
    }

    /// Waits until it said its last.
    #[track_caller]
    pub fn until_ended(&self) {
        self.until(0, "the program ends", |heard| (heard.ended == 2).then_some(()));
    }

    /// Asks it to end and waits for that.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::INT);
        self.until_ended();
        self.child.wait().expect("the program can be waited for")
    }
}

/// What was heard, kept by another thread than the one that runs the program.
pub struct Kept<R>(Shared<R>);

impl<R> Kept<R> {
    pub fn heard(&self) -> MutexGuard<'_, Heard<R>> {
        lock(&self.0)
    }
}

impl<R> Drop for Running<R> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock<R>(heard: &Shared<R>) -> MutexGuard<'_, Heard<R>> {
    heard.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes lines as they come, all that one read gave under one lock: a slow reader would make the program drop
/// records.
fn listen<R: Records>(
    mut out: impl Read + Send + 'static,
    heard: &Shared<R>,
    take: impl Fn(&mut Heard<R>, &str) + Send + 'static,
) {
    let heard = Arc::clone(heard);
    std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 20];
        let mut held = 0;
        while let Ok(more @ 1..) = out.read(&mut bytes[held..]) {
            let end = held + more;
            let whole = bytes[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let text = std::str::from_utf8(&bytes[..whole]).expect("what it says is text");
            {
                let mut heard = lock(&heard);
                text.lines().for_each(|line| take(&mut heard, line));
            }
            heard.1.notify_all();
            bytes.copy_within(whole..end, 0);
            held = end - whole;
        }
        lock(&heard).ended += 1;
        heard.1.notify_all();
    });
}
