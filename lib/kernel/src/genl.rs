//! Generic netlink: one numbered protocol per kernel subsystem, resolved by name (include/uapi/linux/genetlink.h).
//!
//! Invariant: the family's number is asked for on the socket it is used on. It is given out when a module is loaded, so
//! it is never assumed and never kept longer than the socket.

use netlink_sys::protocols::NETLINK_GENERIC;

use crate::attribute::{self, Writer};
use crate::error::{Cause, KernelError, SocketError};
use crate::socket::{Fault, Frame, Message, Results, Socket};

/// GENL_ID_CTRL: the controller, which knows the others, has a fixed number.
const CONTROLLER: u16 = 0x10;
/// CTRL_CMD_GETFAMILY.
const GET_FAMILY: u8 = 3;
/// The controller's only version.
const CONTROLLER_VERSION: u8 = 2;
/// CTRL_ATTR_FAMILY_ID, a u16.
const FAMILY_ID: u16 = 1;
/// CTRL_ATTR_FAMILY_NAME.
const FAMILY_NAME: u16 = 2;
/// Bytes of `genlmsghdr`.
const HEADER: usize = 4;

/// A conversation with one family.
#[derive(Debug)]
pub(crate) struct Genl {
    socket: Socket,
    family: u16,
    version: u8,
}

impl Genl {
    /// Opens a socket in the calling thread's network namespace and resolves `name`. The kernel tries to load the module
    /// that carries the alias `net-pf-16-proto-16-family-NAME` before it answers.
    ///
    /// # Errors
    /// [`Cause::Missing`] when this kernel has no such family.
    pub(crate) fn open(name: &'static str, version: u8) -> Result<Self, KernelError> {
        let error = |cause: Cause| KernelError::new("resolve generic netlink family", name, cause);
        let mut socket = Socket::open(NETLINK_GENERIC).map_err(|e| error(e.into()))?;
        let mut body = Writer::behind(header(GET_FAMILY, CONTROLLER_VERSION));
        body.put_str(FAMILY_NAME, name);
        let request = Message { kind: CONTROLLER, flags: 0, body: body.finish() };
        let frames = socket.request(&request).map_err(|fault| match fault {
            Fault::Nack(nack) if nack.errno == libc::ENOENT => {
                error(Cause::Missing(format!("kernel subsystem {name}")))
            }
            other => error(other.into()),
        })?;
        let id = frames.iter().find_map(|frame| attribute::find(payload(frame), FAMILY_ID));
        let family = id.and_then(read_u16).ok_or_else(|| error(Cause::Unexpected("no family number".to_owned())))?;
        Ok(Self { socket, family, version })
    }

    /// A message of this family: `command` with the attributes in `body`.
    pub(crate) fn message(&self, command: u8, body: Writer) -> Message {
        let mut bytes = header(command, self.version);
        bytes.extend(body.finish());
        Message { kind: self.family, flags: 0, body: bytes }
    }

    /// Lists; each answer is one object's attributes.
    pub(crate) fn dump(&mut self, command: u8, body: Writer) -> Result<Vec<Vec<u8>>, Fault> {
        let message = self.message(command, body);
        Ok(payloads(&self.socket.dump(&message)?))
    }

    /// Asks for one object's attributes.
    pub(crate) fn ask(&mut self, command: u8, body: Writer) -> Result<Vec<Vec<u8>>, Fault> {
        let message = self.message(command, body);
        Ok(payloads(&self.socket.ask(&message)?))
    }

    /// Sends one message; returns the attributes of what came before its ACK.
    pub(crate) fn request(&mut self, command: u8, body: Writer) -> Result<Vec<Vec<u8>>, Fault> {
        let message = self.message(command, body);
        Ok(payloads(&self.socket.request(&message)?))
    }

    /// Sends many messages and returns what became of each.
    pub(crate) fn batch(&mut self, messages: &[Message]) -> Result<Results, SocketError> {
        self.socket.batch(messages)
    }
}

fn header(command: u8, version: u8) -> Vec<u8> {
    vec![command, version, 0, 0]
}

fn payload(frame: &Frame) -> &[u8] {
    frame.body.get(HEADER..).unwrap_or_default()
}

pub(crate) fn payloads(frames: &[Frame]) -> Vec<Vec<u8>> {
    frames.iter().map(|frame| payload(frame).to_vec()).collect()
}

/// A 16-bit number in host order.
pub(crate) fn read_u16(value: &[u8]) -> Option<u16> {
    value.first_chunk::<2>().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_begins_with_command_and_version() {
        assert_eq!(header(3, 2), [3, 2, 0, 0]);
        let frame = |body: &[u8]| Frame { kind: 0x1c, flags: 0, sequence: 1, body: body.to_vec() };
        assert_eq!(payload(&frame(&[1, 1, 0, 0, 7, 8])), [7, 8]);
        for short in 0..=HEADER {
            assert_eq!(payload(&frame(&[1, 1, 0, 0][..short])), [0; 0], "{short} bytes");
        }
        assert_eq!(payloads(&[frame(&[1, 1, 0, 0, 7]), frame(&[])]), [vec![7], vec![]]);
    }

    #[test]
    fn family_that_no_kernel_has_is_missing_by_name() {
        let error = Genl::open("netd-none", 1).unwrap_err();
        assert!(matches!(&error.cause, Cause::Missing(what) if what == "kernel subsystem netd-none"), "{error:?}");
        assert_eq!(read_u16(&[1]), None);
    }
}
