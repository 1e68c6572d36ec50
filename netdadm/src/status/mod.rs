//! `status`: every component of every host, asked at once.
//!
//! Invariants: each question has a thread and a time; nothing that hangs holds the rest up, and what did not answer has a row that
//! says so; what cannot be asked from here is not taken for well.

mod conversation;
mod daemon;
mod etcd;
mod keys;
mod objects;
mod row;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::cluster::kubernetes::{Access, Client};
use rustls::pki_types::CertificateDer;

use crate::pki::{Certificate, Time};
use crate::topology::{Host, Purpose, Role, Topology};
use conversation::Peer;
pub(crate) use keys::Keys;
use row::Place;
pub(crate) use row::{Component, Row, State, table};

/// What an answer to a question makes of its row, as text, for fuzzing: nothing when it is no answer.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn answered(bytes: &[u8]) -> Vec<String> {
    let Some(answer) = conversation::parse_answer(&String::from_utf8_lossy(bytes)) else { return Vec::new() };
    let place = |component| Place { host: "a".to_owned(), component };
    let rows = [
        etcd::answered(place(Component::Etcd), &answer, None),
        server::answered(place(Component::KubeApiserver), &answer),
        daemon::health(place(Component::IpvsProxy), answer.code, &answer.body),
    ];
    rows.into_iter().map(|row| row.found).collect()
}

/// How much longer than its questions the whole may take.
const SPARE: Duration = Duration::from_millis(500);

/// What is asked, and how long.
pub(crate) struct Question {
    pub(crate) topology: Topology,
    pub(crate) keys: Keys,
    /// Components that are asked.
    pub(crate) only: BTreeSet<Component>,
    /// For each answer.
    pub(crate) limit: Duration,
}

/// Whole days that a certificate is good for.
fn days(certificate: &CertificateDer<'_>) -> Option<i64> {
    let now = Time::after_1970(since_1970());
    Certificate::decode(certificate).ok().map(|certificate| now.days_until(certificate.end))
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Asks all of them; rows in the order of hosts and components.
pub(crate) fn ask(question: Question) -> Vec<Row> {
    let end = Instant::now() + question.limit;
    let places = places(&question);
    let question = Arc::new(question);
    let (rows, answers) = mpsc::channel();
    start(&question, end, &rows);
    drop(rows);
    let (mut found, mut reasons) = (BTreeMap::new(), BTreeMap::new());
    let limit = end + SPARE;
    while places.iter().any(|place| !found.contains_key(place)) {
        // The channel ends with the last thread.
        let Ok(row) = answers.recv_timeout(limit.saturating_duration_since(Instant::now())) else { break };
        let is_second_hand = BY_SERVER.contains(&row.place.component) && row.state == State::Unknown;
        // Another server may know more.
        if is_second_hand { &mut reasons } else { &mut found }.insert(row.place.clone(), row);
    }
    let row = |place: Place| {
        found.remove(&place).or_else(|| reasons.remove(&place)).unwrap_or_else(|| unanswered(&question, place))
    };
    places.into_iter().map(row).collect()
}

/// Components that an API server is asked about.
const BY_SERVER: [Component; 3] = [Component::Kubelet, Component::KubeControllerManager, Component::KubeScheduler];

/// Every row that there will be.
fn places(question: &Question) -> Vec<Place> {
    let topology = &question.topology;
    let per_host = |host: &Host| {
        [
            (Component::Etcd, host.has(Role::Etcd)),
            (Component::KubeApiserver, host.has(Role::ControlPlane)),
            (Component::Kubelet, host.has(Role::Node)),
            (Component::Netd, topology.has_netd(host)),
            (Component::IpvsProxy, host.has(Role::Node)),
        ]
    };
    let asked = |component: &Component| question.only.contains(component);
    let mut places = Vec::new();
    for host in &topology.hosts {
        let own = per_host(host).into_iter().filter(|(component, runs)| *runs && asked(component));
        places.extend(own.map(|(component, _)| Place { host: host.name.value.clone(), component }));
    }
    let managers = [Component::KubeControllerManager, Component::KubeScheduler].into_iter().filter(asked);
    places.extend(managers.map(|component| Place { host: "-".to_owned(), component }));
    places
}

/// What is said of whom nobody answered for.
fn unanswered(question: &Question, place: Place) -> Row {
    let limit = question.limit.as_secs_f32();
    if !BY_SERVER.contains(&place.component) {
        return Row::new(place, State::Failed, format!("no answer within {limit} s"));
    }
    let reason = if question.keys.admin.is_none() {
        "not asked: no admin.conf; name the rendered folder by -o".to_owned()
    } else {
        format!("no API server has answered within {limit} s")
    };
    Row::new(place, State::Unknown, reason)
}

/// Starts a thread for each question. API servers are asked as well where they know of others.
fn start(question: &Arc<Question>, end: Instant, rows: &Sender<Row>) {
    let mut places: BTreeSet<Place> = places(question).into_iter().collect();
    if question.only.iter().any(|component| BY_SERVER.contains(component)) {
        let servers = question.topology.of(Role::ControlPlane);
        places.extend(servers.map(|host| Place { host: host.name.value.clone(), component: Component::KubeApiserver }));
    }
    for place in places {
        let Some(host) = question.topology.hosts.iter().find(|host| host.name.value == place.host) else { continue };
        let Some(peer) = peer(question, host, place.component, end) else { continue };
        let (rows, host, question) = (rows.clone(), host.clone(), Arc::clone(question));
        let work = move || {
            let row = one(&question.topology, &host, &peer, place);
            let is_server = row.place.component == Component::KubeApiserver && row.state != State::Failed;
            // Whoever collects may have gone.
            let _ = rows.send(row);
            if is_server {
                from_server(&question, &peer, &rows);
            }
        };
        // Without a thread the row is one that nobody answered.
        let _ = thread::Builder::new().name("status".to_owned()).spawn(work);
    }
}

fn one(topology: &Topology, host: &Host, peer: &Peer, place: Place) -> Row {
    let versions = host.versions.or(&topology.versions);
    match place.component {
        Component::Etcd => etcd::ask(peer, place, versions.etcd.map(|version| version.value)),
        Component::KubeApiserver => server::ask(peer, place, versions.kubernetes.map(|version| version.value)),
        Component::IpvsProxy => daemon::proxy(peer, place),
        _ => daemon::netd(peer, place),
    }
}

fn peer(question: &Question, host: &Host, component: Component, end: Instant) -> Option<Peer> {
    let (purpose, keys) = match component {
        Component::Etcd => (Purpose::EtcdClient, &question.keys),
        Component::KubeApiserver => (Purpose::ApiServer, &question.keys),
        Component::Netd => (Purpose::Netd, &question.keys),
        Component::IpvsProxy => (Purpose::ProxyHealth, &question.keys),
        _ => return None,
    };
    let address: IpAddr = host.addresses.first()?.value;
    let (_, port, _) = question.topology.ports.iter().find(|(found, ..)| *found == purpose)?;
    let is_member = component == Component::Etcd;
    let (roots, authority) = if is_member { (&keys.etcd, "pki/etcd/ca.crt") } else { (&keys.cluster, "pki/ca.crt") };
    let identity = if is_member && roots.is_some() { keys.member_client.clone() } else { None };
    let own = "pki/etcd/healthcheck-client.crt";
    Some(Peer { at: SocketAddr::new(address, port), roots: roots.clone(), authority, identity, own, end })
}

/// What an API server knows of others.
fn from_server(question: &Question, peer: &Peer, rows: &Sender<Row>) {
    let Some(admin) = question.keys.admin.as_deref().and_then(|path| path.to_str()) else { return };
    let url = format!("https://{}", peer.at);
    let access = Access::new(Some(admin), Some(&url), concat!("netdadm/", env!("CARGO_PKG_VERSION")), "admin.conf");
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let left = peer.end.saturating_duration_since(Instant::now());
    let work = async {
        let client = Client::connect(&access)?;
        let nodes = client.list::<objects::Nodes>(objects::NODES).await?;
        objects::kubelets(&question.topology, &nodes).into_iter().for_each(|row| drop(rows.send(row)));
        for component in [Component::KubeControllerManager, Component::KubeScheduler] {
            let _ = rows.send(objects::manager(&client, component, since_1970()).await);
        }
        Ok::<(), ::cluster::ClusterError>(())
    };
    if let Ok(Err(error)) = runtime.block_on(async { tokio::time::timeout(left, work).await }) {
        for place in places(question).into_iter().filter(|place| BY_SERVER.contains(&place.component)) {
            let _ = rows.send(Row::new(place, State::Unknown, error.to_string()));
        }
    }
}
