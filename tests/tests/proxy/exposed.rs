//! A Service of every kind, and what each class of clients meets at each of its addresses, on either data path.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Place, Process, echo, eventually};

use super::{Nodes, SOON, WEB, slice};

/// An external address, that of a load balancer, a node port.
pub(crate) const EXTERNAL: [&str; 3] = ["10.4.7.98:80", "10.4.7.99:80", "10.4.7.21:30080"];

/// An endpoint on the node, with its node.
pub(crate) const HERE: (&str, &str) = ("172.7.21.2", "hdss7-21");
const ELSEWHERE: (&str, &str) = ("172.7.22.2", "hdss7-22");

/// Time in which an answer would have come.
const SILENCE: Duration = Duration::from_secs(2);

/// A Service of every kind with `spec` beside the rest, and these endpoints.
pub(crate) fn exposed(spec: &str, endpoints: &[(&str, &str)]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  type: LoadBalancer\n  clusterIP: 192.168.0.10\n  \
         {spec}\n  externalIPs: [10.4.7.98]\n  ports: [{{name: http, port: 80, nodePort: 30080}}]\n\
         status: {{loadBalancer: {{ingress: [{{ip: 10.4.7.99}}]}}}}\n---\n{}",
        slice(&[])
    );
    for (addr, node) in endpoints {
        text.push_str(&format!("- {{addresses: [{addr}], nodeName: {node}.host.com}}\n"));
    }
    text
}

/// The nodes with a default route: without any route to a Service's address a node does not even try. It goes over a link of its own, so
/// that nobody is redirected. The outside host has routes to the external addresses.
pub(crate) fn start() -> Result<Nodes> {
    let nodes = Nodes::start()?;
    let route = "link add up0 type veth peer name down0\nlink set up0 up\nlink set down0 up\naddress add 10.9.9.21/24 dev up0\n\
        neigh add 10.9.9.1 lladdr 02:00:00:00:00:01 dev up0\nroute add default via 10.9.9.1\n";
    nodes.node()?.command("ip").args(["-batch", "-"]).input(route).run()?;
    for addr in ["10.4.7.98/32", "10.4.7.99/32"] {
        nodes.outside()?.run(&["ip", "route", "add", addr, "via", "10.4.7.21"])?;
    }
    Ok(nodes)
}

/// The proxy on a data path, with node ports at the address that is not the default route's.
pub(crate) fn proxy(nodes: &Nodes, mode: &str) -> Result<Process> {
    nodes.proxy_with(&[&format!("--proxy-mode={mode}"), "--nodeport-addresses=10.4.7.0/24"])
}

type Seen = BTreeSet<(String, String)>;

/// Who answers at `server` and whom it saw, over a number of connections.
fn answers(from: &impl Place, server: &str) -> Result<Seen> {
    let server: SocketAddr = server.parse()?;
    let one = |_| echo::ask_tcp(from, server, SOON).map(|answer| (answer.name, answer.client.ip().to_string()));
    // That one of two is not chosen in 30 tries happens once in 500 million.
    (0..30).map(one).collect()
}

/// What kube-proxy's table says (TestInternalExternalMasquerade): which endpoints, and M where the client is masqueraded.
fn expected(word: &str, client: &str) -> Seen {
    let (which, masqueraded) = word.split_once(' ').map_or((word, false), |(which, _)| (which, true));
    let seen = |(pod, _): (&str, &str), bridge: &str| {
        (pod.to_owned(), if masqueraded { bridge.to_owned() } else { client.to_owned() })
    };
    let (here, elsewhere) = (seen(HERE, "172.7.21.1"), seen(ELSEWHERE, "10.4.7.21"));
    if which == "local" { BTreeSet::from([here]) } else { BTreeSet::from([here, elsewhere]) }
}

/// A policy, and for each class of client what it meets at the virtual address and at the other ones.
type Line = (&'static str, [[&'static str; 2]; 3]);

const TABLE: [Line; 3] = [
    ("externalTrafficPolicy: Cluster", [["all", "all M"], ["all M", "all M"], ["all M", "all M"]]),
    ("externalTrafficPolicy: Local", [["all", "all"], ["all M", "all M"], ["all M", "local"]]),
    ("internalTrafficPolicy: Local", [["local", "all M"], ["local M", "all M"], ["local M", "all M"]]),
];

fn ensure_line(nodes: &Nodes, (policy, words): &Line) -> Result<()> {
    let places = [WEB, EXTERNAL[0], EXTERNAL[1], EXTERNAL[2]];
    for (index, server) in places.into_iter().enumerate() {
        let column = usize::from(index > 0);
        let seen = [
            (answers(nodes.pod("172.7.21.3")?, server)?, "172.7.21.3"),
            // This node is masqueraded everywhere.
            (answers(nodes.node()?, server)?, ""),
            (answers(nodes.outside()?, server)?, "10.4.7.200"),
        ];
        for ((found, client), words) in seen.iter().zip(words) {
            ensure!(*found == expected(words[column], client), "{policy}: {server} from {client:?}: {found:?}");
        }
    }
    Ok(())
}

/// Each class of clients reaches the endpoints that its policy says, with the source address that kube-proxy's table says.
pub(crate) fn every_class_of_clients_is_led_by_the_policy(mode: &str) -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", &exposed(TABLE[0].0, &[HERE, ELSEWHERE]))?;
    let _proxy = proxy(&nodes, mode)?;
    for line in &TABLE {
        nodes.publish("web.yaml", &exposed(line.0, &[HERE, ELSEWHERE]))?;
        eventually(SOON, || ensure_line(&nodes, line))?;
    }
    let status = nodes.status()?;
    ensure!(status["notServed"] == serde_json::json!([]), "{status}");
    Ok(())
}

/// A Pod of another node whose Services are led by this one reaches itself at each address of a Service, and sees this node's address; Pods
/// that reach it otherwise keep theirs.
pub(crate) fn a_pod_of_another_node_reaches_itself_through_this_one(mode: &str) -> Result<()> {
    let nodes = start()?;
    let itself = nodes.pod(ELSEWHERE.0)?;
    let other = nodes.cluster.host("hdss7-22")?;
    for addr in ["192.168.0.0/16", "10.4.7.98/32", "10.4.7.99/32"] {
        other.run(&["ip", "route", "add", addr, "via", "10.4.7.21"])?;
    }
    nodes.publish("web.yaml", &exposed("externalTrafficPolicy: Local", &[ELSEWHERE]))?;
    let _proxy = proxy(&nodes, mode)?;
    let through_here: Seen = [(ELSEWHERE.0.to_owned(), "10.4.7.21".to_owned())].into();
    for server in [WEB, EXTERNAL[0], EXTERNAL[1], EXTERNAL[2]] {
        let seen = answers(itself, server).with_context(|| format!("to itself at {server}"))?;
        ensure!(seen == through_here, "{server}: {seen:?}");
        let seen = answers(nodes.pod(HERE.0)?, server)?;
        ensure!(seen == [(ELSEWHERE.0.to_owned(), HERE.0.to_owned())].into(), "{server}: {seen:?}");
    }
    Ok(())
}

/// Each class is led as its policy says where Pods are known by the interface that they come in by; the Pod network says nothing then.
pub(crate) fn every_class_is_led_where_pods_are_known_by_their_interface(mode: &str) -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", &exposed(TABLE[0].0, &[HERE, ELSEWHERE]))?;
    for (flags, shown) in [
        (["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cbr0"], "iifname != \"cbr0\""),
        (["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cb"], "iifname != \"cb*\""),
    ] {
        let mode = format!("--proxy-mode={mode}");
        let proxy = nodes.proxy_with(&[flags[0], flags[1], &mode, "--nodeport-addresses=10.4.7.0/24"])?;
        for line in &TABLE {
            nodes.publish("web.yaml", &exposed(line.0, &[HERE, ELSEWHERE]))?;
            eventually(SOON, || ensure_line(&nodes, line))?;
        }
        let table = nodes.node()?.run(&["nft", "list", "table", "ip", "ipvs-proxy"])?.stdout;
        ensure!(table.contains(shown) && !table.contains("172.7.0.0/16"), "{shown}: {table}");
        proxy.terminate(SOON)?;
    }
    Ok(())
}

/// A client outside is not answered at all by a node without an endpoint, and one inside reaches the others.
pub(crate) fn the_policy_local_without_an_endpoint_here_is_silent(mode: &str) -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", &exposed("externalTrafficPolicy: Local", &[ELSEWHERE]))?;
    let _proxy = proxy(&nodes, mode)?;
    for server in EXTERNAL {
        let error = echo::ask_tcp(nodes.outside()?, server.parse()?, SILENCE).err().context("it was answered")?;
        ensure!(!format!("{error:#}").contains("refused"), "{server}: {error:#}");
        let found = answers(nodes.pod("172.7.21.3")?, server)?;
        ensure!(found == BTreeSet::from([(ELSEWHERE.0.to_owned(), "172.7.21.3".to_owned())]), "{server}: {found:?}");
    }
    Ok(())
}

/// Only listed clients pass at the load balancer's address.
pub(crate) fn source_ranges_let_only_listed_clients_in(mode: &str) -> Result<()> {
    let nodes = start()?;
    let only = |range: &str| exposed(&format!("loadBalancerSourceRanges: [{range}]"), &[HERE, ELSEWHERE]);
    nodes.publish("web.yaml", &only("10.4.7.200/32"))?;
    let _proxy = proxy(&nodes, mode)?;
    answers(nodes.outside()?, EXTERNAL[1])?;
    ensure!(
        echo::ask_tcp(nodes.pod("172.7.21.3")?, EXTERNAL[1].parse()?, SILENCE).is_err(),
        "a Pod that is not listed"
    );
    nodes.publish("web.yaml", &only("172.7.21.3/32"))?;
    eventually(SOON, || {
        ensure!(echo::ask_tcp(nodes.outside()?, EXTERNAL[1].parse()?, SILENCE).is_err(), "from outside");
        answers(nodes.pod("172.7.21.3")?, EXTERNAL[1]).map(drop)
    })?;
    answers(nodes.outside()?, EXTERNAL[0]).context("another address is open").map(drop)
}

/// A Service without endpoints refuses everybody at once, wherever it is asked.
pub(crate) fn what_nobody_serves_is_refused_at_once(mode: &str) -> Result<()> {
    let nodes = start()?;
    nodes.publish("web.yaml", &exposed("externalTrafficPolicy: Cluster", &[]))?;
    let _proxy = proxy(&nodes, mode)?;
    for server in [WEB, "192.168.0.10:81", EXTERNAL[0], EXTERNAL[1], EXTERNAL[2]] {
        for result in [
            echo::ask_tcp(nodes.node()?, server.parse()?, SOON),
            echo::ask_tcp(nodes.outside()?, server.parse()?, SOON),
            echo::ask_tcp(nodes.pod("172.7.21.2")?, server.parse()?, SOON),
        ] {
            let error = result.err().with_context(|| format!("{server} answered"))?;
            ensure!(format!("{error:#}").contains("refused"), "{server}: {error:#}");
        }
    }
    Ok(())
}
