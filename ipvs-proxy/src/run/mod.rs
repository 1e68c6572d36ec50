//! The daemon: one thread listens, one works.
//!
//! The listening thread runs tokio and receives from the source, the kernel and signals (`ears`); the working thread owns every
//! kernel socket and everything that is known ([`proxy`]). Between them is a queue. SIGTERM leaves the kernel as it is:
//! connections go on, and the next start adopts what it finds.

pub(crate) mod addresses;
mod cleanup;
mod ears;
mod flows;
mod memory;
pub(crate) mod proxy;
mod rotation;
pub(crate) mod status;
pub(crate) mod tables;
pub(crate) mod targets;
#[cfg(test)]
mod tests;

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kernel::Cause;
use kernel::ipvs::Ipvs;
use netstate::IfName;
use tokio::sync::oneshot;

pub(crate) use cleanup::cleanup;

use self::proxy::{Proxy, Update};
use self::status::{Status, StatusFile};
use self::tables::Tables;
use crate::command::config::{Config, Problems};
use crate::dataplane::{DataPlane, vip};

use crate::plan::networks::Networks;
use crate::plan::select::Here;

/// Updates that are taken in before a pass: enough to make a listing of thousands one pass, few enough to keep up.
const TOGETHER: usize = 4096;

/// Runs the daemon until it is asked to end.
///
/// # Errors
/// When networks overlap, the kernel has no IPVS or refuses a conversation, or one of the threads fails.
pub(crate) fn run(config: Config, seed: u64) -> anyhow::Result<()> {
    let (worker, ports) = start(&config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let (updates, inbox) = channel();
    let (alive, working) = oneshot::channel();
    let thread = std::thread::Builder::new().name("worker".to_owned()).spawn(move || {
        worker.run(&inbox);
        drop(alive);
    })?;
    let ended = runtime.block_on(ears::listen(config.place, seed, ports, updates, working));
    // The queue is closed now: the worker finishes its pass and returns.
    let worked = thread.join();
    match ended? {
        ears::Ended::Asked if worked.is_ok() => {
            tracing::info!("asked to end; the kernel stays as it is");
            Ok(())
        }
        _ => bail!("the thread that works on the kernel has ended unexpectedly"),
    }
}

/// Opens the kernel's tables and finds what is ours in them.
fn start(config: &Config) -> anyhow::Result<(Worker, addresses::Ports)> {
    let networks = networks(config)?;
    let mut ipvs = open_ipvs()?;
    let info = ipvs.info()?;
    addresses::set_timeouts(&mut ipvs, config.timeouts)?;
    let link = link()?;
    let owned = addresses::owned(&mut ipvs, &link)?;
    let release = nix::sys::utsname::uname().context("uname")?.release().to_string_lossy().into_owned();
    let sysctls = addresses::sysctls(&release);
    let node = config.node.clone();
    let addresses = networks.node.iter().map(|network| network.addr).collect();
    let here = Here { node: node.clone(), addresses };
    tracing::info!(node, kernel = release, ipvs = ?info.version, adopted = owned.len(), "starting");
    let (targets, ports) = addresses::targets(ipvs, owned, &link, &sysctls)?;
    let tables = Tables::new(targets, config.grace, &sysctls, config.pods, &link);
    let proxy = Proxy::new(here, networks, DataPlane::new(link, config.scheduler.clone()), tables);
    let status = StatusFile::new(&config.run_dir);
    Ok((Worker { proxy, status, node, ready: false, changed: true }, ports))
}

fn link() -> anyhow::Result<IfName> {
    Ok(IfName::new(vip::LINK_NAME)?)
}

/// Refuses networks that overlap, all at once.
fn networks(config: &Config) -> anyhow::Result<Networks> {
    let networks = Networks { pods: config.pods, services: config.services, node: addresses::networks(config.pods)? };
    let overlaps = networks.overlaps();
    if overlaps.is_empty() {
        return Ok(networks);
    }
    let problem = |overlap: &crate::plan::networks::Overlap| {
        let accepted = "networks of Pods, Services and nodes without a common address";
        cluster::Problem::new("cluster-cidr, --service-cidr", overlap.to_string(), accepted)
    };
    Err(Problems(overlaps.iter().map(problem).collect()).into())
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

/// The working thread.
struct Worker {
    proxy: Proxy,
    status: StatusFile,
    node: String,
    ready: bool,
    /// Something may have changed since the status was written.
    changed: bool,
}

impl Worker {
    /// Works until the queue is closed.
    fn run(mut self, inbox: &Receiver<Update>) {
        let start = Instant::now();
        let mut next = Duration::ZERO;
        loop {
            let now = start.elapsed();
            match inbox.recv_timeout(next.saturating_sub(now)) {
                Ok(update) => {
                    self.changed = true;
                    let more = inbox.try_iter().take(TOGETHER);
                    for update in std::iter::once(update).chain(more) {
                        self.proxy.take(update, start.elapsed());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            next = self.work(start.elapsed());
        }
    }

    fn work(&mut self, now: Duration) -> Duration {
        let (pass, next) = self.proxy.work(now);
        for error in &pass.errors {
            tracing::warn!("{error}");
        }
        if pass.upserted + pass.removed > 0 {
            let (created, removed) = (pass.upserted, pass.removed);
            tracing::info!(upserted = created, removed, failed = pass.failed, "kernel changed");
        }
        if !self.ready && self.proxy.gate().is_open() {
            self.ready = true;
            tracing::info!(services = self.proxy.view().services().count(), "ready");
            // Outside systemd there is nobody to notify.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        }
        self.changed |= !pass.is_idle() || pass.observed > 0;
        if self.changed {
            let advice: Vec<_> = addresses::bridge_advice().into_iter().collect();
            self.changed = !self.status.update(now, || Status::of(&self.proxy, &self.node, &advice, now));
        }
        next
    }
}
