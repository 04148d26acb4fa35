//! Hits that the kernel skipped, because our program ran on that CPU already: read from the kernel, and shown.
//!
//! They are provoked by what makes them in life: in the middle of a program another thread is given the CPU, and
//! runs into the same program. A guest's kernel is told to do that wherever it can. What a reader would get
//! wrong: it is chance all the same, so there is load until the kernel itself, asked through fdinfo, has counted one.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{
    environment::{in_vm, is_fit_for_long, patience, skip},
    netns::{CLIENT_V4, Netns},
    tally::Tally,
    traffic::be_refused,
};

const PREEMPTION: &str = "/sys/kernel/debug/sched/preempt";

/// Threads may lose the CPU anywhere in the kernel while this lives. In a guest only: it is for all of the host.
struct Preemption(Option<String>);

impl Preemption {
    fn everywhere() -> Self {
        let before = std::fs::read_to_string(PREEMPTION).ok().filter(|_| in_vm());
        // The one that is in force stands in parentheses: "none (voluntary) full".
        let before = before
            .and_then(|text| Some(text.split_once('(')?.1.split_once(')')?.0.to_owned()))
            .filter(|_| std::fs::write(PREEMPTION, "full").is_ok());
        Preemption(before)
    }
}

impl Drop for Preemption {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = std::fs::write(PREEMPTION, before);
        }
    }
}

/// Where preemption can't be had, a little load shows that nothing is told that is not so.
const SHORT: Duration = Duration::from_secs(3);

/// The kernel's own count over all programs of a process; `None` where it does not count (before 5.12).
fn kernels_count(pid: u32) -> Option<u64> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("the program runs");
    let texts = files.flatten().filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let counts = texts.filter_map(|text| {
        text.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse::<u64>().ok()
    });
    counts.fold(None, |sum, count| Some(sum.unwrap_or(0) + count))
}

#[test]
fn hits_that_the_kernel_skipped_are_counted_as_the_kernel_counts_them() {
    const NAME: &str = "hits_that_the_kernel_skipped_are_counted_as_the_kernel_counts_them";
    if !is_fit_for_long(NAME) {
        return;
    }
    let netns = Netns::new("k");
    // A small ring is a quarter full after some dozens of events, and then every event wakes the reader.
    let tally = Tally::start(CLIENT_V4, &["--netns", netns.name(), "--ring-bytes", "64KiB"]);
    if kernels_count(tally.pid()).is_none() {
        netns.on_thread("hs-refused", || be_refused(0));
        let total = tally.stop();
        total.health.expect_absent("missed_probes");
        skip(NAME, "this kernel does not count them (5.12 does); that they are absent was tested");
        return;
    }
    let preemption = Preemption::everywhere();
    let deadline = Instant::now() + if preemption.0.is_some() { patience() } else { SHORT };
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // More threads than processors, so that one is always ready to run.
        for thread in 0..8 {
            let (netns, enough) = (&netns, &enough);
            scope.spawn(move || {
                netns.enter();
                (0_u64..).take_while(|_| !enough.load(Ordering::Relaxed)).for_each(|_| be_refused(thread));
            });
        }
        while kernels_count(tally.pid()) == Some(0) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        enough.store(true, Ordering::Relaxed);
    });
    let kernels = kernels_count(tally.pid()).expect("it counts");
    assert!(kernels > 0 || preemption.0.is_none(), "no hit was skipped in {:?}", patience());
    drop(preemption);
    let total = tally.stop();
    let ours = total.health("missed_probes");
    println!(
        "skipped: the kernel counted {kernels}, told {ours}, of {} events",
        total.health("kernel.submitted")
    );
    // Others on this machine may have run into one more while the program ended.
    assert!(
        (kernels..=kernels + kernels / 10 + 1).contains(&ours),
        "the kernel says {kernels}: {}",
        total.health
    );
    if kernels == 0 {
        skip(
            NAME,
            "this kernel gives no thread's CPU away inside a program, so no hit was skipped; 0 was told",
        );
        return;
    }
    let shown = format!("skipped by the kernel: {ours} hit");
    assert!(total.log.iter().any(|line| line.starts_with(&shown)), "the summary tells: {:?}", total.log);
}
