//! Requests of netlink in a thread's memory: found, spoiled, and their answers given another errno.
//!
//! Invariant: a spoiled request is one that every kernel refuses without doing anything: its type is nobody's.

use std::io;

use crate::memory::Thread;

/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
/// The first type that is not netlink's own.
const FIRST: u16 = 16;
/// `NFNL_MSG_BATCH_BEGIN` and `_END`.
const BATCH: [u16; 2] = [16, 17];
const NETFILTER: u64 = 12;
/// `NLM_F_CREATE` and `NLM_F_EXCL`: what is there already is an error. Of one that is created without `NLM_F_EXCL` the kernel says so only
/// where the very same is there.
const CREATE_ANEW: u16 = 0x600;

/// One request in a datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) address: u64,
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
    pub(crate) flags: u16,
}

impl Request {
    pub(crate) const fn creates(self) -> bool {
        self.flags & CREATE_ANEW == CREATE_ANEW
    }

    /// Gives it a type that is nobody's: beyond the last one of rtnetlink, a family that there is not, a subsystem that there is not.
    pub(crate) fn spoil(self, thread: Thread) -> io::Result<()> {
        thread.write(self.address + 4, &0xfff0_u16.to_ne_bytes())
    }
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|part| part.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn whole(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Places of the messages in a datagram.
fn messages(bytes: &[u8]) -> Vec<usize> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at + HEADER <= bytes.len() {
        let length = usize::try_from(whole(bytes, at)).unwrap_or_default();
        if length < HEADER {
            break;
        }
        found.push(at);
        at += length.next_multiple_of(4);
    }
    found
}

/// The requests in the buffers of a datagram that is about to be sent.
pub(crate) fn requests(thread: Thread, buffers: &[(u64, usize)], protocol: u64) -> Vec<Request> {
    let of = |&(address, length): &(u64, usize)| {
        let bytes = thread.read(address, length.min(1 << 20));
        let found = messages(&bytes).into_iter().map(|at| Request {
            address: address + u64::try_from(at).unwrap_or_default(),
            kind: half(&bytes, at + 4),
            flags: half(&bytes, at + 6),
            sequence: whole(&bytes, at + 8),
        });
        found.collect::<Vec<_>>()
    };
    let all = buffers.iter().flat_map(of);
    all.filter(|request| request.kind >= FIRST && !(protocol == NETFILTER && BATCH.contains(&request.kind))).collect()
}

/// Puts `errno` into the answer to `sequence` in what was received; `false`: it is not there.
pub(crate) fn answer(thread: Thread, buffers: &[(u64, usize)], sequence: u32, errno: i32) -> bool {
    for &(address, length) in buffers {
        let bytes = thread.read(address, length.min(1 << 20));
        for at in messages(&bytes) {
            if half(&bytes, at + 4) == NLMSG_ERROR
                && whole(&bytes, at + 8) == sequence
                && whole(&bytes, at + HEADER) != 0
            {
                let place = address + u64::try_from(at + HEADER).unwrap_or_default();
                return thread.write(place, &(-errno).to_ne_bytes()).is_ok();
            }
        }
    }
    false
}
