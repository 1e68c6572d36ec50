//! What kube-proxy 1.36.2 did on Linux 6.18, recorded with real packets: the expected values of tests of `ipvs-proxy`.
//!
//! A folder below `cases` is one case: `objects.yaml` holds its Services and EndpointSlices in steps, `expect.json` what each client
//! got from each address after each step, in every [`Run`] of kube-proxy. Only facts were recorded; there is no code and no ruleset
//! of Kubernetes here. Everything was recorded with IPv4 and, at the same time, with an IPv6 [`twin`] of every object.
//!
//! | who | addresses (`fd00:7:21::11` for 172.7.21.11, `fd00:4:7::21` for 10.4.7.21) |
//! |---|---|
//! | n1, where kube-proxy ran, zone z1 | 10.4.7.21, 10.4.7.121 (second), 172.7.21.1 (bridge of its Pods) |
//! | its Pods p11, p12, p13 and the client `pod-n1` | 172.7.21.11, .12, .13 and .50 |
//! | n2, zone z2 | 10.4.7.22 |
//! | its Pods p21, p22, p23 and the client `pod-n2` | 172.7.22.11, .12, .13 and .50 |
//! | the client `outside` | 10.4.7.200 |
//! | Pod network, Service network, external addresses | 172.7.0.0/16, 10.96.0.0/16, 203.0.113.0/24 |
//!
//! Further cases of the same making, in the form in which they were recorded or in the shorter one of those here, are read from the
//! folder that the variable `NETD_ORACLE` names. With `NETD_ORACLE_ONLY`, as `47 56-proxy`, there are only the cases whose names begin so.
//!
//! Invariant: a value that the files have and the loader does not know (an outcome, a run) is an error, or equal to nothing that a client
//! can see (a source, who refused), and never read over.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this crate is for tests, which may fail by panic"
)]

mod expect;
pub mod script;
pub mod twin;

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs};

use cluster::manifest::{self, Form, Kind};
use serde_json::{Value, json};

pub use expect::{Outcome, Probe, Refusal, Run, Seen, Source};
pub use script::Script;

/// A recorded case.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its number and name.
    pub name: String,
    /// The runs in which it was recorded.
    pub runs: Vec<Run>,
    /// Its steps in order; each keeps the objects of the one before.
    pub steps: Vec<Step>,
}

/// A step of a case.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// The result was the same whenever it was recorded.
    pub determined: bool,
    /// The API server took its objects.
    pub accepted: bool,
    /// The zone of n1 by the label of its Node.
    pub zone: Option<String>,
    /// Objects that go, as `Service/default/web`, before others come; IPv4 only, as [`Step::put`].
    pub deleted: Vec<String>,
    /// Objects that come or change.
    pub put: Vec<Object>,
    /// What was tried.
    pub probes: Vec<Probe>,
    /// What was done and tried afterwards, beyond the objects of the step.
    pub script: Script,
}

/// An object of a case.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its key, as `Service/default/web`.
    pub key: String,
    /// The object, of IPv4. Its creation time says in which order the objects were made.
    pub json: Value,
}

const KINDS: [Kind; 2] = [
    Kind { group: "", versions: &["v1"], name: "Service", namespaced: true },
    Kind { group: "discovery.k8s.io", versions: &["v1"], name: "EndpointSlice", namespaced: true },
];

/// Names a folder with further cases.
const FURTHER: &str = "NETD_ORACLE";
/// Beginnings of the names of the only cases to play, with blanks between; all without it.
const ONLY: &str = "NETD_ORACLE_ONLY";

/// All cases in the order of their numbers.
///
/// # Panics
/// When a file is not as described.
#[must_use]
pub fn cases() -> Vec<Case> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut cases = read(&own);
    if let Some(further) = env::var_os(FURTHER) {
        cases.append(&mut read(Path::new(&further)));
    }
    if let Ok(only) = env::var(ONLY) {
        cases.retain(|case| only.split_whitespace().any(|begins| case.name.starts_with(begins)));
        assert!(!cases.is_empty(), "{ONLY}={only:?}: no case begins like that");
    }
    cases.sort_by(|one, other| one.name.cmp(&other.name));
    cases
}

fn read(root: &Path) -> Vec<Case> {
    let folders = fs::read_dir(root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    folders.map(|entry| case(&entry.unwrap().path())).collect()
}

fn case(folder: &Path) -> Case {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
    let expected: expect::Case =
        serde_json::from_str(&read("expect.json")).unwrap_or_else(|error| panic!("{name}: {error}"));
    let objects = read("objects.yaml");
    let mut texts = objects.split("# ==== step: ").skip(1);
    let (mut created, mut zone) = (BTreeMap::new(), Some("z1".to_owned()));
    let steps = expected.steps.into_iter().map(|step| {
        let text = texts.next().unwrap_or_else(|| panic!("{name}: no objects of step {:?}", step.name));
        let (title, text) = text.split_once('\n').unwrap_or((text, ""));
        assert_eq!(title.trim(), step.name, "{name}");
        if let Some(change) = step.name.strip_prefix("node label zone ") {
            zone = change.strip_prefix("changed to ").map(str::to_owned);
        }
        Step {
            deleted: deleted(text, &mut created),
            put: objects_of(&name, text, &mut created),
            zone: zone.clone(),
            name: step.name.clone(),
            determined: step.determined,
            accepted: step.api_refused.is_none(),
            script: step.script,
            probes: step.probes,
        }
    });
    Case { steps: steps.collect(), name, runs: expected.runs }
}

fn deleted(text: &str, created: &mut BTreeMap<String, usize>) -> Vec<String> {
    let key = |line: &str| {
        let (kind, name) = line.strip_prefix("# delete ")?.split_once(' ')?;
        let key = format!("{kind}/default/{}", name.trim());
        created.remove(&key);
        Some(key)
    };
    text.lines().filter_map(key).collect()
}

fn objects_of(case: &str, text: &str, created: &mut BTreeMap<String, usize>) -> Vec<Object> {
    let read = manifest::parse(Form::Yaml, text.as_bytes(), &KINDS).unwrap_or_else(|error| panic!("{case}: {error}"));
    assert!(read.problems.is_empty() && read.duplicates.is_empty() && read.unused.is_empty(), "{case}: {read:?}");
    let object = |object: manifest::Object| {
        let mut json: Value = serde_json::from_slice(&object.json).unwrap();
        let next = created.values().max().map_or(0, |last| last + 1);
        let number = *created.entry(object.key.clone()).or_insert(next);
        json["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T{:02}:{:02}:00Z", number / 60, number % 60));
        Object { key: object.key, json }
    };
    read.objects.into_iter().map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_read_as_it_was_recorded() {
        let text = r#"{"case": "a", "what": "b", "runs": ["nftables", "iptables"], "steps": [{"step": "all", "ruleset": {"nftables": {"bytes": 1}},
            "probes": [{"client": "pod-n1", "dest": "clusterIP", "addr": "10.96.7.1:80/tcp", "n": 40, "outcome": "answered",
                "endpoints": {"p11": 14, "p21": 26}, "source": {"n1-bridge": 14, "n1-eth0": 26}, "ipv6": "same",
                "differs": {"iptables": {"n": 12, "outcome": "refused", "by": "icmp 3/13", "fail_ms": [0, 1]}}}]}]}"#;
        let case: expect::Case = serde_json::from_str(text).unwrap();
        assert_eq!(case.runs, [Run::Plain]);
        let seen = case.steps[0].probes[0].seen(Run::Plain, netstate::IpFamily::V6);
        assert_eq!(seen.endpoints, ["p11", "p21"].map(str::to_owned).into());
        assert_eq!(seen.source, [Source::N1Bridge, Source::N1Eth0].into());
    }

    #[test]
    fn every_case_is_read_whole() {
        let cases = cases();
        let probes = cases.iter().flat_map(|case| &case.steps).flat_map(|step| &step.probes);
        assert!((cases.len(), probes.count()) >= (53, 832));
        let scripts = cases.iter().flat_map(|case| &case.steps).filter(|step| !matches!(step.script, Script::None));
        assert!(scripts.clone().count() >= 8);
        assert_eq!(scripts.filter(|step| matches!(step.script, Script::Unknown(_))).count(), 0);
    }
}
