//! Programs that are killed at random while clients ask.
//!
//! Invariant: the order is that of a seed, which is printed; `KILLS_SEED` repeats one. What a node's init system starts again is started again at
//! once: kubelet, containerd, the API server. Our programs are started again by kubelet.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::{clients, serve_as, step};
use crate::kube_cluster::manifests::SETS;
use crate::kube_cluster::pods::deployment;
use crate::kube_cluster::{Cluster, NODES, load};

const KILLS: usize = 12;

/// Numbers of a seed (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> Result<usize> {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        Ok(usize::try_from((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % u64::try_from(end)?)?)
    }
}

/// What can be killed on a node; the API server is of the cluster.
const VICTIMS: [&str; 5] = ["kubelet", "containerd", "netd", "ipvs-proxy", "kube-apiserver"];

fn seed() -> Result<u64> {
    match std::env::var("KILLS_SEED") {
        Ok(text) => text.parse().with_context(|| format!("KILLS_SEED={text}")),
        Err(_) => {
            Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() & u128::from(u64::MAX))? | 1)
        }
    }
}

/// Kills one, and starts it again where no kubelet does; says whether it ran.
fn kill(cluster: &mut Cluster, victim: &str, node: &str) -> Result<bool> {
    if victim == "kube-apiserver" {
        cluster.server.stop()?;
        return cluster.server.start_again().map(|()| true);
    }
    if SETS.contains(&victim) {
        return cluster.node(node)?.kill_container(victim);
    }
    let node = cluster.node_mut(node)?;
    if victim == "kubelet" {
        node.kubelet.process().kill()?;
        node.kubelet.start_again()?;
    } else {
        node.runtime.containerd().process().kill()?;
        node.runtime.containerd_mut().start_again()?;
    }
    Ok(true)
}

pub(crate) fn programs_killed_at_random_fail_no_request_and_every_node_gets_equal_again() -> Result<()> {
    step(|cluster| {
        let mut web = deployment("web", 4);
        // A kubelet that starts takes Pods with a readiness probe as not ready until it has probed them, on both nodes at once if it must be.
        let container = web.pointer_mut("/spec/template/spec/containers/0").and_then(|one| one.as_object_mut());
        container.context("a container")?.remove("readinessProbe");
        serve_as(cluster, &web, 4)?;
        let seed = seed()?;
        println!("kills: KILLS_SEED={seed}");
        let mut numbers = Numbers(seed);
        let hosts = clients(cluster)?.map(|(host, url)| (host.clone(), url));
        let clients = hosts.each_ref().map(|(host, url)| (host, *url));
        let (served, killed) = load::without_a_failure(&clients, || {
            let mut killed = Vec::new();
            for _ in 0..KILLS {
                let (victim, node) = (VICTIMS[numbers.below(VICTIMS.len())?], NODES[numbers.below(NODES.len())?]);
                let ran =
                    kill(cluster, victim, node).with_context(|| format!("kill {victim} on {node} after {killed:?}"))?;
                let place = if victim == "kube-apiserver" { String::new() } else { format!(" on {node}") };
                killed.push(format!("{victim}{place}{}", if ran { "" } else { " (waiting to be started)" }));
                // Not in a rhythm of the programs' own.
                thread::park_timeout(Duration::from_millis(u64::try_from(numbers.below(1500)?)?));
            }
            cluster.ready()?;
            SETS.iter().try_for_each(|name| cluster.rolled_out(name))?;
            Ok(killed)
        })
        .with_context(|| format!("KILLS_SEED={seed}"))?;
        ensure!(killed.len() == KILLS, "{killed:?}");
        println!("kills: {served:?} requests of the nodes were answered while {killed:?}");
        // New Pods come up, and go: no longer under clients, since one without a probe is ready before it serves.
        cluster.scale("web", 8)?;
        cluster.pods_of("app=web", 8)?;
        cluster.equals()?;
        Ok(())
    })
}
