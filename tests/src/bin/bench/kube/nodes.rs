//! `netd` among N Nodes.
//!
//! Invariant: a start counts only when a neighbour, a forwarding entry and a route of each Node are in the kernel right after it.

use anyhow::{Context, Result, ensure};
use lab::kubernetes::Release;
use lab::{Process, bin};
use serde_json::json;

use super::changes::{self, Changes};
use super::objects::Node;
use super::starts::{self, Lines, Starts};
use super::storm::{self, Storm, Way};
use super::{KUBECONFIG, LIMIT, Stage};
use crate::machine;
use crate::netd::entries::Entries;
use crate::netd::watch::{Last, Watch};
use crate::options::Options;
use crate::report::Report;

pub(super) const DEVICE: &str = "flannel.1";
const NET_CONF: &str = r#"{"Network": "100.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan", "VNI": 1}}"#;
const NODE: &str = "node";
const LINES: Lines = Lines { listed: "the leases are listed", ready: "ready: every lease is in the kernel" };

/// What one server with one number of Nodes gave.
#[derive(Debug, Default)]
struct Figures {
    first: Starts,
    again: Starts,
    moved: Changes,
    storms: Vec<(Way, Storm)>,
}

pub(super) fn measure(releases: &[Release], options: &Options, report: &Report) -> Result<()> {
    let mut all = Vec::new();
    for release in releases {
        for &nodes in &options.nodes {
            let figures =
                series(*release, nodes, options, report).with_context(|| format!("{release}, {nodes} Nodes"))?;
            all.push((nodes, *release, figures));
        }
    }
    tables(&all, report);
    Ok(())
}

fn tables(all: &[(usize, Release, Figures)], report: &Report) {
    let table = |title: &str, head: &[&str], rows: Vec<Vec<String>>| {
        report.section(title);
        report.table(&[&["Nodes", "server", "what"], head].concat(), &rows);
    };
    let row = |nodes: usize, release: Release, what: &str, columns: Vec<String>| {
        [vec![nodes.to_string(), release.to_string(), what.to_owned()], columns].concat()
    };
    let rows = all.iter().flat_map(|(nodes, release, figures)| {
        [("the first start", &figures.first), ("a restart", &figures.again)]
            .map(|(what, starts)| row(*nodes, *release, what, starts.columns()))
    });
    table(
        "netd: Nodes in the API server, until every lease is in the kernel (vxlan; milliseconds)",
        &starts::HEAD,
        rows.collect(),
    );
    let rows = all
        .iter()
        .map(|(nodes, release, figures)| row(*nodes, *release, "its address (1 entry)", figures.moved.columns()));
    table("netd: one Node changes among them, until the kernel has it (milliseconds)", &changes::HEAD, rows.collect());
    let rows = all.iter().flat_map(|(nodes, release, figures)| {
        figures.storms.iter().map(|(way, storm)| row(*nodes, *release, way.name(), storm.columns()))
    });
    table("netd: heartbeats of these Nodes (milliseconds)", &storm::HEAD, rows.collect());
}

fn series(release: Release, nodes: usize, options: &Options, report: &Report) -> Result<Figures> {
    report.progress(&format!("kube: {nodes} Nodes in {release}"));
    let stage = Stage::start(release)?;
    stage.node()?.write("/etc/kube-flannel/net-conf.json", NET_CONF)?;
    stage.api.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
        "spec": {"podCIDR": "100.1.0.0/24", "podCIDRs": ["100.1.0.0/24"]}}))?;
    stage.fill((0..nodes).map(|index| (Node::new(index).key(release), Node::new(index).object(0).to_string())))?;
    let mut figures = Figures::default();
    for round in 0..options.rounds {
        report.progress(&format!("kube: {nodes} Nodes in {release}, round {} of {}", round + 1, options.rounds));
        one_round(&stage, nodes, &mut figures)?;
    }
    Ok(figures)
}

fn one_round(stage: &Stage, nodes: usize, figures: &mut Figures) -> Result<()> {
    let node = stage.node()?;
    let launch = || {
        let netd = node.command(bin("netd")?).env("NODE_NAME", NODE);
        let netd = netd.args(["--kube-subnet-mgr", "--ip-masq", "--iface=eth0"]);
        netd.arg(format!("--kubeconfig-file={KUBECONFIG}")).start("netd")
    };
    machine::await_calm();
    let first = figures.first.measure(node, LINES, launch)?;
    confirm(stage, nodes, &first)?;
    machine::await_calm();
    figures.first.note_resident(first.pid())?;
    ensure!(first.terminate(LIMIT)?.success(), "netd failed at its end:\n{}", first.log());
    machine::await_calm();
    let again = figures.again.measure(node, LINES, launch)?;
    confirm(stage, nodes, &again)?;
    moves(stage, again.pid(), nodes, &mut figures.moved)?;
    figures.again.note_resident(again.pid())?;
    figures.storms.clear();
    for way in [Way::Beneath, Way::Patches] {
        figures.storms.push((way, Storm::measure(stage, again.pid(), nodes, way)?));
    }
    ensure!(again.terminate(LIMIT)?.success(), "netd failed at its end:\n{}", again.log());
    node.run(&["ip", "link", "del", DEVICE])?;
    node.run(&["nft", "flush", "ruleset"])?;
    node.run(&["rm", "-rf", "/run/netd", "/run/flannel"]).map(drop)
}

fn confirm(stage: &Stage, nodes: usize, daemon: &Process) -> Result<()> {
    let found = Entries::read(stage.node()?, DEVICE)?.counts();
    ensure!(found == [nodes; 3], "netd was ready with {found:?} of {nodes} entries:\n{}", daemon.log());
    Ok(())
}

/// The middle Node has another address, and again the first one.
fn moves(stage: &Stage, pid: i32, nodes: usize, changes: &mut Changes) -> Result<()> {
    let (host, middle) = (stage.node()?, Node::new(nodes / 2));
    let watch = Watch::start(host, DEVICE)?;
    let change = |moved: bool| {
        let annotations = json!({Node::address_annotation(): middle.address(moved)});
        let path = format!("/api/v1/nodes/{}", middle.name());
        stage.api.patch(&path, &json!({"metadata": {"annotations": annotations}})).map(drop)
    };
    changes.measure((host, pid), change, |_| {
        let (at, _) = watch.wait(Last::ForwardingSet, LIMIT)?.context("the kernel announced no forwarding entry")?;
        Ok(at)
    })
}
