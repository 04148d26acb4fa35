//! Finds every kernel field that the kernel side reads, in the BTF of the running kernel.
//!
//! It fills the [`Offsets`] that become a read-only global of the programs. A field that is absent,
//! ambiguous, or of another shape than the kernel side reads (a width, the bits of a bit-field) stays
//! unavailable, with the reason, and `doctor` prints what is lost. What a reader would get wrong: finding the
//! name is not enough. The kernel side has widths and bit numbers written into it, so a member that grew
//! or whose bits moved would be read as garbage: its shape is checked here.

use handshake_common::offsets::Offsets;

use super::btf::{BitField, Btf, BtfError};

/// What was found, and what was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedOffsets {
    /// For the kernel side.
    pub offsets: Offsets,
    /// Fields of [`Offsets::FIELDS`] that are unavailable, in its order, each with the reason.
    pub missing: Vec<(&'static str, String)>,
}

/// A field without which no handshake could be told from another.
#[derive(Debug, thiserror::Error)]
#[error("the kernel field `{container}.{path}` is not usable: {reason}; without it {}", consequence(.field))]
pub struct RequiredFieldMissing {
    /// Its name in [`Offsets::FIELDS`].
    pub field: &'static str,
    /// The kernel's struct.
    pub container: &'static str,
    /// The member in it.
    pub path: &'static str,
    /// Why not.
    pub reason: String,
}

/// Looks up every field of [`Offsets::FIELDS`].
pub fn resolve(btf: &Btf) -> Result<ResolvedOffsets, RequiredFieldMissing> {
    let mut offsets = Offsets::UNKNOWN;
    let mut missing = Vec::new();
    let words: &mut [u32; Offsets::FIELDS.len()] = zerocopy::transmute_mut!(&mut offsets);
    for (word, (field, container, path)) in words.iter_mut().zip(Offsets::FIELDS.iter().copied()) {
        match find(btf, field, container, path) {
            Ok(offset) => *word = offset,
            Err(problem) if rule(field).is_some_and(|rule| rule.required) => {
                return Err(RequiredFieldMissing { field, container, path, reason: problem.to_string() });
            }
            Err(problem) => missing.push((field, problem.to_string())),
        }
    }
    Ok(ResolvedOffsets { offsets, missing })
}

/// What is not shown without a field, as the end of a sentence that begins "without it".
pub fn consequence(field: &str) -> &'static str {
    rule(field).map_or("something is not shown", |rule| rule.without_it)
}

/// Why a field is not usable.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Btf(#[from] BtfError),
    #[error("it has {found} byte{} here, and we read {}", if *found == 1 { "" } else { "s" }, either(.expected))]
    Size { found: u32, expected: &'static [u32] },
    #[error("it is a bit-field here")]
    BitField,
    #[error("`{path}` is not bit {bit} (of width {width}) of the byte where we read it")]
    Bits { path: &'static str, bit: u32, width: u32 },
    #[error("it is no single bit here")]
    NoBit,
    #[error("no rule says how it is read")]
    NoRule,
}

fn either(sizes: &[u32]) -> String {
    sizes.iter().map(u32::to_string).collect::<Vec<_>>().join(" or ")
}

fn find(btf: &Btf, field: &str, container: &str, path: &str) -> Result<u32, Problem> {
    let member = btf.member(container, path)?;
    match rule(field).ok_or(Problem::NoRule)?.shape {
        Shape::Bytes(expected) => {
            if member.bit_field.is_some() {
                return Err(Problem::BitField);
            }
            let found = member.size_bytes.unwrap_or(0);
            if !expected.contains(&found) {
                return Err(Problem::Size { found, expected });
            }
        }
        Shape::Bits(expected) => {
            for (path, bit, width) in expected.iter().copied() {
                let neighbour = btf.member(container, path)?;
                let bits = Some(BitField { bit, width });
                if neighbour.byte_offset != member.byte_offset || neighbour.bit_field != bits {
                    return Err(Problem::Bits { path, bit, width });
                }
            }
        }
        Shape::Bit => {
            return match member.bit_field {
                Some(BitField { bit, width: 1 }) if bit < 8 => Ok(member.byte_offset * 8 + bit),
                _ => Err(Problem::NoBit),
            };
        }
    }
    Ok(member.byte_offset)
}

/// How the kernel side reads a field.
#[derive(Clone, Copy)]
enum Shape {
    /// As a whole, with one of these sizes.
    Bytes(&'static [u32]),
    /// One byte of bit-fields: path, first bit and width of each that is read from it.
    Bits(&'static [(&'static str, u32, u32)]),
    /// One bit, wherever it is: its place is given in bits.
    Bit,
}

/// What we know of a field besides its place.
struct Rule {
    field: &'static str,
    required: bool,
    shape: Shape,
    without_it: &'static str,
}

const fn required(field: &'static str, sizes: &'static [u32], without_it: &'static str) -> Rule {
    Rule { field, required: true, shape: Shape::Bytes(sizes), without_it }
}

const fn optional(field: &'static str, sizes: &'static [u32], without_it: &'static str) -> Rule {
    Rule { field, required: false, shape: Shape::Bytes(sizes), without_it }
}

const fn bits(
    field: &'static str,
    bits: &'static [(&'static str, u32, u32)],
    without_it: &'static str,
) -> Rule {
    Rule { field, required: false, shape: Shape::Bits(bits), without_it }
}

const fn bit(field: &'static str, without_it: &'static str) -> Rule {
    Rule { field, required: false, shape: Shape::Bit, without_it }
}

fn rule(field: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.field == field)
}

const NO_ENDS: &str = "no connection can be told from another";
const NO_V6: &str = "the addresses of IPv6 connections are not shown";
const NO_ISN: &str = "the ISNs, and with them the `id` that joins both ends, are not shown";
const NO_QUEUE: &str = "the length and the limit of accept queues are not shown";
const NO_FAST_OPEN: &str = "Fast Open is not recognised, and its ISNs are not shown";
const NO_OPTIONS: &str = "the negotiated TCP options are not shown";
const NO_REQUEST_OPTIONS: &str = "the TCP options of requests that died half open are not shown";
const NO_REQUEST: &str = "the listener and the child of a half-open connection are not known";
const NO_SYN_ACK_COUNT: &str = "retransmitted SYN-ACKs are not counted";
const NO_INODE: &str = "listeners that were there before us are not joined to their processes";
const NO_WINDOWS: &str = "our MSS and the initial windows are not shown";
const NO_DROP: &str = "who sent a SYN that was dropped here is not shown";
const NO_JOIN: &str = "a subflow that joins an MPTCP connection is not told from a connection of its own";
const NO_ROUTE: &str = "SYNs that this host forwards and drops are not told from those that are for it";
const NO_WHY: &str = "why a final ACK was not taken is a guess";
const NO_FILES: &str = "accept() and connect() are not joined to their sockets in tracepoint mode";

/// One row for each of [`Offsets::FIELDS`], in its order (a test holds them together).
const RULES: &[Rule] = &[
    required("skc_daddr", &[4], NO_ENDS),
    required("skc_rcv_saddr", &[4], NO_ENDS),
    required("skc_dport", &[2], NO_ENDS),
    required("skc_num", &[2], NO_ENDS),
    required("skc_family", &[2], NO_ENDS),
    required("skc_state", &[1], "no change of state is seen"),
    required("skc_net", &[8], "network namespaces are not told apart"),
    // A kernel built without IPv6 has none, and loses nothing.
    optional("skc_v6_daddr", &[16], NO_V6),
    optional("skc_v6_rcv_saddr", &[16], NO_V6),
    bit(
        "v6_only_bit",
        "a listener for IPv6 alone is taken for one of IPv4 too, and drops at its port lack the queue",
    ),
    optional("skc_cookie", &[8], "sock_ops callbacks are not joined to later events in tracepoint mode"),
    optional("skc_hashed", &[8], "a RST and the final ACK on two CPUs at once can both be told"),
    optional("skc_listener", &[8], "who listened for a request that was half open before us is not shown"),
    required("net_ns_inum", &[4], "network namespaces are not told apart"),
    optional("sk_err", &[4], "refused, timed out and unreachable are not told apart"),
    optional(
        "sk_err_soft",
        &[4],
        "what an ICMP said while connect() went on trying is not shown (`evidence.soft_errno`)",
    ),
    // Before 5.6 the protocol was a bit-field; MPTCP's own sockets could then not be left out.
    required("sk_protocol", &[2], "TCP is not told from other protocols"),
    optional("sk_socket", &[8], NO_INODE),
    optional("sk_ack_backlog", &[4], NO_QUEUE),
    optional("sk_max_ack_backlog", &[4], NO_QUEUE),
    optional(
        "inet_sport",
        &[2],
        "the local port of a failed connect() is absent where the kernel skipped our hook",
    ),
    optional("icsk_retransmits", &[1], "SYNs that were sent again before we watched are not counted"),
    optional("icsk_accept_tail", &[8], "children are not joined to their listeners in tracepoint mode"),
    optional("icsk_syn_queue", &[4], NO_QUEUE),
    optional("srtt_us", &[4], "the kernel's smoothed round-trip time is not shown"),
    optional("tcp_clock_cache", &[8], "latency is absent where the kernel skipped our hook on the SYN"),
    optional("total_retrans", &[4], "a SYN sent again is not counted where its hook did not see it"),
    optional("rcv_nxt", &[4], NO_ISN),
    optional("snd_una", &[4], NO_ISN),
    optional("write_seq", &[4], "our ISN is known only from ESTABLISHED on"),
    optional("bytes_acked", &[8], NO_FAST_OPEN),
    optional("advmss", &[2], NO_WINDOWS),
    optional("rcv_wnd", &[4], NO_WINDOWS),
    optional("snd_wnd", &[4], NO_WINDOWS),
    optional("ecn_flags", &[1], "whether ECN was agreed on is not shown"),
    // A kernel without MPTCP has none, and loses nothing.
    optional("is_mptcp", &[1], "subflows of MPTCP are not marked"),
    optional("mptcp_first", &[8], "who accepts an MPTCP connection is not shown"),
    optional("icsk_ulp_data", &[8], NO_JOIN),
    bit("subflow_request_join_bit", NO_JOIN),
    bit("subflow_mp_join_bit", NO_JOIN),
    optional(
        "subflow_token",
        &[4],
        "whose MPTCP connection a client's joining subflow belongs to is not shown",
    ),
    bit("repair_bit", "sockets put together under TCP_REPAIR look like handshakes"),
    optional("bytes_received", &[8], NO_FAST_OPEN),
    optional("fastopen_rsk", &[8], NO_FAST_OPEN),
    bits("syn_data", &[("syn_data", 2, 1), ("syn_fastopen", 3, 1), ("syn_data_acked", 6, 1)], NO_FAST_OPEN),
    optional("fast_open_cookie_len", &[1], "whether a SYN-ACK carried a Fast Open cookie is not shown"),
    bits(
        "rx_opt_tstamp_ok",
        &[("rx_opt.tstamp_ok", 1, 1), ("rx_opt.wscale_ok", 3, 1), ("rx_opt.sack_ok", 4, 3)],
        NO_OPTIONS,
    ),
    bits("rx_opt_snd_wscale", &[("rx_opt.snd_wscale", 0, 4), ("rx_opt.rcv_wscale", 4, 4)], NO_OPTIONS),
    optional("rx_opt_mss_clamp", &[2], NO_OPTIONS),
    optional("req_num_retrans", &[1], NO_SYN_ACK_COUNT),
    bits("req_num_timeout", &[("num_timeout", 1, 7)], NO_WHY),
    optional("req_rcv_wnd", &[4], NO_WHY),
    optional("icsk_defer_accept", &[1], NO_WHY),
    optional("req_timer", &[40], "a request that moves to another listener of its group is told as dropped"),
    optional("req_child", &[8], NO_REQUEST),
    optional("req_mss", &[2], NO_REQUEST_OPTIONS),
    bits("ireq_snd_wscale", &[("snd_wscale", 0, 4), ("rcv_wscale", 4, 4)], NO_REQUEST_OPTIONS),
    bits(
        "ireq_tstamp_ok",
        &[("tstamp_ok", 0, 1), ("sack_ok", 1, 1), ("wscale_ok", 2, 1), ("ecn_ok", 3, 1)],
        NO_REQUEST_OPTIONS,
    ),
    bits("ireq_acked", &[("acked", 4, 1)], "the wait of TCP_DEFER_ACCEPT is not told from the network's"),
    optional("treq_snt_synack", &[8], "phases `synack` and `ack` of passive opens are not shown"),
    optional("treq_rcv_isn", &[4], NO_ISN),
    optional("treq_snt_isn", &[4], NO_ISN),
    optional("treq_is_mptcp", &[1], NO_JOIN),
    optional("treq_drop_req", &[1], NO_JOIN),
    optional("skb_cb", &[48], "the flags of the segment that answered a SYN are not known"),
    // u8 up to 6.16, u16 since: on a little-endian machine the low byte stands first either way.
    optional("tcp_cb_flags", &[1, 2], "the flags of the segment that answered a SYN are not known"),
    optional("tcp_cb_seq", &[4], NO_DROP),
    optional("tcp_cb_end_seq", &[4], NO_WHY),
    optional("tcp_cb_ack_seq", &[4], NO_WHY),
    optional("skb_sk", &[8], NO_DROP),
    optional("skb_protocol", &[2], NO_DROP),
    optional("skb_head", &[8], NO_DROP),
    optional("skb_network_header", &[2], NO_DROP),
    optional("skb_transport_header", &[2], NO_DROP),
    optional("skb_dev", &[8], NO_DROP),
    optional("skb_dst", &[8], NO_ROUTE),
    optional("dst_ops", &[8], NO_ROUTE),
    optional("dst_ops_family", &[2], NO_ROUTE),
    optional("rt_flags", &[4], NO_ROUTE),
    optional("rt_is_input", &[1], NO_ROUTE),
    // A kernel built without IPv6 has none.
    optional("rt6_flags", &[4], NO_ROUTE),
    optional("dev_net", &[8], NO_DROP),
    optional("socket_sk", &[8], NO_FILES),
    optional("task_files", &[8], NO_FILES),
    optional("files_fdt", &[8], NO_FILES),
    optional("fdt_fd", &[8], NO_FILES),
    optional("fdt_max_fds", &[4], NO_FILES),
    optional("socket_file", &[8], NO_INODE),
    optional("file_inode", &[8], NO_INODE),
    optional("inode_number", &[8], NO_INODE),
    optional("file_private_data", &[8], NO_FILES),
];

#[cfg(test)]
mod tests;
