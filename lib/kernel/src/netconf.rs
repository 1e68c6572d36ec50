//! `Netconf`: the kernel's own word that a parameter of links has changed: forwarding, rp_filter and their like
//! (RTM_NEWNETCONF), whoever wrote it and by whichever mount of /proc.
//!
//! Notifications carry no values here: whoever is woken reads the parameters again.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use crate::error::KernelError;

/// RTNLGRP_IPV4_NETCONF and RTNLGRP_IPV6_NETCONF (include/uapi/linux/rtnetlink.h).
const GROUPS: [u32; 2] = [24, 25];

/// A stream of notifications in the network namespace of the thread that opened it.
pub struct Netconf {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Netconf {
    /// Starts watching. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, KernelError> {
        let error = |call: &'static str| move |source| KernelError::io("open", "monitor of parameters", call, source);
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(error("socket"))?;
        let inner = socket.socket_mut();
        inner.bind(&SocketAddr::new(0, 0)).map_err(error("bind"))?;
        for group in GROUPS {
            inner.add_membership(group).map_err(error("NETLINK_ADD_MEMBERSHIP"))?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(32 * 1024) })
    }

    /// Waits for a change. Dropping the future loses none.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn changed(&mut self) -> Result<(), KernelError> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer).await {
            Ok(()) => Ok(()),
            // Some were lost: which does not matter.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(source) => Err(KernelError::io("read", "monitor of parameters", "recv", source)),
        }
    }
}
