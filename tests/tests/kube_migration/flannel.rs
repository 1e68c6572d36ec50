//! What flannel is on a node, but for its program, which cannot be had where these tests run: Debian has no package of it.
//!
//! Invariant: annotations, condition, device, entries, routes, rules and subnet file are flannel's in form and order (pkg/subnet/kube,
//! pkg/backend/vxlan, pkg/trafficmngr/iptables), its objects those of its manifest; `flannel.yaml` says what is a stand-in.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lab::{Host, eventually};
use serde_json::{Value, json};

use super::shell::Shell;
use crate::kube_cluster::{Cluster, LIMIT, NODES};

/// The reference plugins that flannel's list needs.
const PLUGINS: &str = "/usr/lib/cni";
const NAMES: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// flanneld on each node.
pub(crate) struct Flannel {
    nodes: BTreeMap<String, Facts>,
}

/// What it knows of a node.
#[derive(Clone)]
struct Facts {
    address: String,
    /// `172.7.1.0/24`
    subnet: String,
    hardware: String,
}

/// Why flannel cannot be stood in for here.
pub(crate) fn obstacle() -> Option<String> {
    let missing = NAMES.iter().find(|name| !std::path::Path::new(PLUGINS).join(name).is_file())?;
    Some(format!("no {PLUGINS}/{missing}: run `tests/setup run`"))
}

impl Flannel {
    /// Puts it on both nodes of a cluster that has no network yet.
    pub(crate) fn bring(cluster: &Cluster, shell: &Shell) -> Result<Self> {
        let mut nodes = BTreeMap::new();
        for name in NODES {
            let host = cluster.host(name)?;
            let subnet = eventually(LIMIT, || {
                let node = cluster.server.get(&format!("/api/v1/nodes/{}", host.name()))?;
                Ok::<_, anyhow::Error>(node["spec"]["podCIDR"].as_str().context("no podCIDR yet")?.to_owned())
            })?;
            let address = host.address()?.to_string();
            let hardware = format!("02:00:00:00:00:{}", name.rsplit('-').next().unwrap_or_default());
            nodes.insert(host.name().to_owned(), Facts { address, subnet, hardware });
            host.run(&["mkdir", "-p", "/opt/cni/bin", "/etc/cni/net.d"])?;
            for plugin in NAMES {
                host.run(&["cp", &format!("{PLUGINS}/{plugin}"), "/opt/cni/bin/"])?;
            }
        }
        let flannel = Self { nodes };
        for name in NODES {
            flannel.annotates(cluster, name)?;
            flannel.starts(cluster, name)?;
        }
        shell.apply(include_str!("flannel.yaml"))?;
        Ok(flannel)
    }

    fn facts(&self, host: &Host) -> Result<&Facts> {
        self.nodes.get(host.name()).with_context(|| format!("{} has no flannel", host.name()))
    }

    /// Writes the Node, as flanneld does where it differs.
    fn annotates(&self, cluster: &Cluster, name: &str) -> Result<()> {
        let (host, wanted) = (cluster.host(name)?, self.annotations(cluster.host(name)?)?);
        let path = format!("/api/v1/nodes/{}/status", host.name());
        cluster.server.patch(&path, &json!({"metadata": {"annotations": wanted}}))?;
        let now = "2026-11-27T00:00:00Z";
        let condition = json!({"type": "NetworkUnavailable", "status": "False", "lastHeartbeatTime": now,
            "lastTransitionTime": now, "reason": "FlannelIsUp", "message": "Flannel is running on this node"});
        // By a strategic merge conditions are known by their type.
        let patch = json!({"status": {"conditions": [condition]}});
        let body = Some(("application/strategic-merge-patch+json", &patch));
        cluster.server.ask("PATCH", &path, body)?.object().map(drop)
    }

    fn annotations(&self, host: &Host) -> Result<Value> {
        let facts = self.facts(host)?;
        let data = format!("{{\"VNI\":1,\"VtepMAC\":\"{}\"}}", facts.hardware);
        Ok(json!({
            "flannel.alpha.coreos.com/backend-data": data,
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/public-ip": facts.address,
        }))
    }

    /// Requires that the Node says what flannel has written.
    pub(crate) fn annotations_are_its(&self, cluster: &Cluster, name: &str) -> Result<()> {
        let host = cluster.host(name)?;
        let node = cluster.server.get(&format!("/api/v1/nodes/{}", host.name()))?;
        let found = node["metadata"]["annotations"].as_object().context("no annotations")?;
        let its = found.iter().filter(|(name, _)| name.starts_with("flannel.alpha.coreos.com/"));
        let its: serde_json::Map<String, Value> = its.map(|(name, value)| (name.clone(), value.clone())).collect();
        ensure!(Value::Object(its.clone()) == self.annotations(host)?, "annotations of {name}: {its:?}");
        Ok(())
    }

    /// What flanneld does to a node when it starts: it keeps the device, sets address and state, makes its rules anew, writes the
    /// subnet file, and replaces what leads to each other node.
    pub(crate) fn starts(&self, cluster: &Cluster, name: &str) -> Result<()> {
        let host = cluster.host(name)?;
        let Facts { address, subnet, hardware } = self.facts(host)?;
        let base = subnet.trim_end_matches("/24");
        let gateway = format!("{}1/24", base.trim_end_matches('0'));
        let others = self.nodes.iter().filter(|(other, _)| other.as_str() != host.name());
        let adds = others.map(|(_, other)| other.reached()).collect::<String>();
        let script = format!(
            "ip link show flannel.1 >/dev/null 2>&1 || ip link add flannel.1 address {hardware} mtu 1450 type vxlan id 1 \
               local {address} dev eth0 dstport 8472 nolearning\n\
             ip address replace {base}/32 dev flannel.1\nip link set flannel.1 up\n\
             iptables-restore --noflush <<'END'\n{}END\n\
             {}\
             mkdir -p /run/flannel\nprintf 'FLANNEL_NETWORK=172.7.0.0/16\\nFLANNEL_SUBNET={gateway}\\nFLANNEL_MTU=1450\\nFLANNEL_IPMASQ=true\\n' \
               >/run/flannel/subnet.env.new\nmv /run/flannel/subnet.env.new /run/flannel/subnet.env\n{adds}",
            rules(subnet),
            JUMPS
        );
        host.run(&["sh", "-ec", &script]).map(drop)
    }
}

impl Facts {
    /// What flannel does on the other nodes for this one.
    fn reached(&self) -> String {
        let Self { address, subnet, hardware } = self;
        let base = subnet.trim_end_matches("/24");
        format!(
            "ip neigh replace {base} lladdr {hardware} dev flannel.1 nud permanent\n\
             bridge fdb replace {hardware} dev flannel.1 dst {address} self permanent\n\
             ip route replace {subnet} via {base} dev flannel.1 onlink\n"
        )
    }
}

/// Its chains, which are emptied and filled in one transaction.
fn rules(subnet: &str) -> String {
    let masquerade = "-m comment --comment \"flanneld masq\"";
    let forward = "-m comment --comment \"flanneld forward\" -j ACCEPT";
    format!(
        "*nat\n:FLANNEL-POSTRTG - [0:0]\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masquerade} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {subnet} -d 172.7.0.0/16 {masquerade} -j RETURN\n\
         -A FLANNEL-POSTRTG -s 172.7.0.0/16 -d {subnet} {masquerade} -j RETURN\n\
         -A FLANNEL-POSTRTG ! -s 172.7.0.0/16 -d {subnet} {masquerade} -j RETURN\n\
         -A FLANNEL-POSTRTG -s 172.7.0.0/16 ! -d 224.0.0.0/4 {masquerade} -j MASQUERADE --random-fully\n\
         -A FLANNEL-POSTRTG ! -s 172.7.0.0/16 -d 172.7.0.0/16 {masquerade} -j MASQUERADE --random-fully\n\
         COMMIT\n*filter\n:FLANNEL-FWD - [0:0]\n\
         -A FLANNEL-FWD -s 172.7.0.0/16 {forward}\n-A FLANNEL-FWD -d 172.7.0.0/16 {forward}\nCOMMIT\n"
    )
}

/// What leads to its chains, where it is missing.
const JUMPS: &str = "iptables -t nat -C POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG 2>/dev/null || \
     iptables -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG\n\
     iptables -C FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD 2>/dev/null || \
     iptables -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD\n";

/// Requires that nothing of flannel's firewall is on a node.
pub(crate) fn left_no_rule(host: &Host) -> Result<()> {
    let rules = host.run(&["sh", "-c", "iptables-save; nft list tables"])?.stdout;
    let left: Vec<_> = rules.lines().filter(|line| line.to_lowercase().contains("flannel")).collect();
    ensure!(left.is_empty(), "left on {}: {left:#?}", host.name());
    Ok(())
}
