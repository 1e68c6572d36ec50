//! `PluginCalls`: how often the CNI plugin was called, and how many of this node's addresses Pods have, for `/metrics`.
//!
//! Invariants: nothing is read unless somebody asks for the numbers, and then no more than [`MOST`] names of files; the file of calls is
//! there from the start on and readable for root alone, who could hold its lock; one that is torn or foreign is named and made anew. Numbers
//! that cannot be read at this moment are not shown: a counter that is 0 for once rises by everything with the next answer.

use std::fmt;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use daemon::metrics::counters;
use daemon::slot::locked;
use netstate::calls::{BOUNDS, CODES, Calls, LENGTH, NAME, OfVerb, Verb};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::subnet_file;

/// Where the plugin keeps which Pod has which address, a folder for each network, unless it is configured otherwise.
const RESERVATIONS: &str = "/var/lib/cni/networks";

/// Names of files that are read there at most.
const MOST: usize = 65_536;

/// How often the file's lock is asked for; each call of the plugin holds it for microseconds.
const TRIES: u32 = 20;

/// Time between two tries.
const PAUSE: Duration = Duration::from_micros(200);

/// See the module's text; clones are the same.
#[derive(Debug, Clone)]
pub(super) struct PluginCalls {
    path: PathBuf,
    reservations: PathBuf,
    /// Names the subnet that Pods have their addresses of.
    subnet_file: PathBuf,
    /// What was said of the file last.
    said: Arc<Mutex<Option<String>>>,
}

impl PluginCalls {
    /// The file in the folder of run-time files, which is made.
    pub(super) fn open(run_dir: &Path, subnet_file: &Path) -> Self {
        let (path, subnet_file) = (run_dir.join(NAME), subnet_file.to_owned());
        let calls = Self { path, reservations: RESERVATIONS.into(), subnet_file, said: Arc::default() };
        // The plugin counts from now on, whoever asks.
        let _ = calls.read();
        calls
    }

    /// What the file says; one that is none is made anew. Each new reason is logged once.
    fn read(&self) -> Option<Calls> {
        let error = match read(&self.path) {
            Ok(calls) => return Some(calls),
            // The next answer has them.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => error,
        };
        let is_new = error.kind() == io::ErrorKind::NotFound;
        // What says nothing of the file, as a lack of descriptors, is no reason to lose what it says.
        let is_none = is_new
            || [io::ErrorKind::InvalidData, io::ErrorKind::IsADirectory].contains(&error.kind())
            || error.raw_os_error() == Some(libc::ELOOP);
        let made = is_none.then(|| make(&self.path));
        let text = match &made {
            Some(Ok(())) if is_new => None,
            Some(Ok(())) => Some(format!("{error}; it is made anew, and the plugin's calls are counted from 0")),
            Some(Err(failed)) => Some(format!("{error}; make it anew: {failed}; the plugin's calls are not counted")),
            None => Some(format!("{error}; the plugin's calls are not shown")),
        };
        let mut said = locked(&self.said);
        if let Some(text) = text.as_ref().filter(|text| said.as_ref() != Some(text)) {
            tracing::warn!("{}: {text}", self.path.display());
        }
        *said = text;
        made?.ok().map(|()| Calls::default())
    }

    /// How many addresses of the subnet Pods have, and how many there are for Pods; `None` before there is a subnet, or where nothing is
    /// known of Pods.
    fn addresses(&self) -> Option<[u64; 2]> {
        let subnet = subnet_file::load(&self.subnet_file)?.subnet_v4?;
        let networks = fs::read_dir(&self.reservations).ok()?;
        let files = networks.flatten().filter_map(|network| fs::read_dir(network.path()).ok()).flatten().flatten();
        let names = files.take(MOST).filter_map(|file| file.file_name().to_str()?.parse::<Ipv4Addr>().ok());
        let reserved = names.filter(|address| subnet.contains((*address).into())).count();
        // Without its own address, the bridge's and that for all.
        let whole = 1_u64.checked_shl(32_u32.saturating_sub(u32::from(subnet.len()))).unwrap_or_default();
        Some([u64::try_from(reserved).unwrap_or(u64::MAX), whole.saturating_sub(3)])
    }
}

/// Reads the file, under its lock where it can be had: while somebody writes it, it may look torn, and that is `WouldBlock`.
fn read(path: &Path) -> io::Result<Calls> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let is_locked = (0..TRIES).any(|tries| {
        if tries > 0 {
            thread::sleep(PAUSE);
        }
        file.try_lock_shared().is_ok()
    });
    let mut bytes = Vec::with_capacity(LENGTH + 1);
    file.take(u64::try_from(LENGTH + 1).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    let kind = if is_locked { io::ErrorKind::InvalidData } else { io::ErrorKind::WouldBlock };
    Calls::decode(&bytes).map_err(|why| io::Error::new(kind, why))
}

/// Puts an empty one in its place.
fn make(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&Calls::default().encode())?;
    file.as_file().set_permissions(Permissions::from_mode(0o600))?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

impl Collector for PluginCalls {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        if let Some(calls) = self.read() {
            encode_calls(&calls, &mut encoder)?;
        }
        let Some([reserved, all]) = self.addresses() else { return Ok(()) };
        for (name, about, count) in [
            ("netd_pod_addresses", "IPv4 addresses that this node has for Pods", all),
            ("netd_pod_addresses_reserved", "Of these, addresses that Pods have", reserved),
        ] {
            let gauge = encoder.encode_descriptor(name, about, None, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX)).encode(gauge)?;
        }
        Ok(())
    }
}

fn encode_calls(calls: &Calls, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let about = "Calls of the CNI plugin that have ended";
    counters(encoder, ("netd_cni_calls", about), calls.verbs().map(|(verb, of)| (label(verb), of.count())))?;
    let codes = || CODES.iter().map(u32::to_string).chain(["other".to_owned()]);
    let errors = calls.verbs().flat_map(|(verb, of)| {
        let coded = codes().zip(of.errors).filter(|(code, count)| *count > 0 || code == "11");
        coded.map(move |(code, count)| ([label(verb)[0].clone(), ("code", code)], count))
    });
    counters(encoder, ("netd_cni_errors", "Calls of it that failed, by the error's code"), errors)?;
    let mut family = encoder.encode_descriptor(
        "netd_cni_duration_seconds",
        "Time that these calls took",
        None,
        MetricType::Histogram,
    )?;
    for (verb, of) in calls.verbs() {
        let label = label(verb);
        let mut one = family.encode_family(&label)?;
        one.encode_histogram::<NoLabelSet>(seconds(of.microseconds), of.count(), &buckets(of), None)?;
    }
    Ok(())
}

fn label(verb: Verb) -> [(&'static str, String); 1] {
    [("verb", verb.name().to_owned())]
}

/// Microseconds in seconds; what a number of 53 bits cannot hold is of no interest.
#[allow(clippy::cast_precision_loss, reason = "see above")]
fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

fn buckets(of: &OfVerb) -> Vec<(f64, u64)> {
    // The last one, of all longer times, is added by whoever writes them.
    BOUNDS.iter().map(|bound| seconds(*bound)).zip(of.times).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use daemon::metrics::Metrics;
    use daemon::readiness::Readiness;

    use super::*;

    fn page(calls: &PluginCalls) -> String {
        let metrics = Metrics::new("netd", "0.1.0", Readiness::new([]));
        metrics.extend(|registry| registry.register_collector(Box::new(calls.clone())));
        metrics.encode()
    }

    #[test]
    fn what_the_plugin_counted_is_shown_by_verb_time_and_code() {
        let folder = tempfile::tempdir().unwrap();
        let calls = PluginCalls::open(folder.path(), Path::new("/nowhere"));
        let path = folder.path().join(NAME);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let mut counted = Calls::default();
        for (took, error) in [(400, None), (3_000, None), (20_000_000, Some(11)), (1, Some(9))] {
            counted.count(Verb::Add, took, error);
        }
        fs::write(&path, counted.encode()).unwrap();
        let text = page(&calls);
        for line in [
            "netd_cni_calls_total{verb=\"ADD\"} 4",
            "netd_cni_calls_total{verb=\"STATUS\"} 0",
            "netd_cni_errors_total{verb=\"ADD\",code=\"11\"} 1",
            "netd_cni_errors_total{verb=\"ADD\",code=\"other\"} 1",
            "netd_cni_errors_total{verb=\"DEL\",code=\"11\"} 0",
            "netd_cni_duration_seconds_sum{verb=\"ADD\"} 20.003401",
            "netd_cni_duration_seconds_bucket{verb=\"ADD\",le=\"0.0005\"} 2",
            "netd_cni_duration_seconds_bucket{verb=\"ADD\",le=\"0.005\"} 3",
            "netd_cni_duration_seconds_bucket{verb=\"ADD\",le=\"+Inf\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}\nlacks {line}");
        }
    }

    #[test]
    fn a_file_that_is_torn_or_foreign_costs_its_numbers_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let calls = PluginCalls::open(folder.path(), Path::new("/nowhere"));
        let path = folder.path().join(NAME);
        for content in [&b"somebody else's"[..], &Calls::default().encode()[..LENGTH / 2], &[0; LENGTH]] {
            fs::write(&path, content).unwrap();
            assert!(page(&calls).contains("netd_cni_calls_total{verb=\"ADD\"} 0\n"));
            assert!(locked(&calls.said).as_ref().is_some_and(|said| said.contains("made anew")));
            assert_eq!(read(&path).unwrap(), Calls::default());
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(page(&calls).contains("netd_repairs_total 0\n"), "the other numbers are there");
        assert!(locked(&calls.said).as_ref().is_some_and(|said| said.contains("not counted")));
    }

    #[test]
    fn a_file_that_cannot_be_read_now_keeps_its_numbers_and_shows_none() {
        let folder = tempfile::tempdir().unwrap();
        let calls = PluginCalls::open(folder.path(), Path::new("/nowhere"));
        let path = folder.path().join(NAME);
        let mut counted = Calls::default();
        counted.count(Verb::Add, 400, None);
        let whole = counted.encode();
        // In the midst of a call that writes it.
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.lock().unwrap();
        fs::write(&path, [&whole[..LENGTH / 2], &[0; LENGTH / 2]].concat()).unwrap();
        assert!(!page(&calls).contains("netd_cni_calls"));
        fs::write(&path, &whole).unwrap();
        assert!(page(&calls).contains("netd_cni_calls_total{verb=\"ADD\"} 1\n"), "it is whole, whoever holds it");
        drop(writer);
        // What stands above it is no folder for a moment.
        let elsewhere = PluginCalls { path: path.join(NAME), ..calls.clone() };
        assert!(!page(&elsewhere).contains("netd_cni_calls"));
        assert!(locked(&elsewhere.said).as_ref().is_some_and(|said| said.contains("not shown")));
        assert!(page(&calls).contains("netd_cni_calls_total{verb=\"ADD\"} 1\n"));
    }

    #[test]
    fn addresses_that_pods_have_are_counted_in_the_subnet_alone() {
        let folder = tempfile::tempdir().unwrap();
        let subnet_file = folder.path().join("subnet.env");
        let calls = PluginCalls::open(folder.path(), &subnet_file);
        let calls = PluginCalls { reservations: folder.path().join("networks"), ..calls };
        let text =
            "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        fs::write(subnet_file, text).unwrap();
        assert!(!page(&calls).contains("netd_pod_addresses"), "nothing is known of Pods");
        for name in ["cbr0/172.7.21.2", "cbr0/172.7.21.3", "cbr0/lock", "cbr0/last_reserved_ip.0", "other/10.0.0.2"] {
            let path = calls.reservations.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let text = page(&calls);
        assert!(
            text.contains("netd_pod_addresses 253\n") && text.contains("netd_pod_addresses_reserved 2\n"),
            "{text}"
        );
    }
}
