//! `ipvs-proxy` on real API servers: what is read, outages and faults on the way, older servers, credentials that are replaced.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;
mod proxy_api;

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::harness::Suite;
use lab::kubernetes::{ApiServer, Fault, Faults, Kubeconfig, Release};
use lab::{Need, Process, eventually};
use proxy::{Nodes, SOON, spread};
use proxy_api::access::{
    a_server_of_several_addresses_and_one_of_another_context_take_over,
    certificates_that_are_replaced_in_their_files_are_used_without_a_restart,
    the_api_server_is_reached_through_a_proxy_of_the_environment,
};
use proxy_api::events::what_somebody_must_act_on_is_an_event_of_the_service_or_the_node;
use proxy_api::node::labels_taints_and_the_end_of_the_node_are_followed;
use proxy_api::rights::each_right_that_is_missing_is_named_with_what_grants_it;
use proxy_api::service_cidr::{
    service_cidrs_of_a_server_of_1_31_are_followed_in_its_version, service_cidrs_of_the_api_are_followed,
};
use proxy_api::silence::a_change_does_not_wait_while_a_silent_server_is_asked_whether_it_is_there;
use proxy_api::store::an_api_server_without_its_etcd_is_named_and_services_go_on;
use proxy_api::versions::{
    a_version_that_is_gone_is_listed_anew_without_a_moment_of_emptiness,
    a_watch_that_shows_nothing_goes_on_at_its_last_bookmark, services_are_those_of_a_state_that_was_restored,
};
use serde_json::{Value, json};

const KUBECONFIG: &str = "/etc/kubeconfig";
const SLICE: &str = "namespaces/default/endpointslices/web-1";
/// Requests of the watches, which are also those of streaming lists.
const SERVICES: &str = "/api/v1/services?";

fn service(name: &str, address: &str) -> Value {
    let spec = json!({"clusterIP": address, "selector": {"app": name}, "ports": [{"name": "http", "port": 80}]});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// The EndpointSlice of the Service `web` with these endpoints, in the form that the server has.
fn slice(release: Release, addresses: &[&str]) -> Value {
    let endpoints: Vec<_> =
        addresses.iter().map(|at| json!({"addresses": [at], "conditions": {"ready": true}})).collect();
    json!({"apiVersion": release.slices(), "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]})
}

/// Starts the proxy with a kubeconfig, and waits until it is ready.
fn start(nodes: &Nodes, kubeconfig: &Kubeconfig) -> Result<Process> {
    let proxy = begin(nodes, kubeconfig)?;
    proxy.wait_for_line("ready", SOON)?;
    Ok(proxy)
}

fn begin(nodes: &Nodes, kubeconfig: &Kubeconfig) -> Result<Process> {
    let node = nodes.node()?;
    node.write(KUBECONFIG, kubeconfig.to_string())?;
    let command = node.command(lab::bin("ipvs-proxy")?).arg(format!("--kubeconfig={KUBECONFIG}"));
    command.args(["--proxy-mode=nftables", "--cluster-cidr=172.7.0.0/16", "-v1"]).start("ipvs-proxy")
}

/// Waits until exactly these Pods answer for the Service.
fn answered_by(nodes: &Nodes, pods: &[&str]) -> Result<()> {
    let wanted: BTreeSet<_> = pods.iter().map(|pod| (*pod).to_owned()).collect();
    eventually(2 * SOON, || {
        let seen: BTreeSet<_> = spread(nodes.outside()?, 12)?.into_keys().collect();
        ensure!(seen == wanted, "{seen:?}");
        Ok(())
    })
}

/// Waits until the status says that the source is out of reach, with this text.
fn lost(nodes: &Nodes, part: &str) -> Result<()> {
    eventually(3 * SOON, || {
        let status = nodes.status()?;
        ensure!(status["lost"].as_str().is_some_and(|text| text.contains(part)), "{}", status["lost"]);
        Ok(())
    })
}

fn in_reach(nodes: &Nodes) -> Result<()> {
    eventually(2 * SOON, || {
        let status = nodes.status()?;
        ensure!(status["lost"].is_null(), "{}", status["lost"]);
        Ok(())
    })
}

fn served_by_release(release: Release) -> Result<()> {
    let (server, nodes) = (ApiServer::shared(release)?, Nodes::start()?);
    let faults = Faults::start(&server, nodes.node()?)?;
    server.put(&service("web", "192.168.0.10"))?;
    let mut of_web = slice(release, &["172.7.21.2", "172.7.22.2"]);
    // On a slice it says nothing (case 40 of the recorded kube-proxy).
    of_web["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("other");
    server.put(&of_web)?;
    for (name, address, label) in [
        ("other", "192.168.0.11", "service.kubernetes.io/service-proxy-name"),
        ("headless", "192.168.0.12", "service.kubernetes.io/headless"),
    ] {
        let mut object = service(name, address);
        object["metadata"]["labels"] = json!({label: ""});
        server.put(&object)?;
        let mut slice = slice(release, &["172.7.21.9"]);
        slice["metadata"] =
            json!({"name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name, label: ""}});
        server.put(&slice)?;
        // The controller of slices puts no label of a headless one on those of a Service with an address.
        slice["metadata"] = json!({"name": format!("{name}-2"), "labels": {"kubernetes.io/service-name": name}});
        server.put(&slice)?;
    }
    let _proxy = start(&nodes, &faults.kubeconfig())?;
    answered_by(&nodes, &["172.7.21.2", "172.7.22.2"])?;
    let tables = nodes.node()?.command(lab::bin("ipvs-proxy")?).args(["tables", "--json"]).run()?.stdout;
    ensure!(!tables.contains("192.168.0.11") && !tables.contains("172.7.21.9"), "what is not selected is not served");
    ensure!(tables.contains("192.168.0.12"), "a Service that is labelled as headless refuses (case 41)");
    server.put(&slice(release, &["172.7.22.3"]))?;
    answered_by(&nodes, &["172.7.22.3"])?;
    server.delete(&format!("/apis/{}/{SLICE}", release.slices()))?;
    server.delete("/api/v1/namespaces/default/services/web")?;
    eventually(SOON, || {
        let tables = nodes.node()?.command(lab::bin("ipvs-proxy")?).args(["tables", "--json"]).run()?.stdout;
        ensure!(!tables.contains("192.168.0.10"), "{tables}");
        Ok(())
    })?;
    let targets: Vec<_> = faults.seen().into_iter().map(|seen| seen.target).collect();
    let streams = targets.iter().any(|target| target.starts_with(SERVICES) && target.contains("sendInitialEvents"));
    ensure!(streams || release == Release::V1_20, "streaming lists where the server has them: {targets:#?}");
    let agents: BTreeSet<_> = faults.seen().into_iter().map(|seen| seen.agent).collect();
    ensure!(agents.iter().all(|agent| agent.starts_with("ipvs-proxy/")), "{agents:?}");
    Ok(())
}

fn services_are_served_from_an_older_server_by_pages() -> Result<()> {
    served_by_release(Release::V1_20)
}

fn services_are_served_from_a_current_server_by_streaming_lists() -> Result<()> {
    served_by_release(Release::Modern)
}

/// A server, its faults, and a proxy that serves two Pods.
fn serving(nodes: &Nodes, server: &ApiServer) -> Result<(Faults, Process)> {
    let faults = Faults::start(server, nodes.node()?)?;
    server.put(&service("web", "192.168.0.10"))?;
    server.put(&slice(server.release(), &["172.7.21.2", "172.7.22.2"]))?;
    let proxy = start(nodes, &faults.kubeconfig())?;
    answered_by(nodes, &["172.7.21.2", "172.7.22.2"])?;
    Ok((faults, proxy))
}

fn an_outage_changes_nothing_and_what_happened_meanwhile_is_found() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::V1_20)?, Nodes::start()?);
    let (faults, _proxy) = serving(&nodes, &server)?;
    let before = nodes.node()?.run(&["nft", "list", "table", "ip", "ipvs-proxy"])?.stdout;
    let rules =
        |text: &str| text.lines().filter(|line| !line.contains("counter")).map(str::to_owned).collect::<Vec<_>>();
    faults.refuse()?;
    lost(&nodes, "Connection refused")?;
    let now = nodes.node()?.run(&["nft", "list", "table", "ip", "ipvs-proxy"])?.stdout;
    ensure!(rules(&before) == rules(&now), "{before}\n{now}");
    server.put(&slice(Release::V1_20, &["172.7.22.3"]))?;
    server.put(&service("short", "192.168.0.20"))?;
    server.delete("/api/v1/namespaces/default/services/short")?;
    answered_by(&nodes, &["172.7.21.2", "172.7.22.2"]).context("during the outage")?;
    // Where the watches were is no longer kept.
    server.compact()?;
    faults.heal()?;
    in_reach(&nodes)?;
    answered_by(&nodes, &["172.7.22.3"])
}

fn a_watch_that_breaks_off_inside_an_object_goes_on() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::Modern)?, Nodes::start()?);
    let (faults, proxy) = serving(&nodes, &server)?;
    faults.inject_times("endpointslices", Fault::Cut, 1);
    server.put(&slice(Release::Modern, &["172.7.22.3"]))?;
    answered_by(&nodes, &["172.7.22.3"])?;
    ensure!(faults.outstanding() == 0, "it was cut");
    faults.break_connections();
    server.put(&slice(Release::Modern, &["172.7.21.3"]))?;
    answered_by(&nodes, &["172.7.21.3"])?;
    ensure!(!proxy.log().contains("out of reach"), "a stream that ends is no outage");
    Ok(())
}

fn a_silent_server_is_noticed_and_named() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::Modern)?, Nodes::start()?);
    let (faults, _proxy) = serving(&nodes, &server)?;
    faults.pause();
    lost(&nodes, "no answer within")?;
    answered_by(&nodes, &["172.7.21.2", "172.7.22.2"])?;
    server.put(&slice(Release::Modern, &["172.7.22.3"]))?;
    faults.heal()?;
    in_reach(&nodes)?;
    answered_by(&nodes, &["172.7.22.3"])
}

fn a_right_that_is_missing_is_named_with_what_grants_it() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::V1_20)?, Nodes::start()?);
    server.put(&service("web", "192.168.0.10"))?;
    server.put(&slice(Release::V1_20, &["172.7.21.2"]))?;
    let faults = Faults::start(&server, nodes.node()?)?;
    let stranger = server.token_of("kube-system", "web-proxy")?;
    let proxy = begin(&nodes, &faults.kubeconfig().token(&stranger))?;
    for text in [
        "resource \"services\" in API group",
        "this needs the verb `watch` for `services`",
        "the verb `watch` for `endpointslices.discovery.k8s.io`",
        "the verb `watch` for `nodes`",
        "configs/kubernetes",
    ] {
        proxy.wait_for_line(text, SOON)?;
    }
    let subjects = json!([{"kind": "ServiceAccount", "namespace": "kube-system", "name": "web-proxy"}]);
    server.put(&json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "web-proxy"}, "subjects": subjects,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"}}))?;
    proxy.wait_for_line("ready", 2 * SOON).context("the role of kube-proxy is enough")?;
    answered_by(&nodes, &["172.7.21.2"])
}

fn a_server_that_is_busy_is_asked_again_after_the_time_that_it_asks_for() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::V1_20)?, Nodes::start()?);
    server.put(&service("web", "192.168.0.10"))?;
    server.put(&slice(Release::V1_20, &["172.7.21.2"]))?;
    let faults = Faults::start(&server, nodes.node()?)?;
    faults.inject_times(SERVICES, Fault::Answer(429), 3);
    faults.inject_times("endpointslices", Fault::Answer(503), 2);
    faults.inject_times("/api/v1/nodes?", Fault::Slow(20_000), 1);
    let proxy = start(&nodes, &faults.kubeconfig())?;
    ensure!(proxy.log().contains("429 Too Many Requests"), "{}", proxy.log());
    answered_by(&nodes, &["172.7.21.2"])
}

fn a_server_without_slices_is_asked_for_endpoints() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::V1_20)?, Nodes::start()?);
    server.put(&service("web", "192.168.0.10"))?;
    server.put(&json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web"}, "subsets": [
        {"addresses": [{"ip": "172.7.21.2"}, {"ip": "172.7.22.2"}], "notReadyAddresses": [{"ip": "172.7.22.3"}],
         "ports": [{"name": "http", "port": 80}]}]}))?;
    let faults = Faults::start(&server, nodes.node()?)?;
    faults.inject("discovery.k8s.io", Fault::Answer(404));
    let proxy = start(&nodes, &faults.kubeconfig())?;
    answered_by(&nodes, &["172.7.21.2", "172.7.22.2"])?;
    ensure!(!proxy.log().contains("out of reach"), "{}", proxy.log());
    Ok(())
}

fn a_token_that_is_replaced_in_its_file_is_used_without_a_restart() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::V1_20)?, Nodes::start()?);
    server.put(&service("web", "192.168.0.10"))?;
    server.put(&slice(Release::V1_20, &["172.7.21.2"]))?;
    let subjects = json!([{"kind": "ServiceAccount", "namespace": "kube-system", "name": "rotated"}]);
    server.put(&json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "rotated"}, "subjects": subjects,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"}}))?;
    let (node, token) = (nodes.node()?, server.token_of("kube-system", "rotated")?);
    let faults = Faults::start(&server, node)?;
    node.write("/etc/token", &token)?;
    let proxy = start(&nodes, &faults.kubeconfig().token_file("/etc/token"))?;
    answered_by(&nodes, &["172.7.21.2"])?;
    node.write("/etc/token", "of.another.cluster")?;
    // Whenever its watches are opened again behind that, their token is not accepted any more.
    eventually(2 * SOON, || {
        faults.break_connections();
        let status = nodes.status()?;
        ensure!(status["lost"].as_str().is_some_and(|text| text.contains("401 Unauthorized")), "{}", status["lost"]);
        Ok(())
    })?;
    node.write("/etc/token", server.token_of("kube-system", "rotated")?)?;
    in_reach(&nodes)?;
    server.put(&slice(Release::V1_20, &["172.7.22.3"]))?;
    answered_by(&nodes, &["172.7.22.3"])?;
    ensure!(proxy.log().contains("the credentials for the API server were replaced"), "{}", proxy.log());
    Ok(())
}

fn the_service_account_of_a_pod_is_found_without_a_flag() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::Modern)?, Nodes::start()?);
    server.put(&service("web", "192.168.0.10"))?;
    server.put(&slice(Release::Modern, &["172.7.21.2"]))?;
    let node = nodes.node()?;
    let faults = Faults::start(&server, node)?;
    let [host, port] = server.in_cluster(node, ("kube-system", "ipvs-proxy"), faults.address())?;
    let command = node.command(lab::bin("ipvs-proxy")?).env(host.0, host.1).env(port.0, port.1);
    let proxy = command.args(["--proxy-mode=nftables", "--cluster-cidr=172.7.0.0/16"]).start("ipvs-proxy")?;
    proxy.wait_for_line("ready", SOON)?;
    answered_by(&nodes, &["172.7.21.2"])
}

fn main() -> ExitCode {
    let tests = lab::tests![
        // Those that wait longest begin first.
        a_watch_that_shows_nothing_goes_on_at_its_last_bookmark,
        a_silent_server_is_noticed_and_named,
        a_change_does_not_wait_while_a_silent_server_is_asked_whether_it_is_there,
        services_are_served_from_an_older_server_by_pages,
        services_are_served_from_a_current_server_by_streaming_lists,
        an_outage_changes_nothing_and_what_happened_meanwhile_is_found,
        a_watch_that_breaks_off_inside_an_object_goes_on,
        a_right_that_is_missing_is_named_with_what_grants_it,
        a_server_that_is_busy_is_asked_again_after_the_time_that_it_asks_for,
        a_server_without_slices_is_asked_for_endpoints,
        a_token_that_is_replaced_in_its_file_is_used_without_a_restart,
        the_service_account_of_a_pod_is_found_without_a_flag,
        what_somebody_must_act_on_is_an_event_of_the_service_or_the_node,
        labels_taints_and_the_end_of_the_node_are_followed,
        each_right_that_is_missing_is_named_with_what_grants_it,
        certificates_that_are_replaced_in_their_files_are_used_without_a_restart,
        the_api_server_is_reached_through_a_proxy_of_the_environment,
        a_server_of_several_addresses_and_one_of_another_context_take_over,
        an_api_server_without_its_etcd_is_named_and_services_go_on,
        service_cidrs_of_the_api_are_followed,
        service_cidrs_of_a_server_of_1_31_are_followed_in_its_version,
        a_version_that_is_gone_is_listed_anew_without_a_moment_of_emptiness,
        services_are_those_of_a_state_that_was_restored,
    ];
    Suite::new(&[Need::Nftables]).with_kubernetes(Release::V1_20).with_kubernetes(Release::Modern).run(tests)
}
