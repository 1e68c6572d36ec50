//! `ipvs-proxy` among N Services, on nftables of the running kernel, and kube-proxy's mode iptables beside it.
//!
//! Invariant: a start counts only when the nft table has every address right after it.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use lab::kubernetes::Release;
use lab::{Host, Process, bin};
use serde_json::json;

use super::changes::{self, Changes};
use super::starts::{self, Lines, Starts};
use super::{KUBECONFIG, LIMIT, Stage, objects, peer};
use crate::machine;
use crate::options::Options;
use crate::proxy::services::Service;
use crate::proxy::transactions::Transactions;
use crate::proxy::{LISTED, TABLE};
use crate::report::Report;

pub(super) const NODE: &str = "node";
const LINES: Lines = Lines { listed: LISTED, ready: " ready" };
/// Services beside which kube-proxy is measured: it restores all of its rules for each change.
pub(super) const PEER_MOST: usize = 1_000;

/// What one server with one number of Services gave.
#[derive(Debug, Default)]
pub(super) struct Figures {
    first: Starts,
    again: Starts,
    change: Changes,
    pub(super) peer: Starts,
    pub(super) peer_change: Changes,
}

pub(super) fn measure(releases: &[Release], options: &Options, report: &Report) -> Result<()> {
    let mut all = Vec::new();
    for release in releases {
        for &services in &options.services {
            let what = || format!("{release}, {services} Services");
            all.push((services, *release, series(*release, services, options, report).with_context(what)?));
        }
    }
    tables(&all, options.endpoints, report);
    Ok(())
}

fn is_with_peer(services: usize, release: Release) -> bool {
    release == Release::V1_20 && services <= PEER_MOST
}

fn tables(all: &[(usize, Release, Figures)], endpoints: usize, report: &Report) {
    let table = |title: &str, head: &[&str], rows: Vec<Vec<String>>| {
        report.section(title);
        report.table(&[&["Services", "server", "what"], head].concat(), &rows);
    };
    let row = |services: usize, release: Release, what: &str, columns: Vec<String>| {
        [vec![services.to_string(), release.to_string(), what.to_owned()], columns].concat()
    };
    let rows = all.iter().flat_map(|(services, release, figures)| {
        let peer =
            is_with_peer(*services, *release).then_some(("kube-proxy 1.20, iptables, first start", &figures.peer));
        let own = [("ipvs-proxy, first start", &figures.first), ("ipvs-proxy, restart", &figures.again)];
        own.into_iter().chain(peer).map(|(what, starts)| row(*services, *release, what, starts.columns()))
    });
    let title = format!(
        "ipvs-proxy on nftables: Services of {endpoints} endpoints in the API server, until the kernel holds all (milliseconds)"
    );
    table(&title, &starts::HEAD, rows.collect());
    let rows = all.iter().flat_map(|(services, release, figures)| {
        let peer = is_with_peer(*services, *release).then_some(("kube-proxy 1.20, iptables", &figures.peer_change));
        let own = [("ipvs-proxy", &figures.change)];
        own.into_iter().chain(peer).map(|(what, changes)| row(*services, *release, what, changes.columns()))
    });
    table(
        "ipvs-proxy on nftables: one endpoint of one slice changes, until the kernel has it (milliseconds)",
        &changes::HEAD,
        rows.collect(),
    );
}

fn series(release: Release, count: usize, options: &Options, report: &Report) -> Result<Figures> {
    report.progress(&format!("kube: {count} Services in {release}"));
    let stage = Stage::start(release)?;
    let services = || (0..count).map(|index| Service::new(index, options.endpoints));
    stage.api.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}))?;
    stage.fill(services().flat_map(|service| objects::service(service, release)))?;
    let (middle, mut figures) = (Service::new(count / 2, options.endpoints), Figures::default());
    for round in 0..options.rounds {
        report.progress(&format!("kube: {count} Services in {release}, round {} of {}", round + 1, options.rounds));
        one_round(&stage, services, middle, &mut figures)?;
        if is_with_peer(count, release) {
            peer::measure(&stage, middle, &mut figures)?;
        }
    }
    Ok(figures)
}

fn one_round<I>(stage: &Stage, services: impl Fn() -> I, middle: Service, figures: &mut Figures) -> Result<()>
where
    I: Iterator<Item = Service>,
{
    let node = stage.node()?;
    let launch = || {
        let proxy = node.command(bin("ipvs-proxy")?).args(["--proxy-mode=nftables", "--cluster-cidr=172.16.0.0/12"]);
        proxy.arg(format!("--kubeconfig={KUBECONFIG}")).arg(format!("--hostname-override={NODE}")).start("ipvs-proxy")
    };
    machine::await_calm();
    let first = figures.first.measure(node, LINES, launch)?;
    confirm(node, services(), &first)?;
    machine::await_calm();
    figures.first.note_resident(first.pid())?;
    ensure!(first.terminate(LIMIT)?.success(), "ipvs-proxy failed at its end:\n{}", first.log());
    machine::await_calm();
    let again = figures.again.measure(node, LINES, launch)?;
    confirm(node, services(), &again)?;
    figures.again.note_resident(again.pid())?;
    exchange(stage, (node, again.pid()), middle, (&mut figures.change, true))?;
    ensure!(again.terminate(LIMIT)?.success(), "ipvs-proxy failed at its end:\n{}", again.log());
    node.run(&["nft", "flush", "ruleset"])?;
    node.run(&["rm", "-rf", "/run/ipvs-proxy"]).map(drop)
}

/// Has the server exchange an endpoint of a Service, or take the first one back.
pub(super) fn patch(stage: &Stage, service: Service, changed: bool) -> Result<()> {
    let release = stage.api.release();
    let path = format!("/apis/{}/namespaces/default/endpointslices/{}", release.slices(), service.slice_name());
    stage.api.patch(&path, &json!({"endpoints": objects::endpoints(service, changed, release)})).map(drop)
}

/// An endpoint of the middle Service is exchanged, and again the first one.
/// With `own` the daemon is ours, and its metrics are asked as well.
pub(super) fn exchange(
    stage: &Stage,
    place: (&Host, i32),
    middle: Service,
    (changes, own): (&mut Changes, bool),
) -> Result<()> {
    let transactions = Transactions::follow(place.0)?;
    let change = |changed: bool| patch(stage, middle, changed);
    let wait = |changed: bool| {
        let wanted = middle.endpoints(changed);
        transactions.wait(*wanted.first().context("a Service without endpoints")?.ip(), LIMIT)
    };
    if own { changes.measure_with_metrics(place, change, wait) } else { changes.measure(place, change, wait) }
}

/// Fails when the kernel does not have every Service and endpoint.
fn confirm(node: &Host, services: impl Iterator<Item = Service>, daemon: &Process) -> Result<()> {
    let table = node.run(&["nft", "list", "table", "ip", TABLE])?.stdout;
    let words: HashSet<&str> = table.split(|sign: char| !sign.is_ascii_digit() && sign != '.').collect();
    let addresses = services.flat_map(|service| [vec![service.address()], service.endpoints(false)].concat());
    let missing = addresses.filter(|address| !words.contains(address.ip().to_string().as_str())).count();
    ensure!(missing == 0, "ipvs-proxy was ready without {missing} addresses:\n{}", daemon.log());
    Ok(())
}
