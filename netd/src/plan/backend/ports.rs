//! The UDP ports by which tunnels reach other nodes.
//!
//! Invariant: only ports that this node itself receives on; ipip has none.

use super::Backend;

impl Backend {
    /// The ports of this node's tunnels.
    pub(crate) fn tunnel_ports(&self) -> Vec<u16> {
        match self {
            Self::Vxlan(options) => vec![options.port],
            Self::Wireguard(options) => options.ports.values().copied().collect(),
            Self::HostGw | Self::Ipip(_) | Self::Alloc | Self::Extension => Vec::new(),
        }
    }
}
