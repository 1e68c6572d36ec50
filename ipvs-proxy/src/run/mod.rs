//! The daemon: one thread receives, one works.
//!
//! The receiving thread runs tokio: the source, the kernel's notifications, signals, HTTP; the working thread owns every
//! kernel socket and everything that is known ([`proxy`]). Ending, in whatever way, leaves the kernel as it is:
//! connections go on, and the next start adopts what it finds.

pub(crate) mod addresses;
mod checks;
pub(crate) mod cleanup;
mod flows;
pub(crate) mod forward;
mod health;
mod kube_names;
pub(crate) mod lock;
mod log;
mod memory;
mod own_addresses;
mod path;
mod prepare;
pub(crate) mod proxy;
mod reload;
mod routed;
mod spared;
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
use kernel::KernelError;
use netstate::IfName;
use nix::time::{ClockId, clock_gettime};

pub(crate) use cleanup::cleanup;
pub(crate) use prepare::init_only;

use self::checks::Checks;
use self::lock::Lock;
use self::own_addresses::Following;
use self::path::Opened;
use self::proxy::Proxy;
use self::reload::Reload;
use self::status::ProxyStatus;
use self::tables::{Tables, Touched};
use self::worker::{Order, ProxyWork};
use crate::command::args::Invocation;
use crate::command::config::Config;
use crate::command::settings::Notes;
use crate::commands;
use crate::dataplane::drain::Drains;
use crate::dataplane::{DataPlane, Mode, NodeAddresses, Options, vip};
use crate::plan::here::{Facts, OwnAddresses};
use crate::plan::networks::Networks;
use crate::source::Source;

/// This program's name.
pub(crate) const NAME: &str = "ipvs-proxy";

/// Its version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Gates of readiness beside those of the monitors: Services and EndpointSlices are listed, rows are in.
const SOURCES: &str = "sources";
const TABLES: &str = "tables";

/// The program on either data path.
pub(crate) const IPVS: Program = program(&[("/proxyMode", "ipvs")]);
pub(crate) const NFT: Program = program(&[("/proxyMode", "nftables")]);

const fn program(others: &'static [(&'static str, &'static str)]) -> Program {
    Program {
        name: NAME,
        version: VERSION,
        gates: &[SOURCES, RTNETLINK, NFTABLES, TABLES],
        render: commands::text,
        health: health::page,
        others,
    }
}

/// Longest time that one update waits for room: as long as a pass may take, and some.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the daemon until it is asked to end.
///
/// # Errors
/// When another of us works here, the kernel has not the data path that was asked for or refuses a conversation, or the source
/// ends.
pub(crate) fn run(invocation: Invocation, config: Config, log: Log) -> anyhow::Result<()> {
    let _lock = Lock::take()?;
    prepare::process(&config)?;
    let places = config.places.clone();
    let opened = path::open(config.mode)?;
    let program = match opened.mode {
        Mode::Ipvs => IPVS,
        Mode::Nftables => NFT,
    };
    let (settings, of_reload) = (config.settings.clone(), log.clone());
    shell::run(&program, &places, log, |shell| async move {
        let reload = Reload::new(invocation, settings, of_reload);
        receive(config, opened, reload, shell).await
    })
}

/// Receives from the source and passes on, for ever.
async fn receive(config: Config, opened: Opened, mut reload: Reload, shell: Shell) -> anyhow::Result<()> {
    let following = Following::open(link()?).await?;
    let own = following.addresses().await?;
    let (proxy, interests) = start(&config, &own, opened).await?;
    // Open before the first listing, which the thread begins with.
    let monitors = Monitors::open(interests);
    let mailbox = Mailbox::new(shell.liveness.clone());
    shell.attach(&mailbox);
    let gates = shell.clone();
    let opened = move |monitor: &'static str| {
        gates.open_gate(monitor);
    };
    let _following = monitors.follow(&mailbox, Meaning::new(Touched::by_rtnl, Touched::by_nft), opened);
    let checks = Checks::default();
    tokio::spawn(checks.clone().serve(shell.liveness.clone()));
    let node = config.node.clone();
    let work = ProxyWork::new(proxy, config.node, checks, shell.clone());
    let worker = Worker::start("worker", work, mailbox.clone()).context("start the thread for the kernel")?;
    let mut source = Source::listen(&config.place, &node, shell::seed());
    shell.liveness.judge("source", source.progress());
    let heartbeat = shell.liveness.heartbeat("addresses", own_addresses::LIMIT);
    tokio::spawn(own_addresses::follow(following, own, mailbox.clone(), heartbeat));
    let heartbeat = shell.liveness.heartbeat("updates", LIMIT);
    let mut last = None;
    loop {
        heartbeat.idle();
        tokio::select! {
            status = worker.next() => {
                heartbeat.busy();
                put_up(&shell, &config.notes, &reload, &status);
                last = Some(status);
            }
            changed = reload.next() => {
                changed?;
                if let Some(status) = &last {
                    put_up(&shell, &config.notes, &reload, status);
                }
            }
            update = source.next() => match update {
                Some(update) => {
                    heartbeat.busy();
                    mailbox.send(Order::Update(update)).await;
                }
                None => bail!("the source of Services and EndpointSlices has ended"),
            },
        }
    }
}

/// Puts the status up, with what is to be said of the configuration.
fn put_up(shell: &Shell, notes: &Notes, reload: &Reload, status: &ProxyStatus) {
    let of_file = reload.problem().into_iter().map(str::to_owned);
    let advice = of_file.chain(notes.warnings.iter().cloned()).chain(status.advice.iter().cloned()).collect();
    let started_with = reload.words().to_vec();
    shell.board.set(&ProxyStatus { advice, started_with, ..status.clone() });
}

/// Opens the kernel's tables.
async fn start(config: &Config, own: &OwnAddresses, mut opened: Opened) -> anyhow::Result<(Proxy, Interests)> {
    let pods = prepare::pods(config);
    if pods != config.facts.pods {
        if pods.present().next().is_none() {
            bail!("this kernel has no IPv6, the only family of the Pod network");
        }
        tracing::warn!("this kernel has no IPv6: Services are served over IPv4 only");
    }
    let networks = networks(config).await?;
    let link = link()?;
    let release = release()?;
    let mode = opened.mode;
    let sysctls = prepare::parameters(config, &release, mode);
    if let Some(ipvs) = opened.ipvs.as_mut().filter(|_| mode == Mode::Ipvs) {
        prepare::ipvs(ipvs, config)?;
    }
    let plane = plane(config, mode)?;
    let facts = Facts { own: own.clone(), pods, ..config.facts.clone() };
    tracing::info!(node = config.node, kernel = release, mode = mode.name(), "starting");
    let (targets, interests) = addresses::targets(opened.ipvs, (&link, &config.excluded), &sysctls)?;
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let tables = Tables::new(targets, Drains::new(config.grace, since_boot()?), &sysctls, &plane);
    let proxy = Proxy::new(facts, networks, plane, tables, epoch);
    Ok((proxy, interests))
}

/// How long this machine is up.
fn since_boot() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_BOOTTIME).context("clock_gettime")?.into())
}

/// The kernel's release.
fn release() -> anyhow::Result<String> {
    Ok(nix::sys::utsname::uname().context("uname")?.release().to_string_lossy().into_owned())
}

fn link() -> anyhow::Result<IfName> {
    Ok(IfName::new(vip::LINK_NAME)?)
}

/// The data path without frontends.
///
/// # Errors
/// When the link of virtual addresses has no name, which does not happen.
pub(crate) fn plane(config: &Config, mode: Mode) -> anyhow::Result<DataPlane> {
    let (scheduler, pods) = (config.scheduler.clone(), prepare::pods(config));
    let (services, node) = (config.services, NodeAddresses::default());
    let guards = prepare::guards(config);
    Ok(DataPlane::new(Options { mode, link: link()?, scheduler, pods, services, node, guards }))
}

/// The networks as they are.
///
/// # Errors
/// When the kernel cannot be read.
pub(crate) async fn networks_of(config: &Config) -> Result<Networks, KernelError> {
    let pods = prepare::networks(config);
    Ok(Networks { pods, services: config.services, node: addresses::networks(pods).await? })
}

/// What plans depend on, as it is now, without the Node object.
///
/// # Errors
/// When the kernel cannot be read.
pub(crate) async fn facts(config: &Config) -> anyhow::Result<Facts> {
    let own = Following::open(link()?).await?.addresses().await?;
    Ok(Facts { own, pods: prepare::pods(config), ..config.facts.clone() })
}

/// The networks as they are. Those that overlap are named, and what they have in common serves no Service.
async fn networks(config: &Config) -> anyhow::Result<Networks> {
    let networks = networks_of(config).await?;
    for overlap in networks.overlaps() {
        tracing::warn!("{overlap}; a Service whose address lies in both is not served");
    }
    Ok(networks)
}
