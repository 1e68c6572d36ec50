//! One transaction: many messages, all of them or none.
//!
//! Everything stands in one `sendmsg` between NFNL_MSG_BATCH_BEGIN and NFNL_MSG_BATCH_END (nfnetlink_rcv_batch in
//! net/netfilter/nfnetlink.c). Only the last message asks for an ACK. The kernel checks every message even after one
//! has failed, commits only when none has, and then delivers errors and ACK in order: when the last message has been
//! answered, all has been said. What concerns the batch as a whole is answered under the number of its begin.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR};
use nix::sys::socket::{setsockopt, sockopt};

use super::wire::put_number;
use crate::attribute::Writer;
use crate::error::{Cause, Nack, SocketError};
use crate::socket::{Message, Socket, acknowledgement, write_message};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// NFNL_BATCH_GENID.
const BATCH_GENID: u16 = 1;
/// NFNL_SUBSYS_NFTABLES, as the batch's resource.
const NFTABLES: u8 = 10;

/// Why a transaction was not committed.
#[derive(Debug)]
pub(super) enum Refusal {
    /// These messages, by index, were refused.
    Messages(BTreeMap<usize, Nack>),
    /// The batch as a whole was refused. ERESTART: the ruleset is no longer of the expected generation.
    Whole(Nack),
    /// More than the send buffer takes, and it may not be made larger: nothing was sent.
    TooLarge,
    /// The conversation broke off; whether the transaction was committed is unknown.
    Socket(SocketError),
}

impl From<Refusal> for Cause {
    /// The first message's reason stands for all: they were refused together.
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Messages(nacks) => match nacks.into_values().next() {
                Some(nack) => nack.into(),
                None => Self::Unexpected("refused without a reason".to_owned()),
            },
            Refusal::Whole(nack) => nack.into(),
            Refusal::TooLarge => Self::Unexpected(TOO_LARGE.to_owned()),
            Refusal::Socket(error) => error.into(),
        }
    }
}

/// What to say when a transaction cannot be sent.
pub(super) const TOO_LARGE: &str = "more than the socket's send buffer takes; net.core.wmem_max limits it";

impl From<SocketError> for Refusal {
    fn from(error: SocketError) -> Self {
        Self::Socket(error)
    }
}

/// Carries out `messages` in order, all or none; with `generation`, only if the ruleset still is of that one. Each message is written as
/// it comes, and need not be there before.
pub(super) fn commit<M: Borrow<Message>>(
    socket: &mut Socket,
    messages: impl IntoIterator<Item = M>,
    generation: Option<u32>,
) -> Result<(), Refusal> {
    let mut messages = messages.into_iter().peekable();
    if messages.peek().is_none() {
        return Ok(());
    }
    let mut bytes = Vec::new();
    let begin = socket.next_sequence();
    write_message(&mut bytes, &boundary(BATCH_BEGIN, generation), NLM_F_REQUEST, begin);
    let (mut sequences, mut behind) = (BTreeMap::new(), 0);
    while let Some(message) = messages.next() {
        let (message, sequence): (&Message, _) = (message.borrow(), socket.next_sequence());
        behind = sequences.len();
        sequences.insert(sequence, behind);
        let ack = if messages.peek().is_none() { NLM_F_ACK } else { 0 };
        write_message(&mut bytes, message, message.flags | NLM_F_REQUEST | ack, sequence);
    }
    let end = socket.next_sequence();
    write_message(&mut bytes, &boundary(BATCH_END, None), NLM_F_REQUEST, end);
    make_room(socket, bytes.len(), sequences.len());
    match socket.send(&bytes) {
        Err(SocketError::Io { error, .. }) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
            return Err(Refusal::TooLarge);
        }
        other => other?,
    }
    receive_results(socket, begin, &sequences, behind)
}

fn receive_results(
    socket: &mut Socket,
    begin: u32,
    sequences: &BTreeMap<u32, usize>,
    last: usize,
) -> Result<(), Refusal> {
    let mut refused = BTreeMap::new();
    loop {
        for frame in socket.receive()? {
            if frame.kind != NLMSG_ERROR {
                continue;
            }
            let nack = acknowledgement(&frame)?;
            if frame.sequence == begin {
                match nack {
                    Some(nack) => return Err(Refusal::Whole(nack)),
                    None => continue,
                }
            }
            let Some(index) = sequences.get(&frame.sequence) else { continue };
            if let Some(nack) = nack {
                refused.insert(*index, nack);
            }
            if *index == last {
                return if refused.is_empty() { Ok(()) } else { Err(Refusal::Messages(refused)) };
            }
        }
    }
}

fn boundary(kind: u16, generation: Option<u32>) -> Message {
    let mut body = Writer::behind(vec![0, 0, 0, NFTABLES]);
    if let Some(generation) = generation {
        put_number(&mut body, BATCH_GENID, generation);
    }
    Message { kind, flags: 0, body: body.finish() }
}

/// Default buffers of 212,992 bytes (net.core.wmem_default, net.core.rmem_default) without the kernel's own share.
const SMALL: usize = 128 * 1024;

/// What the kernel charges for one refusal beside the message that it repeats, halved: it doubles what it is asked for (socket(7)).
const REFUSAL: usize = 1024;

/// Makes the buffers large enough for `bytes` in so many `messages`, each of which may be refused, beyond the system's limits if we may.
fn make_room(socket: &Socket, bytes: usize, messages: usize) {
    let sent = bytes.saturating_add(64 * 1024);
    if bytes > SMALL && setsockopt(socket, sockopt::SndBufForce, &sent).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &sent);
    }
    let refused = bytes.saturating_add(messages.saturating_mul(REFUSAL));
    if refused > SMALL / 2 && setsockopt(socket, sockopt::RcvBufForce, &refused.saturating_add(SMALL)).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &refused);
    }
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn batch_stands_between_its_beginning_and_its_end() {
        assert_eq!(golden::message(&boundary(BATCH_BEGIN, None), 4), "type 16 flags 0x0\n0000000a\n");
        assert_eq!(golden::message(&boundary(BATCH_END, None), 4), "type 17 flags 0x0\n0000000a\n");
        // Only if the ruleset still is of this generation, in network order.
        assert_eq!(golden::message(&boundary(BATCH_BEGIN, Some(7)), 4), "type 16 flags 0x0\n0000000a\n1: 00000007\n");
    }

    #[test]
    fn refusal_of_many_is_the_first_ones() {
        let nack = |errno| Nack { errno, text: None };
        let refused = Refusal::Messages(BTreeMap::from([(4, nack(libc::EEXIST)), (2, nack(libc::ENOENT))]));
        match Cause::from(refused) {
            Cause::Nack(found) => assert_eq!(found.errno, libc::ENOENT),
            other => panic!("{other:?}"),
        }
        assert!(matches!(Cause::from(Refusal::Whole(nack(libc::ERESTART))), Cause::Nack(_)));
        assert!(matches!(Cause::from(Refusal::Messages(BTreeMap::new())), Cause::Unexpected(_)));
        assert!(Cause::from(Refusal::TooLarge).to_string().contains("wmem_max"));
        assert!(matches!(Cause::from(Refusal::from(SocketError::Overrun)), Cause::Socket(SocketError::Overrun)));
    }

    #[test]
    fn empty_transaction_sends_nothing() {
        let mut socket = Socket::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        assert!(commit(&mut socket, &[] as &[Message], Some(7)).is_ok());
        assert_eq!(socket.next_sequence(), 1, "no message was numbered");
    }
}
