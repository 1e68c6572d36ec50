//! `IpvsTable`: virtual and real servers as rows of one table.
//!
//! One table and not two, because one listing reads both, one batch writes both, and the kernel drops the real servers
//! of a virtual server that goes. Keys sort virtual servers first, so a batch creates a virtual server before its real
//! servers.
//!
//! Ownership. IPVS rows carry no mark of their maker, so the caller keeps a record of the virtual servers that are ours
//! and writes it before the first of them is made; at start it hands over what the record says. From then on the
//! table knows by itself: what it makes is ours, what it removes is no longer. Real servers are their virtual
//! server's. Real servers of foreign virtual servers are not even listed.
//!
//! A listing asks getsockopt(2) for the virtual servers and for the real servers of each; netlink where IPv6 is served.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netstate::ipvs::{Row, RowKey, VirtualServer, VirtualServerKey};
use reconcile::{Observed, Owner, Rows, Step, Target};

use super::agreement::Agreement;
use super::{Ipvs, wire};
use crate::error::{Cause, KernelError, Nack};
use crate::socket::Message;

/// Messages per datagram. Each may be refused, and a refusal occupies about 1 KiB of the receive buffer, whose default
/// is 208 KiB (net.core.rmem_default): with more, a storm of refusals would overrun it.
const BATCH: usize = 128;

/// Steps at a time: those of a hundred thousand real servers would take more memory than the rows.
const STEPS: usize = 64 * BATCH;

type IpvsStep = Step<RowKey, Row>;

/// Rows of real servers, in the kernel's order.
pub(super) type RealRows = Vec<(RowKey, Observed<Row>)>;

/// The table; see the module's text.
#[derive(Debug)]
pub struct IpvsTable {
    pub(super) ipvs: Ipvs,
    owned: BTreeSet<VirtualServerKey>,
    /// Addresses at which the next listing takes every virtual server for ours.
    adopted: BTreeSet<IpAddr>,
    /// Virtual servers that steps relied on and that were not there.
    vanished: BTreeSet<VirtualServerKey>,
    /// Virtual servers that could not be made: their real servers wait for them.
    unmade: BTreeSet<VirtualServerKey>,
    /// Virtual servers of IPv6 may be desired.
    serves_ipv6: bool,
    /// What was compared with the kernel last.
    pub(super) agreement: Agreement,
    /// The virtual server whose real servers were compared last.
    pub(super) compared: Option<VirtualServerKey>,
}

impl IpvsTable {
    /// The table behind `ipvs`, of which `owned` are ours.
    #[must_use]
    pub fn new(ipvs: Ipvs, owned: impl IntoIterator<Item = VirtualServerKey>) -> Self {
        let (owned, adopted, vanished) = (owned.into_iter().collect(), BTreeSet::new(), BTreeSet::new());
        let (unmade, agreement, compared) = (BTreeSet::new(), Agreement::default(), None);
        Self { ipvs, owned, adopted, vanished, unmade, serves_ipv6: true, agreement, compared }
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

    /// The virtual servers, those of IPv6 where somebody asks for them; and how many real servers they have, as far as that is said.
    fn virtual_rows(&mut self) -> Result<(BTreeMap<VirtualServerKey, VirtualServer>, usize), KernelError> {
        let mut ours = self.owned.iter().map(|key| &key.addr).chain(&self.adopted);
        if self.serves_ipv6 || ours.any(IpAddr::is_ipv6) {
            return Ok((self.ipvs.virtual_servers()?, 0));
        }
        let mut reals = 0_usize;
        let listed = self.ipvs.sockopt.services()?.of(|_| true);
        let rows = listed.map(|server| {
            reals = reals.saturating_add(server.servers);
            (server.key, server.value)
        });
        Ok((rows.collect(), reals))
    }

    /// The real servers of the virtual server `key`; `None` when it does not exist.
    pub(super) fn real_rows(&mut self, key: &VirtualServerKey) -> Result<Option<RealRows>, KernelError> {
        let row = |(key, value)| (RowKey::Real(key), Observed { value: Row::Real(value), owner: Owner::Ours });
        if key.addr.is_ipv4() {
            return Ok(self.ipvs.sockopt.servers(key)?.map(|found| found.into_iter().map(row).collect()));
        }
        let found = self.ipvs.real_servers(key)?;
        Ok(Some(found.into_iter().map(|(key, (value, _))| row((key, value))).collect()))
    }

    /// Whose a virtual server is.
    pub(super) fn owner(&self, key: &VirtualServerKey) -> Owner {
        if self.owned.contains(key) { Owner::Ours } else { Owner::Foreign }
    }

    /// Carries out the steps and returns why which of them failed. Messages are made a batch at a time: all of them together would
    /// take more memory than the rows.
    fn send(&mut self, steps: &[(usize, &IpvsStep)]) -> BTreeMap<usize, Cause> {
        let mut failed = BTreeMap::new();
        for chunk in steps.chunks(BATCH) {
            let messages: Vec<_> = chunk.iter().map(|(_, step)| self.ipvs.encode(step)).collect();
            let indices = chunk.iter().map(|(index, _)| *index);
            match self.ipvs.genl.batch(&messages) {
                Ok(answers) => {
                    failed
                        .extend(indices.zip(answers).filter_map(|(index, answer)| Some((index, answer.err()?.into()))));
                }
                Err(error) => {
                    let text = error.to_string();
                    failed.extend(indices.map(|index| (index, Cause::Unexpected(text.clone()))));
                }
            }
        }
        failed
    }

    fn record(&mut self, step: &IpvsStep) {
        match step {
            Step::Create(RowKey::Virtual(key), _) | Step::Change(RowKey::Virtual(key), ..) => {
                self.unmade.remove(key);
                self.owned.insert(*key);
            }
            Step::Remove(RowKey::Virtual(key), _) => {
                self.owned.remove(key);
            }
            _ => {}
        }
    }
}

impl Target for IpvsTable {
    type Key = RowKey;
    type Value = Row;
    type Error = KernelError;

    fn observe(&mut self) -> Result<Rows<RowKey, Row>, KernelError> {
        self.agreement.forget();
        self.unmade.clear();
        let (virtuals, reals) = self.virtual_rows()?;
        let adopted = std::mem::take(&mut self.adopted);
        self.owned.extend(virtuals.keys().filter(|key| adopted.contains(&key.addr)));
        // A list that grows is copied, and leaves holes as large as it was.
        let mut rows = Vec::with_capacity(virtuals.len().saturating_add(reals));
        for (key, value) in virtuals {
            let owner = self.owner(&key);
            rows.push((RowKey::Virtual(key), Observed { value: value.into(), owner }));
            if owner == Owner::Ours {
                rows.extend(self.real_rows(&key)?.unwrap_or_default());
            }
        }
        Ok(rows.into_iter().collect())
    }

    /// What others change is found by comparisons of its own, which a listing is a hundred times dearer than.
    fn is_unchanged(&mut self) -> bool {
        true
    }

    fn batch(&self) -> usize {
        STEPS
    }

    fn apply(&mut self, steps: &[IpvsStep]) -> Vec<Result<(), KernelError>> {
        self.reopen(steps.iter().map(|step| step.key().service()));
        let going = removed_services(steps);
        let needed = steps.iter().enumerate().filter(|(_, step)| !goes_with_its_service(step, &going));
        let needed: Vec<_> = needed.collect();
        let mut failed: BTreeMap<usize, Cause> = self.send(&needed);
        let again = self.corrections(steps, &mut failed);
        let again: Vec<_> = again.iter().map(|(index, step)| (*index, step)).collect();
        failed.extend(self.send(&again));
        let mut created = created_services(steps);
        created.extend(&self.unmade);
        let mut results = Vec::with_capacity(steps.len());
        for (index, step) in steps.iter().enumerate() {
            results.push(match failed.remove(&index) {
                Some(cause) => {
                    let cause = explain(step, cause, &created);
                    if matches!(cause, Cause::Vanished(_)) {
                        self.vanished.insert(*step.key().service());
                    }
                    if let Step::Create(RowKey::Virtual(key), _) = step {
                        self.unmade.insert(*key);
                    }
                    Err(error(step, cause))
                }
                None => {
                    self.record(step);
                    Ok(())
                }
            });
        }
        results
    }
}

impl IpvsTable {
    /// Takes refusals out of `failed` that mean that a row is as it should be already, or that another step brings it
    /// there; returns those steps.
    fn corrections(&mut self, steps: &[IpvsStep], failed: &mut BTreeMap<usize, Cause>) -> Vec<(usize, IpvsStep)> {
        let (mut again, mut remade) = (Vec::new(), BTreeSet::new());
        // In the order of the keys, so a virtual server that is made again is known before its real servers are judged.
        for (index, step) in steps.iter().enumerate() {
            let Some(Cause::Nack(nack)) = failed.get(&index) else { continue };
            match after(step, nack, &remade) {
                After::Done => {}
                After::Send(other) => {
                    if let Step::Create(RowKey::Virtual(key), _) = &other {
                        remade.insert(*key);
                        self.vanished.insert(*key);
                    }
                    again.push((index, other));
                }
                After::Fail => continue,
            }
            failed.remove(&index);
        }
        again
    }
}

impl Ipvs {
    fn encode(&self, step: &IpvsStep) -> Message {
        let (command, body) = match step {
            Step::Create(RowKey::Virtual(key), Row::Virtual(value)) => (wire::NEW_SERVICE, wire::service(key, value)),
            Step::Change(RowKey::Virtual(key), _, Row::Virtual(value)) => {
                (wire::SET_SERVICE, wire::service(key, value))
            }
            Step::Create(RowKey::Real(key), Row::Real(value)) => (wire::NEW_DEST, wire::dest(key, *value)),
            Step::Change(RowKey::Real(key), _, Row::Real(value)) => (wire::SET_DEST, wire::dest(key, *value)),
            Step::Remove(RowKey::Virtual(key), _) => (wire::DEL_SERVICE, wire::service_id(key)),
            Step::Remove(RowKey::Real(key), _) => (wire::DEL_DEST, wire::dest_id(key)),
            // Of different kinds: what is missing in the message makes the kernel answer EINVAL.
            Step::Create(RowKey::Virtual(key), _) | Step::Change(RowKey::Virtual(key), ..) => {
                (wire::SET_SERVICE, wire::service_id(key))
            }
            Step::Create(RowKey::Real(key), _) | Step::Change(RowKey::Real(key), ..) => {
                (wire::SET_DEST, wire::dest_id(key))
            }
        };
        self.genl.message(command, body)
    }
}

fn removed_services(steps: &[IpvsStep]) -> BTreeSet<VirtualServerKey> {
    let removed = |step: &IpvsStep| match step {
        Step::Remove(RowKey::Virtual(key), _) => Some(*key),
        _ => None,
    };
    steps.iter().filter_map(removed).collect()
}

fn created_services(steps: &[IpvsStep]) -> BTreeSet<VirtualServerKey> {
    let created = |step: &IpvsStep| match step {
        Step::Create(RowKey::Virtual(key), _) => Some(*key),
        _ => None,
    };
    steps.iter().filter_map(created).collect()
}

/// True for a real server that is removed together with its virtual server: DEL_SERVICE takes it along.
fn goes_with_its_service(step: &IpvsStep, going: &BTreeSet<VirtualServerKey>) -> bool {
    matches!(step, Step::Remove(RowKey::Real(key), _) if going.contains(&key.service))
}

/// What a refusal means for a step.
enum After {
    /// The kernel is already as the step wants it.
    Done,
    /// The row's state was not what we believed; this step reaches the same end.
    Send(IpvsStep),
    /// It failed.
    Fail,
}

/// `remade` are the virtual servers that turned out to be gone and are made again.
fn after(step: &IpvsStep, nack: &Nack, remade: &BTreeSet<VirtualServerKey>) -> After {
    match (step, nack.errno) {
        (Step::Remove(..), libc::ESRCH | libc::ENOENT) => After::Done,
        (Step::Create(key, value), libc::EEXIST) => After::Send(Step::Change(*key, value.clone(), value.clone())),
        (Step::Change(key @ RowKey::Virtual(_), _, value), libc::ESRCH)
        | (Step::Change(key @ RowKey::Real(_), _, value), libc::ENOENT) => {
            After::Send(Step::Create(*key, value.clone()))
        }
        (Step::Create(key @ RowKey::Real(_), value) | Step::Change(key @ RowKey::Real(_), _, value), libc::ESRCH)
            if remade.contains(key.service()) =>
        {
            After::Send(Step::Create(*key, value.clone()))
        }
        _ => After::Fail,
    }
}

/// Says in words what IPVS's error numbers mean (net/netfilter/ipvs/ip_vs_ctl.c).
/// `created` are the virtual servers that the same steps make.
fn explain(step: &IpvsStep, cause: Cause, created: &BTreeSet<VirtualServerKey>) -> Cause {
    let Cause::Nack(nack) = cause else { return cause };
    match (step, nack.errno) {
        (
            Step::Create(RowKey::Virtual(_), Row::Virtual(value))
            | Step::Change(RowKey::Virtual(_), _, Row::Virtual(value)),
            libc::ENOENT,
        ) => {
            let name = &value.scheduler.name;
            Cause::Missing(format!("scheduler {name:?} (kernel module ip_vs_{name}, load it or choose another)"))
        }
        (Step::Create(RowKey::Real(key), _) | Step::Change(RowKey::Real(key), ..), libc::ESRCH) => {
            let server = format!("virtual server {}", key.service);
            if created.contains(&key.service) { Cause::Missing(server) } else { Cause::Vanished(server) }
        }
        (Step::Create(RowKey::Real(_), _) | Step::Change(RowKey::Real(_), ..), libc::EINVAL) => {
            let text = "the kernel takes no real server at this address: it must be unicast and routable, and the \
                        loopback device of this network namespace must have been up";
            Cause::Nack(Nack { text: Some(text.to_owned()), ..nack })
        }
        _ => Cause::Nack(nack),
    }
}

fn error(step: &IpvsStep, cause: Cause) -> KernelError {
    let op = match step {
        Step::Create(RowKey::Virtual(_), _) => "create virtual server",
        Step::Create(RowKey::Real(_), _) => "create real server",
        Step::Change(RowKey::Virtual(_), ..) => "change virtual server",
        Step::Change(RowKey::Real(_), ..) => "change real server",
        Step::Remove(RowKey::Virtual(_), _) => "remove virtual server",
        Step::Remove(RowKey::Real(_), _) => "remove real server",
    };
    KernelError::new(op, step.key(), cause)
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;
    use netstate::ipvs::{RealServer, RealServerKey, VirtualServer};
    use reconcile::{Chain, Classify, RetryClass};

    use super::*;

    fn web() -> VirtualServerKey {
        VirtualServerKey { protocol: Protocol::Tcp, addr: "192.168.0.10".parse().unwrap(), port: 80 }
    }

    fn pod() -> RowKey {
        RowKey::Real(RealServerKey { service: web(), addr: "172.7.21.2".parse().unwrap(), port: 80 })
    }

    fn rr() -> Row {
        Row::from(VirtualServer::new("rr".to_owned(), None))
    }

    fn one() -> Row {
        Row::Real(RealServer::new(1))
    }

    fn nack(errno: i32) -> Nack {
        Nack { errno, text: None }
    }

    #[test]
    fn a_row_that_was_not_as_believed_reaches_the_same_end() {
        let none = BTreeSet::new();
        let step = Step::Create(pod(), one());
        assert!(matches!(after(&step, &nack(libc::EEXIST), &none), After::Send(Step::Change(..))));
        assert!(matches!(after(&step, &nack(libc::ESRCH), &none), After::Fail));
        let step = Step::Change(RowKey::Virtual(web()), rr(), rr());
        assert!(matches!(after(&step, &nack(libc::ESRCH), &none), After::Send(Step::Create(..))));
        assert!(
            matches!(after(&step, &nack(libc::ENOENT), &none), After::Fail),
            "a missing scheduler is no missing server"
        );
        let step = Step::Change(pod(), one(), one());
        assert!(matches!(after(&step, &nack(libc::ENOENT), &none), After::Send(Step::Create(..))));
        let remade = BTreeSet::from([web()]);
        assert!(matches!(after(&step, &nack(libc::ESRCH), &remade), After::Send(Step::Create(..))));
        let step = Step::Remove(pod(), one());
        assert!(matches!(after(&step, &nack(libc::ENOENT), &none), After::Done));
        assert!(matches!(after(&step, &nack(libc::ESRCH), &none), After::Done));
        assert!(matches!(after(&step, &nack(libc::EPERM), &none), After::Fail));
    }

    #[test]
    fn real_servers_go_with_their_virtual_server_without_a_message() {
        let steps = [Step::Remove(RowKey::Virtual(web()), rr()), Step::Remove(pod(), one())];
        let going = removed_services(&steps);
        assert_eq!(steps.map(|step| goes_with_its_service(&step, &going)), [false, true]);
        assert!(!goes_with_its_service(&Step::Remove(pod(), one()), &BTreeSet::new()));
    }

    #[test]
    fn a_missing_scheduler_is_named_with_its_module() {
        let value = VirtualServer::new("wlc".to_owned(), None);
        let step = Step::Create(RowKey::Virtual(web()), value.into());
        let error = error(&step, explain(&step, nack(libc::ENOENT).into(), &BTreeSet::new()));
        assert_eq!(
            Chain(&error).to_string(),
            "create virtual server tcp 192.168.0.10:80: scheduler \"wlc\" (kernel module ip_vs_wlc, load it or choose \
             another) does not exist"
        );
        assert_eq!(error.class(), RetryClass::Wait);
    }

    #[test]
    fn a_real_server_without_its_virtual_server_waits_for_it_or_has_lost_it() {
        let step = Step::Create(pod(), one());
        let failed = |created: &[VirtualServerKey]| {
            error(&step, explain(&step, nack(libc::ESRCH).into(), &created.iter().copied().collect()))
        };
        let waits = failed(&[web()]);
        assert_eq!(
            Chain(&waits).to_string(),
            "create real server tcp 192.168.0.10:80 -> 172.7.21.2:80: virtual server tcp 192.168.0.10:80 does not exist"
        );
        assert_eq!(waits.class(), RetryClass::Wait);
        let lost = failed(&[]);
        assert!(matches!(lost.cause, Cause::Vanished(_)));
        assert!(Chain(&lost).to_string().ends_with("virtual server tcp 192.168.0.10:80 is gone"));
        assert_eq!(lost.class(), RetryClass::Retry);
    }
}
