//! The daemon: one thread receives, one works.
//!
//! The receiving thread runs tokio: the source, the kernel's notifications, signals, HTTP; the working thread owns every
//! kernel socket and everything that is known ([`proxy`]). Ending, in whatever way, leaves the kernel as it is:
//! connections go on, and the next start adopts what it finds.

pub(crate) mod addresses;
mod cleanup;
mod flows;
mod forward;
mod health;
mod kube_names;
mod lock;
mod memory;
pub(crate) mod proxy;
pub(crate) mod status;
pub(crate) mod tables;
pub(crate) mod targets;
#[cfg(test)]
mod tests;
mod worker;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use daemon::log::Log;
use daemon::monitors::{Interests, Meaning, Monitors, NFTABLES, RTNETLINK};
use daemon::shell::{self, Program, Shell};
use daemon::worker::{Mailbox, Worker};
use kernel::Cause;
use kernel::ipvs::Ipvs;
use netstate::IfName;

pub(crate) use cleanup::cleanup;

use self::lock::Lock;
use self::proxy::Proxy;
use self::tables::{Tables, Touched};
use self::worker::ProxyWork;
use crate::command::config::{Config, of_the_command_line};
use crate::commands;
use crate::dataplane::{DataPlane, vip};
use crate::plan::networks::Networks;
use crate::plan::select::Here;
use crate::source::Source;

/// This program's name.
pub(crate) const NAME: &str = "ipvs-proxy";

/// Its version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Gates of readiness beside those of the monitors: Services and EndpointSlices are listed, rows are in.
const SOURCES: &str = "sources";
const TABLES: &str = "tables";

pub(crate) const PROGRAM: Program = Program {
    name: NAME,
    version: VERSION,
    gates: &[SOURCES, RTNETLINK, NFTABLES, TABLES],
    render: commands::text,
    health: health::page,
    others: &[("/proxyMode", "ipvs")],
};

/// Longest time that one update waits for room: as long as a pass may take, and some.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the daemon until it is asked to end.
///
/// # Errors
/// When another of us works here, networks overlap, the kernel has no IPVS or refuses a conversation, or the source ends.
pub(crate) fn run(config: Config, log: Log, seed: u64) -> anyhow::Result<()> {
    let _lock = Lock::take()?;
    let places = config.places.clone();
    shell::run(&PROGRAM, &places, log, |shell| receive(config, seed, shell))
}

/// Receives from the source and passes on, for ever.
async fn receive(config: Config, seed: u64, shell: Shell) -> anyhow::Result<()> {
    let (proxy, interests) = start(&config).await?;
    // Open before the first listing, which the thread begins with.
    let monitors = Monitors::open(interests);
    let mailbox = Mailbox::new(shell.liveness.clone());
    shell.attach(&mailbox);
    let gates = shell.clone();
    let opened = move |monitor: &'static str| {
        gates.open_gate(monitor);
    };
    let _following = monitors.follow(&mailbox, Meaning::new(Touched::by_rtnl, Touched::by_nft), opened);
    let work = ProxyWork::new(proxy, config.node, shell.clone());
    let worker = Worker::start("worker", work, mailbox.clone()).context("start the thread for the kernel")?;
    let mut source = Source::listen(&config.place, seed);
    shell.liveness.judge("source", source.progress());
    let heartbeat = shell.liveness.heartbeat("updates", LIMIT);
    loop {
        heartbeat.idle();
        tokio::select! {
            status = worker.next() => {
                heartbeat.busy();
                shell.board.set(&status);
            }
            update = source.next() => match update {
                Some(update) => {
                    heartbeat.busy();
                    mailbox.send(update).await;
                }
                None => bail!("the source of Services and EndpointSlices has ended"),
            },
        }
    }
}

/// Opens the kernel's tables.
async fn start(config: &Config) -> anyhow::Result<(Proxy, Interests)> {
    let networks = networks(config).await?;
    let mut ipvs = open_ipvs()?;
    let info = ipvs.info()?;
    check_scheduler(&mut ipvs, &config.scheduler)?;
    addresses::set_timeouts(&mut ipvs, config.timeouts)?;
    let link = link()?;
    let release = nix::sys::utsname::uname().context("uname")?.release().to_string_lossy().into_owned();
    let sysctls = addresses::sysctls(&release);
    let addresses = networks.node.iter().map(|network| network.addr).collect();
    let here = Here { addresses, ..Here::on(&*config.node) };
    tracing::info!(node = config.node, kernel = release, ipvs = ?info.version, "starting");
    let (targets, interests) = addresses::targets(ipvs, &link, &sysctls)?;
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let tables = Tables::new(targets, config.grace, &sysctls, config.pods, &link);
    let proxy = Proxy::new(here, networks, DataPlane::new(link, config.scheduler.clone()), tables, epoch);
    Ok((proxy, interests))
}

fn link() -> anyhow::Result<IfName> {
    Ok(IfName::new(vip::LINK_NAME)?)
}

/// Refuses networks that overlap, all at once.
async fn networks(config: &Config) -> anyhow::Result<Networks> {
    let networks =
        Networks { pods: config.pods, services: config.services, node: addresses::networks(config.pods).await? };
    let overlaps = networks.overlaps();
    if overlaps.is_empty() {
        return Ok(networks);
    }
    let problem = |overlap: String| {
        let accepted = "networks of Pods, Services and nodes without a common address";
        cluster::Problem::new("cluster-cidr, --service-cidr", overlap, accepted)
    };
    Err(of_the_command_line(overlaps.into_iter().map(problem)).into())
}

/// Refuses a scheduler that no virtual server could be made with.
fn check_scheduler(ipvs: &mut Ipvs, name: &str) -> anyhow::Result<()> {
    match ipvs.has_scheduler(name) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let accepted = format!("a scheduler of this kernel; load the module ip_vs_{name} if there is one");
            let problem = cluster::Problem::new("ipvs-scheduler", format!("{name:?} is unknown to IPVS"), accepted);
            Err(of_the_command_line([problem]).into())
        }
        Err(error) => {
            tracing::warn!(error = %kernel::Chain(&error), "whether the kernel has the scheduler cannot be asked");
            Ok(())
        }
    }
}

fn open_ipvs() -> anyhow::Result<Ipvs> {
    Ipvs::open().map_err(|error| match error.cause {
        Cause::Missing(_) => anyhow::Error::new(error).context(
            "this kernel has no IPVS: load the modules ip_vs and ip_vs_rr (modprobe, or /etc/modules-load.d), or run a \
             kernel that has them; a data path without IPVS is not built yet",
        ),
        _ => error.into(),
    })
}
