//! `configs/kubernetes` on a real API server: it takes every object whole, and what our daemons ask it for, started as the DaemonSets start
//! them and as their accounts, is what their roles allow: no call less, no right more.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod rendered;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::kubernetes::{ApiServer, Release};
use lab::{Cluster, Host, Need, Process, bin, eventually};
use rendered::{Objects, compare, list_at, overlays, rights, text_at, words};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const NODE: &str = "hdss7-21.host.com";
const AUDIT: &str = "/run/audit.log";

/// A server that writes down who asks it for what.
fn audited(cluster: &Cluster) -> Result<ApiServer> {
    let host = cluster.host("hdss7-200")?;
    host.write(
        "/run/audit.yaml",
        r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}"#,
    )?;
    let flags = ["--audit-policy-file=/run/audit.yaml", &format!("--audit-log-path={AUDIT}")];
    ApiServer::start_with(host, Release::V1_20, &flags)
}

fn objects_of(overlay: &str) -> Result<Objects> {
    let found = overlays()?.into_iter().find(|(name, _)| name == overlay);
    Ok(found.with_context(|| format!("no overlay {overlay}"))?.1)
}

/// Starts the program of a DaemonSet on the node, as that starts it.
fn start(server: &ApiServer, node: &Host, objects: &Objects, name: &str, further: &[&str]) -> Result<Process> {
    let set = &objects[&("DaemonSet".to_owned(), name.to_owned())];
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let data = &objects[&("ConfigMap".to_owned(), name.to_owned())]["data"];
    let at = list_at(container, "/volumeMounts").find(|mount| mount["name"] == "config").context("its files")?;
    for (file, text) in data.as_object().unwrap() {
        node.write(format!("{}/{file}", text_at(at, "/mountPath")?), text.as_str().unwrap())?;
    }
    let line: Vec<String> = words(container).iter().map(|word| word.replace("$(NODE_NAME)", NODE)).collect();
    let mut command = node.command(bin(&line[0])?).args(&line[1..]).args(further).env("NODE_NAME", NODE);
    for (variable, value) in server.in_cluster(node, ("kube-system", name), server.address())? {
        command = command.env(variable, value);
    }
    command.start(name)
}

/// Waits until the probes of the DaemonSet are answered.
fn ready(node: &Host, objects: &Objects, name: &str) -> Result<()> {
    let container = &objects[&("DaemonSet".to_owned(), name.to_owned())]["spec"]["template"]["spec"]["containers"][0];
    let port = &container["ports"][0]["containerPort"];
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let path = text_at(container, &format!("/{probe}/httpGet/path"))?;
        let url = format!("http://127.0.0.1:{port}{path}");
        eventually(SOON, || node.run(&["curl", "-fsS", "--max-time", "5", &url]).map(drop)).context(probe)?;
    }
    Ok(())
}

fn server_takes_every_object_of_every_overlay_as_it_is_written() -> Result<()> {
    let cluster = Cluster::reference()?;
    let server = audited(&cluster)?;
    for (overlay, objects) in overlays()? {
        for (key, object) in &objects {
            let stored = server.put(object).with_context(|| format!("{overlay}: {key:?}"))?;
            let mut lost = Vec::new();
            compare(object, &stored, "", &mut lost);
            ensure!(lost.is_empty(), "{overlay}: {key:?}: {lost:#?}");
        }
    }
    Ok(())
}

fn rights_of_netd_are_exactly_the_calls_of_a_run() -> Result<()> {
    let cluster = Cluster::reference()?;
    let (server, node, objects) = (audited(&cluster)?, cluster.host("hdss7-21")?, objects_of("kubeadm")?);
    for (_, object) in objects.iter().filter(|((kind, _), _)| kind != "DaemonSet") {
        server.put(object)?;
    }
    server.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}))?;
    let netd = start(&server, node, &objects, "netd", &["--iface=eth0"])?;
    // A Node without a podCIDR is what an operator must act on.
    eventually(2 * SOON, || {
        let events = server.get("/api/v1/namespaces/default/events")?;
        ensure!(list_at(&events, "/items").any(|event| event["involvedObject"]["name"] == NODE), "{events}");
        Ok(())
    })?;
    server.patch(
        &format!("/api/v1/nodes/{NODE}"),
        &json!({"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}}),
    )?;
    ready(node, &objects, "netd").with_context(|| netd.log())?;
    eventually(SOON, || {
        let own = server.get(&format!("/api/v1/nodes/{NODE}"))?;
        let stands = |condition: &Value| condition["type"] == "NetworkUnavailable" && condition["status"] == "False";
        ensure!(list_at(&own, "/status/conditions").any(stands), "{own}");
        Ok(())
    })?;
    eventually(SOON, || {
        let (used, allowed) = (rights::used(&server.host().read(AUDIT)?, "netd")?, rights::allowed(&objects, "netd"));
        ensure!(used == allowed, "netd used {used:?} and may {allowed:?}");
        Ok(())
    })
}

fn rights_of_the_proxy_are_exactly_the_calls_of_a_run() -> Result<()> {
    let cluster = Cluster::reference()?;
    let (server, node, objects) = (audited(&cluster)?, cluster.host("hdss7-21")?, objects_of("reference")?);
    for (_, object) in objects.iter().filter(|((kind, _), _)| kind != "DaemonSet") {
        server.put(object)?;
    }
    server.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}))?;
    let web = json!({"clusterIP": "192.168.0.10", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}]});
    server.put(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": web}))?;
    let proxy = start(&server, node, &objects, "ipvs-proxy", &[])?;
    ready(node, &objects, "ipvs-proxy").with_context(|| proxy.log())?;
    proxy.wait_for_line("ready", SOON)?;
    // It reports its start.
    eventually(SOON, || {
        let used = rights::used(&server.host().read(AUDIT)?, "ipvs-proxy")?;
        let allowed = rights::served_by_1_20(rights::allowed(&objects, "ipvs-proxy"));
        ensure!(used == allowed, "ipvs-proxy used {used:?} and may {allowed:?}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::Suite::new(&[Need::Vxlan, Need::Nftables])
        .with_kubernetes(Release::V1_20)
        .with_kubernetes_tools()
        .run(lab::tests![
            server_takes_every_object_of_every_overlay_as_it_is_written,
            rights_of_netd_are_exactly_the_calls_of_a_run,
            rights_of_the_proxy_are_exactly_the_calls_of_a_run,
        ])
}
