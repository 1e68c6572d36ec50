//! What a test needs from the kernel it runs on, and whether the running kernel has it.
//!
//! Invariant: the answer comes from trying the thing in a machine of the lab, never from a configuration file, and from a version number only
//! where a kernel takes what it then does otherwise (flowtables before 5.13); trying leaves nothing behind.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

use crate::generic_netlink;
use crate::host::Host;

/// Set by `tests/kernel/run` inside the lab kernel when idle time is skipped.
pub(crate) const VIRTUAL_TIME_VARIABLE: &str = "NETD_LAB_VIRTUAL_TIME";

/// A property of the kernel. Namespaces and overlayfs are needed by every test and not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// IPVS, by its generic netlink family.
    IpVs,
    /// nftables for IPv4, IPv6 and both together.
    Nftables,
    /// Links of kind `vxlan`.
    Vxlan,
    /// Links of kind `dummy`.
    Dummy,
    /// Bridges that filter VLANs (CONFIG_BRIDGE_VLAN_FILTERING), and links of kind `vlan`.
    VlanFiltering,
    /// Links of kind `ipip`.
    IpIp,
    /// Links of kind `wireguard`.
    WireGuard,
    /// Flowtables of nftables (CONFIG_NF_FLOW_TABLE) whose flows follow their routes (Linux 5.13).
    Flowtable,
    /// Delay and loss on a link (`tc qdisc ... netem`).
    Netem,
    /// Links of kind `vrf` (CONFIG_NET_VRF).
    Vrf,
    /// The lab kernel itself, to be started by the test: built, and not the kernel this runs on.
    LabKernel,
    /// Idle time that is skipped: only the lab kernel has it, and it must be asked for.
    VirtualTime,
}

impl Need {
    /// Tries the property on the running kernel.
    ///
    /// # Errors
    /// Why the running kernel does not have it.
    pub fn check(self) -> Result<()> {
        let tried = match self {
            Self::IpVs => generic_family("IPVS"),
            Self::Nftables => try_each(&["nft add table ip probe", "nft add table inet probe"]),
            Self::Vxlan => try_each(&["ip link add probe type vxlan id 1 dstport 8472"]),
            Self::Dummy => try_each(&["ip link add probe type dummy"]),
            Self::VlanFiltering => try_each(&[
                "ip link add probe type bridge vlan_filtering 1",
                "ip link add link probe name tagged type vlan id 7",
            ]),
            Self::IpIp => try_each(&["ip link add probe type ipip local 127.0.0.1"]),
            Self::WireGuard => try_each(&["ip link add probe type wireguard"]),
            Self::Flowtable => flows_follow_routes().and_then(|()| {
                try_each(&[
                    "nft add table inet probe",
                    "nft add flowtable inet probe flows { hook ingress priority 0; devices = { lo }; }",
                ])
            }),
            Self::Netem => try_each(&["tc qdisc add dev lo root netem delay 1ms"]),
            Self::Vrf => try_each(&["ip link add probe type vrf table 10"]),
            Self::LabKernel => lab_kernel(),
            Self::VirtualTime => virtual_time(),
        };
        tried.with_context(|| format!("this kernel has no {self}"))
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IpVs => "IPVS",
            Self::Nftables => "nftables",
            Self::Vxlan => "vxlan links",
            Self::Dummy => "dummy links",
            Self::VlanFiltering => "bridges that filter VLANs",
            Self::IpIp => "ipip links",
            Self::WireGuard => "wireguard links",
            Self::Flowtable => "flowtables",
            Self::Netem => "netem",
            Self::Vrf => "vrf links",
            Self::LabKernel => "lab kernel to start",
            Self::VirtualTime => "virtual time",
        })
    }
}

/// Whether this process can make machines at all.
pub(crate) fn check_machines() -> Result<()> {
    Host::start("probe").map(drop).context("machines of the lab cannot be made here")
}

fn try_each(lines: &[&str]) -> Result<()> {
    let host = Host::start("probe")?;
    lines.iter().try_for_each(|line| host.run(&line.split(' ').collect::<Vec<_>>()).map(drop))
}

fn flows_follow_routes() -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    let release = (numbers.next(), numbers.next());
    ensure!(release >= (Some(5), Some(13)), "flows of kernels before 5.13 keep routes that have changed");
    Ok(())
}

fn lab_kernel() -> Result<()> {
    ensure!(!crate::lab_kernel::is_inside(), "it runs here already and does not nest");
    crate::lab_kernel::locate().map(drop)
}

fn virtual_time() -> Result<()> {
    match std::env::var_os(VIRTUAL_TIME_VARIABLE) {
        Some(_) => Ok(()),
        None => bail!("time passes as it does"),
    }
}

fn generic_family(name: &str) -> Result<()> {
    generic_netlink::family(&generic_netlink::open()?, name).map(drop)
}
