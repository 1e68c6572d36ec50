//! Sources that show nothing, or what cannot be read.

use super::*;

#[test]
fn a_source_that_shows_nothing_is_believed_after_a_while_and_not_at_once() {
    let mut rig = Rig::web();
    rig.receive(Event::Reset);
    rig.complete();
    assert!(rig.work().is_empty());
    assert!(rig.proxy.alarm().unwrap().contains("shows nothing of 2 objects"));
    assert!(rig.later(59).is_empty());
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2, 3]);
    assert!(rig.later(60).is_empty(), "it is back");
    assert_eq!(rig.proxy.alarm(), None);
    rig.receive(Event::Reset);
    rig.complete();
    rig.work();
    assert!(rig.later(60).contains(&"address - 192.168.0.10/32 dev kube-ipvs0".to_owned()));
}

#[test]
fn a_first_listing_that_shows_nothing_takes_nothing_of_an_earlier_run_before_its_time() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    rig.complete();
    assert_eq!(rig.work(), ["link + kube-ipvs0"], "the link's table is new in this rig");
    assert!(rig.proxy.alarm().unwrap().contains("shows 0 of 1 addresses and ports"));
    assert!(rig.later(59).is_empty());
    assert!(rig.later(1).contains(&"address - 192.168.0.10/32 dev kube-ipvs0".to_owned()));
    assert_eq!(rig.proxy.alarm(), None);
}

#[test]
fn a_malformed_service_goes_on_as_the_kernel_remembers_it_until_it_is_gone() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    rig.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}}));
    rig.complete();
    assert_eq!(rig.work(), ["link + kube-ipvs0"]);
    assert_eq!(rig.proxy.remembered().count(), 1);
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    assert!(rig.work().contains(&"ipvs - tcp 192.168.0.10:80".to_owned()));
    assert_eq!(rig.proxy.remembered().count(), 0);
}

#[test]
fn a_malformed_service_keeps_its_external_address_for_an_external_one() {
    let mut before = Rig::web();
    let spec = json!({"clusterIP": "192.168.0.10", "externalIPs": ["10.4.7.99"],
        "ports": [{"name": "main", "port": 80}]});
    before.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
    before.work();
    for mode in [Mode::Ipvs, Mode::Nftables] {
        let before = Rig::after(&before, mode, 1000).restarted_as(&spec);
        let mut rig = Rig::after(&before, mode, 1000);
        rig.receive(Event::Reset);
        rig.put("services/default/web", &json!({"kind": "Service"}));
        rig.endpoints("web", "TCP", &[2, 3]);
        rig.complete();
        let done = rig.work();
        assert!(done.iter().all(|step| step.starts_with("link")), "{mode:?}: {done:?}");
        let plan = rig.proxy.claims().plan(&crate::object::ObjectName::new("default", "web")).unwrap();
        let kinds: Vec<_> = plan.frontends().iter().map(|(key, frontend)| (key.to_string(), frontend.kind)).collect();
        let expected = [("tcp 10.4.7.99:80", Kind::LoadBalancer), ("tcp 192.168.0.10:80", Kind::ClusterIp)];
        assert_eq!(kinds, expected.map(|(key, kind)| (key.to_owned(), kind)), "{mode:?}");
    }
}

#[test]
fn a_service_whose_only_slice_is_malformed_keeps_the_endpoints_that_the_kernel_remembers() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.put("endpointslices/default/web-1", &json!({"kind": "EndpointSlice", "metadata": {"name": "web-1"}}));
    rig.complete();
    assert_eq!(rig.work(), ["link + kube-ipvs0"]);
    rig.service("other", 11, "TCP");
    assert_eq!(rig.work().len(), 4, "others go on");
    rig.endpoints("web", "TCP", &[3]);
    assert!(
        rig.work().contains(&"ipvs ~ tcp 192.168.0.10:80 -> 172.7.22.2:80".to_owned()),
        "a good slice counts at once"
    );
}

#[test]
fn a_service_whose_address_cannot_be_virtual_keeps_its_earlier_one() {
    let mut rig = Rig::web();
    let ports = json!([{"name": "main", "port": 80}]);
    let spec = json!({"clusterIP": "172.7.21.9", "ports": ports});
    rig.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
    assert!(rig.work().is_empty());
    assert!(rig.proxy.misplaced().values().any(|reason| reason.contains("in the Pod network")));
    rig.endpoints("web", "TCP", &[2, 3, 4]);
    assert_eq!(rig.work(), ["ipvs + tcp 192.168.0.10:80 -> 172.7.22.4:80"], "its endpoints are followed");
}

#[test]
fn a_service_whose_address_cannot_be_virtual_follows_its_endpoints_after_a_restart_too() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    let spec = json!({"clusterIP": "172.7.21.9", "ports": [{"name": "main", "port": 80}]});
    rig.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
    rig.endpoints("web", "TCP", &[2, 3, 4]);
    rig.complete();
    assert_eq!(rig.work(), ["link + kube-ipvs0", "ipvs + tcp 192.168.0.10:80 -> 172.7.22.4:80"]);
    assert_eq!(rig.proxy.misplaced().len(), 1);
}

#[test]
fn an_address_that_cannot_be_virtual_leaves_the_earlier_one_of_its_family_after_a_restart_in_either_mode() {
    let pods = PerFamily::new(Some("172.7.0.0/16".parse().unwrap()), Some("fd00:7::/48".parse().unwrap()));
    let listed = |mut rig: Rig, cluster_ips: [&str; 2], last: u8| {
        rig.receive(Event::Reset);
        let spec = json!({"clusterIP": cluster_ips[0], "clusterIPs": cluster_ips, "ports": [{"port": 80, "nodePort": 30_080}]});
        rig.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
        for (family, addr) in [("IPv4", format!("172.7.22.{last}")), ("IPv6", format!("fd00:7:22::{last}"))] {
            let name = format!("web-{}", family.to_lowercase());
            let json = json!({
                "kind": "EndpointSlice", "addressType": family, "endpoints": [{"addresses": [addr]}], "ports": [{"port": 80}],
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
            });
            rig.put(&format!("endpointslices/default/{name}"), &json);
        }
        rig.complete();
        rig.work();
        rig
    };
    for mode in [Mode::Ipvs, Mode::Nftables] {
        let started = |kept| {
            let around = Networks { pods, services: PerFamily::default(), node: Vec::new() };
            let mut rig = Rig::among(around, mode, 1000, kept, (FakeTable::default(), Vec::new()));
            // A single address, as clouds give them: in no network that says whose it is.
            rig.proxy.learn(|facts| {
                facts.own.all.insert([10, 4, 7, 21].into());
            });
            rig
        };
        for cluster_ips in [["192.168.0.10", "fd00:7::9"], ["172.7.21.9", "fd00::10"], ["172.7.21.9", "fd00:7::9"]] {
            let before = listed(started(Kept::default()), ["192.168.0.10", "fd00::10"], 2);
            let kept = (before.nft.clone(), before.servers.clone(), before.addresses.clone());
            let rig = listed(started(kept), cluster_ips, 3);
            let plan = rig.proxy.claims().plan(&crate::object::ObjectName::new("default", "web")).unwrap();
            let expected: BTreeSet<IpAddr> = [[192, 168, 0, 10].into(), "fd00::10".parse().unwrap()].into();
            assert_eq!(plan.virtual_addresses(), expected, "{mode:?} {cluster_ips:?}");
        }
    }
}

#[test]
fn an_object_that_stands_in_two_files_keeps_no_deleted_service_alive() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    rig.service("other", 11, "TCP");
    let notes = vec!["Service/default/other stands in a.yaml as well, and that one counts".to_owned()];
    rig.receive(Event::Notes { source: "b.yaml".to_owned(), notes });
    rig.complete();
    rig.work();
    rig.later(61);
    assert!(!rig.servers.contents().rows.keys().any(|key| key.to_string().contains("192.168.0.10:80")));
}

#[test]
fn a_file_that_cannot_be_read_keeps_those_alive_that_it_may_hold_and_no_other() {
    let mut before = Rig::web();
    before.service("api", 11, "TCP");
    before.work();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    let stands = |rig: &Rig, last: u8| {
        let of = format!("192.168.0.{last}:80");
        rig.servers.contents().rows.keys().any(|key| key.to_string().contains(&of))
    };
    let torn = |text: &str| Event::Invalid {
        source: "torn.yaml".to_owned(),
        reason: "torn".to_owned(),
        words: cluster::Words::of(text.as_bytes()),
    };
    rig.receive(Event::Reset);
    rig.service("other", 12, "TCP");
    rig.receive(torn("kind: Service\nmetadata: {name: api"));
    rig.complete();
    rig.work();
    rig.later(61);
    assert_eq!((stands(&rig, 10), stands(&rig, 11)), (false, true), "web is deleted, api may stand in the file");
    rig.receive(torn("kind: Service\nmetadata: {name: third"));
    rig.work();
    assert!(!stands(&rig, 11), "the file does not name it any more");
}
