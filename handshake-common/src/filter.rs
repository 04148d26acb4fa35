//! What the kernel side leaves out, set before the programs are loaded.
//!
//! What a newcomer would get wrong: a filter by process can decide only in process context. For active
//! opens that is here, at connect(); for passive opens the daemon decides, when accept() names the process.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::owner::COMM_BYTES;

/// Ports, networks, namespaces and cgroups that one filter can name, each.
pub const MAX_ENTRIES: usize = 8;

/// Connections of the canary at most, each with a port of its own.
pub const CANARY_PORTS: usize = 4;

/// [`Filter::roles`]: watch active opens.
pub const ROLE_CLIENT: u32 = 1;
/// [`Filter::roles`]: watch passive opens.
pub const ROLE_SERVER: u32 = 2;

/// [`Filter::families`]: IPv4 (mapped addresses too).
pub const FAMILY_V4: u32 = 1;
/// [`Filter::families`]: IPv6.
pub const FAMILY_V6: u32 = 2;

/// A network, IPv4 as ::ffff:0:0/96 and longer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Network {
    /// The address with the host bits cleared, as two big-endian halves in host order.
    pub address: [u64; 2],
    /// The mask, in the same form.
    pub mask: [u64; 2],
}

/// Everything that may be filtered in the kernel. A count of 0 means: not filtered by that.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Filter {
    /// The daemon's pid namespace, if it is not the host's first one: its device, as the kernel numbers it.
    pub own_pidns_device: u64,
    /// Its inode number; 0 in the first one.
    pub own_pidns_inode: u64,
    /// Remote networks, `networks` of them.
    pub network: [Network; MAX_ENTRIES],
    /// Namespaces by inode number, `namespaces` of them.
    pub netns: [u32; MAX_ENTRIES],
    /// Ports, `ports` of them; either end matches.
    pub port: [u16; MAX_ENTRIES],
    /// Ports that pass every filter, 0 where there is none: the daemon's first handshakes prove what is reported.
    pub canary: [u16; CANARY_PORTS],
    /// How many entries of `network` count.
    pub networks: u32,
    /// How many entries of `netns` count.
    pub namespaces: u32,
    /// How many entries of `port` count.
    pub ports: u32,
    /// [`ROLE_CLIENT`] and [`ROLE_SERVER`].
    pub roles: u32,
    /// [`FAMILY_V4`] and [`FAMILY_V6`].
    pub families: u32,
    /// 1: only active opens of this `pid`.
    pub by_pid: u32,
    /// The process id.
    pub pid: u32,
    /// 1: only active opens of this `uid`.
    pub by_uid: u32,
    /// The user id.
    pub uid: u32,
    /// 1: only active opens of threads called `comm`.
    pub by_comm: u32,
    /// The command name, zero-padded.
    pub comm: [u8; COMM_BYTES],
    /// The daemon's own process id, in its own pid namespace; its sockets are marked.
    pub own_pid: u32,
    /// How many cgroups are wanted. Their ids are in the map `CGROUPS`: a service that starts anew has another one.
    pub cgroups: u32,
    /// How many steps each of them is below the root of the hierarchy.
    pub cgroup_level: [u32; MAX_ENTRIES],
}

impl Filter {
    /// Leaves nothing out.
    pub const NONE: Filter = Filter {
        own_pidns_device: 0,
        own_pidns_inode: 0,
        network: [Network { address: [0; 2], mask: [0; 2] }; MAX_ENTRIES],
        netns: [0; MAX_ENTRIES],
        port: [0; MAX_ENTRIES],
        canary: [0; CANARY_PORTS],
        networks: 0,
        namespaces: 0,
        ports: 0,
        roles: ROLE_CLIENT | ROLE_SERVER,
        families: FAMILY_V4 | FAMILY_V6,
        by_pid: 0,
        pid: 0,
        by_uid: 0,
        uid: 0,
        by_comm: 0,
        comm: [0; COMM_BYTES],
        own_pid: 0,
        cgroups: 0,
        cgroup_level: [0; MAX_ENTRIES],
    };
}

crate::pod!(Network, Filter);
