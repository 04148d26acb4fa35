//! The thread that is running, and its open files.
//!
//! Call only from process context. What a newcomer would get wrong: in softirq these helpers answer just as
//! readily, with whatever thread was interrupted.

use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, generated,
};
use handshake_common::owner::{COMM_BYTES, Owner, known};

use super::read::{Copied, Memory};
use crate::{filter, globals::offset};

/// Process and thread id in one: the key of a call under way.
#[inline(always)]
pub fn thread() -> u64 {
    bpf_get_current_pid_tgid()
}

/// Who is running, written in place: the stack has 512 bytes for everything.
#[inline(always)]
pub fn owner(owner: &mut Owner) {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the helper takes nothing; without cgroup v2 it answers with the root's id.
    owner.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    owner.pid = (thread >> 32) as u32;
    owner.tid = thread as u32;
    owner.uid = bpf_get_current_uid_gid() as u32;
    owner.known = known::FILLED | known::in_cgroups(filter::cgroups_of_running_thread());
    // In place, and it ends with a zero: by value it would be zeroed on the stack first. It fails for no thread.
    // SAFETY: room for COMM_BYTES.
    let _ = unsafe { generated::bpf_get_current_comm((&raw mut owner.comm).cast(), COMM_BYTES as u32) };
}

/// The `struct sock` behind a file descriptor of the running thread, if the file is a socket. For the
/// system call tracepoints, which know no more than the number.
#[inline(always)]
pub fn sock_of_descriptor(descriptor: i64) -> Option<*const u8> {
    // SAFETY: the helper takes nothing.
    let task = unsafe { generated::bpf_get_current_task() } as *const u8;
    let files = Copied::read::<*const u8>(task, offset!(task_files))?;
    let table = Copied::read::<*const u8>(files, offset!(files_fdt))?;
    let limit = Copied::read::<u32>(table, offset!(fdt_max_fds))?;
    if descriptor < 0 || descriptor >= i64::from(limit) {
        return None;
    }
    let array = Copied::read::<*const u8>(table, offset!(fdt_fd))?;
    let file = Copied::read::<*const u8>(array.wrapping_add(descriptor as usize * 8), 0)?;
    let socket = Copied::read::<*const u8>(file, offset!(file_private_data))?;
    if socket.is_null() {
        return None;
    }
    // A file that is no socket has something else there; reading it is harmless, and the caller checks
    // protocol and family of what comes out.
    let sock = Copied::read::<*const u8>(socket, offset!(socket_sk))?;
    if sock.is_null() { None } else { Some(sock) }
}
