//! `runtimeConfig`: what the runtime injects for declared capabilities (CONVENTIONS "Dynamic Plugin specific fields").
//!
//! Invariant: a plugin is given only what it honours: a capability that was declared for a plugin that does not honour
//! it is a field that nobody takes. Keys come as `hostPort` (CRI-O, libcni) and as `HostPort` (containerd); [`Fields`] matches both.

use std::fmt;
use std::net::IpAddr;

use netstate::{MacAddr, Protocol};

use serde_json::Value;

use super::BandwidthConf;
use crate::protocol::error::CniError;
use crate::protocol::fields::Fields;
use crate::protocol::range::RangeSet;
use crate::protocol::result::Dns;

/// What the runtime asked for one Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Ports of the host that lead to the Pod.
    pub port_mappings: Vec<PortMapping>,
    /// Hardware address of the Pod's interface.
    pub mac: Option<MacAddr>,
    /// Addresses that the Pod must get.
    pub ips: Vec<IpAddr>,
    /// Ranges that come before the configured ones.
    pub ip_ranges: Vec<RangeSet>,
    /// Name servers for the result.
    pub dns: Dns,
    /// BandwidthConf of the Pod's traffic.
    pub bandwidth: Option<BandwidthConf>,
}

/// One port of the host that leads to a port of the Pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the host, 1 to 65535.
    pub host_port: u16,
    /// The host's address it is open on; `None` means every local address of both families.
    pub host_ip: Option<IpAddr>,
    /// Port in the Pod, 1 to 65535.
    pub container_port: u16,
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, host_port, host_ip, container_port } = self;
        match host_ip {
            Some(IpAddr::V6(ip)) => write!(f, "{protocol} [{ip}]:{host_port} to {container_port}"),
            Some(ip) => write!(f, "{protocol} {ip}:{host_port} to {container_port}"),
            None => write!(f, "{protocol} {host_port} to {container_port}"),
        }
    }
}

/// What a plugin honours of `runtimeConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Honoured {
    /// `portMappings`.
    pub port_mappings: bool,
    /// `mac`, `ips`, `ipRanges`, `dns`, `bandwidth`.
    pub attachment: bool,
}

impl RuntimeConfig {
    /// Reads `fields`; absent means that nothing was asked for.
    ///
    /// # Errors
    /// Code 7 for a value that is not as the conventions say, 2 for a capability that is not honoured.
    pub fn parse(fields: Option<Fields>, honoured: Honoured) -> Result<Self, CniError> {
        let Some(mut fields) = fields else { return Ok(Self::default()) };
        let mut config = Self::default();
        if honoured.port_mappings {
            for mut item in fields.take_objects("portMappings")? {
                config.port_mappings.extend(port_mapping(&mut item)?);
            }
        } else if let list @ [_, ..] = fields.take_list("portMappings")?.as_slice() {
            fields.leave("portMappings", &Value::Array(list.to_vec()))?;
        }
        if honoured.attachment {
            config.mac = fields.take_parsed("mac", "an address such as 0a:58:ac:07:15:09")?;
            config.ips = super::ipam::addresses(&mut fields, "ips")?;
            config.ip_ranges = super::ipam::range_sets(&mut fields, "ipRanges")?;
            if let Some(dns) = fields.take_object("dns")? {
                config.dns = runtime_dns(dns)?;
            }
            config.bandwidth = BandwidthConf::of_runtime(&mut fields)?;
        }
        fields.finish()?;
        Ok(config)
    }
}

fn runtime_dns(mut fields: Fields) -> Result<Dns, CniError> {
    let dns = Dns {
        nameservers: fields.take_texts("servers")?,
        domain: String::new(),
        search: fields.take_texts("searches")?,
        options: fields.take_texts("options")?,
    };
    fields.finish()?;
    Ok(dns)
}

/// Why packets to `ip` never reach a Pod; see [`crate::plan::hostports::table::UNFORWARDABLE_V6`].
fn unforwardable(ip: IpAddr) -> Option<&'static str> {
    match ip {
        _ if ip.is_multicast() => Some("is a group, not an address of this host"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("is everybody's, not an address of this host"),
        IpAddr::V6(v6) if v6.is_loopback() => Some("cannot be used: the kernel forwards nothing that comes from ::1"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            Some("cannot be used: the kernel forwards nothing between link-local addresses and others")
        }
        _ => None,
    }
}

/// `None` for a mapping without a host port: Kubernetes lists container ports that way, too.
fn port_mapping(fields: &mut Fields) -> Result<Option<PortMapping>, CniError> {
    let protocol_path = fields.path_of("protocol");
    let protocol = match fields.take_text("protocol")?.unwrap_or_default().to_ascii_lowercase().as_str() {
        "tcp" | "" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(CniError::invalid_field(&protocol_path, other, "tcp, udp or sctp")),
    };
    let host_port = fields.take_number("hostPort", 65535)?.and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
    let container_path = fields.path_of("containerPort");
    let container_port = fields.take_number("containerPort", 65535)?.and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
    // `::ffff:10.4.7.21` is the IPv4 address: packets to it are IPv4 packets.
    let host_path = fields.path_of("hostIP");
    let host_ip = fields.take_address("hostIP")?.map(|ip| ip.to_canonical());
    if host_port == 0 {
        return Ok(None);
    }
    if let Some((ip, why)) = host_ip.and_then(|ip| Some((ip, unforwardable(ip)?))) {
        let accepted = "an address of this host that others can send to, or none for all of them";
        return Err(CniError::invalid_field(&host_path, &format!("{ip} {why}"), accepted));
    }
    if container_port == 0 {
        return Err(CniError::invalid_field(&container_path, "is missing", "a port from 1 to 65535"));
    }
    Ok(Some(PortMapping { protocol, host_port, host_ip, container_port }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Code;
    use serde_json::{Value, json};

    const ALL: Honoured = Honoured { port_mappings: true, attachment: true };

    fn parse(value: Value, honoured: Honoured) -> Result<RuntimeConfig, CniError> {
        RuntimeConfig::parse(Some(Fields::of(value, "runtimeConfig").unwrap()), honoured)
    }

    #[test]
    fn both_spellings_of_a_port_mapping_mean_the_same() {
        let lower = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        let upper = json!({"portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""}]});
        let expected = PortMapping { protocol: Protocol::Tcp, host_port: 8080, host_ip: None, container_port: 80 };
        for value in [lower, upper] {
            assert_eq!(parse(value, ALL).unwrap().port_mappings, std::slice::from_ref(&expected));
        }
        assert_eq!(expected.to_string(), "tcp 8080 to 80");
    }

    #[test]
    fn host_address_is_taken_as_the_one_that_packets_carry() {
        for (text, expected) in [
            ("", None),
            ("10.4.7.21", Some("10.4.7.21")),
            ("::ffff:10.4.7.21", Some("10.4.7.21")),
            ("0.0.0.0", Some("0.0.0.0")),
            ("::", Some("::")),
            ("fd00:0::21", Some("fd00::21")),
        ] {
            let value = json!({"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": text}]});
            let host_ip = parse(value, ALL).unwrap().port_mappings[0].host_ip;
            assert_eq!(host_ip, expected.map(|ip| ip.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn mapping_without_host_port_is_no_mapping() {
        let value = json!({"portMappings": [{"containerPort": 80, "protocol": "tcp"}]});
        assert!(parse(value, ALL).unwrap().port_mappings.is_empty());
    }

    #[test]
    fn bad_mappings_are_refused_by_field() {
        for (mapping, path) in [
            (json!({"hostPort": 70000, "containerPort": 80}), "portMappings[0].hostPort"),
            (json!({"hostPort": -1, "containerPort": 80}), "portMappings[0].hostPort"),
            (json!({"hostPort": 80}), "portMappings[0].containerPort"),
            (json!({"hostPort": 80, "containerPort": 80, "protocol": "icmp"}), "portMappings[0].protocol"),
            (json!({"hostPort": 80, "containerPort": 80, "hostIP": "x"}), "portMappings[0].hostIP"),
        ] {
            let error = parse(json!({"portMappings": [mapping]}), ALL).unwrap_err();
            assert!(error.code == Code::InvalidConfig && error.msg.contains(path), "{error}");
        }
    }

    #[test]
    fn a_capability_that_is_not_honoured_is_refused_by_name() {
        let none = Honoured { port_mappings: false, attachment: false };
        for (value, honoured, key) in [
            (json!({"portMappings": [{"hostPort": 1, "containerPort": 1}]}), none, "runtimeConfig.portMappings"),
            (json!({"mac": "02:00:00:00:00:01"}), none, "runtimeConfig.mac"),
            (json!({"aliases": ["a"]}), ALL, "runtimeConfig.aliases"),
        ] {
            let error = parse(value, honoured).unwrap_err();
            assert!(error.code == Code::UnsupportedField && error.msg.contains(key), "{error}");
        }
        assert_eq!(parse(json!({"portMappings": []}), none).unwrap(), RuntimeConfig::default());
    }

    #[test]
    fn attachment_capabilities_are_read() {
        let config = parse(
            json!({"mac": "02:00:00:00:00:01", "ips": ["172.7.21.9/24"], "ipRanges": [[{"Subnet": "172.7.21.0/24"}]],
                   "dns": {"Servers": ["192.168.0.2"], "Searches": ["svc"], "Options": []}}),
            ALL,
        )
        .unwrap();
        assert_eq!(config.ips, ["172.7.21.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(config.ip_ranges.len(), 1);
        assert_eq!(config.dns.nameservers, ["192.168.0.2"]);
    }
}
