//! A node that changes its data path while clients connect: from IPVS to nftables and back.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Need, Place, Process, echo, eventually};
use proxy::{Kept, Nodes, SOON, WEB, WEB_SERVICE, ask, client, configured, dns, families, servers, slice};

const IPVS: &str = "--proxy-mode=ipvs";
const NFTABLES: &str = "--proxy-mode=nftables";

/// The nodes with a default route, without which a node does not even try to reach a Service that nftables carries.
fn start() -> Result<Nodes> {
    let nodes = Nodes::start()?;
    let route = "link add up0 type veth peer name down0\nlink set up0 up\nlink set down0 up\naddress add 10.9.9.21/24 dev up0\n\
        neigh add 10.9.9.1 lladdr 02:00:00:00:00:01 dev up0\nroute add default via 10.9.9.1\n";
    nodes.node()?.command("ip").args(["-batch", "-"]).input(route).run()?;
    nodes.publish("service.yaml", WEB_SERVICE)?;
    nodes.publish("slice.yaml", &slice(&["172.7.21.3", "172.7.22.2"]))?;
    nodes.publish("dns.yaml", &dns(&["172.7.21.3", "172.7.22.2"]))?;
    Ok(nodes)
}

/// Connects until it is time to stop; returns how often.
fn connect(from: &impl Place, to: &str, stop: &AtomicBool) -> Result<usize> {
    let mut connected = 0;
    while !stop.load(Ordering::Relaxed) {
        echo::ask_tcp(from, to.parse()?, SOON).with_context(|| format!("connection {connected}"))?;
        connected += 1;
    }
    Ok(connected)
}

/// Waits until new connections are carried by the path of `mode`.
fn await_path(nodes: &Nodes, mode: &str) -> Result<()> {
    let node = nodes.node()?;
    eventually(SOON, || {
        let map = node.run(&["nft", "list", "map", "ip", "ipvs-proxy", "services"])?.stdout;
        let serving = servers(node)?.iter().filter(|line| line.ends_with("-w 1")).count();
        let is_there = match mode {
            IPVS => serving == 4 && !map.contains("choose/2/"),
            _ => serving == 0 && map.contains("choose/2/"),
        };
        ensure!(is_there, "{serving} real servers take connections; {map}");
        Ok(())
    })
}

/// The mode that a flag says.
fn name(flag: &str) -> &str {
    flag.trim_start_matches("--proxy-mode=")
}

/// How the mode is changed.
#[derive(Clone, Copy)]
enum Change {
    /// The program is killed and started in the other mode.
    Start,
    /// The file says the other mode.
    File,
}

impl Change {
    /// The program, ready in the first mode.
    fn begin(self, nodes: &Nodes) -> Result<Process> {
        let proxy = match self {
            Self::Start => nodes.proxy_with(&[IPVS])?,
            Self::File => configured::start(nodes, name(IPVS))?,
        };
        await_path(nodes, IPVS)?;
        Ok(proxy)
    }

    fn to(self, nodes: &Nodes, mode: &str, proxy: Process) -> Result<Process> {
        match self {
            Self::Start => {
                proxy.kill()?;
                nodes.proxy_with(&[mode])
            }
            Self::File => {
                configured::write_mode(nodes, name(mode))?;
                Ok(proxy)
            }
        }
    }
}

/// Changes the mode again and again; streams and a flow that were opened in each go on.
fn change_again_and_again(nodes: &Nodes, change: Change, mut proxy: Process) -> Result<Process> {
    let flow = client(nodes.pod("172.7.21.2")?)?;
    let answering = ask(&flow)?;
    let mut streams = Vec::new();
    for mode in [NFTABLES, IPVS, NFTABLES, IPVS] {
        for stream in [Kept::open(nodes.node()?)?, Kept::open(nodes.outside()?)?, Kept::open(nodes.pod("172.7.21.2")?)?]
        {
            streams.push((stream, String::new()));
        }
        for (stream, name) in streams.iter_mut().filter(|(_, name)| name.is_empty()) {
            *name = stream.ask()?;
        }
        proxy = change.to(nodes, mode, proxy)?;
        await_path(nodes, mode)?;
        for (index, (stream, name)) in streams.iter_mut().enumerate() {
            let answered = stream.ask().with_context(|| format!("stream {index} with {mode}"))?;
            ensure!(answered == *name, "stream {index} with {mode}: {answered}, not {name}");
        }
        ensure!(ask(&flow).context(mode)? == answering, "the flow has moved with {mode}");
    }
    Ok(proxy)
}

fn no_connection_fails_while_the_data_path_changes_to_and_fro() -> Result<()> {
    no_connection_fails_while_it_changes(Change::Start)
}

fn no_connection_fails_while_the_file_changes_the_data_path_to_and_fro() -> Result<()> {
    no_connection_fails_while_it_changes(Change::File)
}

fn no_connection_fails_while_it_changes(change: Change) -> Result<()> {
    let nodes = start()?;
    let proxy = change.begin(&nodes)?;
    let begun = proxy.pid();
    let stop = AtomicBool::new(false);
    let connected = std::thread::scope(|scope| -> Result<Vec<usize>> {
        let clients = [
            scope.spawn(|| connect(nodes.outside()?, WEB, &stop)),
            scope.spawn(|| connect(nodes.node()?, WEB, &stop)),
            scope.spawn(|| connect(nodes.pod("172.7.21.2")?, WEB, &stop)),
        ];
        let changed = change_again_and_again(&nodes, change, proxy);
        stop.store(true, Ordering::Relaxed);
        let connected = clients.into_iter().map(|client| client.join().unwrap()).collect::<Result<Vec<_>>>();
        let (same, proxy) = (matches!(change, Change::File), changed?);
        ensure!((proxy.pid() == begun) == same && proxy.is_running(), "{begun} and {}", proxy.pid());
        connected
    })?;
    ensure!(connected.iter().all(|count| *count >= 10), "{connected:?}");
    Ok(())
}

const WEB6: &str = "[fd09::10]:80";

/// Waits until new connections of IPv6 are carried by this path.
fn await_path6(nodes: &Nodes, mode: &str) -> Result<()> {
    eventually(SOON, || {
        let map = nodes.node()?.run(&["nft", "list", "map", "ip6", "ipvs-proxy", "services"])?.stdout;
        let serving = servers(nodes.node()?)?.iter().filter(|line| line.ends_with("-w 1")).count();
        ensure!(
            (serving == 4) == (mode == "ipvs") && map.contains("choose/4/") == (mode == "nftables"),
            "{serving}; {map}"
        );
        Ok(())
    })
}

/// Changes the mode twice; what was opened in each goes on.
fn change_over_ipv6(nodes: &Nodes, mut proxy: Process) -> Result<Process> {
    let mut streams = Vec::new();
    for mode in ["nftables", "ipvs"] {
        let places = [
            echo::Connection::open(nodes.outside()?, WEB6.parse()?, SOON)?,
            echo::Connection::open(nodes.pod("172.7.21.2")?, WEB6.parse()?, SOON)?,
        ];
        for mut stream in places {
            let name = stream.ask()?.name;
            streams.push((stream, name));
        }
        proxy.kill()?;
        proxy = families::proxy(nodes, mode, &families::DUAL)?;
        await_path6(nodes, mode)?;
        for (index, (stream, name)) in streams.iter_mut().enumerate() {
            let answer = stream.ask().with_context(|| format!("stream {index} with {mode}"))?;
            ensure!(answer.name == *name, "stream {index} with {mode}: {}, not {name}", answer.name);
        }
    }
    Ok(proxy)
}

fn no_connection_over_ipv6_fails_while_the_data_path_changes() -> Result<()> {
    let nodes = families::start()?;
    nodes.publish("web.yaml", &families::web("clusterIP: \"fd09::10\"", "SingleStack"))?;
    let proxy = families::proxy(&nodes, "ipvs", &families::DUAL)?;
    await_path6(&nodes, "ipvs")?;
    let stop = AtomicBool::new(false);
    let connected = std::thread::scope(|scope| -> Result<Vec<usize>> {
        let clients = [
            scope.spawn(|| connect(nodes.outside()?, WEB6, &stop)),
            scope.spawn(|| connect(nodes.pod("172.7.21.2")?, WEB6, &stop)),
        ];
        let changed = change_over_ipv6(&nodes, proxy);
        stop.store(true, Ordering::Relaxed);
        let connected = clients.into_iter().map(|client| client.join().unwrap()).collect::<Result<Vec<_>>>();
        drop(changed?);
        connected
    })?;
    ensure!(connected.iter().all(|count| *count >= 10), "{connected:?}");
    Ok(())
}

fn what_ipvs_had_goes_with_its_last_connection() -> Result<()> {
    let nodes = start()?;
    let node = nodes.node()?;
    let proxy = nodes.proxy_with(&[IPVS])?;
    await_path(&nodes, IPVS)?;
    let mut kept = Kept::open(nodes.outside()?)?;
    let name = kept.ask()?;
    ensure!(proxy.terminate(SOON)?.success());
    let _proxy = nodes.proxy_with(&[NFTABLES])?;
    await_path(&nodes, NFTABLES)?;
    let addresses = || -> Result<String> { Ok(node.run(&["ip", "-o", "-4", "address"])?.stdout) };
    eventually(SOON, || {
        let left = servers(node)?;
        ensure!(!left.iter().any(|line| line.contains("192.168.0.53")), "nobody is connected to dns: {left:?}");
        ensure!(!addresses()?.contains("192.168.0.53"), "{}", addresses()?);
        Ok(())
    })?;
    ensure!(addresses()?.contains("192.168.0.10") && kept.ask()? == name);
    drop(kept);
    eventually(Duration::from_secs(60), || {
        let links = node.run(&["ip", "-o", "link"])?.stdout;
        ensure!(servers(node)?.is_empty() && !links.contains("kube-ipvs0"), "{:?} {links}", servers(node)?);
        Ok(())
    })?;
    ensure!(echo::ask_tcp(nodes.outside()?, WEB.parse()?, SOON).is_ok());
    Ok(())
}

/// Rules as a kube-proxy of the iptables mode leaves them, and two chains of kubelet's.
const LEFT: &str = r#"*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-SVC-ERIFXISQEP7F7OF4 - [0:0]
:KUBE-SEP-QHBCFE2FHJNKNCXS - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 192.168.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-ERIFXISQEP7F7OF4
-A KUBE-SVC-ERIFXISQEP7F7OF4 ! -s 172.7.0.0/16 -j KUBE-MARK-MASQ
-A KUBE-SVC-ERIFXISQEP7F7OF4 -j KUBE-SEP-QHBCFE2FHJNKNCXS
-A KUBE-SEP-QHBCFE2FHJNKNCXS -p tcp -m tcp -j DNAT --to-destination 172.7.22.2:80
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
"#;

fn what_a_stopped_kube_proxy_has_left_goes_on_request_and_its_connections_go_on() -> Result<()> {
    let nodes = start()?;
    let node = nodes.node()?;
    node.command("iptables-nft-restore").input(LEFT).run()?;
    node.run(&["nft", "add table ip kube-proxy; add chain ip kube-proxy services; add table ip others"])?;
    let mut kept = Kept::open(nodes.outside()?)?;
    ensure!(kept.ask()? == "172.7.22.2", "by the rules that were left");
    let _proxy = nodes.proxy_with(&[NFTABLES])?;
    await_path(&nodes, NFTABLES)?;
    let said = node.command(lab::bin("ipvs-proxy")?).arg("--cleanup-kube-proxy").run()?.stdout;
    ensure!(said.contains("removed nft table ip kube-proxy") && said.contains("chains of nft table ip nat"), "{said}");
    let left = node.run(&["iptables-nft-save"])?.stdout + &node.run(&["nft", "list", "tables"])?.stdout;
    for gone in [
        "KUBE-SERVICES",
        "KUBE-SVC-",
        "KUBE-SEP-",
        "KUBE-POSTROUTING",
        "KUBE-PROXY-CANARY",
        "KUBE-FORWARD",
        "ip kube-proxy",
    ] {
        ensure!(!left.contains(gone), "{gone}: {left}");
    }
    for others in ["-A INPUT -j KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "table ip others", "table ip ipvs-proxy"] {
        ensure!(left.contains(others), "{others}: {left}");
    }
    ensure!(kept.ask()? == "172.7.22.2");
    ensure!(echo::ask_tcp(nodes.outside()?, WEB.parse()?, SOON).is_ok());
    let again = node.command(lab::bin("ipvs-proxy")?).arg("--cleanup-kube-proxy").run()?.stdout;
    ensure!(again.contains("nothing of a kube-proxy was found"), "{again}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            no_connection_fails_while_the_data_path_changes_to_and_fro,
            no_connection_over_ipv6_fails_while_the_data_path_changes,
            no_connection_fails_while_the_file_changes_the_data_path_to_and_fro,
            what_ipvs_had_goes_with_its_last_connection,
            what_a_stopped_kube_proxy_has_left_goes_on_request_and_its_connections_go_on,
        ],
    )
}
