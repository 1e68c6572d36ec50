//! From one data path to the other.

use super::*;

#[test]
fn on_the_way_to_nftables_virtual_servers_stay_until_their_connections_have_ended() {
    let before = Rig::web();
    let rig = Rig::after(&before, Mode::Nftables, 2000);
    rig.busy.lock().unwrap().extend([real(Protocol::Tcp, 2), real(Protocol::Tcp, 3)]);
    let log = rig.log.clone();
    let mut rig = rig.restarted(&[2, 3]);
    // The log is taken by the first pass, which is where the order shows.
    assert!(log.lock().unwrap().is_empty());
    assert!(endpoints_in_service(&rig).is_empty(), "new connections are chosen for by nftables");
    assert_eq!(rig.servers.contents().rows.len(), 3);
    assert_eq!(rig.addresses.contents().rows.len(), 1, "the address stays with them");
    let chosen =
        |rig: &Rig| rig.nft.contents().rows.keys().filter(|key| key.to_string().contains("@endpoints")).count();
    assert_eq!(chosen(&rig), 1);
    // Killed and started again, in the middle.
    let again = Rig::after(&rig, Mode::Nftables, 2300);
    again.busy.lock().unwrap().extend([real(Protocol::Tcp, 2), real(Protocol::Tcp, 3)]);
    rig = again.restarted(&[2, 3]);
    rig.busy.lock().unwrap().remove(&real(Protocol::Tcp, 2));
    rig.later(16);
    assert_eq!(rig.servers.contents().rows.len(), 2);
    assert!(rig.later(500).is_empty(), "816 s of 900 have passed");
    let steps = rig.later(90);
    let order = positions(
        &steps,
        ["address - 192.168.0.10", "ipvs - tcp 192.168.0.10:80", "nft - element ip ipvs-proxy @record"],
    );
    assert!(order.is_sorted(), "{steps:?}");
    assert!(rig.servers.contents().rows.is_empty() && rig.addresses.contents().rows.is_empty());
    assert_eq!(since::drains(&rig.nft.contents().rows).len(), 0);
    assert_eq!(chosen(&rig), 1);
    assert!(rig.later(60).is_empty());
}

#[test]
fn new_connections_are_nftables_before_the_weights_are_nothing() {
    let before = Rig::web();
    let mut rig = Rig::after(&before, Mode::Nftables, 2000);
    rig.busy.lock().unwrap().extend([real(Protocol::Tcp, 2), real(Protocol::Tcp, 3)]);
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2, 3]);
    rig.complete();
    let steps = rig.work();
    let order = positions(
        &steps,
        ["nft ~ element ip ipvs-proxy @services", "nft + element ip ipvs-proxy @draining", "ipvs ~ tcp"],
    );
    assert!(order.is_sorted(), "{steps:?}");
    // Back in the middle: everything serves as before.
    let mut rig = Rig::after(&rig, Mode::Ipvs, 2100).restarted(&[2, 3]);
    assert_eq!(endpoints_in_service(&rig).len(), 2);
    assert_eq!(since::drains(&rig.nft.contents().rows).len(), 0);
    assert!(!rig.nft.contents().rows.keys().any(|key| key.to_string().contains("@endpoints")));
    assert!(rig.later(1000).is_empty());
}

#[test]
fn a_service_that_goes_while_its_virtual_server_retires_takes_it_along() {
    let before = Rig::web();
    let rig = Rig::after(&before, Mode::Nftables, 2000);
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 2));
    let mut rig = rig.restarted(&[2, 3]);
    assert!(!rig.servers.contents().rows.is_empty());
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    rig.work();
    assert!(rig.servers.contents().rows.is_empty() && rig.addresses.contents().rows.is_empty());
}

#[test]
fn on_the_way_to_ipvs_nftables_chooses_until_server_and_address_stand() {
    let before = Rig::web();
    let mut nftables = Rig::after(&before, Mode::Nftables, 2000).restarted(&[2, 3]);
    nftables.later(20);
    assert!(nftables.servers.contents().rows.is_empty(), "nothing was connected");
    let mut rig = Rig::after(&nftables, Mode::Ipvs, 3000);
    rig.addresses.contents().errors.push_back(Some(16));
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2, 3]);
    rig.complete();
    let mut steps = rig.work();
    let chosen =
        |rig: &Rig| rig.nft.contents().rows.keys().filter(|key| key.to_string().contains("@endpoints")).count();
    assert_eq!(chosen(&rig), 1, "the address is not local yet: {steps:?}");
    steps.extend(rig.later(60));
    let order = positions(
        &steps,
        [
            "nft + element ip ipvs-proxy @record { 192.168.0.10",
            "ipvs + tcp 192.168.0.10:80",
            "address + 192.168.0.10",
            "nft ~ element ip ipvs-proxy @services",
            "nft - list ip ipvs-proxy @endpoints",
        ],
    );
    assert!(order.is_sorted(), "{steps:#?}");
    assert_eq!(chosen(&rig), 0);
    assert_eq!(endpoints_in_service(&rig).len(), 2);
    assert!(rig.later(60).is_empty());
}
