//! What is left in the kernel's tables, as rows that nobody wants.
//!
//! The loop that the daemon runs lists and removes them; here nothing is desired. Invariant: removals run against the
//! order of creates, as the daemon's do.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use daemon::status::{Row, TableRows};
use kernel::link::Links;
use kernel::nft::forward::Forward;
use kernel::nft::{self, Nft};
use kernel::route::Routes;
use kernel::{Chain, Rtnl};
use netstate::nft::TableKey;
use netstate::{IfName, Link, Prefix, Route, RouteKey};
use reconcile::{Reconciler, Stack, Stage};

use super::flannel;
use crate::command::instance::Instance;
use crate::plan::backend::Backend;
use crate::plan::{is_left, is_left_by_flannel};
use crate::run::claim::Claimed;
use crate::run::records::Recorded;
use crate::run::subnet_file;

/// Rows that nobody wants.
pub(super) struct Leftovers {
    stack: Stack,
    /// Chains of iptables-nft, and who removes them.
    chains: Option<(Vec<String>, Nft)>,
}

impl Leftovers {
    /// Lists them; with `flannel` what flannel left as well.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn find(
        instance: &Instance,
        folder: &Path,
        claimed: &Claimed,
        flannel: bool,
        subnet_file: &Path,
    ) -> Result<Self> {
        let Recorded { mut devices, mut networks } = Recorded::read(folder);
        devices.retain(|device| !claimed.is_others_device(device));
        networks.retain(|network| !claimed.is_others_network(network));
        let mut stack = Stack::new();
        let others = claimed.others_devices();
        let owns = move |name: &IfName, link: &Link| {
            let is_ours = devices.contains(name) && Backend::makes_link(link);
            is_ours || flannel && flannel::is_device(name, &link.kind) && !others.contains(name)
        };
        stack.push(Reconciler::new("links", Links::new(Rtnl::open()?, Box::new(owns))));
        let own = instance.all_tables();
        let theirs = flannel::nft_tables().into_iter().filter(|_| flannel);
        let mut nft = Nft::open()?;
        let mut keys: BTreeSet<TableKey> = nft::trace::left_over(&mut nft)?.into_iter().collect();
        for key in own.iter().cloned().chain(theirs) {
            if nft.has_table(&key)? {
                keys.insert(key);
            }
        }
        stack.push(Reconciler::new("nft", nft::Tables::new(nft, keys)));
        let left = flannel_networks(subnet_file, claimed).filter(|_| flannel);
        let owns = move |key: &RouteKey, route: &Route| {
            let by_flannel = left.as_ref().is_some_and(|(pods, lens)| is_left_by_flannel(pods, lens, key, route));
            is_left(&networks, key, route) || by_flannel
        };
        stack.push(Reconciler::new("routes", Routes::new(Rtnl::open()?, Box::new(owns))));
        stack.push(Forward::new(Nft::open()?, own, instance.marker()));
        stack.upsert(Duration::ZERO);
        check(&stack)?;
        let chains = if flannel {
            let mut nft = Nft::open()?;
            Some((flannel::chains(&mut nft)?, nft))
        } else {
            None
        };
        Ok(Self { stack, chains })
    }

    /// One text for each row.
    pub(super) fn rows(&self) -> Vec<String> {
        let rows = |stage: &(dyn Stage + Send)| {
            let TableRows { name, rows, .. } = TableRows::of(stage);
            // The text of a route says that it is one.
            let kind = match name.as_str() {
                "links" => "link ",
                "nft" => "nft ",
                "forward" => "rule ",
                _ => "",
            };
            rows.into_iter().filter_map(|row| row.actual).map(move |row| format!("{kind}{row}")).collect::<Vec<_>>()
        };
        let chains = self.chains.iter().flat_map(|(chains, _)| chains.iter().cloned());
        self.stack.stages().rev().flat_map(rows).chain(chains).collect()
    }

    /// Removes them, and returns what did not go.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn remove(&mut self) -> Result<Vec<String>> {
        let mut failed = Vec::new();
        if let Some((_, nft)) = &mut self.chains
            && let Err(error) = flannel::remove_chains(nft)
        {
            failed.push(Chain(&error).to_string());
        }
        self.stack.remove(Duration::ZERO);
        // What went along with something else is gone without a step of its own.
        let open = self.stack.status().into_iter().flat_map(|(_, status)| status.open);
        let reasons: Vec<String> =
            open.map(|row| Row::from(&row)).map(|row| format!("{}: {}", row.key, row.reason)).collect();
        self.stack.invalidate_all();
        self.stack.upsert(Duration::ZERO);
        check(&self.stack)?;
        let left = self.stack.stages().flat_map(|stage| TableRows::of(stage).rows).filter_map(|row| row.actual);
        failed.extend(left.map(|row| format!("{row} stays")));
        if !failed.is_empty() {
            failed.extend(reasons);
        }
        Ok(failed)
    }
}

fn check(stack: &Stack) -> Result<()> {
    for (name, status) in stack.status() {
        if let Some(error) = status.observe_error {
            bail!("list {name}: {error}");
        }
    }
    Ok(())
}

/// The Pod networks that the subnet file names, and the lengths of this node's subnets.
fn flannel_networks(subnet_file: &Path, claimed: &Claimed) -> Option<(BTreeSet<Prefix>, Vec<u8>)> {
    let file = subnet_file::load(subnet_file)?;
    let networks = file.networks().filter(|network| !claimed.is_others_network(network)).copied().collect();
    Some((networks, [file.subnet_v4, file.subnet_v6].into_iter().flatten().map(|subnet| subnet.len()).collect()))
}
