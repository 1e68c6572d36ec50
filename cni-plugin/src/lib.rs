//! The CNI plugin: one exec per Pod, veth into cbr0 with IPAM and host ports inside.
//!
//! One process serves one verb and ends. It blocks, has one thread, and executes no other program.
//!
//! | room | what it is | may use |
//! |---|---|---|
//! | [`protocol`] | what the runtime says and is answered; pure | nothing of ours |
//! | [`plan`] | facts in, ordered steps out; pure | `protocol` |
//! | [`state`] | files under locks: records, reservations | `protocol`, `plan` |
//! | [`apply`] | steps into the kernel, and their undo | `plan`, `protocol` |
//! | [`reclaim`] | what nobody deleted, and what the predecessor's chain left | `state`, `apply` |
//! | [`roles`] | one plugin name per module: its verbs gather facts, plan, apply, return a result | all of them |
//! | [`call`] | one execution: version gates, the role's verb, the answer | `roles`, `state` |

// They panic where nobody takes what they print.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub(crate) mod apply;
pub(crate) mod call;
#[cfg(test)]
mod fuzz;
pub(crate) mod plan;
pub(crate) mod protocol;
pub(crate) mod reclaim;
pub(crate) mod roles;
pub(crate) mod state;

// What `main` executes.
pub use call::{Answer, serve};
pub use roles::cleanup::{CLEANUP_USAGE, Cleaned, Cleanup};
pub use roles::install::{Install, InstallError, USAGE};
pub use state::calls::Counted;

// What the tests that feed it anything (`tests/properties.rs`, `tests/fuzz`) read with.
pub use plan::bandwidth::ifb_name;
pub use plan::gc::Subject;
pub use protocol::args::{CniArgs, Request};
pub use protocol::attachment::{Attachment, ContainerId};
pub use protocol::error::{CniError, Code};
pub use protocol::fields::Fields;
pub use protocol::netconf::bridge::Defaults;
pub use protocol::netconf::host_local::parse as parse_host_local;
pub use protocol::netconf::runtime::Honoured;
pub use protocol::netconf::{BandwidthConf, BridgeConf, FlannelConf, NetConf, PortmapConf, RuntimeConfig};
pub use protocol::range::{Range, RangeSet};
pub use protocol::result::{AddResult, Dns, Interface, IpConfig, ResultRoute, parse as parse_result};
pub use protocol::version::SpecVersion;
pub use state::places::Places;
pub use state::records::{Class, Records};
pub use state::reservations::{Sharing, Store};
