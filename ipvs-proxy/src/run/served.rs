//! `/services`: which Services are served where, and by which endpoints with which weights, for netd's page and whoever asks.
//!
//! Invariants: nothing is put together unless somebody asks; an answer has no more than [`SERVICES`] Services with [`PLACES`] places of
//! [`ENDPOINTS`] endpoints each, whatever the cluster has, and says how many there are; the thread of the kernel tables is held for [`SLICE`]
//! Services at a time, and what it takes in between two of them is in the later one.

use std::net::SocketAddr;
use std::time::Duration;

use daemon::http::{Answer, OwnPages, Page};
use daemon::worker::{Busy, Mailbox};
use serde::Serialize;
use tokio::time::timeout;

use super::worker::ProxyWork;
use crate::dataplane::Mode;
use crate::object::ObjectName;
use crate::plan::claims::Claims;
use crate::plan::frontend::Kind;
use crate::plan::route::Answer as Route;
use crate::plan::select::Locality;
use crate::plan::{Frontend, FrontendKey, ServicePlan};

/// Where it is served.
const PATH: &str = "/services";

/// Longest wait for the thread of the kernel tables.
const LIMIT: Duration = Duration::from_secs(3);

/// Services that are searched at a time: a millisecond of work.
const SLICE: usize = 500;

/// Services in an answer.
const SERVICES: usize = 100;

/// Places of one Service.
const PLACES: usize = 8;

/// Endpoints of one place.
const ENDPOINTS: usize = 8;

/// An answer.
#[derive(Debug, Default, Serialize)]
struct Served {
    /// The data path, in kube-proxy's words.
    mode: &'static str,
    /// Services that are served.
    count: usize,
    /// Those that have what was searched for in their name or in a place.
    matching: usize,
    /// The first of them, by name.
    services: Vec<Service>,
}

#[derive(Debug, Serialize)]
struct Service {
    name: String,
    places: Vec<Place>,
    /// How many there are.
    place_count: usize,
}

/// An address and port of a Service.
#[derive(Debug, Serialize)]
struct Place {
    at: String,
    kind: &'static str,
    /// What becomes of connections from outside the cluster.
    answer: &'static str,
    endpoints: Vec<Endpoint>,
    /// How many there are.
    endpoint_count: usize,
}

#[derive(Debug, Serialize)]
struct Endpoint {
    at: SocketAddr,
    weight: u32,
    /// It runs on this node; absent where nobody says.
    #[serde(skip_serializing_if = "Option::is_none")]
    here: Option<bool>,
}

/// Has the page answered by the thread behind `mailbox`.
pub(super) fn show(mailbox: &Mailbox<ProxyWork>, pages: &OwnPages) {
    let mailbox = mailbox.clone();
    pages.show(PATH, move |asked| {
        let mailbox = mailbox.clone();
        async move {
            let search = asked.field("q").unwrap_or_default();
            Answer::Page(match timeout(LIMIT, all(&mailbox, &search)).await {
                Ok(Ok(served)) => page(&served),
                Ok(Err(busy)) => Page::text(503, format!("{busy}\n")),
                Err(_) => Page::text(503, format!("{}\n", Busy::Late)),
            })
        }
    });
}

fn page(served: &Served) -> Page {
    match serde_json::to_string(served) {
        Ok(text) => Page::json(200, text + "\n"),
        Err(error) => Page::text(500, format!("{error}\n")),
    }
}

/// What was searched for among all Services, slice by slice.
async fn all(mailbox: &Mailbox<ProxyWork>, search: &str) -> Result<Served, Busy> {
    let mut searched = Searched::default();
    while !searched.is_whole {
        let search = search.to_owned();
        let on = move |work: &ProxyWork| {
            searched.go_on(work.proxy().claims(), work.proxy().plane().mode(), &search);
            searched
        };
        searched = mailbox.ask(LIMIT, on).await?;
    }
    Ok(searched.found)
}

/// A search under way.
#[derive(Debug, Default)]
struct Searched {
    found: Served,
    /// The last Service that was searched.
    behind: Option<ObjectName>,
    is_whole: bool,
}

impl Searched {
    /// Searches the next slice.
    fn go_on(&mut self, claims: &Claims, mode: Mode, search: &str) {
        self.found.mode = mode.name();
        let behind = self.behind.take();
        let mut plans = claims.plans_behind(behind.as_ref()).peekable();
        let mut last = None;
        for (name, plan) in plans.by_ref().take(SLICE) {
            last = Some(name);
            self.found.count += 1;
            if !matches(name, plan, search) {
                continue;
            }
            self.found.matching += 1;
            if self.found.services.len() < SERVICES {
                self.found.services.push(service(claims, name, plan));
            }
        }
        self.is_whole = plans.peek().is_none();
        self.behind = last.cloned();
    }
}

/// True when the Service's name or one of its places has `search` in it.
fn matches(name: &ObjectName, plan: &ServicePlan, search: &str) -> bool {
    let place = |(key, _): &(FrontendKey, Frontend)| key.to_string().contains(search);
    search.is_empty() || name.to_string().contains(search) || plan.frontends().iter().any(place)
}

fn service(claims: &Claims, name: &ObjectName, plan: &ServicePlan) -> Service {
    let frontends = plan.frontends();
    let places = frontends.iter().take(PLACES).map(|(key, frontend)| place(claims, name, (key, frontend)));
    Service { name: name.to_string(), places: places.collect(), place_count: frontends.len() }
}

fn place(claims: &Claims, name: &ObjectName, (key, frontend): (&FrontendKey, &Frontend)) -> Place {
    let route = &frontend.routes.outside.answer;
    let served = claims.served(key).is_some_and(|served| served.owner == *name);
    let backends = if served { route.backends() } else { &[] };
    let endpoints = backends.iter().take(ENDPOINTS).map(|backend| Endpoint {
        at: SocketAddr::new(backend.addr, backend.port),
        weight: backend.weight,
        here: match backend.locality {
            Locality::Here => Some(true),
            Locality::Elsewhere => Some(false),
            Locality::Unknown => None,
        },
    });
    let kind = match frontend.kind {
        Kind::ClusterIp => "ClusterIP",
        Kind::NodePort => "NodePort",
        Kind::External => "ExternalIP",
        Kind::LoadBalancer => "LoadBalancer",
    };
    let answer = match route {
        _ if !served => "another Service has this address and port",
        Route::Backends(_) => "served",
        Route::Reject => "refused: no endpoint is ready",
        Route::Drop => "dropped: no endpoint on this node is ready",
    };
    Place { at: key.to_string(), kind, answer, endpoints: endpoints.collect(), endpoint_count: backends.len() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::object::service::Service as Object;
    use crate::object::slice::EndpointSlice;
    use crate::plan::here::Here;
    use crate::plan::plan;

    fn settle(claims: &mut Claims, name: &str, spec: &Value, endpoints: &Value) {
        let object = json!({"kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        let metadata = json!({"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": name}});
        let slice = json!({"kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4",
            "ports": [{"port": 8080}], "endpoints": endpoints});
        let (service, slice) = (Object::from_json(&object).unwrap(), EndpointSlice::from_json(&slice).unwrap());
        let plan = plan(&service, &service.cluster_ips, [&slice], &Here::on("n1"));
        claims.settle(&service.name, Some(plan));
    }

    fn shown(claims: &Claims, search: &str) -> Value {
        let mut searched = Searched::default();
        while !searched.is_whole {
            searched.go_on(claims, Mode::Nftables, search);
        }
        serde_json::to_value(searched.found).unwrap()
    }

    #[test]
    fn a_service_is_shown_with_its_places_endpoints_and_weights() {
        let mut claims = Claims::default();
        let spec = |ip: &str| json!({"clusterIP": ip, "ports": [{"port": 80}], "externalIPs": ["10.4.7.9"]});
        let endpoints = json!([{"addresses": ["172.7.21.2"], "nodeName": "n1"}, {"addresses": ["172.7.22.3"], "nodeName": "n2"},
            {"addresses": ["172.7.22.4"]}]);
        settle(&mut claims, "web", &spec("192.168.0.10"), &endpoints);
        settle(&mut claims, "xyz", &spec("192.168.0.11"), &json!([]));
        let endpoints = json!([{"at": "172.7.21.2:8080", "weight": 1, "here": true},
            {"at": "172.7.22.3:8080", "weight": 1, "here": false}, {"at": "172.7.22.4:8080", "weight": 1}]);
        let place = |at: &str, kind: &str| json!({"at": at, "kind": kind, "answer": "served", "endpoints": endpoints, "endpoint_count": 3});
        let none = |at: &str, kind: &str, answer: &str| json!({"at": at, "kind": kind, "answer": answer, "endpoints": [], "endpoint_count": 0});
        let web = json!({"name": "shop/web", "place_count": 2,
            "places": [place("tcp 10.4.7.9:80", "ExternalIP"), place("tcp 192.168.0.10:80", "ClusterIP")]});
        let taken = none("tcp 10.4.7.9:80", "ExternalIP", "another Service has this address and port");
        let xyz = json!({"name": "shop/xyz", "place_count": 2,
            "places": [taken, none("tcp 192.168.0.11:80", "ClusterIP", "refused: no endpoint is ready")]});
        let found = shown(&claims, "");
        assert_eq!(found, json!({"mode": "nftables", "count": 2, "matching": 2, "services": [web, xyz]}));
        for (search, matching) in [("web", 1), ("192.168.0.11", 1), ("shop/", 2), ("10.4.7.9:80", 2), ("none", 0)] {
            let found = shown(&claims, search);
            assert_eq!((&found["matching"], &found["count"]), (&json!(matching), &json!(2)), "{search}");
        }
    }

    #[test]
    fn a_search_goes_through_all_services_a_slice_at_a_time_and_counts_each_once() {
        let mut claims = Claims::default();
        for number in 0..2 * SLICE + 1 {
            let spec =
                json!({"clusterIP": format!("192.168.{}.{}", number / 250, number % 250), "ports": [{"port": 80}]});
            settle(&mut claims, &format!("s{number:04}"), &spec, &json!([]));
        }
        let (mut searched, mut counts) = (Searched::default(), Vec::new());
        while !searched.is_whole {
            searched.go_on(&claims, Mode::Ipvs, "s0999");
            counts.push((searched.found.count, searched.found.matching));
            // What is taken in meanwhile may be of Services that were seen, and of those that are next.
            claims.settle(&ObjectName::new("shop", "s0499"), None);
        }
        assert_eq!(counts, [(SLICE, 0), (2 * SLICE, 1), (2 * SLICE + 1, 1)]);
        assert_eq!(searched.found.services[0].name, "shop/s0999");
        assert!(shown(&Claims::default(), "")["services"].as_array().unwrap().is_empty());
    }

    #[test]
    fn an_answer_is_bounded_and_says_how_many_there_are() {
        let mut claims = Claims::default();
        let ports: Vec<_> = (0..PLACES + 3).map(|port| json!({"port": port + 1, "name": port.to_string()})).collect();
        for number in 0..SERVICES + 5 {
            let spec = json!({"clusterIP": format!("192.168.0.{number}"), "ports": ports});
            settle(&mut claims, &format!("s{number:03}"), &spec, &json!([]));
        }
        let endpoints: Vec<_> = (0..ENDPOINTS + 9).map(|n| json!({"addresses": [format!("172.7.21.{n}")]})).collect();
        let spec = json!({"clusterIP": "192.168.1.1", "ports": [{"port": 80}]});
        settle(&mut claims, "a", &spec, &json!(endpoints));
        let found = shown(&claims, "");
        assert_eq!((&found["count"], &found["matching"]), (&json!(SERVICES + 6), &json!(SERVICES + 6)));
        assert_eq!(found["services"].as_array().unwrap().len(), SERVICES);
        let [first, second] = [0, 1].map(|number| &found["services"][number]);
        assert_eq!(first["places"][0]["endpoints"].as_array().unwrap().len(), ENDPOINTS);
        assert_eq!(first["places"][0]["endpoint_count"], ENDPOINTS + 9);
        assert_eq!((second["places"].as_array().unwrap().len(), &second["place_count"]), (PLACES, &json!(PLACES + 3)));
    }
}
