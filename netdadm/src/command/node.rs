//! `node`: a node is waited for, or drained and taken away.
//!
//! Invariants: everything is said before anything is asked, and asked before anything is changed; no Pod goes against a
//! PodDisruptionBudget; a lease goes only when its host is silent.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use super::args::{NodeAdd, NodeRemove, NodeVerb};
use super::{apply, said, verify};
use crate::members::Session;
use crate::nodes::{Api, Drain, Leases, answers};
use crate::topology::{Host, Role, Topology};

/// Between two questions.
const PAUSE: Duration = Duration::from_secs(1);

/// A host that answers does so within this.
const ANSWER: Duration = Duration::from_secs(2);

/// For each answer of etcd.
const LIMIT: Duration = Duration::from_secs(5);

/// Runs the verb.
///
/// # Errors
/// When a server does not answer, nobody agrees, or it is not done in its time.
pub(super) fn run(asked: &NodeVerb, out: &mut impl Write) -> Result<ExitCode, String> {
    let (NodeVerb::Add(NodeAdd { common, .. }) | NodeVerb::Remove(NodeRemove { common, .. })) = asked;
    let Some(topology) = verify::topology(&common.file, out)? else { return Ok(ExitCode::FAILURE) };
    let host = topology.hosts.iter().find(|host| host.name.value == common.name);
    let host = host.filter(|host| host.has(Role::Node)).ok_or_else(|| {
        let then = match asked {
            NodeVerb::Add(_) => "write it there, and `netdadm render`, first",
            NodeVerb::Remove(_) => "the role is taken from it after `node remove`",
        };
        format!("the topology has no host {} with the role node; {then}", common.name)
    })?;
    match asked {
        NodeVerb::Add(asked) => add(asked, &topology, host, out),
        NodeVerb::Remove(asked) => remove(asked, &topology, host, out),
    }
}

/// Waits until the node has its lease and is Ready.
fn add(asked: &NodeAdd, topology: &Topology, host: &Host, out: &mut impl Write) -> Result<ExitCode, String> {
    let (name, folder) = (&host.name.value, &asked.common.output);
    let manifest = folder.join("hosts").join(name).join("manifest.json");
    if !manifest.exists() {
        let file = asked.common.file.display();
        return Err(format!(
            "{} is not there: `netdadm render -f {file} -o {}` first",
            manifest.display(),
            folder.display()
        ));
    }
    let text = format!(
        "add the node {name}; on it, with a copy of {0}:\n  netdadm preflight -f {1}\n  netdadm apply --host {name} {0}\nnothing of other hosts changes\n",
        folder.display(),
        asked.common.file.display()
    );
    said(out, &text)?;
    let session = Session::open(topology, folder, LIMIT)?;
    let leases = Leases::open(topology, &session)?;
    let (began, limit) = (Instant::now(), Duration::from_secs(asked.common.wait.into()));
    let mut before = String::new();
    loop {
        let lacking = missing(topology, host, folder, leases.as_ref()).unwrap_or_else(Some);
        let Some(lacking) = lacking else {
            return said(out, &format!("{name} is there\n"));
        };
        if began.elapsed() >= limit {
            return Err(format!("{name} is not there within {limit:?}: {lacking}; run it again to go on waiting"));
        }
        if before != lacking {
            said(out, &format!("waiting: {lacking}\n"))?;
            before = lacking;
        }
        thread::sleep(PAUSE);
    }
}

/// What a node lacks.
fn missing(
    topology: &Topology,
    host: &Host,
    folder: &std::path::Path,
    leases: Option<&Leases<'_>>,
) -> Result<Option<String>, String> {
    if let Some(leases) = leases
        && leases.of(host)?.is_none()
    {
        return Ok(Some("it has no lease of a Pod subnet: netd does not run there yet".to_owned()));
    }
    let node = Api::open(topology, folder)?.node(&host.name.value)?;
    Ok(node.map_or_else(|| Err("it has no Node: its kubelet does not run yet".to_owned()), |node| node.ready()).err())
}

fn remove(asked: &NodeRemove, topology: &Topology, host: &Host, out: &mut impl Write) -> Result<ExitCode, String> {
    let (name, folder) = (&host.name.value, &asked.common.output);
    let api = Api::open(topology, folder)?;
    let session = Session::open(topology, folder, LIMIT)?;
    let leases = Leases::open(topology, &session)?;
    let node = api.node(name)?;
    let drain = Drain::of(api.pods(name)?);
    let lease = leases.as_ref().map(|leases| leases.of(host)).transpose()?.flatten();
    let subnet = lease.as_ref().map(|lease| lease.subnet.as_str());
    said(out, &announced(name, node.is_some(), &drain, subnet))?;
    if !drain.lost.is_empty() && !asked.force {
        return Err("nothing was changed: Pods or data would be lost; say --force to have them lost".to_owned());
    }
    if !asked.common.yes && !apply::answer("do it?")? {
        return Err("nothing was changed".to_owned());
    }
    if let Some(node) = &node {
        if !node.is_cordoned() {
            api.cordon(name)?;
        }
        let limit = Duration::from_secs(asked.common.wait.into());
        evict(&api, name, &Eviction { is_alive: node.ready().is_ok(), may_lose: asked.force, limit }, out)?;
        api.delete(name)?;
        said(out, "the Node is gone\n")?;
    }
    if let Some(leases) = &leases {
        said(out, &release(topology, host, leases)?)?;
    }
    said(out, &cleaning(host))
}

/// What will be done.
fn announced(name: &str, is_there: bool, drain: &Drain, subnet: Option<&str>) -> String {
    // Writing into a text does not fail.
    let mut text = format!("remove the node {name}:\n");
    let labels = |pods: &[crate::nodes::Pod]| pods.iter().map(crate::nodes::Pod::label).collect::<Vec<_>>().join(" ");
    if is_there {
        text += "  1. cordon it: no Pod is sent there any more\n";
        let count = drain.evicted.len();
        let _ =
            writeln!(text, "  2. evict {count} Pods as PodDisruptionBudgets let them go: {}", labels(&drain.evicted));
        for (pod, of) in &drain.left {
            let _ = writeln!(text, "     {pod} stays until its host is cleaned, it is of {of}");
        }
        for (pod, reason) in &drain.lost {
            let _ = writeln!(text, "     {pod} is LOST: {reason}");
        }
        text += "  3. delete the Node\n";
    } else {
        text += "  it has no Node\n";
    }
    match subnet {
        Some(subnet) => {
            let _ = writeln!(text, "  4. delete its lease {subnet}, if the host does not answer any more");
        }
        None => text += "  it has no lease in etcd\n",
    }
    text
}

/// How Pods are evicted.
struct Eviction {
    /// The kubelet is there to end them.
    is_alive: bool,
    /// Pods and data may be lost.
    may_lose: bool,
    /// For all of them.
    limit: Duration,
}

/// Evicts Pods until none is left that goes.
fn evict(api: &Api, name: &str, how: &Eviction, out: &mut impl Write) -> Result<(), String> {
    let (began, mut before) = (Instant::now(), BTreeMap::new());
    loop {
        let drain = Drain::of(api.pods(name)?);
        if let Some((pod, reason)) = drain.lost.first().filter(|_| !how.may_lose) {
            return Err(format!("{pod} has come meanwhile and would be lost ({reason}); {name} stays cordoned"));
        }
        let mut held = Vec::new();
        for pod in &drain.evicted {
            let label = pod.label();
            let line = match api.evict(pod)? {
                None => format!("evicted {label}\n"),
                Some(reason) => {
                    held.push(label.clone());
                    format!("{label} waits: {reason}\n")
                }
            };
            if before.get(&label) != Some(&line) {
                said(out, &line)?;
                before.insert(label, line);
            }
        }
        // A kubelet that is gone ends nothing; what it has goes with the Node.
        if drain.evicted.is_empty() && (drain.ending.is_empty() || !how.is_alive) {
            return Ok(());
        }
        if began.elapsed() >= how.limit {
            let ending = drain.ending.iter().map(crate::nodes::Pod::label).collect::<Vec<_>>().join(" ");
            return Err(format!(
                "{name} is not drained within {:?}: held by PodDisruptionBudgets: {}; ending: {ending}; it stays cordoned (`kubectl uncordon {name}` undoes that), \
                 and running this again goes on",
                how.limit,
                held.join(" ")
            ));
        }
        thread::sleep(PAUSE);
    }
}

/// Deletes the lease of a host that is silent.
fn release(topology: &Topology, host: &Host, leases: &Leases<'_>) -> Result<String, String> {
    let Some(lease) = leases.of(host)? else { return Ok(String::new()) };
    let subnet = &lease.subnet;
    if answers(topology, host, ANSWER) {
        return Ok(format!(
            "its lease {subnet} stays: the host answers, and netd would write it again; `netd cleanup --yes` on it, or this again when it is switched off\n"
        ));
    }
    Ok(if leases.delete(&lease)? {
        format!("its lease {subnet} is gone\n")
    } else {
        format!("its lease {subnet} stays: it was renewed just now\n")
    })
}

/// What is left to do on the host and elsewhere.
fn cleaning(host: &Host) -> String {
    let name = &host.name.value;
    let mut text = format!(
        "on {name}, if it lives:\n  systemctl disable --now kubelet.service netd.service ipvs-proxy.service\n  ipvs-proxy --cleanup\n  netd cleanup --yes\n"
    );
    if host.has(Role::Etcd) {
        let _ = writeln!(
            text,
            "it has a member of etcd as well, which stays: `netdadm etcd remove {name}` if the host goes"
        );
    }
    text + &format!("take the role node from {name} in the topology, and render: no other host needs a restart\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command;

    #[test]
    fn what_goes_what_stays_and_what_is_lost_is_announced() {
        let pod = |name: &str, owner: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"{name}","namespace":"d","ownerReferences":[{{"kind":"{owner}","controller":true}}]}}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let mut drain = Drain::of(vec![pod("web", "ReplicaSet"), pod("agent", "DaemonSet")]);
        drain.lost.push(("d/web".to_owned(), "its emptyDir"));
        assert_eq!(
            announced("n1", true, &drain, Some("172.7.21.0-24")),
            "remove the node n1:\n  1. cordon it: no Pod is sent there any more\n  2. evict 1 Pods as PodDisruptionBudgets let them go: d/web\n     \
             d/agent stays until its host is cleaned, it is of a DaemonSet\n     d/web is LOST: its emptyDir\n  3. delete the Node\n  \
             4. delete its lease 172.7.21.0-24, if the host does not answer any more\n"
        );
        let gone = announced("n1", false, &Drain::default(), None);
        assert_eq!(gone, "remove the node n1:\n  it has no Node\n  it has no lease in etcd\n");
    }

    #[test]
    fn hosts_that_are_no_nodes_and_folders_without_them_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.yaml");
        std::fs::write(&file, include_str!("../../../configs/clusters/reference.yaml")).unwrap();
        let run = |words: &[&str]| {
            let places = ["-f", file.to_str().unwrap(), "-o", "/nowhere"];
            let all = ["netdadm", "node"].iter().chain(words).chain(&places).map(Into::into);
            command::run(all, &mut Vec::new()).unwrap_err()
        };
        let none = |host: &str| format!("the topology has no host {host} with the role node; ");
        assert_eq!(run(&["remove", "hdss7-12"]), none("hdss7-12") + "the role is taken from it after `node remove`");
        assert_eq!(run(&["add", "nobody"]), none("nobody") + "write it there, and `netdadm render`, first");
        assert!(
            run(&["add", "hdss7-21"])
                .starts_with("/nowhere/hosts/hdss7-21/manifest.json is not there: `netdadm render")
        );
        assert!(run(&["remove", "hdss7-21"]).starts_with("/nowhere/pki/admin.conf is not there"));
    }

    #[test]
    fn a_host_with_a_member_of_etcd_keeps_it() {
        let topology = crate::check::text(include_str!("../../../configs/clusters/reference.yaml")).topology.unwrap();
        let text = cleaning(topology.of(Role::Node).next().unwrap());
        assert!(
            text.contains("on hdss7-21, if it lives:") && text.contains("`netdadm etcd remove hdss7-21`"),
            "{text}"
        );
    }
}
