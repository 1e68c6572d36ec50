//! Deleting a link without waiting for the kernel's readers.
//!
//! RTM_DELLINK unlists the link at once and then holds its caller for some 20 ms (net/core/dev.c, netdev_run_todo). A forked process
//! does that wait; this one ends as soon as the link is gone. Invariant: the forked process only makes system calls on memory
//! that existed before, and holds none of the standard streams, for whose closing a runtime waits.

use std::io;
use std::time::Duration;

use crate::message::Message;
use crate::socket::Socket;

/// Pause between two listings of the link.
const PAUSE: Duration = Duration::from_micros(50);

/// Deletes the link; returns when it is not visible any more.
pub(crate) fn delete_aside(host: &Socket, index: i32) -> io::Result<()> {
    let socket = Socket::open()?;
    let order = Message::link(libc::RTM_DELLINK, 0, libc::AF_UNSPEC, index, 0).bytes(1, true);
    // SAFETY: the process has one thread, and the child makes system calls only.
    match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            detach();
            let sent = socket.send(&order).is_ok() && socket.receive().is_ok();
            // SAFETY: _exit(2) runs nothing of ours.
            unsafe { libc::_exit(i32::from(!sent)) }
        }
        _ => {}
    }
    while host.has_link(index)? {
        // The question waits for the lock that the deletion holds; the pause is for before it has begun.
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Leaves the session and gives up the standard streams.
fn detach() {
    // SAFETY: setsid(2) and close(2) touch no memory; nothing here uses the three streams after this.
    unsafe {
        libc::setsid();
        for stream in 0..=2 {
            libc::close(stream);
        }
    }
}
