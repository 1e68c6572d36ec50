//! Breaks invariants on purpose, to see that each is found: `--violate`.
//!
//! Invariant: this is done behind the back of the ledger, as a fault of ours would be.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Process, echo, eventually};

use crate::act::{Heal, membership, pods};
use crate::node::Daemon;
use crate::paths::{Path, To};
use crate::prober::{self, PATHS};
use crate::world::{PREFIX, VETERAN, World};

/// How long the probes may take to find a broken path.
const FOUND: Duration = Duration::from_secs(180);

/// A lease inside that of a node, as a stranger writes it.
const OVERLAPPING: &str =
    r#"{"PublicIP":"10.4.7.66","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:66"}}"#;

/// Files, a namespace, a link, chains and elements that nobody takes away: more than what two nodes lose below.
const STAYS: &str =
    "mkdir /var/lib/cni/leak; touch /var/lib/cni/leak/a /var/lib/cni/leak/b /var/lib/cni/leak/c /var/lib/cni/leak/d
ip netns add leaked; ip link add leaked0 type bridge
nft add table ip leaked; nft add set ip leaked some '{ type ipv4_addr; }'
nft add element ip leaked some \"{ $(seq -s, -f 203.0.113.%g 1 99) }\"
for chain in $(seq 99); do echo add chain ip leaked c$chain; done | nft -f -";

/// What a stranger leaves of the Services of a node whose proxy is gone: too little and too much.
const ELEMENTS: &str = "nft flush map ip ipvs-proxy node-endpoints
nft add element ip ipvs-proxy endpoints '{ 192.168.0.11 . tcp . 80 . 99 : 172.7.250.9 . 80 }'";
const SERVERS: &str = "at=$(ip -4 -o address show dev eth0 | tr -s ' ' | cut -d' ' -f4 | cut -d/ -f1)
ipvsadm -D -t $at:30011; ipvsadm -D -u $at:30011; ipvsadm -A -t 192.168.0.99:80 -s rr; ipvsadm -a -t 192.168.0.99:80 -r 172.7.250.9:80 -m
for port in 80 81 82; do ipvsadm -A -t 192.168.0.98:$port -s rr; ipvsadm -a -t 192.168.0.98:$port -r 172.7.250.9:80 -m; done
ip address add 192.168.0.99/32 dev kube-ipvs0";

/// Paths that fail, as their sentences name them: without rules, and without routes.
const KINDS: [&str; 4] = ["to outside", "the node port of", "the host port of", "n1 to p"];

/// Where the program listens that leaks.
const LEAKS: u16 = 8999;

/// What a daemon that cannot write its status says.
const NO_ROOM: &str = "No space left on device";

/// What stands for a daemon that leaks until the last quiet point, beside the one that it is.
pub(crate) struct Leaking {
    _daemon: Process,
    _connections: Vec<TcpStream>,
}

/// A Pod that cannot be made.
pub(crate) fn action_that_fails(world: &mut World) -> Result<(String, Option<Heal>)> {
    world.node("n2")?.sh("mv /opt/cni/bin/netd-cni /opt/cni/bin/away")?;
    let made = pods::attempt(world, "n2").map(|pod| (pod, None));
    world.node("n2")?.sh("mv /opt/cni/bin/away /opt/cni/bin/netd-cni")?;
    made
}

/// A subnet and an address twice, something foreign deleted, things that stay, a cleanup that was none, an error in a log that is closed before it
/// is judged, daemons that end by themselves and one that leaks, rows of Services that are not what they should be, and paths of each kind that break.
pub(crate) fn all(world: &mut World) -> Result<Leaking> {
    let pods = world.pods(None);
    let [first, .., last] = pods.as_slice() else { anyhow::bail!("two Pods") };
    let address = world.shared.lock().stations.get(first).and_then(crate::shared::Station::address).context("a Pod")?;
    let station = world.shared.lock().stations.get(last).cloned().context("a Pod")?;
    if let crate::shared::Spot::Pod(pod) = &station.spot {
        pod.sandbox.pod().run(&["ip", "address", "add", &format!("{address}/32"), "dev", "eth0"])?;
    }
    drop(station);
    world.node("n2")?.sh("nft delete element inet theirs denied '{ 203.0.113.7 }'")?;
    world.node("n3")?.sh(STAYS)?;
    membership::nothing_is_left(world, "n2")?;
    let subnet = world.node("n2")?.subnet()?.replace(".1/24", ".128-25");
    world.etcd.put(&format!("{PREFIX}/subnets/{subnet}"), OVERLAPPING)?;
    error_before_the_end(world, "n3")?;
    let leaking = leak(world)?;
    let endpoints = world.etcd.endpoints();
    let rows = if world.options.proxy == "ipvs" { SERVERS } else { ELEMENTS };
    let node = world.node_mut("n4")?;
    node.proxy.as_ref().context("a daemon")?.kill()?;
    node.sh(rows)?;
    // One that has ended by itself is found although an action ends it and starts it again.
    node.netd.as_ref().context("a daemon")?.kill()?;
    node.end(Daemon::Netd, false)?;
    node.start_netd(&endpoints)?;
    let node = world.node_mut("n5")?;
    node.end(Daemon::Netd, false)?;
    node.sh("nft delete table ip netd; nft delete table inet netd-ports; ip route flush proto 121")?;
    ask_broken_paths(world)?;
    Ok(leaking)
}

/// Paths of each kind are asked where what carries them is gone, until one of each was found: by chance alone it would take long, as what
/// failed is asked again first.
fn ask_broken_paths(world: &World) -> Result<()> {
    let paths = world.shared.lock().paths();
    let node_of = |name: &str| world.shared.lock().stations.get(name).map(|station| station.node.clone());
    let is_broken = |path: &Path| match &path.to {
        To::Outside => node_of(&path.from).as_deref() == Some("n5"),
        To::HostPort(pod) => node_of(pod).as_deref() == Some("n5"),
        To::NodePort { node, .. } => node == "n4",
        To::Pod(pod) => path.from == "n1" && node_of(pod).as_deref() == Some("n5"),
        To::Service(_) => false,
    };
    let broken: Vec<&Path> = paths.iter().filter(|path| is_broken(path)).collect();
    let found = |part: &&str| {
        let state = world.shared.lock();
        let mut paths = state.violations.iter().filter(|violation| violation.invariant == PATHS);
        paths.any(|violation| violation.text.contains(*part))
    };
    eventually(FOUND, || {
        for kind in KINDS {
            let mut paths = broken.iter().filter(|path| path.text().contains(kind));
            while let Some(path) = paths.next().filter(|_| !found(&kind)) {
                prober::ask(&world.shared, path);
            }
        }
        let missing: Vec<&&str> = KINDS.iter().filter(|kind| !found(kind)).collect();
        anyhow::ensure!(missing.is_empty(), "no broken path was found: {missing:?}");
        Ok(())
    })
}

/// In place of ipvs-proxy a program is counted that comes to have a thread and descriptors for each connection, and memory for what it was sent.
fn leak(world: &mut World) -> Result<Leaking> {
    let node = world.node_mut(VETERAN)?;
    let other = echo::serve(&node.host, "leaks", LEAKS)?;
    let daemon = node.proxy.replace(other).context("a daemon")?;
    node.read[1] = 0;
    let connections = node.host.within(|| {
        let mut connections =
            (0..20).map(|_| TcpStream::connect(("127.0.0.1", LEAKS))).collect::<std::io::Result<Vec<_>>>()?;
        // A line without an end.
        if let Some(connection) = connections.first_mut() {
            connection.write_all(&vec![b'x'; 32 << 20])?;
        }
        Ok::<_, std::io::Error>(connections)
    })??;
    Ok(Leaking { _daemon: daemon, _connections: connections })
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
