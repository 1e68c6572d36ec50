//! Whole networks that routes make local, in place of an address for each Service.

use super::*;
use crate::dataplane::local;

/// The Service network.
const SERVICES: &str = "192.168.0.0/16";

impl Rig {
    /// A new start in this mode, on what the kernel has, with these networks local by routes.
    fn local_in(&self, mode: Mode, networks: &[&str]) -> Self {
        let kept = (self.nft.clone(), self.servers.clone(), self.addresses.clone());
        let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
        let rig = Self::routed(mode, 2000, kept, (self.local.clone(), networks));
        rig.busy.lock().unwrap().extend(self.busy.lock().unwrap().iter().copied());
        rig
    }

    /// The same, and the steps of its first work, with the Service `web`.
    fn started(self) -> (Self, Vec<String>) {
        let mut rig = self;
        rig.receive(Event::Reset);
        rig.service("web", 10, "TCP");
        rig.endpoints("web", "TCP", &[2, 3]);
        rig.complete();
        let steps = rig.work();
        (rig, steps)
    }

    /// How many routes of networks and virtual addresses the kernel has.
    fn held(&self) -> (usize, usize) {
        (self.local.contents().rows.len(), self.addresses.contents().rows.len())
    }
}

#[test]
fn a_network_turns_local_behind_its_virtual_servers_and_a_service_more_costs_no_address() {
    let (mut rig, steps) = Rig::new().local_in(Mode::Ipvs, &[SERVICES]).started();
    let order = positions(&steps, ["nft + table ip", "ipvs + tcp 192.168.0.10:80", "route + route 192.168.0.0/16"]);
    assert!(order.is_sorted(), "{steps:?}");
    assert_eq!(rig.held(), (1, 0));
    rig.service("api", 11, "TCP");
    rig.endpoints("api", "TCP", &[2]);
    rig.work();
    assert_eq!(rig.held(), (1, 0));
    let steps = rig.later(60);
    assert!(steps.is_empty(), "{steps:?}");
}

#[test]
fn an_address_outside_the_networks_is_had_by_itself() {
    let (mut rig, _) = Rig::new().local_in(Mode::Ipvs, &["192.168.0.8/30", "fd09::/108"]).started();
    rig.service("api", 12, "TCP");
    rig.endpoints("api", "TCP", &[2]);
    rig.work();
    let addresses: Vec<_> = rig.addresses.contents().rows.keys().map(|key| key.addr.to_string()).collect();
    assert_eq!(addresses, ["192.168.0.12"]);
    let routes: Vec<_> = rig.local.contents().rows.keys().map(|key| key.dst.to_string()).collect();
    assert_eq!(routes, ["192.168.0.8/30"], "no Pod network of IPv6 is known, so that no Service of it is served");
}

#[test]
fn a_route_takes_the_place_of_addresses_and_they_its_without_a_moment_between() {
    let (rig, steps) = Rig::web().local_in(Mode::Ipvs, &[SERVICES]).started();
    let order = positions(&steps, ["route + route 192.168.0.0/16", "address - 192.168.0.10"]);
    assert!(order.is_sorted(), "{steps:?}");
    assert_eq!(rig.held(), (1, 0));
    let (rig, steps) = rig.local_in(Mode::Ipvs, &[]).started();
    let order = positions(&steps, ["address + 192.168.0.10", "route - route 192.168.0.0/16"]);
    assert!(order.is_sorted(), "{steps:?}");
    assert_eq!(rig.held(), (0, 1));
}

#[test]
fn another_network_stands_before_the_one_of_before_goes() {
    let (rig, _) = Rig::new().local_in(Mode::Ipvs, &[SERVICES]).started();
    let (rig, steps) = rig.local_in(Mode::Ipvs, &["192.168.0.0/24"]).started();
    let order = positions(&steps, ["route + route 192.168.0.0/24", "route - route 192.168.0.0/16"]);
    assert!(order.is_sorted(), "{steps:?}");
    assert_eq!(rig.held(), (1, 0));
}

#[test]
fn addresses_stay_while_the_kernel_refuses_the_route_in_their_place() {
    let before = Rig::web();
    let key = local_key(SERVICES);
    before.local.refuse(key, 22);
    let (mut rig, _) = before.local_in(Mode::Ipvs, &[SERVICES]).started();
    assert_eq!(rig.held(), (0, 1));
    let status = ProxyStatus::of(&rig.proxy, rig.proxy.node(), &[], rig.now);
    assert!(!status.ok, "{status:?}");
    rig.local.allow(&key);
    rig.later(600);
    assert_eq!(rig.held(), (1, 0));
}

#[test]
fn a_route_stays_while_the_kernel_refuses_an_address_in_its_place() {
    let (before, _) = Rig::new().local_in(Mode::Ipvs, &[SERVICES]).started();
    let key = vip::address(&IfName::new(vip::LINK_NAME).unwrap(), [192, 168, 0, 10].into());
    before.addresses.refuse(key.clone(), 22);
    let (mut rig, _) = before.local_in(Mode::Ipvs, &[]).started();
    assert_eq!(rig.held(), (1, 0));
    rig.addresses.allow(&key);
    rig.later(600);
    assert_eq!(rig.held(), (0, 1));
}

#[test]
fn a_route_stays_for_what_drains_when_nftables_takes_over_and_goes_then() {
    let (before, _) = Rig::new().local_in(Mode::Ipvs, &[SERVICES]).started();
    before.busy.lock().unwrap().insert(real(Protocol::Tcp, 2));
    let (mut rig, _) = before.local_in(Mode::Nftables, &[SERVICES]).started();
    rig.later(30);
    assert_eq!(rig.held().0, 1, "an open connection needs it");
    let status = ProxyStatus::of(&rig.proxy, rig.proxy.node(), &[], rig.now);
    assert!(status.ok, "what drains is in order: {status:?}");
    rig.busy.lock().unwrap().clear();
    rig.later(30);
    rig.later(30);
    assert!(rig.servers.contents().rows.is_empty());
    assert_eq!(rig.held(), (0, 0));
}

#[test]
fn what_nftables_has_chosen_is_held_until_the_route_stands() {
    let (before, _) = Rig::in_mode(Mode::Nftables, 1000, Kept::default()).started();
    let (rig, steps) = before.local_in(Mode::Ipvs, &[SERVICES]).started();
    let order = positions(
        &steps,
        ["ipvs + tcp 192.168.0.10:80", "route + route 192.168.0.0/16", "nft ~ element ip ipvs-proxy @services"],
    );
    assert!(order.is_sorted(), "{steps:?}");
    assert_eq!(rig.held(), (1, 0));
}

#[test]
fn a_route_that_somebody_deletes_is_back_with_the_notification() {
    let (mut rig, _) = Rig::new().local_in(Mode::Ipvs, &[SERVICES]).started();
    rig.local.contents().rows.clear();
    rig.proxy.touched(Touched::Routes);
    rig.work();
    assert_eq!(rig.held(), (1, 0));
}

#[test]
fn a_start_over_a_correct_kernel_writes_nothing() {
    let (rig, _) = Rig::new().local_in(Mode::Ipvs, &[SERVICES]).started();
    let (_, mut steps) = rig.local_in(Mode::Ipvs, &[SERVICES]).started();
    // A rig has a new link each time.
    steps.retain(|step| !step.starts_with("link "));
    assert!(steps.is_empty(), "{steps:?}");
}

/// The key of a network's route.
fn local_key(network: &str) -> RouteKey {
    let rig = Rig::new().local_in(Mode::Ipvs, &[network]);
    *rig.proxy.plane().local_routes().first_key_value().unwrap().0
}

#[test]
fn routes_of_ours_are_known_by_table_kind_and_number() {
    let rig = Rig::new().local_in(Mode::Ipvs, &[SERVICES]);
    let (key, route) = rig.proxy.plane().local_routes().pop_first().unwrap();
    assert!(local::is_ours(&key, &route));
    assert!(!local::is_ours(&key, &Route { protocol: 2, ..route.clone() }));
    assert!(!local::is_ours(&RouteKey { table: 254, ..key }, &route));
    let of_address = RouteKey { dst: "192.168.0.10/32".parse().unwrap(), ..key };
    assert!(local::is_of_interest(&key, 3), "one that took the place of ours");
    assert!(!local::is_of_interest(&of_address, 2) && local::is_of_interest(&of_address, route.protocol));
}
