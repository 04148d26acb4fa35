//! Signals: the first SIGINT or SIGTERM ends in good order, a second SIGINT at once, SIGHUP reopens files.
//!
//! SIGHUP means two things: a terminal that closed, or a log rotation that moved our file. Which one is told
//! by whether there is a terminal. What a newcomer would get wrong: under `nohup` SIGHUP is ignored when we
//! start, and must stay so; installing a handler would undo what the user asked for.

use std::{
    fs::File,
    future, io,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
};

/// Exit code of a process that SIGINT ended, as shells count it.
const INTERRUPTED: i32 = 130;

/// Two signals within this time are one wish: timeout(1) sends SIGINT to its child and again to its group, and a
/// summary must not be lost to that. Nobody presses Ctrl-C twice as fast.
const SAME_PRESS: Duration = Duration::from_millis(150);

/// Installs the handlers. Gives what ends the pipeline, and what reopens its files; `has_file` says whether
/// there is any file to reopen. Call it in the runtime.
pub fn install(has_file: bool) -> io::Result<(impl Future<Output = ()> + Send, mpsc::Receiver<()>)> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
    let reopens = has_file && File::open("/dev/tty").is_err();
    let (stop, stopped) = oneshot::channel();
    // One request in waiting is enough: reopening twice is reopening once.
    let (reopen, reopened) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut stop = Some(stop);
        let mut interrupted: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {
                    match interrupted {
                        Some(first) if first.elapsed() >= SAME_PRESS => std::process::exit(INTERRUPTED),
                        Some(_) => {}
                        None => interrupted = Some(Instant::now()),
                    }
                    send_stop(&mut stop);
                }
                _ = terminate.recv() => send_stop(&mut stop),
                () = received(&mut hangup) => {
                    if reopens {
                        let _ = reopen.try_send(());
                    } else {
                        send_stop(&mut stop);
                    }
                }
            }
        }
    });
    let stopped = async move {
        if stopped.await.is_err() {
            // The task that waits for signals ended with the runtime; that is no wish to stop.
            future::pending::<()>().await;
        }
    };
    Ok((stopped, reopened))
}

fn send_stop(stop: &mut Option<oneshot::Sender<()>>) {
    if let Some(stop) = stop.take() {
        // The pipeline may have ended by itself.
        let _ = stop.send(());
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => future::pending().await,
    }
}

/// Bit 0 of SigIgn is signal 1.
fn hangup_is_ignored() -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 != 0)
}
