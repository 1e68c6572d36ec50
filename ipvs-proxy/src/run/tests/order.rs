//! What is written before what, and what waits for what.

use super::*;

#[test]
fn the_address_comes_last_and_goes_first() {
    let mut rig = Rig::new();
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2]);
    rig.complete();
    assert_eq!(
        rig.work(),
        [
            "link + kube-ipvs0",
            "nft + table ip ipvs-proxy",
            "nft + chain ip ipvs-proxy choose/ipvs/ipvsm/ipvsm",
            "nft + element ip ipvs-proxy @record { 192.168.0.10 . tcp . 80 }",
            "nft + element ip ipvs-proxy @services { 192.168.0.10 . tcp . 80 }",
            "nft + element ip ipvs-proxy @vips { 192.168.0.10 }",
            "ipvs + tcp 192.168.0.10:80",
            "ipvs + tcp 192.168.0.10:80 -> 172.7.22.2:80",
            "address + 192.168.0.10/32 dev kube-ipvs0",
            "nft + element ip ipvs-proxy @record { 0.0.0.0 . tcp . 0 }",
        ]
    );
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    assert_eq!(
        rig.work(),
        [
            "address - 192.168.0.10/32 dev kube-ipvs0",
            "ipvs - tcp 192.168.0.10:80",
            "nft - chain ip ipvs-proxy choose/ipvs/ipvsm/ipvsm",
            "nft - element ip ipvs-proxy @record { 192.168.0.10 . tcp . 80 }",
            "nft - element ip ipvs-proxy @services { 192.168.0.10 . tcp . 80 }",
            "nft - element ip ipvs-proxy @vips { 192.168.0.10 }",
        ]
    );
}

#[test]
fn nothing_is_removed_and_nothing_drains_before_the_first_listing_is_whole() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    assert_eq!(rig.work(), ["link + kube-ipvs0"]);
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[3]);
    assert!(rig.work().is_empty());
    rig.complete();
    let one = [since_when('+', 2), "ipvs ~ tcp 192.168.0.10:80 -> 172.7.22.2:80".to_owned()];
    assert_eq!(rig.work(), one, "one is drained");
}

#[test]
fn no_address_turns_local_before_the_masquerade_stands() {
    let mut rig = Rig::new();
    rig.nft.contents().errors.extend([None, Some(95)]);
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.complete();
    assert!(!rig.work().iter().any(|line| line.starts_with("address")));
    assert!(rig.later(60).contains(&"address + 192.168.0.10/32 dev kube-ipvs0".to_owned()));
}

#[test]
fn no_address_turns_local_before_ipvs_has_its_connections_tracked() {
    let mut rig = Rig::new();
    rig.sysctls.contents().rows.clear();
    rig.sysctls.refuse(tracking(), 30);
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.complete();
    let steps = rig.work();
    assert!(steps.contains(&"ipvs + tcp 192.168.0.10:80".to_owned()), "{steps:?}");
    assert!(!steps.iter().any(|line| line.starts_with("address")), "{steps:?}");
    rig.sysctls.allow(&tracking());
    let steps = rig.later(60);
    assert!(steps.contains(&"address + 192.168.0.10/32 dev kube-ipvs0".to_owned()), "{steps:?}");
}

#[test]
fn an_address_turns_local_only_when_a_virtual_server_stands_behind_it() {
    let mut rig = Rig::new();
    rig.servers.contents().errors.extend([None, Some(2)]);
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.complete();
    assert!(!rig.work().iter().any(|line| line.starts_with("address")), "the kernel knows no such scheduler");
    assert!(rig.later(60).contains(&"address + 192.168.0.10/32 dev kube-ipvs0".to_owned()));
}

#[test]
fn a_new_node_serves_the_api_server_and_dns_before_all_others() {
    let listed = |rig: &mut Rig| {
        rig.receive(Event::Reset);
        for last in 10..40 {
            rig.service(&format!("s{last}"), last, "TCP");
            rig.endpoints(&format!("s{last}"), "TCP", &[last]);
        }
        let json = json!({"kind": "Service", "metadata": {"name": "dns", "namespace": "kube-system"}, "spec": {
            "clusterIP": "192.168.0.253", "ports": [{"name": "main", "port": 53, "protocol": "UDP"}]}});
        rig.put("services/kube-system/dns", &json);
        rig.service("kubernetes", 254, "TCP");
        rig.endpoints("kubernetes", "TCP", &[1]);
        rig.complete();
    };
    let mut rig = Rig::new();
    listed(&mut rig);
    let steps = rig.work();
    let of_others = steps.iter().position(|step| step.contains("192.168.0.10")).unwrap();
    let served = positions(&steps, ["address + 192.168.0.253", "address + 192.168.0.254", "-> 172.7.22.1:80"]);
    assert!(served.iter().all(|step| *step < of_others), "{steps:#?}");
    assert_eq!(rig.addresses.contents().rows.len(), 32);
    // Where there are virtual servers nothing waits for anything.
    let mut after = Rig::after(&rig, Mode::Ipvs, 2000);
    listed(&mut after);
    let steps = after.work();
    assert!(steps.iter().all(|step| !step.starts_with("ipvs") && !step.starts_with("address")), "{steps:#?}");
}
