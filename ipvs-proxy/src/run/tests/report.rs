//! What the status says of objects.

use super::*;

#[test]
fn zones_that_cannot_be_followed_are_named() {
    let mut rig = Rig::web();
    let advice = |rig: &Rig| ProxyStatus::of(&rig.proxy, "n", &[], rig.now).advice;
    assert_eq!(advice(&rig), [""; 0]);
    let spec = json!({"clusterIP": "192.168.0.10", "trafficDistribution": "PreferClose",
        "ports": [{"name": "main", "port": 80}]});
    rig.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
    rig.work();
    let not_served = |rig: &Rig| ProxyStatus::of(&rig.proxy, "n", &[], rig.now).not_served;
    let asked = "spec.trafficDistribution: PreferSameZone, for which no endpoint has a hint: all are used";
    assert_eq!(not_served(&rig)[0].fields, [asked]);
    assert_eq!(advice(&rig), [""; 0], "nothing depends on the zone");
    let slice = |endpoints: serde_json::Value| {
        json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "main", "port": 80}]})
    };
    let hint = json!({"addresses": ["172.7.22.2"], "hints": {"forZones": [{"name": "z1"}]}});
    rig.put("endpointslices/default/web-1", &slice(json!([hint])));
    rig.work();
    assert!(not_served(&rig).is_empty(), "{:?}", not_served(&rig));
    assert!(advice(&rig)[0].contains("set --node-zone"), "{:?}", advice(&rig));
    rig.proxy.learn(|facts| facts.zone = Some("z1".to_owned()));
    assert_eq!(advice(&rig), [""; 0]);
}

#[test]
fn what_is_left_out_of_the_own_node_is_named_as_that_of_services_is() {
    let mut rig = Rig::web();
    let node = json!({"kind": "Node", "metadata": {"name": "hdss7-21.host.com"}, "spec": {"podCIDRs": ["172.7.21.0"]}});
    rig.put("nodes/hdss7-21.host.com", &node);
    rig.work();
    let skipped = ProxyStatus::of(&rig.proxy, rig.proxy.node(), &[], rig.now).skipped;
    assert_eq!(skipped.len(), 1);
    assert_eq!(skipped[0].object, "nodes/hdss7-21.host.com");
    assert!(skipped[0].elements[0].starts_with("spec.podCIDRs[0]: \"172.7.21.0\""), "{:?}", skipped[0].elements);
}

#[test]
fn a_report_behind_one_change_reads_as_much_among_ten_thousand_services_as_among_ten() {
    let reads = |services: u16| {
        let mut rig = Rig::after(&Rig::new(), Mode::Nftables, 1000);
        rig.receive(Event::Reset);
        for number in 0..services {
            let [high, low] = number.to_be_bytes();
            let spec = json!({"clusterIP": format!("10.96.{high}.{low}"), "ports": [{"name": "main", "port": 80}]});
            let name = format!("s{number}");
            rig.put(
                &format!("services/default/{name}"),
                &json!({"kind": "Service", "metadata": {"name": name}, "spec": spec}),
            );
        }
        rig.service("web", 10, "TCP");
        rig.endpoints("web", "TCP", &[2, 3]);
        rig.complete();
        rig.work();
        let start = rig.proxy.view().reads();
        rig.endpoints("web", "UDP", &[2]);
        rig.work();
        let planned = rig.proxy.view().reads();
        let status = ProxyStatus::of(&rig.proxy, "n", &[], rig.now);
        assert_eq!(status.services, usize::from(services) + 1);
        assert_eq!(status.not_served[0].fields, ["spec.ports: tcp \"main\", which no EndpointSlice has a port for"]);
        (planned - start, rig.proxy.view().reads() - planned)
    };
    let few = reads(10);
    assert!(few.0 > 0, "who plans a Service reads it");
    assert_eq!(few.1, 0, "who reports reads nothing");
    assert_eq!(reads(10_000), few);
}

#[test]
fn conflicts_and_elements_that_were_left_out_have_lists_of_their_own() {
    let mut rig = Rig::new();
    rig.receive(Event::Reset);
    for (last, name, made) in [(11, "old", "2026-01-01T00:00:00Z"), (12, "young", "2026-02-01T00:00:00Z")] {
        let spec = json!({"clusterIP": format!("192.168.0.{last}"), "externalIPs": ["10.4.7.9", name],
            "ports": [{"name": "main", "port": 80}]});
        let metadata = json!({"name": name, "creationTimestamp": made});
        rig.put(&format!("services/default/{name}"), &json!({"kind": "Service", "metadata": metadata, "spec": spec}));
    }
    rig.complete();
    rig.work();
    let status = ProxyStatus::of(&rig.proxy, "n", &[], rig.now);
    assert_eq!(status.refused, []);
    let conflicts: Vec<_> = status.conflicts.iter().map(|c| [&*c.place, &c.served, &c.not_served, &c.reason]).collect();
    assert_eq!(conflicts, [["tcp 10.4.7.9:80", "services/default/old", "services/default/young", "which is older"]]);
    let skipped: Vec<_> = status.skipped.iter().map(|skipped| (&*skipped.object, &*skipped.elements[0])).collect();
    assert_eq!(skipped[0].0, "services/default/old");
    assert!(skipped[0].1.starts_with("spec.externalIPs[1]: \"old\"; accepted: "), "{skipped:?}");
    assert_eq!(skipped.len(), 2);
    assert!(status.ok, "neither hinders the others");
}

#[test]
fn what_is_said_of_a_service_goes_with_it_and_with_its_slice() {
    let mut rig = Rig::web();
    let status = |rig: &Rig| {
        let status = ProxyStatus::of(&rig.proxy, "n", &[], rig.now);
        let fields = status.not_served.iter().map(|asking| (asking.object.clone(), asking.fields.len()));
        fields.collect::<Vec<_>>()
    };
    assert_eq!(status(&rig), []);
    rig.endpoints("web", "UDP", &[2]);
    rig.work();
    assert_eq!(status(&rig), [("services/default/web".to_owned(), 1)]);
    rig.endpoints("web", "TCP", &[2]);
    rig.work();
    assert_eq!(status(&rig), []);
    rig.endpoints("web", "UDP", &[2]);
    rig.work();
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    rig.work();
    assert_eq!(status(&rig), []);
}

#[test]
fn what_somebody_must_act_on_is_an_event_of_the_service_or_of_the_node_in_the_words_that_are_known() {
    use std::net::SocketAddr;

    use cluster::kubernetes::events::{Notice, Subject};
    use daemon::http::{Address, Routes, Unserved};

    use super::super::checks::Unbound;
    use super::super::reported::{Beside, notices};
    use crate::object::ObjectName;

    let mut rig = Rig::web();
    let events = |rig: &Rig, beside: &Beside<'_>| {
        let text = |notice: Notice| {
            let subject = match notice.subject {
                Subject::Node { name, .. } => name,
                Subject::Service { namespace, name } => format!("{namespace}/{name}"),
            };
            format!("{subject} {} {}: {}", notice.reason, notice.action, notice.message)
        };
        notices(&rig.proxy, beside).into_iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(events(&rig, &Beside::default()), [""; 0]);
    let claims = |name: &str, at: &str| {
        let ports =
            json!([{"name": "a", "port": 80, "nodePort": 30_080}, {"name": "b", "port": 81, "nodePort": 30_081}]);
        let spec = json!({"clusterIP": at, "type": "NodePort", "externalIPs": ["10.4.7.9"], "ports": ports});
        (format!("services/default/{name}"), json!({"kind": "Service", "metadata": {"name": name}, "spec": spec}))
    };
    for (name, at) in [("one", "192.168.0.50"), ("two", "192.168.0.50"), ("pod", "172.7.1.1")] {
        let (key, object) = claims(name, at);
        rig.put(&key, &object);
    }
    let endpoints = json!([{"addresses": ["fd00::2"]}, {"addresses": ["127.0.0.1"]}]);
    let labels = json!({"kubernetes.io/service-name": "one"});
    rig.put(
        "endpointslices/default/one-1",
        &json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 80}],
            "metadata": {"name": "one-1", "labels": labels}}),
    );
    rig.work();
    let at: SocketAddr = "10.4.7.21:30100".parse().unwrap();
    let unbound = [Unbound { service: ObjectName::new("default", "one"), at, reason: "in use".to_owned() }];
    let address = |port| Address::Tcp(SocketAddr::from(([0, 0, 0, 0], port)));
    let unserved = |port, routes| Unserved { address: address(port), routes, reason: "in use".to_owned() };
    let unserved = [unserved(10256, Routes::Health), unserved(10249, Routes::All)];
    let found = events(&rig, &Beside { unbound: &unbound, unserved: &unserved, held: &[] });
    let expected = [
        "hdss7-21.host.com FailedToStartProxierHealthcheck StartKubeProxy: failed to start proxier healthz on 0.0.0.0:10256: in use",
        "default/one FailedToStartServiceHealthcheck Listen: node hdss7-21.host.com failed to start healthcheck \"default/one\" on port 30100: ",
        "default/pod ClusterIPOutOfRange SyncProxyRules: an address is not served: spec.clusterIP: 172.7.1.1 is in the Pod network",
        "default/pod AddressAlreadyAllocated SyncProxyRules: tcp 10.4.7.9:80 belongs to services/default/one, which comes first by name, and 1 further ones;",
        "default/pod PortAlreadyAllocated SyncProxyRules: tcp IPv4 node port 30080 belongs to services/default/one, which comes first",
        "default/two AddressAlreadyAllocated SyncProxyRules: tcp 10.4.7.9:80",
        "default/two ClusterIPAlreadyAllocated SyncProxyRules: tcp 192.168.0.50:80 belongs to services/default/one",
        "default/two PortAlreadyAllocated SyncProxyRules: tcp IPv4 node port 30080",
        "default/one KubeProxyIncorrectIPVersion GatherEndpoints: fd00::2 in endpointslice has incorrect IP version",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
}
