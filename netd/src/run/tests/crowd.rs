//! A hundred thousand leases, from the store's events to the tables.
//!
//! What each step took is printed, for docs/benchmarks.md: `cargo test --release -p netd --lib leases_of_any -- --nocapture`.

use reconcile::{Audited, Gate};

use super::*;
use crate::format::lease::read_lease;
use crate::plan::{Masquerade, Planner};
use crate::run::planning::Planning;
use crate::run::tables::Stages;
use crate::source::view::{Change, View};

const LEASES: u32 = 100_000;
/// A change, or a burst of them.
const CHANGED: u32 = 1_000;

fn put(n: u32, holder: u32, revision: i64) -> LeaseEvent {
    let [_, a, b, c] = n.to_be_bytes();
    let [_, d, e, f] = holder.to_be_bytes();
    let subnet = std::net::Ipv4Addr::from(0x0a00_0000 + (n << 6));
    let value = format!(
        r#"{{"PublicIP":"172.{d}.{e}.{f}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:{a:02x}:{b:02x}:{c:02x}"}}}}"#
    );
    let lease = read_lease(&format!("{subnet}-26"), value.as_bytes()).unwrap();
    LeaseEvent::Put(Arc::new(StoredLease { lease, created: revision, revision, token: Some(1) }))
}

/// What a change of the view makes of the tables.
fn plan(planner: &mut Planner, view: &View, change: Change) -> crate::plan::Changes {
    planner.update(change.leases.into_iter().map(|key| (key, view.get(&key).cloned())))
}

/// The network of so many leases, and a node in it.
fn planner() -> Planner {
    let text = r#"{"Network":"10.0.0.0/8","SubnetLen":26,"Backend":{"Type":"vxlan"}}"#;
    let network = NetConf::parse(text).unwrap().network;
    let own = Place {
        subnet: "10.255.255.0/26".parse().unwrap(),
        public_ip: "192.0.2.21".parse().unwrap(),
        address: "192.0.2.21".parse().unwrap(),
        node_network: "192.0.2.0/24".parse().unwrap(),
        mac: "02:00:00:ff:ff:ff".parse().unwrap(),
    };
    let local = LocalNode::plain(PerFamily::new(Some(own), None), IfName::literal("eth0"));
    let masquerade = Masquerade::MASQ;
    Planner::new(network, masquerade, local)
}

/// A view that has listed `leases` leases, and their keys.
fn listed(leases: u32) -> (View, BTreeSet<SubnetKey>) {
    let (mut view, mut keys) = (View::new(BTreeSet::new()), BTreeSet::new());
    for event in [LeaseEvent::Reset].into_iter().chain((0..leases).map(|n| put(n, n, 1))).chain([LeaseEvent::Complete])
    {
        keys.extend(view.apply(event, Duration::ZERO).leases);
    }
    (view, keys)
}

/// Resident memory of this process, in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn leases_of_any_number_are_made_once_and_one_change_is_one_step() {
    println!("leases | view | plan | first pass | again, listed | one change, plan and pass | MiB");
    for leases in [10_000, 100_000] {
        let (before, begun) = (resident(), std::time::Instant::now());
        let (mut view, keys) = listed(leases);
        let viewed = begun.elapsed();
        let mut planner = planner();
        let all = planner.update_all(keys.into_iter().map(|key| (key, view.get(&key).cloned())));
        let planned = begun.elapsed();
        let fakes = Fakes::default();
        let (mut stages, gate) = (Stages::on(fakes.targets()), Gate::new([]));
        stages.want(all);
        stages.pass(&gate, Duration::ZERO);
        let made = begun.elapsed();
        assert_eq!(fakes.routes.contents().rows.len(), usize::try_from(leases).unwrap());
        stages.invalidate_all();
        assert!(stages.pass(&gate, Duration::ZERO).is_idle());
        let compared = begun.elapsed();
        let moved = view.apply(put(500, leases + 1, 2), Duration::ZERO);
        stages.want(plan(&mut planner, &view, moved));
        assert_eq!(stages.pass(&gate, Duration::ZERO).upserted, 1);
        let changed = begun.elapsed();
        println!(
            "{leases} | {viewed:.1?} | {:.1?} | {:.1?} | {:.1?} | {:.1?} | {}, the fake kernel's own rows among them",
            planned - viewed,
            made - planned,
            compared - made,
            changed - compared,
            resident() - before
        );
    }
}

#[test]
fn of_a_hundred_thousand_leases_one_that_changes_costs_one_step_and_no_listing() {
    let (mut view, keys) = listed(LEASES);
    let mut planner = planner();
    let all = planner.update_all(keys.into_iter().map(|key| (key, view.get(&key).cloned())));
    let fakes = Fakes::default();
    let mut stages = Stages::on(fakes.targets());
    let gate = Gate::new([]);
    stages.want(all);
    stages.pass(&gate, Duration::ZERO);
    assert_eq!(planner.refused().len(), 0);
    let rows = usize::try_from(LEASES).unwrap();
    assert_eq!(fakes.routes.contents().rows.len(), rows);
    assert_eq!(fakes.fdb.contents().rows.len(), rows);

    let moved = view.apply(put(500, LEASES + 1, 2), Duration::ZERO);
    stages.want(plan(&mut planner, &view, moved));
    let pass = stages.pass(&gate, Duration::ZERO);
    assert_eq!((pass.upserted, pass.removed, pass.observed), (1, 0, 0));

    for n in 0..CHANGED {
        let LeaseEvent::Put(stored) = put(n, n, 3) else { continue };
        let change = view.apply(LeaseEvent::Delete(stored.lease.key, 3), Duration::ZERO);
        stages.want(plan(&mut planner, &view, change));
    }
    let pass = stages.pass(&gate, Duration::ZERO);
    assert_eq!((pass.removed, pass.observed), (3 * usize::try_from(CHANGED).unwrap(), 0));
}

#[test]
fn plan_of_all_leases_is_given_in_parts_of_which_only_the_last_lets_removals_run() {
    let (view, keys) = listed(3_000);
    let whole = planner().update_all(keys.iter().map(|key| (*key, view.get(key).cloned())));
    let mut planning = Planning::new(planner());
    planning.note_all(keys);
    let mut parts = Vec::new();
    assert!(planning.plan(&view, |planned| parts.push(planned)));
    assert_eq!(parts.iter().map(|part| part.complete).collect::<Vec<_>>(), [false, false, true]);
    let [first, second, last] = [0, 1, 2].map(|part: usize| parts[part].revision);
    assert_eq!([first, second, last].map(|revision| planning.is_whole(revision)), [false, false, true]);
    assert!(planning.is_latest(last));
    assert!(parts.iter().all(|part| part.changes.routes.len() <= 1_024));
    let given = parts.into_iter().reduce(|mut first, later| {
        first.extend(later);
        first
    });
    assert_eq!(given.unwrap().changes, whole);
    planning.note_other();
    assert!(!planning.plan(&view, |_| panic!("the worker knows it")));
}

/// The tables with every row of `leases` leases in place.
fn in_place(leases: u32) -> (View, Planner, Fakes, Stages) {
    let (view, keys) = listed(leases);
    let (mut planner, fakes) = (planner(), Fakes::default());
    let mut stages = Stages::on(fakes.targets());
    stages.want(planner.update_all(keys.into_iter().map(|key| (key, view.get(&key).cloned()))));
    stages.pass(&Gate::new([]), Duration::ZERO);
    (view, planner, fakes, stages)
}

#[test]
fn lease_that_changes_during_an_audit_is_in_the_kernel_before_the_audit_ends() {
    let (mut view, mut planner, fakes, mut stages) = in_place(10_000);
    let (gate, minute) = (Gate::new([]), Duration::from_secs(60));
    let listed = |fakes: &Fakes| fakes.fdb.contents().observed + fakes.routes.contents().observed;
    let before = listed(&fakes);
    stages.begin_audit();
    let (mut steps, mut changed) = (0, Vec::new());
    while let Some(audited) = stages.audit() {
        if audited == Audited::Due {
            assert!(stages.pass(&gate, minute).is_idle());
        }
        steps += 1;
        // At every tenth step, whichever table is being read: the node of a lease moves.
        if audited == Audited::More && steps % 10 == 0 {
            let n = steps * 50;
            let moved = view.apply(put(n, 10_000 + n, 2), Duration::ZERO);
            stages.want(plan(&mut planner, &view, moved));
            let pass = stages.pass(&gate, minute);
            assert_eq!((pass.upserted, pass.repaired, pass.observed), (1, 0, 0));
            changed.push(n);
        }
    }
    // Three tables of ten thousand rows in parts of 256.
    assert!(changed.len() >= 11, "{changed:?}");
    assert_eq!(listed(&fakes), before, "nothing differed, so nothing was listed whole");
}

#[test]
fn audit_finds_what_nobody_announced_in_every_table() {
    let (_, _, fakes, mut stages) = in_place(1_000);
    fakes.links.contents().rows.clear();
    fakes.checksums.contents().rows.clear();
    fakes.sysctls.contents().rows.clear();
    fakes.addresses.contents().rows.clear();
    fakes.nft.contents().rows.clear();
    fakes.neighbours.contents().rows.pop_last();
    fakes.fdb.contents().rows.pop_last();
    fakes.routes.contents().rows.pop_last();
    let before = stages.counts();
    stages.begin_audit();
    while stages.audit().is_some() {
        stages.pass(&Gate::new([]), Duration::from_secs(60));
    }
    for (name, counts) in stages.counts() {
        let is_used = counts.desired > 0;
        assert_eq!((counts.done, counts.repaired > before[name].repaired), (counts.desired, is_used), "{name}");
    }
    assert_eq!((fakes.fdb.contents().rows.len(), fakes.routes.contents().rows.len()), (1_000, 1_000));
}
