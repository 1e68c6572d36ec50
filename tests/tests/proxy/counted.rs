//! What `/metrics` says of the clients of a Service, by packets that were sent.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use lab::{Place, Process, echo, eventually};
use serde_json::json;

use super::{DNS, NODE_PORT_WEB, Nodes, SOON, ask, client, dns, exposed, slice};

const ADDR: &str = "192.168.0.10:80";
const NODE: &str = "10.4.7.21:30080";

/// Numbers by what they are of: name, Service, kind of address, direction.
type Numbers = BTreeMap<[String; 4], u64>;

/// The numbers of Services, as whoever asks gets them.
pub(crate) fn numbers(nodes: &Nodes) -> Result<Numbers> {
    let url = "http://127.0.0.1:10249/metrics";
    let text = nodes.node()?.run(&["curl", "-s", "--fail", "--max-time", "20", url])?.stdout;
    let of_services = text.lines().filter_map(|line| line.strip_prefix("ipvs_proxy_service_"));
    let mut numbers = Numbers::new();
    for line in of_services.filter(|line| line.contains('{')) {
        let (name, rest) = line.split_once('{').context("no labels")?;
        let (labels, number) = rest.split_once("} ").context("no number")?;
        let label = |wanted: &str| {
            let of = |label: &str| Some(label.strip_prefix(wanted)?.strip_prefix("=\"")?.strip_suffix('"')?.to_owned());
            labels.split(',').find_map(of).unwrap_or_default()
        };
        ensure!(label("namespace") == "default", "{line}");
        let port_name = if label("service") == "web" { "http" } else { "dns" };
        ensure!(label("port_name") == port_name && !label("address").is_empty(), "{line}");
        let key = [name.to_owned(), label("service"), label("kind"), label("direction")];
        ensure!(numbers.insert(key, number.parse()?).is_none(), "{line} is of an address more");
    }
    Ok(numbers)
}

/// How many connections were counted for a Service at such an address.
fn connections(nodes: &Nodes, service: &str, kind: &str) -> Result<u64> {
    let key = ["connections_total", service, kind, ""].map(str::to_owned);
    Ok(numbers(nodes)?.get(&key).copied().unwrap_or_default())
}

fn connect(from: &impl Place, to: &str, times: usize) -> Result<()> {
    let server: SocketAddr = to.parse()?;
    (0..times).try_for_each(|_| echo::ask_tcp(from, server, SOON).map(drop))
}

/// Starts nodes with the Services `web` and `dns`, and the proxy.
fn start(mode: &str) -> Result<(Nodes, Process)> {
    let nodes = exposed::start()?;
    nodes.publish("web.yaml", &format!("{NODE_PORT_WEB}{}", slice(&["172.7.21.3", "172.7.22.2"])))?;
    nodes.publish("dns.yaml", &dns(&["172.7.22.2"]))?;
    let proxy = exposed::proxy(&nodes, mode)?;
    Ok((nodes, proxy))
}

/// Every connection once, whoever connects and wherever; and the number survives changes of the endpoints and a restart.
pub(crate) fn each_connection_of_a_service_is_counted_once(mode: &str) -> Result<()> {
    let (nodes, proxy) = start(mode)?;
    ensure!(numbers(&nodes)?.is_empty(), "nobody has connected");
    connect(nodes.outside()?, ADDR, 3)?;
    connect(nodes.pod("172.7.21.2")?, ADDR, 5)?;
    connect(nodes.node()?, ADDR, 2)?;
    connect(nodes.outside()?, NODE, 4)?;
    let counted = |expected: [u64; 2], when: &str| {
        let found = [connections(&nodes, "web", "ClusterIP")?, connections(&nodes, "web", "NodePort")?];
        ensure!(found == expected, "{when}: {found:?}, not {expected:?}");
        Ok(())
    };
    counted([10, 4], "after all have connected")?;
    // Another number of endpoints has the element made anew.
    nodes.publish("web.yaml", &format!("{NODE_PORT_WEB}{}", slice(&["172.7.21.3", "172.7.22.2", "172.7.22.3"])))?;
    let map = if mode == "nftables" { "choose/3/" } else { "choose/ipvs/" };
    eventually(SOON, || {
        let map = (map, nodes.node()?.run(&["nft", "list", "map", "ip", "ipvs-proxy", "services"])?.stdout);
        ensure!(map.1.contains(map.0) && nodes.status()?["ok"] == true, "{}", map.1);
        Ok(())
    })?;
    counted([10, 4], "after an endpoint has come")?;
    connect(nodes.outside()?, ADDR, 1)?;
    counted([11, 4], "after one more has connected")?;
    proxy.kill()?;
    let _again = exposed::proxy(&nodes, mode)?;
    counted([11, 4], "after a kill and a start")
}

/// Packets and bytes in each direction are those that a client sent and received.
pub(crate) fn packets_and_bytes_of_a_service_are_what_was_sent_and_received() -> Result<()> {
    let (nodes, _proxy) = start("ipvs")?;
    let socket = client(nodes.outside()?)?;
    for _ in 0..7 {
        ask(&socket)?;
    }
    let request = b"who are you?\n";
    socket.send(request)?;
    let answer = socket.recv(&mut [0; 512])?;
    let number = |name: &str, direction: &str| [name, "dns", "ClusterIP", direction].map(str::to_owned);
    // A datagram has 28 bytes of headers. The kernel puts its numbers together every two seconds.
    let bytes = [request.len(), answer].map(|length| 8 * (length as u64 + 28));
    let expected = Numbers::from([
        (number("connections_total", ""), 1),
        (number("packets_total", "in"), 8),
        (number("packets_total", "out"), 8),
        (number("bytes_total", "in"), bytes[0]),
        (number("bytes_total", "out"), bytes[1]),
    ]);
    eventually(SOON, || {
        let found = numbers(&nodes)?;
        ensure!(found == expected, "{found:?}, not {expected:?}, at {DNS}");
        Ok(())
    })
}

/// Who does not want the numbers has none.
pub(crate) fn numbers_of_services_can_be_left_out() -> Result<()> {
    let nodes = exposed::start()?;
    nodes.publish("web.yaml", &format!("{NODE_PORT_WEB}{}", slice(&["172.7.21.3"])))?;
    for (flag, names) in [("off", 0), ("connections", 1)] {
        let _proxy = nodes.proxy_with(&["--proxy-mode=ipvs", &format!("--service-metrics={flag}")])?;
        connect(nodes.outside()?, ADDR, 1)?;
        let found = numbers(&nodes)?;
        let kinds: std::collections::BTreeSet<_> = found.keys().map(|key| &key[0]).collect();
        ensure!(kinds.len() == names, "{flag}: {found:?}");
    }
    Ok(())
}

/// Services of UDP for whose numbers Prometheus asks.
const MANY: usize = 10_000;

/// The manifests of [`MANY`] Services with one endpoint each, as a list in JSON.
fn many() -> String {
    let items = (0..MANY).flat_map(|number| {
        let (name, address) = (format!("s{number}"), address(number));
        let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}]);
        let labels = json!({"kubernetes.io/service-name": name});
        [
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"clusterIP": address, "ports": ports}}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": ports,
                "metadata": {"name": name, "labels": labels}, "endpoints": [{"addresses": ["172.7.22.2"]}]}),
        ]
    });
    json!({"apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>()}).to_string()
}

fn address(number: usize) -> String {
    format!("192.168.{}.{}", 16 + number / 250, 1 + number % 250)
}

/// What Prometheus answers to a query of one number.
fn query(nodes: &Nodes, text: &str) -> Result<f64> {
    let url = "http://127.0.0.1:9090/api/v1/query";
    let query = format!("query={text}");
    let answer =
        nodes.node()?.run(&["curl", "-fsS", "--max-time", "20", "-G", url, "--data-urlencode", &query])?.stdout;
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    let value = answer.pointer("/data/result/0/value/1").and_then(serde_json::Value::as_str);
    Ok(value.with_context(|| format!("no {text}: {answer}"))?.parse()?)
}

/// Debian's Prometheus scrapes a node with as many Services as there are numbers for, each of which has had a client, within its own limit.
pub(crate) fn prometheus_scrapes_the_numbers_of_ten_thousand_services() -> Result<()> {
    let nodes = exposed::start()?;
    let node = nodes.node()?;
    nodes.publish("many.json", &many())?;
    let _proxy = exposed::proxy(&nodes, "nftables")?;
    eventually(2 * SOON, || {
        let status = nodes.status()?;
        ensure!(status["services"] == MANY && status["ok"] == true, "{}", status["services"]);
        Ok(())
    })?;
    let socket = nodes.outside()?.within(|| UdpSocket::bind("0.0.0.0:0"))??;
    for number in 0..MANY {
        socket.send_to(b"who are you?\n", (address(number).as_str(), 53))?;
    }
    let page = || node.run(&["curl", "-fsS", "--max-time", "20", "http://127.0.0.1:10249/metrics"]);
    eventually(SOON, || {
        let page = page()?.stdout;
        let lines = page.lines().filter(|line| line.starts_with("ipvs_proxy_service_connections_total{")).count();
        ensure!(lines == MANY, "{lines} lines");
        Ok(())
    })?;
    // Tens of thousands of lines: that of Debian 13 took half a minute beside other tests.
    let promtool = node.command("promtool").args(["check", "metrics"]).limit(10 * SOON);
    let checked = promtool.input(page()?.stdout).output()?;
    // kube-proxy's name of a gauge.
    let known =
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total non-counter metrics should not have \"_total\" suffix";
    ensure!(checked.stderr.trim() == known && checked.stdout.is_empty(), "{checked:?}");
    node.write(
        "/etc/prometheus.yml",
        "global: {scrape_interval: 5s, scrape_timeout: 5s}\nscrape_configs:\n\
        - {job_name: proxy, static_configs: [{targets: ['127.0.0.1:10249']}]}\n",
    )?;
    let flags = [
        "--config.file=/etc/prometheus.yml",
        "--storage.tsdb.path=/run/prometheus",
        "--web.listen-address=127.0.0.1:9090",
    ];
    let _prometheus = node.command("prometheus").args(flags).start("prometheus")?;
    eventually(2 * SOON, || {
        ensure!((query(&nodes, "up{job=\"proxy\"}")? - 1.0).abs() < f64::EPSILON);
        let counted = query(&nodes, "count(ipvs_proxy_service_connections_total)")?;
        ensure!((counted - 10_000.0).abs() < f64::EPSILON, "{counted} Services");
        Ok(())
    })
}
