//! `Running`: what the daemon runs with, and another configuration in its place.
//!
//! What rows depend on is taken in as a new start takes it in, but for the source, which goes on: new tables, of which nothing is known
//! yet, are compared with the kernel, and whatever is known of the cluster is planned anew. So a change of the mode breaks as little as a
//! new start in the other mode does.
//!
//! Invariant: all of a configuration is in force, or that of before; why it cannot be is reported.

use anyhow::Context;
use daemon::monitors::{self, Meaning, Monitors};
use daemon::shell::Shell;
use daemon::slot::locked;
use daemon::worker::Mailbox;
use kernel::ipvs::Ipvs;

use super::counted::Numbers;
use super::own_addresses::Following;
use super::reload::Reload;
use super::tables::Touched;
use super::worker::{Order, ProxyWork};
use super::{MODE_PAGE, Origin, addresses, link, path, prepare, start};
use crate::command::config::Config;
use crate::dataplane::Mode;

/// See the module's text.
pub(super) struct Running {
    config: Config,
    origin: Origin,
    numbers: Numbers,
    mailbox: Mailbox<ProxyWork>,
    shell: Shell,
    #[allow(dead_code, reason = "kept for its drop")]
    monitors: Option<monitors::Following>,
}

impl Running {
    /// Nothing is followed yet.
    pub(super) fn new(
        config: Config,
        (origin, numbers): (Origin, Numbers),
        mailbox: Mailbox<ProxyWork>,
        shell: Shell,
    ) -> Self {
        Self { config, origin, numbers, mailbox, shell, monitors: None }
    }

    /// The configuration that is in force.
    pub(super) const fn config(&self) -> &Config {
        &self.config
    }

    /// Follows what the kernel says of these tables, and of no others any more. Must be called on a tokio runtime.
    pub(super) fn follow(&mut self, monitors: Monitors) {
        let shell = self.shell.clone();
        let opened = move |monitor: &'static str| {
            shell.open_gate(monitor);
        };
        let meaning = Meaning::new(Touched::by_rtnl, Touched::by_nft);
        self.monitors = Some(monitors.follow(&self.mailbox, meaning, opened));
    }

    /// Shows whoever asks which data path is used.
    pub(super) fn show(&self, mode: Mode) {
        locked(&self.shell.vitals).pages.insert(MODE_PAGE, mode.name());
    }

    /// Takes in another configuration, and notes what becomes of it.
    pub(super) async fn reconfigure(&mut self, config: Config, reload: &mut Reload) {
        match self.take(&config).await {
            Ok(()) => {
                reload.accept(&config);
                self.config = config;
            }
            Err(error) => reload.refuse(&error),
        }
    }

    async fn take(&mut self, config: &Config) -> anyhow::Result<()> {
        if asks_for_the_same_rows(&self.config, config) {
            let mut ipvs = path::open(config.mode)?.ipvs;
            if let Some(ipvs) = &mut ipvs {
                set_timeouts(ipvs, config)?;
            }
        } else {
            let opened = path::open(config.mode)?;
            let mode = opened.mode;
            let own = Following::open(link()?).await?.addresses().await?;
            let (proxy, interests) = start(config, &own, opened, (self.origin, &self.numbers)).await?;
            self.follow(Monitors::open(interests));
            self.mailbox.send(Order::Succeed(Box::new(proxy))).await;
            self.show(mode);
        }
        prepare::score(config);
        self.shell.listen(&config.places);
        Ok(())
    }
}

/// True when nothing that rows depend on differs.
fn asks_for_the_same_rows(one: &Config, other: &Config) -> bool {
    let rows = |config: &Config| {
        let Config { pods, services, local, facts, mode, scheduler, excluded, grace, parameters, .. } = config.clone();
        (pods, services, local, facts, mode, scheduler, excluded, grace, parameters)
    };
    rows(one) == rows(other) && prepare::guards(one) == prepare::guards(other)
}

fn set_timeouts(ipvs: &mut Ipvs, config: &Config) -> anyhow::Result<()> {
    addresses::set_timeouts(ipvs, config.timeouts).context("set the time-outs of IPVS")
}
