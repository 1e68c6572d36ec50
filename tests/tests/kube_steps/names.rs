//! Names of Services, by a resolver behind a UDP Service.
//!
//! Invariant: the resolver is dnsmasq as a Pod, with Debian's files of the machine; Pods find it by the `resolv.conf` that kubelet gives them.

use anyhow::{Context, Result, ensure};
use lab::eventually;
use serde_json::{Value, json};

use super::{clients, serve, step};
use crate::cni_node::image;
use crate::kube_cluster::load::{self, ADDRESS, NAME};
use crate::kube_cluster::{Cluster, LIMIT, NODES};

/// Where kubelet sends Pods for names.
const SERVER: &str = "192.168.0.2";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/names";

/// A Deployment whose container runs a program of the machine.
fn deployment(name: &str, replicas: usize, words: &[&str], further: &Value) -> Value {
    let folders = ["usr", "lib", "lib64"];
    let mounts = folders.map(|name| json!({"name": name, "mountPath": format!("/{name}"), "readOnly": true}));
    let volumes = folders.map(|name| json!({"name": name, "hostPath": {"path": format!("/{name}")}}));
    let mut container = json!({"name": name, "image": image::NAME, "imagePullPolicy": "Never", "command": words,
        "volumeMounts": mounts});
    for (field, value) in further.as_object().into_iter().flatten() {
        container[field] = value.clone();
    }
    let labels = json!({"app": name});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 8, "automountServiceAccountToken": false, "containers": [container], "volumes": volumes}}}})
}

/// Two resolvers behind one address, by UDP and TCP, and a Pod with clients.
fn serve_names(cluster: &Cluster) -> Result<()> {
    let address = ADDRESS.map(|byte| byte.to_string()).join(".");
    let record = format!("--address=/{NAME}/{address}");
    // The image has no list of users to choose one from.
    let words =
        ["/usr/sbin/dnsmasq", "--no-daemon", "--user=", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", &record];
    let further = json!({"readinessProbe": {"tcpSocket": {"port": 53}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "3"]}}}});
    cluster.apply(&deployment("names", 2, &words, &further))?;
    cluster.apply(&deployment("client", 1, &["sh", "-c", "trap exit TERM; sleep 3600 & wait"], &json!({})))?;
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": 53});
    cluster.apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "names"}, "spec": {"clusterIP": SERVER,
        "selector": {"app": "names"}, "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")]}}),
    )?;
    cluster.pods_of("app=names", 2).map(drop)
}

pub(crate) fn a_pod_finds_a_service_by_its_name_while_the_resolvers_are_replaced() -> Result<()> {
    step(|cluster| {
        serve(cluster, 2)?;
        serve_names(cluster)?;
        let client = cluster.pods_of("app=client", 1)?;
        let client = client.first().context("the client")?;
        // `web` is completed by the list of kubelet's resolv.conf.
        eventually(LIMIT, || {
            let said = cluster.exec(client, &["/usr/bin/curl", "-sS", "--max-time", "5", "http://web/cgi-bin/who"])?;
            ensure!(said.contains(&client.address) && said.contains(" web-"), "{said:?}");
            Ok(())
        })?;
        for transport in ["+notcp", "+tcp"] {
            let server = format!("@{SERVER}");
            let dig = ["dig", "+tries=1", "+time=5", "+short", transport, &server, NAME];
            let said = cluster.host(NODES[0])?.run(&dig)?.stdout;
            ensure!(said.trim() == "192.168.0.10", "dig {transport}: {said}");
        }
        let server = format!("dns:{SERVER}:53");
        let nodes = clients(cluster)?.map(|(host, _)| (host, server.as_str()));
        let (answered, ()) = load::without_a_failure(&nodes, || {
            cluster.roll(DEPLOYMENT, 2)?;
            cluster.pods_of("app=names", 2).map(drop)
        })?;
        println!("resolvers replaced: {answered:?} questions of the nodes were answered");
        cluster.server.delete("/api/v1/namespaces/default/services/names")?;
        for name in ["names", "client"] {
            cluster.server.delete(&format!("/apis/apps/v1/namespaces/default/deployments/{name}"))?;
        }
        for pod in cluster.pods_of("app=client", 1)? {
            cluster.server.delete(&format!("/api/v1/namespaces/default/pods/{}", pod.name))?;
        }
        cluster.pods_of("app=names", 0)?;
        cluster.pods_of("app=client", 0)?;
        Ok(())
    })
}
