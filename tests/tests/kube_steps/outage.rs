//! A control plane that is away for longer than a restart.
//!
//! Invariant: what the kernel reports of its rules and routes meanwhile is read from its own messages, not from two looks alone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Host, Process, eventually, throughout};

use super::{clients, serve, step};
use crate::kube_cluster::{Cluster, LIMIT, NODES, load};

const AWAY: Duration = Duration::from_secs(60);

/// What a node's data path is, but for elements that expire, as those of endpoints that have gone do, which the kernel reports nobody.
fn data_path(host: &Host) -> Result<Vec<String>> {
    let script = "nft -s list ruleset | grep -v ' timeout [0-9]'; ip route; bridge fdb show dev flannel.1; ip neigh show dev flannel.1 nud permanent; \
        ip -o link show type veth | wc -l";
    let said = host.run(&["bash", "-ec", script])?.stdout;
    let mut words: Vec<String> = said.split([' ', ',', '\n', '\t']).map(str::to_owned).collect();
    words.sort();
    Ok(words)
}

/// Messages of the kernel about each change of a node's rules and routes.
struct Changes(Vec<Process>);

impl Changes {
    fn watch(host: &Host) -> Result<Self> {
        let watches = [host.command("nft").arg("monitor"), host.command("ip").args(["monitor", "route"])];
        Ok(Self(watches.into_iter().map(|watch| watch.start("changes")).collect::<Result<_>>()?))
    }

    /// Waits until they report a change of our own, and gives what they have reported.
    fn seen(&self, host: &Host) -> Result<String> {
        host.run(&["bash", "-ec", "nft add table ip lab-mark; ip route add blackhole 192.0.2.77/32"])?;
        eventually(LIMIT, || {
            let said: Vec<String> = self.0.iter().map(Process::log).collect();
            ensure!(said[0].contains("lab-mark") && said[1].contains("192.0.2.77"), "{said:?}");
            Ok(())
        })?;
        host.run(&["bash", "-ec", "nft delete table ip lab-mark; ip route del blackhole 192.0.2.77/32"])?;
        Ok(self.0.iter().map(|process| process.log()).collect())
    }
}

fn stop(cluster: &mut Cluster) -> Result<()> {
    cluster.control.stop()?;
    cluster.server.stop()
}

pub(crate) fn a_minute_without_a_control_plane_changes_nothing_in_the_kernel_and_fails_no_request() -> Result<()> {
    step(|cluster| {
        serve(cluster, 4)?;
        cluster.equals()?;
        let hosts = clients(cluster)?.map(|(host, url)| (host.clone(), url));
        let clients = hosts.each_ref().map(|(host, url)| (host, *url));
        let (served, ()) = load::without_a_failure(&clients, || {
            let mut nodes = Vec::new();
            for name in NODES {
                let host = cluster.host(name)?.clone();
                nodes.push((data_path(&host)?, Changes::watch(&host)?, host));
            }
            stop(cluster)?;
            throughout(AWAY, || {
                for name in NODES {
                    cluster.host(name)?.run(&["curl", "-fsS", "--max-time", "5", "http://127.0.0.1:10256/livez"])?;
                }
                Ok::<_, anyhow::Error>(())
            })?;
            for (before, changes, host) in &nodes {
                let seen = changes.seen(host)?;
                let is_our_mark =
                    |line: &&str| ["lab-mark", "192.0.2.77", "# new generation"].iter().any(|mark| line.contains(mark));
                let others: Vec<_> = seen.lines().filter(|line| !is_our_mark(line)).collect();
                ensure!(others.is_empty(), "changed on {} meanwhile: {others:#?}", host.name());
                let now = data_path(host)?;
                ensure!(*before == now, "{} was {before:?} and is {now:?}", host.name());
            }
            cluster.server.start_again()?;
            cluster.control.start_again(&cluster.server)?;
            // Changes are followed again.
            cluster.ready()?;
            cluster.scale("web", 6)?;
            cluster.pods_of("app=web", 6).map(drop)
        })
        .context("the outage")?;
        println!("a minute without a control plane: {served:?} requests of the nodes were answered");
        Ok(())
    })
}
