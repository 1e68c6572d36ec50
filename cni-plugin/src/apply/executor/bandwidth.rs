//! Steps that limit a Pod's traffic.
//!
//! Invariant: what stands in the place of a limit already is somebody's; it is neither replaced nor undone.

use kernel::{KernelError, Rtnl};
use netstate::{IfName, MacAddr, TokenBucket};
use nix::libc;

use super::KernelExecutor;
use crate::apply::needs;
use crate::protocol::error::{CniError, Code};

impl KernelExecutor<'_> {
    pub(super) fn limit(&mut self, link: &IfName, bucket: &TokenBucket) -> Result<(), CniError> {
        let index = self.index(link)?;
        self.host.add_bucket(index, bucket).map_err(not_twice)
    }

    pub(super) fn create_ifb(&mut self, name: &IfName, mac: MacAddr, mtu: u32) -> Result<(), CniError> {
        let index = self.host.create_ifb(name, mac, mtu).map_err(not_twice)?;
        self.indexes.insert(name.clone(), index);
        Ok(())
    }

    pub(super) fn hook_ingress(&mut self, link: &IfName) -> Result<(), CniError> {
        let index = self.index(link)?;
        self.host.add_ingress(index).map_err(|error| match error.errno() {
            Some(libc::EEXIST) => not_twice(error),
            _ => needs::detour_refused(error),
        })
    }

    pub(super) fn redirect(&mut self, link: &IfName, over: &IfName) -> Result<(), CniError> {
        let (index, to) = (self.index(link)?, self.index(over)?);
        self.host.redirect(index, to).map_err(needs::detour_refused)
    }

    /// Takes something off a link; a link that is gone has nothing on it.
    pub(super) fn take_off(
        &mut self,
        link: &IfName,
        take: impl FnOnce(&mut Rtnl, u32) -> Result<(), KernelError>,
    ) -> Result<(), CniError> {
        match self.host.link(link)? {
            Some(found) => take(&mut self.host, found.index).map_err(CniError::from),
            None => Ok(()),
        }
    }
}

fn not_twice(error: KernelError) -> CniError {
    match error.errno() {
        Some(libc::EEXIST) => {
            CniError::new(Code::AlreadyAttached, kernel::Chain(&error).to_string()).details("DEL it first")
        }
        _ => error.into(),
    }
}
