//! The nouns of Linux networking as plain, ordered values.
//!
//! Nothing here performs IO, reads a clock or logs. Each table of the kernel is a pair of types: a `…Key`
//! that identifies one row and a value that says how the row must look. Two values that compare equal mean
//! the same kernel state; that equality is what the whole product's "nothing to do" rests on.

pub mod address;
pub mod address_plan;
pub mod calls;
pub mod family;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
pub mod ifname;
pub mod ipvs;
pub mod link;
pub mod mac;
pub mod mark;
pub mod mtu;
pub mod neighbour;
pub mod nft;
mod offload;
pub mod prefix;
pub mod protocol;
pub mod qdisc;
mod release;
pub mod route;
pub mod scheduler;
pub mod subnet_file;
pub mod sysctl;
pub mod vlan;
mod vxlan;
pub mod wireguard;

/// One row as text: what it is, then how it is. Status pages, `tables` and golden tests print rows so.
#[must_use]
pub fn row_text(key: &impl std::fmt::Display, value: &impl std::fmt::Display) -> String {
    format!("{key} {value}").trim_end().to_owned()
}

pub use address::{Address, AddressKey, InterfaceAddress};
pub use address_plan::AddressPlan;
pub use family::{IpFamily, PerFamily};
#[cfg(feature = "fuzz")]
pub use fuzz::TARGETS as FUZZ_TARGETS;
pub use ifname::IfName;
pub use link::{BridgeOptions, IpipOptions, Link, LinkKind, PortOptions};
pub use mac::MacAddr;
pub use neighbour::{Fdb, FdbKey, Neighbour, NeighbourKey};
pub use offload::TxChecksum;
pub use prefix::Prefix;
pub use protocol::Protocol;
pub use qdisc::TokenBucket;
pub use release::Release;
pub use route::{Route, RouteKey, RouteKind, RouteMetrics, RouteScope};
pub use sysctl::SysctlKey;
pub use vlan::{PortVlans, VlanMode};
pub use vxlan::{VxlanExtra, VxlanOptions};
