//! The kernel's tables: the only crate that opens sockets to the Linux kernel, and the only one with `unsafe`.
//!
//! Every table of the kernel that the product writes has a module that observes it and applies steps to it, as a
//! [`reconcile::Target`]. All of them block; daemons call them from one dedicated thread, the CNI plugin directly.
//!
//! | module | table | oldest kernel |
//! |---|---|---|
//! | [`link`] | links: veth, bridge, vxlan, ipip, wireguard, dummy | 4.20 |
//! | [`address`], [`route`], [`neighbour`], [`fdb`] | addresses, routes, neighbours, tunnel forwarding | 4.20 |
//! | [`offload`] | who counts the checksums of packets that links send | any |
//! | [`qdisc`] | rate limits of links, the detour over `ifb` devices | 4.20 |
//! | [`sysctl`] | parameters under /proc/sys/net | any |
//! | `watch` (feature) | change notifications of the tables above, on tokio | 4.20 |
//! | `address_watch` (feature `watch`) | none: addresses as they come and go, on tokio | 4.20 |
//! | `netconf` (feature `watch`) | none: notifications of parameters, on tokio | 4.20 |
//! | `query` (feature `watch`) | none: what the daemons ask outside their tables, on tokio | 4.20 |
//! | [`ipset`] | none: lists and destroys sets that others have left | 2.6.39 |
//! | [`ipvs`] | IPVS virtual and real servers, time-outs | 4.20 |
//! | [`wireguard`] | identity, port and peers of WireGuard devices | 5.6 |
//! | [`nft`] | nftables tables, elements, foreign drop policies; its own monitor | 5.10 |
//! | [`conntrack`] | tracked connections, to delete stale ones | 4.20 |
//! | [`feature`] | none: what this kernel has of what the programs need | 5.10 |
//! | [`way`] | none: the routes that packets to many addresses take | 4.20 |
//! | [`orphan`] | none: leaves slow clean-ups to a process of its own | 4.20 |
//! | [`probe`] | none: UDP sockets that test a path | any |
//! | [`holders`] | none: asks a link who else has an address | any |
//! | [`bound`] | none: which interfaces UDP sockets are bound to | any |
//! | [`legacy`] | reads the chains FORWARD and INPUT of iptables-legacy | any |
//! | [`listener`] | none: sockets that wait for clients | any |
//! | [`name`] | none: abstract unix sockets that one process holds | any |
//! | [`netns`] | network namespaces | 3.8 |
//! | [`clock`] | none: whether anything keeps the clock | any |
//! | [`writer`] | none: names whoever else writes into a table | 4.15 |
//! | [`written`] | none: which announcements are of our own writing | any |
//! | [`arena`] | none: memory for a process that ends soon | any |

pub mod address;
#[cfg(feature = "watch")]
pub mod address_watch;
pub mod arena;
mod attribute;
pub mod bound;
mod bridge;
pub mod clock;
pub mod conntrack;
mod endpoint;
pub mod error;
#[cfg(feature = "fake")]
pub mod fake;
pub mod fdb;
pub mod feature;
#[cfg(any(test, feature = "fuzz"))]
mod fuzz;
mod genl;
#[cfg(target_endian = "little")]
#[cfg(test)]
mod golden;
pub mod heap;
pub mod holders;
pub mod ipset;
pub mod ipvs;
pub mod legacy;
pub mod link;
pub mod listener;
pub mod name;
pub mod neighbour;
#[cfg(feature = "watch")]
pub mod netconf;
pub mod netns;
pub mod nft;
pub mod offload;
pub mod orphan;
mod parts;
pub mod probe;
pub mod qdisc;
#[cfg(feature = "watch")]
pub mod query;
pub mod route;
mod rtnl;
mod socket;
mod sockopt;
pub mod sysctl;
#[cfg(feature = "watch")]
pub mod watch;
pub mod way;
pub mod wireguard;
pub mod writer;
pub mod written;

pub use error::{Cause, KernelError, Nack, SocketError};
#[cfg(feature = "fuzz")]
pub use fuzz::TARGETS as FUZZ_TARGETS;
pub use netns::Netns;
pub use reconcile::Chain;
pub use rtnl::Rtnl;
pub use socket::Socket;
