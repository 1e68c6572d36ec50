//! ADD, VLANs: a bridge that filters them, the Pod's port, and the link that holds the gateways of a VLAN.
//!
//! That link is one end of a veth pair called `<bridge>.<vlan>`; the other end is a port of the bridge that carries this
//! VLAN alone, so the host is in the VLAN just as a Pod is. All Pods of the VLAN share it. Invariant: it goes up only
//! when its port is set; a link that is up is whole, and one that an ADD left behind when it was killed is down.

use netstate::{IfName, IpFamily, MacAddr, PortVlans, SysctlKey, VlanMode};
use sha2::{Digest, Sha256};

use super::{Attach, BridgeState, Facts};
use crate::plan::{Cidr, End, Parameter, Step};
use crate::protocol::attachment::link_name;
use crate::protocol::error::{CniError, Code};

/// The link that holds a VLAN's gateways, as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VlanLink {
    /// Interface index.
    pub index: u32,
    /// Administratively up.
    pub up: bool,
    /// Half of a veth pair; an operator may have made another kind of link of this name.
    pub is_veth: bool,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Hardware address.
    pub mac: Option<MacAddr>,
    /// Its addresses, those of link scope left out.
    pub addresses: Vec<Cidr>,
}

impl Attach<'_> {
    /// The VLAN whose gateways a link of its own holds, instead of the bridge.
    #[must_use]
    pub(crate) fn gateway_vlan(&self) -> Option<u16> {
        self.conf.vlan.native.filter(|_| self.conf.gateway && !self.reservations.is_empty())
    }

    /// The link of this host through which the Pod is reached: it holds the gateways.
    #[must_use]
    pub(crate) fn gateway_link(&self) -> IfName {
        let vlan = self.gateway_vlan().and_then(|vlan| self.conf.vlan_link(vlan));
        vlan.unwrap_or_else(|| self.conf.bridge.clone())
    }

    /// Makes an existing bridge look at VLANs. On one with ports that would cut off who sends with tags.
    pub(super) fn filter_step(&self, bridge: &BridgeState, has_ports: bool) -> Result<Option<Step>, CniError> {
        if !self.conf.vlan.is_used() || bridge.filters_vlans {
            return Ok(None);
        }
        let name = &self.conf.bridge;
        if !has_ports {
            return Ok(Some(Step::FilterVlans(name.clone())));
        }
        let msg = format!("bridge {name} does not filter VLANs, and has ports already: vlan and vlanTrunk need it");
        Err(CniError::new(Code::InvalidConfig, msg).details(format!(
            "ip link set {name} type bridge vlan_filtering 1, or choose another name with the option bridge"
        )))
    }

    /// Makes the VLAN's link, or makes it whole.
    pub(super) fn vlan_link_steps(&self, facts: &Facts) -> Vec<Step> {
        let Some(vlan) = self.gateway_vlan() else { return Vec::new() };
        let (port, gateway) = (vlan_port(&self.conf.bridge, vlan), self.gateway_end());
        let mut steps = Vec::new();
        let differs = |link: &VlanLink| self.conf.mtu.is_some() && link.mtu != self.conf.mtu;
        match &facts.vlan_link {
            Some(link) if link.up && !(link.is_veth && differs(link)) => return steps,
            Some(link) if !link.is_veth => {
                steps.push(Step::SetUp { name: gateway.name, mtu: None });
                return steps;
            }
            Some(_) => {}
            None => {
                let (bridge, port, gateway) = (self.conf.bridge.clone(), port.clone(), gateway.clone());
                let accept_ra = SysctlKey::of_link(IpFamily::V6, &gateway.name, "accept_ra");
                steps.push(Step::CreateVlanLink { bridge, port, gateway, mtu: self.mtu() });
                steps.push(Step::HostParameter(Parameter::optional(accept_ra, "0")));
            }
        }
        let vlans = PortVlans([(vlan, VlanMode::Native)].into());
        let keeps_default = self.conf.vlan.keeps_default;
        steps.push(Step::SetPortVlans { link: port.name.clone(), vlans, keeps_default });
        steps.push(Step::SetUp { name: port.name, mtu: self.conf.mtu });
        steps.push(Step::SetUp { name: gateway.name, mtu: self.conf.mtu });
        steps
    }

    /// The end of the VLAN's link that holds the gateways, as it is made.
    pub(super) fn gateway_end(&self) -> End {
        let name = self.gateway_link();
        End { mac: MacAddr::local(super::seed(name.as_str())), name }
    }

    /// What the Pod's port carries.
    pub(super) fn port_vlan_step(&self) -> Option<Step> {
        let (vlans, keeps_default) = (self.conf.vlan.port.clone(), self.conf.vlan.keeps_default);
        let link = self.attachment.host_link().clone();
        self.conf.vlan.is_used().then_some(Step::SetPortVlans { link, vlans, keeps_default })
    }
}

/// The end of the VLAN's link that is a port of the bridge.
#[must_use]
pub(crate) fn vlan_port(bridge: &IfName, vlan: u16) -> End {
    let hash: [u8; 32] = Sha256::digest(format!("vlan {bridge} {vlan}").as_bytes()).into();
    let [.., a, b, c, d, e, f] = hash;
    let name = link_name(&hash).unwrap_or_else(|| bridge.clone());
    End { name, mac: MacAddr::local([a, b, c, d, e, f]) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{bridge, conf, reservation, with_attach};
    use super::*;
    use netstate::PerFamily;
    use serde_json::{Value, json};

    fn gateway_in_vlan() -> Value {
        json!({"vlan": 100, "isGateway": true, "mtu": 1450,
               "ipam": {"type": "host-local", "subnet": "172.7.21.0/24"}})
    }

    fn steps(value: Value, facts: &Facts) -> Result<Vec<String>, CniError> {
        let reservations = [reservation("172.7.21.2", 24, "172.7.21.1")];
        let steps = with_attach(&conf(value), &reservations, |attach| attach.plan(facts))?;
        Ok(steps.iter().map(ToString::to_string).collect())
    }

    fn seeing() -> BridgeState {
        BridgeState { filters_vlans: true, addresses: Vec::new(), ..bridge() }
    }

    fn link() -> VlanLink {
        let addresses = vec![("172.7.21.1".parse().unwrap(), 24)];
        VlanLink { index: 5, up: true, is_veth: true, mtu: Some(1450), mac: None, addresses }
    }

    #[test]
    fn the_first_pod_of_a_vlan_brings_bridge_and_link() {
        let all = steps(gateway_in_vlan(), &Facts::default()).unwrap();
        assert_eq!(
            all[..9],
            [
                "create bridge cbr0 address 0a:58:ac:07:15:01 mtu 1450 vlan_filtering on",
                "set net/ipv6/conf/cbr0/accept_ra=0",
                "create veth veth9z7vje3sj4f address d2:bf:42:00:65:3d master cbr0 mtu 1450 peer cbr0.100 address \
                 c2:9e:71:80:eb:c7",
                "set net/ipv6/conf/cbr0.100/accept_ra=0",
                "set port veth9z7vje3sj4f vlans 100 native",
                "set veth9z7vje3sj4f up mtu 1450",
                "set cbr0.100 up mtu 1450",
                "add address 172.7.21.1/24 dev cbr0.100",
                "set net/ipv4/ip_forward=1",
            ]
        );
        assert!(all.iter().any(|step| step == "set port vethgn5ac9sfczt vlans 100 native"), "{all:?}");
        assert_eq!(all.last().unwrap(), "learn neighbour 172.7.21.2 lladdr 0a:58:ac:07:15:02 dev cbr0.100");
    }

    #[test]
    fn later_pods_find_the_link_whole_and_a_half_made_one_is_made_whole() {
        let mut facts = Facts {
            bridge: Some(seeing()),
            vlan_link: Some(link()),
            forwards: PerFamily::new(true, false),
            ..Facts::default()
        };
        assert!(steps(gateway_in_vlan(), &facts).unwrap()[0].starts_with("create veth vethgn5ac9sfczt"));
        facts.vlan_link = Some(VlanLink { up: false, addresses: Vec::new(), ..link() });
        let again = [
            "set port veth9z7vje3sj4f vlans 100 native",
            "set veth9z7vje3sj4f up mtu 1450",
            "set cbr0.100 up mtu 1450",
            "add address 172.7.21.1/24 dev cbr0.100",
        ];
        assert_eq!(steps(gateway_in_vlan(), &facts).unwrap()[..4], again);
        // The lease has another MTU now.
        facts.vlan_link = Some(VlanLink { mtu: Some(1500), ..link() });
        assert_eq!(steps(gateway_in_vlan(), &facts).unwrap()[..3], again[..3]);
        // A link of another kind is the operator's: only set up.
        facts.vlan_link = Some(VlanLink { up: false, is_veth: false, mtu: Some(1500), ..link() });
        assert_eq!(steps(gateway_in_vlan(), &facts).unwrap()[0], "set cbr0.100 up");
    }

    #[test]
    fn a_bridge_begins_to_filter_vlans_while_nobody_is_on_it() {
        let mut facts = Facts { bridge: Some(bridge()), ..Facts::default() };
        let trunk = json!({"vlanTrunk": [{"minID": 7, "maxID": 9}], "preserveDefaultVlan": true, "mtu": 1450});
        let all = steps(trunk.clone(), &facts).unwrap();
        assert_eq!(all[0], "set bridge cbr0 vlan_filtering on");
        let port = "set port vethgn5ac9sfczt vlans 1 native, 7-9 tagged besides its own";
        assert!(all.iter().any(|step| step == port), "{all:?}");
        facts.surroundings.has_ports = true;
        let error = steps(trunk, &facts).unwrap_err();
        assert!(error.code == Code::InvalidConfig && error.msg.contains("does not filter VLANs"), "{error}");
    }

    #[test]
    fn names_of_a_release_never_change() {
        // A node upgraded with Pods running finds its links by them.
        assert_eq!(vlan_port(&IfName::new("cbr0").unwrap(), 100).name.as_str(), "veth9z7vje3sj4f");
    }
}
