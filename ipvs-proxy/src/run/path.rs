//! Which data path this kernel can carry, found once at the start.
//!
//! Invariant: a data path that was asked for by name is used or refused, never replaced; what the other one has left behind in
//! IPVS is refused as well, because virtual servers would go on beside the new path.

use std::path::Path;

use anyhow::bail;
use kernel::Cause;
use kernel::ipvs::Ipvs;
use kernel::nft::{Nft, Tables};
use reconcile::Target;

use crate::command::config::Mode;
use crate::dataplane::{self, record};

/// The data path of this node.
pub(super) struct Opened {
    /// Who carries connections.
    pub(super) mode: dataplane::Mode,
    /// IPVS, where the kernel has it.
    pub(super) ipvs: Option<Ipvs>,
}

/// Opens IPVS where the kernel has it, and says who carries connections.
///
/// # Errors
/// When the kernel has no IPVS and it was asked for, or refuses the conversation; when virtual servers of ours are left and
/// nftables was asked for.
pub(super) fn open(mode: Mode) -> anyhow::Result<Opened> {
    if mode == Mode::Nftables {
        refuse_leftovers()?;
        // Opening loads the module, which nobody has asked for.
        let ipvs = if is_loaded() { Ipvs::open().ok() } else { None };
        return Ok(Opened { mode: dataplane::Mode::Nftables, ipvs });
    }
    match Ipvs::open() {
        Ok(ipvs) => Ok(Opened { mode: dataplane::Mode::Ipvs, ipvs: Some(ipvs) }),
        Err(error) => match (&error.cause, mode) {
            (Cause::Missing(_), Mode::Auto) => {
                tracing::info!("this kernel has no IPVS (module ip_vs): nftables is the data path");
                Ok(Opened { mode: dataplane::Mode::Nftables, ipvs: None })
            }
            (Cause::Missing(_), _) => Err(anyhow::Error::new(error).context(
                "this kernel has no IPVS: load the modules ip_vs and ip_vs_rr (modprobe, or /etc/modules-load.d), or use the \
                 data path that needs none, --proxy-mode nftables",
            )),
            _ => Err(error.into()),
        },
    }
}

/// True when the kernel has IPVS already.
fn is_loaded() -> bool {
    Path::new("/proc/net/ip_vs").exists()
}

/// Refuses to begin beside virtual servers that this program has made.
fn refuse_leftovers() -> anyhow::Result<()> {
    let rows = Tables::new(Nft::open()?, dataplane::tables()).observe()?;
    let left = record::servers(&rows).len();
    if left > 0 {
        bail!(
            "{left} virtual servers of the IPVS data path are in the kernel: remove them first with ipvs-proxy --cleanup; \
             connections that they carry end"
        );
    }
    Ok(())
}
