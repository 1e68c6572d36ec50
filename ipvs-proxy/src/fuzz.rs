//! What anybody may write into etcd, a manifest or a flag: the parsers for fuzzing, each by the name of its corpus in `fuzz/`.
//!
//! Invariant: every input is answered, by a value or by a reason of bounded length; what was read is planned down to rows as well.

use std::collections::{BTreeMap, BTreeSet};

use cluster::manifest::{self, Form};
use netstate::family::PerFamily;
use netstate::nft::RowKey;
use netstate::{IfName, IpFamily};
use serde_json::{Value, json};

use crate::command::duration;
use crate::command::settings::{Settings, document};
use crate::dataplane::{DataPlane, Guards, Mode, NodeAddresses, Options, record, vip};
use crate::object::key::{Kind, ObjectKey};
use crate::object::node::Node;
use crate::object::service::Service;
use crate::object::service_cidr;
use crate::object::slice::EndpointSlice;
use crate::plan::here::Here;
use crate::plan::pods::Pods;
use crate::plan::{Claims, plan};

/// Every parser by the name of its corpus.
#[allow(unreachable_pub, clippy::type_complexity, reason = "public with the feature, and a pair is no noun")]
pub const TARGETS: [(&str, fn(&[u8])); 8] = [
    ("configuration", configuration),
    ("duration", period),
    ("endpoint_slice", endpoint_slice),
    ("manifest", objects),
    ("node", node),
    ("object_key", object_key),
    ("service", service),
    ("service_cidr", networks),
];

/// The longest reason, in bytes: an operator reads it in a log and in the status.
const LONGEST: usize = 1000;

fn answers<T>(outcome: Result<T, impl ToString>) -> Option<T> {
    outcome.inspect_err(|error| assert!(error.to_string().len() <= LONGEST, "{}", error.to_string())).ok()
}

fn period(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(duration) = duration::parse(&text) {
        let written = format!("{}s{}ms", duration.as_secs(), duration.subsec_millis());
        assert_eq!(duration::parse(&written), Some(duration), "{text:?} as {written}");
    }
}

fn configuration(input: &[u8]) {
    let document = document::parse(&String::from_utf8_lossy(input));
    let (settings, notes) = Settings::new(BTreeMap::new(), Some(&document), true);
    for problem in document.problems.into_iter().chain(settings.problems()) {
        answers(Err::<(), _>(problem));
    }
    drop(notes);
    let Ok(text) = settings.write() else { return };
    let again = Settings::new(BTreeMap::new(), Some(&document::parse(&text)), true).0;
    if settings.problems().is_empty() {
        assert_eq!(settings.differences(&again), (Vec::new(), Vec::new()), "what is written reads the same: {text}");
    }
}

fn object_key(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(key) = ObjectKey::from_etcd(&text) {
        assert_eq!(format!("{}/{}", key.kind.folder(), key.name), text, "what is read is written back");
    }
    if let Some(key) = ObjectKey::from_manifest(&text) {
        assert_eq!(format!("{}/{}", key.kind.name(), key.name), text, "what is read is written back");
    }
}

fn objects(input: &[u8]) {
    for form in [Form::Yaml, Form::Json] {
        let Some(read) = answers(manifest::parse(form, input, &Kind::IN_MANIFESTS)) else { continue };
        for problem in read.problems {
            answers(Err::<(), _>(problem));
        }
        for object in read.objects {
            assert!(serde_json::from_slice::<Value>(&object.json).is_ok_and(|json| json.is_object()), "{}", object.key);
            service(&object.json);
            endpoint_slice(&object.json);
            node(&object.json);
        }
    }
}

fn service(input: &[u8]) {
    let Ok(json) = serde_json::from_slice::<Value>(input) else { return };
    let Some(service) = answers(Service::from_json(&json)) else { return };
    assert!(service.skipped.iter().all(|reason| reason.len() <= LONGEST));
    let names: Vec<Value> =
        json.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten().map(port).collect();
    let slice = json!({
        "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [{"addresses": ["172.7.21.2"]}], "ports": names,
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
    });
    serve(&service, EndpointSlice::from_json(&slice).ok());
}

fn node(input: &[u8]) {
    let Ok(json) = serde_json::from_slice::<Value>(input) else { return };
    let Some(node) = answers(Node::from_json(&json)) else { return };
    assert!(node.skipped.iter().all(|reason| reason.len() <= LONGEST));
    assert!(node.addresses.present().all(|(family, addr)| IpFamily::of(*addr) == family), "{node:?}");
    assert!(node.pods.present().all(|(family, network)| network.family() == family), "{node:?}");
}

fn networks(input: &[u8]) {
    let Some(networks) = answers(service_cidr::read(&String::from_utf8_lossy(input))) else { return };
    assert!(networks.iter().all(|network| network.len() > 0), "{networks:?}");
}

/// A slice's port for a Service's.
fn port(of: &Value) -> Value {
    json!({"name": of["name"], "protocol": of["protocol"], "port": 8080})
}

fn endpoint_slice(input: &[u8]) {
    let Ok(json) = serde_json::from_slice::<Value>(input) else { return };
    let Some(slice) = answers(EndpointSlice::from_json(&json)) else { return };
    assert!(slice.skipped.iter().all(|reason| reason.len() <= LONGEST));
    let ports: Vec<Value> =
        json.get("ports").and_then(Value::as_array).into_iter().flatten().take(10).map(service_port).collect();
    let service =
        json!({"kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": "192.168.0.10", "ports": ports}});
    if let Ok(service) = Service::from_json(&service) {
        serve(&service, Some(slice));
    }
}

fn service_port(of: &Value) -> Value {
    json!({"name": of["name"], "protocol": of["protocol"], "port": 80})
}

/// Plans the Service down to rows of either data path, and takes it away again.
fn serve(service: &Service, slice: Option<EndpointSlice>) {
    let Ok(link) = IfName::new(vip::LINK_NAME) else { return };
    let Ok(pods) = "172.7.0.0/16".parse().map(Pods::Inside) else { return };
    let pods = PerFamily::only(IpFamily::V4, pods);
    for mode in [Mode::Ipvs, Mode::Nftables] {
        let options = Options {
            mode,
            link: link.clone(),
            scheduler: "rr".to_owned().into(),
            pods: pods.clone(),
            services: PerFamily::default(),
            local: Vec::new(),
            node: NodeAddresses::default(),
            announced: std::collections::BTreeSet::new(),
            guards: Guards::default(),
        };
        serve_on(DataPlane::new(options), service, slice.clone());
    }
}

fn serve_on(mut plane: DataPlane, service: &Service, slice: Option<EndpointSlice>) {
    let here = Here::on("hdss7-21.host.com");
    let mut claims = Claims::default();
    let slices: Vec<EndpointSlice> = slice.into_iter().collect();
    let made = plane.rows(&claims.settle(&service.name, Some(plan(service, &service.cluster_ips, &slices, &here))));
    let recorded = made.nft.iter().filter(|(key, _)| record::server(key).is_some());
    for (_, row) in recorded {
        let name = row.as_ref().and_then(record::service);
        assert_eq!(name.as_ref(), Some(&service.name), "whose a virtual server is must be read back");
    }
    let gone = plane.rows(&claims.settle(&service.name, None));
    let keys = |rows: &std::collections::BTreeMap<RowKey, _>| rows.keys().cloned().collect::<BTreeSet<_>>();
    assert!(keys(&made.nft) == keys(&gone.nft) && made.ipvs.keys().eq(gone.ipvs.keys()), "all of it goes again");
    assert!(gone.ipvs.values().all(Option::is_none) && gone.nft.values().all(Option::is_none));
}

#[cfg(test)]
mod tests {
    #[test]
    fn whatever_is_written_is_answered() {
        ::fuzz::check_all(env!("CARGO_MANIFEST_DIR"), &super::TARGETS);
    }
}
