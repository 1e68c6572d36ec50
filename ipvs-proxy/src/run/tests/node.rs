//! This node and its Node object.

use super::*;
use crate::plan::networks::NodeNetwork;

/// A rig with a Service beside `web`, whose two endpoints are meant for clients of two zones.
fn near() -> Rig {
    let mut rig = Rig::web();
    rig.service("near", 11, "TCP");
    let endpoint = |last: u8, zone: &str| {
        json!({"addresses": [format!("172.7.22.{last}")], "nodeName": "hdss7-22.host.com",
            "hints": {"forZones": [{"name": zone}]}})
    };
    let json = json!({
        "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [endpoint(4, "z1"), endpoint(5, "z2")],
        "metadata": {"name": "near-1", "labels": {"kubernetes.io/service-name": "near"}},
        "ports": [{"name": "main", "port": 80, "protocol": "TCP"}],
    });
    rig.put("endpointslices/default/near-1", &json);
    rig.work();
    rig
}

#[test]
fn a_change_of_this_node_changes_the_rows_that_depend_on_it() {
    let mut rig = near();
    rig.proxy.learn(|facts| facts.zone = Some("z1".to_owned()));
    let drain = "nft + element ip ipvs-proxy @draining { 192.168.0.11 . tcp . 80 . 172.7.22.5 . 80 }";
    assert_eq!(rig.work(), [drain, "ipvs ~ tcp 192.168.0.11:80 -> 172.7.22.5:80"], "web stays");
    rig.proxy.learn(|facts| facts.zone = None);
    assert!(rig.work().contains(&"ipvs ~ tcp 192.168.0.11:80 -> 172.7.22.5:80".to_owned()), "it is back");
    let own: IpAddr = [172, 7, 22, 2].into();
    rig.proxy.learn(|facts| {
        facts.own.all.insert(own);
    });
    assert_eq!(
        rig.work(),
        [
            "nft + element ip ipvs-proxy @hairpin { 172.7.22.2 . 172.7.22.2 }",
            "nft + element ip ipvs-proxy @node-port-addresses { 172.7.22.2 }"
        ],
        "an endpoint of web is here now"
    );
    rig.proxy.learn(|facts| {
        facts.own.all.remove(&own);
    });
    assert_eq!(
        rig.work(),
        [
            "nft - element ip ipvs-proxy @hairpin { 172.7.22.2 . 172.7.22.2 }",
            "nft - element ip ipvs-proxy @node-port-addresses { 172.7.22.2 }"
        ]
    );
    rig.proxy.learn(|facts| facts.own.primary.v4 = Some(own));
    assert_eq!(rig.work(), [""; 0], "nothing depends on that here");
}

/// As libvirt's, whose network the operator takes away because the status says so.
#[test]
fn a_service_is_served_once_the_network_of_the_node_that_its_address_is_in_is_gone_and_no_more_when_it_is_back() {
    let pods = PerFamily::only(IpFamily::V4, "172.7.0.0/16".parse().unwrap());
    let addr: IpAddr = [192, 168, 0, 1].into();
    let node = vec![NodeNetwork { link: "virbr0".to_owned(), addr, network: "192.168.0.0/24".parse().unwrap() }];
    let around = Networks { pods, services: PerFamily::default(), node };
    let mut rig = Rig::among(around, Mode::Ipvs, 1000, Kept::default(), (FakeTable::default(), Vec::new()));
    rig.proxy.learn(|facts| {
        facts.own.all.insert(addr);
    });
    let mut rig = rig.restarted(&[2, 3]);
    for _ in 0..2 {
        assert!(rig.proxy.misplaced().values().any(|reason| reason.contains("on virbr0")));
        assert!(rig.servers.contents().rows.is_empty());
        rig.proxy.learn(|facts| {
            facts.own.all.remove(&addr);
        });
        rig.work();
        assert!(rig.proxy.misplaced().is_empty());
        assert_eq!(endpoints_in_service(&rig).len(), 2);
        rig.proxy.learn(|facts| {
            facts.own.all.insert(addr);
        });
        rig.work();
    }
}

/// The Node object of the node, with `spec`.
fn node(zone: &str, spec: &serde_json::Value, beat: u8) -> serde_json::Value {
    json!({
        "kind": "Node", "spec": spec,
        "metadata": {"name": "hdss7-21.host.com", "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"conditions": [{"type": "Ready", "lastHeartbeatTime": format!("2026-11-26T00:{beat:02}:00Z")}]},
    })
}

const NODE: &str = "nodes/hdss7-21.host.com";

#[test]
fn the_zone_of_the_node_object_is_followed_and_a_heartbeat_causes_no_work() {
    let mut rig = near();
    rig.put(NODE, &node("z1", &json!({}), 0));
    let drain = "nft + element ip ipvs-proxy @draining { 192.168.0.11 . tcp . 80 . 172.7.22.5 . 80 }";
    let weight = "ipvs ~ tcp 192.168.0.11:80 -> 172.7.22.5:80";
    assert_eq!(rig.work(), [drain, weight], "web stays");
    let reads = rig.proxy.view().reads();
    rig.put(NODE, &node("z1", &json!({}), 5));
    assert_eq!((rig.work(), rig.proxy.view().reads()), (Vec::new(), reads), "no object is read for a heartbeat");
    rig.put(NODE, &node("z1", &json!({"podCIDRs": ["172.7.21.0/24"]}), 5));
    assert_eq!((rig.work(), rig.proxy.view().reads()), (Vec::new(), reads), "nothing depends on the Pod network");
    rig.receive(Event::Delete { key: NODE.to_owned(), revision: 2 });
    assert!(rig.work().contains(&weight.to_owned()), "it is back");
}

#[test]
fn who_is_a_pod_follows_the_networks_of_the_node_object_where_that_is_asked_for() {
    let mut rig = Rig::web();
    let conditions = |rig: &Rig| {
        let contents = rig.nft.contents();
        let rows = contents.rows.iter().map(|(key, row)| format!("{key} {}", row.value));
        rows.filter(|row| row.contains("choose/ipvs"))
            .filter_map(|row| Some(row.split_once(" saddr ")?.1.to_owned()))
            .collect::<Vec<_>>()
    };
    assert!(conditions(&rig)[0].contains("172.7.0.0/16"), "{:?}", conditions(&rig));
    rig.proxy.learn(|facts| facts.pods_of_node = true);
    rig.work();
    assert!(!format!("{:?}", conditions(&rig)).contains("172.7."), "{:?}", conditions(&rig));
    let advice = |rig: &Rig| ProxyStatus::of(&rig.proxy, "hdss7-21.host.com", &[], rig.now).advice;
    assert!(advice(&rig)[0].contains("has no Node hdss7-21.host.com"), "{:?}", advice(&rig));
    for network in ["172.7.21.0/24", "172.7.31.0/24"] {
        rig.put(NODE, &node("z1", &json!({"podCIDRs": [network]}), 0));
        rig.work();
        assert!(conditions(&rig)[0].contains(network), "{:?}", conditions(&rig));
        assert_eq!(advice(&rig), [""; 0]);
    }
}

#[test]
fn a_node_that_leaves_or_is_gone_is_not_eligible_and_one_that_never_was_is() {
    let mut rig = Rig::web();
    assert_eq!(rig.proxy.ineligible(), None);
    let tainted = json!({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]});
    for (spec, reason) in [(json!({}), None), (tainted, Some("spec.taints")), (json!({}), None)] {
        rig.put(NODE, &node("z1", &spec, 0));
        assert_eq!(rig.work(), [""; 0]);
        let found = rig.proxy.ineligible();
        assert_eq!(
            found.as_deref().map(|text| text.contains(reason.unwrap_or("?"))),
            reason.map(|_| true),
            "{found:?}"
        );
    }
    rig.receive(Event::Delete { key: NODE.to_owned(), revision: 2 });
    rig.work();
    assert_eq!(rig.proxy.ineligible().as_deref(), Some("Node hdss7-21.host.com is gone from the source"));
    rig.put("nodes/hdss7-22.host.com", &json!({"kind": "Node", "metadata": {"name": "hdss7-22.host.com"}}));
    rig.work();
    assert!(rig.proxy.ineligible().is_some(), "another Node");
}
