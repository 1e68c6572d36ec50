//! Tracked connections that lead elsewhere than they should.

use super::*;

#[test]
fn clients_that_began_while_the_rules_were_away_begin_anew_when_the_rules_are_back() {
    let mut rig = Rig::web();
    let vip: SocketAddr = "192.168.0.10:80".parse().unwrap();
    let good = tracked(vip, ([172, 7, 22, 2], 80));
    let unmasked = Tracked { returns_to: good.client, answered: false, ..good };
    let elsewhere = Tracked { opened_to: "192.168.0.99:80".parse().unwrap(), ..unmasked };
    rig.flows.0.lock().unwrap().held.extend([good, unmasked, elsewhere]);
    rig.later(1);
    assert_eq!(rig.flows.0.lock().unwrap().held.len(), 3, "nothing has changed");
    rig.nft.contents().rows.clear();
    rig.proxy.touched(Touched::Nft);
    rig.nft.contents().errors.push_back(Some(16));
    rig.work();
    assert_eq!(rig.flows.0.lock().unwrap().held.len(), 3, "the rules are not back yet");
    rig.flows.0.lock().unwrap().failures = 1;
    rig.later(60);
    assert_eq!(rig.flows.0.lock().unwrap().held.len(), 3, "the connections could not be read");
    let _ = sweep(&rig.flows.1.clone(), &mut rig.flows, &Default::default());
    assert_eq!(rig.flows.0.lock().unwrap().held, [good, elsewhere]);
    // One element, or a rule, is enough.
    for table in [false, true] {
        rig.flows.0.lock().unwrap().held.push(unmasked);
        rig.nft.contents().rows.retain(|key, _| match key {
            nft_rows::RowKey::Table(_) => !table,
            key => table || !key.to_string().contains("@services"),
        });
        rig.proxy.touched(Touched::Nft);
        rig.later(60);
        assert_eq!(rig.flows.0.lock().unwrap().held, [good, elsewhere]);
    }
}

#[test]
fn another_endpoint_has_nobody_read_connections_of_tcp() {
    for (protocol, reads) in [("TCP", false), ("UDP", true)] {
        let mut rig = Rig::in_mode(Mode::Nftables, 1000, Kept::default());
        let mut read_by = |change: &mut dyn FnMut(&mut Rig)| {
            let before = rig.flows.0.lock().unwrap().readings;
            change(&mut rig);
            rig.work();
            rig.flows.0.lock().unwrap().readings > before
        };
        let begins = read_by(&mut |rig| {
            rig.receive(Event::Reset);
            rig.service("web", 10, protocol);
            rig.endpoints("web", protocol, &[2, 3]);
            rig.complete();
        });
        assert!(begins, "{protocol}: who connected before the Service was there was led past it");
        for pods in [&[2, 4][..], &[4], &[4, 5, 6]] {
            assert_eq!(read_by(&mut |rig| rig.endpoints("web", protocol, pods)), reads, "{protocol} {pods:?}");
        }
        assert!(read_by(&mut |rig| rig.endpoints("web", protocol, &[])), "{protocol}: nobody is answered");
        assert!(read_by(&mut |rig| rig.endpoints("web", protocol, &[2])), "{protocol}: somebody is again");
    }
}

/// As of an ingress controller at the node's own addresses, whose Service lists these as external ones.
#[test]
fn a_connection_to_an_endpoint_at_the_frontends_own_address_and_port_goes_on_while_the_endpoint_is_there() {
    let own = IpAddr::from([10, 4, 7, 21]);
    for (mode, port) in [Mode::Ipvs, Mode::Nftables].into_iter().flat_map(|mode| [(mode, 80), (mode, 30_080)]) {
        let mut rig = Rig::in_mode(mode, 1000, Kept::default());
        rig.proxy.learn(|facts| facts.own.all = BTreeSet::from([own]));
        rig.complete();
        let flow = tracked((own, port).into(), ([10, 4, 7, 21], port));
        rig.flows.0.lock().unwrap().held.push(flow);
        let ports = json!([{"name": "main", "port": 80, "nodePort": 30_080}]);
        let spec = json!({"type": "NodePort", "clusterIP": "192.168.0.10", "externalIPs": [own], "ports": ports});
        let mut put = |endpoints: serde_json::Value| {
            rig.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
            let labels = json!({"kubernetes.io/service-name": "web"});
            let slice = json!({"kind": "EndpointSlice", "metadata": {"name": "web-1", "labels": labels},
                "addressType": "IPv4", "ports": [{"name": "main", "port": port}], "endpoints": endpoints});
            rig.put("endpointslices/default/web-1", &slice);
            rig.work();
            rig.flows.0.lock().unwrap().held.len()
        };
        assert_eq!(put(json!([{"addresses": [own]}, {"addresses": ["10.4.7.22"]}])), 1, "{mode:?} {port}");
        assert_eq!(put(json!([])), 0, "{mode:?} {port}: nobody answers there any more");
    }
}
