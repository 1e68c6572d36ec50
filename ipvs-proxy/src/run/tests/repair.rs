//! What others change or delete comes back.

use super::*;

#[test]
fn what_others_change_is_found_by_notification_or_audit() {
    let mut rig = Rig::web();
    rig.addresses.contents().rows.clear();
    assert!(rig.work().is_empty());
    rig.proxy.touched(Touched::Links);
    assert_eq!(rig.work(), ["address + 192.168.0.10/32 dev kube-ipvs0"]);
    rig.servers.contents().rows.clear();
    assert_eq!(rig.later(1).len(), 3, "one virtual and two real servers");
}

#[test]
fn a_virtual_server_that_is_gone_when_its_endpoint_changes_is_made_again_at_once() {
    let mut rig = Rig::web();
    rig.servers.contents().rows.clear();
    rig.endpoints("web", "TCP", &[3, 4]);
    rig.work();
    assert_eq!(endpoints_in_service(&rig), [real(Protocol::Tcp, 3), real(Protocol::Tcp, 4)]);
    assert_eq!(rig.servers.contents().rows.len(), 3, "the endpoint that left is not made again");
}

#[test]
fn virtual_servers_are_listed_for_little_of_the_processor_and_every_half_minute_at_least() {
    let (millis, micros) = (Duration::from_millis, Duration::from_micros);
    let pauses = [0, 100, 1000, 5900, 60_000].map(|took| pause(micros(took)));
    assert_eq!(pauses, [0, 500, 5000, 29_500, 30_000].map(millis));
}

#[test]
fn tables_that_announce_changes_are_audited_for_little_of_the_processor_and_every_ten_minutes_at_least() {
    let pauses = [0, 12, 80, 120, 9_000].map(|took| audit_pause(Duration::from_millis(took)));
    assert_eq!(pauses, [60, 60, 400, 600, 600].map(Duration::from_secs));
}

#[test]
fn one_that_is_gone_is_back_within_a_second_also_while_endpoints_change_all_the_time() {
    let mut rig = Rig::web();
    rig.work();
    let server = ServerKey::Virtual(real(Protocol::Tcp, 2).service);
    for _ in 0..3 {
        rig.servers.contents().rows.clear();
        let next = rig.proxy.next();
        assert!(next > rig.now && next <= rig.now + Duration::from_millis(850), "next {next:?} after {:?}", rig.now);
        let gone = rig.now;
        while !rig.servers.contents().rows.contains_key(&server) {
            assert!(rig.now < gone + Duration::from_secs(1), "not back");
            rig.now += Duration::from_millis(10);
            rig.proxy.work_on_order(rig.now);
        }
        // Nobody fights about it any more.
        rig.now += Duration::from_secs(60);
        rig.work();
    }
}

#[test]
fn one_changed_server_is_repaired_in_place_and_nothing_is_listed_again() {
    let mut rig = Rig::new();
    rig.receive(Event::Reset);
    for last in 10..200 {
        let name = format!("s{last}");
        rig.service(&name, last, "TCP");
        rig.endpoints(&name, "TCP", &[2]);
    }
    rig.complete();
    rig.work();
    let listings = rig.servers.contents().observed;
    rig.servers.contents().rows.remove(&ServerKey::Real(real(Protocol::Tcp, 2)));
    assert_eq!(rig.later(1), ["ipvs + tcp 192.168.0.10:80 -> 172.7.22.2:80"]);
    rig.servers.contents().rows.clear();
    assert_eq!(rig.later(1).len(), 2 * 190, "all of them as soon as one");
    assert_eq!(rig.servers.contents().observed, listings);
}

#[test]
fn a_virtual_address_whose_local_route_is_gone_is_made_again_and_routes_of_others_have_nothing_listed() {
    let mut rig = Rig::web();
    rig.work();
    let web = vip::address(&IfName::new(vip::LINK_NAME).unwrap(), [192, 168, 0, 10].into());
    let asked = |rig: &Rig| rig.routes.lock().unwrap().1;
    let before = asked(&rig);
    rig.proxy.unrouted(&BTreeSet::from([[10, 4, 7, 21].into()]));
    assert_eq!((rig.work(), asked(&rig)), (Vec::new(), before), "an address of somebody else");
    rig.routes.lock().unwrap().0.insert(web.clone());
    rig.proxy.unrouted(&BTreeSet::from([web.addr]));
    assert_eq!(rig.work(), ["address + 192.168.0.10/32 dev kube-ipvs0"]);
    assert_eq!((rig.work(), asked(&rig)), (Vec::new(), before + 1));
    // Where nobody said so the next listing finds it, that of a new start too.
    for touched in [true, false] {
        rig.routes.lock().unwrap().0.insert(web.clone());
        if touched {
            rig.proxy.touched(Touched::Links);
        } else {
            let routes = std::mem::take(&mut *rig.routes.lock().unwrap());
            rig = Rig::after(&rig, Mode::Ipvs, 1000);
            *rig.routes.lock().unwrap() = routes;
            rig.receive(Event::Reset);
            rig.service("web", 10, "TCP");
            rig.endpoints("web", "TCP", &[2, 3]);
            rig.complete();
        }
        let done = rig.work();
        assert!(done.contains(&"address + 192.168.0.10/32 dev kube-ipvs0".to_owned()), "{touched}: {done:?}");
    }
}

#[test]
fn what_nobody_announced_is_found_by_the_audit() {
    use daemon::worker::{Cause, Work};

    let mut rig = Rig::web();
    rig.later(1);
    rig.log.lock().unwrap().clear();
    let (addresses, nft, log, now) = (rig.addresses.clone(), rig.nft.clone(), rig.log.clone(), rig.now);
    let shell = daemon::shell::Shell::new(&super::super::PROGRAM);
    let mut work = super::super::worker::ProxyWork::new(rig.proxy, super::super::checks::Checks::default(), shell);
    addresses.contents().rows.clear();
    nft.contents().rows.retain(|key, _| matches!(key, nft_rows::RowKey::Table(_)));
    work.pass(Cause::Timer, now);
    assert!(log.lock().unwrap().is_empty(), "nobody has said anything");
    work.invalidate_all();
    work.pass(Cause::Timer, now);
    let done = log.lock().unwrap().clone();
    assert!(done.contains(&"address + 192.168.0.10/32 dev kube-ipvs0".to_owned()), "{done:?}");
    assert!(done.iter().any(|line| line.starts_with("nft + element ip ipvs-proxy @services")), "{done:?}");
}

#[test]
fn an_audit_compares_local_routes_itself_and_the_pass_behind_it_lists_nothing() {
    let mut rig = Rig::web();
    rig.work();
    let web = vip::address(&IfName::new(vip::LINK_NAME).unwrap(), [192, 168, 0, 10].into());
    rig.routes.lock().unwrap().0.insert(web);
    let tables = rig.proxy.tables_mut();
    tables.begin_audit();
    while tables.audit_part().is_some() {}
    let asked = rig.routes.lock().unwrap().1;
    assert_eq!(rig.work(), ["address + 192.168.0.10/32 dev kube-ipvs0"]);
    assert_eq!(rig.routes.lock().unwrap().1, asked);
}
