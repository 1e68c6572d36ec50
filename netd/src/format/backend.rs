//! `Backend`: how packets get from node to node, as net-conf.json says it.
//!
//! Invariant: a backend of flannel that this program does not have is refused by name; an option that a backend does not
//! have here is ignored and told.

use crate::format::go_json::Object;
use crate::format::net_conf::BOOL;
use cluster::Problem;

/// flannel's VXLAN network identifier when none is configured.
const DEFAULT_VNI: u32 = 1;

/// The UDP port of Linux' VXLAN before IANA gave it 4789; flannel uses it when `Port` is 0 (drivers/net/vxlan).
const DEFAULT_PORT: u16 = 8472;

/// How packets get from node to node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A VXLAN tunnel to each node.
    Vxlan(Vxlan),
    /// A plain route through each node's address; nodes share one layer 2 network.
    HostGw,
}

/// Options of the `vxlan` backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 1..=16777215; the device is `flannel.<VNI>`.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// MTU in bytes of the network *below* the tunnel; the external interface's when absent.
    pub mtu: Option<u32>,
    /// Group policy extension.
    pub gbp: bool,
    /// Learn remote end points from traffic.
    pub learning: bool,
    /// Use a plain route to nodes on the external interface's own network.
    pub direct_routing: bool,
}

impl Backend {
    /// The backend's name in net-conf and in leases.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
        }
    }
}

/// Takes the member `Backend` of net-conf; `None` when it has problems.
pub(crate) fn take(object: &mut Object, problems: &mut Vec<Problem>, notes: &mut Vec<String>) -> Option<Backend> {
    let accepted = "vxlan or host-gw";
    let mut backend = match object.take_object("Backend", problems) {
        Some(backend) => backend,
        None if problems.iter().any(|problem| problem.field == "Backend") => return None,
        None => {
            notes.push("Backend: absent, taken as vxlan (flannel would take udp)".to_owned());
            let vxlan = Vxlan {
                vni: DEFAULT_VNI,
                port: DEFAULT_PORT,
                mtu: None,
                gbp: false,
                learning: false,
                direct_routing: false,
            };
            return Some(Backend::Vxlan(vxlan));
        }
    };
    let kind: String = backend.take("Type", accepted, problems).unwrap_or_default();
    let taken = match kind.to_ascii_lowercase().as_str() {
        "vxlan" => take_vxlan(&mut backend, problems).map(Backend::Vxlan),
        "host-gw" => Some(Backend::HostGw),
        "udp" | "ipip" | "wireguard" | "ipsec" | "extension" | "alloc" | "tencent-vpc" => {
            let message = format!("{kind:?} is a backend of flannel that this netd does not have");
            problems.push(Problem::new("Backend.Type", message, accepted));
            return None;
        }
        _ => {
            problems.push(Problem::new("Backend.Type", format!("{kind:?} is an unknown backend type"), accepted));
            return None;
        }
    };
    notes.extend(backend.rest().iter().map(|key| format!("{key}: not an option of {kind} here, ignored")));
    taken
}

fn take_vxlan(backend: &mut Object, problems: &mut Vec<Problem>) -> Option<Vxlan> {
    let known = problems.len();
    let vni: Option<u32> = backend.take("VNI", "a number from 1 to 16777215", problems);
    let port: Option<u16> = backend.take("Port", "a UDP port from 0 (which means 8472) to 65535", problems);
    let mtu: Option<u32> = backend.take("MTU", MTU, problems);
    let mut flag = |name| backend.take(name, BOOL, problems).unwrap_or(false);
    let (gbp, learning, direct_routing) = (flag("GBP"), flag("Learning"), flag("DirectRouting"));
    // An option of flannel on Windows; accepted so that one text serves both.
    backend.take_raw("MacPrefix");
    if let Some(vni) = vni.filter(|vni| !(1..1 << 24).contains(vni)) {
        problems.push(Problem::new("Backend.VNI", vni.to_string(), "a number from 1 to 16777215"));
    }
    let mtu = mtu.filter(|mtu| *mtu != 0);
    if let Some(mtu) =
        mtu.filter(|mtu| !(netstate::mtu::MIN_IPV4 + netstate::mtu::VXLAN_OVER_IPV4..=65535).contains(mtu))
    {
        problems.push(Problem::new("Backend.MTU", mtu.to_string(), MTU));
    }
    (problems.len() == known).then(|| Vxlan {
        vni: vni.unwrap_or(DEFAULT_VNI),
        port: port.filter(|port| *port != 0).unwrap_or(DEFAULT_PORT),
        mtu,
        gbp,
        learning,
        direct_routing,
    })
}

const MTU: &str = "the MTU of the network below in bytes, from 118 to 65535";
