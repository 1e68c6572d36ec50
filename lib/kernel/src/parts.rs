//! `Listing`: one rtnetlink table, read one datagram of the kernel's answer at a time.
//!
//! Invariants: it has a conversation of its own, so that the table can be written between two parts; one that the kernel calls
//! torn ends with an error; a link that is gone has no rows. It lists the network namespace of the thread that reads it.

use netlink_packet_route::RouteNetlinkMessage;

use crate::error::{Cause, KernelError};
use crate::rtnl::{Rtnl, encode};
use crate::socket::{Begun, Frame, Message};

/// What is kept of one message of the kernel's answer.
type Read<T> = Box<dyn FnMut(&Frame) -> Option<T> + Send>;

/// See the module's text.
pub(crate) struct Listing<T> {
    op: &'static str,
    /// What is asked for; `None` once it has been.
    message: Option<Message>,
    open: Option<(Rtnl, Begun)>,
    read: Read<T>,
}

impl<T> Listing<T> {
    /// What `message` asks for; of each answer what `read` makes of it is kept.
    pub(crate) fn new(op: &'static str, message: &RouteNetlinkMessage, read: Read<T>) -> Self {
        Self { op, message: Some(encode(message, 0)), open: None, read }
    }

    /// The rows of the next datagram, and whether there is another one.
    fn part(&mut self) -> Result<(Vec<T>, bool), KernelError> {
        let error = |cause: Cause| KernelError { op: self.op, object: "all".to_owned(), cause };
        if let Some(message) = self.message.take() {
            let mut rtnl = Rtnl::open()?;
            let begun = rtnl.socket.begin(&message).map_err(|cause| error(cause.into()))?;
            self.open = Some((rtnl, begun));
        }
        let Some((rtnl, begun)) = &mut self.open else { return Ok((Vec::new(), false)) };
        let mut rows = Vec::new();
        let read = &mut self.read;
        let more =
            rtnl.socket.part(begun, &mut rows, &mut |frame| read(&frame)).map_err(|fault| error(fault.into()))?;
        if !more {
            begun.whole().map_err(|cause| error(cause.into()))?;
        }
        Ok((rows, more))
    }
}

impl<T> Iterator for Listing<T> {
    type Item = Result<Vec<T>, KernelError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.message.is_none() && self.open.is_none() {
            return None;
        }
        let part = self.part();
        if !matches!(part, Ok((_, true))) {
            self.open = None;
        }
        match part {
            Ok((rows, _)) => Some(Ok(rows)),
            Err(error) if error.errno() == Some(libc::ENODEV) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
