//! Services that are in etcd already, until the kernel holds all of them, a restart beside them, and one endpoint that changes in the middle:
//! `ipvs-proxy` on each of its data paths next to a program that only sends the same messages, a bare listing of the same tables, and the
//! tools that come with the kernel.
//!
//! Invariant: floor and tools write what `ipvs-proxy` left in the kernel, read back from it, into a machine like the node. A time counts only
//! when everything was found in the kernel right after it was taken. nftables is measured on the running kernel, IPVS on one that has it;
//! the report names both.

mod bytes;
mod change;
mod figures;
mod floor;
pub(crate) mod ipvs;
pub(crate) mod local;
pub(crate) mod messages;
pub(crate) mod services;
pub(crate) mod tools;
pub(crate) mod transactions;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::lab_kernel::{self, Guest};
use lab::{Cluster, Etcd, Host, Need, Process, Topology, bin};

use crate::arrival::Arrivals;
use crate::machine;
use crate::options::Options;
use crate::report::Report;
use crate::store::Store;
use crate::usage;
use change::Place;
use figures::Figures;
use floor::{Content, Listing};
use services::Service;
use transactions::Transactions;

const DRAWING: &str = "network 10.4.7.0/24\nstore 10.4.7.12 etcd\nnode 10.4.7.21\nfloor 10.4.7.31\ntools 10.4.7.32";
const PREFIX: &str = "/ipvs-proxy/";
/// The link of the virtual addresses and the table, as ARCHITECTURE.md names them.
const LINK: &str = "kube-ipvs0";
pub(crate) const TABLE: &str = "ipvs-proxy";
/// The line with which ipvs-proxy says that it has the store's objects in memory and has done nothing with them yet.
pub(crate) const LISTED: &str = "the Services are listed";
/// What the line contains with which ipvs-proxy says that it has worked off the first listing.
const READY: &str = "ready";
const LIMIT: Duration = Duration::from_secs(300);

/// Who carries connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    Ipvs,
    Nftables,
}

impl Carrier {
    /// The value of `--proxy-mode`.
    const fn name(self) -> &'static str {
        match self {
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        }
    }
}

/// What is measured: so many Services of so many endpoints on a data path.
#[derive(Debug, Clone, Copy)]
struct Load {
    carrier: Carrier,
    services: usize,
    endpoints: usize,
    /// One route makes the Services local, not an address each.
    local: bool,
}

impl Load {
    fn all(self) -> impl Iterator<Item = Service> {
        (0..self.services).map(move |index| Service::new(index, self.endpoints))
    }

    /// The Service that changes.
    fn middle(self) -> Service {
        Service::new(self.services / 2, self.endpoints)
    }
}

/// Goes on inside the lab kernel when the running one has no IPVS.
pub(crate) fn ensure_lab_kernel() -> Result<()> {
    let guest = Guest { limit: Duration::from_secs(3600), memory: 3072, ..Guest::default() };
    lab_kernel::ensure(&[Need::IpVs, Need::Dummy, Need::Nftables], guest)
}

/// Measures nftables on the running kernel, and then IPVS where it is, by a process of its own.
pub(crate) fn measure(options: &Options, report: &mut Report, words: &[String]) -> Result<()> {
    on(Carrier::Nftables, options, report)?;
    crate::in_a_process_of_its_own(words, "proxy-ipvs")
}

/// Measures IPVS.
pub(crate) fn on_ipvs(options: &Options, report: &mut Report) -> Result<()> {
    on(Carrier::Ipvs, options, report)
}

fn on(carrier: Carrier, options: &Options, report: &mut Report) -> Result<()> {
    report.section(&format!(
        "ipvs-proxy on {}: Services of {} endpoints already in etcd, until the kernel holds all (milliseconds)",
        carrier.name(),
        options.endpoints
    ));
    report.text(&format!("Machine: {}. Load before: {}.", machine::describe(), machine::load()));
    let mut all = Vec::new();
    for &services in &options.services {
        let load = Load { carrier, services, endpoints: options.endpoints, local: false };
        all.push((services, series(load, options, report).with_context(|| format!("{services} Services"))?));
    }
    figures::tables(carrier, &all, report);
    Ok(())
}

/// All rounds of one load.
fn series(load: Load, options: &Options, report: &Report) -> Result<Figures> {
    let mut figures = Figures::default();
    for round in 0..options.rounds {
        let (name, services) = (load.carrier.name(), load.services);
        report.progress(&format!("proxy, {name}: {services} Services, round {} of {}", round + 1, options.rounds));
        one_round(load, &mut figures)?;
    }
    Ok(figures)
}

/// A round has machines of its own: IPVS keeps removed real servers for two minutes and searches all of them for each new
/// one (ip_vs_trash_get_dest), so a second fill of one machine takes twice as long.
fn one_round(load: Load, figures: &mut Figures) -> Result<()> {
    let cluster = Cluster::start(&Topology::parse(DRAWING)?)?;
    let (store_host, node) = (cluster.host("store")?, cluster.host("node")?);
    let etcd = Etcd::start([store_host])?;
    let store = Store::new(store_host, store_host.address()?);
    let written: Vec<(String, String)> = load.all().flat_map(|service| service.entries(PREFIX)).collect();
    store.put_all(&written, None)?;
    let arrivals = Arrivals::start(node)?;
    let daemon = start(node, &etcd, load, figures)?;
    let content = Content::read(node, load.carrier)?;
    machine::await_calm();
    figures.floor.push(content.write(cluster.host("floor")?, load.carrier)?);
    machine::await_calm();
    tools::fill(node, cluster.host("tools")?, load, figures)?;
    figures.resident[0] = usage::of(daemon.pid())?.resident.max(figures.resident[0]);
    restart(node, &etcd, load, (&content, &daemon), figures).and_then(|again| {
        change::measure(Place { node, pid: again.pid(), store: &store, arrivals: &arrivals }, load, figures)?;
        let idle = usage::share(again.pid())?;
        figures.idle = figures.idle.max(idle);
        figures.resident[1] = usage::of(again.pid())?.resident.max(figures.resident[1]);
        again.terminate(LIMIT).map(drop)
    })
}

/// The first start, with an empty kernel.
fn start(node: &Host, etcd: &Etcd, load: Load, figures: &mut Figures) -> Result<Process> {
    machine::await_calm();
    let (daemon, whole, fill) = run(node, etcd, load)?;
    let used = usage::of(daemon.pid())?;
    figures.start.push(whole);
    figures.fill.push(fill);
    figures.processor.push(used.processor);
    figures.most_resident = figures.most_resident.max(used.most_resident);
    figures.faults = figures.faults.max(used.faults);
    Ok(daemon)
}

/// Another process beside what the first one left, and the bare listing of that.
fn restart(
    node: &Host,
    etcd: &Etcd,
    load: Load,
    (content, first): (&Content, &Process),
    figures: &mut Figures,
) -> Result<Process> {
    ensure!(first.terminate(LIMIT)?.success(), "ipvs-proxy failed at its end:\n{}", first.log());
    machine::await_calm();
    figures.list.push(content.list(Listing::Option, node)?);
    if load.carrier == Carrier::Ipvs {
        machine::await_calm();
        figures.netlink.push(content.list(Listing::Netlink, node)?);
    }
    machine::await_calm();
    let transactions = Transactions::follow(node)?;
    let (again, whole, fill) = run(node, etcd, load)?;
    figures.restart.push(whole);
    figures.refill.push(fill);
    figures.restart_changes += transactions.count()?;
    Ok(again)
}

/// Starts `ipvs-proxy`; how long it took until it was ready, and how long from the listing in memory on.
fn run(node: &Host, etcd: &Etcd, load: Load) -> Result<(Process, Duration, Duration)> {
    let proxy = node.command(bin("ipvs-proxy")?).args(["--proxy-mode", load.carrier.name()]);
    let proxy = proxy.args(["--etcd-endpoints", &etcd.endpoints(), "--cluster-cidr", "172.16.0.0/12"]);
    let proxy = if load.local { proxy.args(["--ipvs-local-cidrs", services::NETWORK]) } else { proxy };
    let started = Instant::now();
    let daemon = proxy.start("ipvs-proxy")?;
    let ready = daemon.wait_for_line(READY, LIMIT)?;
    let whole = started.elapsed();
    confirm(node, load).with_context(|| daemon.log())?;
    let [listed, ready] = [daemon.wait_for_line(LISTED, LIMIT)?, ready].map(|line| time_of_day(&line));
    let fill = listed.zip(ready).and_then(|(listed, ready)| ready.checked_sub(listed));
    let fill = fill.with_context(|| format!("no times in the log:\n{}", daemon.log()))?;
    Ok((daemon, whole, fill))
}

/// The time with which a line of the log begins, as `2026-11-26T19:25:14.012345Z`, since midnight. On one processor the lines are read later
/// than they are written.
pub(crate) fn time_of_day(line: &str) -> Option<Duration> {
    let time = line.split_whitespace().next()?.split_once('T')?.1.strip_suffix('Z')?;
    let seconds = time.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Fails when the kernel does not hold every Service and endpoint.
fn confirm(node: &Host, load: Load) -> Result<()> {
    match load.carrier {
        Carrier::Ipvs => {
            let rules = tools::saved(node)?;
            // A real server of weight 0 only waits for its last connections.
            let of =
                |prefix: &str| rules.lines().filter(|line| line.starts_with(prefix) && !line.ends_with("-w 0")).count();
            let (found, wanted) = ((of("-A "), of("-a ")), (load.services, load.services * load.endpoints));
            ensure!(found == wanted, "ipvs-proxy was ready with {found:?} of {wanted:?} virtual and real servers");
        }
        Carrier::Nftables => {
            let table = tools::table(node)?;
            let words: HashSet<&str> = table.split(|sign: char| !sign.is_ascii_digit() && sign != '.').collect();
            let addresses = load.all().flat_map(|service| [vec![service.address()], service.endpoints(false)].concat());
            let missing = addresses.filter(|address| !words.contains(address.ip().to_string().as_str())).count();
            ensure!(missing == 0, "ipvs-proxy was ready without {missing} addresses");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_log_have_their_time() {
        let took = time_of_day("2026-11-26T01:02:03.500000Z  INFO ipvs_proxy: ready").unwrap();
        assert_eq!(took, Duration::from_millis(3_723_500));
        assert_eq!(time_of_day("ready"), None);
    }
}
