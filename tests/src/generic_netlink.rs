//! Families of generic netlink.
//!
//! Invariant: what is asked here is this file's own, not the product's, so an error there cannot hide here.

use anyhow::{Context, Result, bail};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

/// A socket to the kernel in the calling thread's network namespace.
///
/// # Errors
/// What the kernel says.
pub fn open() -> Result<Socket> {
    let mut socket = Socket::new(NETLINK_GENERIC).context("open a generic netlink socket")?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// The number of a family; asking makes the kernel load the family's module (net/netlink/genetlink.c, ctrl_getfamily).
///
/// # Errors
/// When the kernel has no such family.
pub fn family(socket: &Socket, name: &str) -> Result<u16> {
    let question = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![GenlCtrlAttrs::FamilyName(name.to_owned())] };
    let mut message = NetlinkMessage::from(GenlMessage::from_payload(question));
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<GenlMessage<GenlCtrl>>::deserialize(&answer).context("read the kernel's answer")?;
    let answer = match answer.payload {
        NetlinkPayload::InnerMessage(answer) => answer.payload,
        NetlinkPayload::Error(error) => {
            return Err(error.to_io()).with_context(|| format!("generic netlink family {name}"));
        }
        other => bail!("generic netlink family {name}: unexpected answer {other:?}"),
    };
    let id = answer.nlas.iter().find_map(|nla| match nla {
        GenlCtrlAttrs::FamilyId(id) => Some(*id),
        _ => None,
    });
    id.with_context(|| format!("generic netlink family {name}: no number in the answer"))
}
