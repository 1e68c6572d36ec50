//! Renders a result in the shape of a version.
//!
//! 0.1.0 and 0.2.0 know `ip4` and `ip6` with their routes inside; 0.3.0 to 0.4.0 mark each address with its family
//! and always print `dns`; 1.0.0 drops both; 1.1.0 adds MTUs and the finer points of routes.

use std::net::IpAddr;

use netstate::{IpFamily, PerFamily};
use serde_json::{Map, Value, json};

use super::{AddResult, Dns, Interface, IpConfig, ResultRoute};
use crate::protocol::error::{CniError, Code};
use crate::protocol::version::SpecVersion;

impl AddResult {
    /// The result object of `version`.
    ///
    /// # Errors
    /// Code 1 when `version` cannot say it: 0.1.0 and 0.2.0 need an address and know one per family.
    pub fn render(&self, version: SpecVersion) -> Result<Value, CniError> {
        let mut object = Map::new();
        object.insert("cniVersion".to_owned(), json!(version.as_str()));
        if version <= SpecVersion::V0_2_0 {
            self.render_families(version, &mut object)?;
        } else {
            self.render_lists(version, &mut object);
        }
        if version < SpecVersion::V1_0_0 || !self.dns.is_empty() {
            object.insert("dns".to_owned(), dns(&self.dns));
        }
        Ok(Value::Object(object))
    }

    fn render_lists(&self, version: SpecVersion, object: &mut Map<String, Value>) {
        let mut list = |key: &str, items: Vec<Value>| {
            if !items.is_empty() {
                object.insert(key.to_owned(), Value::Array(items));
            }
        };
        list("interfaces", self.interfaces.iter().map(|i| interface(i, version)).collect());
        list("ips", self.ips.iter().map(|ip| ip_config(ip, version)).collect());
        list("routes", self.routes.iter().map(|r| route(r, version)).collect());
    }

    fn render_families(&self, version: SpecVersion, object: &mut Map<String, Value>) -> Result<(), CniError> {
        if self.ips.is_empty() {
            let msg = format!("cannot convert: no valid IP addresses for a result of version {version}");
            return Err(CniError::new(Code::IncompatibleVersion, msg).details("set cniVersion to 0.3.1 or newer"));
        }
        for (family, key) in PerFamily::new("ip4", "ip6") {
            if let Some(ip) = self.ips.iter().find(|ip| IpFamily::of(ip.addr) == family) {
                let routes = self.routes.iter().filter(|r| r.dst.family() == family);
                let mut part = Map::new();
                part.insert("ip".to_owned(), json!(format!("{}/{}", ip.addr, ip.len)));
                optional(&mut part, "gateway", ip.gateway.map(|gw| gw.to_string()));
                let routes: Vec<Value> = routes.map(|r| route(r, version)).collect();
                if !routes.is_empty() {
                    part.insert("routes".to_owned(), Value::Array(routes));
                }
                object.insert(key.to_owned(), Value::Object(part));
            }
        }
        Ok(())
    }
}

fn optional(object: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object.insert(key.to_owned(), value.into());
    }
}

fn interface(interface: &Interface, version: SpecVersion) -> Value {
    let mut object = Map::new();
    object.insert("name".to_owned(), json!(interface.name));
    optional(&mut object, "mac", interface.mac.map(|mac| mac.to_string()));
    optional(&mut object, "sandbox", interface.sandbox.clone());
    if version >= SpecVersion::V1_1_0 {
        optional(&mut object, "mtu", interface.mtu);
    }
    Value::Object(object)
}

fn ip_config(ip: &IpConfig, version: SpecVersion) -> Value {
    let mut object = Map::new();
    if version < SpecVersion::V1_0_0 {
        object.insert("version".to_owned(), json!(if ip.addr.is_ipv4() { "4" } else { "6" }));
    }
    optional(&mut object, "interface", ip.interface);
    object.insert("address".to_owned(), json!(format!("{}/{}", ip.addr, ip.len)));
    optional(&mut object, "gateway", ip.gateway.map(|gw: IpAddr| gw.to_string()));
    Value::Object(object)
}

fn route(route: &ResultRoute, version: SpecVersion) -> Value {
    let mut object = Map::new();
    object.insert("dst".to_owned(), json!(route.dst.to_string()));
    optional(&mut object, "gw", route.gw.map(|gw| gw.to_string()));
    if version >= SpecVersion::V1_1_0 {
        optional(&mut object, "mtu", route.mtu);
        optional(&mut object, "advmss", route.advmss);
        optional(&mut object, "priority", route.priority);
        optional(&mut object, "table", route.table);
        optional(&mut object, "scope", route.scope);
    }
    Value::Object(object)
}

fn dns(dns: &Dns) -> Value {
    let mut object = Map::new();
    let mut list = |key: &str, items: &[String]| {
        if !items.is_empty() {
            object.insert(key.to_owned(), json!(items));
        }
    };
    list("nameservers", &dns.nameservers);
    list("search", &dns.search);
    list("options", &dns.options);
    optional(&mut object, "domain", Some(dns.domain.clone()).filter(|d| !d.is_empty()));
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netstate::MacAddr;

    /// What ADD answers for a dual-stack Pod of the reference cluster.
    pub(crate) fn sample() -> AddResult {
        let interface = |name: &str, mac: u8, sandbox: Option<&str>| Interface {
            name: name.to_owned(),
            mac: Some(MacAddr([2, 0, 0, 0, 0, mac])),
            mtu: Some(1450),
            sandbox: sandbox.map(str::to_owned),
        };
        let ip = |addr: &str, len, gateway: &str| IpConfig {
            interface: Some(2),
            addr: addr.parse().unwrap(),
            len,
            gateway: Some(gateway.parse().unwrap()),
        };
        let mut metered = ResultRoute::to("172.7.0.0/16".parse().unwrap(), None);
        metered.mtu = Some(1400);
        metered.priority = Some(7);
        AddResult {
            interfaces: vec![
                interface("cbr0", 1, None),
                interface("vethabc", 2, None),
                interface("eth0", 3, Some("/run/netns/p")),
            ],
            ips: vec![ip("172.7.21.2", 24, "172.7.21.1"), ip("fd00:21::2", 64, "fd00:21::1")],
            routes: vec![
                ResultRoute::to("0.0.0.0/0".parse().unwrap(), Some("172.7.21.1".parse().unwrap())),
                metered,
                ResultRoute::to("::/0".parse().unwrap(), Some("fd00:21::1".parse().unwrap())),
            ],
            dns: Dns::default(),
        }
    }

    #[test]
    fn golden_0_2_0() {
        assert_eq!(
            sample().render(SpecVersion::V0_2_0).unwrap(),
            json!({
                "cniVersion": "0.2.0",
                "ip4": {"ip": "172.7.21.2/24", "gateway": "172.7.21.1",
                        "routes": [{"dst": "0.0.0.0/0", "gw": "172.7.21.1"}, {"dst": "172.7.0.0/16"}]},
                "ip6": {"ip": "fd00:21::2/64", "gateway": "fd00:21::1", "routes": [{"dst": "::/0", "gw": "fd00:21::1"}]},
                "dns": {},
            })
        );
    }

    #[test]
    fn golden_0_3_0_to_0_4_0() {
        for version in [SpecVersion::V0_3_0, SpecVersion::V0_3_1, SpecVersion::V0_4_0] {
            assert_eq!(
                sample().render(version).unwrap(),
                json!({
                    "cniVersion": version.as_str(),
                    "interfaces": [{"name": "cbr0", "mac": "02:00:00:00:00:01"},
                                   {"name": "vethabc", "mac": "02:00:00:00:00:02"},
                                   {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/p"}],
                    "ips": [{"version": "4", "interface": 2, "address": "172.7.21.2/24", "gateway": "172.7.21.1"},
                            {"version": "6", "interface": 2, "address": "fd00:21::2/64", "gateway": "fd00:21::1"}],
                    "routes": [{"dst": "0.0.0.0/0", "gw": "172.7.21.1"}, {"dst": "172.7.0.0/16"},
                               {"dst": "::/0", "gw": "fd00:21::1"}],
                    "dns": {},
                })
            );
        }
    }

    #[test]
    fn golden_1_0_0_and_1_1_0() {
        let mut golden = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cbr0", "mac": "02:00:00:00:00:01"},
                           {"name": "vethabc", "mac": "02:00:00:00:00:02"},
                           {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/p"}],
            "ips": [{"interface": 2, "address": "172.7.21.2/24", "gateway": "172.7.21.1"},
                    {"interface": 2, "address": "fd00:21::2/64", "gateway": "fd00:21::1"}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "172.7.21.1"}, {"dst": "172.7.0.0/16"},
                       {"dst": "::/0", "gw": "fd00:21::1"}],
        });
        assert_eq!(sample().render(SpecVersion::V1_0_0).unwrap(), golden);
        golden["cniVersion"] = json!("1.1.0");
        for index in 0..3 {
            golden["interfaces"][index]["mtu"] = json!(1450);
        }
        golden["routes"][1]["mtu"] = json!(1400);
        golden["routes"][1]["priority"] = json!(7);
        assert_eq!(sample().render(SpecVersion::V1_1_0).unwrap(), golden);
    }

    #[test]
    fn interface_zero_is_printed_and_dns_appears_when_set() {
        let mut result = sample();
        result.ips[0].interface = Some(0);
        result.dns.nameservers = vec!["192.168.0.2".to_owned()];
        result.dns.domain = "cluster.local".to_owned();
        let value = result.render(SpecVersion::V1_0_0).unwrap();
        assert_eq!(value["ips"][0]["interface"], json!(0));
        assert_eq!(value["dns"], json!({"nameservers": ["192.168.0.2"], "domain": "cluster.local"}));
    }

    #[test]
    fn old_versions_cannot_say_that_there_is_no_address() {
        let error = AddResult::default().render(SpecVersion::V0_1_0).unwrap_err();
        assert!(error.msg.starts_with("cannot convert: no valid IP addresses"), "{error}");
    }

    #[test]
    fn every_list_shape_parses_back_to_the_same_value() {
        for version in SpecVersion::ALL.into_iter().filter(|v| *v >= SpecVersion::V0_3_0) {
            let mut expected = sample();
            if version < SpecVersion::V1_1_0 {
                expected.interfaces.iter_mut().for_each(|i| i.mtu = None);
                expected.routes.iter_mut().for_each(|r| (r.mtu, r.priority) = (None, None));
            }
            assert_eq!(super::super::parse(sample().render(version).unwrap()).unwrap(), expected, "{version}");
        }
    }
}
