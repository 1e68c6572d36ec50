//! `netdadm node` beside an API server and etcd: a node is waited for, drained as a PodDisruptionBudget lets it, and its lease goes with the host.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netdadm_etcd;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{ApiServer, Cluster, Host, Need, eventually};
use netdadm_etcd::{OPERATOR, REFERENCE, SOON, netdadm, render, start_all, store, typed};
use serde_json::{Value, json};

const NAME: &str = "hdss7-22";

fn lease(operator: &Host, node: u8) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let key = format!("/coreos.com/network/subnets/172.7.{node}.0-24");
    let value = json!({"PublicIP": format!("10.4.7.{node}"), "PublicIPv6": null, "BackendType": "host-gw"}).to_string();
    operator.within(|| Ok(runtime.block_on(store()?.put(&key, value.as_bytes(), None)).map(drop)?))?
}

fn leases(operator: &Host) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let key = "/coreos.com/network/subnets/172.7.22.0-24";
    operator.within(|| Ok(runtime.block_on(store()?.get(key))?.map(|entry| entry.key).into_iter().collect()))?
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {
        "conditions": [{"type": "Ready", "status": "True", "message": "kubelet is posting", "reason": "r"}]}})
}

/// A Pod that its kubelet would end at once.
fn pod(name: &str, owner: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": {"app": name},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": owner, "name": owner.to_lowercase(), "uid": "1", "controller": true}]},
        "spec": {"nodeName": NAME, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "i"}]},
        // A Pod that does not run yet is protected by no budget.
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn exists(server: &ApiServer, pod: &str) -> Result<bool> {
    Ok(server.ask("GET", &format!("/api/v1/namespaces/default/pods/{pod}"), None)?.code == 200)
}

fn a_node_is_drained_as_its_budgets_allow_and_its_lease_goes_with_a_host_that_is_silent() -> Result<()> {
    let cluster = Cluster::reference()?;
    let operator = cluster.host(OPERATOR)?;
    render(operator, REFERENCE)?;
    let _members = start_all(&cluster)?;
    let server = ApiServer::start(cluster.host("hdss7-11")?)?;
    operator.write("/opt/out/pki/admin.conf", server.kubeconfig().to_string())?;
    server.put(&node(NAME))?;
    lease(operator, 22)?;
    for (name, owner) in [("web", "ReplicaSet"), ("guarded", "ReplicaSet"), ("agent", "DaemonSet")] {
        server.put(&pod(name, owner))?;
    }
    let budget = json!({"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget", "metadata": {"name": "guard", "namespace": "default"},
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "guarded"}}}});
    server
        .ask(
            "POST",
            "/apis/policy/v1beta1/namespaces/default/poddisruptionbudgets",
            Some(("application/json", &budget)),
        )?
        .object()?;
    let remove = |wait: &str| netdadm(operator, &["node", "remove", NAME, "--yes", "--wait", wait])?.output();
    let held = remove("3")?;
    ensure!(
        held.status.code() == Some(2) && held.stderr.contains("held by PodDisruptionBudgets: default/guarded"),
        "{held:?}"
    );
    ensure!(held.stdout.contains("default/agent stays until its host is cleaned, it is of a DaemonSet"), "{held:?}");
    ensure!(
        held.stdout.contains("evicted default/web\n") && held.stdout.contains("default/guarded waits: 429"),
        "{held:?}"
    );
    ensure!(!exists(&server, "web")? && exists(&server, "guarded")?);
    ensure!(server.get(&format!("/api/v1/nodes/{NAME}"))?["spec"]["unschedulable"] == true);
    server.delete("/apis/policy/v1beta1/namespaces/default/poddisruptionbudgets/guard")?;
    let declined = typed(operator, &format!("node remove {NAME} --wait 60"), "n")?;
    ensure!(declined.status.code() == Some(2) && exists(&server, "guarded")?, "{declined:?}");
    let mut gone = typed(operator, &format!("node remove {NAME} --wait 60"), "y")?;
    gone.stdout = gone.stdout.replace('\r', "");
    ensure!(gone.status.success() && gone.stdout.contains("the Node is gone\n"), "{gone:?}");
    ensure!(gone.stdout.contains("its lease 172.7.22.0-24 stays: the host answers"), "{gone:?}");
    ensure!(!exists(&server, "guarded")? && exists(&server, "agent")? && leases(operator)?.len() == 1);
    ensure!(server.ask("GET", &format!("/api/v1/nodes/{NAME}"), None)?.code == 404);
    cluster.unplug(NAME)?;
    eventually(SOON, || {
        let again = remove("60")?;
        ensure!(again.status.success() && again.stdout.contains("it has no Node"), "{again:?}");
        ensure!(again.stdout.contains("its lease 172.7.22.0-24 is gone") && leases(operator)?.is_empty(), "{again:?}");
        Ok(())
    })?;
    // Another one comes.
    let added = netdadm(operator, &["node", "add", "hdss7-21", "--wait", "60"])?.start("netdadm")?;
    added.wait_for_line("waiting: it has no lease of a Pod subnet", SOON)?;
    lease(operator, 21)?;
    added.wait_for_line("waiting: it has no Node", SOON)?;
    server.put(&node("hdss7-21"))?;
    added.wait_for_line("hdss7-21 is there", SOON)?;
    ensure!(added.wait(SOON)?.success());
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![a_node_is_drained_as_its_budgets_allow_and_its_lease_goes_with_a_host_that_is_silent],
    )
}
