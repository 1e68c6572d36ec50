//! Which system calls are writes of state or steps in the kernel, and what each may fail with.
//!
//! Invariant: what concerns the process alone (memory, pipes, standard output, `/dev`) is no operation; everything else that a call can change
//! is one.

use std::collections::BTreeMap;
use std::fmt;

use nix::errno::Errno;
use nix::libc;

use crate::memory::Thread;
use crate::netlink::{self, Request};

/// A kind of operation: they may fail with the same errnos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A file opened for writing.
    Open,
    /// Bytes written to a file.
    Write,
    /// A file or folder written out.
    Sync,
    /// A name, mode, owner or length changed.
    Change,
    /// A lock taken.
    Lock,
    /// A socket of the kernel made, or another namespace entered.
    Socket,
    /// A datagram of requests that does not reach the kernel.
    Send,
    /// A request that the kernel refuses.
    Request,
    /// A request that makes something, refused.
    Create,
    /// An option of a socket or an ioctl that changes or asks the kernel.
    Control,
    /// A process made.
    Process,
    /// Bytes sent to a peer over TCP.
    Peer,
    /// A message of netlink that is lost on its way to who waits for it.
    Receive,
    /// A connection begun.
    Connect,
    /// A place taken to be asked at.
    Listen,
    /// A file or folder watched.
    Watch,
    /// A right given up.
    Confine,
}

impl Kind {
    /// The largest number of errnos that a kind has.
    pub const MOST: usize = 7;

    /// All of them.
    const ALL: [Self; 17] = [
        Self::Open,
        Self::Write,
        Self::Sync,
        Self::Change,
        Self::Lock,
        Self::Socket,
        Self::Send,
        Self::Request,
        Self::Create,
        Self::Control,
        Self::Process,
        Self::Peer,
        Self::Receive,
        Self::Connect,
        Self::Listen,
        Self::Watch,
        Self::Confine,
    ];

    /// The one that a report calls so.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| format!("{kind:?}") == name)
    }

    /// What it may fail with.
    #[must_use]
    pub const fn errnos(self) -> &'static [Errno] {
        use Errno::{
            EACCES, EADDRINUSE, EADDRNOTAVAIL, EAGAIN, EBUSY, ECONNREFUSED, ECONNRESET, EDQUOT, EEXIST, EINTR, EINVAL,
            EIO, EMFILE, ENETUNREACH, ENFILE, ENOBUFS, ENODEV, ENOLCK, ENOMEM, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM,
            EPIPE, EROFS,
        };
        match self {
            Self::Open => &[ENOSPC, EIO, EACCES, EROFS, EMFILE, EINTR],
            Self::Write => &[ENOSPC, EIO, EINTR, EDQUOT],
            Self::Sync => &[EIO, ENOSPC],
            Self::Change => &[EACCES, ENOSPC, EIO, EROFS],
            Self::Lock => &[ENOLCK, EINTR],
            Self::Socket => &[EMFILE, EPERM, ENFILE, ENOMEM],
            Self::Send => &[ENOBUFS, EPERM, ENOMEM],
            Self::Request => &[EPERM, EBUSY, ENOMEM, ENOBUFS, EINVAL, EOPNOTSUPP],
            Self::Create => &[EPERM, EEXIST, ENOMEM, ENODEV, EBUSY, ENOBUFS, EINVAL],
            Self::Control => &[EPERM, ENOMEM, EINVAL],
            Self::Process => &[EAGAIN, ENOMEM],
            Self::Peer => &[ECONNRESET, EPIPE],
            Self::Receive => &[ENOBUFS, ENOMEM],
            Self::Connect => &[ECONNREFUSED, ENETUNREACH, EADDRNOTAVAIL, EPERM],
            Self::Listen => &[EADDRINUSE, EACCES, EADDRNOTAVAIL, ENOMEM],
            Self::Watch => &[EMFILE, ENOSPC, ENOMEM],
            Self::Confine => &[EPERM, EINVAL, ENOSYS, EOPNOTSUPP],
        }
    }
}

/// Options of prctl(2) by which a process gives up rights.
const CONFINING: [i32; 4] =
    [libc::PR_SET_NO_NEW_PRIVS, libc::PR_SET_SECCOMP, libc::PR_CAPBSET_DROP, libc::PR_CAP_AMBIENT];

/// `CLONE_THREAD`.
const THREAD: u64 = 0x0001_0000;

/// One operation of a run.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Its number, from 0.
    pub number: usize,
    /// What it is.
    pub kind: Kind,
    /// What it concerns: a path, or a message's number.
    pub object: String,
    pub(crate) request: Option<Request>,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operation {}, {:?} {}", self.number, self.kind, self.object)
    }
}

/// A system call with its arguments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) number: i64,
    pub(crate) args: [u64; 6],
}

/// The protocols of sockets of netlink, by what their descriptors are.
pub(crate) type Sockets = BTreeMap<String, u64>;

const fn is(value: u64, wanted: i32) -> bool {
    value & 0xffff_ffff == wanted.cast_unsigned() as u64
}

/// What a call that begins does outside of its process.
pub(crate) fn of(call: Call, thread: Thread, sockets: &Sockets) -> Vec<(Kind, String, Option<Request>)> {
    let [a, b, c, ..] = call.args;
    let one = |kind, object: String| vec![(kind, object, None)];
    let text = |address| thread.text(address);
    match call.number {
        libc::SYS_open => opened(text(a), b),
        libc::SYS_creat => one(Kind::Open, text(a)),
        libc::SYS_openat => opened(text(b), c),
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 => {
            written(a, thread, sockets)
        }
        libc::SYS_fsync | libc::SYS_fdatasync => one(Kind::Sync, thread.descriptor(a)),
        libc::SYS_fchmod | libc::SYS_fchown | libc::SYS_ftruncate | libc::SYS_fallocate => {
            one(Kind::Change, format!("{} {}", name(call.number), thread.descriptor(a)))
        }
        libc::SYS_rename
        | libc::SYS_unlink
        | libc::SYS_rmdir
        | libc::SYS_mkdir
        | libc::SYS_chmod
        | libc::SYS_chown
        | libc::SYS_truncate
        | libc::SYS_symlink
        | libc::SYS_link => one(Kind::Change, format!("{} {}", name(call.number), text(a))),
        libc::SYS_renameat
        | libc::SYS_renameat2
        | libc::SYS_unlinkat
        | libc::SYS_mkdirat
        | libc::SYS_linkat
        | libc::SYS_symlinkat
        | libc::SYS_fchmodat
        | libc::SYS_fchownat
        | libc::SYS_mknodat
        | libc::SYS_utimensat => one(Kind::Change, format!("{} {}", name(call.number), text(b))),
        // Letting go of a lock cannot fail.
        libc::SYS_flock if !is(b, libc::LOCK_UN) => one(Kind::Lock, thread.descriptor(a)),
        libc::SYS_fcntl if [libc::F_SETLK, libc::F_SETLKW, libc::F_OFD_SETLK].iter().any(|set| is(b, *set)) => {
            one(Kind::Lock, thread.descriptor(a))
        }
        libc::SYS_socket if is(a, libc::AF_NETLINK) => one(Kind::Socket, format!("netlink socket {c}")),
        libc::SYS_socket => one(Kind::Socket, format!("socket of family {a}")),
        libc::SYS_recvfrom | libc::SYS_recvmsg if sockets.contains_key(&thread.descriptor(a)) => {
            one(Kind::Receive, format!("netlink descriptor {a}"))
        }
        libc::SYS_bind if sockets.contains_key(&thread.descriptor(a)) => {
            one(Kind::Control, format!("bind netlink descriptor {a}"))
        }
        libc::SYS_bind | libc::SYS_listen => one(Kind::Listen, format!("{} descriptor {a}", name(call.number))),
        libc::SYS_connect => one(Kind::Connect, format!("descriptor {a}")),
        libc::SYS_inotify_init1 => one(Kind::Watch, "inotify".to_owned()),
        libc::SYS_inotify_add_watch => one(Kind::Watch, text(b)),
        libc::SYS_landlock_create_ruleset
        | libc::SYS_landlock_add_rule
        | libc::SYS_landlock_restrict_self
        | libc::SYS_seccomp
        | libc::SYS_capset => one(Kind::Confine, format!("system call {}", call.number)),
        libc::SYS_prctl if CONFINING.iter().any(|option| is(a, *option)) => one(Kind::Confine, format!("prctl {a}")),
        libc::SYS_setns => one(Kind::Socket, format!("setns {}", thread.descriptor(a))),
        libc::SYS_unshare => one(Kind::Socket, "unshare".to_owned()),
        libc::SYS_sendto => sent(&[(b, usize::try_from(c).unwrap_or(0))], a, thread, sockets),
        libc::SYS_sendmsg => sent(&thread.buffers(b), a, thread, sockets),
        libc::SYS_setsockopt | libc::SYS_getsockopt if is_control(call.number, b, c) => {
            one(Kind::Control, format!("{} {b} {c}", name(call.number)))
        }
        libc::SYS_ioctl if b & 0xff00 == 0x8900 => one(Kind::Control, format!("ioctl {b:#x}")),
        libc::SYS_clone if a & THREAD == 0 => one(Kind::Process, "clone".to_owned()),
        libc::SYS_fork | libc::SYS_vfork => one(Kind::Process, "fork".to_owned()),
        _ => Vec::new(),
    }
}

fn opened(path: String, flags: u64) -> Vec<(Kind, String, Option<Request>)> {
    let writes = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
    let is_state = flags & u64::from(writes.cast_unsigned()) != 0 && !path.starts_with("/dev/");
    if is_state { vec![(Kind::Open, path, None)] } else { Vec::new() }
}

fn written(fd: u64, thread: Thread, sockets: &Sockets) -> Vec<(Kind, String, Option<Request>)> {
    let object = thread.descriptor(fd);
    if object.starts_with("socket:") {
        return sent(&[], fd, thread, sockets);
    }
    let is_file = object.starts_with('/') && !object.starts_with("/dev/") && fd > 2;
    if is_file { vec![(Kind::Write, object, None)] } else { Vec::new() }
}

fn sent(buffers: &[(u64, usize)], fd: u64, thread: Thread, sockets: &Sockets) -> Vec<(Kind, String, Option<Request>)> {
    let descriptor = thread.descriptor(fd);
    let Some(protocol) = sockets.get(&descriptor).copied() else {
        let is_peer = is_peer(&descriptor, thread);
        return if is_peer { vec![(Kind::Peer, format!("descriptor {fd}"), None)] } else { Vec::new() };
    };
    let requests = netlink::requests(thread, buffers, protocol);
    let whole = (Kind::Send, format!("{} requests of netlink {protocol}", requests.len()), None);
    let each = requests.into_iter().map(|request| {
        let kind = if request.creates() { Kind::Create } else { Kind::Request };
        (kind, format!("type {} of netlink {protocol}", request.kind), Some(request))
    });
    [whole].into_iter().chain(each).collect()
}

/// Whether the descriptor is a socket of TCP.
fn is_peer(descriptor: &str, thread: Thread) -> bool {
    let Some(inode) = descriptor.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) else { return false };
    let tables = ["tcp", "tcp6"].map(|table| format!("/proc/{}/net/{table}", thread.0));
    let has = |table: &String| {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        text.lines().any(|line| line.split_whitespace().nth(9) == Some(inode))
    };
    tables.iter().any(has)
}

/// Memberships and other options of netlink, and the commands of IPVS.
const fn is_control(call: i64, level: u64, option: u64) -> bool {
    let ipvs = is(level, libc::IPPROTO_IP) && option >= 1024;
    ipvs || (is(level, libc::SOL_NETLINK) && call == libc::SYS_setsockopt)
}

fn name(call: i64) -> &'static str {
    match call {
        libc::SYS_fchmod | libc::SYS_chmod | libc::SYS_fchmodat => "chmod",
        libc::SYS_fchown | libc::SYS_chown | libc::SYS_fchownat => "chown",
        libc::SYS_ftruncate | libc::SYS_truncate => "truncate",
        libc::SYS_fallocate => "fallocate",
        libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => "rename",
        libc::SYS_unlink | libc::SYS_unlinkat => "unlink",
        libc::SYS_rmdir => "rmdir",
        libc::SYS_mkdir | libc::SYS_mkdirat => "mkdir",
        libc::SYS_symlink | libc::SYS_symlinkat => "symlink",
        libc::SYS_link | libc::SYS_linkat => "link",
        libc::SYS_mknodat => "mknod",
        libc::SYS_utimensat => "utimens",
        libc::SYS_getsockopt => "getsockopt",
        libc::SYS_bind => "bind",
        libc::SYS_listen => "listen",
        _ => "setsockopt",
    }
}
