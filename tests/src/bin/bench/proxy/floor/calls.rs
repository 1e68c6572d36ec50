//! Calls to the kernel in the form that `tests/floor/src/proxy.rs` reads.
//!
//! Invariant: of the messages of one change only the last asks for an acknowledgement.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};

use crate::proxy::bytes::{half, message, messages};

/// The kinds of call.
const CHANGE: u32 = 0;
const DUMP: u32 = 1;
const OPTION: u32 = 2;
/// Where a message has its flags.
const FLAGS: usize = 6;

/// Calls in their order.
#[derive(Debug, Default)]
pub(super) struct Calls(Vec<u8>);

impl Calls {
    /// Messages that go together; nothing when there is none.
    pub(super) fn change(&mut self, protocol: isize, mut datagram: Vec<u8>) {
        let Some(last) = messages(&datagram).map(<[u8]>::len).last() else { return };
        let at = datagram.len() - last;
        acknowledged(&mut datagram, at);
        self.push(CHANGE, u32::try_from(protocol).unwrap_or_default(), &datagram);
    }

    /// Messages between the beginning and the end of a transaction.
    pub(super) fn transaction(&mut self, protocol: isize, begin: &[u8], messages: &[Vec<u8>], end: &[u8]) {
        let Some(last) = messages.last() else { return };
        let mut datagram = [begin, &messages.concat()].concat();
        let at = datagram.len() - last.len();
        acknowledged(&mut datagram, at);
        datagram.extend_from_slice(end);
        self.push(CHANGE, u32::try_from(protocol).unwrap_or_default(), &datagram);
    }

    /// A listing.
    pub(super) fn dump(&mut self, protocol: isize, question: &[u8]) {
        self.push(DUMP, u32::try_from(protocol).unwrap_or_default(), question);
    }

    /// An option that is read, with the buffer that names what is wanted and takes the answer.
    pub(super) fn option(&mut self, name: u32, buffer: &[u8]) {
        self.push(OPTION, name, buffer);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn push(&mut self, kind: u32, argument: u32, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.extend([kind, argument, length].into_iter().flat_map(u32::to_ne_bytes));
        self.0.extend_from_slice(bytes);
    }
}

/// A question for all of something.
pub(super) fn question(kind: u16, body: &[u8]) -> Vec<u8> {
    message(kind, NLM_F_REQUEST | NLM_F_DUMP, body)
}

fn acknowledged(datagram: &mut [u8], at: usize) {
    let flags = half(datagram, at + FLAGS).unwrap_or_default() | NLM_F_ACK;
    if let Some(field) = datagram.get_mut(at + FLAGS..at + FLAGS + 2) {
        field.copy_from_slice(&flags.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_message_alone_asks_for_an_acknowledgement() {
        let mut calls = Calls::default();
        let one = message(7, NLM_F_REQUEST, b"four");
        calls.change(12, [one.clone(), one.clone()].concat());
        calls.transaction(12, &one, &[one.clone(), one.clone()], &one);
        let flags = |datagram: &[u8]| messages(datagram).map(|message| message[FLAGS]).collect::<Vec<_>>();
        assert_eq!(flags(&calls.bytes()[12..52]), [1, 5]);
        assert_eq!(flags(&calls.bytes()[64..]), [1, 1, 5, 1]);
        calls.change(12, Vec::new());
        assert_eq!(calls.bytes().len(), 144, "nothing is no call");
    }
}
