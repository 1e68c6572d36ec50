//! What one number of Services gave, and the tables of it.

use super::Carrier;
use crate::machine;
use crate::report::{Report, ms, times};
use crate::samples::Samples;

/// What one number of Services gave.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// From the start of the process to an empty kernel until it holds all, and the part of it from the listing in memory on.
    pub(super) start: Samples,
    pub(super) fill: Samples,
    /// A program that sends the same content and does nothing else.
    pub(super) floor: Samples,
    pub(super) tools: Samples,
    /// The same as the first two, with a kernel that holds all.
    pub(super) restart: Samples,
    pub(super) refill: Samples,
    /// nft transactions of the restarts.
    pub(super) restart_changes: usize,
    /// A program that lists the same tables and does nothing else.
    pub(super) list: Samples,
    /// The same with real servers by netlink, of IPVS.
    pub(super) netlink: Samples,
    /// One endpoint: from the start of the write to etcd, the write alone, from the arrival of etcd's word on the node.
    pub(super) change: Samples,
    pub(super) write: Samples,
    pub(super) own: Samples,
    pub(super) ipvsadm: Samples,
    /// Messages to the kernel for one change.
    pub(super) messages: Vec<usize>,
    pub(super) processor: Samples,
    /// Page faults of the first start, in the round with the most.
    pub(super) faults: u32,
    pub(super) most_resident: u64,
    /// Resident once nothing happens any more, behind the fill and behind a restart, in KiB.
    pub(super) resident: [u64; 2],
    /// Part of a processor while nothing changes.
    pub(super) idle: f64,
}

/// All tables, by the number of Services; the first one has its section already.
pub(super) fn tables(carrier: Carrier, all: &[(usize, Figures)], report: &Report) {
    let name = carrier.name();
    table(&FILL, all, report);
    report.section(&format!("ipvs-proxy on {name}: a restart with nothing to change (milliseconds)"));
    let peer = if carrier == Carrier::Ipvs { &BY_NETLINK[..] } else { &[] };
    table(&RESTART.iter().chain(peer).copied().collect::<Vec<_>>(), all, report);
    report.section(&format!(
        "ipvs-proxy on {name}: one endpoint of one Service changes in the middle of them (milliseconds)"
    ));
    let peer = (carrier == Carrier::Ipvs).then_some(&BY_IPVSADM);
    table(&CHANGE.iter().chain(peer).copied().collect::<Vec<_>>(), all, report);
    beside_the_fewest(all, report);
    report.section(&format!("ipvs-proxy on {name}: what it uses"));
    table(&USAGE, all, report);
}

/// A column: its head and what it shows.
type Column = (&'static str, fn(&Figures) -> String);

const FILL: [Column; 8] = [
    ("ipvs-proxy", |figures| ms(figures.start.median())),
    ("least–most", |figures| spread(&figures.start)),
    ("of it from the listing", |figures| ms(figures.fill.median())),
    ("floor", |figures| ms(figures.floor.median())),
    ("listing/floor", |figures| times(figures.fill.median(), figures.floor.median())),
    ("proxy/floor", |figures| times(figures.start.median(), figures.floor.median())),
    ("tools", |figures| ms(figures.tools.median())),
    ("proxy/tools", |figures| times(figures.start.median(), figures.tools.median())),
];

const RESTART: [Column; 7] = [
    ("restart", |figures| ms(figures.restart.median())),
    ("least–most", |figures| spread(&figures.restart)),
    ("of it from the listing", |figures| ms(figures.refill.median())),
    ("bare dump", |figures| ms(figures.list.median())),
    ("listing/dump", |figures| times(figures.refill.median(), figures.list.median())),
    ("restart/dump", |figures| times(figures.restart.median(), figures.list.median())),
    ("nft transactions", |figures| figures.restart_changes.to_string()),
];

const BY_NETLINK: [Column; 3] = [
    ("dump by netlink", |figures| ms(figures.netlink.median())),
    ("listing/it", |figures| times(figures.refill.median(), figures.netlink.median())),
    ("restart/it", |figures| times(figures.restart.median(), figures.netlink.median())),
];

const CHANGE: [Column; 8] = [
    ("median", |figures| ms(figures.change.median())),
    ("p99", |figures| ms(figures.change.p99())),
    ("of it etcd's write", |figures| ms(figures.write.median())),
    ("proxy's part, median", |figures| ms(figures.own.median())),
    ("its p99", |figures| ms(figures.own.p99())),
    ("changes", |figures| figures.change.len().to_string()),
    ("messages, median", |figures| middle(&figures.messages).to_string()),
    ("most", |figures| figures.messages.iter().max().unwrap_or(&0).to_string()),
];

const BY_IPVSADM: Column = ("ipvsadm -a, -d", |figures| ms(figures.ipvsadm.median()));

const USAGE: [Column; 6] = [
    ("processor until ready, ms", |figures| ms(figures.processor.median())),
    ("page faults until ready", |figures| figures.faults.to_string()),
    ("memory, most, MiB", |figures| format!("{:.1}", machine::mebibytes(figures.most_resident))),
    ("resident behind it, MiB", |figures| format!("{:.1}", machine::mebibytes(figures.resident[0]))),
    ("behind a restart, MiB", |figures| format!("{:.1}", machine::mebibytes(figures.resident[1]))),
    ("part of a processor, idle", |figures| format!("{:.2} %", figures.idle * 100.0)),
];

/// Says how the proxy's part of one change grows with the number of Services.
fn beside_the_fewest(all: &[(usize, Figures)], report: &Report) {
    let Some(((fewest, base), rest)) = all.split_first() else { return };
    for (services, figures) in rest {
        let median = times(figures.own.median(), base.own.median());
        let p99 = times(figures.own.p99(), base.own.p99());
        report
            .text(&format!("Among {services} Services beside {fewest}, the proxy's part: median {median}, p99 {p99}."));
    }
}

fn table(columns: &[Column], all: &[(usize, Figures)], report: &Report) {
    let head: Vec<&str> = std::iter::once("Services").chain(columns.iter().map(|(head, _)| *head)).collect();
    let row = |(services, figures): &(usize, Figures)| {
        std::iter::once(services.to_string()).chain(columns.iter().map(|(_, show)| show(figures))).collect()
    };
    report.table(&head, &all.iter().map(row).collect::<Vec<_>>());
}

fn spread(samples: &Samples) -> String {
    format!("{}–{}", ms(samples.least()), ms(samples.most()))
}

fn middle(counts: &[usize]) -> usize {
    let mut sorted = counts.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}
