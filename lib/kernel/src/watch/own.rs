//! A filter in the kernel: notifications of what our own conversations changed are dropped before they wait in the socket.
//!
//! Invariants: what is dropped is what [`super::interest::Filter`] would leave out, so a kernel that refuses the filter costs
//! time only; notifications of links pass whoever made them, because link indexes are followed by them.

use std::collections::BTreeSet;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, RawFd};

use super::interest::{RTM_DELLINK, RTM_NEWLINK};

/// BPF_LD with BPF_ABS of two and of four bytes, BPF_JMP with BPF_JEQ, BPF_RET (include/uapi/linux/bpf_common.h).
pub(crate) const LOAD_HALF: u16 = 0x28;
pub(crate) const LOAD_WORD: u16 = 0x20;
pub(crate) const JUMP_EQUAL: u16 = 0x15;
pub(crate) const RETURN: u16 = 0x06;

/// Where `nlmsg_type` and `nlmsg_pid` are in a message (include/uapi/linux/netlink.h).
pub(crate) const KIND_AT: u32 = 4;
const PORT_AT: u32 = 12;

/// A jump leads over at most 255 instructions.
const MOST_PORTS: usize = 200;

/// Has the kernel drop what the conversations with these port ids changed.
///
/// # Errors
/// When the kernel refuses the filter.
pub(super) fn drop_own(socket: &impl AsRawFd, ports: &BTreeSet<u32>) -> io::Result<()> {
    if ports.is_empty() || ports.len() > MOST_PORTS {
        return Ok(());
    }
    attach(socket.as_raw_fd(), &mut program(ports))
}

/// The instructions: links pass, then what bears one of `ports` is dropped, and the rest passes.
fn program(ports: &BTreeSet<u32>) -> Vec<libc::sock_filter> {
    // Bounded by MOST_PORTS.
    let instruction = |code, jump: usize, value| instruction(code, u8::try_from(jump).unwrap_or(u8::MAX), value);
    let port = |port: &u32| u32::from_be_bytes(port.to_ne_bytes());
    let count = ports.len();
    let mut program = vec![
        instruction(LOAD_HALF, 0, KIND_AT),
        instruction(JUMP_EQUAL, count + 2, kind(RTM_NEWLINK)),
        instruction(JUMP_EQUAL, count + 1, kind(RTM_DELLINK)),
        instruction(LOAD_WORD, 0, PORT_AT),
    ];
    let drops = ports.iter().enumerate().map(|(place, number)| instruction(JUMP_EQUAL, count - place, port(number)));
    program.extend(drops);
    program.extend([instruction(RETURN, 0, u32::MAX), instruction(RETURN, 0, 0)]);
    program
}

/// One instruction; a condition that holds leads over so many others.
pub(crate) const fn instruction(code: u16, jump: u8, value: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: jump, jf: 0, k: value }
}

/// A message's type as the kernel loads it: fields are big-endian numbers to it.
pub(crate) fn kind(kind: u16) -> u32 {
    u32::from(u16::from_be_bytes(kind.to_ne_bytes()))
}

/// Has the kernel drop what `program` returns nothing of.
///
/// # Errors
/// When the kernel refuses the filter.
pub(crate) fn attach(socket: RawFd, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let too_long = |_| io::Error::from_raw_os_error(libc::E2BIG);
    let length = libc::c_ushort::try_from(program.len()).map_err(too_long)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).map_err(too_long)?;
    // SAFETY: the kernel copies `size` bytes of `filter` and the `len` instructions behind it, all of which live during the
    // call.
    #[allow(unsafe_code)]
    let result =
        unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const filter).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel's interpreter makes of `program` for a message of `kind` from `port`.
    fn passes(program: &[libc::sock_filter], kind: u16, port: u32) -> bool {
        let (mut place, mut loaded) = (0, 0);
        loop {
            let instruction = program[place];
            place += 1;
            match instruction.code {
                LOAD_HALF => loaded = u32::from(u16::from_be_bytes(kind.to_ne_bytes())),
                LOAD_WORD => loaded = u32::from_be_bytes(port.to_ne_bytes()),
                JUMP_EQUAL if loaded == instruction.k => place += usize::from(instruction.jt),
                JUMP_EQUAL => {}
                RETURN => return instruction.k != 0,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn what_own_ports_changed_is_dropped_but_for_links() {
        for count in [1, 2, 7, 200] {
            let ports: BTreeSet<u32> = (0..count).map(|n| 0x8000_0001 + n * 77).collect();
            let program = program(&ports);
            for port in &ports {
                assert!(!passes(&program, 24, *port), "a route of {port:#x} of {count}");
                assert!(passes(&program, RTM_NEWLINK, *port) && passes(&program, RTM_DELLINK, *port), "a link");
            }
            for port in [0, 1, 0x8000_0000, 0x0100_0080] {
                assert!(passes(&program, 24, port) && passes(&program, RTM_NEWLINK, port), "{port:#x} is not ours");
            }
        }
    }
}
