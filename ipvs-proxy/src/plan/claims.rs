//! `Claims`: the plans of all Services, and which frontends each change of one of them changes.
//!
//! Invariants. An address and port belongs to one Service, whatever order they came in: to one that has endpoints before one that has
//! none, then to the oldest, then to the first by name. Nobody else gets a port at the virtual address of a Service: an address that its
//! owner writes down himself (`spec.externalIPs`, a load balancer's) could otherwise take connections meant for somebody else
//! (CVE-2020-8554). Who is not served is reported as [`Conflict`] and takes over when the other one goes. What is served depends on the
//! plans only, never on their history.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::Bound;

use netstate::{IpFamily, Protocol};

use super::frontend::{Kind, Place};
use super::route::Answer;
use super::{Frontend, FrontendKey, ServicePlan};
use crate::object::ObjectName;
use crate::object::few::Few;

/// A frontend that changed: what stood there and what stands there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delta {
    /// Where.
    pub(crate) key: FrontendKey,
    /// What was served there.
    pub(crate) old: Option<Frontend>,
    /// What is served there now; `None` when nothing is.
    pub(crate) new: Option<Frontend>,
}

/// A Service that is not served at an address and port because another one is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Conflict {
    /// Where.
    pub(crate) key: FrontendKey,
    /// Who is served, there or at the whole address.
    pub(crate) served: ObjectName,
    /// Who is not.
    pub(crate) refused: ObjectName,
    /// What decided.
    pub(crate) reason: Reason,
}

/// Why of two Services one is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// The address is its virtual one.
    Address,
    /// It names the address, and the other one has the port at all of the node's.
    External,
    /// It has endpoints, and the other one has none.
    Endpoints,
    /// It is older.
    Age,
    /// Its name comes first.
    Name,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "whose clusterIP the address is",
            Self::External => "which names the address",
            Self::Endpoints => "which has endpoints",
            Self::Age => "which is older",
            Self::Name => "which comes first by name",
        })
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, served, reason, .. } = self;
        write!(f, "{key} belongs to services/{served}, {reason}")
    }
}

/// The plans of all Services; see the module's text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims {
    plans: BTreeMap<ObjectName, ServicePlan>,
    claims: BTreeMap<FrontendKey, Few<ObjectName>>,
    /// Where somebody is not served.
    contested: BTreeSet<FrontendKey>,
}

/// A Service's claim to a key: the smallest one is served.
type Rank<'a> = (bool, bool, &'a str, &'a ObjectName);

impl Claims {
    /// Puts the plan of a Service in place of its earlier one, or with `None` takes it away; returns what changed.
    pub(crate) fn settle(&mut self, service: &ObjectName, plan: Option<ServicePlan>) -> Vec<Delta> {
        if self.plans.get(service) == plan.as_ref() {
            return Vec::new();
        }
        let touched = self.touched(service, plan.as_ref());
        let before: Vec<_> = touched.iter().map(|key| self.served(key).cloned()).collect();
        if let Some(old) = self.plans.remove(service) {
            for (key, _) in old.frontends() {
                self.withdraw(key, service);
            }
        }
        if let Some(plan) = plan {
            for (key, _) in plan.frontends() {
                self.claims.entry(*key).or_default().insert(service.clone());
            }
            self.plans.insert(service.clone(), plan);
        }
        let changed = touched.into_iter().zip(before).filter_map(|(key, old)| {
            self.note_conflict(key);
            let new = self.served(&key).cloned();
            (old != new).then_some(Delta { key, old, new })
        });
        changed.collect()
    }

    /// Takes in that so many plans were settled one after another. What was put in one by one has half-empty nodes; built from what is in
    /// order they are full, which pays where most is new.
    pub(crate) fn planned(&mut self, count: usize) {
        if count.saturating_mul(2) >= self.plans.len() {
            self.plans = std::mem::take(&mut self.plans).into_iter().collect();
            self.claims = std::mem::take(&mut self.claims).into_iter().collect();
        }
    }

    /// The keys that another plan of a Service may change: its own, and all at its virtual addresses.
    fn touched(&self, service: &ObjectName, plan: Option<&ServicePlan>) -> BTreeSet<FrontendKey> {
        let frontends = || self.plans.get(service).into_iter().chain(plan).flat_map(ServicePlan::frontends);
        let mut touched: BTreeSet<FrontendKey> = frontends().map(|(key, _)| *key).collect();
        let virtual_addresses = frontends().filter(|(_, frontend)| frontend.kind == Kind::ClusterIp);
        let places: BTreeSet<Place> = virtual_addresses.map(|(key, _)| key.place).collect();
        touched.extend(places.into_iter().flat_map(|place| self.at(place)).map(|(key, _)| *key));
        touched
    }

    /// Everything that is claimed at a place.
    fn at(&self, place: Place) -> impl Iterator<Item = (&FrontendKey, &Few<ObjectName>)> {
        let key = move |protocol, port| FrontendKey { protocol, place, port };
        let of = move |protocol| self.claims.range(key(protocol, 0)..=key(protocol, u16::MAX));
        Protocol::ALL.into_iter().flat_map(of)
    }

    fn withdraw(&mut self, key: &FrontendKey, service: &ObjectName) {
        let Some(claims) = self.claims.get_mut(key) else { return };
        claims.remove(service);
        if claims.as_slice().is_empty() {
            self.claims.remove(key);
        }
    }

    fn note_conflict(&mut self, key: FrontendKey) {
        let claimants = self.claims.get(&key).map_or(0, |claims| claims.as_slice().len());
        if claimants > 1 || (claimants > 0 && self.served(&key).is_none()) {
            self.contested.insert(key);
        } else {
            self.contested.remove(&key);
        }
    }

    /// What is served at `key`.
    #[must_use]
    pub(crate) fn served(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.winner(key).map(|(_, frontend)| frontend)
    }

    /// Everything that is served.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&FrontendKey, &Frontend)> {
        self.claims.keys().filter_map(|key| Some((key, self.served(key)?)))
    }

    /// The plans of the Services behind `name`, by name; of all for none.
    pub(crate) fn plans_behind(&self, name: Option<&ObjectName>) -> impl Iterator<Item = (&ObjectName, &ServicePlan)> {
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.plans.range((from, Bound::Unbounded))
    }

    /// Every node port that is served, with whose it is.
    pub(crate) fn node_ports(&self) -> impl Iterator<Item = (&FrontendKey, &ObjectName)> {
        let key = |protocol, family, port| FrontendKey { protocol, place: Place::AnyNode(family), port };
        let of =
            move |(protocol, family)| self.claims.range(key(protocol, family, 0)..=key(protocol, family, u16::MAX));
        let families = |protocol| [IpFamily::V4, IpFamily::V6].map(|family| (protocol, family));
        let keys = Protocol::ALL.into_iter().flat_map(families).flat_map(of).map(|(key, _)| key);
        keys.filter_map(|key| Some((key, self.winner(key)?.0)))
    }

    /// Who may have `key`, and with what.
    fn winner(&self, key: &FrontendKey) -> Option<(&ObjectName, &Frontend)> {
        let claimants = self.claims.get(key).map_or(&[][..], Few::as_slice);
        let planned = claimants.iter().filter_map(|name| {
            let plan = self.plans.get(name)?;
            plan.frontend(key).map(|frontend| (name, plan, frontend))
        });
        let allowed = planned.filter(|(name, _, frontend)| self.owner_of_address(key, name, frontend).is_none());
        let best = allowed.min_by_key(|(name, plan, frontend)| rank(name, plan, frontend));
        best.map(|(name, _, frontend)| (name, frontend))
    }

    /// The other Service whose virtual address a frontend of `name` would capture.
    fn owner_of_address(&self, key: &FrontendKey, name: &ObjectName, frontend: &Frontend) -> Option<&ObjectName> {
        if matches!(frontend.kind, Kind::ClusterIp | Kind::NodePort) {
            return None;
        }
        let virtual_at = |key: &FrontendKey, other: &ObjectName| {
            self.plans.get(other).and_then(|plan| plan.frontend(key)).is_some_and(|f| f.kind == Kind::ClusterIp)
        };
        let claims = self.at(key.place).flat_map(|(key, claims)| claims.as_slice().iter().map(move |name| (key, name)));
        let owners = claims.filter(|(key, other)| virtual_at(key, other)).map(|(_, other)| other);
        let owners: BTreeSet<_> = owners.collect();
        if owners.contains(name) { None } else { owners.first().copied() }
    }

    /// What is planned for `service`.
    #[must_use]
    pub(crate) fn plan(&self, service: &ObjectName) -> Option<&ServicePlan> {
        self.plans.get(service)
    }

    /// Services that want what another one has, by place.
    pub(crate) fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        self.contested.iter().flat_map(|key| {
            let claimants = self.claims.get(key).map_or(&[][..], Few::as_slice);
            claimants.iter().filter_map(|refused| self.conflict(key, refused))
        })
    }

    /// Node ports that another Service has at one of this node's addresses `own`, as an external address or that of a load balancer: whoever
    /// names the address goes before who has the port at all of them, as with kube-proxy.
    pub(crate) fn captured(&self, own: &BTreeSet<IpAddr>) -> impl Iterator<Item = Conflict> {
        let at_own = own.iter().flat_map(|addr| self.at(Place::Address(*addr)));
        at_own.filter_map(|(key, _)| {
            let port = FrontendKey { place: Place::AnyNode(key.family()), ..*key };
            let ((served, _), (refused, _)) = self.winner(key).zip(self.winner(&port))?;
            let conflict =
                || Conflict { key: *key, served: served.clone(), refused: refused.clone(), reason: Reason::External };
            (served != refused).then(conflict)
        })
    }

    /// Who is served in place of `refused`, and why.
    fn conflict(&self, key: &FrontendKey, refused: &ObjectName) -> Option<Conflict> {
        let plan = self.plans.get(refused)?;
        let frontend = plan.frontend(key)?;
        let (served, reason) = if let Some(owner) = self.owner_of_address(key, refused, frontend) {
            (owner, Reason::Address)
        } else {
            let (served, best) = self.winner(key).filter(|(served, _)| *served != refused)?;
            let first = rank(served, self.plans.get(served)?, best);
            (served, Reason::between(first, rank(refused, plan, frontend)))
        };
        Some(Conflict { key: *key, served: served.clone(), refused: refused.clone(), reason })
    }
}

impl Reason {
    /// What decides between two claims of which the first one is served.
    fn between((first_has_none, _, first_age, _): Rank<'_>, (second_has_none, _, second_age, _): Rank<'_>) -> Self {
        if first_has_none != second_has_none {
            Self::Endpoints
        } else if first_age == second_age {
            Self::Name
        } else {
            Self::Age
        }
    }
}

fn rank<'a>(name: &'a ObjectName, plan: &'a ServicePlan, frontend: &Frontend) -> Rank<'a> {
    let has_none = frontend.routes.outside.answer == Answer::Reject;
    (has_none, plan.created.is_empty(), &plan.created, name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::object::service::Service;
    use crate::object::slice::EndpointSlice;
    use crate::plan::here::Here;
    use crate::plan::plan;

    /// Plans a Service called `name`, created on that day of the month, with an endpoint or without.
    fn settle(claims: &mut Claims, (name, day): (&str, u8), spec: &Value, endpoint: bool) -> Vec<Delta> {
        let metadata = json!({"name": name, "creationTimestamp": format!("2026-01-{day:02}T00:00:00Z")});
        let mut object = json!({"kind": "Service", "metadata": metadata, "spec": spec});
        object["spec"]["type"] = json!("NodePort");
        let labels = json!({"kubernetes.io/service-name": name});
        let endpoints = if endpoint { json!([{"addresses": ["172.7.21.2"]}]) } else { json!([]) };
        let slice = json!({"kind": "EndpointSlice", "metadata": {"name": name, "labels": labels},
            "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints});
        let (service, slice) = (Service::from_json(&object).unwrap(), EndpointSlice::from_json(&slice).unwrap());
        let plan = plan(&service, &service.cluster_ips, [&slice], &Here::on("n1"));
        claims.settle(&service.name, Some(plan))
    }

    fn served(claims: &Claims) -> Vec<(String, String)> {
        let of = |key: &FrontendKey| claims.served(key).map(|f| (key.to_string(), f.owner.name().to_owned()));
        claims.claims.keys().filter_map(of).collect()
    }

    fn owner(claims: &Claims, key: &str) -> Option<String> {
        served(claims).into_iter().find(|(at, _)| at == key).map(|(_, owner)| owner)
    }

    fn with(ip: &str, external: &[&str], port: u16, node_port: u16) -> Value {
        json!({"clusterIP": ip, "externalIPs": external, "ports": [{"port": port, "nodePort": node_port}]})
    }

    #[test]
    fn a_node_port_and_an_external_address_belong_to_the_oldest_that_has_endpoints() {
        let mut claims = Claims::default();
        settle(&mut claims, ("young", 2), &with("192.168.0.2", &["10.4.7.9"], 80, 30_080), true);
        settle(&mut claims, ("old", 1), &with("192.168.0.1", &["10.4.7.9"], 80, 30_080), true);
        for key in ["tcp 10.4.7.9:80", "tcp IPv4 node port 30080"] {
            assert_eq!(owner(&claims, key).as_deref(), Some("old"), "{key}");
        }
        assert_eq!(claims.conflicts().count(), 2);
        settle(&mut claims, ("old", 1), &with("192.168.0.1", &["10.4.7.9"], 80, 30_080), false);
        assert_eq!(owner(&claims, "tcp 10.4.7.9:80").as_deref(), Some("young"), "the old one has no endpoint");
        assert!(claims.conflicts().all(|conflict| conflict.refused.name() == "old"));
        claims.settle(&ObjectName::new("default", "young"), None);
        assert_eq!(owner(&claims, "tcp 10.4.7.9:80").as_deref(), Some("old"));
        assert!(claims.conflicts().next().is_none());
    }

    #[test]
    fn a_node_port_that_an_external_address_captures_is_named() {
        let own = BTreeSet::from(["10.4.7.21".parse().unwrap(), "fd00:10::21".parse().unwrap()]);
        let captured = |claims: &Claims| claims.captured(&own).map(|conflict| conflict.to_string()).collect::<Vec<_>>();
        let mut claims = Claims::default();
        settle(&mut claims, ("a", 1), &with("192.168.0.1", &[], 80, 30500), true);
        settle(&mut claims, ("b", 2), &with("192.168.0.2", &["10.4.7.99"], 30500, 0), true);
        settle(&mut claims, ("d", 2), &with("192.168.0.4", &["10.4.7.21"], 30501, 0), true);
        assert!(captured(&claims).is_empty(), "another address, another port");
        settle(&mut claims, ("c", 3), &with("192.168.0.3", &["10.4.7.21"], 30500, 0), true);
        let text = "tcp 10.4.7.21:30500 belongs to services/default/c, which names the address";
        assert_eq!(captured(&claims), [text]);
        settle(&mut claims, ("a", 1), &with("192.168.0.1", &["10.4.7.21"], 30500, 30500), true);
        assert!(captured(&claims).is_empty(), "it has the address itself: that is a conflict of one key");
    }

    #[test]
    fn a_conflict_says_what_decided() {
        let spec = with("192.168.0.1", &["10.4.7.9"], 80, 0);
        let other = with("192.168.0.2", &["10.4.7.9"], 80, 0);
        for ((day, served), (other_day, other_served), reason) in [
            ((1, false), (2, true), "which has endpoints"),
            ((2, true), (1, true), "which is older"),
            ((2, false), (1, false), "which is older"),
            ((1, true), (1, true), "which comes first by name"),
        ] {
            let mut claims = Claims::default();
            settle(&mut claims, ("web", day), &spec, served);
            settle(&mut claims, ("api", other_day), &other, other_served);
            let found: Vec<_> = claims.conflicts().map(|c| (c.refused.name().to_owned(), c.to_string())).collect();
            let text = format!("tcp 10.4.7.9:80 belongs to services/default/api, {reason}");
            assert_eq!(found, [("web".to_owned(), text)]);
        }
    }

    #[test]
    fn no_external_address_captures_the_virtual_address_of_another_service() {
        let mut claims = Claims::default();
        settle(&mut claims, ("thief", 1), &with("192.168.0.1", &["192.168.0.10"], 80, 0), true);
        assert_eq!(owner(&claims, "tcp 192.168.0.10:80").as_deref(), Some("thief"), "nobody's address");
        for (port, what) in [(80, "the same port"), (443, "another port of the address")] {
            settle(&mut claims, ("web", 2), &with("192.168.0.10", &[], port, 0), false);
            let of_address: Vec<_> =
                served(&claims).into_iter().filter(|(key, _)| key.contains("192.168.0.10:")).collect();
            assert_eq!(of_address, [(format!("tcp 192.168.0.10:{port}"), "web".to_owned())], "{what}");
            let texts: Vec<_> = claims.conflicts().map(|conflict| conflict.to_string()).collect();
            assert_eq!(
                texts,
                ["tcp 192.168.0.10:80 belongs to services/default/web, whose clusterIP the address is"],
                "{what}"
            );
        }
        claims.settle(&ObjectName::new("default", "web"), None);
        assert_eq!(owner(&claims, "tcp 192.168.0.10:80").as_deref(), Some("thief"));
        assert!(claims.conflicts().next().is_none());
    }

    /// What a Service asks for: its day, its address, external ones, its port, and whether it has an endpoint.
    type Asked = (u8, usize, Vec<usize>, u16, bool);

    /// One of four Services with what it asks for, or that it goes.
    fn step() -> impl Strategy<Value = (usize, Option<Asked>)> {
        let places = proptest::collection::vec(0..4_usize, 0..3);
        let asked = (1..4_u8, 0..3_usize, places, proptest::sample::select(vec![80, 443]), any::<bool>());
        (0..4_usize, proptest::option::weighted(0.8, asked))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn changes_and_conflicts_are_those_of_plans_made_at_once(steps in proptest::collection::vec(step(), 1..12)) {
            const PLACES: [&str; 4] = ["192.168.0.10", "192.168.0.11", "192.168.0.12", "10.4.7.9"];
            const NAMES: [&str; 4] = ["a", "b", "c", "d"];
            let mut claims = Claims::default();
            let mut mirror: BTreeMap<FrontendKey, Frontend> = BTreeMap::new();
            let mut last = BTreeMap::new();
            for (who, asked) in steps {
                let deltas = if let Some((day, own, external, port, endpoint)) = asked {
                    let external: Vec<&str> = external.iter().filter_map(|place| PLACES.get(*place).copied()).collect();
                    let spec = with(PLACES[own], &external, port, 0);
                    last.insert(who, (day, spec.clone(), endpoint));
                    settle(&mut claims, (NAMES[who], day), &spec, endpoint)
                } else {
                    last.remove(&who);
                    claims.settle(&ObjectName::new("default", NAMES[who]), None)
                };
                for Delta { key, old, new } in deltas {
                    let before = match new {
                        Some(new) => mirror.insert(key, new),
                        None => mirror.remove(&key),
                    };
                    prop_assert_eq!(before, old, "{}", key);
                }
                prop_assert!(claims.all().eq(mirror.iter()), "{:?} but {:?}", served(&claims), mirror.keys());
            }
            let mut anew = Claims::default();
            for (who, (day, spec, endpoint)) in last.iter().rev() {
                settle(&mut anew, (NAMES[*who], *day), spec, *endpoint);
            }
            prop_assert!(anew.all().eq(mirror.iter()));
            let in_order = |claims: &Claims| claims.conflicts().collect::<BTreeSet<_>>();
            let found = in_order(&claims);
            prop_assert_eq!(&found, &in_order(&anew));
            // Whoever claims what another one has is named.
            let refused: usize = claims.claims.iter().map(|(key, all)| all.as_slice().len() - usize::from(claims.served(key).is_some())).sum();
            prop_assert_eq!(found.len(), refused);
        }
    }

    #[test]
    fn one_that_says_no_time_of_creation_comes_behind_those_that_do() {
        let mut claims = Claims::default();
        settle(&mut claims, ("web", 31), &with("192.168.0.1", &["10.4.7.9"], 80, 0), true);
        let mut planned = Claims::default();
        settle(&mut planned, ("api", 1), &with("192.168.0.2", &["10.4.7.9"], 80, 0), true);
        let name = ObjectName::new("default", "api");
        let plan = planned.plans.remove(&name).map(|plan| ServicePlan { created: String::new().into(), ..plan });
        claims.settle(&name, plan);
        assert_eq!(owner(&claims, "tcp 10.4.7.9:80").as_deref(), Some("web"));
    }

    #[test]
    fn a_service_may_name_its_own_virtual_address_once_more() {
        let mut claims = Claims::default();
        settle(&mut claims, ("web", 1), &with("192.168.0.10", &["192.168.0.10"], 80, 0), true);
        let kinds: Vec<_> = claims.all().map(|(_, frontend)| frontend.kind).collect();
        assert_eq!(kinds, [Kind::ClusterIp], "and it stays the virtual one");
        assert!(claims.conflicts().next().is_none());
    }
}
