//! Generic netlink: one numbered protocol per kernel subsystem, resolved by name (include/uapi/linux/genetlink.h).
//!
//! Invariant: the family's number is asked for on the socket it is used on. It is given out when a module is loaded, so
//! it is never assumed, never kept longer than the socket, and asked for again when the kernel does not know it: a module that was
//! loaded anew has another one.

use netlink_sys::protocols::NETLINK_GENERIC;

use crate::attribute::{self, Writer};
use crate::error::{Cause, KernelError, Nack, SocketError};
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
    name: &'static str,
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
        let id = resolve(&mut socket, name).map_err(|fault| match fault {
            Fault::Nack(nack) if nack.errno == libc::ENOENT => {
                error(Cause::Missing(format!("kernel subsystem {name}")))
            }
            other => error(other.into()),
        })?;
        let family = id.ok_or_else(|| error(Cause::Unexpected("no family number".to_owned())))?;
        Ok(Self { socket, name, family, version })
    }

    /// After a refusal: true when the family has another number by now, which is used from here on.
    fn has_moved(&mut self, nack: &Nack) -> bool {
        if nack.errno != libc::ENOENT {
            return false;
        }
        let found = resolve(&mut self.socket, self.name).ok().flatten();
        found.is_some_and(|found| std::mem::replace(&mut self.family, found) != found)
    }

    /// Carries out `act` with a message, and once more when the family had another number.
    fn with<T>(
        &mut self,
        message: Message,
        act: impl Fn(&mut Socket, &Message) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        match act(&mut self.socket, &message) {
            Err(Fault::Nack(nack)) if self.has_moved(&nack) => {
                let again = Message { kind: self.family, ..message };
                act(&mut self.socket, &again)
            }
            other => other,
        }
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
        Ok(payloads(&self.with(message, Socket::dump)?))
    }

    /// Lists, and keeps of each object's attributes what `read` makes of them.
    pub(crate) fn list<T>(
        &mut self,
        command: u8,
        body: Writer,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Fault> {
        let message = self.message(command, body);
        self.with(message, |socket, message| socket.list(message, |frame| read(payload(&frame))))
    }

    /// Asks for one object's attributes.
    pub(crate) fn ask(&mut self, command: u8, body: Writer) -> Result<Vec<Vec<u8>>, Fault> {
        let message = self.message(command, body);
        Ok(payloads(&self.with(message, Socket::ask)?))
    }

    /// Sends one message; returns the attributes of what came before its ACK.
    pub(crate) fn request(&mut self, command: u8, body: Writer) -> Result<Vec<Vec<u8>>, Fault> {
        let message = self.message(command, body);
        Ok(payloads(&self.with(message, Socket::request)?))
    }

    /// Sends many messages and returns what became of each.
    pub(crate) fn batch(&mut self, messages: &[Message]) -> Result<Results, SocketError> {
        let mut results = self.socket.batch(messages)?;
        let unknown = results.iter().find_map(|result| result.as_ref().err()).cloned();
        if unknown.is_some_and(|nack| self.has_moved(&nack)) {
            let refused = |result: &Result<(), Nack>| matches!(result, Err(nack) if nack.errno == libc::ENOENT);
            let family = self.family;
            let renumbered = |message: &Message| Message { kind: family, ..message.clone() };
            let pairs = messages.iter().zip(&results).filter(|(_, result)| refused(result));
            let again: Vec<Message> = pairs.map(|(message, _)| renumbered(message)).collect();
            let answers = self.socket.batch(&again)?;
            let open = results.iter_mut().filter(|result| refused(result));
            open.zip(answers).for_each(|(result, answer)| *result = answer);
        }
        Ok(results)
    }
}

/// The number of a family; none when the kernel's answer has none.
fn resolve(socket: &mut Socket, name: &str) -> Result<Option<u16>, Fault> {
    let mut body = Writer::behind(header(GET_FAMILY, CONTROLLER_VERSION));
    body.put_str(FAMILY_NAME, name);
    let request = Message { kind: CONTROLLER, flags: 0, body: body.finish() };
    let frames = socket.request(&request)?;
    Ok(frames.iter().find_map(|frame| attribute::find(payload(frame), FAMILY_ID)).and_then(read_u16))
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
    fn a_family_that_was_given_another_number_is_resolved_again() {
        // The controller, under its own name, is on every kernel.
        let mut genl = Genl::open("nlctrl", CONTROLLER_VERSION).unwrap();
        let right = genl.family;
        let wanted = || {
            let mut body = Writer::default();
            body.put_str(FAMILY_NAME, "nlctrl");
            body
        };
        // No family has this number.
        let stale = |genl: &mut Genl| genl.family = 0x3fe;
        stale(&mut genl);
        assert_eq!(genl.request(GET_FAMILY, wanted()).unwrap().len(), 1);
        assert_eq!(genl.family, right);
        stale(&mut genl);
        let messages = [genl.message(GET_FAMILY, wanted()), genl.message(GET_FAMILY, wanted())];
        let results = genl.batch(&messages).unwrap();
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert_eq!(genl.family, right);
        let mut none = Writer::default();
        none.put_str(FAMILY_NAME, "netd-none");
        assert!(genl.request(GET_FAMILY, none).is_err(), "what is refused by the right family stays refused");
    }

    #[test]
    fn family_that_no_kernel_has_is_missing_by_name() {
        let error = Genl::open("netd-none", 1).unwrap_err();
        assert!(matches!(&error.cause, Cause::Missing(what) if what == "kernel subsystem netd-none"), "{error:?}");
        assert_eq!(read_u16(&[1]), None);
    }
}
