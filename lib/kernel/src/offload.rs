//! Checksum offload of links, as `ethtool -K LINK tx` sets it (ETHTOOL_STXCSUM, include/uapi/linux/ethtool.h).
//!
//! The call and not ethtool's netlink family: the kernels that need it off are older than the family. The kernel notifies
//! of a change by RTM_NEWLINK, so the monitor of links is the monitor of this table. Invariant: what this table turned off
//! is turned on again when nobody desires it; what somebody else set is left alone.

use std::collections::BTreeSet;
use std::ffi::c_char;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netstate::{IfName, TxChecksum};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use reconcile::{Observed, Owner, Rows, Step, Target};

use crate::error::{Cause, KernelError};

/// include/uapi/linux/sockios.h. As each C library types the argument: libc's own constant is a `c_ulong` with all of them.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// Says whether any checksum of sent packets is offloaded.
const ETHTOOL_GTXCSUM: u32 = 0x16;
/// Offloads all that the link can, or none.
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// Who counts the checksums of packets that links send, as a table.
#[derive(Debug)]
pub struct TxChecksums {
    socket: OwnedFd,
    links: BTreeSet<IfName>,
    /// Links that this table set.
    set: BTreeSet<IfName>,
}

impl TxChecksums {
    /// The links called `links` of the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn open(links: impl IntoIterator<Item = IfName>) -> Result<Self, KernelError> {
        // Any socket serves to reach the links of its namespace; it is bound to no port that packets could arrive at.
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
        let refused = |errno: Errno| KernelError::io("open", "checksum offload", "socket", errno.into());
        let socket = socket.map_err(refused)?;
        Ok(Self { socket, links: links.into_iter().collect(), set: BTreeSet::new() })
    }

    /// `None` where there is no such link, or it offloads nothing that could be set.
    fn read(&self, link: &IfName) -> Result<Option<TxChecksum>, KernelError> {
        match self.call(link, ETHTOOL_GTXCSUM, 0) {
            Ok(0) => Ok(Some(TxChecksum::Counted)),
            Ok(_) => Ok(Some(TxChecksum::Offloaded)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EOPNOTSUPP)) => Ok(None),
            Err(source) => Err(KernelError::io("read checksum offload of", link, "SIOCETHTOOL", source)),
        }
    }

    fn write(&mut self, link: &IfName, value: TxChecksum) -> Result<(), KernelError> {
        match self.call(link, ETHTOOL_STXCSUM, u32::from(value == TxChecksum::Offloaded)) {
            Ok(_) => {
                self.set.insert(link.clone());
                Ok(())
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                let missing = Cause::Missing(format!("link {link}"));
                Err(KernelError::new("set checksum offload of", link, missing))
            }
            Err(source) => Err(KernelError::io("set checksum offload of", link, "SIOCETHTOOL", source)),
        }
    }

    fn call(&self, link: &IfName, cmd: u32, data: u32) -> io::Result<u32> {
        let mut value = EthtoolValue { cmd, data };
        let mut name: [c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
        for (place, byte) in name.iter_mut().zip(link.as_str().bytes().take(libc::IFNAMSIZ - 1)) {
            *place = c_char::from_ne_bytes([byte]);
        }
        let data = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() };
        let mut request = libc::ifreq { ifr_name: name, ifr_ifru: data };
        #[allow(unsafe_code, reason = "no library sets this of a link")]
        // SAFETY: the request names a link by a text that ends with 0 and points to an `ethtool_value`, which is what
        // these two commands read and write; both outlive the call.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
    }
}

impl Target for TxChecksums {
    type Key = IfName;
    type Value = TxChecksum;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<IfName, TxChecksum>, KernelError> {
        let mut rows = Rows::new();
        for link in &self.links {
            if let Some(value) = self.read(link)? {
                let ours = value == TxChecksum::Counted && self.set.contains(link);
                let owner = if ours { Owner::Ours } else { Owner::Foreign };
                rows.insert(link.clone(), Observed { owner, value });
            }
        }
        Ok(rows)
    }

    fn apply(&mut self, steps: &[Step<IfName, TxChecksum>]) -> Vec<Result<(), KernelError>> {
        let step = |step: &Step<IfName, TxChecksum>| match step {
            Step::Create(link, value) | Step::Change(link, _, value) => self.write(link, *value),
            Step::Remove(link, _) => {
                let done = self.write(link, TxChecksum::Offloaded);
                self.set.remove(link);
                done
            }
        };
        steps.iter().map(step).collect()
    }
}
