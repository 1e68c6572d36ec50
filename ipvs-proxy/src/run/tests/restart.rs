//! A new start on what an earlier run has left.

use super::*;

#[test]
fn a_new_start_changes_nothing() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    rig.endpoints("web", "TCP", &[2, 3]);
    rig.service("web", 10, "TCP");
    rig.complete();
    assert_eq!(rig.work(), ["link + kube-ipvs0"], "the link's table is new in this rig");
}

#[test]
fn a_restart_is_in_order_with_the_pass_behind_its_listing() {
    let before = Rig::web();
    let mut rig = Rig::on(before.nft.clone(), before.servers.clone(), before.addresses.clone());
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2, 3]);
    rig.complete();
    rig.proxy.work(rig.now);
    for (name, counts) in rig.proxy.tables().stack().counts() {
        // Readiness waits for it, and the next pass may be half a second away.
        assert_eq!(counts.done, counts.desired, "{name}");
    }
    assert!(rig.log.lock().unwrap().iter().all(|line| line.starts_with("link +")), "{:?}", rig.log);
}

#[test]
fn a_start_with_many_services_ends_as_if_they_had_come_one_by_one() {
    // The first and the last of them by name want one address, and are planned far apart.
    let names =
        || (10..200).map(|last| (format!("s{last:03}"), last)).chain([("z".to_owned(), 10), ("a".to_owned(), 11)]);
    let publish = |rig: &mut Rig, (name, last): (String, u8)| {
        rig.service(&name, last, "TCP");
        rig.endpoints(&name, "TCP", if name.len() > 1 { &[2, 3] } else { &[4] });
    };
    let mut together = Rig::new();
    together.receive(Event::Reset);
    names().for_each(|service| publish(&mut together, service));
    together.complete();
    together.work();
    let mut apart = Rig::new();
    apart.receive(Event::Reset);
    apart.complete();
    apart.work();
    for service in names() {
        publish(&mut apart, service);
        apart.work();
    }
    // TCP endpoints that lost their address drain.
    apart.later(3600);
    together.later(3600);
    let rows = |rig: &Rig| (rig.servers.contents().rows.clone(), rig.addresses.contents().rows.clone());
    assert_eq!(rows(&together), rows(&apart));
    let desired = |rig: &Rig| {
        rig.proxy
            .tables()
            .stack()
            .counts()
            .into_iter()
            .map(|(name, counts)| (name, counts.desired, counts.done))
            .collect::<Vec<_>>()
    };
    assert_eq!(desired(&together), desired(&apart));
    assert_eq!(together.servers.contents().rows.len(), 190 + 189 * 2 + 1);
}
