//! `Rtnl`: the rtnetlink conversation that the tables of links, addresses, routes and neighbours share.
//!
//! Messages to the kernel are netlink-packet-route's types. Replies are read by our own attribute reader: those types
//! refuse a whole message for one attribute they do not know, and a row that is dropped from a listing would be created
//! again and again.
//!
//! Invariant: names stand outside, interface indexes inside. An index is looked up when it is needed and kept for one
//! batch only, because a link that was deleted and made again has another.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use netlink_packet_core::NetlinkSerializable;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netstate::IfName;
use reconcile::Step;

use crate::address::RTM_NEWADDR;
use crate::error::{Cause, KernelError, Nack, SocketError};
use crate::netns::Netns;
use crate::route::RTM_NEWROUTE;
use crate::socket::{Fault, Frame, Message, Socket};

/// So many links are asked for one by one rather than listed all.
const FEW: usize = 16;

/// Steps that are encoded at a time: some datagrams full, so that a large change needs little memory.
pub(crate) const CHUNK: usize = 2048;

/// AF_INET6, as it is in the first byte of `ifaddrmsg` and `rtmsg`.
const INET6: u8 = 10;
/// What newer kernels say in such a case.
const IPV6_DISABLED: &str = "IPv6 is disabled on this device";

/// A blocking rtnetlink conversation in one network namespace.
#[derive(Debug)]
pub struct Rtnl {
    pub(crate) socket: Socket,
}

/// A message that is ready to send, with what its errors shall say.
pub(crate) struct Operation {
    pub(crate) op: &'static str,
    pub(crate) object: String,
    pub(crate) message: Message,
}

impl Rtnl {
    /// Opens a conversation in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, KernelError> {
        let mut socket =
            Socket::open(NETLINK_ROUTE).map_err(|error| KernelError::new("open", "rtnetlink socket", error))?;
        socket.set_strict_check();
        Ok(Self { socket })
    }

    /// Opens a conversation in `netns`, without moving the calling thread.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel refuses the socket.
    pub fn open_in(netns: &Netns) -> Result<Self, KernelError> {
        netns.run(Self::open)?
    }

    /// The conversation's netlink port id, which notifications it causes carry.
    ///
    /// # Errors
    /// When the socket cannot be examined.
    pub fn port(&self) -> Result<u32, KernelError> {
        self.socket.port().map_err(|error| KernelError::new("examine", "rtnetlink socket", error))
    }

    /// Sends one message; returns what came back before the ACK.
    pub(crate) fn request(&mut self, operation: &Operation) -> Result<Vec<Frame>, KernelError> {
        self.socket.request(&operation.message).map_err(|fault| {
            let cause = match fault {
                Fault::Nack(nack) => Cause::Nack(worded(&operation.message, nack)),
                other => other.into(),
            };
            KernelError::new(operation.op, &operation.object, cause)
        })
    }

    /// Asks for one object.
    pub(crate) fn ask(&mut self, operation: &Operation) -> Result<Vec<Frame>, KernelError> {
        self.socket.ask(&operation.message).map_err(|fault| KernelError::new(operation.op, &operation.object, fault))
    }

    /// Lists what `message` asks for.
    pub(crate) fn dump(&mut self, op: &'static str, message: &RouteNetlinkMessage) -> Result<Vec<Frame>, KernelError> {
        self.socket.dump(&encode(message, 0)).map_err(|fault| KernelError::new(op, "all", fault))
    }

    /// Lists what `message` asks for, and keeps of each answer only what `read` makes of it.
    pub(crate) fn list<T>(
        &mut self,
        op: &'static str,
        message: &RouteNetlinkMessage,
        mut read: impl FnMut(&Frame) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        let listed = self.socket.list(&encode(message, 0), |frame| read(&frame));
        listed.map_err(|fault| KernelError::new(op, "all", fault))
    }

    /// Sends `operations` in as few datagrams as possible. `None` stands for an operation that could not be built and
    /// has its error already.
    pub(crate) fn batch(&mut self, operations: Vec<Result<Operation, KernelError>>) -> Vec<Result<(), KernelError>> {
        let (mut messages, mut names) = (Vec::new(), Vec::new());
        for operation in operations {
            names.push(operation.map(|operation| {
                messages.push(operation.message);
                (operation.op, operation.object)
            }));
        }
        let mut results = self.send(&messages);
        let mut result = move |(op, object): (&'static str, String)| {
            results.next().unwrap_or_else(|| Err(unanswered())).map_err(|cause| KernelError { op, object, cause })
        };
        names.into_iter().map(|name| name.and_then(&mut result)).collect()
    }

    /// Carries out the steps of a table in their order, each by the message that `build` makes of it. Removing what is gone
    /// already is a success.
    pub(crate) fn carry_out<K: fmt::Display, V: fmt::Display>(
        &mut self,
        steps: &[Step<K, V>],
        mut build: impl FnMut(&mut Self, &Step<K, V>, &mut Indexes) -> Result<Message, KernelError>,
    ) -> Vec<Result<(), KernelError>> {
        let mut indexes = Indexes::default();
        let mut done = Vec::with_capacity(steps.len());
        for chunk in steps.chunks(CHUNK) {
            let mut messages = Vec::with_capacity(chunk.len());
            let unbuilt: Vec<Option<KernelError>> = chunk
                .iter()
                .map(|step| match build(self, step, &mut indexes) {
                    Ok(message) => {
                        messages.push(message);
                        None
                    }
                    Err(error) => Some(error),
                })
                .collect();
            let mut results = self.send(&messages);
            done.extend(chunk.iter().zip(unbuilt).map(|(step, unbuilt)| {
                let result = match unbuilt {
                    Some(error) => Err(error),
                    None => results.next().unwrap_or_else(|| Err(unanswered())).map_err(|cause| refused(step, cause)),
                };
                if matches!(step, Step::Remove(..)) { gone_is_fine(result) } else { result }
            }));
        }
        done
    }

    /// Sends `messages` and returns what became of each, in their order.
    fn send(&mut self, messages: &[Message]) -> impl Iterator<Item = Result<(), Cause>> + use<> {
        let broken = |text: String| Err(Cause::Socket(SocketError::Malformed(text)));
        let results: Vec<Result<(), Cause>> = match self.socket.batch(messages) {
            Ok(results) => {
                let of_message = |(message, result): (&Message, Result<(), Nack>)| {
                    result.map_err(|nack| Cause::Nack(worded(message, nack)))
                };
                messages.iter().zip(results).map(of_message).collect()
            }
            Err(error) => messages.iter().map(|_| broken(error.to_string())).collect(),
        };
        results.into_iter()
    }
}

/// A refusal with the words of newer kernels where older ones (6.1) have a number only: EACCES for an IPv6 address or route means a link
/// on which IPv6 is switched off (`addrconf_add_dev`, `ip6_route_info_create`); for want of a capability it is EPERM.
fn worded(message: &Message, nack: Nack) -> Nack {
    let is_of_ipv6 = matches!(message.kind, RTM_NEWADDR | RTM_NEWROUTE) && message.body.first() == Some(&INET6);
    let text = if is_of_ipv6 && nack.errno == libc::EACCES { Some(IPV6_DISABLED.to_owned()) } else { None };
    Nack { text: nack.text.or(text), ..nack }
}

fn unanswered() -> Cause {
    Cause::Unexpected("no answer for this message".to_owned())
}

/// The kernel's refusal of a step.
fn refused<K: fmt::Display, V: fmt::Display>(step: &Step<K, V>, cause: Cause) -> KernelError {
    let (Step::Create(key, value) | Step::Change(key, _, value) | Step::Remove(key, value)) = step;
    KernelError { op: verb(step), object: netstate::row_text(key, value), cause }
}

/// What a step does, for errors.
pub(crate) const fn verb<K, V>(step: &Step<K, V>) -> &'static str {
    if matches!(step, Step::Remove(..)) { "delete" } else { "set" }
}

/// A message with its flags, ready to send.
pub(crate) fn encode(message: &RouteNetlinkMessage, flags: u16) -> Message {
    let mut body = vec![0; NetlinkSerializable::buffer_len(message)];
    NetlinkSerializable::serialize(message, &mut body);
    Message { kind: NetlinkSerializable::message_type(message), flags, body }
}

/// Interface indexes by name and names by index, looked up as needed, for the time of one batch or listing.
#[derive(Debug, Default)]
pub(crate) struct Indexes {
    by_name: BTreeMap<IfName, Option<u32>>,
    by_index: BTreeMap<u32, IfName>,
}

impl Indexes {
    /// All links of the namespace.
    pub(crate) fn all(rtnl: &mut Rtnl) -> Result<Self, KernelError> {
        let mut indexes = Self::default();
        for link in rtnl.links()? {
            indexes.by_index.insert(link.index, link.name.clone());
            indexes.by_name.insert(link.name, Some(link.index));
        }
        Ok(indexes)
    }

    /// The links with these names that there are; the others are known to be missing.
    pub(crate) fn named<'a>(rtnl: &mut Rtnl, names: impl IntoIterator<Item = &'a IfName>) -> Result<Self, KernelError> {
        let mut indexes = Self::default();
        for name in names {
            let index = rtnl.link(name)?.map(|link| link.index);
            indexes.by_name.insert(name.clone(), index);
            indexes.by_index.extend(index.map(|index| (index, name.clone())));
        }
        Ok(indexes)
    }

    /// The links with these indexes that there are: asked for one by one when they are few.
    pub(crate) fn numbered(rtnl: &mut Rtnl, numbers: &BTreeSet<u32>) -> Result<Self, KernelError> {
        if numbers.len() > FEW {
            return Self::all(rtnl);
        }
        let mut indexes = Self::default();
        for index in numbers {
            if let Some(link) = rtnl.link_by_index(*index)? {
                indexes.by_index.insert(*index, link.name.clone());
                indexes.by_name.insert(link.name, Some(*index));
            }
        }
        Ok(indexes)
    }

    /// The links that there are, by index.
    pub(crate) fn links(&self) -> impl Iterator<Item = (u32, &IfName)> {
        self.by_index.iter().map(|(index, name)| (*index, name))
    }

    /// Adds links that were looked up later.
    pub(crate) fn extend(&mut self, later: Self) {
        self.by_name.extend(later.by_name);
        self.by_index.extend(later.by_index);
    }

    /// One link that the caller knows.
    pub(crate) fn knowing(name: &IfName, index: u32) -> Self {
        let mut indexes = Self::default();
        indexes.by_name.insert(name.clone(), Some(index));
        indexes
    }

    /// The index of the link called `name`.
    pub(crate) fn index(
        &mut self,
        rtnl: &mut Rtnl,
        name: &IfName,
        op: &'static str,
        object: &(impl fmt::Display + ?Sized),
    ) -> Result<u32, KernelError> {
        if !self.by_name.contains_key(name) {
            let index = rtnl.link(name)?.map(|link| link.index);
            self.by_name.insert(name.clone(), index);
        }
        let missing = || KernelError::new(op, object, Cause::Missing(format!("link {name}")));
        self.by_name.get(name).copied().flatten().ok_or_else(missing)
    }

    /// The name of the link with `index`, if it was there when the links were listed.
    pub(crate) fn name(&self, index: u32) -> Option<&IfName> {
        self.by_index.get(&index)
    }
}

/// True when a removal failed because the row is gone already, which is what was wanted.
pub(crate) fn is_gone(error: &KernelError) -> bool {
    matches!(error.errno(), Some(libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENODEV))
        || matches!(error.cause, Cause::Missing(_))
}

/// Turns "it is gone already" of a removal into success.
pub(crate) fn gone_is_fine(result: Result<(), KernelError>) -> Result<(), KernelError> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_without_words_for_a_link_without_ipv6_gets_those_of_newer_kernels() {
        let said = |kind, family, errno, text: Option<&str>| {
            let message = Message { kind, flags: 0, body: vec![family, 64, 0, 0] };
            let cause = Cause::Nack(worded(&message, Nack { errno, text: text.map(str::to_owned) }));
            cause.to_string().contains("disable_ipv6")
        };
        assert!(said(RTM_NEWADDR, INET6, libc::EACCES, None) && said(RTM_NEWROUTE, INET6, libc::EACCES, None));
        assert!(!said(RTM_NEWADDR, 2, libc::EACCES, None) && !said(RTM_NEWADDR, INET6, libc::EPERM, None));
        assert!(!said(RTM_NEWROUTE, INET6, libc::EACCES, Some("prohibited")));
    }

    #[test]
    fn row_that_is_gone_is_no_failed_removal() {
        let refused = |errno| KernelError::new("delete", "row", Cause::Nack(crate::error::Nack { errno, text: None }));
        for errno in [libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENODEV] {
            assert!(gone_is_fine(Err(refused(errno))).is_ok(), "errno {errno}");
        }
        for errno in [libc::EPERM, libc::EBUSY, libc::EINVAL] {
            assert!(gone_is_fine(Err(refused(errno))).is_err(), "errno {errno}");
        }
        let link = KernelError::new("delete", "row", Cause::Missing("link eth0".to_owned()));
        assert!(gone_is_fine(Err(link)).is_ok());
        assert!(gone_is_fine(Ok(())).is_ok());
    }

    #[test]
    fn known_link_is_not_asked_for() {
        let name = IfName::new("eth0").unwrap();
        let mut indexes = Indexes::knowing(&name, 7);
        let mut rtnl = Rtnl::open().unwrap();
        assert_eq!(indexes.index(&mut rtnl, &name, "set", "row").unwrap(), 7);
        assert_eq!(rtnl.socket.next_sequence(), 1, "no request was sent");
        assert_eq!(indexes.name(7), None, "listed links only");
        let missing = IfName::new("none0").unwrap();
        let error = indexes.index(&mut rtnl, &missing, "set", "row").unwrap_err();
        assert!(matches!(error.cause, Cause::Missing(_)), "{error}");
    }

    #[test]
    fn operation_that_could_not_be_built_keeps_its_error_and_its_place() {
        let mut rtnl = Rtnl::open().unwrap();
        let unbuilt = || Err(KernelError::new("set", "row", Cause::Missing("link eth0".to_owned())));
        let results = rtnl.batch(vec![unbuilt(), unbuilt()]);
        assert_eq!(results.len(), 2);
        assert!(results.iter().all(|result| matches!(result, Err(KernelError { cause: Cause::Missing(_), .. }))));
        assert!(rtnl.batch(Vec::new()).is_empty());
    }
}
