//! The status: what the daemon knows, what it does not serve and why, what the kernel refused.
//!
//! Invariants: its lists of what came from outside are bounded; it reads no object, so that a report costs what it lists, however many
//! Services there are. Its fields are what `ipvs-proxy status` shows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::time::rfc3339;
use daemon::status::{LISTED, Table as Rows};
use reconcile::Stage;
use serde::{Deserialize, Serialize};

use super::proxy::Proxy;
use crate::object::key::Kind;
use crate::object::node::Node;
use crate::plan::claims;
use crate::source::view::View;

/// What the daemon knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ProxyStatus {
    /// Version of this program.
    pub(crate) version: String,
    /// This node's name.
    pub(crate) node: String,
    /// The data path, in kube-proxy's words.
    pub(crate) mode: String,
    /// The program's name and flags, without the password: whoever explains what it does needs the same ones.
    pub(crate) started_with: Vec<String>,
    /// Everything that is wanted is in the kernel and every source is in reach.
    pub(crate) ok: bool,
    /// What has not been listed yet; nothing is removed before it has.
    pub(crate) waiting_for: Vec<String>,
    /// Why the source is not believed, if so: an operator must look.
    #[serde(default)]
    pub(crate) alarm: Option<String>,
    /// Why the source is out of reach, if so.
    pub(crate) lost: Option<String>,
    /// Why load balancers are to send nobody to this node, if so: `/healthz` answers 503.
    pub(crate) ineligible: Option<String>,
    /// The Node object, if the source has it.
    pub(crate) node_object: Option<NodeObject>,
    /// The Service networks, and where they come from.
    pub(crate) service_networks: Vec<ServiceNetwork>,
    /// Services that are known.
    pub(crate) services: usize,
    /// EndpointSlices that are known.
    pub(crate) endpoint_slices: usize,
    /// Objects that cannot be read or served, with the reason.
    pub(crate) refused: Vec<Refused>,
    /// Services that claim an address and port that another one has.
    pub(crate) conflicts: Vec<Conflict>,
    /// Objects of which elements cannot be read; the rest of them is served.
    pub(crate) skipped: Vec<Skipped>,
    /// Services that are served as the kernel remembers them, because nobody can read what they should be.
    pub(crate) remembered: Vec<String>,
    /// What Services ask for that is not served yet.
    pub(crate) not_served: Vec<NotServed>,
    /// The kernel's tables.
    pub(crate) tables: Vec<Table>,
    /// Endpoints that take no new connections and wait for their old ones to end.
    pub(crate) draining: Vec<String>,
    /// What the operator should know about this node.
    pub(crate) advice: Vec<String>,
    /// Work done since the start.
    pub(crate) totals: Totals,
}

/// What is used of the Node object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeObject {
    /// Its zone.
    pub(crate) zone: Option<String>,
    /// The networks of its Pods, the first of each family.
    pub(crate) pod_networks: Vec<String>,
    /// Its addresses, the first of each family.
    pub(crate) addresses: Vec<String>,
}

/// A network that ClusterIPs are given out of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceNetwork {
    /// The network.
    pub(crate) network: String,
    /// Who says so.
    pub(crate) from: String,
    /// It is used: what a flag says of a family counts before what is announced.
    pub(crate) used: bool,
}

/// An object that cannot be read or served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Refused {
    /// Its key, or the file.
    pub(crate) object: String,
    /// Why.
    pub(crate) reason: String,
    /// An earlier version of it is served.
    pub(crate) earlier_version_served: bool,
}

/// Two Services claim one address and port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Conflict {
    /// What they claim.
    pub(crate) place: String,
    /// Who is served there.
    pub(crate) served: String,
    /// Who is not.
    pub(crate) not_served: String,
    /// What the one who is served has before the other.
    pub(crate) reason: String,
}

/// An object of which elements cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Skipped {
    /// Its key.
    pub(crate) object: String,
    /// The elements, as `field: value; accepted: form`.
    pub(crate) elements: Vec<String>,
}

/// A Service that asks for more than it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NotServed {
    /// Its key.
    pub(crate) object: String,
    /// The fields, as `field: value`.
    pub(crate) fields: Vec<String>,
}

/// A kernel table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Table {
    /// Its name.
    pub(crate) name: String,
    /// Where it stands.
    #[serde(flatten)]
    pub(crate) rows: Rows,
}

/// Work done since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Listings of tables.
    pub(crate) observed: u64,
    /// Rows created or changed.
    pub(crate) upserted: u64,
    /// Rows removed.
    pub(crate) removed: u64,
    /// Steps and listings that failed.
    pub(crate) failed: u64,
}

impl ProxyStatus {
    /// The status of `proxy` on `node`.
    #[must_use]
    pub(crate) fn of(proxy: &Proxy, node: &str, advice: &[String], now: Duration) -> Self {
        let tables: Vec<_> = proxy.tables().stack().stages().map(|stage| table(stage)).collect();
        let lost = proxy.view().lost().map(ToString::to_string);
        let waiting_for: Vec<_> = proxy.gate().waiting().map(|kind| kind.folder().to_owned()).collect();
        let done = !proxy.is_mid_change() && tables.iter().all(|table| table.rows.is_done());
        let (totals, alarm) = (proxy.totals(), proxy.alarm());
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: node.to_owned(),
            mode: proxy.plane().mode().name().to_owned(),
            started_with: Vec::new(),
            ok: done && lost.is_none() && waiting_for.is_empty() && alarm.is_none(),
            alarm,
            waiting_for,
            lost,
            ineligible: proxy.ineligible(),
            node_object: proxy.view().node(node).map(node_object),
            service_networks: service_networks(proxy),
            services: proxy.view().known(&[Kind::Service]),
            endpoint_slices: proxy.view().known(&[Kind::EndpointSlice]),
            refused: refused(proxy),
            conflicts: conflicts(proxy),
            skipped: skipped(proxy),
            remembered: proxy.remembered().map(|name| format!("services/{name}")).take(LISTED).collect(),
            not_served: not_served(proxy),
            tables,
            draining: proxy
                .tables()
                .drains()
                .remaining(now)
                .map(|(server, left)| format!("{server}, until {} at most", rfc3339(since_1970() + left)))
                .take(LISTED)
                .collect(),
            advice: advice.iter().cloned().chain(of_node(proxy)).chain(notes(proxy.view())).collect(),
            totals: Totals {
                observed: totals.observed,
                upserted: totals.upserted,
                removed: totals.removed,
                failed: totals.failed,
            },
        }
    }

    /// Objects by what became of them; of those that an operator must look at no more are counted than are listed.
    pub(crate) fn objects(&self) -> [(&'static str, usize); 7] {
        [
            ("service", self.services),
            ("endpoint_slice", self.endpoint_slices),
            ("refused", self.refused.len()),
            ("conflict", self.conflicts.len()),
            ("incomplete", self.skipped.len()),
            ("not_served", self.not_served.len()),
            ("draining", self.draining.len()),
        ]
    }
}

/// The clock. A status stays as it is while nothing happens, and what is left of a time would not.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn table(stage: &dyn Stage) -> Table {
    Table { name: stage.name().to_owned(), rows: Rows::from(&stage.status()) }
}

fn node_object(node: &Node) -> NodeObject {
    NodeObject {
        zone: node.zone.as_deref().map(str::to_owned),
        pod_networks: node.pods.present().map(|(_, network)| network.to_string()).collect(),
        addresses: node.addresses.present().map(|(_, addr)| addr.to_string()).collect(),
    }
}

fn service_networks(proxy: &Proxy) -> Vec<ServiceNetwork> {
    let (networks, announced) = proxy.service_networks();
    let configured = networks.services.present().map(|(_, network)| ServiceNetwork {
        network: network.to_string(),
        from: "--service-cidr".to_owned(),
        used: true,
    });
    let of_objects = announced.objects.iter().flat_map(|(name, of)| of.iter().map(move |network| (name, network)));
    let of_objects = of_objects.map(|(name, network)| ServiceNetwork {
        network: network.to_string(),
        from: format!("ServiceCIDR {name}"),
        used: networks.services.get(network.family()).is_none(),
    });
    configured.chain(of_objects).take(LISTED).collect()
}

/// What is to be said of this node. Hints for zones cannot be followed on one that does not know its own.
fn of_node(proxy: &Proxy) -> Vec<String> {
    let zone = proxy.lacks_zone().then(|| {
        "the zone of this node is unknown: endpoints of every zone are used where some are meant for zones; set --node-zone, or let \
         the source have this node's Node object with the label topology.kubernetes.io/zone"
            .to_owned()
    });
    let announced = proxy.service_networks().1.trouble.as_ref();
    let announced = announced.map(|trouble| format!("ServiceCIDRs: {trouble}; what is known of them stays"));
    zone.into_iter().chain(announced).chain(proxy.remarks()).collect()
}

/// What is found beside the objects that are used.
fn notes(view: &View) -> impl Iterator<Item = String> {
    view.notes().map(|(file, line)| format!("{file}: {line}")).take(LISTED)
}

fn refused(proxy: &Proxy) -> Vec<Refused> {
    let remembered: Vec<String> = proxy.remembered().map(|name| format!("services/{name}")).collect();
    let malformed = proxy.view().malformed().map(|(key, reason, kept)| Refused {
        earlier_version_served: kept || remembered.contains(&key),
        object: key,
        reason: reason.to_owned(),
    });
    let unreadable = proxy.view().unreadable().map(|(source, reason)| Refused {
        object: source.to_owned(),
        reason: reason.to_owned(),
        earlier_version_served: false,
    });
    let misplaced = proxy.misplaced().iter().map(|(name, reason)| Refused {
        object: format!("services/{name}"),
        reason: reason.clone(),
        earlier_version_served: proxy.claims().plan(name).is_some_and(|plan| !plan.virtual_addresses().is_empty()),
    });
    malformed.chain(unreadable).chain(misplaced).take(LISTED).collect()
}

fn conflicts(proxy: &Proxy) -> Vec<Conflict> {
    let conflict = |conflict: claims::Conflict| Conflict {
        place: conflict.key.to_string(),
        served: format!("services/{}", conflict.served),
        not_served: format!("services/{}", conflict.refused),
        reason: conflict.reason.to_string(),
    };
    let captured = proxy.claims().captured(proxy.node_port_addresses());
    proxy.claims().conflicts().chain(captured).take(LISTED).map(conflict).collect()
}

fn skipped(proxy: &Proxy) -> Vec<Skipped> {
    let lacking = proxy.findings().iter().filter(|(_, finding)| !finding.skipped.is_empty());
    let named =
        lacking.map(|(object, finding)| Skipped { object: object.to_string(), elements: finding.skipped.clone() });
    let node = proxy.view().node(proxy.node()).filter(|node| !node.skipped.is_empty());
    let node = node.map(|node| Skipped { object: format!("nodes/{}", node.name), elements: node.skipped.clone() });
    node.into_iter().chain(named).take(LISTED).collect()
}

fn not_served(proxy: &Proxy) -> Vec<NotServed> {
    let asking = proxy.findings().iter().filter(|(_, finding)| !finding.not_served.is_empty());
    let named =
        asking.map(|(object, finding)| NotServed { object: object.to_string(), fields: finding.not_served.clone() });
    named.take(LISTED).collect()
}
