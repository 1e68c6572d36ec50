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
