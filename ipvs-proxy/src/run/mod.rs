//! The daemon: one thread receives, one works.
//!
//! The receiving thread runs tokio: the source, the kernel's notifications, signals, HTTP; the working thread owns every
//! kernel socket and everything that is known ([`proxy`]). Ending, in whatever way, leaves the kernel as it is:
//! connections go on, and the next start adopts what it finds.

pub(crate) mod addresses;
mod checks;
pub(crate) mod cleanup;
mod counted;
mod flows;
pub(crate) mod forward;
mod guarded;
mod health;
mod held;
mod kube_names;
pub(crate) mod lock;
mod log;
mod memory;
pub(crate) mod needs;
mod own_addresses;
mod path;
mod prepare;
pub(crate) mod proxy;
mod reload;
mod reported;
mod routed;
mod running;
mod served;
mod service_cidrs;
mod spared;
pub(crate) mod status;
pub(crate) mod tables;
pub(crate) mod targets;
#[cfg(test)]
mod tests;
pub(crate) mod traffic;
mod worker;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use daemon::log::Log;
use daemon::monitors::{Interests, Monitors, NFTABLES, RTNETLINK};
use daemon::shell::{self, Program, Shell};
use daemon::worker::{Mailbox, Worker};
use kernel::KernelError;
use netstate::IfName;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

pub(crate) use cleanup::cleanup;
pub(crate) use prepare::init_only;

use self::checks::Checks;
use self::counted::Numbers;
use self::held::Held;
use self::lock::Lock;
use self::own_addresses::Following;
use self::path::Opened;
use self::proxy::Proxy;
use self::reload::Reload;
use self::running::Running;
use self::status::ProxyStatus;
use self::tables::Tables;
use self::worker::{Order, ProxyWork};
use crate::command::args::Invocation;
use crate::command::config::Config;
use crate::command::settings::Notes;
use crate::commands;
use crate::dataplane::drain::Drains;
use crate::dataplane::{DataPlane, Mode, NodeAddresses, Options, vip};
use crate::plan::here::{Facts, OwnAddresses};
use crate::plan::networks::Networks;
use crate::source::{Place, Source};

/// This program's name.
pub(crate) const NAME: &str = "ipvs-proxy";

/// Its version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Gates of readiness beside those of the monitors: Services and EndpointSlices are listed, rows are in.
const SOURCES: &str = "sources";
const TABLES: &str = "tables";

/// What this program is to the frame that it runs in.
const PROGRAM: Program = Program {
    name: NAME,
    version: VERSION,
    gates: &[SOURCES, RTNETLINK, NFTABLES, TABLES],
    render: commands::text,
    health: health::page,
};

/// kube-proxy's page that says which data path is used.
const MODE_PAGE: &str = "/proxyMode";

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
    needs::check(opened.mode)?;
    let (settings, of_reload) = (config.settings.clone(), log.clone());
    shell::run(&PROGRAM, &places, log, |shell| async move {
        let reload = Reload::new(invocation, settings, of_reload);
        receive(config, opened, reload, shell).await
    })
}

/// Receives from the source and passes on, for ever.
async fn receive(config: Config, opened: Opened, mut reload: Reload, shell: Shell) -> anyhow::Result<()> {
    // Until the first listing has been worked off.
    kernel::heap::keep();
    let following = Following::open(link()?).await?;
    let own = following.addresses().await?;
    let origin = Origin::now()?;
    let mode = opened.mode;
    tracing::info!(node = config.node, kernel = release()?, mode = mode.name(), "starting");
    let numbers = Numbers::shown_by(&shell.metrics);
    let (proxy, interests) = start(&config, &own, opened, (origin, &numbers)).await?;
    let mailbox = Mailbox::new(shell.liveness.clone());
    shell.attach(&mailbox);
    traffic::show(config.service_metrics, &mailbox, &shell.metrics);
    served::show(&mailbox, &shell.own_pages);
    let mut running = Running::new(config, (origin, numbers), mailbox.clone(), shell.clone());
    // That of rtnetlink before the first listing, which the thread begins with; that of nftables behind the first rows.
    let (begun, first_rows) = oneshot::channel();
    running.follow(Monitors::open_behind(interests, first_rows));
    running.show(mode);
    let checks = Checks::default();
    tokio::spawn(checks.clone().serve(shell.liveness.clone()));
    let work = reporting(ProxyWork::new(proxy, checks, shell.clone()).beginning(begun), running.config());
    let worker = Worker::start("worker", work, mailbox.clone()).context("start the thread for the kernel")?;
    let Config { place, node, .. } = running.config();
    service_cidrs::begin(place, &mailbox, &shell.liveness);
    let mut source = Source::listen(place, node, shell::seed());
    for (name, progress) in source.progress() {
        shell.liveness.judge(name, progress);
    }
    let heartbeat = shell.liveness.heartbeat("addresses", own_addresses::LIMIT);
    tokio::spawn(own_addresses::follow(following, own, mailbox.clone(), place.clone(), heartbeat));
    let heartbeat = shell.liveness.heartbeat("updates", LIMIT);
    let mut last = None;
    loop {
        heartbeat.idle();
        tokio::select! {
            status = worker.next() => {
                heartbeat.busy();
                put_up(&shell, &running.config().notes, &reload, &status);
                last = Some(status);
            }
            changed = reload.next() => {
                heartbeat.busy();
                if let Some(config) = changed? {
                    running.reconfigure(config, &mut reload).await;
                }
                if let Some(status) = &last {
                    put_up(&shell, &running.config().notes, &reload, status);
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

/// The work of the thread, which reports to the API server as well where the objects come from there.
fn reporting(work: ProxyWork, Config { place, node, .. }: &Config) -> ProxyWork {
    let held = Held::default();
    tokio::spawn(held.clone().follow());
    let reporter = match place {
        Place::Kubernetes(client) => Some(reported::start(client, node, shell::seed())),
        Place::Etcd(..) | Place::Directory(_) => None,
    };
    work.reporting(held, reporter)
}

/// Puts the status up, with what is to be said of the configuration.
fn put_up(shell: &Shell, notes: &Notes, reload: &Reload, status: &ProxyStatus) {
    let of_file = reload.problem().into_iter().map(str::to_owned);
    let advice = of_file.chain(notes.warnings.iter().cloned()).chain(status.advice.iter().cloned()).collect();
    let started_with = reload.words().to_vec();
    shell.board.set(&ProxyStatus { advice, started_with, ..status.clone() });
}

/// The moment at which the clock of the thread for the kernel shows zero.
#[derive(Debug, Clone, Copy)]
struct Origin {
    /// In seconds since 1970.
    epoch: u64,
    /// How long this machine is up.
    boot: Duration,
}

impl Origin {
    fn now() -> anyhow::Result<Self> {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Self { epoch, boot: clock_gettime(ClockId::CLOCK_BOOTTIME).context("clock_gettime")?.into() })
    }
}

/// Opens the kernel's tables.
async fn start(
    config: &Config,
    own: &OwnAddresses,
    mut opened: Opened,
    (origin, numbers): (Origin, &Numbers),
) -> anyhow::Result<(Proxy, Interests)> {
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
    let servers = opened.ipvs.map(|ipvs| addresses::servers(ipvs, plane.families()));
    let (targets, interests) = addresses::targets(servers, (&link, &config.excluded), &sysctls, numbers)?;
    let tables = Tables::new(targets, Drains::new(config.grace, origin.boot), &sysctls, &plane);
    let proxy = Proxy::new(facts, networks, plane, tables, origin.epoch);
    Ok((proxy, interests))
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
    let (services, node, announced) = (config.services, NodeAddresses::default(), BTreeSet::new());
    let (local, guards) = (config.local.clone(), prepare::guards(config));
    Ok(DataPlane::new(Options { mode, link: link()?, scheduler, pods, services, announced, local, node, guards }))
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
