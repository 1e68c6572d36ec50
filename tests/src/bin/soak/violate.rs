//! Breaks invariants on purpose, to see that each is found: `--violate`.
//!
//! Invariant: this is done behind the back of the ledger, as a fault of ours would be.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::eventually;

use crate::node::Daemon;
use crate::world::World;

/// How long the probes may take to find a broken path.
const FOUND: Duration = Duration::from_secs(120);

/// An address twice, something foreign deleted, files and a namespace that stay, a daemon that ends by itself, and a path that breaks.
pub(crate) fn all(world: &mut World) -> Result<()> {
    let pods = world.pods(None);
    let [first, .., last] = pods.as_slice() else { anyhow::bail!("two Pods") };
    let address = world.shared.lock().stations.get(first).and_then(crate::shared::Station::address).context("a Pod")?;
    let station = world.shared.lock().stations.get(last).cloned().context("a Pod")?;
    if let crate::shared::Spot::Pod(pod) = &station.spot {
        pod.sandbox.pod().run(&["ip", "address", "add", &format!("{address}/32"), "dev", "eth0"])?;
    }
    world.node("n2")?.sh("nft delete element inet theirs denied '{ 203.0.113.7 }'")?;
    world.node("n3")?.sh("mkdir /var/lib/cni/leak; touch /var/lib/cni/leak/a /var/lib/cni/leak/b /var/lib/cni/leak/c /var/lib/cni/leak/d; ip netns add leaked")?;
    let node = world.node_mut("n4")?;
    node.proxy.as_ref().context("a daemon")?.kill()?;
    let node = world.node_mut("n5")?;
    node.end(Daemon::Netd, false)?;
    node.sh("ip route flush proto 121")?;
    eventually(FOUND, || {
        let state = world.shared.lock();
        let found = state.violations.iter().any(|violation| violation.invariant == crate::prober::PATHS);
        anyhow::ensure!(found, "no broken path was found");
        Ok(())
    })
}
