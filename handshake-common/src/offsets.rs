//! Where the kernel keeps what we read: filled by the daemon from the running kernel's BTF.
//!
//! rustc emits no CO-RE relocations, so offsets are data: one read-only global, which the verifier sees as
//! constants. What a newcomer would get wrong: [`UNAVAILABLE`] is no offset; every accessor checks for it,
//! and the verifier then drops the read.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The field does not exist in this kernel, or is ambiguous.
pub const UNAVAILABLE: u32 = u32::MAX;

macro_rules! offsets {
    ($($(#[$doc:meta])* $field:ident = $ty:literal . $path:literal),+ $(,)?) => {
        /// Byte offsets; for a bit-field, of the byte that holds it, and where a name ends in `_bit`, of the bit.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct Offsets {
            $($(#[$doc])* pub $field: u32,)+
        }

        impl Offsets {
            /// Nothing is known.
            pub const UNKNOWN: Offsets = Offsets { $($field: UNAVAILABLE,)+ };

            /// Name, BTF struct and member path of each field, in order.
            pub const FIELDS: &'static [(&'static str, &'static str, &'static str)] =
                &[$((stringify!($field), $ty, $path),)+];
        }
    };
}

offsets! {
    /// `sock_common.skc_daddr`: remote IPv4 address.
    skc_daddr = "sock_common"."skc_daddr",
    /// `sock_common.skc_rcv_saddr`: local IPv4 address.
    skc_rcv_saddr = "sock_common"."skc_rcv_saddr",
    /// `sock_common.skc_dport`: remote port, network order.
    skc_dport = "sock_common"."skc_dport",
    /// `sock_common.skc_num`: local port, host order.
    skc_num = "sock_common"."skc_num",
    /// `sock_common.skc_family`.
    skc_family = "sock_common"."skc_family",
    /// `sock_common.skc_state`.
    skc_state = "sock_common"."skc_state",
    /// `sock_common.skc_net.net`.
    skc_net = "sock_common"."skc_net.net",
    /// `sock_common.skc_v6_daddr`.
    skc_v6_daddr = "sock_common"."skc_v6_daddr",
    /// `sock_common.skc_v6_rcv_saddr`.
    skc_v6_rcv_saddr = "sock_common"."skc_v6_rcv_saddr",
    /// `sock_common.skc_ipv6only`, in bits: an IPv6 socket that takes no IPv4.
    v6_only_bit = "sock_common"."skc_ipv6only",
    /// `sock_common.skc_cookie`: 0 until somebody asked for it.
    skc_cookie = "sock_common"."skc_cookie",
    /// `sock_common.skc_nulls_node.pprev`: null while it is in no hash table.
    skc_hashed = "sock_common"."skc_nulls_node.pprev",
    /// `sock_common.skc_listener`: the listener of a request sock.
    skc_listener = "sock_common"."skc_listener",
    /// `net.ns.inum`.
    net_ns_inum = "net"."ns.inum",
    /// `sock.sk_err`.
    sk_err = "sock"."sk_err",
    /// `sock.sk_err_soft`.
    sk_err_soft = "sock"."sk_err_soft",
    /// `sock.sk_protocol`.
    sk_protocol = "sock"."sk_protocol",
    /// `sock.sk_socket`.
    sk_socket = "sock"."sk_socket",
    /// `sock.sk_ack_backlog`: length of the accept queue of a listener.
    sk_ack_backlog = "sock"."sk_ack_backlog",
    /// `sock.sk_max_ack_backlog`: its limit.
    sk_max_ack_backlog = "sock"."sk_max_ack_backlog",
    /// `inet_sock.inet_sport`: local port, network order; ->CLOSED leaves it alone.
    inet_sport = "inet_sock"."inet_sport",
    /// `inet_connection_sock.icsk_retransmits`.
    icsk_retransmits = "inet_connection_sock"."icsk_retransmits",
    /// `inet_connection_sock.icsk_accept_queue.rskq_accept_tail`: the youngest child of a listener.
    icsk_accept_tail = "inet_connection_sock"."icsk_accept_queue.rskq_accept_tail",
    /// `inet_connection_sock.icsk_accept_queue.qlen`: half-open requests of a listener.
    icsk_syn_queue = "inet_connection_sock"."icsk_accept_queue.qlen",
    /// `tcp_sock.srtt_us`, eight times the smoothed round-trip time.
    srtt_us = "tcp_sock"."srtt_us",
    /// `tcp_sock.tcp_clock_cache`: CLOCK_MONOTONIC at the last segment sent or received.
    tcp_clock_cache = "tcp_sock"."tcp_clock_cache",
    /// `tcp_sock.total_retrans`: segments sent again since the socket was made, or disconnected.
    total_retrans = "tcp_sock"."total_retrans",
    /// `tcp_sock.rcv_nxt`.
    rcv_nxt = "tcp_sock"."rcv_nxt",
    /// `tcp_sock.snd_una`.
    snd_una = "tcp_sock"."snd_una",
    /// `tcp_sock.write_seq`.
    write_seq = "tcp_sock"."write_seq",
    /// `tcp_sock.bytes_acked`: the SYN counts as one.
    bytes_acked = "tcp_sock"."bytes_acked",
    /// `tcp_sock.advmss`: the MSS that we announce.
    advmss = "tcp_sock"."advmss",
    /// `tcp_sock.rcv_wnd`.
    rcv_wnd = "tcp_sock"."rcv_wnd",
    /// `tcp_sock.snd_wnd`.
    snd_wnd = "tcp_sock"."snd_wnd",
    /// `tcp_sock.ecn_flags`.
    ecn_flags = "tcp_sock"."ecn_flags",
    /// `tcp_sock.is_mptcp`.
    is_mptcp = "tcp_sock"."is_mptcp",
    /// `mptcp_sock.first`: the subflow that the connection began with.
    mptcp_first = "mptcp_sock"."first",
    /// `inet_connection_sock.icsk_ulp_data`: for a subflow of MPTCP its `mptcp_subflow_context`.
    icsk_ulp_data = "inet_connection_sock"."icsk_ulp_data",
    /// `mptcp_subflow_context.request_join`: our SYN asked to join. In bits from the struct's beginning.
    subflow_request_join_bit = "mptcp_subflow_context"."request_join",
    /// `mptcp_subflow_context.mp_join`: it joined. In bits too.
    subflow_mp_join_bit = "mptcp_subflow_context"."mp_join",
    /// `mptcp_subflow_context.token`: of a subflow that this end opened, what names its connection on this host.
    subflow_token = "mptcp_subflow_context"."token",
    /// `tcp_sock.repair`, in bits from the struct's beginning: its place within the byte moves too.
    repair_bit = "tcp_sock"."repair",
    /// `tcp_sock.bytes_received`.
    bytes_received = "tcp_sock"."bytes_received",
    /// `tcp_sock.fastopen_rsk`: not null while Fast Open made a child before the final ACK.
    fastopen_rsk = "tcp_sock"."fastopen_rsk",
    /// Byte with `tcp_sock.syn_data`, `syn_fastopen` and `syn_data_acked`.
    syn_data = "tcp_sock"."syn_data",
    /// `tcp_fastopen_cookie.len`: signed, negative where a SYN-ACK carried no cookie.
    fast_open_cookie_len = "tcp_fastopen_cookie"."len",
    /// Byte with `tcp_sock.rx_opt.tstamp_ok`, `wscale_ok` and `sack_ok`.
    rx_opt_tstamp_ok = "tcp_sock"."rx_opt.tstamp_ok",
    /// Byte with `tcp_sock.rx_opt.snd_wscale` and `rcv_wscale`.
    rx_opt_snd_wscale = "tcp_sock"."rx_opt.snd_wscale",
    /// `tcp_sock.rx_opt.mss_clamp`.
    rx_opt_mss_clamp = "tcp_sock"."rx_opt.mss_clamp",
    /// `request_sock.num_retrans`.
    req_num_retrans = "request_sock"."num_retrans",
    /// Byte with `request_sock.num_timeout`: how often the SYN-ACK timer has fired.
    req_num_timeout = "request_sock"."num_timeout",
    /// `sock_common.skc_rcv_wnd`: of a request sock, the window that the SYN-ACK announced.
    req_rcv_wnd = "sock_common"."skc_rcv_wnd",
    /// `inet_connection_sock.icsk_accept_queue.rskq_defer_accept`: TCP_DEFER_ACCEPT of a listener, in timeouts.
    icsk_defer_accept = "inet_connection_sock"."icsk_accept_queue.rskq_defer_accept",
    /// `request_sock.rsk_timer`: the SYN-ACK timer, which lies inside the request.
    req_timer = "request_sock"."rsk_timer",
    /// `request_sock.sk`: the child.
    req_child = "request_sock"."sk",
    /// `request_sock.mss`: the MSS that the client announced.
    req_mss = "request_sock"."mss",
    /// Byte with `inet_request_sock.snd_wscale` and `rcv_wscale`.
    ireq_snd_wscale = "inet_request_sock"."snd_wscale",
    /// Byte with `inet_request_sock.tstamp_ok`, `sack_ok`, `wscale_ok` and `ecn_ok`.
    ireq_tstamp_ok = "inet_request_sock"."tstamp_ok",
    /// Byte with `inet_request_sock.acked`: TCP_DEFER_ACCEPT swallowed a bare ACK.
    ireq_acked = "inet_request_sock"."acked",
    /// `tcp_request_sock.snt_synack`: first SYN-ACK, microseconds of CLOCK_MONOTONIC.
    treq_snt_synack = "tcp_request_sock"."snt_synack",
    /// `tcp_request_sock.rcv_isn`.
    treq_rcv_isn = "tcp_request_sock"."rcv_isn",
    /// `tcp_request_sock.snt_isn`.
    treq_snt_isn = "tcp_request_sock"."snt_isn",
    /// `tcp_request_sock.is_mptcp`.
    treq_is_mptcp = "tcp_request_sock"."is_mptcp",
    /// `tcp_request_sock.drop_req`: MPTCP wants no child of it in the accept queue.
    treq_drop_req = "tcp_request_sock"."drop_req",
    /// `sk_buff.cb`.
    skb_cb = "sk_buff"."cb",
    /// `tcp_skb_cb.tcp_flags`: its low byte.
    tcp_cb_flags = "tcp_skb_cb"."tcp_flags",
    /// `tcp_skb_cb.seq`: the segment's sequence number, host order.
    tcp_cb_seq = "tcp_skb_cb"."seq",
    /// `tcp_skb_cb.end_seq`: the number after the segment's last.
    tcp_cb_end_seq = "tcp_skb_cb"."end_seq",
    /// `tcp_skb_cb.ack_seq`: the number that it acknowledges.
    tcp_cb_ack_seq = "tcp_skb_cb"."ack_seq",
    /// `sk_buff.sk`.
    skb_sk = "sk_buff"."sk",
    /// `sk_buff.protocol`, network order.
    skb_protocol = "sk_buff"."protocol",
    /// `sk_buff.head`.
    skb_head = "sk_buff"."head",
    /// `sk_buff.network_header`, from `head`.
    skb_network_header = "sk_buff"."network_header",
    /// `sk_buff.transport_header`, from `head`.
    skb_transport_header = "sk_buff"."transport_header",
    /// `sk_buff.dev`.
    skb_dev = "sk_buff"."dev",
    /// `sk_buff._skb_refdst`: its route, with a mark in the lowest bit.
    skb_dst = "sk_buff"."_skb_refdst",
    /// `dst_entry.ops`.
    dst_ops = "dst_entry"."ops",
    /// `dst_ops.family`: what kind of route it is; 0 for one that is none.
    dst_ops_family = "dst_ops"."family",
    /// `rtable.rt_flags`.
    rt_flags = "rtable"."rt_flags",
    /// `rtable.rt_is_input`.
    rt_is_input = "rtable"."rt_is_input",
    /// `rt6_info.rt6i_flags`.
    rt6_flags = "rt6_info"."rt6i_flags",
    /// `net_device.nd_net.net`.
    dev_net = "net_device"."nd_net.net",
    /// `socket.sk`.
    socket_sk = "socket"."sk",
    /// `task_struct.files`.
    task_files = "task_struct"."files",
    /// `files_struct.fdt`.
    files_fdt = "files_struct"."fdt",
    /// `fdtable.fd`.
    fdt_fd = "fdtable"."fd",
    /// `fdtable.max_fds`.
    fdt_max_fds = "fdtable"."max_fds",
    /// `socket.file`.
    socket_file = "socket"."file",
    /// `file.f_inode`.
    file_inode = "file"."f_inode",
    /// `inode.i_ino`.
    inode_number = "inode"."i_ino",
    /// `file.private_data`.
    file_private_data = "file"."private_data",
}

impl Default for Offsets {
    fn default() -> Self {
        Offsets::UNKNOWN
    }
}

crate::pod!(Offsets);
