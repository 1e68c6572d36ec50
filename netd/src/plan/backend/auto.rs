//! The `auto` backend: a plain route to nodes that are reached without a router, a tunnel to the others.
//!
//! It is no backend of its own on the wire: leases are the tunnel's, so nodes of flannel with that backend and
//! `DirectRouting` are its equals. Invariant: which tunnel it is says `Tunnel`; every other option is that tunnel's.

use super::{Backend, host_gw, ipip, vxlan, wireguard};
use crate::format::go_json::Object;
use cluster::Problem;

pub(super) const NAME: &str = "auto";

const TUNNELS: &str = "vxlan, wireguard or ipip";

/// Reads the options; `None` when they have problems.
pub(super) fn take(backend: &mut Object, problems: &mut Vec<Problem>) -> Option<Backend> {
    let known = problems.len();
    let tunnel = backend.take::<String>("Tunnel", TUNNELS, problems).unwrap_or_else(|| vxlan::NAME.to_owned());
    let tunnel = tunnel.to_ascii_lowercase();
    if ![vxlan::NAME, wireguard::NAME, ipip::NAME].contains(&tunnel.as_str()) {
        let message = match tunnel.as_str() {
            host_gw::NAME => "host-gw is no tunnel; it is what auto does without one".to_owned(),
            other => format!("{other:?} is no tunnel"),
        };
        problems.push(Problem::new("Backend.Tunnel", message, TUNNELS));
    }
    // What else it says could only contradict.
    backend.take_raw("DirectRouting");
    if problems.len() > known {
        return None;
    }
    Backend::take(&tunnel, backend, problems).map(Backend::routing_directly)
}
