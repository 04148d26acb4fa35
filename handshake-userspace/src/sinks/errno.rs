//! Names of errnos, as people know them from errno(3).
//!
//! The numbers come from rustix, which has those of the architecture that we are built for. What a newcomer
//! would get wrong: connect() can fail with nearly any errno (a cgroup's BPF program, a security module), so
//! the unknown ones are numbers and not "unknown".

use std::borrow::Cow;

use rustix::io::Errno;

/// `ECONNREFUSED` for 111; `E4095` for a number without a name.
pub fn name(errno: u32) -> Cow<'static, str> {
    NAMES
        .iter()
        .find(|(known, _)| u32::try_from(known.raw_os_error()) == Ok(errno))
        .map_or_else(|| Cow::Owned(format!("E{errno}")), |(_, name)| Cow::Borrowed(*name))
}

const NAMES: &[(Errno, &str)] = &[
    (Errno::CONNREFUSED, "ECONNREFUSED"),
    (Errno::TIMEDOUT, "ETIMEDOUT"),
    (Errno::HOSTUNREACH, "EHOSTUNREACH"),
    (Errno::NETUNREACH, "ENETUNREACH"),
    (Errno::CONNRESET, "ECONNRESET"),
    (Errno::ADDRNOTAVAIL, "EADDRNOTAVAIL"),
    (Errno::PERM, "EPERM"),
    (Errno::NOENT, "ENOENT"),
    (Errno::SRCH, "ESRCH"),
    (Errno::INTR, "EINTR"),
    (Errno::IO, "EIO"),
    (Errno::NXIO, "ENXIO"),
    (Errno::TOOBIG, "ETOOBIG"),
    (Errno::NOEXEC, "ENOEXEC"),
    (Errno::BADF, "EBADF"),
    (Errno::CHILD, "ECHILD"),
    (Errno::AGAIN, "EAGAIN"),
    (Errno::NOMEM, "ENOMEM"),
    (Errno::ACCESS, "EACCES"),
    (Errno::FAULT, "EFAULT"),
    (Errno::BUSY, "EBUSY"),
    (Errno::EXIST, "EEXIST"),
    (Errno::XDEV, "EXDEV"),
    (Errno::NODEV, "ENODEV"),
    (Errno::NOTDIR, "ENOTDIR"),
    (Errno::ISDIR, "EISDIR"),
    (Errno::INVAL, "EINVAL"),
    (Errno::NFILE, "ENFILE"),
    (Errno::MFILE, "EMFILE"),
    (Errno::NOTTY, "ENOTTY"),
    (Errno::FBIG, "EFBIG"),
    (Errno::NOSPC, "ENOSPC"),
    (Errno::SPIPE, "ESPIPE"),
    (Errno::ROFS, "EROFS"),
    (Errno::PIPE, "EPIPE"),
    (Errno::DOM, "EDOM"),
    (Errno::RANGE, "ERANGE"),
    (Errno::DEADLK, "EDEADLK"),
    (Errno::NAMETOOLONG, "ENAMETOOLONG"),
    (Errno::NOSYS, "ENOSYS"),
    (Errno::PROTO, "EPROTO"),
    (Errno::OVERFLOW, "EOVERFLOW"),
    (Errno::ILSEQ, "EILSEQ"),
    (Errno::NOTSOCK, "ENOTSOCK"),
    (Errno::DESTADDRREQ, "EDESTADDRREQ"),
    (Errno::MSGSIZE, "EMSGSIZE"),
    (Errno::PROTOTYPE, "EPROTOTYPE"),
    (Errno::NOPROTOOPT, "ENOPROTOOPT"),
    (Errno::PROTONOSUPPORT, "EPROTONOSUPPORT"),
    (Errno::SOCKTNOSUPPORT, "ESOCKTNOSUPPORT"),
    (Errno::OPNOTSUPP, "EOPNOTSUPP"),
    (Errno::PFNOSUPPORT, "EPFNOSUPPORT"),
    (Errno::AFNOSUPPORT, "EAFNOSUPPORT"),
    (Errno::ADDRINUSE, "EADDRINUSE"),
    (Errno::NETDOWN, "ENETDOWN"),
    (Errno::NETRESET, "ENETRESET"),
    (Errno::CONNABORTED, "ECONNABORTED"),
    (Errno::NOBUFS, "ENOBUFS"),
    (Errno::ISCONN, "EISCONN"),
    (Errno::NOTCONN, "ENOTCONN"),
    (Errno::SHUTDOWN, "ESHUTDOWN"),
    (Errno::TOOMANYREFS, "ETOOMANYREFS"),
    (Errno::HOSTDOWN, "EHOSTDOWN"),
    (Errno::ALREADY, "EALREADY"),
    (Errno::INPROGRESS, "EINPROGRESS"),
    (Errno::CANCELED, "ECANCELED"),
    (Errno::NOKEY, "ENOKEY"),
    (Errno::KEYREJECTED, "EKEYREJECTED"),
];

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn errnos_have_their_names() {
        assert_eq!(name(111), "ECONNREFUSED");
        assert_eq!(name(13), "EACCES");
        assert_eq!(name(4095), "E4095");
    }
}
