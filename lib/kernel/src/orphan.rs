//! Leaving the kernel's slow clean-ups to a process of its own.
//!
//! RTM_DELLINK unlists the link at once, gives up the lock that all link changes share, and then keeps its caller for
//! some 20 ms until no CPU can hold a reference any more (net/core/dev.c `netdev_run_todo`). Whoever only needs the
//! link to be gone, and ends soon, leaves that wait to a process of its own: the CNI plugin's DEL returns in 1 ms
//! instead of 20.
//!
//! The same goes for a conversation with nftables that removed something: closing its last descriptor waits some 10 ms
//! until the removed objects are destroyed (net/netfilter/nf_tables_api.c `nft_rcv_nl_event`).
//!
//! Invariant: the forked process executes system calls only, on memory laid out before the fork, holds none of the
//! caller's standard streams (a runtime waits until they are closed) and ends by itself; it names the link by its
//! index, so a link made later under the same name is never hit.

use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::fcntl::OFlag;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2, read, setsid};

use crate::error::{Cause, KernelError, Nack};
use crate::rtnl::{Rtnl, encode};
use crate::socket::write_message;

/// How long the link may stay visible: deletion starts when the lock of all link changes is free.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between the first two queries of the link; each is a quarter longer. The query itself waits for the same lock as the
/// deletion.
const PAUSE: Duration = Duration::from_micros(100);

/// The longest pause: on a busy processor the process has not begun yet.
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

impl Rtnl {
    /// Deletes the link with `index` of the calling process's namespace, which must be this conversation's as well;
    /// a veth takes its other end along. Returns as soon as the link is not visible any more; the kernel's clean-up
    /// goes on in a process of its own.
    ///
    /// # Errors
    /// When the kernel refuses, or the link is still there after 20 s; a link that does not exist is a success.
    pub fn delete_link_aside(&mut self, index: u32) -> Result<(), KernelError> {
        let object = format!("with index {index}");
        let child = start(index).map_err(|source| KernelError::io("delete link", &object, "fork", source))?;
        let (deadline, mut pause) = (Instant::now() + PATIENCE, PAUSE);
        while self.link_by_index(index)?.is_some() {
            if let Some(errno) = refusal(child) {
                return Err(KernelError::new("delete link", object, Nack { errno, text: None }));
            }
            if Instant::now() > deadline {
                let text = format!("the link is still there after {PATIENCE:?}");
                return Err(KernelError::new("delete link", object, Cause::Unexpected(text)));
            }
            thread::sleep(pause);
            pause = (pause * 5 / 4).min(LONGEST_PAUSE);
        }
        Ok(())
    }
}

/// Drops `conversation` without waiting for what the kernel does when the last descriptor of it is closed.
///
/// # Errors
/// When no process can be started; the conversation is dropped all the same.
pub fn close_aside<T>(conversation: T) -> Result<(), KernelError> {
    let error =
        |call: &'static str| move |errno: nix::Error| KernelError::io("close", "conversation", call, errno.into());
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(error("pipe2"))?;
    // SAFETY: until it exits, the child only makes system calls on memory that exists already.
    #[allow(unsafe_code)]
    match unsafe { fork() }.map_err(error("fork"))? {
        ForkResult::Parent { .. } => {
            drop(conversation);
            drop(writer);
            Ok(())
        }
        ForkResult::Child => {
            drop(writer);
            leave();
            // Ends when the parent has closed its end, and the conversation before it: ours is the last one then.
            let _ = read(&reader, &mut [0_u8; 1]);
            exit(0)
        }
    }
}

/// The error number with which `child` ended; `None` while it runs and when it succeeded.
fn refusal(child: Pid) -> Option<i32> {
    match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, 0) | WaitStatus::StillAlive) => None,
        Ok(WaitStatus::Exited(_, errno)) => Some(errno),
        Ok(_) => Some(libc::EINTR),
        // Reaped by somebody else: its outcome is unknown, the deadline decides.
        Err(_) => None,
    }
}

fn start(index: u32) -> std::io::Result<Pid> {
    let socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = LinkMessage::default();
    message.header.index = index;
    let mut bytes = Vec::new();
    let message = encode(&RouteNetlinkMessage::DelLink(message), 0);
    write_message(&mut bytes, &message, NLM_F_REQUEST | NLM_F_ACK, 1);
    // SAFETY: until it exits, the child only makes system calls on memory that exists already.
    #[allow(unsafe_code)]
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            leave();
            exit(delete(&socket, &bytes))
        }
    }
}

/// Leaves the parent's session and standard streams; what the child needs was opened while they were taken.
fn leave() {
    let _ = setsid();
    for stream in 0..=2 {
        // SAFETY: the child uses none of its standard streams.
        #[allow(unsafe_code)]
        unsafe {
            libc::close(stream);
        }
    }
}

fn exit(errno: i32) -> ! {
    // SAFETY: _exit(2) runs no destructors and no exit handlers of the parent.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(errno)
    }
}

/// The child's work; returns 0 or an error number.
fn delete(socket: &netlink_sys::Socket, bytes: &[u8]) -> i32 {
    let errno = |error: &std::io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    if let Err(error) = socket.send(bytes, 0) {
        return errno(&error);
    }
    let mut answer = [0_u8; 256];
    match socket.recv(&mut &mut answer[..], 0) {
        Ok(_) => match answer.get(16..20).and_then(|code| code.first_chunk::<4>()) {
            Some(code) => match i32::from_ne_bytes(*code).checked_neg() {
                Some(libc::ENODEV) | None => 0,
                Some(errno) => errno & 0xff,
            },
            None => libc::EIO,
        },
        Err(error) => errno(&error),
    }
}
