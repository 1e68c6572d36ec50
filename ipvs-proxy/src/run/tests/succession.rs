//! Another configuration while the proxy runs: where it ends, what it keeps, and what it costs.

use std::sync::PoisonError;

use super::*;

impl Rig {
    /// Goes on in this mode, on the same tables, with what the proxy knows.
    fn succeeded(self, mode: Mode) -> Self {
        let mut after = Self::after(&self, mode, 1000);
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner).clone();
        after.busy.lock().unwrap_or_else(PoisonError::into_inner).extend(busy);
        after.now = self.now;
        after.proxy.succeed(self.proxy);
        after
    }

    /// What the first work in the new configuration writes, but for the link: a rig has a new one each time.
    fn written(&mut self) -> Vec<String> {
        let mut steps = self.work();
        steps.retain(|step| !step.starts_with("link "));
        steps
    }

    /// Everything that the kernel holds, by table.
    pub(super) fn kernel(&self) -> [String; 3] {
        let rows = |rows: &[String]| rows.join("\n");
        [
            rows(&self.nft.contents().rows.iter().map(|(key, row)| format!("{key} {}", row.value)).collect::<Vec<_>>()),
            rows(
                &self
                    .servers
                    .contents()
                    .rows
                    .iter()
                    .map(|(key, row)| format!("{key} {}", row.value))
                    .collect::<Vec<_>>(),
            ),
            rows(&self.addresses.contents().rows.keys().map(ToString::to_string).collect::<Vec<_>>()),
        ]
    }
}

/// The rows of one mode, with a draining endpoint, that `web` has come to.
fn web_in(mode: Mode) -> Rig {
    let mut rig = Rig::in_mode(mode, 1000, Kept::default()).restarted(&[2, 3]);
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 3));
    rig.later(20);
    rig
}

#[test]
fn a_mode_that_changes_in_place_ends_where_a_new_start_in_it_ends() {
    for (before, after) in [(Mode::Ipvs, Mode::Nftables), (Mode::Nftables, Mode::Ipvs)] {
        let before = || web_in(before);
        let started = Rig { now: before().now, ..Rig::after(&before(), after, 1000) };
        let (mut started, mut succeeded) = (started.restarted(&[2, 3]), before().succeeded(after));
        assert!(!succeeded.work().is_empty(), "{after:?}");
        for rig in [&mut started, &mut succeeded] {
            rig.later(1000);
            rig.later(1000);
        }
        assert_eq!(succeeded.kernel(), started.kernel(), "{after:?}");
        assert!(succeeded.later(60).is_empty());
    }
}

#[test]
fn what_takes_new_connections_comes_before_what_took_them_goes_in_either_direction() {
    let mut rig = web_in(Mode::Ipvs).succeeded(Mode::Nftables);
    let steps = rig.work();
    let order = positions(
        &steps,
        ["nft ~ element ip ipvs-proxy @services", "nft + element ip ipvs-proxy @draining", "ipvs ~ tcp"],
    );
    assert!(order.is_sorted(), "{steps:?}");
    let steps = web_in(Mode::Nftables).succeeded(Mode::Ipvs).work();
    let order = positions(
        &steps,
        ["ipvs + tcp 192.168.0.10:80", "address + 192.168.0.10", "nft ~ element ip ipvs-proxy @services"],
    );
    assert!(order.is_sorted(), "{steps:?}");
}

#[test]
fn a_configuration_that_asks_for_the_same_rows_writes_nothing() {
    for mode in [Mode::Ipvs, Mode::Nftables] {
        let mut rig = web_in(mode).succeeded(mode);
        assert_eq!(rig.written(), Vec::<String>::new(), "{mode:?}");
        assert!(rig.later(60).is_empty(), "{mode:?}");
    }
}

#[test]
fn what_had_been_received_and_not_planned_is_planned_in_the_new_mode() {
    let mut rig = web_in(Mode::Ipvs);
    rig.service("api", 11, "TCP");
    rig.endpoints("api", "TCP", &[4]);
    rig.receive(Event::Commit);
    rig.receive(Event::Delete { key: "services/default/web".to_owned(), revision: 2 });
    rig.receive(Event::Commit);
    let mut rig = rig.succeeded(Mode::Nftables);
    rig.work();
    rig.later(1000);
    let [nft, servers, _] = rig.kernel();
    assert!(nft.contains("192.168.0.11") && !nft.contains("192.168.0.10"), "{nft}");
    assert_eq!(servers, "");
}

#[test]
fn connections_over_a_predecessors_virtual_server_are_not_taken_for_orphans() {
    let rig = Rig::in_mode(Mode::Nftables, 1000, Kept::default());
    let carried = Tracked { translated: false, ..tracked("192.168.0.10:80".parse().unwrap(), ([172, 7, 22, 2], 80)) };
    rig.flows.0.lock().unwrap().held.push(carried);
    let mut rig = rig.restarted(&[2, 3]);
    rig.later(60);
    assert_eq!(rig.flows.0.lock().unwrap().held, [carried]);
}

#[test]
fn addresses_that_the_node_got_meanwhile_are_known() {
    let mut rig = web_in(Mode::Ipvs);
    rig.proxy.learn(|facts| {
        facts.own.all.insert([10, 4, 7, 99].into());
    });
    rig.work();
    let mut rig = rig.succeeded(Mode::Ipvs);
    assert_eq!(rig.written(), Vec::<String>::new());
    assert!(rig.kernel()[0].contains("node-port-addresses { 10.4.7.99 }"), "{}", rig.kernel()[0]);
}
