//! `ipvs-proxy` with kube-proxy's configuration file and under its name.
#![allow(clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Command, Host, Need, Process, eventually};
use proxy::{Nodes, SERVICES, SOON, WEB_YAML};

const FILE: &str = "/run/kube-proxy.yaml";

/// The example that ships with the product.
const EXAMPLE: &str = include_str!("../../configs/kube-proxy/config.yaml");

/// Writes the file whole and at once, as an editor does.
fn configure(host: &Host, text: &str) -> Result<()> {
    host.write("/run/kube-proxy.new", text)?;
    host.run(&["mv", "/run/kube-proxy.new", FILE]).map(drop)
}

/// The example with other lines.
fn example(lines: &[(&str, &str)]) -> Result<String> {
    let mut text = EXAMPLE.to_owned();
    for (old, new) in lines {
        ensure!(text.contains(old), "{EXAMPLE} lacks {old}");
        text = text.replace(old, new);
    }
    Ok(text)
}

/// The program under the name of kube-proxy.
fn kube_proxy(host: &Host) -> Result<Command> {
    let own = lab::bin("ipvs-proxy")?;
    let own = own.to_string_lossy();
    host.run(&["ln", "-sf", &own, "/run/kube-proxy"])?;
    // The form of the log is the file's.
    let command = host.command("/run/kube-proxy").env_remove("IPVS_PROXY_LOG_FORMAT");
    Ok(command.arg(format!("--config={FILE}")).arg(format!("--services-dir={SERVICES}")))
}

fn start(nodes: &Nodes) -> Result<Process> {
    let process = kube_proxy(nodes.node()?)?.start("kube-proxy")?;
    process.wait_for_line("ready", SOON)?;
    Ok(process)
}

/// IPVS's time-outs, as ipvsadm prints them: TCP, TCP after a FIN, UDP.
fn timeouts(host: &Host) -> Result<String> {
    let text = host.run(&["ipvsadm", "-L", "--timeout"])?.stdout;
    Ok(text.trim().rsplit(": ").next().unwrap_or_default().to_owned())
}

/// A kernel parameter of the host.
fn parameter(host: &Host, name: &str) -> Result<String> {
    Ok(host.run(&["sysctl", "-n", name])?.stdout.trim().to_owned())
}

fn a_file_configures_kube_proxys_namesake_and_is_followed() -> Result<()> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let node = nodes.node()?;
    configure(node, &example(&[("tcpTimeout: 15m", "tcpTimeout: 17m"), ("scheduler: rr", "scheduler: wlc")])?)?;
    let proxy = start(&nodes)?;
    ensure!(timeouts(node)?.starts_with("1020 "), "{}", timeouts(node)?);
    let servers = node.run(&["ipvsadm", "-Sn"])?.stdout;
    ensure!(servers.contains("-A -t 192.168.0.10:80 -s wlc"), "{servers}");
    ensure!(parameter(node, "net.netfilter.nf_conntrack_tcp_timeout_established")? == "86400");
    let health = nodes.outside()?.run(&["curl", "-s", "--max-time", "5", "http://10.4.7.21:10256/healthz"])?.stdout;
    ensure!(health.contains("\"healthy\":true"), "kube-proxy's default serves others: {health}");
    configure(node, &example(&[("tcpTimeout: 15m", "tcpTimeout: 20m"), ("scheduler: rr", "scheduler: wlc")])?)?;
    eventually(SOON, || {
        let found = timeouts(node)?;
        ensure!(found.starts_with("1200 "), "{found}");
        Ok(())
    })?;
    configure(node, &example(&[("tcpTimeout: 15m", "tcpTimeout: 900"), ("clusterCIDR: 172", "clusterCidr: 172")])?)?;
    eventually(SOON, || {
        let advice = nodes.status()?["advice"].to_string();
        ensure!(
            advice.contains("ipvs.tcpTimeout: 900; accepted: a time such as") && advice.contains("stays in force"),
            "{advice}"
        );
        Ok(())
    })?;
    ensure!(timeouts(node)?.starts_with("1200 "), "what was in force stays");
    in_force_without_a_new_start(&nodes)?;
    configure(node, &example(&[("mode: ipvs", "mode: ipvs\nlogging: {format: json}")])?)?;
    proxy.wait_for_line("takes a new start of this program (logging.format: ", SOON)?;
    let ended = proxy.wait(SOON)?;
    ensure!(!ended.success(), "a service manager starts it again: {ended:?}");
    let servers = node.run(&["ipvsadm", "-Sn"])?.stdout;
    ensure!(servers.contains("-A -t 192.168.0.10:80 -s sh"), "the data path stays: {servers}");
    Ok(())
}

/// Changes what rows, parameters and listeners depend on, and then to what this kernel has not.
fn in_force_without_a_new_start(nodes: &Nodes) -> Result<()> {
    let node = nodes.node()?;
    let changed = [
        ("scheduler: rr", "scheduler: sh\n  strictARP: true"),
        ("172.7.0.0/16", "172.6.0.0/15"),
        ("127.0.0.1:10249", "127.0.0.1:10259"),
        ("tcpEstablishedTimeout: 24h", "tcpEstablishedTimeout: 23h"),
    ];
    configure(node, &example(&changed)?)?;
    let mode = |port| node.run(&["curl", "-s", "--max-time", "5", &format!("http://127.0.0.1:{port}/proxyMode")]);
    let in_force = || -> Result<()> {
        let servers = node.run(&["ipvsadm", "-Sn"])?.stdout;
        ensure!(servers.contains("-A -t 192.168.0.10:80 -s sh"), "{servers}");
        let table = node.run(&["nft", "list", "table", "ip", "ipvs-proxy"])?.stdout;
        ensure!(table.contains("172.6.0.0/15") && !table.contains("172.7.0.0/16"), "{table}");
        ensure!(parameter(node, "net.netfilter.nf_conntrack_tcp_timeout_established")? == "82800");
        ensure!(parameter(node, "net.ipv4.conf.all.arp_ignore")? == "1");
        ensure!(mode(10259)?.stdout == "ipvs" && mode(10249).is_err(), "the listener has moved");
        Ok(())
    };
    eventually(SOON, in_force)?;
    configure(node, &example(&[("scheduler: rr", "scheduler: nobodys")])?)?;
    eventually(SOON, || {
        let advice = nodes.status()?["advice"].to_string();
        ensure!(advice.contains("ipvs.scheduler") && advice.contains("stays in force"), "{advice}");
        Ok(())
    })?;
    in_force()?;
    configure(node, &example(&changed)?)?;
    eventually(SOON, || {
        let advice = nodes.status()?["advice"].to_string();
        ensure!(!advice.contains("stays in force"), "{advice}");
        Ok(())
    })
}

fn init_only_prepares_the_host_and_ends() -> Result<()> {
    let nodes = Nodes::start()?;
    let node = nodes.node()?;
    node.run(&["sysctl", "-qw", "net.ipv4.vs.conntrack=0"])?;
    configure(node, &example(&[("ipvs:", "ipvs:\n  strictARP: true")])?)?;
    let said = kube_proxy(node)?.arg("--init-only").run()?.stdout;
    ensure!(
        said.contains("net/ipv4/vs/conntrack is 1") && said.contains("net/ipv4/conf/all/arp_ignore is 1"),
        "{said}"
    );
    ensure!(timeouts(node)?.starts_with("900 "), "{}", timeouts(node)?);
    ensure!(parameter(node, "net.ipv4.conf.all.arp_announce")? == "2");
    let rows = node.run(&["ipvsadm", "-Sn"])?.stdout;
    ensure!(rows.trim().is_empty(), "nothing else is done: {rows}");
    Ok(())
}

fn written_configuration_is_accepted_and_has_the_defaults() -> Result<()> {
    let host = Host::start("node")?;
    configure(&host, EXAMPLE)?;
    kube_proxy(&host)?.arg("--write-config-to=/run/written.yaml").run()?;
    let written = host.read("/run/written.yaml")?;
    for line in
        ["kind: KubeProxyConfiguration", "  scheduler: rr", "  tcpTimeout: 15m", "  maxPerCore: 0", "oomScoreAdj: -999"]
    {
        ensure!(written.lines().any(|found| found == line), "{written}\nlacks {line:?}");
    }
    configure(&host, &written)?;
    kube_proxy(&host)?.arg("--write-config-to=/run/again.yaml").run()?;
    ensure!(host.read("/run/again.yaml")? == written);
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::IpVs, Need::Nftables, Need::Dummy],
        lab::tests![
            a_file_configures_kube_proxys_namesake_and_is_followed,
            init_only_prepares_the_host_and_ends,
            written_configuration_is_accepted_and_has_the_defaults,
        ],
    )
}
