//! The options of the bridge plugin (plugins/main/bridge): how the Pod's link, the bridge and the routes must be.
//!
//! flannel's `delegate` and the native configuration are both turned into this one value. Invariant: what it says is
//! what ADD does; an option whose effect this plugin does not have is refused while reading.

use std::net::IpAddr;

use netstate::subnet_file::SubnetFile;
use netstate::{IfName, MacAddr, Prefix};

use super::{IpamConf, RuntimeConfig, VlanConf};
use crate::protocol::args::CniArgs;
use crate::protocol::error::CniError;
use crate::protocol::fields::{Fields, unsupported};
use crate::protocol::result::{Dns, parse_dns};

/// How Pods of one network are wired on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConf {
    /// Name of the bridge.
    pub bridge: IfName,
    /// Nobody named the bridge: another one that has the gateway's address already is as good.
    pub may_adopt: bool,
    /// The subnet is this node's lease: an empty bridge with another address has it from an earlier lease.
    pub is_leased: bool,
    /// The bridge holds the gateway's addresses, and the node forwards.
    pub gateway: bool,
    /// The Pod's default routes lead to the gateway.
    pub default_gateway: bool,
    /// Foreign addresses of the bridge give way to the gateway's.
    pub force_address: bool,
    /// Masquerade what leaves the Pods for other networks than these; `None`: somebody else does, or nobody.
    pub masquerade: Option<Vec<Prefix>>,
    /// MTU of the Pod's link and of the bridge in bytes; `None` leaves the kernel's 1500.
    pub mtu: Option<u32>,
    /// Frames may return through the port they came from: a Pod reaching itself through its Service.
    pub hairpin: bool,
    /// The bridge receives frames for any hardware address.
    pub promiscuous: bool,
    /// The Pod talks to the bridge only, not to other Pods of the node.
    pub isolated: bool,
    /// Which VLANs the Pod's port carries.
    pub vlan: VlanConf,
    /// Frames from another hardware address than the Pod's own are dropped.
    pub spoof_guard: bool,
    /// IPv6 addresses are probed for a second owner before they are used (RFC 4862 §5.4).
    pub detect_duplicates: bool,
    /// Layer 2 only: the Pod's end stays down.
    pub interface_disabled: bool,
    /// Name servers that replace those of the address management.
    pub dns: Dns,
    /// Hardware address of the Pod's end, when somebody asked for one.
    pub mac: Option<MacAddr>,
    /// Address management; `None` is layer 2 only.
    pub ipam: Option<IpamConf>,
}

/// What stands for the options that a configuration leaves out.
#[derive(Debug)]
pub struct Defaults<'a> {
    /// The bridge's name.
    pub bridge: IfName,
    /// The node's lease, with the `ipam` section that it completes.
    pub lease: Option<(&'a SubnetFile, Fields)>,
}

impl BridgeConf {
    /// Reads `fields`, completed by `defaults`.
    ///
    /// # Errors
    /// Code 7 for an invalid value or combination, 2 for an option that is not honoured.
    pub fn parse(
        mut fields: Fields,
        defaults: Defaults<'_>,
        args: &CniArgs,
        runtime: &RuntimeConfig,
    ) -> Result<Self, CniError> {
        let named = bridge_name(&mut fields)?;
        let is_unnamed = named.is_none();
        let bridge = named.unwrap_or(defaults.bridge);
        let lease = defaults.lease.as_ref().map(|(subnet, _)| *subnet);
        let from_args = ArgsCni::take(&mut fields)?;
        let vlan = VlanConf::take(&mut fields)?;
        let mut flag = |key: &str| fields.take_bool(key);
        let default_gateway = flag("isDefaultGateway")?;
        let mut conf = Self {
            bridge,
            // A VLAN's gateways are not on the bridge itself.
            may_adopt: is_unnamed && lease.is_some() && vlan.native.is_none(),
            is_leased: lease.is_some(),
            gateway: flag("isGateway")?.unwrap_or(lease.is_some()) || default_gateway.unwrap_or(false),
            default_gateway: default_gateway.unwrap_or(false),
            force_address: flag("forceAddress")?.unwrap_or(false),
            hairpin: flag("hairpinMode")?.unwrap_or(false),
            promiscuous: flag("promiscMode")?.unwrap_or(false),
            isolated: flag("portIsolation")?.unwrap_or(false),
            spoof_guard: flag("macspoofchk")?.unwrap_or(false),
            detect_duplicates: flag("enabledad")?.unwrap_or(false),
            interface_disabled: flag("disableContainerInterface")?.unwrap_or(false),
            masquerade: masquerade(&mut fields, lease)?,
            mtu: mtu(&mut fields, lease)?,
            dns: dns(&mut fields, runtime)?,
            mac: runtime.mac.or(from_args.mac).or(args.mac),
            vlan,
            ipam: None,
        };
        conf.ipam = match defaults.lease {
            Some((subnet, section)) => Some(IpamConf::parse(section, Some(subnet), &from_args.ips, args, runtime)?),
            None => ipam(&mut fields, &from_args, args, runtime)?,
        };
        conf.check(&fields)?;
        fields.finish()?;
        Ok(conf)
    }

    fn check(&self, fields: &Fields) -> Result<(), CniError> {
        let clash = |key: &str, found: &str, accepted: &str| {
            Err(CniError::invalid_field(&fields.path_of(key), found, accepted))
        };
        if self.hairpin && self.promiscuous {
            return clash(
                "promiscMode",
                "cannot set hairpin mode and promiscuous mode at the same time",
                "one of the two",
            );
        }
        if let Some(vlan) = self.vlan.native.filter(|vlan| self.gateway && self.vlan_link(*vlan).is_none()) {
            let found = format!("{}.{vlan}, which holds the gateway, is no name", self.bridge);
            return clash("bridge", &found, "a name so short that <bridge>.<vlan> has at most 15 bytes");
        }
        if self.interface_disabled && self.ipam.is_some() {
            return clash(
                "disableContainerInterface",
                "an interface that stays down has no use for ipam",
                "one of the two",
            );
        }
        Ok(())
    }
}

impl BridgeConf {
    /// The name of the link that holds the gateways of `vlan`; `None` when it is too long.
    #[must_use]
    pub fn vlan_link(&self, vlan: u16) -> Option<IfName> {
        IfName::new(format!("{}.{vlan}", self.bridge)).ok()
    }
}

/// `args.cni`, the convention for arguments inside the configuration; other members are for other plugins.
#[derive(Debug, Default)]
struct ArgsCni {
    mac: Option<MacAddr>,
    ips: Vec<IpAddr>,
}

impl ArgsCni {
    fn take(fields: &mut Fields) -> Result<Self, CniError> {
        let Some(mut args) = fields.take_object("args")? else { return Ok(Self::default()) };
        let Some(mut cni) = args.take_object("cni")? else { return Ok(Self::default()) };
        let mac = cni.take_parsed("mac", "an address such as 0a:58:ac:07:15:09")?;
        Ok(Self { mac, ips: super::ipam::addresses(&mut cni, "ips")? })
    }
}

fn bridge_name(fields: &mut Fields) -> Result<Option<IfName>, CniError> {
    let text = fields.take_text("bridge")?.filter(|text| !text.is_empty());
    text.map(|text| name(fields, &text)).transpose()
}

fn name(fields: &Fields, text: &str) -> Result<IfName, CniError> {
    IfName::new(text).map_err(|e| CniError::invalid_field(&fields.path_of("bridge"), text, &e.to_string()))
}

fn masquerade(fields: &mut Fields, lease: Option<&SubnetFile>) -> Result<Option<Vec<Prefix>>, CniError> {
    let wanted = fields.take_bool("ipMasq")?.unwrap_or_else(|| lease.is_some_and(|subnet| !subnet.ip_masq));
    let path = fields.path_of("ipMasqBackend");
    let backend = fields.take_text("ipMasqBackend")?.filter(|backend| wanted && !backend.is_empty());
    let networks = || lease.map(|subnet| subnet.networks().copied().collect()).unwrap_or_default();
    match backend.as_deref() {
        None | Some("nftables") => Ok(wanted.then(networks)),
        Some(other) => Err(unsupported(&path, other).details("accepted is nftables")),
    }
}

/// Zero leaves the kernel's MTU, whatever the lease says.
fn mtu(fields: &mut Fields, lease: Option<&SubnetFile>) -> Result<Option<u32>, CniError> {
    let path = fields.path_of("mtu");
    let Some(bytes) = fields.take_number("mtu", 65535)? else { return Ok(lease.map(|subnet| subnet.mtu)) };
    if bytes == 0 {
        return Ok(None);
    }
    if bytes < u64::from(netstate::mtu::MIN_IPV4) {
        return Err(CniError::invalid_field(&path, &bytes.to_string(), "a number of bytes from 68 to 65535, or 0"));
    }
    Ok(u32::try_from(bytes).ok())
}

fn dns(fields: &mut Fields, runtime: &RuntimeConfig) -> Result<Dns, CniError> {
    let configured = match fields.take_object("dns")? {
        None => Dns::default(),
        Some(mut item) => {
            let dns = parse_dns(&mut item)?;
            item.finish()?;
            dns
        }
    };
    Ok(if configured.is_empty() { runtime.dns.clone() } else { configured })
}

fn ipam(
    fields: &mut Fields,
    from_args: &ArgsCni,
    args: &CniArgs,
    runtime: &RuntimeConfig,
) -> Result<Option<IpamConf>, CniError> {
    let Some(mut section) = fields.take_object("ipam")? else { return Ok(None) };
    let path = section.path_of("type");
    match section.take_text("type")?.as_deref() {
        Some("host-local") => IpamConf::parse(section, None, &from_args.ips, args, runtime).map(Some),
        None | Some("") if section.is_empty() => Ok(None),
        // Without a type the bridge plugin stays in layer 2 and ignores the rest of the section.
        None | Some("") => Err(CniError::invalid_field(&path, "is missing", "host-local, or no other key in ipam")),
        Some(kind) => Err(unsupported(&path, kind).details("accepted is host-local")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Code;
    use serde_json::{Value, json};

    fn cni0() -> Defaults<'static> {
        Defaults { bridge: IfName::literal("cni0"), lease: None }
    }

    fn parse(value: Value) -> Result<BridgeConf, CniError> {
        let fields = Fields::of(value, "delegate").unwrap();
        BridgeConf::parse(fields, cni0(), &CniArgs::default(), &RuntimeConfig::default())
    }

    #[test]
    fn everything_is_off_unless_set() {
        let conf = parse(json!({})).unwrap();
        assert_eq!(conf.bridge.as_str(), "cni0");
        assert!(!conf.gateway && !conf.default_gateway && !conf.hairpin && conf.mtu.is_none() && conf.ipam.is_none());
    }

    #[test]
    fn options_are_read_and_default_gateway_implies_gateway() {
        let conf = parse(json!({"bridge": "cbr0", "isDefaultGateway": true, "hairpinMode": true, "mtu": 1450,
            "ipMasq": false, "forceAddress": true, "portIsolation": true, "dns": {"nameservers": ["192.168.0.2"]},
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "172.7.21.0/24"}]]}}))
        .unwrap();
        assert!(conf.gateway && conf.default_gateway && conf.hairpin && conf.force_address && conf.isolated);
        assert_eq!((conf.bridge.as_str(), conf.mtu), ("cbr0", Some(1450)));
        assert_eq!(conf.dns.nameservers, ["192.168.0.2"]);
        assert_eq!(conf.ipam.unwrap().sets.len(), 1);
    }

    #[test]
    fn mac_comes_from_the_strongest_source() {
        let macs: Vec<MacAddr> = (1..4).map(|n| MacAddr([2, 0, 0, 0, 0, n])).collect();
        let args = CniArgs { mac: Some(macs[0]), ip: None };
        let value = json!({"args": {"cni": {"mac": macs[1].to_string()}, "other": {"x": 1}}});
        let get = |value: &Value, runtime: Option<MacAddr>| {
            let runtime = RuntimeConfig { mac: runtime, ..RuntimeConfig::default() };
            BridgeConf::parse(Fields::of(value.clone(), "").unwrap(), cni0(), &args, &runtime).unwrap().mac
        };
        assert_eq!(get(&json!({}), None), Some(macs[0]));
        assert_eq!(get(&value, None), Some(macs[1]));
        assert_eq!(get(&value, Some(macs[2])), Some(macs[2]));
    }

    #[test]
    fn options_that_nobody_knows_are_refused_and_off_values_accepted() {
        parse(json!({"ipMasq": false, "vlan": 0, "vlanTrunk": [], "macspoofchk": false, "ipMasqBackend": "iptables"}))
            .unwrap();
        assert_eq!(parse(json!({"hairpinmod": true})).unwrap_err().code, Code::UnsupportedField);
    }

    #[test]
    fn masquerade_is_nftables_only() {
        assert_eq!(parse(json!({"ipMasq": true, "ipMasqBackend": "nftables"})).unwrap().masquerade, Some(vec![]));
        assert_eq!(parse(json!({"ipMasq": false, "ipMasqBackend": "iptables"})).unwrap().masquerade, None);
        let error = parse(json!({"ipMasq": true, "ipMasqBackend": "iptables"})).unwrap_err();
        assert!(error.code == Code::UnsupportedField && error.msg.contains("ipMasqBackend=iptables"), "{error}");
    }

    #[test]
    fn contradictions_and_bad_values_are_refused() {
        for value in [
            json!({"hairpinMode": true, "promiscMode": true}),
            json!({"disableContainerInterface": true, "ipam": {"type": "host-local", "subnet": "10.0.0.0/24"}}),
            json!({"ipam": {"subnet": "10.0.0.0/24"}}),
            json!({"mtu": 67}),
            json!({"mtu": 65536}),
            json!({"bridge": "name/with/slashes"}),
            json!({"hairpinMode": "yes"}),
            json!({"bridge": "abcdefghijkl", "vlan": 100, "isGateway": true}),
            json!({"vlan": 4095}),
        ] {
            assert_eq!(parse(value.clone()).unwrap_err().code, Code::InvalidConfig, "{value}");
        }
    }
}
