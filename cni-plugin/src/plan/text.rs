//! Steps as text: what an error says was being done, and what the tests of plans compare.

use std::fmt;

use super::Step;

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateBridge { name, mac, mtu, filters_vlans } => {
                let vlans = if *filters_vlans { " vlan_filtering on" } else { "" };
                write!(f, "create bridge {name} address {mac}{}{vlans}", Mtu(*mtu))
            }
            Self::FilterVlans(name) => write!(f, "set bridge {name} vlan_filtering on"),
            Self::CreateVlanLink { bridge, port, gateway, mtu } => write!(
                f,
                "create veth {} address {} master {bridge} mtu {mtu} peer {} address {}",
                port.name, port.mac, gateway.name, gateway.mac
            ),
            Self::SetUp { name, mtu } => write!(f, "set {name} up{}", Mtu(*mtu)),
            Self::SetPortVlans { link, vlans, keeps_default } => {
                let besides = if *keeps_default { " besides its own" } else { "" };
                write!(f, "set port {link} vlans {vlans}{besides}")
            }
            Self::SetBridge { name, mtu } => write!(f, "set bridge {name} up{}", Mtu(*mtu)),
            Self::SetPromiscuous(name) => write!(f, "set bridge {name} promisc on"),
            Self::RemoveBridgeAddress(name, (addr, len)) => write!(f, "delete address {addr}/{len} dev {name}"),
            Self::AddGateway { link, gateway: (addr, len), .. } => write!(f, "add address {addr}/{len} dev {link}"),
            Self::HostParameter(p) => write!(f, "set {}={}", p.key, p.value),
            Self::SetPort { link, options } => {
                write!(f, "set port {link} hairpin {} isolated {}", on(options.hairpin), on(options.isolated))
            }
            Self::AwaitCarrier(name) => write!(f, "await carrier of {name}"),
            Self::WriteTable(ruleset) => write!(f, "write nft table {}", ruleset.key),
            own => own.fmt_own(f),
        }
    }
}

impl Step {
    /// What belongs to one attachment; the rest is written by [`fmt::Display`] itself.
    fn fmt_own(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateVeth { host, pod, bridge, mtu } => write!(
                f,
                "create veth {} address {} master {bridge} mtu {mtu} peer {} address {}",
                host.name, host.mac, pod.name, pod.mac
            ),
            Self::PodParameter(p) => write!(f, "pod: set {}={}", p.key, p.value),
            Self::ConfigurePod { ifname, addresses, routes, .. } => {
                write!(f, "pod: set {ifname} up")?;
                addresses.iter().try_for_each(|(addr, len)| write!(f, ", address {addr}/{len}"))?;
                routes.iter().try_for_each(|(key, route)| write!(f, ", {key} {route}"))
            }
            Self::AwaitAddresses { ifname, addresses } => {
                write!(f, "pod: await duplicate address detection on {ifname}")?;
                addresses.iter().try_for_each(|addr| write!(f, ", {addr}"))
            }
            Self::OpenPorts { ruleset, tag } => {
                write!(f, "open host ports of {} in nft table {}", tag.attachment, ruleset.key)?;
                ruleset.elements.keys().try_for_each(|key| write!(f, ", {key}"))
            }
            Self::GuardPort { ruleset, tag } => {
                write!(f, "guard the port of {} in nft table {}", tag.attachment, ruleset.key)?;
                ruleset.elements.keys().try_for_each(|key| write!(f, ", {key}"))
            }
            Self::LimitLink { link, bucket } => write!(f, "limit {link}: {bucket}"),
            Self::CreateIfb { name, mtu, .. } => write!(f, "create ifb {name} mtu {mtu}"),
            Self::HookIngress(link) => write!(f, "hook ingress of {link}"),
            Self::Redirect { link, over } => write!(f, "redirect what {link} receives over {over}"),
            Self::ForgetFlows(flows) => write!(f, "forget flows of {} UDP ports", flows.len()),
            Self::LearnNeighbour { bridge, addr, mac } => write!(f, "learn neighbour {addr} lladdr {mac} dev {bridge}"),
            Self::CreateBridge { .. }
            | Self::FilterVlans(..)
            | Self::CreateVlanLink { .. }
            | Self::SetUp { .. }
            | Self::SetPortVlans { .. }
            | Self::SetBridge { .. }
            | Self::SetPromiscuous(..)
            | Self::RemoveBridgeAddress(..)
            | Self::AddGateway { .. }
            | Self::HostParameter(..)
            | Self::SetPort { .. }
            | Self::AwaitCarrier(..)
            | Self::WriteTable(..) => Ok(()),
        }
    }
}

struct Mtu(Option<u32>);

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
    }
}

fn on(flag: bool) -> &'static str {
    if flag { "on" } else { "off" }
}
