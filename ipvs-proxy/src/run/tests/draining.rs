//! Real servers that leave: how long, and who comes back.

use super::*;
use crate::dataplane::{ipvs, nftables};
use crate::object::ObjectName;

#[test]
fn a_tcp_endpoint_drains_and_a_udp_endpoint_goes_at_once() {
    let mut rig = Rig::web();
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 2));
    rig.endpoints("web", "TCP", &[3]);
    let begins = [since_when('+', 2), "ipvs ~ tcp 192.168.0.10:80 -> 172.7.22.2:80".to_owned()];
    assert_eq!(rig.work(), begins, "since when stands before its weight does");
    assert!(rig.later(5).is_empty(), "it has a connection");
    rig.busy.lock().unwrap().clear();
    let ends = ["ipvs - tcp 192.168.0.10:80 -> 172.7.22.2:80".to_owned(), since_when('-', 2)];
    assert_eq!(rig.later(15), ends);

    rig.service("dns", 53, "UDP");
    rig.endpoints("dns", "UDP", &[2, 3]);
    rig.work();
    let vip: SocketAddr = "192.168.0.53:80".parse().unwrap();
    let flow = |last: u8| tracked(vip, ([172, 7, 22, last], 80));
    rig.flows.0.lock().unwrap().held.extend([flow(2), flow(3)]);
    rig.endpoints("dns", "UDP", &[3]);
    assert_eq!(rig.work(), ["ipvs - udp 192.168.0.53:80 -> 172.7.22.2:80"]);
    assert_eq!(rig.flows.0.lock().unwrap().held, [flow(3)], "the flow of the one that is gone is forgotten");
}

#[test]
fn an_endpoint_that_comes_back_gets_its_weight_and_is_not_made_anew() {
    let mut rig = Rig::web();
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 2));
    rig.endpoints("web", "TCP", &[3]);
    rig.work();
    rig.endpoints("web", "TCP", &[2, 3]);
    assert_eq!(rig.work(), ["ipvs ~ tcp 192.168.0.10:80 -> 172.7.22.2:80".to_owned(), since_when('-', 2)]);
    rig.busy.lock().unwrap().clear();
    assert!(rig.later(60).is_empty(), "its drain is forgotten");
}

#[test]
fn a_drain_that_outlives_its_grace_period_is_cut() {
    let mut rig = Rig::web();
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 2));
    rig.endpoints("web", "TCP", &[3]);
    rig.work();
    assert!(rig.later(890).is_empty());
    assert_eq!(rig.later(15), ["ipvs - tcp 192.168.0.10:80 -> 172.7.22.2:80".to_owned(), since_when('-', 2)]);
}

#[test]
fn the_bound_of_a_drain_goes_on_through_restarts_and_is_not_left_behind() {
    let mut rig = Rig::web();
    rig.busy.lock().unwrap().extend([real(Protocol::Tcp, 2), real(Protocol::Tcp, 3)]);
    rig.endpoints("web", "TCP", &[4]);
    rig.later(10);
    let mut boot = 1010;
    for _ in 0..3 {
        // 250 s each, of 900.
        boot += 250;
        let next = Rig::at_boot(boot, rig.nft.clone(), rig.servers.clone(), rig.addresses.clone());
        next.busy.lock().unwrap().extend([real(Protocol::Tcp, 2), real(Protocol::Tcp, 3)]);
        rig = next.restarted(&[4]);
        assert!(rig.work().is_empty(), "both drain as before");
        assert!(rig.later(1).is_empty());
    }
    assert!(rig.later(140).is_empty(), "891 s have passed");
    let gone = rig.later(15);
    assert_eq!(gone.iter().filter(|step| step.starts_with("ipvs - ")).count(), 2, "{gone:?}");
    assert!(gone.contains(&since_when('-', 2)) && gone.contains(&since_when('-', 3)), "{gone:?}");
    // An endpoint that is back when this program is has all of its time again.
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 4));
    rig.endpoints("web", "TCP", &[5]);
    rig.work();
    let mut rig = Rig::at_boot(boot + 800, rig.nft, rig.servers, rig.addresses).restarted(&[4, 5]);
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 4));
    rig.endpoints("web", "TCP", &[5]);
    rig.work();
    assert!(rig.later(800).is_empty());
    assert_eq!(since::drains(&rig.nft.contents().rows).len(), 1);
}

#[test]
fn a_service_made_again_while_an_endpoint_drained_has_its_endpoints_and_no_other() {
    let mut rig = Rig::web();
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 2));
    rig.endpoints("web", "TCP", &[3]);
    assert!(rig.work().contains(&since_when('+', 2)));
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    let steps = rig.work();
    assert!(
        steps.contains(&"ipvs - tcp 192.168.0.10:80".to_owned()) && steps.contains(&since_when('-', 2)),
        "{steps:?}"
    );
    assert!(rig.servers.contents().rows.is_empty());
    assert!(rig.later(1).is_empty(), "nobody is found to have changed anything");
    rig.service("web", 10, "TCP");
    rig.work();
    let reals = |rig: &Rig| rig.servers.contents().rows.keys().filter(|key| matches!(key, ServerKey::Real(_))).count();
    assert_eq!((reals(&rig), endpoints_in_service(&rig)), (1, vec![real(Protocol::Tcp, 3)]));
    assert!(rig.later(60).is_empty());
    // Back within one change, nothing has happened.
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 3));
    rig.endpoints("web", "TCP", &[2]);
    rig.work();
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 3 });
    rig.service("web", 10, "TCP");
    assert!(rig.work().is_empty());
    assert_eq!(reals(&rig), 2);
}

#[test]
fn a_service_is_not_in_place_while_a_refused_row_of_it_waits_for_its_next_try() {
    let web = ObjectName::new("default", "web");
    for mode in [Mode::Ipvs, Mode::Nftables] {
        let kept = (FakeTable::default(), FakeTable::default(), FakeTable::default());
        let mut rig = Rig::in_mode(mode, 1000, kept).restarted(&[2]);
        rig.service("dns", 11, "TCP");
        rig.work();
        assert!(rig.proxy.is_in_place(&web), "{mode:?}");
        let endpoints = nftables::list(&ipvs::frontend(&real(Protocol::Tcp, 3).service, &BTreeSet::new()));
        rig.servers.refuse(ServerKey::Real(real(Protocol::Tcp, 3)), 22);
        rig.nft.refuse(endpoints.clone(), 22);
        rig.endpoints("web", "TCP", &[2, 3]);
        rig.work();
        // Nothing fails in this one, for nothing is tried.
        rig.receive(Event::Commit);
        let pass = rig.proxy.work(rig.now);
        assert_eq!((pass.failed, rig.proxy.is_in_place(&web)), (0, false), "{mode:?}");
        assert!(rig.proxy.is_in_place(&ObjectName::new("default", "dns")), "{mode:?}: another Service");
        rig.servers.allow(&ServerKey::Real(real(Protocol::Tcp, 3)));
        rig.nft.allow(&endpoints);
        rig.later(60);
        assert!(rig.proxy.is_in_place(&web), "{mode:?}");
        assert!(rig.proxy.is_in_place(&ObjectName::new("default", "gone")), "{mode:?}: nothing is desired");
    }
}

#[test]
fn nor_is_one_whose_address_is_not_local_yet() {
    let mut rig = Rig::web();
    let api = ObjectName::new("default", "api");
    let address = vip::address(&IfName::literal(vip::LINK_NAME), [192, 168, 0, 11].into());
    rig.addresses.refuse(address.clone(), 22);
    rig.service("api", 11, "TCP");
    rig.endpoints("api", "TCP", &[2]);
    rig.work();
    assert!(!rig.proxy.is_in_place(&api));
    assert!(rig.proxy.is_in_place(&ObjectName::new("default", "web")), "another Service");
    rig.addresses.allow(&address);
    rig.later(60);
    assert!(rig.proxy.is_in_place(&api));
}

#[test]
fn nor_is_one_whose_clients_stay_while_the_chain_that_keeps_them_waits() {
    let kept = (FakeTable::default(), FakeTable::default(), FakeTable::default());
    let ports = json!([{"name": "main", "port": 80}]);
    let spec = json!({"clusterIP": "192.168.0.10", "ports": ports, "sessionAffinity": "ClientIP"});
    let mut rig = Rig::in_mode(Mode::Nftables, 1000, kept).restarted_as(&spec);
    let web = ObjectName::new("default", "web");
    assert!(rig.proxy.is_in_place(&web));
    let chain = rig.nft.contents().rows.keys().find(|key| key.to_string().contains("keep/")).unwrap().clone();
    rig.nft.refuse(chain.clone(), 22);
    rig.endpoints("web", "TCP", &[3, 4]);
    rig.work();
    assert!(!rig.proxy.is_in_place(&web));
    rig.nft.allow(&chain);
    rig.later(60);
    assert!(rig.proxy.is_in_place(&web));
}

#[test]
fn endpoint_that_the_kernel_refuses_keeps_none_of_the_others_nor_the_address_away() {
    let mut rig = Rig::new();
    rig.servers.refuse(ServerKey::Real(real(Protocol::Tcp, 3)), 22);
    rig = rig.restarted(&[2, 3, 4]);
    assert_eq!(endpoints_in_service(&rig), [2, 4].map(|last| real(Protocol::Tcp, last)));
    assert_eq!(rig.addresses.contents().rows.len(), 1, "the address is local");
    let failed = rig.proxy.tables().stack().stages().flat_map(reconcile::Stage::failed).collect::<Vec<_>>();
    assert_eq!(failed.len(), 1, "{failed:?}");
    // What comes and goes beside it is written all the same, and only that.
    rig.endpoints("web", "TCP", &[3, 4, 5]);
    let steps = rig.work();
    let of_ipvs: Vec<_> = steps.iter().filter(|step| step.starts_with("ipvs")).collect();
    assert_eq!(of_ipvs, ["ipvs + tcp 192.168.0.10:80 -> 172.7.22.5:80", "ipvs ~ tcp 192.168.0.10:80 -> 172.7.22.2:80"]);
    rig.servers.allow(&ServerKey::Real(real(Protocol::Tcp, 3)));
    rig.later(600);
    assert_eq!(endpoints_in_service(&rig), [3, 4, 5].map(|last| real(Protocol::Tcp, last)));
}

#[test]
fn udp_endpoints_of_before_a_restart_go_at_once_and_not_before_the_source_is_listed() {
    let mut before = Rig::new();
    before.receive(Event::Reset);
    before.service("dns", 10, "UDP");
    before.endpoints("dns", "UDP", &[2, 3]);
    before.complete();
    before.work();
    let mut rig = Rig::after(&before, Mode::Ipvs, 2000);
    rig.receive(Event::Reset);
    rig.service("dns", 10, "UDP");
    rig.endpoints("dns", "UDP", &[3]);
    assert!(!rig.work().iter().any(|step| step.starts_with("ipvs")), "nothing else is known yet");
    assert_eq!(endpoints_in_service(&rig), [2, 3].map(|last| real(Protocol::Udp, last)));
    rig.complete();
    assert_eq!(rig.work(), ["ipvs - udp 192.168.0.10:80 -> 172.7.22.2:80"]);
}
