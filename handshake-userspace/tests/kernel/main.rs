//! Handshakes on a real kernel: the program as a user runs it, beside connections that really happen.
//!
//! The same binary runs on the machine at hand and, as root, in the virtual machines that `cargo xtask test`
//! boots; the environment says which mode to attach in. Every scenario runs in network namespaces of its own.
//! What a reader would get wrong: without HANDSHAKE_BIN (a plain `cargo test`) each test skips itself and says
//! so; with it, being unfit is a failure.

#![expect(clippy::expect_used, reason = "a test fails by panicking, in its helpers too")]

mod accept_calls;
mod accept_queue;
mod active_open;
mod adding_up;
mod agreed;
mod begun_anew;
mod bounds;
mod btf_file;
mod canary;
mod cgroup;
mod connect_flood;
mod crossing;
mod descheduled;
mod drop_at_listener;
mod drops;
mod earlier_connection;
mod early_child;
mod environment;
mod fails_at_once;
mod fast_open;
mod filter_by_cgroup;
mod filters;
mod firewall;
mod forbidden;
mod full_queue;
mod giving_up;
mod identity;
mod joined_ids;
mod kept_back;
mod kernel_listener;
mod loss;
mod lost_for_good;
mod many_listeners;
mod migration;
mod mptcp;
mod neighbours;
mod netns;
mod never_sent;
mod noted_errors;
mod over_ipv6;
mod passive_open;
mod peer;
mod plain;
mod program;
mod record;
mod refused_options;
mod rewritten;
mod running;
mod same_syn;
mod second_account;
mod second_opinions;
mod second_source;
mod seen_late;
mod silenced_hook;
mod skipped_hits;
mod sqpoll;
mod subflows;
mod suspend;
mod syn_flood;
mod tally;
mod throughput;
mod time_wait;
mod tracer;
mod traffic;
mod unseen_accept;
mod unusual_callers;
mod variants;
mod watch;
mod whole;
mod witness;
