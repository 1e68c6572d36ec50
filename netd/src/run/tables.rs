//! The kernel tables of this program in their order.
//!
//! Invariant: what stands later needs what stands before it. Creates run in this order, removals against it, so a route
//! never leads to a neighbour that is not there. A link that is made anew takes everything on it along, in silence; so
//! after any change of a link the other tables are read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kernel::address::Addresses;
use kernel::fdb::Fdbs;
use kernel::link::Links;
use kernel::neighbour::Neighbours;
use kernel::nft;
use kernel::nft::forward::Forward;
use kernel::route::Routes;
use kernel::sysctl::Sysctls;
use kernel::watch::Event;
use kernel::{KernelError, Rtnl};
use netstate::{IfName, LinkKind};
use reconcile::{Gate, Pass, Reconciler, Stage, Status, pass};

use super::forward;
use crate::format::net_conf::{Backend, Network};
use crate::plan::{self, LocalNode, Tables};

/// Every kernel table that netd writes.
pub(super) struct Stages {
    links: Reconciler<Links>,
    sysctls: Reconciler<Sysctls>,
    addresses: Reconciler<Addresses>,
    nft: Reconciler<nft::Tables>,
    neighbours: Reconciler<Neighbours>,
    fdb: Reconciler<Fdbs>,
    routes: Reconciler<Routes>,
    forward: Forward,
    /// Warnings that the log has.
    reported: Vec<String>,
    ports: Ports,
}

/// Port ids of our conversations, which mark the notifications of our own changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// Of rtnetlink.
    pub rtnl: BTreeSet<u32>,
    /// Of nftables.
    pub nft: BTreeSet<u32>,
}

/// What somebody else changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Notification {
    /// A table of rtnetlink.
    Rtnl(Event),
    /// Our nft table, or any when notifications were lost.
    OwnNft,
    /// Another program's nft table.
    ForeignNft,
}

/// Names of the tables that this node's own Pods need, whatever the other nodes do.
const LOCAL: [&str; 3] = ["links", "addresses", "nft"];

impl Stages {
    /// The tables as they are for `local`. `devices` are names of tunnel devices that an earlier run of this program
    /// recorded as its own.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub(super) fn open(network: &Network, local: &LocalNode, devices: &BTreeSet<IfName>) -> Result<Self, KernelError> {
        let mut ports = Ports::default();
        let mut rtnl = || {
            let rtnl = Rtnl::open()?;
            ports.rtnl.insert(rtnl.port()?);
            Ok::<_, KernelError>(rtnl)
        };
        let (tables, foreign) = (nft::Nft::open()?, nft::Nft::open()?);
        ports.nft.extend([tables.port()?, foreign.port()?]);
        let device = match &network.backend {
            Backend::Vxlan(options) => plan::device(options.vni).ok(),
            Backend::HostGw => None,
        };
        let recorded: BTreeSet<IfName> = devices.iter().chain(&device).cloned().collect();
        let own_link = move |name: &IfName, link: &netstate::Link| {
            recorded.contains(name) && matches!(link.kind, LinkKind::Vxlan(_))
        };
        let (network, owner) = (Arc::new(network.clone()), local.clone());
        let own_route =
            move |key: &netstate::RouteKey, route: &netstate::Route| plan::owns_route(&network, &owner, key, route);
        Ok(Self {
            links: Reconciler::new("links", Links::new(rtnl()?, Box::new(own_link))),
            sysctls: Reconciler::new("sysctls", Sysctls::default()),
            addresses: Reconciler::new("addresses", Addresses::new(rtnl()?, device.clone())),
            nft: Reconciler::new("nft", nft::Tables::new(tables, [plan::TABLE])),
            neighbours: Reconciler::new("neighbours", Neighbours::new(rtnl()?, device.clone())),
            fdb: Reconciler::new("fdb", Fdbs::new(rtnl()?, device)),
            routes: Reconciler::new("routes", Routes::new(rtnl()?, Box::new(own_route))),
            forward: Forward::new(foreign, BTreeSet::from([plan::TABLE]), forward::MARKER),
            reported: Vec::new(),
            ports,
        })
    }

    /// Port ids of the conversations.
    #[must_use]
    pub(super) fn ports(&self) -> Ports {
        self.ports.clone()
    }

    /// Replaces the desired rows.
    pub(super) fn want(&mut self, tables: Tables) {
        self.forward.want(forward::accepts(&tables.forward));
        let known: BTreeSet<_> = self.sysctls.desired().keys().cloned().collect();
        if !tables.sysctls.keys().eq(known.iter()) {
            // The table of parameters lists what it is told to.
            self.sysctls = Reconciler::new("sysctls", Sysctls::new(tables.sysctls.keys().cloned()));
        }
        self.links.want_all(tables.links);
        self.sysctls.want_all(tables.sysctls);
        self.addresses.want_all(tables.addresses);
        self.nft.want_all(tables.nft);
        self.neighbours.want_all(tables.neighbours);
        self.fdb.want_all(tables.fdb);
        self.routes.want_all(tables.routes);
    }

    fn all(&mut self) -> [&mut dyn Stage; 8] {
        [
            &mut self.links,
            &mut self.sysctls,
            &mut self.addresses,
            &mut self.nft,
            &mut self.neighbours,
            &mut self.fdb,
            &mut self.routes,
            &mut self.forward,
        ]
    }

    /// One pass over all tables.
    pub(super) fn pass(&mut self, gate: &Gate, now: Duration) -> Pass {
        let links = self.links.upsert(now);
        if links.upserted > 0 {
            for stage in self.all().into_iter().skip(1) {
                stage.invalidate();
            }
        }
        let mut done = pass(&mut self.all(), gate, now);
        done.observed += links.observed;
        done.upserted += links.upserted;
        done.failed += links.failed;
        done.errors.extend(links.errors);
        let warnings = self.warnings();
        for warning in warnings.iter().filter(|warning| !self.reported.contains(warning)) {
            tracing::warn!("{warning}");
        }
        self.reported = warnings;
        done
    }

    /// Forgets what the kernel held in every table that `event` may have changed.
    pub(super) fn invalidate(&mut self, notification: Notification) {
        match notification {
            Notification::Rtnl(Event::Route) => self.routes.invalidate(),
            Notification::Rtnl(Event::Neighbour) => {
                self.neighbours.invalidate();
                self.fdb.invalidate();
            }
            // A link that goes down or away takes its addresses, neighbours and IPv4 routes along without a word, and
            // the last address of a link its routes.
            Notification::Rtnl(Event::Link | Event::Address) => {
                self.links.invalidate();
                self.sysctls.invalidate();
                self.addresses.invalidate();
                self.neighbours.invalidate();
                self.fdb.invalidate();
                self.routes.invalidate();
            }
            Notification::Rtnl(Event::Resync) => self.invalidate_all(),
            Notification::OwnNft => self.nft.invalidate(),
            Notification::ForeignNft => self.forward.invalidate(),
        }
    }

    /// Forgets everything that the kernel held.
    pub(super) fn invalidate_all(&mut self) {
        self.all().into_iter().for_each(Stage::invalidate);
    }

    /// When the next failed row is due again.
    pub(super) fn next_try(&mut self) -> Option<Duration> {
        self.all().iter().filter_map(|stage| stage.next_try()).min()
    }

    /// Where each table stands.
    pub(super) fn status(&mut self) -> BTreeMap<&'static str, Status> {
        self.all().iter().map(|stage| (stage.name(), stage.status())).collect()
    }

    /// What an operator should look into.
    #[must_use]
    pub(super) fn warnings(&self) -> Vec<String> {
        self.forward.denying().iter().map(forward::warning).collect()
    }
}

/// True when the rows that this node's own Pods need are in place.
#[must_use]
pub(super) fn is_local_done(status: &BTreeMap<&'static str, Status>) -> bool {
    LOCAL.iter().all(|name| status.get(name).is_some_and(Status::is_done))
}
