//! The real API servers of the lab, and the faults before and behind them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::harness::Suite;
use lab::kubernetes::{ApiServer, Fault, Faults, Release};
use lab::{Host, eventually};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
/// An API server's client of etcd waits longer before each attempt to connect, and a request meanwhile is given up after a minute.
const RECONNECTED: Duration = Duration::from_secs(200);
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": value}})
}

fn service(name: &str, address: &str) -> Value {
    let spec = json!({"clusterIP": address, "ports": [{"port": 80, "targetPort": 8080}]});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// Where a watch of a list can begin.
fn version(list: &Value) -> &str {
    list["metadata"]["resourceVersion"].as_str().unwrap()
}

/// What curl prints on this machine, as who the kubeconfig's token says.
fn curl(host: &Host, faults: &Faults, path: &str, more: &[&str]) -> Result<lab::kubernetes::Answer> {
    let url = format!("https://{}{path}", faults.address());
    let token = "authorization: Bearer admin-token";
    let command = host.command("curl").args(["-sk", "--max-time", "20", "-H", token, "-w", "\n%{http_code}", &url]);
    let printed = command.args(more).run()?.stdout;
    let (body, code) = printed.rsplit_once('\n').context("no code")?;
    let body = serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned()));
    Ok(lab::kubernetes::Answer { code: code.parse()?, body })
}

fn objects_are_put_changed_listed_watched_and_deleted() -> Result<()> {
    let server = ApiServer::shared(Release::V1_20)?;
    let before = server.get("/api/v1/services")?;
    let mut watch = server.watch(&format!("/api/v1/services?watch=1&resourceVersion={}", version(&before)))?;
    // A server that has just begun makes a Service of its own.
    let mut next = || loop {
        let event = watch.next_change(SOON)?;
        if event["object"]["metadata"]["name"] == "web" {
            break Ok::<_, anyhow::Error>(event);
        }
    };
    let made = server.put(&service("web", "192.168.7.7"))?;
    ensure!(made["spec"]["ports"][0]["protocol"] == "TCP", "the server's own defaults: {made}");
    let event = next()?;
    ensure!(event["type"] == "ADDED", "{event}");
    server.patch("/api/v1/namespaces/default/services/web", &json!({"metadata": {"labels": {"a": "b"}}}))?;
    let event = next()?;
    ensure!(event["type"] == "MODIFIED" && event["object"]["metadata"]["labels"]["a"] == "b", "{event}");
    let mut wanted = service("web", "192.168.7.7");
    wanted["status"] = json!({"loadBalancer": {"ingress": [{"ip": "10.4.7.99"}]}});
    let changed = server.put(&wanted)?;
    ensure!(changed["status"] == wanted["status"], "{changed}");
    server.delete("/api/v1/namespaces/default/services/web")?;
    while next()?["type"] != "DELETED" {}
    let wrong = server.put(&service("wrong", "10.9.9.9")).unwrap_err();
    ensure!(format!("{wrong:#}").contains("422"), "an address outside of its range: {wrong:#}");
    Ok(())
}

fn a_stranger_is_refused_until_a_role_allows_it() -> Result<()> {
    let server = ApiServer::shared(Release::V1_20)?;
    let nodes = |token: &str| server.ask_with(token, "GET", "/api/v1/nodes");
    ensure!(nodes("")?.code == 403, "nobody: {:?}", nodes("")?);
    ensure!(nodes("no-such-token")?.code == 401, "{:?}", nodes("no-such-token")?);
    let token = server.token_of("kube-netd", "netd")?;
    let refused = nodes(&token)?;
    let said = refused.body["message"].as_str().unwrap_or_default();
    let wanted = "User \"system:serviceaccount:kube-netd:netd\" cannot list resource \"nodes\"";
    ensure!(refused.code == 403 && said.contains(wanted), "{refused:?}");
    let group = "rbac.authorization.k8s.io";
    let rules = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]);
    let version = format!("{group}/v1");
    server
        .put(&json!({"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": "lister"}, "rules": rules}))?;
    let subjects = json!([{"kind": "ServiceAccount", "namespace": "kube-netd", "name": "netd"}]);
    let role = json!({"apiGroup": group, "kind": "ClusterRole", "name": "lister"});
    server.put(&json!({"apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": "lister"},
        "subjects": subjects, "roleRef": role}))?;
    eventually(SOON, || {
        let answer = nodes(&token)?;
        ensure!(answer.code == 200, "{answer:?}");
        Ok(())
    })?;
    server.delete(&format!("/apis/{group}/v1/clusterrolebindings/lister"))
}

fn a_machine_gets_a_kubeconfig_and_the_files_of_a_service_account() -> Result<()> {
    let server = ApiServer::shared(Release::V1_20)?;
    let node = Host::start("node")?;
    let faults = Faults::start(&server, &node)?;
    let [host, port] = server.in_cluster(&node, ("kube-system", "pod"), faults.address())?;
    ensure!(format!("{}:{}", host.1, port.1) == faults.address().to_string(), "{host:?} {port:?}");
    let files = "/var/run/secrets/kubernetes.io/serviceaccount";
    let asked = format!(
        "curl -sf --max-time 20 --cacert {files}/ca.crt -H \"authorization: Bearer $(cat {files}/token)\" \
         https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/version"
    );
    let printed = node.command("bash").args(["-c", &asked]).env(host.0, host.1).env(port.0, port.1).run()?.stdout;
    ensure!(printed.contains("gitVersion"), "{printed}");
    let first = node.read(format!("/run/{}/token", "secrets/kubernetes.io/serviceaccount"))?;
    server.in_cluster(&node, ("kube-system", "pod"), faults.address())?;
    ensure!(first != node.read("/run/secrets/kubernetes.io/serviceaccount/token")?, "a token that is new");
    let kubeconfig = faults.kubeconfig().to_string();
    let read: Value = serde_json::from_str(&kubeconfig)?;
    ensure!(read["clusters"][0]["cluster"]["server"] == format!("https://{}", faults.address()), "{kubeconfig}");
    Ok(())
}

fn a_certificate_names_a_user_on_either_server() -> Result<()> {
    for release in [Release::V1_20, Release::Modern] {
        let server = ApiServer::shared(release)?;
        let host = server.host();
        let (certificate, key) = server.certificate("admin", &["system:masters"])?;
        host.write("/run/user.crt", certificate)?;
        host.write("/run/user.key", key)?;
        let url = format!("https://{}/api/v1/nodes", server.address());
        let known =
            ["-sf", "--cacert", "/run/kubernetes/ca.crt", "--cert", "/run/user.crt", "--key", "/run/user.key", &url];
        let printed = host.command("curl").args(known).run()?.stdout;
        ensure!(printed.contains("NodeList"), "{release}: {printed}");
        let kubeconfig: Value = serde_json::from_str(&server.kubeconfig_of("someone", &["some"])?.to_string())?;
        let user = &kubeconfig["users"][0]["user"];
        ensure!(user["client-certificate-data"].is_string() && user["token"].is_null(), "{kubeconfig}");
    }
    Ok(())
}

/// The script that builds, with this environment and these arguments: its status, and what it printed.
fn build(variables: &[(&str, &str)], arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes/build"));
    let output = script.env_remove("KUBE_BIN").envs(variables.iter().copied()).args(arguments).output()?;
    let printed = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&printed).trim().to_owned()))
}

fn programs_at_hand_are_taken_and_absent_ones_are_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (cache, bin) = (folder.path().join("netd-lab"), folder.path().join("bin"));
    std::fs::create_dir_all(&bin)?;
    let (here, at_hand) = (folder.path().to_str().context("path")?, bin.to_str().context("path")?);
    let (status, said) = build(&[("XDG_CACHE_HOME", here)], &["1.20", "--path"])?;
    ensure!(status == Some(1) && said.contains("tests/setup kubernetes"), "not built: {status:?} {said}");
    let (status, said) = build(&[("XDG_CACHE_HOME", here), ("KUBE_BIN", at_hand)], &["1.20"])?;
    ensure!(status == Some(1) && said.contains(at_hand), "a folder without an API server: {status:?} {said}");
    std::fs::write(bin.join("kube-apiserver"), "#!/bin/sh\n")?;
    std::fs::set_permissions(bin.join("kube-apiserver"), std::fs::Permissions::from_mode(0o755))?;
    let (status, said) = build(&[("XDG_CACHE_HOME", here), ("KUBE_BIN", at_hand)], &["1.20"])?;
    ensure!(status == Some(0) && said == at_hand, "taken as it is: {status:?} {said}");
    // A build that could not be had is remembered with its reason, for the tests that it skips.
    std::fs::create_dir_all(&cache)?;
    let recipe = include_str!("../kubernetes/release-modern").lines().find_map(|line| line.strip_prefix("recipe="));
    let recipe = recipe.and_then(|rest| rest.split(' ').next()).context("no recipe")?;
    std::fs::write(cache.join(format!("kubernetes-modern-{recipe}.absent")), "no network\n")?;
    let (status, said) = build(&[("XDG_CACHE_HOME", here)], &["modern", "--path"])?;
    ensure!(status == Some(3) && said == "no network", "{status:?} {said}");
    ensure!(build(&[], &["1.99"])?.0 == Some(2));
    Ok(())
}

fn everything_passes_without_a_fault() -> Result<()> {
    let server = ApiServer::shared(Release::V1_20)?;
    let node = Host::start("node")?;
    let faults = Faults::start(&server, &node)?;
    server.put(&map("passes", &"x".repeat(100_000)))?;
    let direct = server.get(&format!("{MAPS}/passes"))?;
    let answer = curl(&node, &faults, &format!("{MAPS}/passes"), &[])?;
    ensure!(answer.code == 200 && answer.body == direct, "{answer:?}");
    let body = json!({"data": {"key": "through"}}).to_string();
    let merge = ["-X", "PATCH", "-H", "content-type: application/merge-patch+json", "-d", &body];
    let answer = curl(&node, &faults, &format!("{MAPS}/passes"), &merge)?;
    ensure!(answer.code == 200 && answer.body["data"]["key"] == "through", "{answer:?}");
    let seen: Vec<_> = faults.seen().into_iter().map(|seen| (seen.method, seen.code)).collect();
    ensure!(seen == [("GET".to_owned(), 200), ("PATCH".to_owned(), 200)], "{seen:?}");
    Ok(())
}

fn answers_of_a_fault_last_as_long_as_they_are_asked_for() -> Result<()> {
    let server = ApiServer::shared(Release::V1_20)?;
    let node = Host::start("node")?;
    let faults = Faults::start(&server, &node)?;
    faults.inject_times("GET /api/v1/nodes", Fault::Answer(429), 2);
    let codes: Vec<u16> =
        (0..3).map(|_| Ok(curl(&node, &faults, "/api/v1/nodes", &[])?.code)).collect::<Result<_>>()?;
    ensure!(codes == [429, 429, 200] && faults.outstanding() == 0, "{codes:?}");
    faults.inject("/nodes", Fault::Answer(403));
    let answer = curl(&node, &faults, "/api/v1/nodes", &[])?;
    ensure!(answer.code == 403 && answer.body["reason"] == "Forbidden", "{answer:?}");
    ensure!(curl(&node, &faults, "/api/v1/services", &[])?.code == 200, "others pass");
    faults.heal()?;
    ensure!(curl(&node, &faults, "/api/v1/nodes", &[])?.code == 200);
    Ok(())
}

/// A curl that watches, and what it has printed once this text is in it.
fn watching(node: &Host, faults: &Faults, query: &str, text: &str) -> Result<lab::Process> {
    let url = format!("https://{}{query}", faults.address());
    let watch = node.command("curl").args(["-skN", "-H", "authorization: Bearer admin-token", &url]).start("curl")?;
    watch.wait_for_line(text, SOON)?;
    Ok(watch)
}

fn a_watch_is_cut_in_the_middle_of_an_object() -> Result<()> {
    let server = ApiServer::shared(Release::V1_20)?;
    let node = Host::start("node")?;
    let faults = Faults::start(&server, &node)?;
    server.put(&map("first", "x"))?;
    let query = format!("{MAPS}?watch=1&fieldSelector=metadata.name=first");
    let watch = watching(&node, &faults, &query, "ADDED")?;
    faults.inject_times("watch=1", Fault::Cut, 1);
    server.put(&map("first", "y"))?;
    let status = watch.wait(SOON)?;
    ensure!(!status.success(), "curl takes it for whole: {status}");
    let log = watch.log();
    let torn = log.lines().last().context("nothing")?;
    ensure!(torn.starts_with("{\"type\":\"MODIFIED\""), "it has begun: {torn}");
    ensure!(serde_json::from_str::<Value>(torn).is_err(), "it has not ended: {torn}");
    ensure!(faults.outstanding() == 0);
    Ok(())
}

fn an_answer_is_lost_behind_what_the_server_did() -> Result<()> {
    let server = ApiServer::shared(Release::V1_20)?;
    let node = Host::start("node")?;
    let faults = Faults::start(&server, &node)?;
    server.put(&map("lost", "x"))?;
    faults.inject_times("PATCH", Fault::LoseAnswer, 1);
    let body = json!({"data": {"key": "done"}}).to_string();
    let merge = ["-X", "PATCH", "-H", "content-type: application/merge-patch+json", "-d", &body];
    let answer = curl(&node, &faults, &format!("{MAPS}/lost"), &merge);
    ensure!(answer.is_err(), "{answer:?}");
    let is = server.get(&format!("{MAPS}/lost"))?;
    ensure!(is["data"]["key"] == "done", "{is}");
    Ok(())
}

fn an_answer_is_slow() -> Result<()> {
    let server = ApiServer::shared(Release::V1_20)?;
    let node = Host::start("node")?;
    let faults = Faults::start(&server, &node)?;
    server.put(&map("slow", &"x".repeat(3_000)))?;
    faults.inject("configmaps/slow", Fault::Slow(3_000));
    let began = Instant::now();
    let answer = curl(&node, &faults, &format!("{MAPS}/slow"), &[])?;
    ensure!(answer.code == 200 && answer.body["data"]["key"].as_str().is_some_and(|key| key.len() == 3_000));
    ensure!(began.elapsed() >= Duration::from_secs(1), "{:?} for 3,000 bytes and more", began.elapsed());
    Ok(())
}

fn a_pause_is_silence_and_a_refusal_is_one() -> Result<()> {
    let server = ApiServer::shared(Release::V1_20)?;
    let node = Host::start("node")?;
    let faults = Faults::start(&server, &node)?;
    server.put(&map("quiet", "x"))?;
    let query = format!("{MAPS}?watch=1&fieldSelector=metadata.name=quiet");
    let watch = watching(&node, &faults, &query, "ADDED")?;
    faults.pause();
    server.put(&map("quiet", "y"))?;
    let asked = curl(&node, &faults, "/api/v1/nodes", &["--max-time", "2"]);
    ensure!(format!("{:#}", asked.unwrap_err()).contains("exit status: 28"), "curl's time has passed, no more");
    ensure!(watch.is_running() && !watch.log().contains("MODIFIED"), "{}", watch.log());
    faults.heal()?;
    watch.wait_for_line("MODIFIED", SOON)?;
    faults.refuse()?;
    ensure!(!watch.wait(SOON)?.success(), "an open connection is lost");
    let connect = |to: SocketAddr| node.within(|| TcpStream::connect(to));
    let refused = connect(faults.address())?.unwrap_err();
    ensure!(refused.kind() == std::io::ErrorKind::ConnectionRefused, "{refused}");
    faults.heal()?;
    ensure!(curl(&node, &faults, "/api/v1/nodes", &[])?.code == 200);
    Ok(())
}

/// What a watch from this version is answered: the code of its first event, or of its refusal.
fn code_of_watch(server: &ApiServer, from: &str) -> Result<String> {
    let mut watch = match server.watch(&format!("{MAPS}?watch=1&resourceVersion={from}")) {
        Err(error) => return Ok(format!("{error:#}")),
        Ok(watch) => watch,
    };
    Ok(watch.next_change(SOON)?["object"]["code"].to_string())
}

fn an_old_version_is_gone_behind_a_compaction_and_a_start() -> Result<()> {
    let mut server = ApiServer::shared(Release::V1_20)?;
    server.put(&map("old", "1"))?;
    let old = version(&server.get(MAPS)?).to_owned();
    for value in ["2", "3"] {
        server.put(&map("old", value))?;
    }
    server.compact()?;
    server.stop()?;
    ensure!(server.get(MAPS).is_err(), "it is stopped");
    server.start_again()?;
    let code = code_of_watch(&server, &old)?;
    ensure!(code.contains("410"), "from {old}: {code}");
    Ok(())
}

fn a_server_lives_through_the_loss_of_its_etcd_and_serves_an_older_state() -> Result<()> {
    let mut server = ApiServer::shared(Release::V1_20)?;
    server.put(&map("state", "kept"))?;
    let kept: u64 = version(&server.get(MAPS)?).parse()?;
    server.save("early")?;
    for value in ["a", "b", "c"] {
        server.put(&map("state", value))?;
    }
    server.lose_etcd()?;
    let lost = server.ask("GET", &format!("{MAPS}/state"), None);
    ensure!(lost.as_ref().map_or(true, |answer| answer.code >= 500), "without its store: {lost:?}");
    server.bring_etcd_back()?;
    eventually(RECONNECTED, || {
        let is = server.get(&format!("{MAPS}/state"))?;
        ensure!(is["data"]["key"] == "c", "{is}");
        Ok(())
    })?;
    let late: u64 = version(&server.get(MAPS)?).parse()?;
    server.restore("early")?;
    let is = server.get(&format!("{MAPS}/state"))?;
    ensure!(is["data"]["key"] == "kept", "{is}");
    let now: u64 = version(&server.get(MAPS)?).parse()?;
    ensure!(kept < late, "{kept} {now} {late}");
    Ok(())
}

fn a_current_server_streams_lists_and_serves_current_slices() -> Result<()> {
    let server = ApiServer::shared(Release::Modern)?;
    server.put(&json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": ["172.7.21.2"], "nodeName": "hdss7-21"}], "ports": [{"port": 80}]}))?;
    let query =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=";
    let mut watch = server.watch(&format!("/apis/discovery.k8s.io/v1/endpointslices?{query}"))?;
    let first = watch.next(SOON)?.context("no event")?;
    ensure!(first["type"] == "ADDED" && first["object"]["endpoints"][0]["nodeName"] == "hdss7-21", "{first}");
    let end = watch.next(SOON)?.context("no end of the list")?;
    let marks = &end["object"]["metadata"]["annotations"];
    ensure!(end["type"] == "BOOKMARK" && marks["k8s.io/initial-events-end"] == "true", "{end}");
    let cidrs = server.get("/apis/networking.k8s.io/v1/servicecidrs")?;
    ensure!(cidrs["kind"] == "ServiceCIDRList", "{cidrs}");
    let given = server.put(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "both"}, "spec":
        {"clusterIPs": ["192.168.1.1", "fd00:96::1"], "clusterIP": "192.168.1.1", "type": "NodePort", "ports": [{"port": 80}]}}))?;
    ensure!(given["spec"]["ipFamilies"] == json!(["IPv4", "IPv6"]), "{given}");
    ensure!(given["spec"]["ports"][0]["nodePort"].as_u64().is_some_and(|port| port >= 30_000), "{given}");
    Ok(())
}

/// flannel writes its annotations through the status of its Node.
fn the_status_of_a_node_takes_annotations_on_either_server() -> Result<()> {
    for release in [Release::V1_20, Release::Modern] {
        let server = ApiServer::shared(release)?;
        server.put(
            &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "spec": {"podCIDR": "172.7.21.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.4.7.21"}]}}),
        )?;
        let patch = json!({"metadata": {"annotations": {"flannel.alpha.coreos.com/backend-type": "vxlan"}},
            "spec": {"podCIDR": null}});
        let node = server.patch("/api/v1/nodes/n/status", &patch)?;
        ensure!(
            node["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-type"] == "vxlan",
            "{release}: {node}"
        );
        ensure!(node["spec"]["podCIDR"] == "172.7.21.0/24", "{release}: {node}");
        ensure!(node["status"]["addresses"][0]["address"] == "10.4.7.21", "{release}: {node}");
    }
    Ok(())
}

fn main() -> ExitCode {
    Suite::new(&[]).with_kubernetes(Release::V1_20).run(lab::tests![
        objects_are_put_changed_listed_watched_and_deleted,
        a_stranger_is_refused_until_a_role_allows_it,
        a_machine_gets_a_kubeconfig_and_the_files_of_a_service_account,
        a_certificate_names_a_user_on_either_server,
        programs_at_hand_are_taken_and_absent_ones_are_said,
        everything_passes_without_a_fault,
        answers_of_a_fault_last_as_long_as_they_are_asked_for,
        a_watch_is_cut_in_the_middle_of_an_object,
        an_answer_is_lost_behind_what_the_server_did,
        an_answer_is_slow,
        a_pause_is_silence_and_a_refusal_is_one,
        an_old_version_is_gone_behind_a_compaction_and_a_start,
        a_server_lives_through_the_loss_of_its_etcd_and_serves_an_older_state,
        a_current_server_streams_lists_and_serves_current_slices,
        the_status_of_a_node_takes_annotations_on_either_server,
    ])
}
