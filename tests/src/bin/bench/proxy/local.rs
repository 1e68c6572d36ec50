//! The same Services with an address each on the link of virtual addresses, and with one route for all of them, in turn.
//!
//! Invariant: both are measured in each round, each on machines of its own, and a time counts only when the kernel holds either every address
//! or the route alone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Cluster, Etcd, Host, Topology};

use super::services::NETWORK;
use super::{Carrier, DRAWING, LIMIT, LINK, Load, PREFIX, run};
use crate::machine;
use crate::options::Options;
use crate::report::{Report, ms};
use crate::samples::Samples;
use crate::store::Store;
use crate::usage;

/// What one way gave.
#[derive(Debug, Default)]
struct Figures {
    start: Samples,
    fill: Samples,
    processor: Samples,
    most_resident: u64,
    restart: Samples,
    refill: Samples,
    again: Samples,
    resident_again: u64,
}

/// Measures both ways.
pub(crate) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    report.section(&format!(
        "ipvs-proxy on ipvs: an address for each of the Services of {} endpoints, or one route for all (milliseconds)",
        options.endpoints
    ));
    report.text(&format!("Machine: {}. Load before: {}.", machine::describe(), machine::load()));
    let mut rows = Vec::new();
    for &services in &options.services {
        let load = |local| Load { carrier: Carrier::Ipvs, services, endpoints: options.endpoints, local };
        let (mut addresses, mut route) = (Figures::default(), Figures::default());
        for round in 0..options.rounds {
            report.progress(&format!("local: {services} Services, round {} of {}", round + 1, options.rounds));
            one_round(load(false), &mut addresses)?;
            one_round(load(true), &mut route)?;
        }
        rows.push(row(services, "addresses", &addresses));
        rows.push(row(services, "one route", &route));
    }
    report.table(&HEAD, &rows);
    Ok(())
}

const HEAD: [&str; 10] = [
    "Services",
    "local by",
    "start",
    "of it from the listing",
    "processor until ready",
    "memory, most, MiB",
    "restart",
    "of it from the listing",
    "processor until ready",
    "memory, most, MiB",
];

fn row(services: usize, way: &str, figures: &Figures) -> Vec<String> {
    let memory = |kibibytes| format!("{:.1}", machine::mebibytes(kibibytes));
    vec![
        services.to_string(),
        way.to_owned(),
        ms(figures.start.median()),
        ms(figures.fill.median()),
        ms(figures.processor.median()),
        memory(figures.most_resident),
        ms(figures.restart.median()),
        ms(figures.refill.median()),
        ms(figures.again.median()),
        memory(figures.resident_again),
    ]
}

fn one_round(load: Load, figures: &mut Figures) -> Result<()> {
    let cluster = Cluster::start(&Topology::parse(DRAWING)?)?;
    let (store_host, node) = (cluster.host("store")?, cluster.host("node")?);
    let etcd = Etcd::start([store_host])?;
    let written: Vec<(String, String)> = load.all().flat_map(|service| service.entries(PREFIX)).collect();
    Store::new(store_host, store_host.address()?).put_all(&written, None)?;
    let (processor, resident) = once(node, &etcd, load, (&mut figures.start, &mut figures.fill))?;
    figures.processor.push(processor);
    figures.most_resident = figures.most_resident.max(resident);
    let (processor, resident) = once(node, &etcd, load, (&mut figures.restart, &mut figures.refill))?;
    figures.again.push(processor);
    figures.resident_again = figures.resident_again.max(resident);
    Ok(())
}

/// One start, to its end; what it has used.
fn once(node: &Host, etcd: &Etcd, load: Load, (whole, fill): (&mut Samples, &mut Samples)) -> Result<(Duration, u64)> {
    machine::await_calm();
    let (daemon, took, of_it) = run(node, etcd, load)?;
    let used = usage::of(daemon.pid())?;
    confirm(node, load).with_context(|| daemon.log())?;
    whole.push(took);
    fill.push(of_it);
    ensure!(daemon.terminate(LIMIT)?.success(), "ipvs-proxy failed at its end:\n{}", daemon.log());
    Ok((used.processor, used.most_resident))
}

/// Fails when something else is local than was asked for.
fn confirm(node: &Host, load: Load) -> Result<()> {
    let lines = |words: &[&str]| Ok::<_, anyhow::Error>(node.run(words)?.stdout.lines().count());
    let addresses = lines(&["ip", "-o", "address", "show", "dev", LINK])?;
    let routes = lines(&["ip", "route", "show", "table", "local", "exact", NETWORK])?;
    let wanted = if load.local { (0, 1) } else { (load.services, 0) };
    ensure!((addresses, routes) == wanted, "{addresses} addresses and {routes} routes; wanted {wanted:?}");
    Ok(())
}
