//! `View`: what the store says about leases, folded from its events.
//!
//! Invariants: nothing is forgotten before the store has finished a listing; an entry that cannot be read is kept by
//! name with its reason and never touches the others; a listing that shows no other node at all is not believed until
//! it is confirmed, because a store that was wiped or restored looks the same as a cluster that shrank to one node.

use std::collections::BTreeMap;

use cluster::{Event, Snapshot};

use crate::format::lease::{Lease, LeaseAttrs, SubnetKey};

/// How this node's own key stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnKey {
    /// There, and it names this node.
    Held,
    /// The store has listed everything, and it is not there.
    Gone,
    /// It names somebody else, or cannot be read.
    Taken(String),
    /// Nothing is known yet.
    Unknown,
}

/// The leases as far as they are known.
#[derive(Debug, Default)]
pub struct View {
    snapshot: Snapshot<Vec<u8>>,
    leases: BTreeMap<String, Lease>,
    /// Keys that are no leases, with the reason.
    invalid: BTreeMap<String, String>,
    /// The own key, if this node holds a lease.
    own: Option<Lease>,
    /// The running listing has shown the own key.
    own_listed: bool,
    /// A finished listing without any other node, waiting to be confirmed.
    doubted: bool,
    /// The kernel holds nothing of an earlier run, so that a first listing cannot take anything away.
    nothing_to_lose: bool,
}

/// What an event changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Leases differ from before.
    pub leases: bool,
    /// The store's reachability or the readability of a key differs.
    pub status: bool,
    /// The own key was written or deleted.
    pub own: bool,
    /// A key turned out to be no lease.
    pub invalid: bool,
}

impl View {
    /// A view for a kernel that holds routes of an earlier run, or not: only then the first listing can be in doubt.
    #[must_use]
    pub fn new(has_leftovers: bool) -> Self {
        Self { nothing_to_lose: !has_leftovers, ..Self::default() }
    }

    /// Sets the lease that this node holds.
    pub fn hold(&mut self, own: Lease) {
        self.own = Some(own);
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: Event) -> Change {
        match &event {
            Event::Reset => {
                self.doubted = false;
                self.own_listed = false;
            }
            Event::Put { key, .. } if self.is_own(key) => self.own_listed = true,
            Event::Delete { key, .. } if self.is_own(key) => self.own_listed = false,
            Event::Complete if self.shows_nobody_else() => {
                self.doubted = true;
                return Change { status: true, own: true, ..Change::default() };
            }
            _ => {}
        }
        let status = !matches!(event, Event::Put { .. } | Event::Delete { .. });
        let own = event.key().is_some_and(|key| self.is_own(key));
        let changed = self.snapshot.apply(event);
        Change { status, own, ..self.read_all(&changed) }
    }

    /// The listing that is being completed has shown no node but this one.
    fn shows_nobody_else(&self) -> bool {
        let listed = self.snapshot.entries().len() - self.snapshot.pending_removals();
        let can_lose = self.snapshot.is_complete() || !self.nothing_to_lose;
        can_lose && self.snapshot.is_listing() && listed == usize::from(self.own_listed)
    }

    /// True while a listing without any other node waits for [`View::confirm`].
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// Takes a second, later look at the store as the truth, whatever it shows. Events of the source that are older
    /// than the look repeat what it has seen, so nothing is lost by taking them in afterwards.
    pub fn confirm(&mut self, second: impl IntoIterator<Item = (String, Vec<u8>)>) -> Change {
        if !self.doubted {
            return Change::default();
        }
        self.doubted = false;
        self.own_listed = false;
        let mut changed = self.snapshot.apply(Event::Reset);
        for (key, value) in second {
            self.own_listed |= self.is_own(&key);
            changed.extend(self.snapshot.apply(Event::Put { key, value, revision: 0 }));
        }
        changed.extend(self.snapshot.apply(Event::Complete));
        Change { status: true, own: true, ..self.read_all(&changed) }
    }

    fn read_all(&mut self, changed: &[String]) -> Change {
        let mut invalid = false;
        for key in changed {
            self.leases.remove(key);
            self.invalid.remove(key);
            match self.snapshot.get(key).map(|value| read_lease(key, value)) {
                Some(Ok(lease)) => {
                    self.leases.insert(key.clone(), lease);
                }
                Some(Err(reason)) => {
                    self.invalid.insert(key.clone(), reason);
                    invalid = true;
                }
                None => {}
            }
        }
        Change { leases: !changed.is_empty(), invalid, ..Change::default() }
    }

    fn is_own(&self, key: &str) -> bool {
        self.own.as_ref().is_some_and(|own| own.key.to_string() == key)
    }

    /// True when the store has told everything once and none of it is in doubt: the gate for removals.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.snapshot.is_complete()
    }

    /// True while a listing runs; what is known may be half of it.
    #[must_use]
    pub fn is_listing(&self) -> bool {
        self.snapshot.is_listing() && !self.doubted
    }

    /// Every lease that can be read, in key order.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// Keys that cannot be read, with the reason.
    pub fn invalid(&self) -> impl Iterator<Item = (&str, &str)> {
        let told = self.snapshot.invalid().iter().chain(&self.invalid);
        told.map(|(key, reason)| (key.as_str(), reason.as_str()))
    }

    /// Why the store cannot be heard at the moment, if so.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.snapshot.lost().map(ToString::to_string)
    }

    /// How this node's own key stands.
    #[must_use]
    pub fn own_key(&self) -> OwnKey {
        let Some(own) = &self.own else { return OwnKey::Unknown };
        if self.doubted && !self.own_listed {
            return OwnKey::Gone;
        }
        let key = own.key.to_string();
        match (self.leases.get(&key), self.invalid.get(&key)) {
            (Some(lease), _) if lease.attrs.public_ip == own.attrs.public_ip => OwnKey::Held,
            (Some(lease), _) => OwnKey::Taken(format!("leased to {}", lease.attrs.public_ip)),
            (None, Some(reason)) => OwnKey::Taken(reason.clone()),
            (None, None) if self.snapshot.is_complete() => OwnKey::Gone,
            (None, None) => OwnKey::Unknown,
        }
    }

    /// The value under the own key when it names this node's address but is not what this node wrote: a second node
    /// with the same address.
    #[must_use]
    pub fn contested(&self) -> Option<&LeaseAttrs> {
        let own = self.own.as_ref()?;
        let attrs = &self.leases.get(&own.key.to_string())?.attrs;
        (attrs.public_ip == own.attrs.public_ip && *attrs != own.attrs).then_some(attrs)
    }
}

/// Reads a key below `subnets/` with its value.
///
/// # Errors
/// What is wrong with the key or the value, with the accepted form.
pub fn read_lease(key: &str, value: &[u8]) -> Result<Lease, String> {
    let key: SubnetKey = key.parse().map_err(|error: crate::format::lease::InvalidSubnetKey| error.to_string())?;
    let told =
        |problems: Vec<cluster::Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let attrs = LeaseAttrs::parse(value).map_err(told)?;
    Ok(Lease { key, attrs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::lease::BackendAttrs;

    fn value(ip: &str) -> Vec<u8> {
        LeaseAttrs { public_ip: ip.parse().unwrap(), public_ipv6: None, backend: BackendAttrs::HostGw }
            .render()
            .into_bytes()
    }

    fn put(n: u8) -> Event {
        Event::Put { key: format!("172.7.{n}.0-24"), value: value(&format!("10.4.7.{n}")), revision: 1 }
    }

    fn entry(n: u8) -> (String, Vec<u8>) {
        (format!("172.7.{n}.0-24"), value(&format!("10.4.7.{n}")))
    }

    fn delete(n: u8) -> Event {
        Event::Delete { key: format!("172.7.{n}.0-24"), revision: 2 }
    }

    fn view(events: impl IntoIterator<Item = Event>) -> View {
        let mut view = View::default();
        view.hold(read_lease("172.7.21.0-24", &value("10.4.7.21")).unwrap());
        for event in events {
            view.apply(event);
        }
        view
    }

    fn subnets(view: &View) -> Vec<String> {
        view.leases().map(|lease| lease.key.to_string()).collect()
    }

    #[test]
    fn junk_key_is_kept_by_name_and_the_others_go_on() {
        let junk = Event::Put { key: "junk".to_owned(), value: value("10.4.7.9"), revision: 1 };
        let bad = Event::Put { key: "172.7.23.0-24".to_owned(), value: b"{".to_vec(), revision: 1 };
        let mut view = view([Event::Reset, put(21), junk, put(22), bad, Event::Complete]);
        assert_eq!(subnets(&view), ["172.7.21.0-24", "172.7.22.0-24"]);
        let invalid: Vec<(&str, &str)> = view.invalid().collect();
        assert_eq!(invalid.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["172.7.23.0-24", "junk"]);
        assert!(invalid[1].1.contains("172.7.21.0-24"), "the accepted form is told");
        assert!(view.is_complete());
        let repaired = Event::Put { key: "172.7.23.0-24".to_owned(), value: value("10.4.7.23"), revision: 2 };
        assert!(view.apply(repaired).leases);
        assert_eq!(view.invalid().count(), 1);
    }

    #[test]
    fn listing_without_any_other_node_is_kept_until_confirmed() {
        let mut view = view([Event::Reset, put(21), put(22), put(23), Event::Complete]);
        assert!(!view.is_doubted());
        for event in [Event::Reset, put(21), Event::Complete] {
            assert!(!view.apply(event).leases);
        }
        assert!(view.is_doubted());
        assert_eq!(subnets(&view).len(), 3);
        assert_eq!(view.own_key(), OwnKey::Held);
        assert!(view.confirm([entry(21)]).leases);
        assert_eq!(subnets(&view), ["172.7.21.0-24"]);
        assert!(!view.is_doubted());
    }

    #[test]
    fn second_look_that_differs_corrects_the_listing() {
        let mut view = view([Event::Reset, put(21), put(22), put(23), Event::Complete, Event::Reset, Event::Complete]);
        assert!(!view.confirm([entry(21), entry(22), entry(23)]).leases);
        assert_eq!(subnets(&view).len(), 3);
        assert!(!view.is_doubted());
        assert!(!view.confirm([]).leases, "there is nothing left to confirm");
    }

    #[test]
    fn wiped_store_loses_nothing_that_comes_back_before_the_confirmation() {
        let mut view = view([Event::Reset, put(21), put(22), put(23), Event::Complete, Event::Reset, Event::Complete]);
        assert_eq!(view.own_key(), OwnKey::Gone, "this node must claim its subnet again");
        view.apply(put(21));
        view.apply(put(22));
        assert_eq!(view.own_key(), OwnKey::Held);
        assert_eq!(subnets(&view).len(), 3);
        assert!(view.confirm([entry(21), entry(22)]).leases, "23 has not come back");
        assert_eq!(subnets(&view), ["172.7.21.0-24", "172.7.22.0-24"]);
        assert_eq!(view.own_key(), OwnKey::Held);
    }

    #[test]
    fn first_listing_without_any_other_node_does_not_open_the_gate() {
        let mut view = view([Event::Reset, put(21), Event::Complete]);
        assert!(view.is_doubted() && !view.is_complete());
        assert!(!view.is_listing());
        assert!(view.confirm([entry(21)]).status);
        assert!(view.is_complete());
    }

    #[test]
    fn first_listing_of_a_fresh_machine_is_believed() {
        let mut view = View::new(false);
        for event in [Event::Reset, put(21), Event::Complete] {
            view.apply(event);
        }
        assert!(view.is_complete() && !view.is_doubted());
        view.apply(put(22));
        view.apply(Event::Reset);
        view.apply(Event::Complete);
        assert!(view.is_doubted(), "now there is a node to lose");
    }

    #[test]
    fn own_key_is_watched() {
        let mut view = view([Event::Reset, put(21), put(22), Event::Complete]);
        assert_eq!(view.own_key(), OwnKey::Held);
        view.apply(delete(21));
        assert_eq!(view.own_key(), OwnKey::Gone);
        view.apply(Event::Put { key: "172.7.21.0-24".to_owned(), value: value("10.4.7.99"), revision: 3 });
        assert_eq!(view.own_key(), OwnKey::Taken("leased to 10.4.7.99".to_owned()));
        assert_eq!(view.contested(), None);
        let twin =
            br#"{"PublicIP":"10.4.7.21","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#;
        view.apply(Event::Put { key: "172.7.21.0-24".to_owned(), value: twin.to_vec(), revision: 4 });
        assert_eq!(view.own_key(), OwnKey::Held);
        assert!(view.contested().is_some());
    }

    #[test]
    fn lost_store_forgets_nothing() {
        let view = view([Event::Reset, put(21), put(22), Event::Complete, Event::Reset, put(21)]);
        assert!(view.is_listing());
        assert_eq!(subnets(&view).len(), 2);
        assert_eq!(view.own_key(), OwnKey::Held);
    }
}
