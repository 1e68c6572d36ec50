//! A real etcd of three members and everything that happens to one: the data path stays, and what changes is followed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Etcd, Host, Need, eventually};
use netd_node::traffic::Traffic;
use netd_node::{Net, SOON, VXLAN, kernel_state, pod};
use serde_json::Value;

/// The machines of etcd's members; none of them runs netd.
const MEMBERS: [&str; 3] = ["hdss7-11", "hdss7-12", "hdss7-200"];

/// The reference cluster with three members that hold `config`.
fn three(config: &str) -> Result<Net> {
    let cluster = Cluster::reference()?;
    let hosts = MEMBERS.map(|name| cluster.host(name).cloned()).into_iter().collect::<Result<Vec<_>>>()?;
    let etcd = Etcd::start(&hosts)?;
    etcd.put("/coreos.com/network/config", config)?;
    Ok(Net { cluster, etcd })
}

/// Another node's lease is written, and both nodes have a route to it.
fn follows(net: &Net, number: u8) -> Result<()> {
    let (ip, mac) = (format!("10.4.7.{number}"), format!("02:00:00:00:01:{number:02x}"));
    eventually(SOON, || net.put_lease(&format!("172.7.{number}.0-24"), &ip, &mac))?;
    ["hdss7-21", "hdss7-22"].iter().try_for_each(|node| net.eventually_routes(node, &format!("172.7.{number}.0/24")))
}

/// Two nodes whose Pods talk while `trouble` happens to etcd: nothing is lost, and at its end changes are followed.
fn through(trouble: impl FnOnce(&mut Net) -> Result<()>) -> Result<()> {
    let mut net = three(VXLAN)?;
    let netd = net.both()?;
    let (from, to) = (pod(net.host("hdss7-21")?, "172.7.21")?, pod(net.host("hdss7-22")?, "172.7.22")?);
    let traffic = Traffic::start(from, &to, "172.7.22.2")?;
    trouble(&mut net)?;
    follows(&net, 99)?;
    let counts = traffic.stop()?;
    ensure!(counts.lost == 0, "{counts:?}");
    ensure!(netd.iter().all(lab::Process::is_running));
    Ok(())
}

/// Waits until both nodes say that the store is out of reach, or in reach.
fn await_reach(net: &Net, reached: bool) -> Result<()> {
    eventually(2 * SOON, || {
        for node in ["hdss7-21", "hdss7-22"] {
            let status = net.status(node)?;
            ensure!(status["store"]["lost"].is_null() == reached, "{node}: {}", status["store"]);
        }
        Ok(())
    })
}

fn outage_of_every_member_costs_nothing_and_ends_by_itself() -> Result<()> {
    through(|net| {
        for member in MEMBERS {
            net.etcd.kill(member)?;
        }
        await_reach(net, false)?;
        net.etcd.restart_all(&MEMBERS)?;
        await_reach(net, true)
    })
}

fn each_member_dead_in_turn_stops_nobody() -> Result<()> {
    through(|net| {
        for (number, member) in (90..).zip(MEMBERS) {
            net.etcd.kill(member)?;
            follows(net, number)?;
            net.etcd.restart(member)?;
        }
        Ok(())
    })
}

fn loss_of_the_leader_stops_nobody() -> Result<()> {
    through(|net| {
        let text = net.etcd.etcdctl(&["endpoint", "status", "--cluster", "--write-out=json"])?.stdout;
        let members: Value = serde_json::from_str(&text)?;
        let leads = |member: &&Value| member["Status"]["leader"] == member["Status"]["header"]["member_id"];
        let leader = members.as_array().context("no list")?.iter().find(leads).context("no leader")?;
        let url = leader["Endpoint"].as_str().context("no endpoint")?;
        let host = net.cluster.hosts().find(|host| host.address().is_ok_and(|ip| url.contains(&format!("/{ip}:"))));
        let leader = host.with_context(|| url.to_owned())?.name().to_owned();
        net.etcd.kill(&leader)?;
        follows(net, 90)?;
        net.etcd.restart(&leader)
    })
}

fn each_member_paused_in_turn_is_left() -> Result<()> {
    through(|net| {
        for (number, member) in (90..).zip(MEMBERS) {
            net.etcd.pause(member)?;
            follows(net, number)?;
            net.etcd.resume(member)?;
            net.etcd.wait_ready()?;
        }
        Ok(())
    })
}

/// Drops a host's packets of these TCP ports, until the returned value is dropped.
struct Cut(Host);

impl Cut {
    fn new(host: &Host, port: u16) -> Result<Self> {
        let rules = format!(
            "table inet cut {{\n chain in {{ type filter hook input priority 0; tcp dport {port} drop; tcp sport {port} drop; }}\n \
             chain out {{ type filter hook output priority 0; tcp dport {port} drop; tcp sport {port} drop; }}\n}}\n"
        );
        host.command("nft").args(["-f", "-"]).input(rules).run()?;
        Ok(Self(host.clone()))
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let _ = self.0.run(&["nft", "delete", "table", "inet", "cut"]);
    }
}

/// It goes on answering, and cannot know what is true any more.
fn each_member_without_its_peers_is_left() -> Result<()> {
    through(|net| {
        for (number, member) in (90..).zip(MEMBERS) {
            let cut = Cut::new(net.host(member)?, 2380)?;
            let (ip, mac) = (format!("10.4.7.{number}"), format!("02:00:00:00:01:{number:02x}"));
            // By a member that has its peers; the first of the list may be the one that has not.
            let other = MEMBERS.iter().find(|other| **other != member).context("no other")?;
            let other = net.host(other)?;
            let endpoint = format!("--endpoints=http://{}:2379", other.address()?);
            let (key, value) =
                (format!("/coreos.com/network/subnets/172.7.{number}.0-24"), netd_node::lease(&ip, &mac));
            let put = || other.command("etcdctl").env("ETCDCTL_API", "3").args([&endpoint, "put", "--", &key, &value]);
            eventually(SOON, || put().run())?;
            for node in ["hdss7-21", "hdss7-22"] {
                net.eventually_routes(node, &format!("172.7.{number}.0/24"))?;
            }
            drop(cut);
            net.etcd.wait_ready()?;
        }
        Ok(())
    })
}

fn compaction_while_a_node_is_cut_off_is_made_up_for() -> Result<()> {
    through(|net| {
        net.put_lease("172.7.90.0-24", "10.4.7.90", "02:00:00:00:01:90")?;
        net.eventually_routes("hdss7-21", "172.7.90.0/24")?;
        let cut = Cut::new(net.host("hdss7-21")?, 2379)?;
        eventually(2 * SOON, || {
            let status = net.status("hdss7-21")?;
            ensure!(status["store"]["lost"].is_string(), "{}", status["store"]);
            Ok::<_, anyhow::Error>(())
        })?;
        net.etcd.delete("/coreos.com/network/subnets/172.7.90.0-24")?;
        net.put_lease("172.7.91.0-24", "10.4.7.91", "02:00:00:00:01:91")?;
        let text = net.etcd.etcdctl(&["get", "--write-out=json", "--", "none"])?.stdout;
        let revision = serde_json::from_str::<Value>(&text)?["header"]["revision"].to_string();
        net.etcd.etcdctl(&["compact", "--physical", &revision])?;
        drop(cut);
        net.eventually_routes("hdss7-21", "172.7.91.0/24")?;
        eventually(SOON, || {
            let state = kernel_state(net.host("hdss7-21")?)?;
            ensure!(!state.contains("172.7.90."), "{state}");
            Ok(())
        })
    })
}

/// netd knows one member of three by its flags; in the end none of the members is one that it was started with.
fn members_that_were_exchanged_are_learned_from_the_cluster() -> Result<()> {
    let mut net = three(VXLAN)?;
    let first = format!("--etcd-endpoints=http://{}:2379", net.host(MEMBERS[0])?.address()?);
    let both = [net.launch("hdss7-21", &[&first])?, net.launch("hdss7-22", &[&first])?];
    net.eventually_routes("hdss7-21", "172.7.22.0/24")?;
    for netd in &both {
        netd.wait_for_line("etcd's members, as configured and as the cluster names them", SOON)?;
    }
    // Its place is taken by a new member; the audit or the loss of the stream shows that.
    eventually(SOON, || net.etcd.remove(MEMBERS[0]))?;
    follows(&net, 90)?;
    let new = net.host("hdss7-21")?.clone();
    net.etcd.add(&new)?;
    for old in [MEMBERS[1], MEMBERS[2]] {
        // Whoever listens to it lists anew at another one, and learns.
        net.etcd.pause(old)?;
        follows(&net, if old == MEMBERS[1] { 91 } else { 92 })?;
        net.etcd.resume(old)?;
        net.etcd.wait_ready()?;
    }
    eventually(SOON, || {
        ensure!(both[0].log().contains("http://10.4.7.21:2379"), "{}", both[0].log());
        Ok(())
    })
}

fn member_of_another_cluster_is_not_believed() -> Result<()> {
    through(|net| {
        net.etcd.kill(MEMBERS[2])?;
        net.etcd.secede(MEMBERS[2])?;
        let before = kernel_state(net.host("hdss7-21")?)?;
        // Nobody else answers this node for a while.
        let rules = "table inet cut {\n chain out {\n type filter hook output priority 0\n \
                     ip daddr { 10.4.7.11, 10.4.7.12 } tcp dport 2379 drop\n }\n}\n";
        let host = net.host("hdss7-21")?;
        host.command("nft").args(["-f", "-"]).input(rules).run()?;
        eventually(2 * SOON, || {
            let status = net.status("hdss7-21")?;
            let lost = status["store"]["lost"].to_string();
            ensure!(lost.contains("belongs to another cluster"), "{lost}");
            Ok::<_, anyhow::Error>(())
        })?;
        host.run(&["nft", "delete", "table", "inet", "cut"])?;
        eventually(2 * SOON, || {
            let status = net.status("hdss7-21")?;
            ensure!(status["store"]["lost"].is_null() && status["store"]["broken"].is_null(), "{}", status["store"]);
            Ok::<_, anyhow::Error>(())
        })?;
        let now = kernel_state(host)?;
        ensure!(now == before, "{now}\n--- instead of\n{before}");
        Ok(())
    })
}

/// The folder of older distributions, users, and members that forget their tokens.
fn users_and_another_folder_go_through_a_restart_of_every_member() -> Result<()> {
    let mut net = three(VXLAN)?;
    let ctl = |net: &Net, words: &[&str]| net.etcd.etcdctl(words);
    net.etcd.put("/atomic.io/network/config", VXLAN)?;
    for words in [
        &["user", "add", "root:hunter2"][..],
        &["user", "add", "netd:s3cret"],
        &["role", "add", "network"],
        &["role", "grant-permission", "network", "--prefix=true", "readwrite", "/atomic.io/network/"],
        &["user", "grant-role", "netd", "network"],
        &["user", "grant-role", "root", "root"],
        &["auth", "enable"],
    ] {
        ctl(&net, words)?;
    }
    let flags = ["--etcd-prefix=/atomic.io/network", "--etcd-username=netd", "--etcd-password=s3cret"];
    let both = [net.launch("hdss7-21", &flags)?, net.launch("hdss7-22", &flags)?];
    net.eventually_routes("hdss7-21", "172.7.22.0/24")?;
    for member in MEMBERS {
        net.etcd.kill(member)?;
    }
    await_reach(&net, false)?;
    net.etcd.restart_all(&MEMBERS)?;
    await_reach(&net, true)?;
    let value = netd_node::lease("10.4.7.99", "02:00:00:00:01:99");
    let put = ["--user=root:hunter2", "put", "--", "/atomic.io/network/subnets/172.7.99.0-24", &value];
    eventually(SOON, || ctl(&net, &put))?;
    for (node, netd) in ["hdss7-21", "hdss7-22"].iter().zip(&both) {
        net.eventually_routes(node, "172.7.99.0/24")?;
        ensure!(!netd.log().contains("s3cret"));
    }
    Ok(())
}

fn key_bound_to_a_foreign_etcd_lease_is_noticed_and_costs_no_row() -> Result<()> {
    let net = three(VXLAN)?;
    let [first, _second] = net.both()?;
    let before = kernel_state(net.host("hdss7-22")?)?;
    let key = "/coreos.com/network/subnets/172.7.21.0-24";
    let value = net.etcd.get(key)?.context("no lease")?;
    let granted = net.etcd.etcdctl(&["lease", "grant", "600"])?.stdout;
    let foreign = granted.split(' ').nth(1).context("no lease")?.to_owned();
    net.etcd.etcdctl(&["put", "--lease", &foreign, "--", key, &value])?;
    first.wait_for_line(&format!("its key was bound to etcd lease {foreign} by another program"), SOON)?;
    eventually(SOON, || {
        let warnings = net.status("hdss7-21")?["warnings"].to_string();
        ensure!(
            warnings.contains(&format!("another program bound this node's lease to etcd lease {foreign}")),
            "{warnings}"
        );
        Ok::<_, anyhow::Error>(())
    })?;
    // Its end is kept away from now on, and where it comes all the same the subnet is claimed anew.
    net.etcd.etcdctl(&["lease", "revoke", &foreign])?;
    eventually(SOON, || {
        ensure!(net.etcd.get(key)?.as_deref() == Some(&value), "{:?}", net.subnets()?);
        let warnings = net.status("hdss7-21")?["warnings"].to_string();
        ensure!(!warnings.contains(&foreign), "{warnings}");
        Ok::<_, anyhow::Error>(())
    })?;
    eventually(SOON, || {
        let now = kernel_state(net.host("hdss7-22")?)?;
        ensure!(now == before, "{now}\n--- instead of\n{before}");
        Ok(())
    })
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Vxlan, Need::Nftables],
        lab::tests![
            outage_of_every_member_costs_nothing_and_ends_by_itself,
            each_member_dead_in_turn_stops_nobody,
            loss_of_the_leader_stops_nobody,
            each_member_paused_in_turn_is_left,
            each_member_without_its_peers_is_left,
            compaction_while_a_node_is_cut_off_is_made_up_for,
            members_that_were_exchanged_are_learned_from_the_cluster,
            member_of_another_cluster_is_not_believed,
            users_and_another_folder_go_through_a_restart_of_every_member,
            key_bound_to_a_foreign_etcd_lease_is_noticed_and_costs_no_row,
        ],
    )
}
