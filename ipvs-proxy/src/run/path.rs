//! Which data path this kernel can carry, found once at the start.
//!
//! Invariant: a data path that was asked for by name is used or refused, never replaced. IPVS is opened in either mode where the kernel
//! has it, so that what it carries from before ends well.

use std::path::Path;

use kernel::Cause;
use kernel::ipvs::Ipvs;

use crate::command::config::Mode;
use crate::dataplane;

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
/// When the kernel has no IPVS and it was asked for, or refuses the conversation.
pub(super) fn open(mode: Mode) -> anyhow::Result<Opened> {
    if mode == Mode::Nftables {
        // Opening loads the module, which nobody has asked for.
        let ipvs = if is_loaded() { Some(Ipvs::open()?) } else { None };
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
                "this kernel has no IPVS: load the modules ip_vs and ip_vs_rr (modprobe ip_vs, or /etc/modules-load.d; \
                 CONFIG_IP_VS), or use the data path that needs none, --proxy-mode nftables",
            )),
            _ => Err(error.into()),
        },
    }
}

/// True when the kernel has IPVS already.
pub(super) fn is_loaded() -> bool {
    Path::new("/proc/net/ip_vs").exists()
}
