//! The view against listings and events, good and bad.

use cluster::Class;

use super::*;
use crate::format::lease::read_lease;

fn value(ip: &str) -> Vec<u8> {
    format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"host-gw"}}"#).into_bytes()
}

fn stored(n: u8, ip: &str, revision: i64) -> StoredLease {
    let lease = read_lease(&format!("172.7.{n}.0-24"), &value(ip)).unwrap();
    StoredLease { lease, created: revision, revision, token: Some(1) }
}

fn put(n: u8) -> LeaseEvent {
    LeaseEvent::Put(Arc::new(stored(n, &format!("10.4.7.{n}"), 1)))
}

fn key(n: u8) -> SubnetKey {
    format!("172.7.{n}.0-24").parse().unwrap()
}

fn delete(n: u8) -> LeaseEvent {
    LeaseEvent::Delete(key(n), 2)
}

fn invalid(key: &str, revision: i64) -> LeaseEvent {
    LeaseEvent::Invalid { key: key.to_owned(), reason: "no lease".to_owned(), revision }
}

fn listing(nodes: &[u8]) -> Vec<LeaseEvent> {
    let puts = nodes.iter().map(|n| put(*n));
    [LeaseEvent::Reset].into_iter().chain(puts).chain([LeaseEvent::Complete]).collect()
}

/// A view of node 21, which has routes to `leftovers` from an earlier run.
fn view_with(leftovers: &[u8], events: impl IntoIterator<Item = LeaseEvent>) -> View {
    let mut view = View::new(leftovers.iter().map(|n| key(*n).subnets().v4.unwrap()).collect());
    view.hold(stored(21, "10.4.7.21", 1).lease, Some(1), 1);
    for event in events {
        view.apply(event, Duration::ZERO);
    }
    view
}

fn view(events: impl IntoIterator<Item = LeaseEvent>) -> View {
    view_with(&[], events)
}

fn subnets(view: &View) -> Vec<String> {
    view.leases.keys().map(ToString::to_string).collect()
}

fn apply(view: &mut View, event: LeaseEvent) -> Change {
    view.apply(event, Duration::ZERO)
}

#[test]
fn leases_that_come_together_are_taken_in_as_one_by_one() {
    let leases =
        |nodes: &[u8]| nodes.iter().map(|n| Arc::new(stored(*n, &format!("10.4.7.{n}"), 5))).collect::<Vec<_>>();
    let (mut together, mut one_by_one) = (view(listing(&[21, 22, 23])), view(listing(&[21, 22, 23])));
    for view in [&mut together, &mut one_by_one] {
        apply(view, invalid("172.7.24.0-24", 2));
    }
    let some = leases(&[21, 22, 24, 25, 22]);
    let change = apply(&mut together, LeaseEvent::Puts(some.clone()));
    let mut sum = Change::default();
    for stored in some {
        let one = apply(&mut one_by_one, LeaseEvent::Put(stored));
        sum.leases.extend(one.leases);
        (sum.status, sum.own) = (sum.status | one.status, sum.own | one.own);
    }
    assert_eq!(change, sum);
    assert_eq!((change.leases.len(), change.status, change.own), (4, true, true));
    assert_eq!(subnets(&together), subnets(&one_by_one));
    assert_eq!(apply(&mut together, LeaseEvent::Puts(leases(&[22, 25]))), Change::default(), "nothing new");
}

#[test]
fn junk_key_is_kept_by_name_and_the_others_go_on() {
    let mut events = listing(&[21, 22]);
    events.insert(1, invalid("junk", 1));
    events.insert(2, invalid("172.7.23.0-24", 1));
    let mut view = view(events);
    assert_eq!(subnets(&view), ["172.7.21.0-24", "172.7.22.0-24"]);
    assert_eq!(view.invalid().map(|(key, _)| key).collect::<Vec<_>>(), ["172.7.23.0-24", "junk"]);
    assert!(view.is_complete());
    assert_eq!(apply(&mut view, put(23)).leases, [key(23)].into(), "it was repaired");
    assert_eq!(view.invalid().count(), 1);
    apply(&mut view, LeaseEvent::Removed("junk".to_owned()));
    assert_eq!(view.invalid().count(), 0);
}

#[test]
fn listing_without_most_of_the_leases_is_kept_until_confirmed() {
    for (before, shown, doubted) in [
        (&[21, 22, 23][..], &[21][..], true),
        (&[21, 22], &[21], true),
        (&[21, 22, 23, 24, 25], &[21, 22, 23], false),
        (&[21, 22, 23, 24, 25], &[21, 22], true),
        (&[21, 22, 23, 24], &[22], true),
        (&[21, 22, 23, 24], &[21, 22, 23], false),
    ] {
        let mut view = view(listing(before));
        let changes: usize = listing(shown).into_iter().map(|event| apply(&mut view, event).leases.len()).sum();
        assert_eq!(view.is_doubted(), doubted, "{shown:?} of {before:?}");
        assert_eq!(changes, if doubted { 0 } else { before.len() - shown.len() }, "{shown:?} of {before:?}");
        view.confirm(listing(shown));
        assert_eq!(view.count(), shown.len(), "{shown:?} of {before:?}");
        assert!(!view.is_doubted() && view.is_complete());
    }
}

#[test]
fn keys_that_are_no_leases_do_not_make_an_emptied_store_believed() {
    let mut view = view(listing(&[21, 22, 23]));
    for event in [LeaseEvent::Reset, invalid("junk", 9), invalid("172.7.30.0-24", 9), LeaseEvent::Complete] {
        assert_eq!(apply(&mut view, event).leases, BTreeSet::new());
    }
    assert!(view.is_doubted());
    assert_eq!(view.count(), 3);
}

#[test]
fn leases_that_nobody_knew_do_not_make_a_replaced_store_believed() {
    let mut view = view(listing(&[21, 22, 23]));
    let changes: BTreeSet<_> =
        listing(&[31, 32, 33, 34, 35, 36]).into_iter().flat_map(|event| apply(&mut view, event).leases).collect();
    assert_eq!(changes, (31..=36).map(key).collect(), "new ones are taken in, none goes");
    assert!(view.is_doubted());
    assert_eq!(view.count(), 9);
    view.confirm(listing(&[31, 32]));
    assert_eq!(subnets(&view), ["172.7.31.0-24", "172.7.32.0-24"]);
}

#[test]
fn values_that_turn_unreadable_are_losses_like_deletions() {
    let broken = |n: u8| invalid(&key(n).to_string(), 9);
    // One is believed, most in a burst are not.
    let mut live = view(listing(&[21, 22, 23, 24]));
    assert_eq!(apply(&mut live, broken(22)).leases, [key(22)].into());
    assert!(!live.is_doubted());
    assert_eq!(apply(&mut live, broken(23)).leases, [key(22), key(23)].into(), "both come back");
    assert!(apply(&mut live, broken(24)).leases.is_empty());
    assert_eq!((live.is_doubted(), live.count(), live.invalid().count()), (true, 4, 3));
    let second = [LeaseEvent::Reset, put(21), broken(22), put(23), put(24), LeaseEvent::Complete];
    live.confirm(second.into());
    assert_eq!(subnets(&live), ["172.7.21.0-24", "172.7.23.0-24", "172.7.24.0-24"]);
    // The same in a listing.
    let mut listed = view(listing(&[21, 22, 23, 24]));
    for event in [LeaseEvent::Reset, put(21), broken(22), broken(23), put(24), LeaseEvent::Complete] {
        assert_eq!(apply(&mut listed, event).leases, BTreeSet::new());
    }
    assert_eq!((listed.is_doubted(), listed.count()), (true, 4));
    let mut one = view(listing(&[21, 22, 23, 24]));
    let events = [LeaseEvent::Reset, put(21), broken(22), put(23), put(24), LeaseEvent::Complete];
    let gone: BTreeSet<_> = events.into_iter().flat_map(|event| apply(&mut one, event).leases).collect();
    assert_eq!((gone, one.is_doubted()), ([key(22)].into(), false), "one of three");
}

#[test]
fn leases_that_come_with_a_burst_do_not_make_it_believed() {
    let late = Duration::from_secs(100);
    for (seconds, doubted) in [(100, true), (10, false)] {
        let mut view = view(listing(&[21, 22, 23, 24]));
        for n in 31..40 {
            view.apply(put(n), Duration::from_secs(seconds));
        }
        view.apply(delete(22), late);
        view.apply(delete(23), late);
        assert_eq!(view.is_doubted(), doubted, "two of three, or of twelve that are long known");
    }
}

#[test]
fn own_key_counts_for_nothing_in_a_burst() {
    for own_too in [false, true] {
        let mut view = view(listing(&[21, 22, 23, 24]));
        if own_too {
            apply(&mut view, delete(21));
        }
        apply(&mut view, delete(22));
        assert!(!view.is_doubted(), "one of three");
        apply(&mut view, delete(23));
        assert!(view.is_doubted(), "two of three, as in a listing");
    }
}

#[test]
fn burst_of_deletions_is_doubted_as_a_listing_is() {
    let mut view = view(listing(&[21, 22, 23, 24, 25]));
    for n in [22, 23] {
        assert_eq!(apply(&mut view, delete(n)).leases, [key(n)].into());
    }
    assert!(!view.is_doubted(), "two of five");
    assert_eq!(apply(&mut view, delete(24)).leases, [key(22), key(23), key(24)].into(), "all of the burst come back");
    assert!(view.is_doubted());
    apply(&mut view, delete(21));
    assert_eq!(view.own_key(), OwnKey::Gone(Some(2)), "the own key is claimed again all the same");
    assert_eq!(view.count(), 5);
    apply(&mut view, put(22));
    view.confirm(listing(&[21, 22, 25]));
    assert_eq!(subnets(&view), ["172.7.21.0-24", "172.7.22.0-24", "172.7.25.0-24"]);
}

#[test]
fn deletions_far_apart_are_believed_one_by_one() {
    let mut view = view(listing(&[21, 22, 23]));
    for (n, seconds) in [(22, 0), (23, 60)] {
        assert_eq!(view.apply(delete(n), Duration::from_secs(seconds)).leases, [key(n)].into());
    }
    assert!(!view.is_doubted());
}

#[test]
fn second_listing_that_differs_corrects_the_first() {
    let mut view = view(listing(&[21, 22, 23]).into_iter().chain([LeaseEvent::Reset, LeaseEvent::Complete]));
    assert!(view.confirm(listing(&[21, 22, 23])).leases.is_empty());
    assert_eq!(view.count(), 3);
    assert!(!view.is_doubted());
    assert!(view.confirm(listing(&[])).leases.is_empty(), "there is nothing left to confirm");
}

#[test]
fn wiped_store_loses_nothing_that_comes_back_before_the_confirmation() {
    let mut view = view(listing(&[21, 22, 23]).into_iter().chain([LeaseEvent::Reset, LeaseEvent::Complete]));
    assert_eq!(view.own_key(), OwnKey::Gone(None), "this node must claim its subnet again");
    apply(&mut view, put(21));
    apply(&mut view, put(22));
    assert_eq!(view.own_key(), OwnKey::Held);
    assert_eq!(view.count(), 3);
    assert_eq!(view.confirm(listing(&[21, 22])).leases, [key(23)].into(), "23 has not come back");
    assert_eq!(view.own_key(), OwnKey::Held);
}

#[test]
fn first_listing_without_most_of_an_earlier_runs_routes_does_not_open_the_gate() {
    let mut view = view_with(&[22], listing(&[21]));
    assert!(view.is_doubted() && !view.is_complete());
    assert!(!view.is_listing());
    assert!(view.confirm(listing(&[21])).status);
    assert!(view.is_complete());
    let view = view_with(&[22, 23, 24, 25], listing(&[21, 22]));
    assert!(view.is_doubted() && !view.is_complete(), "three of four are missing");
    let view = view_with(&[22, 23, 24, 25], listing(&[21, 22, 23, 24]));
    assert!(!view.is_doubted() && view.is_complete(), "one of four is missing");
}

#[test]
fn first_listing_of_a_fresh_machine_is_believed() {
    let mut view = view(listing(&[21]));
    assert!(view.is_complete() && !view.is_doubted());
    apply(&mut view, put(22));
    apply(&mut view, LeaseEvent::Reset);
    apply(&mut view, LeaseEvent::Complete);
    assert!(view.is_doubted(), "now there is a node to lose");
}

#[test]
fn own_key_is_watched() {
    let mut view = view(listing(&[21, 22]));
    assert_eq!(view.own_key(), OwnKey::Held);
    apply(&mut view, delete(21));
    assert_eq!(view.own_key(), OwnKey::Gone(Some(2)));
    apply(&mut view, LeaseEvent::Put(Arc::new(stored(21, "10.4.7.99", 3))));
    assert_eq!(view.own_key(), OwnKey::Taken("leased to 10.4.7.99".to_owned(), 3));
    assert_eq!(view.contested(), None);
    let twin =
        br#"{"PublicIP":"10.4.7.21","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#;
    let lease = read_lease("172.7.21.0-24", twin).unwrap();
    apply(&mut view, LeaseEvent::Put(Arc::new(StoredLease { lease, created: 3, revision: 4, token: Some(1) })));
    assert_eq!(view.own_key(), OwnKey::Held);
    assert!(view.contested().is_some());
    apply(&mut view, invalid("172.7.21.0-24", 5));
    assert_eq!(view.own_key(), OwnKey::Taken("no lease".to_owned(), 5));
}

#[test]
fn own_key_deleted_again_right_after_the_claim_is_a_loss() {
    let mut view = view(listing(&[21, 22]));
    apply(&mut view, delete(21));
    view.hold(stored(21, "10.4.7.21", 9).lease, Some(1), 9);
    assert_eq!(view.own_key(), OwnKey::Unknown, "the deletion is older than the claim");
    apply(&mut view, LeaseEvent::Delete(key(21), 12));
    view.hold(stored(21, "10.4.7.21", 9).lease, Some(1), 11);
    assert_eq!(view.own_key(), OwnKey::Gone(Some(12)), "the deletion is newer than the claim");
}

#[test]
fn store_out_of_reach_forgets_nothing() {
    let mut view = view(listing(&[21, 22]).into_iter().chain([LeaseEvent::Reset, put(21)]));
    assert!(view.is_listing());
    assert_eq!(view.count(), 2);
    assert_eq!(view.own_key(), OwnKey::Held);
    apply(&mut view, LeaseEvent::Complete);
    assert!(view.is_doubted());
    let error = cluster_error();
    apply(&mut view, LeaseEvent::Lost(Box::new(error)));
    assert!(view.lost().is_some());
    apply(&mut view, LeaseEvent::Reset);
    assert!(view.lost().is_some(), "a listing that runs has not shown everything");
    apply(&mut view, LeaseEvent::Complete);
    assert_eq!(view.lost(), None);
}

#[test]
fn key_that_another_program_binds_to_its_own_end_is_noticed() {
    let mut view = view(listing(&[21, 22]));
    let bound = |token, revision| LeaseEvent::Put(Arc::new(StoredLease { token, ..stored(21, "10.4.7.21", revision) }));
    assert_eq!(view.own_key(), OwnKey::Held);
    assert_eq!(view.rebound(), None);
    assert!(apply(&mut view, bound(Some(7), 5)).own);
    assert_eq!(view.own_key(), OwnKey::Rebound(Some(7), 5));
    // The node keeps the lease that is there, and goes on saying so.
    view.hold(stored(21, "10.4.7.21", 5).lease, Some(7), 5);
    assert_eq!((view.own_key(), view.rebound()), (OwnKey::Held, Some(Some(7))));
    view.hold(stored(21, "10.4.7.21", 6).lease, Some(7), 6);
    assert_eq!(view.rebound(), Some(Some(7)));
    apply(&mut view, bound(None, 8));
    assert_eq!(view.own_key(), OwnKey::Rebound(None, 8));
    view.hold(stored(21, "10.4.7.21", 9).lease, Some(9), 9);
    assert_eq!(view.rebound(), None, "this node made a lease of its own again");
}

#[test]
fn what_a_store_that_went_back_lacks_stays_until_confirmed() {
    let origin = |revision| LeaseEvent::Origin(Origin { store: 1, member: 1, term: 3, revision });
    let mut view = view([LeaseEvent::Reset, origin(50)]);
    for event in listing(&[21, 22, 23, 24, 25, 26]).into_iter().skip(1) {
        apply(&mut view, event);
    }
    apply(&mut view, LeaseEvent::Reset);
    assert_eq!(view.broken(), None);
    apply(&mut view, origin(40));
    assert_eq!(view.broken(), Some(Break::Revision { before: 50, now: 40 }));
    for event in listing(&[21, 22, 23, 24, 25]).into_iter().skip(1) {
        apply(&mut view, event);
    }
    assert!(view.is_doubted() && view.get(&key(26)).is_some(), "one of five is not most");
    view.confirm(listing(&[21, 22, 23, 24, 25]));
    assert!(view.get(&key(26)).is_none());
}

#[test]
fn a_store_that_went_back_behind_a_change_is_known() {
    let origin = |revision| LeaseEvent::Origin(Origin { store: 1, member: 1, term: 3, revision });
    let mut view = view([LeaseEvent::Reset, origin(40)]);
    for event in listing(&[21, 22, 23, 24, 25]).into_iter().skip(1) {
        apply(&mut view, event);
    }
    apply(&mut view, LeaseEvent::Put(Arc::new(stored(26, "10.4.7.26", 60))));
    // From a backup that is later than the listing, and older than the change.
    for event in [LeaseEvent::Reset, origin(50)].into_iter().chain(listing(&[21, 22, 23, 24, 25]).split_off(1)) {
        apply(&mut view, event);
    }
    assert_eq!(view.broken(), Some(Break::Revision { before: 60, now: 50 }));
    assert!(view.is_doubted() && view.get(&key(26)).is_some());
}

/// The listing of a store that went back breaks off (its member ends, a revision is compacted) and is begun anew.
#[test]
fn listing_that_breaks_off_takes_no_doubt_away() {
    let origin = |revision| LeaseEvent::Origin(Origin { store: 1, member: 1, term: 3, revision });
    let mut back = view(listing(&[21, 22, 23, 24, 25, 26]));
    for event in [LeaseEvent::Reset, origin(50)].into_iter().chain(listing(&[21, 22, 23, 24, 25, 26]).split_off(1)) {
        apply(&mut back, event);
    }
    let broken_off = [LeaseEvent::Reset, origin(40), put(21), LeaseEvent::Reset, origin(41)];
    for event in broken_off.into_iter().chain(listing(&[21, 22, 23, 24, 25]).split_off(1)) {
        apply(&mut back, event);
    }
    assert_eq!(back.broken(), Some(Break::Revision { before: 50, now: 41 }));
    assert!(back.is_doubted() && back.get(&key(26)).is_some());

    let mut replaced = view(listing(&[21, 22, 23]));
    let others = [31, 32, 33, 34, 35, 36];
    let broken_off = [LeaseEvent::Reset].into_iter().chain(others.map(put));
    for event in broken_off.chain(listing(&others)) {
        apply(&mut replaced, event);
    }
    assert!(
        replaced.is_doubted() && replaced.count() == 9,
        "what nobody knew before counts as little as in one listing"
    );
}

fn cluster_error() -> cluster::ClusterError {
    let config = cluster::etcd::Config {
        endpoints: "http://127.0.0.1:1".to_owned(),
        limits: cluster::etcd::Limits { operation: Duration::from_millis(50), ..Default::default() },
        ..Default::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(async {
        let client = cluster::etcd::Client::new(&config, 0).unwrap();
        cluster::etcd::Store::new(client).get("key").await.unwrap_err()
    });
    assert_eq!(error.class, Class::Retry);
    error
}

#[test]
fn own_lease_that_somebody_else_writes_as_it_was_is_a_question_where_only_an_address_tells_nodes_apart() {
    let lease = |kind: &str| {
        let value = String::from_utf8(value("10.4.7.21")).unwrap().replace("host-gw", kind);
        read_lease("172.7.21.0-24", value.as_bytes()).unwrap()
    };
    let asked = |kind: &str, token: Option<i64>, revision: i64| {
        let mut view = View::new(BTreeSet::new());
        view.hold(lease(kind), Some(1), 5);
        apply(&mut view, LeaseEvent::Put(Arc::new(StoredLease { lease: lease(kind), created: 1, revision, token })));
        view
    };
    let mut view = asked("ipip", Some(1), 6);
    assert_eq!((view.asked(), view.contested()), (Some(6), None));
    assert_eq!(asked("ipip", Some(1), 5).asked(), None, "this node's own");
    assert_eq!(asked("ipip", Some(2), 6).asked(), None, "bound to another end, which is a loss");
    assert_eq!(asked("host-gw", Some(1), 6).asked(), None, "the address of an interface");
    // It is answered by writing it once more.
    view.hold(lease("ipip"), Some(1), 7);
    assert_eq!(view.asked(), None);
    // What this node itself is about to write is no question.
    let mut view = asked("ipip", Some(1), 6);
    view.await_own(lease("host-gw").attrs);
    assert_eq!(view.asked(), None);
}
