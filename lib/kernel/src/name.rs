//! `name`: abstract unix sockets by which processes know that they share a network namespace (unix(7)).
//!
//! Invariants: a name is one process's at a time, and the kernel takes it back when that ends, in whatever way. Anybody may bind any name, so
//! one that is bound by a user who is neither root nor this process's own keeps nobody out: without rights nobody stops a daemon.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::attribute;
use crate::socket::{Frame, Message, Socket};

/// SOCK_DIAG_BY_FAMILY (include/uapi/linux/sock_diag.h).
const BY_FAMILY: u16 = 20;

/// UDIAG_SHOW_NAME and UDIAG_SHOW_UID, in every state (include/uapi/linux/unix_diag.h).
const SHOWN: u32 = 0x41;
const EVERY_STATE: u32 = u32::MAX;

/// UNIX_DIAG_NAME and UNIX_DIAG_UID, a u32 since Linux 5.3.
const NAME: u16 = 0;
const UID: u16 = 7;

/// Bytes of `unix_diag_msg`, whose second one is the socket's type.
const HEADER: usize = 16;

/// The kernel's list for people.
const SOCKETS: &str = "/proc/self/net/unix";

/// A name that is held as long as this exists.
#[derive(Debug)]
pub struct Name {
    _socket: UnixListener,
}

/// Who holds a name that was asked for.
#[derive(Debug)]
pub enum Taken {
    /// This process, from now on.
    Own(Name),
    /// Another process of root or of this process's user.
    Other,
    /// A process of the user with this id, who has no say.
    Stranger(u32),
}

/// Takes `name` in the network namespace of the calling thread.
///
/// # Errors
/// When the kernel refuses the socket.
pub fn take(name: &str) -> io::Result<Taken> {
    match UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?) {
        Ok(socket) => Ok(Taken::Own(Name { _socket: socket })),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = bound()?.into_iter().find(|bound| bound.name == name);
            Ok(holder.and_then(|bound| bound.stranger()).map_or(Taken::Other, Taken::Stranger))
        }
        Err(error) => Err(error),
    }
}

/// The names with this beginning that processes of root or of this process's user hold, this one's among them.
///
/// # Errors
/// When the kernel does not list the sockets there are.
pub fn taken(beginning: &str) -> io::Result<Vec<String>> {
    let begins = |bound: &Bound| bound.name.starts_with(beginning) && bound.stranger().is_none();
    Ok(bound()?.into_iter().filter(begins).map(|bound| bound.name).collect())
}

/// A name and the id of the user who bound it, where the kernel says.
pub(crate) struct Bound {
    pub(crate) name: String,
    uid: Option<u32>,
}

impl Bound {
    fn stranger(&self) -> Option<u32> {
        self.uid.filter(|uid| *uid != 0 && *uid != nix::unistd::geteuid().as_raw())
    }
}

/// All names of stream sockets. A kernel without UNIX_DIAG says the names alone.
fn bound() -> io::Result<Vec<Bound>> {
    listed().map_or_else(|| fs::read_to_string(SOCKETS).map(|text| in_text(&text)), Ok)
}

fn listed() -> Option<Vec<Bound>> {
    // `unix_diag_req`: AF_UNIX, protocol, padding, states, no inode, what to show, no cookie.
    let mut body = vec![libc::AF_UNIX.try_into().ok()?, 0, 0, 0];
    for word in [EVERY_STATE, 0, SHOWN, 0, 0] {
        body.extend(word.to_ne_bytes());
    }
    let mut socket = Socket::open(NETLINK_SOCK_DIAG).ok()?;
    socket.list(&Message { kind: BY_FAMILY, flags: 0, body }, |frame| read(&frame)).ok()
}

pub(crate) fn read(frame: &Frame) -> Option<Bound> {
    let (header, attributes) = frame.body.split_at_checked(HEADER)?;
    let is_stream = header.get(1).copied().map(i32::from) == Some(libc::SOCK_STREAM);
    let name = attribute::find(attributes, NAME).filter(|_| is_stream)?.strip_prefix(b"\0")?;
    let uid = attribute::find(attributes, UID).and_then(attribute::u32);
    Some(Bound { name: String::from_utf8_lossy(name).into_owned(), uid })
}

fn in_text(text: &str) -> Vec<Bound> {
    let names = text.lines().filter_map(|line| line.split_whitespace().last()?.strip_prefix('@'));
    names.map(|name| Bound { name: name.to_owned(), uid: None }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_processs_at_a_time_and_free_when_that_is_gone() {
        let name = format!("kernel-test-{}/one", std::process::id());
        let first = take(&name).unwrap();
        assert!(matches!(first, Taken::Own(_)));
        assert!(matches!(take(&name).unwrap(), Taken::Other));
        assert_eq!(taken(&name).unwrap(), std::slice::from_ref(&name));
        drop(first);
        assert!(matches!(take(&name).unwrap(), Taken::Own(_)));
    }

    #[test]
    fn a_name_of_a_user_without_rights_keeps_nobody_out() {
        if !nix::unistd::geteuid().is_root() || listed().is_none() {
            eprintln!("skipped: needs root and a kernel with UNIX_DIAG");
            return;
        }
        let name = format!("kernel-test-{}/two", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        // The user of one thread alone: the system call, where the library's changes them all.
        let nobody = std::thread::spawn(move || {
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
            UnixListener::bind_addr(&address).unwrap()
        });
        let _held = nobody.join().unwrap();
        assert!(matches!(take(&name).unwrap(), Taken::Stranger(65_534)));
        assert!(taken(&name).unwrap().is_empty());
    }

    #[test]
    fn names_are_read_from_the_kernels_text_too() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                    ffff: 00000002 00000000 00010000 0001 01 17 @netd/network/172.7.0.0/16\n\
                    ffff: 00000002 00000000 00010000 0001 01 18 /run/some.sock\n\
                    ffff: 00000003 00000000 00000000 0001 03 19\n";
        let names: Vec<String> = in_text(text).into_iter().map(|bound| bound.name).collect();
        assert_eq!(names, ["netd/network/172.7.0.0/16"]);
    }
}
