//! Which changes of the network's configuration a running node follows.
//!
//! Pure. Invariant: a change that would take addresses from Pods that run, or that the kernel cannot take without cutting them off, is followed
//! by nobody, not in part either; it is named field by field, and the node runs on with what it had.

use netstate::family::IpFamily;

use crate::format::net_conf::{Network, Pool};

/// Why a running node does not follow `wanted`, one reason for each field; none when it does. `pods` says where Pods of a
/// family are, if there are any.
#[must_use]
pub(crate) fn refusals(current: &Network, wanted: &Network, pods: impl Fn(IpFamily) -> Option<String>) -> Vec<String> {
    let pools = IpFamily::ALL.into_iter().flat_map(|family| of_family(family, current, wanted, &pods));
    pools.chain(current.backend.refuses_change(&wanted.backend)).collect()
}

fn of_family(
    family: IpFamily,
    current: &Network,
    wanted: &Network,
    pods: &impl Fn(IpFamily) -> Option<String>,
) -> Vec<String> {
    let (enabled, network, len) = match family {
        IpFamily::V4 => ("EnableIPv4", "Network", "SubnetLen"),
        IpFamily::V6 => ("EnableIPv6", "IPv6Network", "IPv6SubnetLen"),
    };
    match (current.pools.get(family), wanted.pools.get(family)) {
        (Some(_), None) => {
            let of_pods = |place| format!("{enabled}: Pods that run have addresses of that family ({place})");
            pods(family).map(of_pods).into_iter().collect()
        }
        // Pods that run stay without the family that comes.
        (None, _) => Vec::new(),
        (Some(current), Some(wanted)) => of_pool(network, len, current, wanted),
    }
}

fn of_pool(network: &str, len: &str, current: &Pool, wanted: &Pool) -> Vec<String> {
    let mut reasons = Vec::new();
    if current.network != wanted.network {
        let (from, to) = (current.network, wanted.network);
        reasons.push(format!("{network}: {to} instead of {from}: Pods that run have addresses of {from}"));
    }
    if current.subnet_len != wanted.subnet_len {
        let (from, to) = (current.subnet_len, wanted.subnet_len);
        reasons
            .push(format!("{len}: {to} instead of {from}: nodes hold subnets of that length, and Pods live in them"));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::net_conf::NetConf;

    fn refused(wanted: &str) -> Vec<String> {
        let network = |text: &str| NetConf::parse(text).unwrap().network;
        let current = network(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}"#);
        refusals(&current, &network(wanted), |_| Some("bridge cni0".to_owned()))
    }

    #[test]
    fn backend_its_options_and_the_bounds_of_further_subnets_may_change() {
        for wanted in [
            r#"{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}"#,
            r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","VNI":7,"MTU":1400,"DirectRouting":true}}"#,
            r#"{"Network":"172.7.0.0/16","SubnetMin":"172.7.20.0","SubnetMax":"172.7.99.0"}"#,
        ] {
            assert_eq!(refused(wanted), Vec::<String>::new(), "{wanted}");
        }
    }

    #[test]
    fn vni_and_gbp_change_at_once_on_another_port_only() {
        let wanted = |port: u16| {
            let backend = format!(r#"{{"Type":"vxlan","VNI":2,"GBP":true,"Port":{port}}}"#);
            refused(&format!(r#"{{"Network":"172.7.0.0/16","Backend":{backend}}}"#))
        };
        assert!(wanted(8472)[0].starts_with("Backend: another VNI and GBP need another Port"), "{:?}", wanted(8472));
        assert_eq!(wanted(4789), Vec::<String>::new());
    }

    #[test]
    fn what_would_take_addresses_from_pods_is_refused_field_by_field() {
        let reasons = refused(r#"{"Network":"10.5.0.0/16","SubnetLen":25,"Backend":{"Type":"host-gw"}}"#);
        assert_eq!(reasons.len(), 2);
        assert!(reasons[0].starts_with("Network: 10.5.0.0/16 instead of 172.7.0.0/16"), "{reasons:?}");
        assert!(reasons[1].starts_with("SubnetLen: 25 instead of 24"), "{reasons:?}");
        let six = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}"#;
        assert_eq!(refused(six), ["EnableIPv4: Pods that run have addresses of that family (bridge cni0)"]);
    }

    #[test]
    fn family_comes_at_any_time_and_goes_where_no_pod_has_an_address_of_it() {
        let dual = r#"{"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#;
        assert_eq!(refused(dual), Vec::<String>::new());
        let network = |text: &str| NetConf::parse(text).unwrap().network;
        let (dual, four) = (network(dual), network(r#"{"Network":"172.7.0.0/16"}"#));
        assert_eq!(refusals(&dual, &four, |_| None), Vec::<String>::new());
        let pods = |family| (family == IpFamily::V6).then(|| "bridge cni0".to_owned());
        assert_eq!(refusals(&dual, &four, pods).len(), 1);
    }
}
