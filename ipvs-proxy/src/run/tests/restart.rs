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
