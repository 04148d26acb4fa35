//! The facts that every family shares: both ends, who did it, what was agreed on.
//!
//! Called by each family's file. What a reader would get wrong: an end is absent only when neither its
//! address nor its port is known. With one of the two it is there, with the other zero (`10.0.0.1:0`,
//! `0.0.0.0:80`); a sink leaves out a port that is 0.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use handshake_common::{
    endpoint::{AF_INET, Endpoints, V4_MAPPED},
    owner::{self, Owner},
    tcp::{Negotiated, known, option_bits},
};

use crate::model::{
    handshake::{Options, Windows},
    observation::{Agreed, Ends},
    process::{Process, SafeText},
};

pub(super) fn ends(raw: &Endpoints) -> Ends {
    let v4_mapped = raw.flags & V4_MAPPED != 0;
    let speaks_v4 = raw.family == AF_INET || v4_mapped;
    Ends {
        local: end(raw.local_address, raw.local_port, speaks_v4),
        remote: end(raw.remote_address, raw.remote_port, speaks_v4),
        netns: (raw.netns != 0).then_some(raw.netns),
        v4_mapped,
    }
}

pub(super) fn end(address: [u8; 16], port: u16, speaks_v4: bool) -> Option<SocketAddr> {
    let address = Ipv6Addr::from(address);
    let address = match address.to_ipv4_mapped() {
        Some(v4) => IpAddr::V4(v4),
        // An address that was never chosen is all zero whatever the family: `[::]:80` would be wrong for a
        // socket that speaks IPv4, and right for a dual-stack listener.
        None if speaks_v4 && address.is_unspecified() => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        None => IpAddr::V6(address),
    };
    (!address.is_unspecified() || port != 0).then(|| SocketAddr::new(address, port))
}

pub(super) fn process(raw: &Owner) -> Option<Process> {
    (raw.known != 0).then(|| Process {
        pid: raw.pid,
        tid: raw.tid,
        uid: raw.uid,
        comm: SafeText::from_kernel_bytes(&raw.comm),
        // 1 is the root of the hierarchy, a real place on a v2 host. On a v1 host everything is there; only
        // enrichment, which looks at /proc, can tell.
        cgroup_id: (raw.cgroup_id != 0).then_some(raw.cgroup_id),
        in_cgroups: owner::known::cgroups(raw.known),
    })
}

pub(super) fn agreed(raw: &Negotiated) -> Agreed {
    let is_known = |bit| raw.known & bit != 0;
    let has = |bit| raw.options & bit != 0;
    Agreed {
        local_isn: is_known(known::LOCAL_ISN).then_some(raw.local_isn),
        remote_isn: is_known(known::REMOTE_ISN).then_some(raw.remote_isn),
        srtt_us: (is_known(known::SRTT) && raw.srtt_us != 0).then_some(raw.srtt_us),
        mptcp: has(option_bits::MPTCP),
        repair: has(option_bits::REPAIR),
        options: (is_known(known::OPTIONS) && !has(option_bits::REPAIR)).then(|| Options {
            mss: raw.mss,
            window_scale: has(option_bits::WINDOW_SCALE)
                .then_some((raw.local_window_scale, raw.remote_window_scale)),
            sack: has(option_bits::SACK),
            timestamps: has(option_bits::TIMESTAMPS),
            ecn: has(option_bits::ECN),
            windows: (is_known(known::WINDOWS) || is_known(known::LOCAL_WINDOW)).then_some(Windows {
                local_mss: is_known(known::WINDOWS).then_some(raw.local_mss),
                local: raw.local_window,
                remote: is_known(known::WINDOWS).then_some(raw.remote_window),
            }),
            fast_open: None,
            fast_open_cookie: None,
        }),
    }
}
