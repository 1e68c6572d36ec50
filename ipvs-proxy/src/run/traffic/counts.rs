//! `Counts`: what the kernel has counted, read once.
//!
//! Invariant: conversations of its own are opened for it and closed behind it; the tables' own wait for nothing here.

use kernel::KernelError;
use kernel::ipvs::{Ipvs, Traffic};
use kernel::nft::Nft;
use netstate::IpFamily;
use netstate::ipvs::VirtualServerKey;
use netstate::nft::{ElementKey, RowKey};

use crate::dataplane::nftables::{self, statics};
use crate::plan::FrontendKey;

/// What has counted anything.
#[derive(Debug)]
pub(super) struct Counts {
    /// New connections that came to a frontend.
    pub(super) connections: Vec<(FrontendKey, u64)>,
    /// What virtual servers carried.
    pub(super) traffic: Vec<(VirtualServerKey, Traffic)>,
}

impl Counts {
    /// Reads them, those of virtual `servers` too if they are wanted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn read(servers: bool) -> Result<Self, KernelError> {
        let mut nft = Nft::open()?;
        let mut connections = Vec::new();
        for (at, set) in IpFamily::ALL.into_iter().flat_map(statics::counting) {
            for counted in nft.counted(&at, &set)? {
                let element = ElementKey { table: at.table.clone(), set: at.set.clone(), key: counted.key.into() };
                let frontend = nftables::frontend(&RowKey::Element(element));
                connections.extend(frontend.map(|frontend| (frontend, counted.tally.packets)));
            }
        }
        let traffic = if servers { Ipvs::open()?.traffic()? } else { Vec::new() };
        Ok(Self { connections, traffic })
    }
}
