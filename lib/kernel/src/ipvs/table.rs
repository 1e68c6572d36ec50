//! `IpvsTable`: virtual servers with their real servers, a row each.
//!
//! One row and not one for each server: ten thousand virtual servers of ten are ten thousand rows to look up, and the kernel drops the
//! real servers of a virtual server that goes. A step on a row is the messages for what differs in it ([`super::server_steps`]); when one
//! of them is refused the others are carried out all the same, and the row is read again.
//!
//! Ownership. IPVS rows carry no mark of their maker, so the caller keeps a record of the virtual servers that are ours
//! and writes it before the first of them is made; at start it hands over what the record says. From then on the
//! table knows by itself: what it makes is ours, what it removes is no longer. Real servers are their virtual
//! server's. Real servers of foreign virtual servers are not even listed.
//!
//! A listing asks getsockopt(2) for the virtual servers and for the real servers of each; netlink where IPv6 is served.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use netstate::ipvs::{RealServers, Row, VirtualServer, VirtualServerKey};
use reconcile::{Observed, Owner, Rows, Step, Target};

use super::agreement::Agreement;
use super::write::{ServerStep, server_steps};
use super::{Ipvs, Listed};
use crate::error::KernelError;

/// Servers that are written at a time, and rows that are given for it: steps for a hundred thousand servers would take more memory than
/// the rows.
const SERVERS: usize = 8192;
const STEPS: usize = 1024;

type RowStep = Step<VirtualServerKey, Row>;

/// The table; see the module's text.
#[derive(Debug)]
pub struct IpvsTable {
    pub(super) ipvs: Ipvs,
    owned: BTreeSet<VirtualServerKey>,
    /// Addresses at which the next listing takes every virtual server for ours.
    adopted: BTreeSet<IpAddr>,
    /// Virtual servers that steps relied on and that were not there, or that are to be read again.
    pub(super) vanished: BTreeSet<VirtualServerKey>,
    /// Rows of which a step that failed has changed a part.
    partial: BTreeSet<VirtualServerKey>,
    /// Virtual servers of IPv6 may be desired.
    serves_ipv6: bool,
    /// What was compared with the kernel last.
    pub(super) agreement: Agreement,
    /// The virtual server whose real servers were compared last.
    pub(super) compared: Option<VirtualServerKey>,
    /// When the virtual servers of IPv6 are listed again; `None` before they were.
    pub(super) next_ipv6: Option<Instant>,
    /// How many virtual servers of IPv4 there were when all were compared last, whoever's; `None` once a step may have changed that.
    pub(super) counted: Option<usize>,
}

impl IpvsTable {
    /// The table behind `ipvs`, of which `owned` are ours.
    #[must_use]
    pub fn new(ipvs: Ipvs, owned: impl IntoIterator<Item = VirtualServerKey>) -> Self {
        let (owned, adopted, vanished) = (owned.into_iter().collect(), BTreeSet::new(), BTreeSet::new());
        let (partial, agreement, serves_ipv6) = (BTreeSet::new(), Agreement::default(), true);
        let (compared, next_ipv6, counted) = (None, None, None);
        Self { ipvs, owned, adopted, vanished, partial, serves_ipv6, agreement, compared, next_ipv6, counted }
    }

    /// Nobody will desire virtual servers of IPv6: unless some are ours from before, they are not listed. Only netlink knows them, which has no
    /// question for them alone and makes a message of each one of IPv4 too.
    #[must_use]
    pub fn without_ipv6(self) -> Self {
        Self { serves_ipv6: false, ..self }
    }

    /// Before the first listing: `owned` are ours, and so is whatever stands at the addresses `at` then.
    pub fn adopt(&mut self, owned: BTreeSet<VirtualServerKey>, at: BTreeSet<IpAddr>) {
        self.owned.extend(owned);
        self.adopted.extend(at);
    }

    /// The conversation, for what is no row.
    pub const fn ipvs(&mut self) -> &mut Ipvs {
        &mut self.ipvs
    }

    /// Virtual servers that steps since the last call relied on and that were gone, their real servers with them: what
    /// the caller believes of all these rows is wrong.
    pub fn take_vanished(&mut self) -> BTreeSet<VirtualServerKey> {
        std::mem::take(&mut self.vanished)
    }

    /// Takes a virtual server over, whoever made it: from now on it is ours, with all its real servers.
    pub fn claim(&mut self, key: VirtualServerKey) {
        if self.owned.insert(key) {
            self.agreement.reopen(key);
        }
    }

    /// What is believed of these virtual servers is about to change.
    pub(super) fn reopen<'a>(&mut self, services: impl IntoIterator<Item = &'a VirtualServerKey>) {
        services.into_iter().for_each(|key| self.agreement.reopen(*key));
    }

    /// The virtual servers, those of IPv6 where somebody asks for them.
    fn virtual_servers(&mut self) -> Result<Vec<(VirtualServerKey, VirtualServer)>, KernelError> {
        let mut ours = self.owned.iter().map(|key| &key.addr).chain(&self.adopted);
        if self.serves_ipv6 || ours.any(IpAddr::is_ipv6) {
            return Ok(self.ipvs.virtual_servers()?.into_iter().collect());
        }
        let listed = self.ipvs.sockopt.services()?.of(|_| true);
        Ok(listed.map(|Listed { key, value, .. }| (key, value)).collect())
    }

    /// The real servers of the virtual server `key`; `None` when it does not exist.
    pub(super) fn real_servers(&mut self, key: &VirtualServerKey) -> Result<Option<RealServers>, KernelError> {
        if key.addr.is_ipv4() {
            let found = self.ipvs.sockopt.servers(key)?;
            return Ok(found.map(|found| found.into_iter().map(|(key, real)| (key.at(), real)).collect()));
        }
        let found = self.ipvs.real_servers(key)?;
        Ok(Some(found.into_iter().map(|(key, (real, _))| (key.at(), real)).collect()))
    }

    /// The row of `key` whose virtual server is `value`. The real servers of others are nobody's business.
    fn row(&mut self, key: &VirtualServerKey, value: VirtualServer) -> Result<Observed<Row>, KernelError> {
        let (row, owner) = (Row::from(value), self.owner(key));
        if owner == Owner::Foreign {
            return Ok(Observed { value: row, owner });
        }
        let reals = self.real_servers(key)?.unwrap_or_default();
        Ok(Observed { value: row.with(reals), owner })
    }

    /// The row of `key` as the kernel holds it now; `None` when it is not there.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub(super) fn row_of(&mut self, key: &VirtualServerKey) -> Result<Option<Observed<Row>>, KernelError> {
        self.agreement.reopen(*key);
        self.ipvs.virtual_server(key)?.map(|value| self.row(key, value)).transpose()
    }

    /// Whose a virtual server is.
    pub(super) fn owner(&self, key: &VirtualServerKey) -> Owner {
        if self.owned.contains(key) { Owner::Ours } else { Owner::Foreign }
    }

    /// Notes what the step on a row has come to, by the results of its servers.
    fn settle(&mut self, step: &RowStep, results: Vec<Result<(), KernelError>>) -> Result<(), KernelError> {
        let key = *step.key();
        let many = results.len();
        let mut failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        if failures.is_empty() {
            match step {
                Step::Remove(..) => self.owned.remove(&key),
                _ => self.owned.insert(key),
            };
            return Ok(());
        }
        if failures.len() < many {
            self.owned.insert(key);
            self.partial.insert(key);
        }
        self.counted = None;
        Err(failures.swap_remove(0))
    }
}

impl Target for IpvsTable {
    type Key = VirtualServerKey;
    type Value = Row;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<VirtualServerKey, Row>, KernelError> {
        self.agreement.forget();
        let listed = self.virtual_servers()?;
        let adopted = std::mem::take(&mut self.adopted);
        self.owned.extend(listed.iter().map(|(key, _)| *key).filter(|key| adopted.contains(&key.addr)));
        listed.into_iter().map(|(key, value)| Ok((key, self.row(&key, value)?))).collect()
    }

    /// What others change is found by comparisons of its own, which a listing is a hundred times dearer than.
    fn is_unchanged(&mut self) -> bool {
        true
    }

    fn batch(&self) -> usize {
        STEPS
    }

    fn left(&mut self, key: &VirtualServerKey, before: Option<Observed<Row>>) -> Option<Observed<Row>> {
        if !self.partial.remove(key) {
            return before;
        }
        self.row_of(key).unwrap_or_else(|_| {
            // To be read when the kernel can be.
            self.vanished.insert(*key);
            before
        })
    }

    fn apply(&mut self, steps: &[RowStep]) -> Vec<Result<(), KernelError>> {
        self.reopen(steps.iter().map(Step::key));
        if !steps.iter().all(|step| matches!(step, Step::Change(..))) {
            self.counted = None;
        }
        let mut results = Vec::with_capacity(steps.len());
        while let Some(rest) = steps.get(results.len()..).filter(|rest| !rest.is_empty()) {
            let (servers, ends) = together(rest);
            let mut written = self.write(&servers).into_iter();
            let mut begin = 0;
            for (step, end) in rest.iter().zip(ends) {
                let of_step = written.by_ref().take(end - begin).collect();
                begin = end;
                results.push(self.settle(step, of_step));
            }
        }
        results
    }
}

/// The servers of as many of the first steps as are written together, one at least; and where those of each step end.
fn together(steps: &[RowStep]) -> (Vec<ServerStep>, Vec<usize>) {
    let (mut servers, mut ends) = (Vec::new(), Vec::new());
    for step in steps {
        servers.extend(server_steps(step));
        ends.push(servers.len());
        if servers.len() >= SERVERS {
            break;
        }
    }
    (servers, ends)
}
