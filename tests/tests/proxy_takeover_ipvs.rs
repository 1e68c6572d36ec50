//! From a real kube-proxy of the mode ipvs to ours and back, with packets, in the lab kernel.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;
mod takeover;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::harness::Suite;
use lab::kubernetes::Release;
use lab::{Host, KubeProxy, Need, eventually};
use proxy::{SOON, servers, spread};
use takeover::{Open, PODS, Takeover, bring_strangers, check_rules};

/// Addresses of the API's Services, that of the API server among them.
const SERVED: [&str; 3] = ["192.168.0.1/32", "192.168.0.10/32", "192.168.0.53/32"];

/// Virtual servers of others: by a firewall mark, and at an address of the node.
const STRANGERS: [&str; 3] =
    ["-A -f 7 -s rr", "-A -t 10.4.7.21:8080 -s rr", "-a -t 10.4.7.21:8080 -r 10.4.7.200:8080 -m -w 2"];

fn sets(node: &Host) -> Result<String> {
    Ok(node.run(&["ipset", "list", "-n"])?.stdout)
}

fn virtual_addresses(node: &Host) -> Result<Vec<String>> {
    let text = node.run(&["ip", "-o", "-4", "address", "show", "dev", "kube-ipvs0"])?.stdout;
    let mut addresses: Vec<_> =
        text.lines().filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned).collect();
    addresses.sort();
    Ok(addresses)
}

/// Waits for these addresses: a proxy that puts back what the other takes away does so every ten seconds.
fn await_addresses(node: &Host, wanted: &[&str]) -> Result<()> {
    eventually(SOON * 2, || {
        let addresses = virtual_addresses(node)?;
        ensure!(addresses == wanted, "{addresses:?}");
        Ok(())
    })
}

/// What a kube-proxy leaves of a Service that was deleted while it did not run.
fn leave(node: &Host) -> Result<()> {
    node.run(&["ip", "address", "add", "192.168.0.77/32", "dev", "kube-ipvs0"])?;
    node.run(&["ipset", "add", "KUBE-CLUSTER-IP", "192.168.0.77,tcp:80"])?;
    let rules = "-A -t 192.168.0.77:80 -s rr\n-a -t 192.168.0.77:80 -r 172.7.21.3:80 -m -w 1\n";
    node.command("ipvsadm").arg("-R").input(rules).run().map(drop)
}

/// Brings strangers in, cleans up, and looks at what is left.
fn clean_up(cluster: &Takeover) -> Result<()> {
    let node = cluster.nodes.node()?;
    bring_strangers(node)?;
    leave(node)?;
    node.run(&["ipset", "create", "others", "hash:ip"])?;
    node.command("ipvsadm").arg("-R").input(STRANGERS.join("\n") + "\n").run()?;
    let before = servers(node)?;
    let said = cluster.call("--cleanup-kube-proxy")?;
    ensure!(said.contains("set KUBE-CLUSTER-IP") && said.contains("chains of nft table ip nat"), "{said}");
    check_rules(node)?;
    ensure!(sets(node)?.trim() == "others", "{}", sets(node)?);
    await_addresses(node, &SERVED)?;
    let after = servers(node)?;
    ensure!(STRANGERS.iter().all(|line| after.contains(&(*line).to_owned())), "{after:?}");
    let lost: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    // We have no node ports at loopback.
    let is_left = |line: &str| ["127.0.0.1:", "192.168.0.77:"].iter().any(|part| line.contains(part));
    ensure!(
        lost.iter().all(|line| is_left(line)) && !after.iter().any(|line| is_left(line)),
        "{lost:?} went, {after:?} stay"
    );
    let again = cluster.call("--cleanup-kube-proxy")?;
    ensure!(again.contains("nothing of a kube-proxy was found"), "{again}");
    Ok(())
}

/// Changes the endpoints in the API, and waits until they are followed.
fn follows_the_api(cluster: &Takeover) -> Result<()> {
    for pods in [&PODS[1..], &PODS[..]] {
        cluster.web_is(pods)?;
        eventually(SOON, || {
            let answered: Vec<_> = spread(cluster.nodes.outside()?, 6)?.into_keys().collect();
            ensure!(answered == pods, "{answered:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn a_kube_proxy_of_ipvs_is_taken_over_and_takes_over_again_without_a_failed_connection() -> Result<()> {
    let cluster = Takeover::start()?;
    cluster.without_left()?;
    let node = cluster.nodes.node()?;
    let kube_proxy = KubeProxy::start(node, &cluster.api, "ipvs")?;
    ensure!(sets(node)?.contains("KUBE-CLUSTER-IP"), "it is in the mode ipvs: {}", kube_proxy.process().log());
    let mut open = Open::start(&cluster.nodes)?;
    let connected = cluster.under_load(|| {
        let ours = cluster.ours_from_the_api()?;
        open.goes_on("the start of ours")?;
        Takeover::end(&kube_proxy)?;
        clean_up(&cluster)?;
        open.goes_on("the clean-up behind kube-proxy")?;
        eventually(SOON, || {
            ensure!(cluster.nodes.status()?["ok"] == true, "{}", cluster.nodes.status()?);
            Ok(())
        })?;
        follows_the_api(&cluster)?;
        open.goes_on("changes in the API")?;
        let _kube_proxy = KubeProxy::start(node, &cluster.api, "ipvs")?;
        ensure!(ours.terminate(SOON)?.success());
        let said = cluster.call("--cleanup")?;
        ensure!(said.contains("are left to kube-proxy (process "), "{said}");
        let tables = node.run(&["nft", "list", "tables"])?.stdout;
        ensure!(!tables.contains("ipvs-proxy"), "{tables}");
        open.goes_on_with_kube_proxy("the way back")?;
        await_addresses(node, &SERVED)?;
        follows_the_api(&cluster)
    })?;
    // A request that fails ends its client with an error.
    println!("answered requests of the three clients: {connected:?}, none failed");
    ensure!(connected.iter().all(|count| *count >= 10), "{connected:?}");
    Ok(())
}

fn what_ipvs_carries_of_a_stopped_kube_proxy_stays_until_its_connections_have_ended() -> Result<()> {
    let cluster = Takeover::start()?;
    let node = cluster.nodes.node()?;
    let kube_proxy = KubeProxy::start(node, &cluster.api, "ipvs")?;
    let mut open = Open::start(&cluster.nodes)?;
    let connected = cluster.under_load(|| {
        let _ours = cluster.ours("nftables")?;
        open.goes_on("the start of ours")?;
        Takeover::end(&kube_proxy)?;
        bring_strangers(node)?;
        let said = cluster.call("--cleanup-kube-proxy")?;
        ensure!(
            said.contains("connections of these are open") && said.contains("virtual server tcp 192.168.0.10:80"),
            "{said}"
        );
        check_rules(node)?;
        ensure!(!servers(node)?.iter().any(|line| line.contains("192.168.0.77")), "{:?}", servers(node)?);
        open.goes_on("the clean-up behind kube-proxy")
    })?;
    ensure!(connected.iter().all(|count| *count >= 10), "{connected:?}");
    Ok(())
}

fn main() -> ExitCode {
    Suite::new(&[Need::IpVs, Need::Nftables, Need::Dummy]).with_kubernetes(Release::V1_20).run(lab::tests![
        a_kube_proxy_of_ipvs_is_taken_over_and_takes_over_again_without_a_failed_connection,
        what_ipvs_carries_of_a_stopped_kube_proxy_stays_until_its_connections_have_ended,
    ])
}
