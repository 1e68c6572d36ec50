//! Numbers where operators read them: Debian's Prometheus with `configs/prometheus`, every alert by its fault, and the dashboard.
//!
//! The rules are those of the folder with shorter times: `for` is a second, ranges of five minutes are ten seconds, those of a quarter of an
//! hour one minute, and all are looked at each second.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod dashboard;
mod netd_node;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use dashboard::{Dashboard, Question};
use lab::cni::Runtime;
use lab::{Cluster, Host, Need, Process, Topology, eventually};
use netd_node::{HOST_GW, Net, SOON, tls};
use serde_json::Value;

/// The folder of Prometheus on a machine.
const FOLDER: &str = "/etc/prometheus";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn config(file: &str) -> Result<String> {
    fs::read_to_string(root().join("configs").join(file)).with_context(|| file.to_owned())
}

/// Puts the files of `configs/prometheus` on a machine, each as `render` has it.
fn install(host: &Host, render: impl Fn(String) -> String) -> Result<()> {
    for file in
        ["prometheus.yml", "alerts.yml", "recording.yml", "tests.yml", "targets/netd.yml", "targets/ipvs-proxy.yml"]
    {
        host.write(format!("{FOLDER}/{file}"), render(config(&format!("prometheus/{file}"))?))?;
    }
    Ok(())
}

fn dashboard() -> Result<Dashboard> {
    Dashboard::read(&config("grafana/netd-ipvs-proxy.json")?)
}

/// What the dashboard asks about all nodes.
fn questions_of_the_dashboard() -> Result<Vec<String>> {
    let dashboard = dashboard()?;
    let all = dashboard.all()?;
    dashboard.questions()?.iter().map(|question| question.of(all)).collect()
}

fn promtool_accepts_the_configuration_and_its_rules_do_what_they_say() -> Result<()> {
    let host = Host::start("prometheus")?;
    install(&host, |text| text)?;
    let groups = questions_of_the_dashboard()?
        .into_iter()
        .enumerate()
        .map(|(number, question)| serde_json::json!({"record": format!("question:{number}"), "expr": question}));
    // JSON is YAML.
    let rules = serde_json::json!({"groups": [{"name": "dashboard", "rules": groups.collect::<Vec<_>>()}]});
    host.write(format!("{FOLDER}/dashboard.yml"), rules.to_string())?;
    let checks =
        "promtool check config prometheus.yml && promtool test rules tests.yml && promtool check rules dashboard.yml";
    host.run(&["sh", "-ec", &format!("cd {FOLDER}; {checks}")])?;
    Ok(())
}

/// The rows of the tables of metrics in `docs/metrics.md`: type and labels by name.
fn documented() -> Result<BTreeMap<String, (String, BTreeSet<String>)>> {
    let page = fs::read_to_string(root().join("docs/metrics.md"))?;
    let mut found = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, labels, _, _] = cells.as_slice() else { continue };
        let name = name.trim_matches('`');
        let mut labels: BTreeSet<String> = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        if labels.contains("direction") {
            let others = ["namespace", "service", "port_name", "protocol", "kind", "address"];
            labels.extend(others.map(str::to_owned));
        }
        let names = match name.strip_prefix("P_") {
            Some(rest) => vec![format!("netd_{rest}"), format!("ipvs_proxy_{rest}")],
            None => vec![name.to_owned()],
        };
        found.extend(names.into_iter().map(|name| (name, ((*kind).to_owned(), labels.clone()))));
    }
    ensure!(found.len() > 40, "{found:?}");
    Ok(found)
}

/// The names in `text` that are of our programs, those of parts of histograms by the histogram's.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_' && letter != ':');
    let ours = words.filter(|word| ["netd_", "ipvs_proxy_", "kubeproxy_"].iter().any(|start| word.starts_with(start)));
    let whole = |name: &str| {
        let part = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        part.unwrap_or(name).to_owned()
    };
    ours.map(whole).collect()
}

fn every_name_in_a_rule_and_on_the_dashboard_is_documented() -> Result<()> {
    let documented = documented()?;
    let rules = [config("prometheus/alerts.yml")?, config("prometheus/recording.yml")?].concat();
    let expressions: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    let asked = expressions.join("\n") + &questions_of_the_dashboard()?.join("\n");
    for name in names(&asked) {
        ensure!(documented.contains_key(&name), "{name} is not in docs/metrics.md");
    }
    for question in dashboard()?.questions()? {
        let of = names(&question.of("")?);
        let labels: BTreeSet<&String> =
            of.iter().filter_map(|name| documented.get(name)).flat_map(|(_, labels)| labels).collect();
        // What is recorded keeps the labels that its name begins with.
        let lost = question
            .labels
            .iter()
            .find(|label| !["instance", "job"].contains(&label.as_str()) && !labels.contains(label));
        ensure!(lost.is_none(), "{}: {of:?} have no label {lost:?}", question.panel);
    }
    let recorded: BTreeSet<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    let words = asked.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_' && letter != ':');
    for word in words.filter(|word| word.split(':').count() > 1 && !word.starts_with(':')) {
        ensure!(recorded.contains(word), "{word} is recorded by no rule");
    }
    let page = fs::read_to_string(root().join("docs/metrics.md"))?;
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        ensure!(page.contains(&format!("`{alert}`")), "{alert} is not in docs/metrics.md");
        ensure!(EXPECTED.iter().any(|(_, alerts)| alerts.contains(&alert)), "{alert} is made to fire by nothing");
    }
    Ok(())
}

/// What is served by a daemon is documented, with its type and labels.
fn ensure_documented(page: &str) -> Result<()> {
    let documented = documented()?;
    let of =
        |name: &str| documented.get(name).with_context(|| format!("{name} is served, and is not in docs/metrics.md"));
    let mut kinds = BTreeMap::new();
    for line in page.lines().filter(|line| !line.is_empty() && *line != "# EOF") {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            // The name of a counter's family in OpenMetrics is without its end.
            let full =
                if kind == "counter" && !name.ends_with("_total") { format!("{name}_total") } else { name.to_owned() };
            ensure!(of(&full)?.0 == kind, "{full} is a {kind}");
            kinds.insert(full, kind.to_owned());
        }
        if line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_once(['{', ' ']).context("no name")?;
        let part = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let name = part.filter(|part| kinds.get(*part).is_some_and(|kind| kind == "histogram")).unwrap_or(name);
        let labels = rest.split("=\"").filter_map(|part| part.rsplit([',', '"', ' ']).next());
        let labels: BTreeSet<String> = match line.contains('{') {
            true => labels.filter(|label| !label.is_empty() && *label != "le").map(str::to_owned).collect(),
            false => BTreeSet::new(),
        };
        let labels: BTreeSet<String> =
            labels.into_iter().filter(|label| label.chars().all(|c| c == '_' || c.is_ascii_lowercase())).collect();
        ensure!(of(name)?.1 == labels, "{name} has {labels:?}");
    }
    Ok(())
}

/// Which alerts each fault causes, on the node where it is.
const EXPECTED: [(&str, &[&str]); 9] = [
    (
        "objects and rows",
        &[
            "NetdRowsMissing",
            "NetdLeaseSkipped",
            "NetdLeaseInvalid",
            "IpvsProxyRowsMissing",
            "IpvsProxyObjectRefused",
            "IpvsProxyConflict",
        ],
    ),
    ("tables deleted", &["NetdContested", "IpvsProxyContested"]),
    ("etcd away", &["NetdSourceLost", "IpvsProxySourceLost", "NetdNotReady", "IpvsProxyNotReady"]),
    ("no address is free", &["NetdPodAddressesShort", "NetdCniErrors"]),
    ("daemons ended", &["NetdDown", "IpvsProxyDown"]),
    ("daemons restarted", &["NetdRestarts", "IpvsProxyRestarts"]),
    ("certificates end", &["NetdCertificateEnds", "IpvsProxyCertificateEnds"]),
    (
        "certificates have ended",
        &["NetdCertificateEnded", "IpvsProxyCertificateEnded", "NetdSourceLost", "IpvsProxySourceLost"],
    ),
    ("main threads stopped", &["NetdStuck", "IpvsProxyStuck"]),
];

/// Prometheus on a machine.
struct Prometheus {
    host: Host,
    _process: Process,
}

impl Prometheus {
    fn start(host: &Host) -> Result<Self> {
        install(host, |text| {
            let lines = text.lines().map(|line| match line.trim_start().strip_prefix("for: ") {
                Some(_) => line.split("for: ").next().unwrap().to_owned() + "for: 1s\n",
                None => {
                    let short = line.replace("[5m]", "[10s]").replace("[15m]", "[1m]");
                    short.replace("_interval: 15s", "_interval: 1s") + "\n"
                }
            });
            lines.collect()
        })?;
        let flags = [
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=/run/prometheus",
            "--web.listen-address=127.0.0.1:9090",
        ];
        let script = format!("cd {FOLDER}; exec prometheus {}", flags.join(" "));
        let process = host.command("sh").args(["-ec", &script]).start("prometheus")?;
        Ok(Self { host: host.clone(), _process: process })
    }

    /// Has it ask these nodes.
    fn ask(&self, nodes: &[&str]) -> Result<()> {
        for (job, port) in [("netd", 10247), ("ipvs-proxy", 10249)] {
            let targets: Vec<_> = nodes.iter().map(|node| format!("{node}:{port}")).collect();
            let text = serde_json::json!([{"targets": targets}]).to_string();
            self.host.write(format!("{FOLDER}/targets/{job}.yml"), text)?;
        }
        Ok(())
    }

    /// What it answers at a path of its API.
    fn answer(&self, path: &str) -> Result<Value> {
        let url = format!("http://127.0.0.1:9090/api/v1/{path}");
        let text = self.host.run(&["curl", "-fsS", "--max-time", "10", &url])?.stdout;
        Ok(serde_json::from_str(&text)?)
    }

    /// What it answers to a question about the last five minutes, as a panel asks.
    fn range(&self, question: &str) -> Result<Vec<Value>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let url = "http://127.0.0.1:9090/api/v1/query_range";
        let words =
            [format!("query={question}"), format!("start={}", now - 300), format!("end={now}"), "step=5".to_owned()];
        let words = words.iter().flat_map(|word| ["--data-urlencode", word.as_str()]);
        let command = self.host.command("curl").args(["-fsS", "--max-time", "10", "-G"]).args(words);
        let answer: Value = serde_json::from_str(&command.arg(url).run()?.stdout)?;
        answer["data"]["result"].as_array().cloned().context("result")
    }

    /// The nodes that an operator may choose on the dashboard.
    fn choices(&self, dashboard: &Dashboard) -> Result<BTreeSet<String>> {
        let (metric, label) = dashboard.values()?;
        let url = format!("http://127.0.0.1:9090/api/v1/label/{label}/values");
        let words = ["-fsS", "--max-time", "10", "-G", "--data-urlencode"];
        let command = self.host.command("curl").args(words).arg(format!("match[]={metric}"));
        let answer: Value = serde_json::from_str(&command.arg(url).run()?.stdout)?;
        let values = answer["data"].as_array().context("data")?;
        dashboard.choices(&values.iter().filter_map(Value::as_str).collect::<Vec<_>>())
    }

    /// A panel has a line for this node, or these, with a number in it, and a name that says what it is.
    fn draws(&self, question: &Question, node: &str) -> Result<()> {
        let text = question.of(node)?;
        let series = self.range(&text)?;
        let has_number = |line: &Value| {
            let points = line["values"].as_array().into_iter().flatten();
            points.filter_map(|point| point[1].as_str()).any(|number| number != "NaN")
        };
        ensure!(series.iter().any(has_number), "{} is empty: {text}: {series:?}", question.panel);
        for line in &series {
            let missing =
                question.labels.iter().find(|label| line["metric"][label.as_str()].as_str().is_none_or(str::is_empty));
            ensure!(missing.is_none(), "{}: a line has no {missing:?}: {}", question.panel, line["metric"]);
        }
        Ok(())
    }

    /// Waits until it has numbers of so many daemons: before that no alert fires whatever is wrong.
    fn has_asked(&self, daemons: usize) -> Result<()> {
        eventually(SOON, || {
            let answer = self.answer("query?query=up==1")?;
            let up = answer["data"]["result"].as_array().context("result")?;
            ensure!(up.len() == daemons, "{answer}");
            Ok(())
        })
    }

    /// The firing alerts, each with the node.
    fn firing(&self) -> Result<BTreeSet<String>> {
        let answer = self.answer("alerts")?;
        let alerts = answer["data"]["alerts"].as_array().context("alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing").map(|alert| {
            let (name, at) = (alert["labels"]["alertname"].as_str(), alert["labels"]["instance"].as_str());
            let node = at.unwrap_or_default().split(':').next().unwrap_or_default();
            format!("{} {node}", name.unwrap_or_default())
        });
        Ok(firing.collect())
    }

    /// Waits until the alerts of `fault` fire on `node`, these and no other.
    fn fires(&self, fault: &str, node: &str) -> Result<()> {
        let (_, alerts) = EXPECTED.iter().find(|(name, _)| *name == fault).context("a fault")?;
        let expected: BTreeSet<String> = alerts.iter().map(|alert| format!("{alert} {node}")).collect();
        self.fire(&expected).with_context(|| fault.to_owned())
    }

    fn fire(&self, expected: &BTreeSet<String>) -> Result<()> {
        eventually(4 * SOON, || {
            let firing = self.firing()?;
            ensure!(firing == *expected, "firing: {firing:#?}, expected: {expected:#?}");
            Ok(())
        })
    }

    fn resolved(&self, fault: &str) -> Result<()> {
        self.fire(&BTreeSet::new()).with_context(|| format!("behind {fault}"))
    }
}

/// The cluster with Prometheus on hdss7-12.
struct Watched {
    net: Net,
    prometheus: Prometheus,
}

impl Watched {
    fn start() -> Result<Self> {
        let net = Net::start(HOST_GW)?;
        let prometheus = Prometheus::start(net.host("hdss7-12")?)?;
        Ok(Self { net, prometheus })
    }

    fn netd(&self, node: &str) -> Result<Process> {
        let address = self.net.host(node)?.address()?;
        self.net.launch(node, &[&format!("--metrics-bind-address={address}:10247")])
    }

    fn proxy(&self, node: &str) -> Result<Process> {
        let host = self.net.host(node)?;
        let (address, endpoints) = (host.address()?, self.net.etcd.endpoints());
        let flags = ["--proxy-mode=nftables", "--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16"];
        let command = host.command(lab::bin("ipvs-proxy")?).args(flags).arg(format!("--etcd-endpoints={endpoints}"));
        command.arg(format!("--metrics-bind-address={address}:10249")).start("ipvs-proxy")
    }

    fn fires(&self, fault: &str, node: &str) -> Result<()> {
        self.prometheus.fires(fault, node)
    }

    fn resolved(&self, fault: &str) -> Result<()> {
        self.prometheus.resolved(fault)
    }

    fn pages_are_documented(&self, node: &str) -> Result<()> {
        let host = self.net.host(node)?;
        for port in [10247, 10249] {
            let url = format!("http://{}:{port}/metrics", host.address()?);
            ensure_documented(&host.run(&["curl", "-fsS", "--max-time", "20", &url])?.stdout)?;
        }
        Ok(())
    }
}

/// A Service in etcd.
fn service(name: &str, address: &str) -> (String, String) {
    let spec = serde_json::json!({"clusterIP": address, "ports": [{"port": 80}]});
    let object = serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"}, "spec": spec});
    (format!("/ipvs-proxy/services/default/{name}"), object.to_string())
}

/// An endpoint of the Service `web`, with the time at which Kubernetes saw it come.
fn endpoint(seen: &str) -> (String, String) {
    let metadata = serde_json::json!({"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"},
        "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": seen}});
    let object = serde_json::json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["172.7.22.2"]}]});
    ("/ipvs-proxy/endpointslices/default/web-1".to_owned(), object.to_string())
}

/// Has a parameter that both daemons want be wrong, and not be written back.
const UNWRITABLE: &str = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
    unshare -m sh -c 'mount -t tmpfs none /mnt && mount -t proc none /mnt && echo 0 > /mnt/sys/net/ipv4/ip_forward'";

fn objects_and_rows_that_do_not_fit_fire_their_alerts(watched: &Watched) -> Result<()> {
    let etcd = &watched.net.etcd;
    let leases = "/coreos.com/network/subnets";
    watched.net.put_lease("172.7.22.0-25", "10.4.7.66", "host-gw")?;
    etcd.put(&format!("{leases}/junk"), "junk")?;
    for (name, address) in [("bad", "no address"), ("second", "192.168.0.10")] {
        let (key, value) = service(name, address);
        etcd.put(&key, &value)?;
    }
    let host = watched.net.host("hdss7-21")?;
    host.run(&["sh", "-ec", UNWRITABLE])?;
    watched.fires("objects and rows", "10.4.7.21")?;
    watched.pages_are_documented("hdss7-21")?;
    // As the daemons' words about it advise.
    host.run(&["sh", "-ec", "umount /proc/sys; sysctl -qw net.ipv4.ip_forward=1"])?;
    for key in ["172.7.22.0-25", "junk"] {
        etcd.delete(&format!("{leases}/{key}"))?;
    }
    for name in ["bad", "second"] {
        etcd.delete(&format!("/ipvs-proxy/services/default/{name}"))?;
    }
    watched.resolved("objects and rows")
}

fn tables_that_somebody_deletes_again_and_again_fire_their_alerts(watched: &Watched) -> Result<()> {
    let host = watched.net.host("hdss7-21")?;
    for _ in 0..2 {
        host.run(&["nft", "flush", "ruleset"])?;
        eventually(SOON, || {
            let tables = host.run(&["nft", "list", "tables"])?.stdout;
            ensure!(tables.contains("ip netd") && tables.contains("ip ipvs-proxy"), "{tables}");
            Ok(())
        })?;
    }
    watched.fires("tables deleted", "10.4.7.21")?;
    watched.resolved("tables deleted")
}

/// The panel that has nothing to show beside the data path of this test, nftables; its labels are held against the documents.
const OF_IPVS: &str = "Bytes";

/// Every panel has something to show of a node on which everything has happened that they show, whether all nodes are chosen or that one.
fn every_panel_of_the_dashboard_has_a_line(watched: &Watched) -> Result<()> {
    let dashboard = dashboard()?;
    let choices = watched.prometheus.choices(&dashboard)?;
    ensure!(choices == ["10.4.7.21".to_owned()].into(), "one node is chosen from {choices:?}");
    let host = watched.net.host("hdss7-21")?;
    // Where no data path is in front, an address of the Service network is on some link.
    host.run(&["ip", "route", "replace", "192.168.0.10/32", "dev", "eth0"])?;
    for question in dashboard.questions()? {
        if question.panel == OF_IPVS {
            ensure!(
                watched.prometheus.range(&question.of(dashboard.all()?)?)?.is_empty(),
                "{OF_IPVS} is drawn: ask for it"
            );
            continue;
        }
        for node in [dashboard.all()?.to_owned(), dashboard::escaped("10.4.7.21")] {
            eventually(SOON, || {
                // Its client counts, whoever answers.
                host.command("curl").args(["-s", "--max-time", "1", "http://192.168.0.10"]).output()?;
                watched.prometheus.draws(&question, &node)
            })?;
        }
        let nobody = question.of(&dashboard::escaped("10.4.7.99"))?;
        ensure!(watched.prometheus.range(&nobody)?.is_empty(), "{nobody} has lines of other nodes");
    }
    Ok(())
}

/// A list of the plugin alone.
const LIST: &str = r#"{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"netd-cni"}]}"#;

fn pods_without_a_free_address_fire_their_alerts(watched: &Watched) -> Result<()> {
    let host = watched.net.host("hdss7-21")?;
    let runtime = Runtime::new(host);
    runtime.install(&lab::bin("netd-cni")?, &["netd-cni"])?;
    runtime.configure("10-cbr0.conflist", LIST)?;
    let pod = runtime.run_pod("first")?;
    // As 252 other Pods leave them: host-local's files, of containers whose namespaces the plugin does not ask for.
    let script = "cd /var/lib/cni/networks/cbr0; for n in $(seq 2 254); do \
        [ -e 172.7.21.$n ] || printf 'pod%s\r\neth0' $n > 172.7.21.$n; done";
    host.run(&["sh", "-ec", script])?;
    for number in 0..4 {
        let error = runtime.run_pod(&format!("late{number}")).err().context("a Pod without an address")?;
        ensure!(format!("{error:#}").contains("no IP addresses available"), "{error:#}");
    }
    watched.fires("no address is free", "10.4.7.21")?;
    watched.pages_are_documented("hdss7-21")?;
    host.run(&["sh", "-ec", "rm $(grep -l ^pod /var/lib/cni/networks/cbr0/172.7.21.*)"])?;
    watched.resolved("no address is free")?;
    pod.stop()
}

fn daemons_without_their_store_fire_their_alerts(watched: &mut Watched) -> Result<()> {
    watched.net.etcd.kill("hdss7-12")?;
    let late = [watched.netd("hdss7-22")?, watched.proxy("hdss7-22")?];
    watched.prometheus.ask(&["10.4.7.21", "10.4.7.22"])?;
    let (_, alerts) = EXPECTED[2];
    let at = |alert: &&str| if alert.contains("NotReady") { "10.4.7.22" } else { "10.4.7.21" };
    let mut expected: BTreeSet<String> = alerts.iter().map(|alert| format!("{alert} {}", at(alert))).collect();
    // netd knows no source before it has read what network there is.
    expected.insert("IpvsProxySourceLost 10.4.7.22".to_owned());
    watched.prometheus.fire(&expected)?;
    watched.net.etcd.restart("hdss7-12")?;
    watched.resolved("etcd away")?;
    watched.pages_are_documented("hdss7-22")?;
    watched.prometheus.ask(&["10.4.7.21"])?;
    for daemon in late {
        daemon.terminate(SOON)?;
    }
    Ok(())
}

fn daemons_that_restart_again_and_again_fire_their_alerts(watched: &Watched) -> Result<()> {
    let start = || anyhow::Ok([watched.netd("hdss7-21")?, watched.proxy("hdss7-21")?]);
    let mut daemons = start()?;
    watched.resolved("daemons ended")?;
    let (_, alerts) = EXPECTED.iter().find(|(name, _)| *name == "daemons restarted").context("a fault")?;
    eventually(4 * SOON, || {
        daemons.iter().try_for_each(Process::kill)?;
        daemons = start()?;
        for daemon in &daemons {
            daemon.wait_for_line("ready", SOON)?;
        }
        let firing = watched.prometheus.firing()?;
        ensure!(alerts.iter().all(|alert| firing.contains(&format!("{alert} 10.4.7.21"))), "{firing:?}");
        Ok(())
    })?;
    watched.fires("daemons restarted", "10.4.7.21")?;
    watched.resolved("daemons restarted")
}

fn every_alert_fires_by_its_fault_and_resolves() -> Result<()> {
    let mut watched = Watched::start()?;
    watched.prometheus.ask(&["10.4.7.21"])?;
    watched.net.put_lease("172.7.22.0-24", "10.4.7.22", "host-gw")?;
    let (key, value) = service("web", "192.168.0.10");
    watched.net.etcd.put(&key, &value)?;
    let daemons = [watched.netd("hdss7-21")?, watched.proxy("hdss7-21")?];
    for daemon in &daemons {
        daemon.wait_for_line("ready", SOON)?;
    }
    watched.prometheus.has_asked(daemons.len())?;
    watched.resolved("the start")?;
    objects_and_rows_that_do_not_fit_fire_their_alerts(&watched)?;
    tables_that_somebody_deletes_again_and_again_fire_their_alerts(&watched)?;
    pods_without_a_free_address_fire_their_alerts(&watched)?;
    let now = watched.net.host("hdss7-21")?.run(&["date", "-u", "+%FT%TZ"])?.stdout;
    let (key, value) = endpoint(now.trim());
    watched.net.etcd.put(&key, &value)?;
    every_panel_of_the_dashboard_has_a_line(&watched)?;
    daemons_without_their_store_fire_their_alerts(&mut watched)?;
    for daemon in daemons {
        daemon.terminate(SOON)?;
    }
    watched.fires("daemons ended", "10.4.7.21")?;
    daemons_that_restart_again_and_again_fire_their_alerts(&watched)
}

/// Both daemons of hdss7-21, by the TLS of an etcd on hdss7-12.
fn by_tls(node: &Host) -> Result<[Process; 2]> {
    let file = |kind: &str, name: &str| format!("--etcd-{kind}={}/{name}", tls::FOLDER);
    let common = |port: u16| {
        let address = node.address()?;
        let files = [file("cafile", "ca.pem"), file("certfile", "own.pem"), file("keyfile", "own.key")];
        let places =
            [format!("--etcd-endpoints={}", tls::ENDPOINT), format!("--metrics-bind-address={address}:{port}")];
        anyhow::Ok([places.to_vec(), files.to_vec()].concat())
    };
    let netd = node.command(lab::bin("netd")?).arg("--iface=eth0").args(common(10247)?).start("netd")?;
    let flags = ["--proxy-mode=nftables", "--cluster-cidr=172.7.0.0/16", "--service-cidr=192.168.0.0/16"];
    let proxy = node.command(lab::bin("ipvs-proxy")?).args(flags).args(common(10249)?).start("ipvs-proxy")?;
    for daemon in [&netd, &proxy] {
        daemon.wait_for_line("ready", SOON)?;
    }
    Ok([netd, proxy])
}

/// Keeps the main thread of each in the system call in which it waits.
fn stopped(node: &Host, daemons: &[Process; 2]) -> Result<Vec<Process>> {
    let stop = |daemon: &Process| {
        let inner = inner_pid(daemon.pid())?;
        let words = ["-qq", "-o", "/dev/null", "-e", "inject=epoll_wait:delay_enter=300s", "-p", &inner];
        node.command("strace").args(words).start("strace")
    };
    daemons.iter().map(stop).collect()
}

/// The number that a process has in its own machine.
fn inner_pid(pid: i32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("NSpid")?;
    Ok(numbers.split_whitespace().last().context("a number")?.to_owned())
}

fn certificates_that_end_soon_and_threads_that_stand_fire_their_alerts() -> Result<()> {
    let cluster = Cluster::start(&Topology::reference()?)?;
    let (store, node) = (cluster.host("hdss7-12")?, cluster.host("hdss7-21")?);
    tls::renew([store, node], 3 * tls::DAY)?;
    let etcd = tls::etcd(store)?;
    tls::put(store, "/coreos.com/network/config", HOST_GW)?;
    let prometheus = Prometheus::start(store)?;
    prometheus.ask(&["10.4.7.21"])?;
    let daemons = by_tls(node)?;
    prometheus.fires("certificates end", "10.4.7.21")?;
    tls::renew([store, node], Duration::ZERO)?;
    etcd.kill()?;
    let etcd = tls::etcd(store)?;
    prometheus.fires("certificates have ended", "10.4.7.21")?;
    tls::renew([store, node], 365 * tls::DAY)?;
    etcd.kill()?;
    let _etcd = tls::etcd(store)?;
    prometheus.resolved("certificates have ended")?;
    let held = stopped(node, &daemons)?;
    prometheus.fires("main threads stopped", "10.4.7.21")?;
    held.iter().try_for_each(Process::kill)?;
    prometheus.resolved("main threads stopped")
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            promtool_accepts_the_configuration_and_its_rules_do_what_they_say,
            every_name_in_a_rule_and_on_the_dashboard_is_documented,
            every_alert_fires_by_its_fault_and_resolves,
            certificates_that_end_soon_and_threads_that_stand_fire_their_alerts,
        ],
    )
}
