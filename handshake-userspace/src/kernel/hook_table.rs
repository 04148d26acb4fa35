//! The hook table: each act of a handshake, the ways to see it in order of preference, and what is lost
//! without it.
//!
//! One row per act; the loader walks it and `doctor` prints it. What a newcomer would get wrong: a row's
//! programs are tried by loading **and** attaching, and several rows may share a program (one probe on
//! tcp_rcv_state_process sees SYN and SYN-ACK); it is attached once.

use handshake_common::event::Attach;

/// One act, and how it can be seen.
pub struct Hook {
    /// Its name, in TCP's words.
    pub name: &'static str,
    /// Ways to see it, the best first.
    pub ways: &'static [Way],
    /// What is not shown without it.
    pub without_it: &'static str,
    /// Nothing can stand in for it: without it there is nothing to trace.
    pub required: bool,
}

/// One way to see an act.
pub struct Way {
    /// What the records call it.
    pub attach: Attach,
    /// `--attach` choices that allow it, besides `auto`.
    pub modes: &'static [Attach],
    /// All of these must attach, except where `optional`.
    pub programs: &'static [Program],
    /// What this way does not see although it works; empty when it sees all.
    pub lacks: &'static str,
}

/// One program at one place.
pub struct Program {
    /// Its name in the object.
    pub name: &'static str,
    /// Where it goes.
    pub place: Place,
    /// The way works without it, and loses only a part.
    pub optional: bool,
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// At the entry of a kernel function, by trampoline.
    Fentry(&'static str),
    /// At its return.
    Fexit(&'static str),
    /// At its entry, by kprobe.
    Kprobe(&'static str),
    /// At its return, by kprobe: only for functions that don't sleep, else calls are lost silently.
    Kretprobe(&'static str),
    /// A tracepoint, with BTF-typed arguments.
    BtfTracepoint(&'static str),
    /// A system call tracepoint, through perf.
    SystemCall(&'static str),
    /// sock_ops at the root of the cgroup hierarchy.
    SockOps,
    /// Nothing of its own: the program on this tracepoint, attached in any case, sees it too.
    SeenBy(&'static str),
}

impl Place {
    /// The kernel's name of the place.
    pub fn symbol(self) -> &'static str {
        match self {
            Place::Fentry(name)
            | Place::Fexit(name)
            | Place::Kprobe(name)
            | Place::Kretprobe(name)
            | Place::BtfTracepoint(name)
            | Place::SystemCall(name)
            | Place::SeenBy(name) => name,
            Place::SockOps => "sock_ops",
        }
    }
}

const fn program(name: &'static str, place: Place) -> Program {
    Program { name, place, optional: false }
}

const fn optional(name: &'static str, place: Place) -> Program {
    Program { name, place, optional: true }
}

const fn fentry(programs: &'static [Program]) -> Way {
    Way { attach: Attach::Fentry, modes: &[Attach::Fentry], programs, lacks: "" }
}

const fn kprobe(programs: &'static [Program]) -> Way {
    Way { attach: Attach::Kprobe, modes: &[Attach::Kprobe], programs, lacks: "" }
}

const fn tracepoint(programs: &'static [Program], lacks: &'static str) -> Way {
    Way { attach: Attach::Tracepoint, modes: &[Attach::Tracepoint], programs, lacks }
}

/// A tracepoint that every mode uses.
const fn common(programs: &'static [Program]) -> Way {
    Way {
        attach: Attach::Common,
        modes: &[Attach::Fentry, Attach::Kprobe, Attach::Tracepoint],
        programs,
        lacks: "",
    }
}

const STATE: Program = program("", Place::SeenBy("inet_sock_set_state"));
const SOCK_OPS: Program = program("hs_sock_ops", Place::SockOps);

/// Name of the row that the loader attaches last, when the daemon has told the kernel side the rest.
pub const STATE_CHANGED: &str = "state_changed";

/// What hooks that read through the helper do not see under lockdown=confidentiality, though they are attached.
pub const LACKS_UNDER_LOCKDOWN: &[(&str, &str)] = &[
    ("connect_returned", "the remote end of calls that fail before a route was found"),
    ("accepted", "who accepts MPTCP connections"),
    ("syn_dropped", "whose SYN it was"),
    ("segment_freed", "all drops, because headers cannot be read"),
    ("syn_rejected", "all of them, for the same reason"),
    ("connect_called", "what was asked for where a program at the cgroup rewrote an IPv6 address"),
    ("state_changed", "which subflows a client adds to its MPTCP connections, and for whom"),
];

/// Every hook, in the order in which a handshake meets them; attached in this order too.
pub const HOOKS: &[Hook] = &[
    Hook {
        name: "connect_called",
        ways: &[
            fentry(&[
                program("hs_connect4_fe", Place::Fentry("tcp_v4_connect")),
                optional("hs_connect6_fe", Place::Fentry("tcp_v6_connect")),
                optional("hs_asked4_fe", Place::Fentry("tcp_v4_pre_connect")),
                optional("hs_asked6_fe", Place::Fentry("tcp_v6_pre_connect")),
            ]),
            kprobe(&[
                program("hs_connect4_kp", Place::Kprobe("tcp_v4_connect")),
                optional("hs_connect6_kp", Place::Kprobe("tcp_v6_connect")),
                optional("hs_asked_kp", Place::Kprobe("tcp_v4_pre_connect")),
                optional("hs_asked_kp", Place::Kprobe("tcp_v6_pre_connect")),
            ]),
            tracepoint(&[STATE], ""),
        ],
        without_it: "client records lack `phases.local_ns`",
        required: false,
    },
    Hook {
        name: "connect_returned",
        ways: &[
            fentry(&[
                program("hs_returned_fx", Place::Fexit("inet_stream_connect")),
                optional("hs_sendmsg_fx", Place::Fexit("__inet_stream_connect")),
            ]),
            Way {
                attach: Attach::Tracepoint,
                // kprobe mode has no better: a return probe loses calls silently while they sleep.
                modes: &[Attach::Kprobe, Attach::Tracepoint],
                programs: &[
                    program("hs_connect_enter", Place::SystemCall("sys_enter_connect")),
                    program("hs_connect_exit", Place::SystemCall("sys_exit_connect")),
                ],
                lacks: "io_uring, 32-bit and kernel callers, and a sendmsg() with MSG_FASTOPEN that fails before a SYN leaves",
            },
        ],
        without_it: "connect() calls that fail before a SYN leaves are not shown, nor `phases.wake_ns`",
        required: false,
    },
    Hook {
        name: "syn_sent",
        ways: &[
            fentry(&[program("hs_syn_sent_fe", Place::Fentry("tcp_connect"))]),
            kprobe(&[program("hs_syn_sent_kp", Place::Kprobe("tcp_connect"))]),
            tracepoint(&[SOCK_OPS], "our ISN of a handshake that nobody answered"),
            tracepoint(
                &[STATE],
                "local port and ISN of a handshake that fails; the SYN of a deferred Fast Open",
            ),
        ],
        without_it: "client latency begins at connect() instead of the SYN",
        required: false,
    },
    Hook {
        name: "segment_received",
        ways: &[
            fentry(&[program("hs_segment_fe", Place::Fentry("tcp_rcv_state_process"))]),
            kprobe(&[program("hs_segment_kp", Place::Kprobe("tcp_rcv_state_process"))]),
            tracepoint(&[SOCK_OPS], "SYNs answered by a cookie"),
        ],
        without_it: "when a SYN reached a listener is unknown: server latency starts at the SYN-ACK, where that is known",
        required: false,
    },
    Hook {
        name: "fast_open_answered",
        ways: &[
            fentry(&[program("hs_fo_answer_fe", Place::Fentry("tcp_fastopen_cache_set"))]),
            kprobe(&[program("hs_fo_answer_kp", Place::Kprobe("tcp_fastopen_cache_set"))]),
            tracepoint(&[SOCK_OPS], ""),
        ],
        without_it: "whether a SYN-ACK carried a Fast Open cookie is not shown",
        required: false,
    },
    Hook {
        name: "request_created",
        ways: &[
            fentry(&[program("hs_request_fe", Place::Fentry("inet_csk_reqsk_queue_hash_add"))]),
            kprobe(&[program("hs_request_kp", Place::Kprobe("inet_csk_reqsk_queue_hash_add"))]),
            tracepoint(&[SOCK_OPS], "the SYN-ACK's time: `phases.synack_ns` and `phases.ack_ns`"),
        ],
        without_it: "server records lack `phases.synack_ns`, and their latency starts at the SYN-ACK, where that is known",
        required: false,
    },
    Hook {
        name: "syn_dropped",
        ways: &[
            fentry(&[
                program("hs_conn_req_fe", Place::Fentry("tcp_conn_request")),
                program("hs_synack_fe", Place::Fentry("tcp_make_synack")),
                program("hs_conn_req_fx", Place::Fexit("tcp_conn_request")),
                optional("hs_cookie4_fx", Place::Fexit("cookie_v4_check")),
                optional("hs_cookie6_fx", Place::Fexit("cookie_v6_check")),
            ]),
            kprobe(&[
                program("hs_conn_req_kp", Place::Kprobe("tcp_conn_request")),
                program("hs_synack_kp", Place::Kprobe("tcp_make_synack")),
                program("hs_conn_req_kr", Place::Kretprobe("tcp_conn_request")),
                optional("hs_cookie_kp", Place::Kprobe("cookie_v4_check")),
                optional("hs_cookie_kr", Place::Kretprobe("cookie_v4_check")),
                optional("hs_cookie_kp", Place::Kprobe("cookie_v6_check")),
                optional("hs_cookie_kr", Place::Kretprobe("cookie_v6_check")),
            ]),
        ],
        without_it: "SYNs that a listener drops because a queue is full are not shown",
        required: false,
    },
    Hook {
        name: "syn_rejected",
        ways: &[
            fentry(&[program("hs_reject_fe", Place::Fentry("nf_ct_attach"))]),
            kprobe(&[program("hs_reject_kp", Place::Kprobe("nf_ct_attach"))]),
        ],
        without_it: "SYNs that a firewall of this host answers, by RST or ICMP, are shown as dropped without an answer",
        required: false,
    },
    Hook {
        name: "segment_freed",
        ways: &[common(&[program("hs_skb_dropped", Place::BtfTracepoint("kfree_skb"))])],
        without_it: "SYNs that a firewall or another layer of this host drops are not shown",
        required: false,
    },
    Hook {
        name: "final_ack_received",
        ways: &[
            fentry(&[program("hs_check_req_fe", Place::Fentry("tcp_check_req"))]),
            kprobe(&[program("hs_check_req_kp", Place::Kprobe("tcp_check_req"))]),
        ],
        without_it: "server records lack `retransmits.syn_seen`, `rtt_ns`, `kernel_rtt_us` and the flag `defer_accept` (with \
                      TCP_DEFER_ACCEPT the wait for data is in `latency_ns`), and a RST half open is not told from a time-out",
        required: false,
    },
    Hook {
        name: "child_queued",
        ways: &[
            fentry(&[
                program("hs_child_fe", Place::Fentry("inet_csk_complete_hashdance")),
                optional("hs_queue_add_fe", Place::Fentry("inet_csk_reqsk_queue_add")),
            ]),
            kprobe(&[
                program("hs_child_kp", Place::Kprobe("inet_csk_complete_hashdance")),
                optional("hs_queue_add_kp", Place::Kprobe("inet_csk_reqsk_queue_add")),
            ]),
            tracepoint(
                &[STATE, optional("hs_data_ready", Place::BtfTracepoint("sk_data_ready"))],
                "the listener and its queue's length; that it was a SYN cookie or Fast Open",
            ),
        ],
        without_it: "SYN cookies, Fast Open and the accept queue's length are not shown",
        required: false,
    },
    Hook {
        name: "accept_waiting",
        ways: &[
            fentry(&[program("hs_accept_fe", Place::Fentry("inet_csk_accept"))]),
            kprobe(&[program("hs_accept_kp", Place::Kprobe("inet_csk_accept"))]),
        ],
        without_it: "records lack `phases.accept_call_ns`: whether accept() was called late or returned late",
        required: false,
    },
    Hook {
        name: "accepted",
        ways: &[
            fentry(&[program("hs_graft_fe", Place::Fentry("security_sock_graft"))]),
            kprobe(&[program("hs_graft_kp", Place::Kprobe("security_sock_graft"))]),
            tracepoint(
                &[
                    program("hs_accept_exit", Place::SystemCall("sys_exit_accept")),
                    program("hs_accept_exit", Place::SystemCall("sys_exit_accept4")),
                ],
                "who accepts through io_uring or in a 32-bit program, and when; that it was accepted shows when the connection is closed",
            ),
        ],
        without_it: "server records lack the process and `phases.accept_ns`",
        required: false,
    },
    Hook {
        name: "request_died",
        ways: &[
            fentry(&[
                program("hs_req_timer_fe", Place::Fentry("reqsk_timer_handler")),
                program("hs_req_end4_fe", Place::Fentry("tcp_v4_reqsk_destructor")),
                optional("hs_req_end6_fe", Place::Fentry("tcp_v6_reqsk_destructor")),
                optional("hs_req_drop_fe", Place::Fentry("inet_csk_reqsk_queue_drop")),
                optional("hs_req_drop2_fe", Place::Fentry("__inet_csk_reqsk_queue_drop")),
                optional("hs_req_err_fe", Place::Fentry("tcp_req_err")),
            ]),
            kprobe(&[
                program("hs_req_timer_kp", Place::Kprobe("reqsk_timer_handler")),
                program("hs_req_end_kp", Place::Kprobe("tcp_v4_reqsk_destructor")),
                optional("hs_req_end_kp", Place::Kprobe("tcp_v6_reqsk_destructor")),
                optional("hs_req_drop_kp", Place::Kprobe("inet_csk_reqsk_queue_drop")),
                optional("hs_req_drop_kp", Place::Kprobe("__inet_csk_reqsk_queue_drop")),
                optional("hs_req_err_kp", Place::Kprobe("tcp_req_err")),
            ]),
        ],
        without_it: "passive opens that die half open are not shown",
        required: false,
    },
    Hook {
        name: "syn_retransmitted",
        ways: &[common(&[program("hs_syn_rexmit", Place::BtfTracepoint("tcp_retransmit_skb"))])],
        without_it: "retransmitted SYNs are not counted",
        required: false,
    },
    Hook {
        name: "syn_ack_retransmitted",
        ways: &[common(&[program("hs_synack_rexmit", Place::BtfTracepoint("tcp_retransmit_synack"))])],
        without_it: "retransmitted SYN-ACKs are not counted",
        required: false,
    },
    Hook {
        name: "reset_received",
        ways: &[common(&[program("hs_rst_received", Place::BtfTracepoint("tcp_receive_reset"))])],
        without_it: "a refusal by RST is not told from one by ICMP, nor a RST in the accept queue seen",
        required: false,
    },
    Hook {
        name: "reset_sent",
        ways: &[common(&[program("hs_rst_sent", Place::BtfTracepoint("tcp_send_reset"))])],
        without_it: "a client whose peer held an earlier connection of the same ends is not flagged `reset_sent`",
        required: false,
    },
    Hook {
        name: "socket_destroyed",
        ways: &[common(&[program("hs_destroy", Place::BtfTracepoint("tcp_destroy_sock"))])],
        without_it: "connections that die in the accept queue are not shown",
        required: false,
    },
    Hook {
        name: STATE_CHANGED,
        ways: &[common(&[program("hs_state", Place::BtfTracepoint("inet_sock_set_state"))])],
        without_it: "no handshake is seen to end",
        required: true,
    },
];

#[cfg(test)]
mod tests {
    use super::{HOOKS, Place, STATE_CHANGED};

    #[test]
    fn the_state_tracepoint_is_attached_last() {
        assert_eq!(HOOKS.last().map(|hook| hook.name), Some(STATE_CHANGED));
    }

    #[test]
    fn no_hook_uses_a_return_probe_on_accept() {
        for program in HOOKS.iter().flat_map(|hook| hook.ways).flat_map(|way| way.programs) {
            assert!(!matches!(program.place, Place::Fexit("inet_csk_accept")));
        }
    }

    #[test]
    fn program_names_fit_what_bpftool_shows() {
        for program in HOOKS.iter().flat_map(|hook| hook.ways).flat_map(|way| way.programs) {
            assert!(program.name.len() <= 16, "{} is longer than the kernel keeps", program.name);
        }
    }
}
