//! Queueing disciplines of links: a token bucket for what a link sends, and the detour of what it receives over an `ifb`
//! device, whose token bucket limits that.
//!
//! Invariants. The handles are those of the CNI bandwidth plugin (`1:` for the bucket, `ffff:` for the ingress hook), so
//! that either finds what the other made. Nothing is replaced: a link that has a discipline of somebody's keeps it,
//! and the caller gets EEXIST.
//!
//! Constants are those of include/uapi/linux/rtnetlink.h and pkt_sched.h.

mod redirect;
mod tbf;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use redirect::target as redirected_to;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netstate::{IfName, MacAddr, TokenBucket};

use crate::attribute::{self, Writer};
use crate::error::{Cause, KernelError};
use crate::rtnl::{Operation, Rtnl, encode};
use crate::socket::{Frame, Message};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// Bytes of `tcmsg`.
const TCMSG: usize = 20;
/// TC_H_ROOT: what the link sends.
const ROOT: u32 = 0xffff_ffff;
/// TC_H_INGRESS: what the link receives.
const INGRESS: u32 = 0xffff_fff1;
/// Handle `1:` of the token bucket.
const BUCKET_HANDLE: u32 = 0x0001_0000;
/// The index of `lo` in every namespace (LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;
/// Handle `ffff:` of the ingress hook.
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// A discipline of one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Qdisc {
    /// What the link sends goes through a token bucket.
    Bucket(TokenBucket),
    /// Filters look at what the link receives.
    Ingress,
    /// Something else, by the kernel's name for it.
    Other(String),
}

/// `tcmsg`, the fixed part of every message about disciplines and filters.
struct Tc {
    index: u32,
    handle: u32,
    parent: u32,
    info: u32,
}

impl Tc {
    fn bytes(&self) -> Vec<u8> {
        // Family AF_UNSPEC and padding.
        let mut bytes = vec![0; 4];
        for number in [self.index, self.handle, self.parent, self.info] {
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    fn read(body: &[u8]) -> Option<(Self, &[u8])> {
        let (header, attributes) = body.split_at_checked(TCMSG)?;
        let number = |at: usize| header.get(at..).and_then(attribute::u32);
        Some((Self { index: number(4)?, handle: number(8)?, parent: number(12)?, info: number(16)? }, attributes))
    }
}

impl Rtnl {
    /// Makes an `ifb` device, up, with `mtu` bytes and without a transmit queue of its own; returns its index. Its
    /// hardware address is fixed, so that nothing rewrites it later (udev's MACAddressPolicy).
    ///
    /// # Errors
    /// EEXIST when the name is taken; EOPNOTSUPP where the kernel has no `ifb`.
    pub fn create_ifb(&mut self, name: &IfName, mac: MacAddr, mtu: u32) -> Result<u32, KernelError> {
        let mut message = LinkMessage::default();
        message.header.flags |= LinkFlags::Up;
        message.header.change_mask |= LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_string()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::TxQueueLen(0),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
        ];
        let message = encode(&RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO);
        self.request(&Operation { op: "create ifb", object: name.to_string(), message })?;
        let missing = || KernelError::new("create ifb", name, Cause::Missing("the new link".to_owned()));
        Ok(self.link(name)?.ok_or_else(missing)?.index)
    }

    /// Limits what the link with `index` sends.
    ///
    /// # Errors
    /// EEXIST when the link has a discipline of somebody's; EINVAL for a bucket that holds no byte.
    pub fn add_bucket(&mut self, index: u32, bucket: &TokenBucket) -> Result<(), KernelError> {
        let mut body = Writer::behind(Tc { index, handle: BUCKET_HANDLE, parent: ROOT, info: 0 }.bytes());
        body.put_str(TCA_KIND, "tbf").nest(TCA_OPTIONS, |options| tbf::write(bucket, options));
        self.add_qdisc("add token bucket", index, body)
    }

    /// Whether links can be limited. The question is one for a bucket without a size for `lo`, which the kernel refuses when it has found the
    /// discipline (`tbf_init`), or before where somebody limits `lo`.
    ///
    /// # Errors
    /// When that cannot be found out, as without CAP_NET_ADMIN.
    pub(crate) fn knows_buckets(&mut self) -> Result<bool, KernelError> {
        let mut body = Writer::behind(Tc { index: LOOPBACK, handle: 0, parent: ROOT, info: 0 }.bytes());
        body.put_str(TCA_KIND, "tbf");
        match self.add_qdisc("ask for token bucket", LOOPBACK, body) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::EEXIST)) => Ok(true),
            other => other.map(|()| true),
        }
    }

    /// Lets filters look at what the link with `index` receives.
    ///
    /// # Errors
    /// EEXIST when that is so already.
    pub fn add_ingress(&mut self, index: u32) -> Result<(), KernelError> {
        let mut body = Writer::behind(Tc { index, handle: INGRESS_HANDLE, parent: INGRESS, info: 0 }.bytes());
        body.put_str(TCA_KIND, "ingress");
        self.add_qdisc("add ingress hook", index, body)
    }

    fn add_qdisc(&mut self, op: &'static str, index: u32, body: Writer) -> Result<(), KernelError> {
        let message = Message { kind: RTM_NEWQDISC, flags: NLM_F_CREATE | NLM_F_EXCL, body: body.finish() };
        self.request(&Operation { op, object: format!("to link with index {index}"), message }).map(drop)
    }

    /// Takes the token bucket off the link with `index`.
    ///
    /// # Errors
    /// When the kernel refuses; a link without one, or no link, is a success.
    pub fn remove_bucket(&mut self, index: u32) -> Result<(), KernelError> {
        self.remove_qdisc("remove token bucket", Tc { index, handle: BUCKET_HANDLE, parent: ROOT, info: 0 })
    }

    /// Takes the ingress hook off the link with `index`, with its filters.
    ///
    /// # Errors
    /// As [`Rtnl::remove_bucket`].
    pub fn remove_ingress(&mut self, index: u32) -> Result<(), KernelError> {
        self.remove_qdisc("remove ingress hook", Tc { index, handle: INGRESS_HANDLE, parent: INGRESS, info: 0 })
    }

    fn remove_qdisc(&mut self, op: &'static str, tc: Tc) -> Result<(), KernelError> {
        let message = Message { kind: RTM_DELQDISC, flags: 0, body: tc.bytes() };
        let object = format!("from link with index {}", tc.index);
        match self.request(&Operation { op, object, message }) {
            // EINVAL: the link has another discipline, with another handle.
            Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The disciplines of the link with `index` for all that it sends and for all that it receives, without those that every link has. They
    /// are asked for by their places: a listing has those of all links, and leaves out a link where another one goes meanwhile.
    ///
    /// # Errors
    /// When the kernel cannot be read; a link that does not exist has none.
    pub fn qdiscs(&mut self, index: u32) -> Result<Vec<Qdisc>, KernelError> {
        let mut found = Vec::new();
        for parent in [ROOT, INGRESS] {
            let body = Tc { index, handle: 0, parent, info: 0 }.bytes();
            // Up to Linux 6.7 the answer is one that only NLM_F_ECHO has come back (`qdisc_notify`).
            let message = Message { kind: RTM_GETQDISC, flags: NLM_F_ECHO, body };
            let object = format!("of link with index {index}");
            match self.request(&Operation { op: "read queueing discipline", object, message }) {
                Ok(frames) => found.extend(frames.iter().filter_map(|frame| qdisc(frame, index))),
                // No discipline in that place, or no link.
                Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

pub(crate) fn qdisc(frame: &Frame, index: u32) -> Option<Qdisc> {
    let (tc, attributes) = Tc::read(&frame.body).filter(|_| frame.kind == RTM_NEWQDISC)?;
    if tc.index != index || tc.handle == 0 {
        return None;
    }
    let kind = attribute::find(attributes, TCA_KIND).map(attribute::text)?;
    let options = attribute::find(attributes, TCA_OPTIONS).unwrap_or_default();
    match kind.as_str() {
        "tbf" if tc.parent == ROOT => tbf::read(options).map(Qdisc::Bucket),
        "ingress" => Some(Qdisc::Ingress),
        _ => Some(Qdisc::Other(kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_from_a_kernel_of_another_time_panic(
            kind in prop::sample::select(vec![RTM_NEWQDISC, redirect::RTM_NEWTFILTER]),
            names in prop::sample::select(vec!["tbf", "ingress", "u32", "matchall"]),
            options in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            let mut body = Writer::behind(Tc { index: 3, handle: BUCKET_HANDLE, parent: ROOT, info: 0 }.bytes());
            body.put_str(TCA_KIND, names).put(TCA_OPTIONS, &options);
            let frame = Frame { kind, flags: 0, sequence: 1, body: body.finish() };
            let _ = qdisc(&frame, 3);
            let _ = redirect::target(&frame, 3);
            let torn = Frame { body: options, ..frame };
            let _ = (qdisc(&torn, 3), redirect::target(&torn, 3));
        }
    }
}
