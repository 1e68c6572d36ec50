//! Socket options that no library knows, read as bytes.
//!
//! Invariant: the kernel writes into the caller's buffer and nowhere else.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Reads `option` of `level` into `buffer`, which also carries what the kernel is asked (getsockopt(2)).
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn get(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    let fd = socket.as_fd().as_raw_fd();
    #[allow(unsafe_code, reason = "no library knows these options")]
    // SAFETY: the kernel reads and writes at most `length` bytes at a pointer that is valid for so many and outlives the call.
    let result = unsafe { libc::getsockopt(fd, level, option, buffer.as_mut_ptr().cast(), &raw mut length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
