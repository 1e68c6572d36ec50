//! `Metrics`: numbers for Prometheus, named `<program>_…`.
//!
//! Invariant: labels are tables, causes, gates, sources and error numbers, of which there are few. What is counted for each object of the
//! cluster is a program's own ([`Metrics::extend`]), which bounds it, and is read when somebody asks ([`Metrics::read_first`]).

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use reconcile::{Counts, Pass};

use crate::http::Probe;
use crate::liveness::Liveness;
use crate::readiness::Readiness;
use crate::worker::{Cause, Took};

/// Content type of what [`Metrics::encode`] writes.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// One label: name and value.
pub type Label = [(&'static str, String); 1];

/// A count per value of one label.
type Gauges = Family<Label, Gauge>;

/// Reads what only the kernel counts, whenever somebody asks for the numbers.
pub type Reading = Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// The numbers of one daemon.
pub struct Metrics {
    registry: Mutex<Registry>,
    readiness: Readiness,
    desired: Gauges,
    in_place: Gauges,
    actual: Gauges,
    listings: Family<Label, Counter>,
    failed: Gauges,
    written: Family<Label, Counter>,
    repairs: Counter,
    passes: Family<Label, Histogram>,
    event_to_kernel: Histogram,
    errors: Family<Label, Counter>,
    connected: Gauges,
    listed: Gauges,
    objects: Gauges,
    gates: Gauges,
    certificates: Family<[(&'static str, &'static str); 2], Gauge>,
    stuck: Gauge,
    liveness: OnceLock<Liveness>,
    /// How whoever asked about the health was answered, by path; without a name of its own.
    probes: [Family<Label, Counter>; 2],
    reading: OnceLock<Reading>,
    /// Held by the one who is answered.
    turn: tokio::sync::Mutex<()>,
}

/// Writes counters of one name, for a collector that reads them elsewhere.
///
/// # Errors
/// Those of `encoder`.
pub fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    counted: impl Iterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, count) in counted {
        ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// From 100 µs to some 100 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 4.0, 11))
}

/// Boundaries in seconds of the time from an event to the kernel: milliseconds are what is asked of it.
const LATENCIES: [f64; 15] =
    [0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 25.0];

impl Metrics {
    /// Rows that were put right after somebody else changed them, since the start.
    #[must_use]
    pub fn repaired(&self) -> u64 {
        self.repairs.get()
    }

    /// The numbers of `program`, which is at `version`; gates are those of `readiness`.
    #[must_use]
    pub fn new(program: &str, version: &str, readiness: Readiness) -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::default()),
            readiness,
            desired: Family::default(),
            in_place: Family::default(),
            failed: Family::default(),
            actual: Family::default(),
            listings: Family::default(),
            written: Family::default(),
            repairs: Counter::default(),
            passes: Family::new_with_constructor(seconds),
            event_to_kernel: Histogram::new(LATENCIES),
            errors: Family::default(),
            connected: Family::default(),
            listed: Family::default(),
            objects: Family::default(),
            gates: Family::default(),
            certificates: Family::default(),
            stuck: Gauge::default(),
            liveness: OnceLock::new(),
            probes: Default::default(),
            reading: OnceLock::new(),
            turn: tokio::sync::Mutex::default(),
        };
        metrics.register(program, version);
        metrics
    }

    fn register(&self, program: &str, version: &str) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let build: Gauges = Family::default();
        build.get_or_create(&[("version", version.to_owned())]).set(1);
        let start: Gauge<f64, AtomicU64> = Gauge::default();
        start.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        registry.register_with_unit("process_start_time", "Start of the process since 1970", Unit::Seconds, start);
        let own = registry.sub_registry_with_prefix(program.replace('-', "_"));
        own.register("build_info", "Version of the program", build);
        own.register("table_rows_desired", "Rows that are desired, by kernel table", self.desired.clone());
        own.register("table_rows_in_place", "Desired rows that the kernel holds", self.in_place.clone());
        own.register("table_rows_actual", "Rows of this program that the kernel holds", self.actual.clone());
        own.register("table_rows_failed", "Rows whose last try failed", self.failed.clone());
        own.register(
            "table_listings",
            "Listings of a kernel table since the start of its thread",
            self.listings.clone(),
        );
        own.register("rows_written", "Rows that were set or removed, or failed", self.written.clone());
        own.register("repairs", "Rows that were put right after somebody else changed them", self.repairs.clone());
        own.register_with_unit("pass_duration", "Time of a pass over all tables", Unit::Seconds, self.passes.clone());
        own.register_with_unit(
            "event_to_kernel",
            "Time from the first event to the end of the pass that it caused, the planning included",
            Unit::Seconds,
            self.event_to_kernel.clone(),
        );
        own.register("kernel_errors", "Refusals of the kernel by error number", self.errors.clone());
        own.register("source_connected", "1 when the source can be reached", self.connected.clone());
        own.register("source_listed", "1 when the source has been listed whole once", self.listed.clone());
        own.register("source_objects", "Objects of the sources by what became of them", self.objects.clone());
        own.register("readiness_gate", "1 when the gate is open", self.gates.clone());
        own.register("loops_stuck", "Loops that make no progress, or have ended", self.stuck.clone());
        own.register_with_unit(
            "certificate_end_time",
            "Last second since 1970 of the certificates that a client uses",
            Unit::Seconds,
            self.certificates.clone(),
        );
    }

    /// Gives `add` the registry, for numbers that only one program has.
    pub fn extend(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Has the loops of `liveness` judged before each answer. The first one to be given counts.
    pub fn judge(&self, liveness: Liveness) {
        let _ = self.liveness.set(liveness);
    }

    /// Has `reading` read numbers before each answer. The first one to be given counts.
    pub fn read_first(&self, reading: Reading) {
        // A program gives one.
        let _ = self.reading.set(reading);
    }

    /// The answer to whoever asks for the numbers; one is answered after the other.
    pub async fn page(&self) -> String {
        let _turn = self.turn.lock().await;
        if let Some(reading) = self.reading.get() {
            reading().await;
        }
        self.encode()
    }

    /// Answers to `/healthz` and to `/livez` at an address for health, by `code`: for a program that has names for them.
    #[must_use]
    pub fn probes(&self) -> [Family<Label, Counter>; 2] {
        self.probes.clone()
    }

    /// Notes an answer to a probe.
    pub fn probe(&self, probe: Probe, code: u16) {
        let [health, live] = &self.probes;
        let answered = match probe {
            Probe::Health => health,
            Probe::Live => live,
            Probe::Ready => return,
        };
        answered.get_or_create(&[("code", code.to_string())]).inc();
    }

    /// Notes a pass.
    pub fn pass(&self, cause: Cause, pass: &Pass, took: Took) {
        if pass.observed > 0 || !pass.is_idle() {
            self.passes.get_or_create(&[("cause", cause.name().to_owned())]).observe(took.pass.as_secs_f64());
        }
        if let Some(latency) = took.event_to_kernel.filter(|_| !pass.is_idle()) {
            self.event_to_kernel.observe(latency.as_secs_f64());
        }
        for (kind, count) in [("set", pass.upserted), ("removed", pass.removed), ("failed", pass.failed)] {
            if count > 0 {
                self.written.get_or_create(&[("result", kind.to_owned())]).inc_by(whole(count));
            }
        }
        self.repairs.inc_by(whole(pass.repaired));
        for failure in &pass.errors {
            // Without a number it was none of the kernel's own.
            let number = failure.errno.map_or_else(|| "none".to_owned(), |errno| errno.to_string());
            self.errors.get_or_create(&[("errno", number)]).inc();
        }
    }

    /// Sets where a table stands.
    pub fn table(&self, name: &'static str, counts: &Counts) {
        let label = [("table", name.to_owned())];
        set(&self.desired, &label, counts.desired);
        set(&self.in_place, &label, counts.done);
        set(&self.failed, &label, counts.failed);
        // Its thread counts; another one begins anew, as a counter does whose program was started again.
        self.listings.get_or_create(&label).inner().store(counts.listings, Ordering::Relaxed);
        if let Some(actual) = counts.actual {
            set(&self.actual, &label, actual);
        }
    }

    /// Sets where a source stands.
    pub fn source(&self, name: &str, connected: bool, listed: bool) {
        let label = [("source", name.to_owned())];
        set(&self.connected, &label, usize::from(connected));
        set(&self.listed, &label, usize::from(listed));
    }

    /// Sets how many objects of the sources are in this state.
    pub fn objects(&self, state: &'static str, count: usize) {
        set(&self.objects, &[("state", state.to_owned())], count);
    }

    /// All numbers in Prometheus' text form.
    #[must_use]
    pub fn encode(&self) -> String {
        for (gate, open) in self.readiness.gates() {
            set(&self.gates, &[("gate", gate.to_owned())], usize::from(open));
        }
        let stuck = self.liveness.get().map_or(0, |liveness| liveness.stuck().len());
        self.stuck.set(i64::try_from(stuck).unwrap_or(i64::MAX));
        // Clients come and go.
        self.certificates.clear();
        for used in cluster::certificates::in_use() {
            let labels = [("server", used.server), ("certificate", used.certificate)];
            self.certificates.get_or_create(&labels).set(used.end);
        }
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing into a text cannot fail.
        let _ = prometheus_text::encode(&mut text, &registry);
        text
    }
}

fn set(family: &Gauges, label: &Label, value: usize) {
    family.get_or_create(label).set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn whole(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reconcile::{Failure, RetryClass};

    use super::*;

    #[test]
    fn numbers_carry_the_programs_name_and_count_repairs_apart() {
        let readiness = Readiness::new(["sources", "tables"]);
        let metrics = Metrics::new("ipvs-proxy", "0.1.0", readiness.clone());
        readiness.open("tables");
        let failure =
            |errno| Failure { table: "ipvs", class: RetryClass::Retry, errno, times: 1, reason: String::new() };
        let errors = vec![failure(Some(17)), failure(None)];
        let pass = Pass { observed: 1, upserted: 3, removed: 1, failed: 2, errors, ..Pass::default() };
        let took = Took {
            pass: Duration::from_millis(5),
            event_to_kernel: Some(Duration::from_millis(25)),
            now: Duration::from_secs(1),
        };
        metrics.pass(Cause::Order, &pass, took);
        metrics.pass(Cause::Change, &Pass { upserted: 9, repaired: 7, ..Pass::default() }, took);
        let liveness = Liveness::default();
        drop(liveness.heartbeat("ended", Duration::from_secs(1)));
        metrics.judge(liveness);
        metrics.source("services", true, false);
        metrics.objects("refused", 2);
        metrics.table(
            "ipvs",
            &Counts { desired: 5, done: 4, actual: Some(6), failed: 1, listings: 3, ..Counts::default() },
        );
        let text = metrics.encode();
        for line in [
            "# TYPE ipvs_proxy_pass_duration_seconds histogram",
            "ipvs_proxy_build_info{version=\"0.1.0\"} 1",
            "ipvs_proxy_table_rows_desired{table=\"ipvs\"} 5",
            "ipvs_proxy_table_rows_in_place{table=\"ipvs\"} 4",
            "ipvs_proxy_table_rows_actual{table=\"ipvs\"} 6",
            "ipvs_proxy_table_listings_total{table=\"ipvs\"} 3",
            "ipvs_proxy_table_rows_failed{table=\"ipvs\"} 1",
            "ipvs_proxy_rows_written_total{result=\"set\"} 12",
            "ipvs_proxy_rows_written_total{result=\"failed\"} 2",
            "ipvs_proxy_repairs_total 7",
            "ipvs_proxy_pass_duration_seconds_count{cause=\"order\"} 1",
            "ipvs_proxy_event_to_kernel_seconds_count 2",
            "ipvs_proxy_event_to_kernel_seconds_bucket{le=\"0.01\"} 0",
            "ipvs_proxy_event_to_kernel_seconds_bucket{le=\"0.025\"} 2",
            "ipvs_proxy_kernel_errors_total{errno=\"17\"} 1",
            "ipvs_proxy_kernel_errors_total{errno=\"none\"} 1",
            "ipvs_proxy_source_connected{source=\"services\"} 1",
            "ipvs_proxy_source_listed{source=\"services\"} 0",
            "ipvs_proxy_source_objects{state=\"refused\"} 2",
            "ipvs_proxy_readiness_gate{gate=\"tables\"} 1",
            "ipvs_proxy_loops_stuck 1",
            "ipvs_proxy_readiness_gate{gate=\"sources\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}\nlacks {line}");
        }
        assert!(text.contains("process_start_time_seconds 1"), "{text}");
        // A counter's name there has its end, and one of a program begins with `P_`.
        let mut served: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ipvs_proxy_")).collect();
        let rows = include_str!("../../../docs/metrics.md").lines().filter_map(|line| line.strip_prefix("| `P_"));
        let mut documented: Vec<_> = rows
            .filter_map(|row| {
                row.split_once(" | ")?.1.split(" |").next().map(|kind| {
                    let name = row.split('`').next().unwrap_or_default();
                    format!("{name} {kind}")
                })
            })
            .collect();
        // No client of this process uses a certificate.
        documented.retain(|row| row != "certificate_end_time_seconds gauge");
        served.sort_unstable();
        documented.sort_unstable();
        assert_eq!(served, documented);
    }

    #[tokio::test]
    async fn what_the_kernel_counts_is_read_when_somebody_asks_and_not_before() {
        let metrics = Metrics::new("ipvs-proxy", "0.1.0", Readiness::new([]));
        let read = Gauge::<i64>::default();
        metrics.extend(|registry| registry.register("read", "Readings", read.clone()));
        let counted = read.clone();
        metrics.read_first(Box::new(move || {
            let counted = counted.clone();
            Box::pin(async move {
                counted.inc();
            })
        }));
        assert_eq!(read.get(), 0);
        for asked in 1..=2 {
            let text = metrics.page().await;
            assert!(text.lines().any(|line| line == format!("read {asked}")), "{text}");
        }
    }
}
