//! The program itself on this kernel: signals, recordings, doctor, and what it refuses.
//!
//! What a reader would get wrong: a refusal is part of the product; its exit code and its one line are what
//! scripts and people act on.

use std::{
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    process::{Command, Output},
};

use super::{
    environment::{
        attach, has_probes, in_vm, is_fit, is_fit_once, is_locked_down, names_no_drop_reasons, program, skip,
    },
    netns::Netns,
    tracer::Tracer,
};

fn run(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).output().expect("the program can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn an_interrupt_ends_with_a_summary_that_adds_up() {
    if !is_fit_once("an_interrupt_ends_with_a_summary_that_adds_up") {
        return;
    }
    let netns = Netns::new("i");
    let tracer = Tracer::start(&["--netns", netns.name()]);
    let port = netns.on_thread("hs-both", || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
        let to = listener.local_addr().expect("it has an address");
        let _stream = TcpStream::connect(to).expect("it listens");
        drop(listener.accept().expect("a child is queued"));
        to.port()
    });
    tracer.wait_for_end("client", port);
    tracer.wait_for_end("server", port);
    let (records, log) = tracer.stop_with_log();
    assert_eq!(records.last().and_then(|record| record.text("kind")), Some("health"));
    let summary = log.join("\n");
    assert!(summary.contains("seen 2 = established 2 + failed 0 + in flight 0"), "{summary}");
}

#[test]
fn a_recording_replays_to_the_same_records() {
    if !is_fit_once("a_recording_replays_to_the_same_records") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("one.rec");
    let path = file.to_str().expect("the path is text");
    let netns = Netns::new("r");
    let tracer = Tracer::start_command(&["record", path], &["--netns", netns.name()]);
    let port = netns.on_thread("hs-both", || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
        let to = listener.local_addr().expect("it has an address");
        let _stream = TcpStream::connect(to).expect("it listens");
        drop(listener.accept().expect("a child is queued"));
        let _ = TcpStream::connect("127.0.0.1:9").expect_err("nobody listens");
        to.port()
    });
    tracer.wait_for_end("server", port);
    tracer.wait_for_end("client", 9);
    let live: Vec<_> = tracer.stop().into_iter().map(|record| record.0).collect();
    let replayed = run(&["replay", path, "--json", "--netns", &netns.inode().to_string()]);
    assert!(replayed.status.success(), "{}", text(&replayed.stderr));
    let again: Vec<serde_json::Value> = text(&replayed.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("records are JSON"))
        .collect();
    assert_eq!(live, again);
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().expect("it exists").permissions());
    assert_eq!(mode & 0o777, 0o600, "a recording holds sequence numbers of live connections");
}

#[test]
fn doctor_says_how_each_hook_is_attached() {
    if !is_fit("doctor_says_how_each_hook_is_attached") {
        return;
    }
    let output = run(&["doctor", "--json", "--attach", &attach()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    let hooks = report["hooks"].as_array().expect("it lists hooks");
    let attached = |name: &str| {
        hooks
            .iter()
            .find(|hook| hook["hook"] == name)
            .and_then(|hook| hook["attached"].as_str())
            .map(str::to_owned)
    };
    assert_eq!(attached("state_changed").as_deref(), Some("tp_btf"), "{report}");
    if attach() != "auto" {
        assert_eq!(attached("syn_sent"), Some(attach()), "{report}");
        assert_eq!(attached("accepted"), Some(attach()), "{report}");
    }
    for hook in hooks {
        assert!(hook["without_it"].as_str().is_some_and(|text| !text.is_empty()), "{hook}");
        // Before 5.17 the kernel names no reason when it frees a segment.
        let has_no_reasons = hook["hook"] == "segment_freed" && names_no_drop_reasons();
        if hook["attached"].is_null() && !has_no_reasons {
            assert_eq!(attach(), "tracepoint", "with probes every hook works: {hook}");
        }
        // One that is attached, and that nothing calls, would be found by the canary.
        assert!(!hook["lacks"].as_str().is_some_and(|lacks| lacks.contains("canary")), "{hook}");
    }
    if !has_probes() {
        // What this mode leaves out of every server's record, by the names that it has there.
        let said: String = hooks
            .iter()
            .filter_map(|hook| hook[if hook["attached"].is_null() { "without_it" } else { "lacks" }].as_str())
            .collect();
        for field in [
            "phases.synack_ns",
            "phases.ack_ns",
            "phases.accept_call_ns",
            "retransmits.syn_seen",
            "rtt_ns",
            "kernel_rtt_us",
            "defer_accept",
            "queue's length",
        ] {
            assert!(said.contains(field), "{field} is absent here, and nothing says so: {said}");
        }
    }
    assert!(text(&run(&["doctor", "--attach", &attach()]).stdout).contains("HOOK"));
}

#[test]
fn without_privilege_the_missing_capabilities_are_named() {
    if !is_fit("without_privilege_the_missing_capabilities_are_named") {
        return;
    }
    let output =
        Command::new(program()).arg("trace").uid(65534).gid(65534).output().expect("it can be started");
    assert_eq!(output.status.code(), Some(77), "{}", text(&output.stderr));
    let message = text(&output.stderr);
    assert!(message.contains("CAP_BPF") && message.trim_end().lines().count() == 1, "{message}");
}

#[test]
fn a_mode_that_this_kernel_lacks_is_refused_by_the_hook_that_failed() {
    const NAME: &str = "a_mode_that_this_kernel_lacks_is_refused_by_the_hook_that_failed";
    if !is_fit(NAME) {
        return;
    }
    let lacking: &[&str] = match (in_vm(), is_locked_down()) {
        (true, true) => &["kprobe"],
        (true, false) => {
            skip(NAME, "this kernel has every mode");
            return;
        }
        (false, _) => &["fentry", "kprobe"],
    };
    for mode in lacking {
        let output = run(&["trace", "--attach", mode, "--duration", "1s"]);
        let message = text(&output.stderr);
        if output.status.success() {
            skip(NAME, &format!("this kernel has {mode}"));
            continue;
        }
        assert_eq!(output.status.code(), Some(78), "{message}");
        assert!(message.contains(mode) && message.contains("hook "), "{message}");
    }
}

#[test]
fn a_file_that_is_no_btf_is_refused_by_name() {
    if !is_fit_once("a_file_that_is_no_btf_is_refused_by_name") {
        return;
    }
    let output = run(&["trace", "--btf", "/nowhere/vmlinux"]);
    assert_eq!(output.status.code(), Some(78), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("/nowhere/vmlinux"));
    let output = run(&["trace", "--btf", "/proc/version"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("/proc/version: this is no BTF") && said.contains("--btf"), "{said}");
}

#[test]
fn messages_of_the_kernel_side_are_off_until_asked_for() {
    if !is_fit_once("messages_of_the_kernel_side_are_off_until_asked_for") {
        return;
    }
    for (filter, expected) in [("handshake_ebpf=debug", true), ("info", false)] {
        let output = Command::new(program())
            .args(["trace", "--json", "--duration", "2s", "--attach", &attach()])
            .env("RUST_LOG", filter)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .map(|child| {
                let netns = Netns::new("m");
                // Until the program ends there are changes of state to tell of.
                let child = std::thread::spawn(move || child.wait_with_output().expect("it ends"));
                while !child.is_finished() {
                    netns.on_thread("hs-both", || drop(TcpListener::bind("127.0.0.1:0").expect("it is up")));
                }
                child.join().expect("it was waited for")
            })
            .expect("the program can be started");
        assert_eq!(
            text(&output.stderr).contains("inet_sock_set_state"),
            expected,
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn without_tracefs_only_system_call_tracepoints_are_missing() {
    if !is_fit("without_tracefs_only_system_call_tracepoints_are_missing") {
        return;
    }
    let mut command = Command::new("sh");
    command
        .args(["-c", "mount --make-rprivate / && umount -l /sys/kernel/debug; umount -l /sys/kernel/tracing; exec \"$@\"", "sh"])
        .arg(program())
        .args(["doctor", "--json", "--attach", &attach()]);
    // SAFETY: between fork and exec one system call is made, which allocates nothing.
    unsafe {
        command.pre_exec(|| {
            rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS).map_err(std::io::Error::from)
        });
    }
    let output = command.output().expect("a shell can be started");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    for hook in report["hooks"].as_array().expect("it lists hooks") {
        let on_system_calls = ["accepted", "connect_returned"].into_iter().any(|name| hook["hook"] == name);
        let tried = hook["tried"].to_string();
        if attach() == "tracepoint" && on_system_calls
            || attach() == "kprobe" && hook["hook"] == "connect_returned"
        {
            assert!(hook["attached"].is_null() && tried.contains("mount -t tracefs"), "{hook}");
        } else {
            assert!(!tried.contains("tracefs"), "{hook}");
        }
    }
}
