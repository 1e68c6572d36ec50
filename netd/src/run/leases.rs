//! What the store says, and what follows from it.
//!
//! Invariants: a loss of the own lease is reported to the keeper and changes nothing else; another subnet is used only
//! when the keeper holds it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use cluster::problem::elided;
use daemon::files;
use daemon::monitors::{Meaning, Monitors};
use daemon::worker::{Mailbox, Worker};
use kernel::watch::Event;
use netstate::IfName;

use super::daemon::{Daemon, judge_source};
use super::facts;
use super::notification::Notification;
use super::records::LEASE_RECORD;
use super::status;
use super::tables::Stages;
use super::witness::Listing;
use super::worker::TableWork;
use crate::choose::interface::{Interface, NodeAddress, below};
use crate::format::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::format::net_conf::Network;
use crate::plan::{LocalNode, Place, PodLinks};
use crate::source::view::{Change, OwnKey};
use crate::source::{Held, KeeperEvent, LeaseEvent, LeaseSource, Readdress};

/// Longest wait for the end of a pass before the tables are opened afresh.
const END_LIMIT: Duration = Duration::from_secs(10);

/// So often another program's details in the own lease are overwritten within [`OBJECTIONS_FOR`].
const OBJECTIONS: usize = 3;
const OBJECTIONS_FOR: Duration = Duration::from_secs(600);

impl<S: LeaseSource> Daemon<S> {
    pub(super) fn on_lease(&mut self, event: LeaseEvent) {
        let broken = self.witness.view.broken();
        let ends = matches!(event, LeaseEvent::Commit | LeaseEvent::Complete);
        let begins = matches!(event, LeaseEvent::Origin(_));
        match &event {
            LeaseEvent::Lost(error) => tracing::warn!(%error, "the store is out of reach; the data path stays"),
            LeaseEvent::Complete if self.witness.view.lost().is_some() => {
                tracing::info!("the store is in reach again")
            }
            _ => {}
        }
        let change = self.witness.apply(event);
        if let Some(reason) = self.witness.view.broken().filter(|reason| broken.as_ref() != Some(reason)) {
            tracing::warn!(%reason, "the store is not the one that was listed before; what it lacks stays for now");
        }
        if begins && self.witness.view.broken().is_some() {
            // Its revisions are earlier ones than that of the claim, so that no later loss would count.
            self.keeper.report_loss("the store is not the one in which it was acquired".to_owned(), None);
        }
        self.after(change);
        if ends {
            self.planning.end();
        }
    }

    pub(super) fn confirm(&mut self, listing: Option<Listing>) {
        let change = self.witness.confirm(listing);
        self.after(change);
        self.planning.end();
    }

    /// Draws the consequences of a change of the view.
    fn after(&mut self, change: Change) {
        if change.status || !change.leases.is_empty() {
            self.planning.note(change.leases);
            self.reporter.note();
        }
        if change.own {
            self.check_own_key();
        }
        for (key, reason) in self.witness.view.invalid().filter(|_| change.invalid) {
            self.reporter.complain(format!("{key}: {reason}"), |_| {
                tracing::warn!(
                    key = elided(key.to_owned()),
                    reason,
                    "what stands there is no usable lease; it is skipped"
                );
            });
        }
    }

    fn check_own_key(&mut self) {
        if !self.source.is_shared() {
            return;
        }
        match self.witness.view.own_key() {
            OwnKey::Gone(revision) => self.keeper.report_loss("its key was deleted".to_owned(), revision),
            OwnKey::Taken(reason, revision) if self.source.is_chosen_from() => {
                self.keeper.report_loss(format!("its key was overwritten: {reason}"), Some(revision));
            }
            OwnKey::Taken(reason, _) => {
                let text = format!("another node has this node's subnet as well: {reason}");
                self.reporter.complain(text, |text| tracing::error!("{text}: give one of them another podCIDR"));
            }
            OwnKey::Rebound(token, revision) => {
                let reason = format!("its key was bound to {} by another program", status::end_of(token));
                self.keeper.report_loss(reason, Some(revision));
            }
            OwnKey::Held | OwnKey::Unknown => {}
        }
        self.object();
    }

    /// Writes the own lease again when another program has written other details into it: if that is a second node with
    /// this address, it learns that this one lives. Not for ever: whoever goes on is only reported.
    fn object(&mut self) {
        let view = &self.witness.view;
        let revision = self.held.as_ref().and_then(|held| view.get(&held.key)).map(|stored| stored.revision);
        let (text, revision) = match (view.contested(), view.asked()) {
            (Some(other), _) => (format!("another program writes this node's lease: {}", other.render()), revision),
            (None, asked @ Some(_)) => ("another program wrote this node's lease as it was".to_owned(), asked),
            (None, None) => return,
        };
        let Some(revision) = revision else { return };
        self.reporter.complain(text, |text| tracing::error!("{text}: does a second node have this address?"));
        let now = tokio::time::Instant::now();
        self.objections.retain(|at| now.duration_since(*at) < OBJECTIONS_FOR);
        if self.objections.len() < OBJECTIONS {
            self.objections.push(now);
            self.keeper.object("another program wrote it".to_owned(), revision);
        }
    }

    pub(super) async fn on_keeper(&mut self, event: KeeperEvent) -> Result<()> {
        self.reporter.note();
        match event {
            KeeperEvent::Kept => self.reporter.lease_trouble = None,
            KeeperEvent::Failing { reason, taken } => {
                if taken {
                    self.withdraw_file();
                }
                self.reporter.lease_trouble = Some(reason);
            }
            KeeperEvent::Held(held) => {
                self.reporter.lease_trouble = None;
                self.reporter.withdrawn = false;
                self.hold(*held).await?;
                self.announced();
                if self.events.is_none() {
                    // The worker reads the kernel and makes the own tables while the leases are taken in.
                    self.plan();
                    let events = self.source.events();
                    judge_source(&self.shell.liveness, "lease", events.loops());
                    self.events = Some(events);
                }
                // The key may have been deleted again before the claim was reported.
                self.check_own_key();
            }
        }
        Ok(())
    }

    /// This node holds a lease: from now on its tables can be planned.
    async fn hold(&mut self, held: Held) -> Result<()> {
        tracing::info!(subnet = held.lease.key.list(), how = held.how, "lease acquired");
        if self.source.kind() == "etcd" && held.token.is_none() {
            tracing::info!(subnet = held.lease.key.list(), "the lease is a reservation: it has no end");
        }
        self.record(&held);
        let other = |lease: &Lease| format!("key {} names this node as well, and is not ours to delete", lease.key);
        self.reporter.other_keys = held.others.iter().map(other).collect();
        for text in &self.reporter.other_keys {
            tracing::warn!("{text}");
        }
        let lease = held.lease;
        self.witness.view.hold(lease.clone(), held.token, held.revision);
        let same = self.held.as_ref().is_some_and(|before| before.key == lease.key);
        let network = &self.node.network;
        if let Some(before) = self.held.as_ref().filter(|before| has_moved(network, &before.key, &lease.key)) {
            tracing::error!(
                before = before.key.list(),
                now = lease.key.list(),
                "this node has another subnet now; Pods with addresses of the earlier one are cut off"
            );
        }
        let local = self.local(Some(&lease));
        self.held = Some(lease);
        if same && self.worker.is_some() && local == *self.planning.planner.local() {
            self.planning.note_other();
            return Ok(());
        }
        self.planning.set_local(local);
        self.follow_pod_links();
        self.report_clashes();
        self.start_worker().await
    }

    /// This node as the interface is now, with the subnets and hardware addresses of a lease if one is given.
    pub(super) fn local(&self, lease: Option<&Lease>) -> LocalNode {
        let (known, external) = (self.planning.planner.local(), &self.external.current);
        let macs = lease.map(|lease| lease.attrs.backend.macs()).unwrap_or_default();
        let held = lease.or(self.held.as_ref());
        let place = |family, own: Option<NodeAddress>| {
            let own = own?;
            let before = known.places.get(family);
            let mac = macs.get(family).or(before.map(|place| place.mac));
            let mac = mac.unwrap_or_else(|| self.node.network.backend.generated_mac(own.public_ip, &self.node.machine));
            let place = Place::new(&own, mac);
            match held.and_then(|held| held.key.get(family)) {
                Some(subnet) => Some(Place { subnet, ..place }),
                // A family that this lease has no subnet of has no Pods here.
                None => lease.is_none().then_some(place),
            }
        };
        let unserved = |family, own: Option<NodeAddress>| match own {
            Some(_) => None,
            None => held.and_then(|held| held.key.get(family)),
        };
        LocalNode {
            places: external.addresses.map(place),
            unserved: external.addresses.map(unserved),
            interface: external.interface.clone(),
            mtu: external.mtu,
            has_ipv6: known.has_ipv6,
            accepts_routers: match external.interface == known.interface {
                true => known.accepts_routers,
                false => facts::accepts_routers(&external.interface),
            },
            checksum_fault: facts::checksum_fault(&external.interface),
            flowtables: known.flowtables,
            public_key: known.public_key,
            data: known.data.clone(),
            ways: self.reach.ways(),
        }
    }

    /// Plans for the bridges of this node's Pods, those that have an address in its subnets, and for the links below these and
    /// below the interface.
    pub(super) fn follow_pod_links(&mut self) {
        let planner = &self.planning.planner;
        if !planner.has_flowtable() {
            return;
        }
        let (local, devices) = (planner.local(), &self.node.devices);
        let of_pods = |link: &&Interface| {
            let inside = |addr| local.subnets().any(|subnet| subnet.contains(addr));
            link.is_bridge && !devices.contains(&link.name) && link.addresses.iter().any(|own| inside(own.addr))
        };
        let host = &self.external.host;
        let bridges: BTreeSet<IfName> = host.iter().filter(of_pods).map(|link| link.name.clone()).collect();
        let below = below(host, bridges.iter().cloned().chain([local.interface.clone()]));
        self.planning.set_pod_links(PodLinks { bridges, below });
    }

    fn record(&mut self, held: &Held) {
        self.node.record = std::mem::take(&mut self.node.record).with(held);
        self.write_record();
    }

    /// Writes the record of the leases of this node, where the file has another one.
    pub(super) fn write_record(&mut self) {
        let path = self.node.config.run_dir.join(LEASE_RECORD);
        let text = self.node.record.to_string();
        if text.is_empty() {
            return;
        }
        if let Err(error) = files::replace(&path, text.as_bytes()) {
            self.reporter.complain(format!("write {}: {error}", path.display()), |text| tracing::warn!("{text}"));
            self.reporter.try_files_again();
        }
    }

    /// Starts the kernel's side afresh for the subnet that is held now.
    pub(super) async fn start_worker(&mut self) -> Result<()> {
        self.following = None;
        if let Some(worker) = self.worker.take()
            && !worker.stop(END_LIMIT).await
        {
            tracing::warn!("the kernel thread is in a long pass; another one begins beside it");
        }
        self.node.ownership.local = self.planning.planner.local().clone();
        let targets = (self.node.open)(&self.node.ownership, &self.node.devices, &self.node.identity)
            .context("open the kernel's tables")?;
        let stages = Stages::on(targets);
        // Open before the first listing, which comes with the first plan.
        let monitors = Monitors::open(stages.interests());
        let mailbox = Mailbox::new(self.shell.liveness.clone());
        self.shell.attach(&mailbox);
        let (links, routes, shell) = (Arc::clone(&self.links), Arc::clone(&self.routes), self.shell.clone());
        // Whether they matter can change with the network's configuration; where they do not, nothing was asked.
        let ways = Arc::clone(&self.ways);
        let any_route = self.node.config.interface.can_reach.is_some();
        let by_rtnl = move |event| {
            if matches!(event, Event::Link | Event::Address | Event::NewAddress | Event::OtherLink | Event::Resync) {
                links.notify_one();
            }
            let of_way = matches!(event, Event::Route | Event::OtherRoute | Event::Rule) && any_route;
            if matches!(event, Event::DefaultRoute | Event::Resync) || of_way {
                routes.notify_one();
            }
            if !matches!(event, Event::Neighbour | Event::Forwarding) {
                ways.notify_one();
            }
            vec![Notification::Rtnl(event)]
        };
        let opened = move |monitor: &'static str| {
            shell.open_gate(monitor);
        };
        self.following = Some(monitors.follow(&mailbox, Meaning::new(by_rtnl, Notification::by_nft), opened));
        let work = TableWork::new(stages, Arc::clone(&self.shell.metrics));
        self.worker = Some(Worker::start("worker", work, mailbox).context("start the thread for the kernel")?);
        self.planning.start_over();
        Ok(())
    }

    /// Reads the interface and follows it: a new MTU is planned, a new address goes into the lease first.
    pub(super) async fn follow_interface(&mut self) -> Result<()> {
        // A link that was made anew has other parameters.
        self.watch_silent();
        let before = self.external.current.clone();
        let read = self.external.read().await;
        self.reporter.note();
        self.reporter.refused_family = None;
        let read = read.map(|now| now.and_then(|_| self.admit(&before)));
        self.reach.set_own(facts::addresses(&self.external.host, &self.external.current.interface));
        self.report_clashes();
        self.follow_vrf();
        if !self.reach.agrees_on_host(&self.planning.planner.local().ways) {
            self.planning.set_ways(self.reach.ways());
        }
        self.follow_pod_links();
        let now = match read {
            Ok(Some(now)) => now,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::warn!(error = %kernel::Chain(&error), "the interface towards the others cannot be read");
                self.external.note();
                return Ok(());
            }
        };
        tracing::info!(
            interface = %now.interface, public_ip = now.public_ips().list(), mtu = now.mtu,
            "this node's interface towards the others changed"
        );
        if now.addresses != before.addresses {
            self.source.dial_anew();
        }
        let known = self.planning.planner.local().clone();
        self.reporter.note();
        let local = self.local(None);
        if now.public_ips() != known.public_ips() {
            let attrs = LeaseAttrs { public_ips: now.public_ips(), backend: self.node.network.backend.attrs(&local) };
            let network = self.node.network.clone();
            self.keeper.readdress(Readdress { addresses: now.addresses, attrs, network });
            return Ok(());
        }
        let same_place = LocalNode { mtu: known.mtu, ..local.clone() } == known;
        self.planning.set_local(local);
        if same_place { Ok(()) } else { self.start_worker().await }
    }
}

/// True when a subnet of the earlier lease is not in the later one; a family that came, or that the network does not have
/// any more, moves nobody.
fn has_moved(network: &Network, before: &SubnetKey, now: &SubnetKey) -> bool {
    let before = before.subnets();
    let served = before.present().filter(|(family, _)| network.pools.get(*family).is_some());
    served.into_iter().any(|(family, subnet)| now.get(family).as_ref() != Some(subnet))
}
