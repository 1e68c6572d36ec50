//! Services that are in etcd already, until IPVS holds all of them, and one endpoint that changes in the middle: `ipvs-proxy` next to
//! `ipvsadm --restore`, `ip -batch` and `nft -f` of the same content.
//!
//! Invariant: the floor writes what `ipvs-proxy` left in the kernel, read back from it. A time counts only when everything was found in
//! the kernel right after it was taken. Nodes and floor run on one kernel with IPVS, which the report names.

mod ipvs;
mod services;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::lab_kernel::{self, Guest};
use lab::{Cluster, Etcd, Host, Need, Process, Topology, bin};

use crate::machine;
use crate::options::Options;
use crate::report::{Report, ms, times};
use crate::samples::Samples;
use crate::store::Store;
use crate::usage::{self, Usage};
use ipvs::Ipvs;
use services::{ENDPOINTS, Service};

const DRAWING: &str = "network 10.4.7.0/24\nnode 10.4.7.21 etcd node\nfloor 10.4.7.31";
const PREFIX: &str = "/ipvs-proxy/";
/// The link of the virtual addresses and the table, as ARCHITECTURE.md names them.
const LINK: &str = "kube-ipvs0";
const TABLE: &str = "ipvs-proxy";
/// What the line contains with which ipvs-proxy says that it has worked off the first listing.
const READY: &str = "ready";
const LIMIT: Duration = Duration::from_secs(300);
/// How often one endpoint is changed.
const CHANGES: usize = 30;
/// Pause between two listings of one virtual server: one costs some 0.1 ms in the lab kernel.
const PAUSE: Duration = Duration::from_millis(1);

/// What one number of Services gave.
#[derive(Debug, Default)]
struct Figures {
    start: Samples,
    restore: Samples,
    addresses: Samples,
    rules: Samples,
    change: Samples,
    write: Samples,
    ipvsadm: Samples,
    restart: Samples,
    processor: Samples,
    most_resident: u64,
}

/// Goes on inside the lab kernel when the running one has no IPVS.
pub(crate) fn ensure_kernel() -> Result<()> {
    let guest = Guest { limit: Duration::from_secs(3600), memory: 3072, terminal: false };
    lab_kernel::ensure(&[Need::IpVs, Need::Dummy, Need::Nftables], guest)
}

/// Measures and reports.
pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    report.section(&format!(
        "ipvs-proxy: Services of {ENDPOINTS} endpoints already in etcd, until IPVS holds all (milliseconds)"
    ));
    report.text(&format!("Machine: {}. Load before: {}.", machine::describe(), machine::load()));
    let mut all = Vec::new();
    for &services in &options.services {
        all.push((services, series(services, options, report).with_context(|| format!("{services} Services"))?));
    }
    tables(&all, report);
    Ok(())
}

fn tables(all: &[(usize, Figures)], report: &Report) {
    let spread = |samples: &Samples| format!("{}–{}", ms(samples.least()), ms(samples.most()));
    let head = ["Services", "ipvs-proxy", "least–most", "ipvsadm", "ip -batch", "nft -f", "tools, sum", "proxy/tools"];
    let row = |(services, figures): &(usize, Figures)| {
        let floor = [&figures.restore, &figures.addresses, &figures.rules];
        let sum = floor.iter().map(|samples| samples.median()).sum();
        let mut cells = vec![services.to_string(), ms(figures.start.median()), spread(&figures.start)];
        cells.extend(floor.iter().map(|samples| ms(samples.median())));
        cells.extend([ms(sum), times(figures.start.median(), sum)]);
        cells
    };
    report.table(&head, &all.iter().map(row).collect::<Vec<_>>());
    report.section("One endpoint of one Service changed in the middle of them (milliseconds)");
    let head = ["Services", "median", "p99", "of it etcd's write", "ipvsadm -a, -d", "changes"];
    let row = |(services, figures): &(usize, Figures)| {
        vec![
            services.to_string(),
            ms(figures.change.median()),
            ms(figures.change.p99()),
            ms(figures.write.median()),
            ms(figures.ipvsadm.median()),
            figures.change.len().to_string(),
        ]
    };
    report.table(&head, &all.iter().map(row).collect::<Vec<_>>());
    report.section("ipvs-proxy: what it used until then, and a restart with nothing to change");
    let head = ["Services", "processor", "memory, most, MiB", "restart", "least–most"];
    let row = |(services, figures): &(usize, Figures)| {
        vec![
            services.to_string(),
            ms(figures.processor.median()),
            format!("{:.1}", machine::mebibytes(figures.most_resident)),
            ms(figures.restart.median()),
            spread(&figures.restart),
        ]
    };
    report.table(&head, &all.iter().map(row).collect::<Vec<_>>());
}

/// All rounds with one number of Services.
fn series(services: usize, options: &Options, report: &Report) -> Result<Figures> {
    let mut figures = Figures::default();
    for round in 0..options.rounds {
        report.progress(&format!("proxy: {services} Services, round {} of {}", round + 1, options.rounds));
        one_round(services, &mut figures)?;
    }
    Ok(figures)
}

/// A round has machines of its own: IPVS keeps removed real servers for two minutes and searches all of them for each new
/// one (ip_vs_trash_get_dest), so a second fill of one machine takes twice as long.
fn one_round(services: usize, figures: &mut Figures) -> Result<()> {
    let cluster = Cluster::start(&Topology::parse(DRAWING)?)?;
    let node = cluster.host("node")?;
    let etcd = Etcd::start([node])?;
    let store = Store::new(node, node.address()?);
    let written: Vec<(String, String)> = (0..services).flat_map(|index| Service::new(index).entries(PREFIX)).collect();
    store.put_all(&written, None)?;
    let (daemon, took) = start(node, &etcd, services)?;
    figures.start.push(took);
    let usage: Usage = usage::of(daemon.pid())?;
    figures.processor.push(usage.processor);
    figures.most_resident = figures.most_resident.max(usage.most_resident);
    floor(node, cluster.host("floor")?, services, figures)?;
    changes(node, &store, services, figures)?;
    ensure!(daemon.terminate(LIMIT)?.success(), "ipvs-proxy failed at its end:\n{}", daemon.log());
    let (again, took) = start(node, &etcd, services)?;
    figures.restart.push(took);
    again.terminate(LIMIT).map(drop)
}

fn start(node: &Host, etcd: &Etcd, services: usize) -> Result<(Process, Duration)> {
    machine::await_calm();
    let proxy = node.command(bin("ipvs-proxy")?);
    let proxy = proxy.args(["--etcd-endpoints", &etcd.endpoints(), "--cluster-cidr", "172.16.0.0/12"]);
    let started = Instant::now();
    let daemon = proxy.start("ipvs-proxy")?;
    daemon.wait_for_line(READY, LIMIT)?;
    let took = started.elapsed();
    let rules = saved(node)?;
    // A real server of weight 0 only waits for its last connections.
    let count = |prefix: &str| rules.lines().filter(|line| line.starts_with(prefix) && !line.ends_with("-w 0")).count();
    let (virtuals, reals) = (count("-A "), count("-a "));
    ensure!(
        (virtuals, reals) == (services, services * ENDPOINTS),
        "ipvs-proxy was ready with {virtuals} virtual and {reals} real servers:\n{}",
        daemon.log()
    );
    Ok((daemon, took))
}

fn saved(host: &Host) -> Result<String> {
    Ok(host.command("ipvsadm").args(["--save", "--numeric"]).limit(LIMIT).run()?.stdout)
}

/// The same content by the tools that come with the kernel.
fn floor(node: &Host, floor: &Host, services: usize, figures: &mut Figures) -> Result<()> {
    let rules = saved(node)?;
    let listed = node.command("ip").args(["-o", "-4", "address", "show", "dev", LINK]).limit(LIMIT).run()?.stdout;
    let addresses: String = listed
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3))
        .map(|address| format!("address add {address} dev {LINK}\n"))
        .collect();
    ensure!(addresses.lines().count() == services, "{LINK} has {} addresses", addresses.lines().count());
    let table = node.command("nft").args(["list", "table", "ip", TABLE]).limit(LIMIT).run()?.stdout;
    machine::await_calm();
    floor.run(&["ip", "link", "add", LINK, "type", "dummy"])?;
    let timed = |program: &str, args: &[&str], input: &str| -> Result<Duration> {
        let command = floor.command(program).args(args).input(input).limit(LIMIT);
        let started = Instant::now();
        command.run()?;
        Ok(started.elapsed())
    };
    figures.rules.push(timed("nft", &["-f", "-"], &table)?);
    figures.addresses.push(timed("ip", &["-batch", "-"], &addresses)?);
    figures.restore.push(timed("ipvsadm", &["--restore"], &rules)?);
    ensure!(saved(floor)?.lines().count() == rules.lines().count(), "ipvsadm --restore left something out");
    one_by_ipvsadm(floor, services, figures)?;
    // The kernel's estimators walk all counters every two seconds; those of the floor shall not disturb what follows.
    floor.run(&["ipvsadm", "--clear"]).map(drop)
}

/// One endpoint added and one deleted, by one execution of `ipvsadm` each.
fn one_by_ipvsadm(floor: &Host, services: usize, figures: &mut Figures) -> Result<()> {
    let service = Service::new(services / 2);
    let (address, new) = (service.address().to_string(), service.other_endpoint().to_string());
    let old = service.endpoints(false).first().context("a Service without endpoints")?.to_string();
    let started = Instant::now();
    floor.run(&["ipvsadm", "-a", "-t", &address, "-r", &new, "-m"])?;
    floor.run(&["ipvsadm", "-d", "-t", &address, "-r", &old])?;
    figures.ipvsadm.push(started.elapsed());
    Ok(())
}

/// Changes an endpoint of the middle Service to and fro, and waits each time until IPVS has it.
fn changes(node: &Host, store: &Store, services: usize, figures: &mut Figures) -> Result<()> {
    let service = Service::new(services / 2);
    let ipvs = Ipvs::open(node)?;
    for turn in 0..CHANGES {
        let changed = turn % 2 == 0;
        let mut wanted = service.endpoints(changed);
        wanted.sort_unstable();
        let slice = service.slice(PREFIX, changed);
        let started = Instant::now();
        store.put_all(&[slice], None)?;
        let written = started.elapsed();
        loop {
            let mut found = ipvs.serving(service.address())?;
            found.sort_unstable();
            if found == wanted {
                break;
            }
            if started.elapsed() > LIMIT {
                bail!("{} has {found:?} and should have {wanted:?}", service.address());
            }
            std::thread::sleep(PAUSE);
        }
        figures.change.push(started.elapsed());
        figures.write.push(written);
    }
    Ok(())
}
