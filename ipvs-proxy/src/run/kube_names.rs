//! `KubeProxyNames`: numbers under the names that dashboards made for kube-proxy ask for.

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use cluster::Event;
use daemon::worker::{Cause, Took};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::source::Update;

/// Seconds since 1970.
type Timestamp = Gauge<f64, AtomicU64>;

/// See the module's text.
pub(super) struct KubeProxyNames {
    duration: Histogram,
    last: Timestamp,
    queued: Timestamp,
    services: Counter,
    endpoints: Counter,
}

impl Default for KubeProxyNames {
    fn default() -> Self {
        Self {
            duration: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            last: Gauge::default(),
            queued: Gauge::default(),
            services: Counter::default(),
            endpoints: Counter::default(),
        }
    }
}

impl KubeProxyNames {
    pub(super) fn register(&self, registry: &mut Registry) {
        let names = registry.sub_registry_with_prefix("kubeproxy_sync_proxy_rules");
        names.register("duration_seconds", "Time of a pass that an object caused", self.duration.clone());
        names.register("last_timestamp_seconds", "End of the last such pass", self.last.clone());
        names.register("last_queued_timestamp_seconds", "Arrival of the last object", self.queued.clone());
        names.register("service_changes", "Services that came or went", self.services.clone());
        names.register("endpoint_changes", "EndpointSlices that came or went", self.endpoints.clone());
    }

    /// An object has come or gone.
    pub(super) fn take(&self, update: &Update) {
        match update {
            Update::Service(Event::Put { .. } | Event::Delete { .. }) => self.services.inc(),
            Update::Slice(Event::Put { .. } | Event::Delete { .. }) => self.endpoints.inc(),
            _ => return,
        };
        self.queued.set(now());
    }

    /// A pass has ended.
    pub(super) fn pass(&self, cause: Cause, took: Took) {
        if cause == Cause::Order {
            self.duration.observe(took.pass.as_secs_f64());
            self.last.set(now());
        }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
