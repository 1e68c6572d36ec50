//! The network's configuration, followed while the daemon runs.
//!
//! Invariants: what cannot change on a node with Pods changes nothing, and is named. Another backend is made before the
//! old one is broken: its devices stand before this node's lease announces it, and the old one stays until every node has
//! announced the new one and has had time to notice this node's.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cluster::Problem;
use daemon::files;
use netstate::IfName;
use netstate::family::IpFamily;
use tokio::time::Instant;

use super::daemon::Daemon;
use super::identity::Identity;
use super::{facts, needs, records, start};
use crate::choose::change;
use crate::format::lease::LeaseAttrs;
use crate::format::net_conf::{NetConf, Network};
use crate::plan::backend::Backend;
use crate::plan::{LocalNode, Place};
use crate::source::{LeaseSource, Readdress};

/// File in the run-time folder with the configuration that every node has moved to, as far as this one knows.
pub(super) const SETTLED: &str = "net-conf.json";

/// How long the old data path stays after the last node has announced the new one: nodes take notice of each other's
/// leases within a second, and a store that is slow may take longer.
const GRACE: Duration = Duration::from_secs(10);

/// What could not be recorded is tried again after this time.
const AGAIN: Duration = Duration::from_secs(2);

/// How long nodes take to notice a lease that was written, on a busy host.
const NOTICE: Duration = Duration::from_secs(2);

/// How far a change of the configuration has come.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// The text that is served.
    text: String,
    /// What is wrong with the configuration that is in the store now.
    pub(super) problem: Option<String>,
    /// What the own lease shall say once the devices stand.
    announce: Option<LeaseAttrs>,
    /// When the old data path goes, or what could not be recorded of that is recorded.
    retire_at: Option<Instant>,
    /// When the other nodes have noticed what this one announced.
    release_at: Option<Instant>,
    /// The file says what is served.
    recorded: bool,
}

impl Change {
    /// Nothing has changed since `text` was read.
    pub(super) fn new(text: String) -> Self {
        Self { text, ..Self::default() }
    }

    /// When there is something to retire or to record.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.retire_at
    }

    /// When the other nodes have noticed what this one announced.
    pub(super) const fn release_due(&self) -> Option<Instant> {
        self.release_at
    }
}

/// The backend that earlier runs of this daemon have used and other nodes may use still, when that is another one.
pub(super) fn earlier_backend<S: LeaseSource>(source: &S, run_dir: &Path, network: &Network) -> Vec<Backend> {
    let text = bounded::read_text(&run_dir.join(SETTLED), bounded::SETTINGS).ok();
    let before = text.and_then(|text| start::net_conf(source, &text).ok()).map(|conf| conf.network);
    let stays = |before: &Network| {
        change::refusals(before, network, |_| None).is_empty() && before.backend.stands_beside(&network.backend)
    };
    before.filter(stays).map(|before| before.backend).into_iter().collect()
}

/// What a change of the configuration needs.
struct Prepared {
    /// The old data path can stay beside the new one.
    beside: bool,
    /// A family comes or goes.
    families: bool,
    identity: Identity,
    local: LocalNode,
}

impl<S: LeaseSource> Daemon<S> {
    /// The store has this configuration now.
    pub(super) async fn on_config(&mut self, text: Option<Vec<u8>>) -> Result<()> {
        let place = self.source.config_place();
        // A Pod may have come just now.
        if let Err(error) = self.external.read_host().await {
            tracing::warn!(error = %kernel::Chain(&error), "the addresses of this host cannot be read");
        }
        let problem = match self.read_config(text) {
            Ok(None) => None,
            Ok(Some((text, conf))) => {
                for note in &conf.notes {
                    tracing::warn!(source = place, "{note}");
                }
                match self.prepared(&conf.network) {
                    Ok(prepared) => {
                        self.change.text = text;
                        self.follow_config(conf.network, prepared).await?;
                        None
                    }
                    Err(error) => Some(format!("{place}: {error:#}; this node runs on with what it had")),
                }
            }
            Err(reasons) => Some(format!("{place}: {reasons}; this node runs on with what it had")),
        };
        if let Some(problem) = problem.as_ref().filter(|problem| self.change.problem.as_ref() != Some(problem)) {
            tracing::error!("{problem}");
        }
        self.change.problem = problem;
        self.reporter.note();
        Ok(())
    }

    /// What the configuration says when it differs from what is served.
    fn read_config(&self, text: Option<Vec<u8>>) -> Result<Option<(String, NetConf)>, String> {
        let list = |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let text = text.ok_or("it is gone")?;
        let text = String::from_utf8(text).map_err(|_| "it holds no text")?;
        let conf = start::net_conf(&self.source, &text).map_err(list)?;
        if conf.network == self.node.network {
            return Ok(None);
        }
        let refusals = change::refusals(&self.node.network, &conf.network, |family| self.pods(family));
        if !refusals.is_empty() {
            return Err(format!("{} (drain the nodes and restart netd on each to change that)", refusals.join("; ")));
        }
        let mut local = self.planning.planner.local().clone();
        local.places = local.places.map(|family, place| conf.network.pools.get(family).as_ref().and(place));
        let config = &self.node.config;
        let checked =
            start::check_plan(config, &conf.network, &local).and_then(|()| needs::check(config, &conf.network));
        checked.map_err(|error| format!("{error:#}"))?;
        Ok(Some((text, conf)))
    }

    /// Where Pods of `family` are: a link of this host with an address of the own subnet, which is the Pods' bridge, stays
    /// for as long as there may be some.
    fn pods(&self, family: IpFamily) -> Option<String> {
        let subnet = self.held.as_ref()?.key.get(family)?;
        let others = self.external.host.iter().filter(|link| !self.node.devices.contains(&link.name));
        let mut inside = others.filter(|link| link.addresses.iter().any(|own| subnet.contains(own.addr)));
        inside.next().map(|link| format!("interface {} has one of {subnet}", link.name))
    }

    /// Serves `network` from now on, beside what was served before where both can stand.
    async fn follow_config(&mut self, network: Network, prepared: Prepared) -> Result<()> {
        let Prepared { beside, families, identity, local } = prepared;
        let before = std::mem::replace(&mut self.node.network, network.clone());
        tracing::info!(
            before = before.backend.name(),
            now = network.backend.name(),
            "the network's configuration changed"
        );
        if let Some(what) = network.backend.interruption(&before.backend) {
            tracing::warn!(
                "{what} differs: packets are lost between this node and the others until the other nodes have changed as well"
            );
        }
        self.node.ownership.serve(network.clone());
        self.node.identity = identity;
        if beside || families {
            self.node.ownership.earlier.extend(before.networks());
            self.node.devices.extend(network.devices());
            self.reach.set_tunnels(self.node.devices.clone());
        }
        let retiring = self.node.ownership.retiring.clone();
        self.planning.set_network(network.clone(), retiring, local.clone());
        self.follow_pod_links();
        // Leases that the plan could not use say something to it now.
        self.planning.note_all(self.witness.view.keys().collect());
        let attrs = LeaseAttrs { public_ips: local.public_ips(), backend: network.backend.attrs(&local) };
        self.change.announce = self.held.as_ref().filter(|held| held.attrs != attrs).map(|_| attrs);
        self.change.retire_at = None;
        // What the lease says already is known.
        self.change.release_at = self.change.announce.is_none().then(Instant::now);
        self.change.recorded = false;
        self.reporter.expect_report();
        if families {
            self.follow_families(&network, &local);
        }
        if (beside || families) && self.worker.is_some() { self.start_worker().await } else { Ok(()) }
    }

    /// A family that comes is leased when the interface was read for it; one that goes leaves the lease at once.
    fn follow_families(&mut self, network: &Network, local: &LocalNode) {
        let families: Vec<IpFamily> = network.pools.families().collect();
        let shown = families.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        tracing::info!(families = shown, "the network has other families of addresses");
        self.external.set_families(families);
        let lost = self.held.as_ref().is_some_and(|held| {
            IpFamily::ALL
                .into_iter()
                .any(|family| held.key.get(family).is_some() && network.pools.get(family).is_none())
        });
        if lost {
            let attrs = LeaseAttrs { public_ips: local.public_ips(), backend: network.backend.attrs(local) };
            let addresses = self.external.current.addresses;
            self.keeper.readdress(Readdress { addresses, attrs, network: network.clone() });
        }
    }

    /// Gets what the backend of `network` needs, and says what this node is with it.
    fn prepared(&mut self, network: &Network) -> Result<Prepared> {
        let old = &self.node.network.backend;
        let beside = old.stands_beside(&network.backend);
        let has = |network: &Network| network.pools.families().collect::<Vec<_>>();
        let families = has(&self.node.network) != has(network);
        let known = self.planning.planner.local();
        if !beside && !families {
            return Ok(Prepared { beside, families, identity: self.node.identity.clone(), local: known.clone() });
        }
        let identity = Identity::of(&network.backend, &self.node.config)?.or(&self.node.identity);
        let devices: BTreeSet<IfName> = self.node.network.devices().into_iter().chain(network.devices()).collect();
        if let Some(claimed) = &mut self.node.claimed {
            claimed.take_more(network.networks(), devices.iter().cloned())?;
        }
        let recorded = devices.union(&self.node.devices).cloned().collect();
        records::record_devices(&self.node.config.run_dir, &recorded)?;
        let served = self.node.ownership.earlier.iter().copied();
        let served = served.chain(self.node.network.networks()).chain(network.networks()).collect();
        records::record_networks(&self.node.config.run_dir, &served)?;
        // Those of retiring backends count: the nodes that use them know their address.
        let had_devices = !self.node.ownership.devices().is_empty();
        let macs = facts::tunnel_macs(network, &self.node.ownership.retiring).context("look for the tunnel devices")?;
        let place = |family, place: Option<Place>| {
            let place = place.filter(|_| network.pools.get(family).is_some())?;
            // Two devices of one node may have one address: the other nodes need not learn another.
            let kept = if had_devices {
                place.mac
            } else {
                network.backend.generated_mac(place.public_ip, &self.node.machine)
            };
            Some(Place { mac: macs.get(family).unwrap_or(kept), ..place })
        };
        let places = known.places.map(place);
        let (public_key, data) = (identity.public_key(), identity.data.clone());
        let local = LocalNode { places, public_key, data, ..known.clone() };
        Ok(Prepared { beside, families, identity, local })
    }

    /// The tables that this node's own Pods need stand: what was prepared can be announced.
    pub(super) fn announce(&mut self) {
        let Some(attrs) = self.change.announce.take() else { return };
        tracing::info!(backend = attrs.backend.name(), "this node is reached by the new backend from now on");
        self.witness.view.await_own(attrs.clone());
        let (addresses, network) = (self.external.current.addresses, self.node.network.clone());
        self.keeper.readdress(Readdress { addresses, attrs, network });
    }

    /// The lease is written: the other nodes will notice.
    pub(super) fn announced(&mut self) {
        if !self.node.ownership.retiring.is_empty() && self.change.announce.is_none() {
            self.change.release_at.get_or_insert_with(|| Instant::now() + NOTICE);
        }
    }

    /// The other nodes know this one by the new backend.
    pub(super) fn release(&mut self) {
        self.change.release_at = None;
        self.planning.release(self.witness.view.keys().collect());
    }

    /// Retires the old data path when nobody needs it any more.
    pub(super) fn check_moved(&mut self) {
        if !self.witness.view.is_complete() || self.witness.view.is_doubted() {
            return;
        }
        let announced = self.change.announce.is_none()
            && self.held.as_ref().is_some_and(|held| {
                held.attrs.backend == self.node.network.backend.attrs(self.planning.planner.local())
            });
        let all = announced && self.planning.planner.waiting() == 0;
        if self.node.ownership.retiring.is_empty() {
            if all && !self.change.recorded {
                self.record_settled();
            }
        } else if all {
            self.change.retire_at.get_or_insert_with(|| Instant::now() + GRACE);
        } else {
            self.change.retire_at = None;
        }
    }

    /// Takes the old data path away.
    pub(super) fn retire(&mut self) {
        self.change.retire_at = None;
        let old = std::mem::take(&mut self.node.ownership.retiring);
        if old.is_empty() {
            return self.check_moved();
        }
        tracing::info!(backend = names(&old), "every node has moved to the new backend; the old one goes");
        self.planning.retire();
        self.reporter.note();
        self.record_settled();
    }

    /// WireGuard's PSK is in it.
    fn record_settled(&mut self) {
        let path = self.node.config.run_dir.join(SETTLED);
        match files::replace_secret(&path, self.change.text.as_bytes()) {
            Ok(_) => self.change.recorded = true,
            Err(error) => {
                self.reporter.complain(format!("write {}: {error}", path.display()), |text| tracing::warn!("{text}"));
                self.change.retire_at = Some(Instant::now() + AGAIN);
            }
        }
    }

    /// How far a change of the configuration has come, for an operator.
    pub(super) fn change_remarks(&self) -> Vec<String> {
        let retiring = &self.node.ownership.retiring;
        let waiting = (!retiring.is_empty()).then(|| {
            let (old, new) = (names(retiring), self.node.network.backend.name());
            let (go, stay) = if retiring.len() == 1 { ("goes", "stays") } else { ("go", "stay") };
            match self.planning.planner.waiting() {
                0 => format!("backend {old} {go} as soon as every node has noticed that this one uses {new}"),
                count => format!("backend {old} {stay} beside {new} until {count} nodes more use {new}"),
            }
        });
        let kept = self.planning.planner.kept_count();
        let kept = (kept > 0).then(|| {
            let own = self.node.network.backend.name();
            format!(
                "{kept} nodes have announced another backend than {own}, or another VNI; they are reached the way they were before"
            )
        });
        self.change.problem.iter().cloned().chain(waiting).chain(kept).collect()
    }
}

/// The names of backends, for an operator.
fn names(backends: &[Backend]) -> String {
    backends.iter().map(Backend::name).collect::<Vec<_>>().join(" and ")
}
