//! Whose rows are whose: the record, adoption, what others have made and keep undoing.

use super::*;

#[test]
fn the_record_is_marked_whole_behind_the_pass_that_put_the_adopted_servers_in_order() {
    let marker = record::marker_key(IpFamily::V4);
    let mut rig = Rig::new();
    let left =
        ServerKey::Virtual(VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 99].into(), port: 80 });
    let value = Server::Virtual(Row::from(VirtualServer::new("rr".to_owned(), None)).server);
    rig.servers.contents().rows.insert(left, Observed { value, owner: Owner::Ours });
    rig.work();
    let has_marker = |rig: &Rig| rig.nft.contents().rows.contains_key(&record::marker_key(IpFamily::V4));
    assert!(!has_marker(&rig), "a first start that finds no source adopts nothing for good");
    rig.receive(Event::Reset);
    rig.service("api", 11, "TCP");
    rig.servers.contents().errors.extend([None, Some(16)]);
    rig.complete();
    rig.work();
    assert!(!has_marker(&rig), "the kernel refused to give up what was adopted");
    rig.later(1);
    assert_eq!(rig.servers.contents().rows.len(), 1, "only what is desired");
    let since = |rig: &Rig| rig.nft.contents().rows.get(&marker).map(|row| row.value.clone());
    let first = since(&rig);
    assert_eq!(first, Some(record::marker(IpFamily::V4, 1_790_000_001).1));
    let mut again = Rig::on(rig.nft.clone(), rig.servers.clone(), rig.addresses.clone());
    again.receive(Event::Reset);
    again.service("api", 11, "TCP");
    again.complete();
    again.later(100);
    assert_eq!(since(&again), first, "a marker that is there stays as it is");
}

#[test]
fn what_stands_on_our_link_is_adopted_while_the_record_is_not_whole_and_never_again() {
    let server = |last: u8| {
        ServerKey::Virtual(VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, last].into(), port: 80 })
    };
    let link = IfName::new(vip::LINK_NAME).unwrap();
    let leave = |rig: &Rig, last: u8, on_link: bool| {
        let value = Server::Virtual(Row::from(VirtualServer::new("rr".to_owned(), None)).server);
        rig.servers.contents().rows.insert(server(last), Observed { value, owner: Owner::Foreign });
        let address = AddressKey { link: link.clone(), addr: [192, 168, 0, last].into(), len: 32 };
        if on_link {
            rig.addresses.contents().rows.insert(address, Observed { value: Address, owner: Owner::Ours });
        }
    };
    let stands = |rig: &Rig, last: u8| rig.servers.contents().rows.contains_key(&server(last));
    let mut rig = Rig::new();
    leave(&rig, 77, true);
    leave(&rig, 78, false);
    // Without the record nothing of IPVS is listed, for it would be taken for somebody else's.
    rig.nft.contents().errors.push_back(Some(16));
    rig.receive(Event::Reset);
    rig.service("api", 11, "TCP");
    rig.complete();
    rig.work();
    assert!(stands(&rig, 77) && !stands(&rig, 11));
    rig.later(1);
    assert!(!stands(&rig, 77), "left by a predecessor");
    assert!(stands(&rig, 78) && stands(&rig, 11));
    leave(&rig, 79, true);
    let mut again = Rig::on(rig.nft.clone(), rig.servers.clone(), rig.addresses.clone());
    again.receive(Event::Reset);
    again.service("api", 11, "TCP");
    again.complete();
    again.work();
    assert!(stands(&again, 79), "the record is whole and does not name it");
    assert_eq!(
        (again.nft.contents().observed, again.servers.contents().observed),
        (3, 2),
        "each listed once by a start"
    );
}

#[test]
fn what_stands_in_an_excluded_network_stays_at_a_take_over_and_in_either_mode() {
    let server = |addr: [u8; 4]| VirtualServerKey { protocol: Protocol::Tcp, addr: addr.into(), port: 80 };
    let (excluded, other) = ([192, 168, 99, 5], [192, 168, 0, 77]);
    let mut rig = Rig::new();
    for addr in [excluded, other] {
        let (service, value) =
            (server(addr), Server::Virtual(Row::from(VirtualServer::new("rr".to_owned(), None)).server));
        rig.servers.contents().rows.insert(ServerKey::Virtual(service), Observed { value, owner: Owner::Foreign });
        let address = AddressKey { link: IfName::new(vip::LINK_NAME).unwrap(), addr: addr.into(), len: 32 };
        rig.addresses.contents().rows.insert(address, Observed { value: Address, owner: Owner::Ours });
    }
    let stands = |rig: &Rig, addr: [u8; 4]| {
        let at = rig.addresses.contents().rows.keys().any(|key| key.addr == IpAddr::from(addr));
        (rig.servers.contents().rows.contains_key(&ServerKey::Virtual(server(addr))), at)
    };
    rig = rig.restarted(&[2, 3]);
    rig.later(1);
    assert_eq!(stands(&rig, other), (false, false), "left by a predecessor");
    assert_eq!(stands(&rig, excluded), (true, true));
    let mut rig = Rig::after(&rig, Mode::Nftables, 2000).restarted(&[2, 3]);
    for _ in 0..4 {
        rig.later(901);
    }
    assert_eq!(stands(&rig, excluded), (true, true));
    assert_eq!(stands(&rig, [192, 168, 0, 10]), (false, false), "nftables serves it");
}

/// Puts a virtual server with these endpoints into the kernel as somebody else.
fn foreign(rig: &Rig, pods: &[u8]) {
    let mut contents = rig.servers.contents();
    let value = Server::Virtual(Row::from(VirtualServer::new("rr".to_owned(), None)).server);
    let service = real(Protocol::Tcp, 2).service;
    contents.rows.insert(ServerKey::Virtual(service), Observed { value, owner: Owner::Foreign });
    for last in pods {
        let value = Server::Real(RealServer::new(1));
        contents.rows.insert(ServerKey::Real(real(Protocol::Tcp, *last)), Observed { value, owner: Owner::Foreign });
    }
}

#[test]
fn a_virtual_server_of_somebody_else_at_a_desired_key_is_taken_over_whole() {
    let wanted = [real(Protocol::Tcp, 2), real(Protocol::Tcp, 3)];
    // There before the first listing.
    let mut rig = Rig::new();
    foreign(&rig, &[3, 9]);
    rig.receive(Event::Reset);
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2, 3]);
    rig.complete();
    rig.work();
    assert_eq!(endpoints_in_service(&rig), wanted, "the old endpoint takes no connection");
    rig.later(20);
    assert_eq!(rig.servers.contents().rows.len(), 3, "and is gone when it has none");
    // There while the proxy runs, before the Service is.
    let mut rig = Rig::new();
    foreign(&rig, &[3, 9]);
    rig.receive(Event::Reset);
    rig.complete();
    rig.work();
    assert_eq!(rig.servers.contents().rows.len(), 3, "nobody desires it");
    rig.service("web", 10, "TCP");
    rig.endpoints("web", "TCP", &[2, 3]);
    rig.work();
    assert_eq!(endpoints_in_service(&rig), wanted);
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    rig.later(20);
    assert!(rig.servers.contents().rows.is_empty(), "what was taken over goes as ours does");
}

#[test]
fn a_row_that_somebody_keeps_undoing_is_put_back_ever_more_slowly_and_named() {
    let mut rig = Rig::web();
    let mut undone = 0;
    for _ in 0..300 {
        rig.now += Duration::from_millis(200);
        undone += usize::from(!std::mem::take(&mut rig.addresses.contents().rows).is_empty());
        rig.proxy.touched(Touched::Links);
        rig.work();
    }
    assert!((4..15).contains(&undone), "put back {undone} times in a minute");
    let rows = rig.proxy.tables().stack().stage("address").unwrap().status();
    assert!(format!("{rows:?}").contains("somebody else has undone it"), "{rows:?}");
    // Left alone, it is back for good, and a single deletion later is mended at once.
    rig.later(60);
    rig.later(120);
    rig.addresses.contents().rows.clear();
    rig.proxy.touched(Touched::Links);
    assert_eq!(rig.work(), ["address + 192.168.0.10/32 dev kube-ipvs0"]);
}

#[test]
fn a_virtual_server_that_the_kernel_does_not_give_up_stays_in_the_record() {
    let mut rig = Rig::web();
    rig.service("api", 11, "TCP");
    rig.work();
    let recorded = |rig: &Rig| rig.nft.contents().rows.contains_key(&record::key(&real(Protocol::Tcp, 2).service));
    rig.servers.contents().errors.push_back(Some(16));
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    rig.work();
    assert!(recorded(&rig), "it is still ours");
    rig.later(1);
    assert!(!recorded(&rig) && rig.servers.contents().rows.len() == 1, "gone, and the record with it");
}
