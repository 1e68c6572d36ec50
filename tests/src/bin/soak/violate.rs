//! Breaks invariants on purpose, to see that each is found: `--violate`.
//!
//! Invariant: this is done behind the back of the ledger, as a fault of ours would be.

use std::time::Duration;

use anyhow::{Context, Result};
use lab::eventually;

use crate::act::membership;
use crate::node::Daemon;
use crate::world::{PREFIX, World};

/// How long the probes may take to find a broken path.
const FOUND: Duration = Duration::from_secs(120);

/// A lease inside that of a node, as a stranger writes it.
const OVERLAPPING: &str =
    r#"{"PublicIP":"10.4.7.66","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}}"#;

/// What a daemon that cannot write its status says.
const NO_ROOM: &str = "No space left on device";

/// A subnet and an address twice, something foreign deleted, files and a namespace that stay, a cleanup that was none, an error in a log that
/// is closed before it is judged, daemons that end by themselves, and a path that breaks.
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
    membership::nothing_is_left(world, "n2")?;
    let subnet = world.node("n2")?.subnet()?.replace(".1/24", ".128-25");
    world.etcd.put(&format!("{PREFIX}/subnets/{subnet}"), OVERLAPPING)?;
    error_before_the_end(world, "n3")?;
    let endpoints = world.etcd.endpoints();
    let node = world.node_mut("n4")?;
    node.proxy.as_ref().context("a daemon")?.kill()?;
    // One that has ended by itself is found although an action ends it and starts it again.
    node.netd.as_ref().context("a daemon")?.kill()?;
    node.end(Daemon::Netd, false)?;
    node.start_netd(&endpoints)?;
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

/// Has ipvs-proxy say an error that nothing explains, and ends it at once.
fn error_before_the_end(world: &mut World, name: &str) -> Result<()> {
    let (endpoints, options) = (world.etcd.endpoints(), world.options.clone());
    let node = world.node_mut(name)?;
    node.sh("cat /dev/zero >/run/filler 2>/dev/null || true")?;
    node.end(Daemon::Proxy, false)?;
    node.start_proxy(&endpoints, &options)?;
    node.proxy.as_ref().context("a daemon")?.wait_for_line(NO_ROOM, FOUND)?;
    node.end(Daemon::Proxy, false)?;
    node.sh("rm -f /run/filler")?;
    node.start_proxy(&endpoints, &options)
}
