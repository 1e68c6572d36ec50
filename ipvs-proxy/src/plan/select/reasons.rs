//! Why an endpoint takes connections or does not, for who asks about one.
//!
//! Invariant: an endpoint has a reason exactly when the choice leaves it out: both are read from the same candidates.

use std::fmt;

use super::{Backend, Candidate, Choice, EndpointSlice, Here, IpFamily, Locality, Nearest, ServicePort, candidates};

/// An endpoint with what keeps it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judged {
    /// Where it is.
    pub(crate) backend: Backend,
    /// Why clients that may use the whole cluster are not led to it.
    pub(crate) cluster: Option<Reason>,
    /// Why clients that may use this node's endpoints only are not.
    pub(crate) local: Option<Reason>,
}

/// What keeps an endpoint out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It is not ready, and not on its way out.
    NotReady,
    /// It is on its way out, and a ready one exists.
    Terminating,
    /// It is on its way out and serves no more.
    Gone,
    /// Hints mean it for clients on other nodes.
    OtherNodes,
    /// Hints mean it for clients of other zones.
    OtherZones,
    /// It is not on this node, which the policy asks for.
    Elsewhere,
    /// Nobody says on which node it is, and the policy asks for this one.
    Unknown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReady => "not ready",
            Self::Terminating => "terminating, and another one is ready",
            Self::Gone => "terminating, and serves no more",
            Self::OtherNodes => "hints mean it for clients on other nodes",
            Self::OtherZones => "hints mean it for clients of other zones",
            Self::Elsewhere => "on another node, and the policy is Local",
            Self::Unknown => "its node is unknown, and the policy is Local",
        })
    }
}

impl Candidate {
    /// Why it is out of a list; `far` says so of one that is ready.
    fn reason(self, far: Reason) -> Reason {
        match (self.ready, self.terminating, self.serving) {
            (true, ..) => far,
            (false, true, true) => Reason::Terminating,
            (false, true, false) => Reason::Gone,
            (false, false, _) => Reason::NotReady,
        }
    }
}

/// Every endpoint of a Service port, in order of address and port.
#[must_use]
pub(crate) fn judged<'a>(
    port: &ServicePort,
    family: IpFamily,
    slices: impl IntoIterator<Item = &'a EndpointSlice> + Clone,
    here: &Here,
) -> Vec<Judged> {
    let choice = Choice::of(port, family, slices.clone(), here);
    let all = candidates(port, family, slices, here);
    let far = match Nearest::of(&all) {
        Nearest::Node => Reason::OtherNodes,
        Nearest::Zone | Nearest::Any => Reason::OtherZones,
    };
    let judge = |(&(addr, port), candidate): (&(std::net::IpAddr, u16), &Candidate)| {
        let backend = Backend { addr, port, weight: super::WEIGHT, locality: candidate.locality };
        let elsewhere = match candidate.locality {
            Locality::Here => candidate.reason(far),
            Locality::Unknown => Reason::Unknown,
            Locality::Elsewhere => Reason::Elsewhere,
        };
        Judged {
            backend,
            cluster: (!choice.cluster.contains(&backend)).then(|| candidate.reason(far)),
            local: (!choice.local.contains(&backend)).then_some(elsewhere),
        }
    };
    all.iter().map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::service::Service;
    use serde_json::json;

    fn service() -> Service {
        Service::from_json(&json!({"kind": "Service", "metadata": {"name": "web"},
            "spec": {"clusterIP": "192.168.0.10", "ports": [{"port": 80}]}}))
        .unwrap()
    }

    fn reasons(endpoints: serde_json::Value) -> Vec<(String, String)> {
        let slice = EndpointSlice::from_json(&json!({"kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"port": 8080}], "endpoints": endpoints}))
        .unwrap();
        let service = service();
        let here = Here { zone: Some("z1".to_owned()), ..Here::on("n1") };
        let text = |reason: Option<Reason>| reason.map_or_else(|| "takes".to_owned(), |reason| reason.to_string());
        let all = judged(&service.ports[0], IpFamily::V4, [&slice], &here);
        all.iter().map(|judged| (text(judged.cluster), text(judged.local))).collect()
    }

    #[test]
    fn each_endpoint_that_is_out_has_its_reason_and_no_other_one_has() {
        let pair = |cluster: &str, local: &str| (cluster.to_owned(), local.to_owned());
        let found = reasons(json!([
            {"addresses": ["172.7.21.2"], "nodeName": "n1"},
            {"addresses": ["172.7.21.3"], "nodeName": "n1", "conditions": {"ready": false}},
            {"addresses": ["172.7.21.4"], "nodeName": "n1", "conditions": {"ready": false, "terminating": true}},
            {"addresses": ["172.7.21.5"], "nodeName": "n1", "conditions": {"ready": false, "serving": false, "terminating": true}},
            {"addresses": ["172.7.22.2"], "nodeName": "n2"},
            {"addresses": ["172.7.22.3"]},
        ]));
        assert_eq!(
            found,
            [
                pair("takes", "takes"),
                pair("not ready", "not ready"),
                pair("terminating, and another one is ready", "terminating, and another one is ready"),
                pair("terminating, and serves no more", "terminating, and serves no more"),
                pair("takes", "on another node, and the policy is Local"),
                pair("takes", "its node is unknown, and the policy is Local"),
            ]
        );
        let meant = |hints: serde_json::Value, other: serde_json::Value| {
            reasons(
                json!([{"addresses": ["172.7.21.2"], "hints": hints}, {"addresses": ["172.7.22.2"], "hints": other}]),
            )
        };
        let zones = meant(json!({"forZones": [{"name": "z1"}]}), json!({"forZones": [{"name": "z2"}]}));
        assert_eq!(zones[1].0, "hints mean it for clients of other zones");
        let nodes = meant(json!({"forNodes": [{"name": "n1"}]}), json!({"forNodes": [{"name": "n2"}]}));
        assert_eq!(nodes[1].0, "hints mean it for clients on other nodes");
        // Not every endpoint is meant for a node, so zones decide.
        let both = json!({"forNodes": [{"name": "n1"}], "forZones": [{"name": "z1"}]});
        assert_eq!(meant(both, json!({"forZones": [{"name": "z2"}]}))[1].0, "hints mean it for clients of other zones");
        let last = reasons(json!([{"addresses": ["172.7.21.4"], "conditions": {"ready": false, "terminating": true}}]));
        assert_eq!(last[0].0, "takes");
    }
}
