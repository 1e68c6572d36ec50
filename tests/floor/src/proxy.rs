//! The floor of the proxy's benchmark: makes prepared calls to the kernel, one after another, and nothing else.
//!
//! Its argument is a file of calls; it writes to standard output how many nanoseconds they took together, which is without reading the
//! file and opening sockets. Invariant: it knows no Service, compares nothing and tries nothing again; the kernel's word on each call
//! is awaited before the next, and a refusal ends it.

#![allow(unsafe_code, reason = "a raw system call")]
#![allow(clippy::print_stdout, reason = "its result")]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

/// Kinds of call. The argument of the first two is a netlink protocol, that of the third the name of an option.
const CHANGE: u32 = 0;
const DUMP: u32 = 1;
const OPTION: u32 = 2;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// The kernel lists in messages of at most 32 KiB, and only to those with room for them.
const ROOM: usize = 64 * 1024;
/// Room for the kernel's own share of what is sent.
const SHARE: usize = 64 * 1024;

/// What the calls are made through.
struct Kernel {
    sockets: BTreeMap<u32, Socket>,
    options: OwnedFd,
    answer: Vec<u8>,
}

/// One call.
struct Call {
    kind: u32,
    argument: u32,
    bytes: Vec<u8>,
}

fn main() -> ExitCode {
    match play() {
        Ok(took) => {
            println!("{}", took.as_nanos());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("proxy-floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play() -> io::Result<Duration> {
    let path = std::env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: proxy-floor FILE"))?;
    let mut calls = calls(&std::fs::read(path)?)?;
    let mut kernel = Kernel::open(&calls)?;
    let started = Instant::now();
    for call in &mut calls {
        kernel.make(call)?;
    }
    Ok(started.elapsed())
}

/// The calls of a file: of each its kind, its argument and its length as 32-bit numbers, and its bytes.
fn calls(mut file: &[u8]) -> io::Result<Vec<Call>> {
    let mut calls = Vec::new();
    while let (Some(kind), Some(argument), Some(length)) = (word(file, 0), word(file, 4), word(file, 8)) {
        let end = 12 + usize::try_from(length).unwrap_or(usize::MAX - 12);
        let bytes = file.get(12..end).ok_or_else(|| io::Error::other("the file of calls is cut off"))?;
        calls.push(Call { kind, argument, bytes: bytes.to_vec() });
        file = file.get(end..).unwrap_or_default();
    }
    Ok(calls)
}

impl Kernel {
    fn open(calls: &[Call]) -> io::Result<Self> {
        let mut sockets = BTreeMap::new();
        for call in calls.iter().filter(|call| call.kind != OPTION) {
            let socket = match sockets.entry(call.argument) {
                Entry::Vacant(place) => place.insert(connected(call.argument)?),
                Entry::Occupied(place) => place.into_mut(),
            };
            if call.bytes.len() > SHARE {
                setsockopt(socket, sockopt::SndBufForce, &(call.bytes.len() + SHARE))?;
            }
        }
        let options = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { sockets, options, answer: Vec::with_capacity(ROOM) })
    }

    fn make(&mut self, call: &mut Call) -> io::Result<()> {
        if call.kind == OPTION {
            return self.option(call);
        }
        let socket = self.sockets.get(&call.argument).ok_or_else(|| io::Error::other("no socket"))?;
        socket.send(&call.bytes, 0)?;
        loop {
            self.answer.clear();
            socket.recv(&mut self.answer, 0)?;
            if is_last(&self.answer, call.kind)? {
                return Ok(());
            }
        }
    }

    fn option(&self, call: &mut Call) -> io::Result<()> {
        let name = libc::c_int::try_from(call.argument).map_err(io::Error::other)?;
        let mut length = libc::socklen_t::try_from(call.bytes.len()).map_err(io::Error::other)?;
        let (socket, buffer) = (self.options.as_raw_fd(), call.bytes.as_mut_ptr().cast());
        // SAFETY: the kernel writes at most `length` bytes, which is the length of the buffer.
        let answer = unsafe { libc::getsockopt(socket, libc::IPPROTO_IP, name, buffer, &raw mut length) };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn connected(protocol: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(isize::try_from(protocol).map_err(io::Error::other)?)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Whether a datagram of the kernel ends its answer: a listing with its end, a change with an acknowledgement, for which the last of
/// its messages asks alone.
fn is_last(mut datagram: &[u8], kind: u32) -> io::Result<bool> {
    while let (Some(length), Some(of)) = (word(datagram, 0), half(datagram, 4)) {
        let end = (of == NLMSG_DONE && kind == DUMP) || (of == NLMSG_ERROR && kind == CHANGE);
        if of == NLMSG_ERROR || of == NLMSG_DONE {
            refusal(word(datagram, HEADER).unwrap_or(0).cast_signed())?;
        }
        if end {
            return Ok(true);
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX).max(HEADER).next_multiple_of(4);
        datagram = datagram.get(length..).unwrap_or_default();
    }
    Ok(false)
}

fn refusal(code: i32) -> io::Result<()> {
    if code < 0 { Err(io::Error::from_raw_os_error(code.saturating_neg())) } else { Ok(()) }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_ne_bytes(*field))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_ne_bytes(*field))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, code: i32) -> Vec<u8> {
        [&20_u32.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &code.to_ne_bytes()].concat()
    }

    #[test]
    fn a_call_ends_with_the_kernels_last_word_on_it() {
        let listed = [message(7, 0), message(NLMSG_DONE, 0)].concat();
        assert!(is_last(&listed, DUMP).unwrap() && !is_last(&message(7, 0), DUMP).unwrap());
        assert!(is_last(&message(NLMSG_ERROR, 0), CHANGE).unwrap());
        let refused = is_last(&message(NLMSG_ERROR, -libc::EEXIST), CHANGE).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EEXIST));
    }

    #[test]
    fn a_file_that_is_cut_off_is_refused() {
        let file = [&[CHANGE, 12, 3].map(u32::to_ne_bytes).concat()[..], b"abc"].concat();
        let read = calls(&file).unwrap();
        assert_eq!(
            read.iter().map(|call| (call.argument, call.bytes.as_slice())).collect::<Vec<_>>(),
            [(12, &b"abc"[..])]
        );
        assert!(calls(&file[..file.len() - 1]).is_err());
    }
}
