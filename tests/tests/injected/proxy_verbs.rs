//! The verbs of `ipvs-proxy` that change something: what is left on a node, and what is in its store.
//!
//! Invariant: what a verb works on is made anew for each call, and nothing else is there.

use anyhow::{Result, ensure};
use lab::{Etcd, Host};

use super::proxy::DataPath;
use super::verbs::Verb;
use crate::proxy::{Nodes, SOON, WEB_YAML, slice};

const PROGRAM: &str = "ipvs-proxy";

/// What a proxy has in the kernel, and what others have there.
fn kernel_state(host: &Host) -> Result<String> {
    let script = "nft -s list ruleset; ipvsadm -Sn | sort; ip -br address show dev kube-ipvs0; ip -br link | cut -d' ' -f1; \
                  ip -4 route show table all; ipset list -n | sort";
    Ok(host.command("sh").args(["-c", script]).output()?.stdout)
}

/// `--cleanup` behind a daemon of this data path.
pub(crate) fn cleanup_finishes(path: &DataPath, sample: usize) -> Result<usize> {
    let nodes = Nodes::start()?;
    nodes.publish("web.yaml", WEB_YAML)?;
    let host = nodes.node()?;
    let prepare = || {
        let proxy = nodes.proxy_with(&[path.mode])?;
        ensure!(proxy.terminate(SOON)?.success());
        Ok(())
    };
    let state = || kernel_state(host);
    let words = ["--cleanup"];
    Verb { host, program: PROGRAM, words: &words, prepare: &prepare, state: &state, nothing: None, is_whole: false }
        .walk(sample)
}

/// What a kube-proxy leaves in nftables, chains of iptables-nft of both families, and sets.
pub(crate) const RULES: &str = "
nft delete table ip kube-proxy || true
nft add table ip kube-proxy
nft add chain ip kube-proxy services '{ type nat hook prerouting priority -100; }'
for command in iptables-nft ip6tables-nft; do
$command-restore --noflush <<END
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-SVC-ERIFXISQEP7F7OF4 - [0:0]
-A KUBE-SERVICES -p tcp -m tcp --dport 80 -j KUBE-SVC-ERIFXISQEP7F7OF4
-A KUBE-SVC-ERIFXISQEP7F7OF4 -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
END
for rule in 'PREROUTING KUBE-SERVICES' 'OUTPUT KUBE-SERVICES' 'POSTROUTING KUBE-POSTROUTING'; do
set -- $rule
$command -t nat -C $1 -j $2 2>/dev/null || $command -t nat -A $1 -j $2
done
$command -C FORWARD -j KUBE-FORWARD 2>/dev/null || $command -A FORWARD -j KUBE-FORWARD
done
ipset create KUBE-CLUSTER-IP hash:ip,port -exist
ipset create KUBE-LOOP-BACK hash:ip,port,ip -exist
ipset add KUBE-CLUSTER-IP 192.168.0.10,tcp:80 -exist
";

/// What a kube-proxy leaves in IPVS, with the interface of its addresses.
pub(crate) const VIRTUAL_SERVERS: &str = "
ip link show kube-ipvs0 >/dev/null 2>&1 || ip link add kube-ipvs0 type dummy
ip address replace 192.168.0.10/32 dev kube-ipvs0
ipvsadm -C
ipvsadm -A -t 192.168.0.10:80 -s rr
ipvsadm -a -t 192.168.0.10:80 -r 172.7.22.2:80 -m
";

/// `--cleanup-kube-proxy` behind what it `left`.
pub(crate) fn cleanup_of_kube_proxy_finishes(left: &str, sample: usize) -> Result<usize> {
    let nodes = Nodes::start()?;
    let host = nodes.node()?;
    let prepare = || host.run(&["sh", "-ec", left]).map(drop);
    let state = || kernel_state(host);
    let words = ["--cleanup-kube-proxy"];
    Verb { host, program: PROGRAM, words: &words, prepare: &prepare, state: &state, nothing: None, is_whole: false }
        .walk(sample)
}

/// `apply` and `delete`: objects in etcd.
pub(crate) fn store_is_changed_once(sample: usize) -> Result<usize> {
    let nodes = Nodes::start()?;
    let (host, etcd) = (nodes.node()?, Etcd::start([nodes.outside()?])?);
    let endpoints = format!("--etcd-endpoints={}", etcd.endpoints());
    host.write("/run/web.yaml", WEB_YAML)?;
    host.write("/run/slice.yaml", slice(&["172.7.21.2"]))?;
    let state = || {
        let keys = etcd.keys("/ipvs-proxy/")?;
        let values = keys.iter().map(|key| etcd.get(key)).collect::<Result<Vec<_>>>()?;
        Ok(format!("{keys:?}\n{values:?}\n"))
    };
    let empty = || etcd.keys("/ipvs-proxy/")?.iter().try_for_each(|key| etcd.delete(key));
    let full = || {
        let command = host.command(lab::bin(PROGRAM)?).args([endpoints.as_str(), "apply", "-f", "/run/web.yaml"]);
        command.run().map(drop)
    };
    let apply = [endpoints.as_str(), "apply", "-f", "/run/web.yaml"];
    let verb =
        Verb { host, program: PROGRAM, words: &apply, prepare: &empty, state: &state, nothing: None, is_whole: true };
    let mut faults = verb.walk(sample)?;
    let change = [endpoints.as_str(), "apply", "-f", "/run/slice.yaml"];
    faults += Verb { words: &change, prepare: &full, ..verb }.walk(sample)?;
    let delete = [endpoints.as_str(), "delete", "-f", "/run/web.yaml"];
    let nothing = Some("not found: ");
    faults += Verb { words: &delete, prepare: &full, nothing, is_whole: false, ..verb }.walk(sample)?;
    Ok(faults)
}

/// `--write-config-to`: a file.
pub(crate) fn files_are_whole(sample: usize) -> Result<usize> {
    let nodes = Nodes::start()?;
    let host = nodes.node()?;
    let state = || Ok(host.command("sh").args(["-c", "cd /run/settings; head -v -n-0 *"]).output()?.stdout);
    let prepare = || {
        host.run(&["sh", "-c", "rm -rf /run/settings; mkdir /run/settings"])?;
        host.write("/run/settings/config.yaml", "the former one\n").map(drop)
    };
    let words = ["--write-config-to=/run/settings/config.yaml", "--proxy-mode=ipvs"];
    Verb { host, program: PROGRAM, words: &words, prepare: &prepare, state: &state, nothing: None, is_whole: true }
        .walk(sample)
}
