//! `Monitor`: the kernel's own word that somebody changed a table.
//!
//! Changes carry no rows: a loop that is woken lists its table again, so a lost notification costs a listing and never
//! a change. An overrun of the receive buffer becomes [`Change::Lost`]. What our own sockets changed is left out, by the
//! port id that the kernel writes into each notification. Behind the changes of a transaction the kernel says which process
//! made it, which is noted in [`Writers`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(feature = "watch")]
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_NETFILTER;
use netstate::nft::{Family, Name, TableKey};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::wire::{SUBSYSTEM, kind, number, text};
use crate::attribute;
use crate::error::KernelError;
use crate::writer::Writers;

/// NFNLGRP_NFTABLES (include/uapi/linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;
/// Receive buffer in bytes: a flushed ruleset is one notification for each rule and each element.
const RECEIVE_BUFFER: usize = 16 * 1024 * 1024;
/// Bytes of `nlmsghdr` and of `nfgenmsg` behind it.
const HEADERS: usize = 20;
/// NFTA_GEN_PROC_PID and NFTA_GEN_PROC_NAME.
const GEN_PROC_PID: u16 = 2;
const GEN_PROC_NAME: u16 = 3;
/// NFT_MSG_TRACE, which is about packets.
const TRACE: u16 = 17;

/// What somebody else did.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Something in this table, or the table itself, was made, changed or removed.
    Table {
        /// The table.
        table: TableKey,
        /// The netlink port id of the socket that did it.
        port: u32,
    },
    /// Notifications were lost: every table may have changed.
    Lost,
}

/// A listener to changes in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Monitor {
    socket: netlink_sys::Socket,
    reader: Reader,
    buffer: Vec<u8>,
}

/// What notifications are read with.
#[derive(Debug, Default)]
pub(super) struct Reader {
    own: BTreeSet<u32>,
    writers: Writers,
    /// Tables of the transactions whose end is still to come, by port id.
    open: BTreeMap<u32, BTreeSet<TableKey>>,
}

impl Monitor {
    /// Starts listening; `own` are the port ids of our writing conversations, [`super::Nft::port`]; in `writers` is noted
    /// who else wrote.
    ///
    /// # Errors
    /// When the kernel refuses the socket; CAP_NET_ADMIN is needed.
    pub fn open(own: BTreeSet<u32>, writers: Writers) -> Result<Self, KernelError> {
        let error = |call: &'static str| move |source| KernelError::io("open", "nftables monitor", call, source);
        let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER).map_err(error("socket"))?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(error("bind"))?;
        socket.add_membership(GROUP).map_err(error("NETLINK_ADD_MEMBERSHIP"))?;
        socket.set_non_blocking(true).map_err(error("O_NONBLOCK"))?;
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
        }
        let reader = Reader { own, writers, open: BTreeMap::new() };
        Ok(Self { socket, reader, buffer: vec![0; 64 * 1024] })
    }

    /// What has happened since the last call, each change once; empty when nothing has. Never blocks.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn read(&mut self) -> Result<BTreeSet<Change>, KernelError> {
        let mut changes = BTreeSet::new();
        loop {
            let mut window = self.buffer.as_mut_slice();
            match self.socket.recv(&mut window, 0) {
                Ok(size) => self.reader.read(self.buffer.get(..size).unwrap_or_default(), &mut changes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.reader.open.clear();
                    changes.insert(Change::Lost);
                }
                Err(source) => return Err(KernelError::io("read", "nftables monitor", "recv", source)),
            }
        }
    }

    /// Waits for changes, at most `milliseconds`; empty when none came.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn wait(&mut self, milliseconds: u16) -> Result<BTreeSet<Change>, KernelError> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(milliseconds)) {
            Ok(_) | Err(nix::Error::EINTR) => self.read(),
            Err(errno) => Err(KernelError::io("wait for", "nftables monitor", "poll", errno.into())),
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(feature = "watch")]
impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Reader {
    /// Reads the notifications of one datagram.
    pub(super) fn read(&mut self, mut datagram: &[u8], changes: &mut BTreeSet<Change>) {
        while let Some([l0, l1, l2, l3, k0, k1, _, _, _, _, _, _, p0, p1, p2, p3, family, ..]) =
            datagram.first_chunk::<HEADERS>()
        {
            let length = usize::try_from(u32::from_ne_bytes([*l0, *l1, *l2, *l3])).unwrap_or(usize::MAX);
            let port = u32::from_ne_bytes([*p0, *p1, *p2, *p3]);
            let message = u16::from_ne_bytes([*k0, *k1]) ^ SUBSYSTEM;
            if !self.own.contains(&port) {
                let attributes = datagram.get(HEADERS..length).unwrap_or_default();
                changes.extend(self.notification(message, *family, port, attributes));
            }
            datagram = datagram.get(length.max(HEADERS).next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn notification(&mut self, message: u16, family: u8, port: u32, attributes: &[u8]) -> Option<Change> {
        if message == kind::NEWGEN {
            self.end(port, attributes);
        }
        // Everything but these two names its table in attribute 1.
        let about_table = message <= u16::from(u8::MAX) && message != kind::NEWGEN && message != TRACE;
        let name = about_table.then(|| text(attributes, 1)).flatten()?;
        let table = TableKey { family: Family::from_number(family)?, name: Name::observed(name) };
        let tables = self.open.entry(port).or_default();
        if !tables.contains(&table) {
            tables.insert(table.clone());
        }
        Some(Change::Table { table, port })
    }

    /// The end of a transaction.
    fn end(&mut self, port: u32, attributes: &[u8]) {
        let tables = self.open.remove(&port).unwrap_or_default();
        let name = attribute::find(attributes, GEN_PROC_NAME).map(attribute::text);
        if let (Some(pid), Some(name)) = (number(attributes, GEN_PROC_PID), name) {
            tables.iter().for_each(|table| self.writers.note_process(table, port, pid, &name));
        }
    }
}

/// A [`Monitor`] on tokio.
#[cfg(feature = "watch")]
#[derive(Debug)]
pub struct Stream(tokio::io::unix::AsyncFd<Monitor>);

#[cfg(feature = "watch")]
impl Stream {
    /// Starts listening as [`Monitor::open`] does. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open(own: BTreeSet<u32>, writers: Writers) -> Result<Self, KernelError> {
        let monitor = Monitor::open(own, writers)?;
        // SAFETY: the monitor owns its descriptor and neither replaces nor closes it while it lives.
        #[allow(unsafe_code)]
        let fd = unsafe { tokio::io::unix::AsyncFd::register(monitor) };
        fd.map(Self).map_err(|source| KernelError::io("open", "nftables monitor", "epoll_ctl", source.into()))
    }

    /// The next changes, at least one. Dropping the future loses none.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn next(&mut self) -> Result<BTreeSet<Change>, KernelError> {
        loop {
            let mut ready = self
                .0
                .readable_mut()
                .await
                .map_err(|source| KernelError::io("wait for", "nftables monitor", "epoll_wait", source))?;
            let changes = ready.get_inner_mut().read()?;
            // The monitor reads until the kernel has no more.
            ready.clear_ready();
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}

#[cfg(target_endian = "little")]
#[cfg(test)]
mod tests;
