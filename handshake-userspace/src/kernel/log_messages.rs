//! The kernel side's own debug messages (aya-log), carried into the daemon's log.
//!
//! Off by default, and then free: the level is a constant of the programs, so the verifier removes every
//! statement. `RUST_LOG=handshake_ebpf=debug` switches them on. What a newcomer would get wrong: these are for
//! whoever works on the programs; nothing that a user needs to know travels this way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aya::Ebpf;
use aya_log::EbpfLogger;

/// How the kernel side's messages are named in the daemon's log.
const TARGET: &str = "handshake_ebpf";
/// How often messages are fetched: a person reads them.
const FETCH_EVERY: Duration = Duration::from_millis(100);

/// The level to set in the programs before they are loaded: 0 removes all statements.
pub fn level() -> u8 {
    if log::log_enabled!(target: TARGET, log::Level::Debug) { log::Level::Debug as u8 } else { 0 }
}

/// Fetches messages until it is dropped.
pub struct MessagePump {
    stop: Arc<AtomicBool>,
}

impl MessagePump {
    /// Starts to fetch, if messages are on and the object can send any. Needs a tokio runtime.
    pub fn start(ebpf: &mut Ebpf) -> Option<Self> {
        if level() == 0 {
            return None;
        }
        let mut logger = EbpfLogger::init(ebpf)
            .inspect_err(|error| log::warn!("the kernel side's messages are not shown: {error}"))
            .ok()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        tokio::spawn(async move {
            let mut timer = tokio::time::interval(FETCH_EVERY);
            while !stopped.load(Ordering::Relaxed) {
                timer.tick().await;
                logger.flush();
            }
        });
        Some(MessagePump { stop })
    }
}

impl Drop for MessagePump {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
