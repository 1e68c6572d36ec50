//! `Drain`: which Pods of a node are evicted, which stay, and which would be lost.
//!
//! Pure. Invariant: the same rules as `kubectl drain` (kubectl/pkg/drain/filters.go): nothing goes that nothing makes again, and no data
//! of an emptyDir, unless somebody said so.

use serde::Deserialize;

/// A Pod, as far as it is asked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    metadata: Metadata,
    spec: Spec,
    status: Progress,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    namespace: String,
    owner_references: Vec<Reference>,
    annotations: std::collections::BTreeMap<String, String>,
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Reference {
    kind: String,
    controller: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Spec {
    volumes: Vec<Volume>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Volume {
    empty_dir: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Progress {
    phase: String,
}

/// A kubelet's own Pods have it (kubelet/types/constants.go).
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What becomes of a node's Pods.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    /// Evicted.
    pub(crate) evicted: Vec<Pod>,
    /// On their way out already.
    pub(crate) ending: Vec<Pod>,
    /// Left to who made them, with the reason.
    pub(crate) left: Vec<(String, &'static str)>,
    /// Of those that are evicted: what nothing brings back, with the reason.
    pub(crate) lost: Vec<(String, &'static str)>,
}

impl Pod {
    /// `NAMESPACE/NAME`.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Where it is evicted.
    pub(crate) fn eviction(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}/eviction", self.metadata.namespace, self.metadata.name)
    }

    /// The object that asks for it.
    pub(crate) fn request(&self, version: &str) -> serde_json::Value {
        let Metadata { name, namespace, .. } = &self.metadata;
        serde_json::json!({"apiVersion": version, "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}})
    }
}

impl Drain {
    /// What becomes of these.
    pub(crate) fn of(pods: Vec<Pod>) -> Self {
        let mut drain = Self::default();
        for pod in pods {
            let controller = pod.metadata.owner_references.iter().find(|owner| owner.controller);
            if pod.metadata.annotations.contains_key(MIRROR) {
                drain.left.push((pod.label(), "a file of its kubelet"));
            } else if controller.is_some_and(|owner| owner.kind == "DaemonSet") {
                drain.left.push((pod.label(), "a DaemonSet"));
            } else if pod.metadata.deletion_timestamp.is_some() {
                drain.ending.push(pod);
            } else {
                let is_over = ["Succeeded", "Failed"].contains(&pod.status.phase.as_str());
                if controller.is_none() && !is_over {
                    drain.lost.push((pod.label(), "no controller makes it again"));
                } else if pod.spec.volumes.iter().any(|volume| volume.empty_dir.is_some()) && !is_over {
                    drain.lost.push((pod.label(), "its emptyDir"));
                }
                drain.evicted.push(pod);
            }
        }
        drain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_evicted_left_or_would_be_lost() {
        let pod = |name: &str, more: &str, spec: &str, phase: &str| -> Pod {
            let text = format!(
                r#"{{"metadata":{{"name":"{name}","namespace":"d"{more}}},"spec":{{{spec}}},"status":{{"phase":"{phase}"}}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let owner = |kind: &str| format!(r#","ownerReferences":[{{"kind":"{kind}","controller":true,"uid":"u"}}]"#);
        let empty = r#""volumes":[{"name":"a","configMap":{}},{"name":"b","emptyDir":{}}]"#;
        let drain = Drain::of(vec![
            pod("web", &owner("ReplicaSet"), r#""volumes":[{"name":"a","configMap":{}}]"#, "Running"),
            pod("agent", &owner("DaemonSet"), "", "Running"),
            pod("static", r#","annotations":{"kubernetes.io/config.mirror":"x"}"#, "", "Running"),
            pod("alone", "", "", "Running"),
            pod("over", "", empty, "Succeeded"),
            pod("scratch", &owner("StatefulSet"), empty, "Running"),
            pod("ending", r#","deletionTimestamp":"2026-11-27T10:00:00Z""#, "", "Running"),
        ]);
        let names = |pods: &[Pod]| pods.iter().map(Pod::label).collect::<Vec<_>>();
        assert_eq!(names(&drain.evicted), ["d/web", "d/alone", "d/over", "d/scratch"]);
        assert_eq!(names(&drain.ending), ["d/ending"]);
        assert_eq!(
            drain.left,
            [("d/agent".to_owned(), "a DaemonSet"), ("d/static".to_owned(), "a file of its kubelet")]
        );
        assert_eq!(
            drain.lost,
            [("d/alone".to_owned(), "no controller makes it again"), ("d/scratch".to_owned(), "its emptyDir")]
        );
        assert_eq!(drain.evicted[0].eviction(), "/api/v1/namespaces/d/pods/web/eviction");
    }
}
