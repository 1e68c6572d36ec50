//! `KubeProxyNames`: numbers under the names that dashboards made for kube-proxy ask for.
//!
//! Invariant: a number under one of these names means what kube-proxy means by it; what has no such meaning here has no number.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use cluster::Event;
use daemon::metrics::{Label, Metrics};
use daemon::worker::{Cause, Took};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::object::ObjectName;
use crate::plan::NoLocal;
use crate::source::Update;
use crate::source::view::View;

/// Seconds since 1970.
type Timestamp = Gauge<f64, AtomicU64>;

/// See the module's text.
pub(super) struct KubeProxyNames {
    duration: Histogram,
    programming: Histogram,
    last: Timestamp,
    queued: Timestamp,
    services: Counter,
    endpoints: Counter,
    /// Services and EndpointSlices that came or went and that no pass has worked on.
    pending: [Gauge; 2],
    no_local: Family<Label, Gauge>,
    /// Answers to `/healthz` and to `/livez`.
    probes: [Family<Label, Counter>; 2],
    /// Slices whose cause is older were there before this program.
    started: SystemTime,
    /// Causes of changes whose end was not received yet, each with its Service.
    received: Vec<(ObjectName, SystemTime)>,
    /// Causes of changes that are not in the kernel yet, the first [`CAUSES`] of each Service.
    due: BTreeMap<ObjectName, Vec<SystemTime>>,
}

/// Causes of changes of one Service that wait for the kernel: it may refuse a row for ever, while endpoints come and go.
const CAUSES: usize = 64;

/// kube-proxy's: 0, 0.25 and 0.5 s, every second to a minute, every 5 s to two minutes, every 30 s to five.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let seconds = (1..60_u16).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.0, 0.25, 0.5].into_iter().chain(seconds.map(f64::from))
}

impl KubeProxyNames {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let names = Self {
            duration: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            programming: Histogram::new(programming_buckets()),
            last: Gauge::default(),
            queued: Gauge::default(),
            services: Counter::default(),
            endpoints: Counter::default(),
            pending: Default::default(),
            no_local: Family::default(),
            probes: metrics.probes(),
            started: SystemTime::now(),
            received: Vec::new(),
            due: BTreeMap::new(),
        };
        metrics.extend(|registry| names.register(registry));
        names
    }

    fn register(&self, registry: &mut Registry) {
        let names = registry.sub_registry_with_prefix("kubeproxy");
        let [health, live] = self.probes.clone();
        names.register("proxy_healthz", "Answers to /healthz", health);
        names.register("proxy_livez", "Answers to /livez", live);
        names.register(
            "network_programming_duration_seconds",
            "Time from the change of a Service or Pod, as its EndpointSlice notes it, until the kernel has it",
            self.programming.clone(),
        );
        let names = names.sub_registry_with_prefix("sync_proxy_rules");
        names.register("duration_seconds", "Time of a pass that an object caused", self.duration.clone());
        names.register("last_timestamp_seconds", "End of the last such pass", self.last.clone());
        names.register("last_queued_timestamp_seconds", "Arrival of the last object", self.queued.clone());
        names.register("service_changes", "Services that came or went", self.services.clone());
        names.register("endpoint_changes", "EndpointSlices that came or went", self.endpoints.clone());
        let [services, endpoints] = self.pending.clone();
        names.register("service_changes_pending", "Of these Services, those that no pass has worked on", services);
        names.register(
            "endpoint_changes_pending",
            "Of these EndpointSlices, those that no pass has worked on",
            endpoints,
        );
        names.register(
            "no_local_endpoints_total",
            "Ports of Services with a Local policy that have endpoints, but none on this node",
            self.no_local.clone(),
        );
    }

    /// An object has come or gone; `view` is what was known before.
    pub(super) fn take(&mut self, update: &Update, view: &View) {
        let [services, endpoints] = &self.pending;
        match update {
            Update::Service(Event::Put { .. } | Event::Delete { .. }) => came(&self.services, services),
            Update::Slice(Event::Put { .. } | Event::Delete { .. }) => came(&self.endpoints, endpoints),
            _ => {
                if update.is_end() {
                    for (service, cause) in self.received.drain(..) {
                        let causes = self.due.entry(service).or_default();
                        if causes.len() < CAUSES {
                            causes.push(cause);
                        }
                    }
                    self.queued.set(seconds(SystemTime::now()));
                }
                return;
            }
        }
        if let Update::Slice(Event::Put { key, value: Ok(slice), .. }) = update
            && let Some(trigger) = slice.trigger.0.and_then(|since| UNIX_EPOCH.checked_add(since))
            && trigger >= self.started
            && view.slice(key) != Some(slice)
        {
            self.received.push((slice.service.clone(), trigger));
        }
    }

    /// A pass has ended; `is_in_place` says whether the kernel has all that is desired for a Service. A pass that failed of nothing does not:
    /// it leaves a row alone that was refused and whose next try is later.
    pub(super) fn pass(
        &mut self,
        cause: Cause,
        took: Took,
        no_local: NoLocal,
        is_in_place: impl Fn(&ObjectName) -> bool,
    ) {
        if cause == Cause::Order {
            for pending in &self.pending {
                pending.set(0);
            }
            self.duration.observe(took.pass.as_secs_f64());
            self.last.set(seconds(SystemTime::now()));
        }
        let now = SystemTime::now();
        for (_, causes) in self.due.extract_if(.., |service, _| is_in_place(service)) {
            for cause in causes {
                self.programming.observe(now.duration_since(cause).unwrap_or_default().as_secs_f64());
            }
        }
        for (policy, count) in [("internal", no_local.internal), ("external", no_local.external)] {
            self.no_local.get_or_create(&[("traffic_policy", policy.to_owned())]).set(count.into());
        }
    }
}

/// One more has come or gone.
fn came(total: &Counter, pending: &Gauge) {
    total.inc();
    pending.inc();
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use daemon::http::Probe;
    use daemon::readiness::Readiness;
    use serde_json::json;

    use super::*;
    use crate::object::key::ObjectKey;
    use crate::source::update;

    fn metrics() -> Metrics {
        Metrics::new("ipvs-proxy", "0.1.0", Readiness::new([]))
    }

    #[test]
    fn names_and_types_are_those_of_the_table_in_the_documentation() {
        let metrics = metrics();
        let mut names = KubeProxyNames::new(&metrics);
        let _numbers = super::super::counted::Numbers::shown_by(&metrics);
        metrics.probe(Probe::Health, 200);
        metrics.probe(Probe::Live, 503);
        let no_local = NoLocal { internal: 2, external: 1 };
        names.pass(Cause::Timer, took(), no_local, |_| true);
        let text = metrics.encode();
        let typed = text.lines().filter_map(|line| line.strip_prefix("# TYPE kubeproxy_"));
        let mut found: Vec<_> = typed.map(ToOwned::to_owned).collect();
        let table =
            include_str!("../../../docs/kube-proxy.md").lines().filter_map(|line| line.strip_prefix("| `kubeproxy_"));
        let row = |line: &str| {
            let (name, rest) = line.split_once("` | ")?;
            let (kind, _) = rest.split_once(" | ")?;
            Some(format!("{name} {kind}"))
        };
        let mut documented: Vec<_> = table.filter_map(row).collect();
        found.sort();
        documented.sort();
        assert_eq!(found, documented);
        for line in [
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_proxy_livez_total{code=\"503\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"} 2",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 1",
            "kubeproxy_sync_proxy_rules_service_changes_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}\nlacks {line}");
        }
    }

    fn took() -> Took {
        Took { pass: Duration::ZERO, event_to_kernel: None, now: Duration::ZERO }
    }

    #[test]
    fn changes_are_timed_from_their_cause_until_the_kernel_has_their_service() {
        let metrics = metrics();
        let mut names = KubeProxyNames::new(&metrics);
        let mut view = View::default();
        let mut take = |names: &mut KubeProxyNames, event: Event| {
            let update = update(event, ObjectKey::from_etcd, true).unwrap();
            names.take(&update, &view);
            view.take(update);
        };
        let slice_of = |service: &str, trigger: &str, port: u16| {
            let metadata = json!({"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service},
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": trigger}});
            let json = json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [], "metadata": metadata,
                "ports": [{"port": port}]});
            Event::Put {
                key: format!("endpointslices/default/{service}-1"),
                value: json.to_string().into_bytes(),
                revision: 1,
            }
        };
        let slice = |trigger: &str, port: u16| slice_of("web", trigger, port);
        let (old, new) = ("2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z");
        let count = || {
            let text = metrics.encode();
            let line = "kubeproxy_network_programming_duration_seconds_count ";
            text.lines().find_map(|found| found.strip_prefix(line)).unwrap().parse::<u32>().unwrap()
        };
        let pass = |names: &mut KubeProxyNames, refused: &[&str]| {
            let is_in_place = |service: &ObjectName| !refused.contains(&service.name());
            names.pass(Cause::Order, took(), NoLocal::default(), is_in_place);
            count()
        };
        take(&mut names, slice(old, 80));
        take(&mut names, Event::Commit);
        assert_eq!(pass(&mut names, &[]), 0, "it came about before this program");
        take(&mut names, slice(new, 81));
        assert_eq!(pass(&mut names, &[]), 0, "the change has no end yet");
        take(&mut names, Event::Commit);
        assert_eq!(pass(&mut names, &["web"]), 0, "the kernel has not all of it");
        for port in 1..1000 {
            take(&mut names, slice(new, port));
            take(&mut names, Event::Commit);
        }
        take(&mut names, slice_of("dns", new, 53));
        take(&mut names, Event::Commit);
        assert_eq!(pass(&mut names, &["web"]), 1, "another Service waits for nobody");
        assert_eq!(pass(&mut names, &[]), 1 + 64, "those that came first");
        take(&mut names, slice(new, 81));
        take(&mut names, Event::Commit);
        assert_eq!(pass(&mut names, &[]), 1 + 64 + 1);
        take(&mut names, slice(new, 81));
        take(&mut names, Event::Commit);
        assert_eq!(pass(&mut names, &[]), 1 + 64 + 1, "a listing shows again what was there");
        assert_eq!(programming_buckets().count(), 3 + 59 + 12 + 7);
    }

    #[test]
    fn changes_are_pending_until_a_pass_has_worked_on_them() {
        let metrics = metrics();
        let mut names = KubeProxyNames::new(&metrics);
        let number = |name: &str| {
            let (line, text) = (format!("kubeproxy_sync_proxy_rules_{name} "), metrics.encode());
            text.lines().find_map(|found| found.strip_prefix(&line)).unwrap().parse::<f64>().unwrap()
        };
        let is_pending = || number("service_changes_pending") > 0.0;
        let event = Event::Delete { key: "services/default/web".to_owned(), revision: 2 };
        let update = update(event, ObjectKey::from_etcd, true).unwrap();
        names.take(&update, &View::default());
        assert!(is_pending());
        names.pass(Cause::Timer, took(), NoLocal::default(), |_| true);
        assert!(is_pending(), "a pass of the clock takes in no object");
        let passes = || (number("duration_seconds_count"), number("last_timestamp_seconds") > 0.0);
        assert_eq!(passes(), (0.0, false));
        names.pass(Cause::Order, took(), NoLocal::default(), |_| true);
        assert_eq!((is_pending(), passes()), (false, (1.0, true)));
        assert_eq!(number("service_changes_total"), 1.0);
    }
}
