//! Comparing believed rows with what the kernel holds.
//!
//! IPVS announces no changes, so this is how a change by another program is found. Three questions: how many virtual servers there are
//! (one call, whatever they are); what they are and how many real servers each has (one call, a millisecond for ten thousand); what the
//! real servers are (a call for each virtual server, so some in turn). The first two know IPv4 alone: virtual servers of IPv6 are listed by
//! netlink, which makes a message of each one of either family, as often as that takes a small share of a processor.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Bound;
use std::time::{Duration, Instant};

use netstate::Protocol;
use netstate::ipvs::{Row, VirtualServerKey};

use super::IpvsTable;
use super::sockopt::Listed;
use crate::error::KernelError;
use reconcile::{Observed, Owner, Rows};

/// Virtual servers whose real servers are read in one turn at least.
const LEAST: usize = 4;

/// How long a turn goes on beyond these.
const TURN: Duration = Duration::from_micros(200);

/// How many times longer than a listing of IPv6 takes is the time to the next, up to [`SELDOM_IPV6`].
const SHARE_IPV6: u32 = 200;

/// The longest time between two.
const SELDOM_IPV6: Duration = Duration::from_secs(10);

impl IpvsTable {
    /// True when the kernel holds no IPv4 virtual server, whoever's. Costs one call.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn is_empty(&self) -> Result<bool, KernelError> {
        Ok(self.ipvs.sockopt.count()? == 0)
    }

    /// True when there are as many IPv4 virtual servers, whoever's, as when all were [compared](Self::differing) last, and no step has made
    /// or removed one since. Costs one call.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn is_as_many(&self) -> Result<bool, KernelError> {
        let Some(counted) = self.counted else { return Ok(false) };
        Ok(self.ipvs.sockopt.count()? == counted)
    }

    /// The IPv4 virtual servers of ours in `believed` that are missing, are different, or have a real server more or less.
    ///
    /// `believed` are the rows that this table has listed, with what its steps and readings since then made of them: compared are the
    /// virtual servers that either these or others have changed since the last time.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn differing(
        &mut self,
        believed: &Rows<VirtualServerKey, Row>,
    ) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        let listing = self.ipvs.sockopt.services()?;
        self.counted = Some(listing.entries().count());
        let suspects = self.agreement.suspects(listing.entries());
        let suspected = suspected(suspects, believed);
        let listed = listing.of(|key| suspected.contains(key));
        let differing = differing(suspected.clone(), listed, believed);
        self.agreement.keep_open(&differing);
        if !differing.is_empty() {
            // Whoever changed these may have changed others as well.
            self.next_ipv6 = None;
        }
        Ok(differing)
    }

    /// Of the virtual servers of ours in `believed` whose turn it is, those that are missing or whose real servers differ in anything. A turn
    /// begins behind the one before and lasts a fraction of a millisecond. Besides, when it is time, all of IPv6 that are missing or different.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn differing_in_turn(
        &mut self,
        believed: &Rows<VirtualServerKey, Row>,
    ) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        let mut found = self.differing_ipv6(believed)?;
        let (begun, last) = (Instant::now(), self.compared);
        let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
        let before = last.map(|last| believed.range(..=last)).into_iter().flatten();
        let turn = believed.range((behind, Bound::Unbounded)).chain(before);
        let turn = turn.filter(|(_, row)| row.owner == Owner::Ours);
        for (place, (key, row)) in turn.enumerate() {
            if place >= LEAST && begun.elapsed() >= TURN {
                break;
            }
            self.compared = Some(*key);
            if !self.agrees(key, &row.value)? {
                found.insert(*key);
            }
        }
        Ok(found)
    }

    /// When it is time, the IPv6 virtual servers of ours in `believed` that are missing or different.
    fn differing_ipv6(
        &mut self,
        believed: &Rows<VirtualServerKey, Row>,
    ) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        let begun = Instant::now();
        if self.next_ipv6.is_some_and(|next| begun < next) {
            return Ok(BTreeSet::new());
        }
        let mut suspected: BTreeSet<_> = of_ipv6(believed).map(|(key, _)| *key).collect();
        if suspected.is_empty() {
            return Ok(suspected);
        }
        for (key, value) in self.ipvs.virtual_servers_of_ipv6()? {
            if believed.get(&key).is_some_and(|row| *row.value.server == value) {
                suspected.remove(&key);
            }
        }
        self.next_ipv6 = Some(begun + begun.elapsed().saturating_mul(SHARE_IPV6).min(SELDOM_IPV6));
        Ok(suspected)
    }

    /// Whether the kernel holds the real servers of a row as they are believed.
    fn agrees(&mut self, key: &VirtualServerKey, believed: &Row) -> Result<bool, KernelError> {
        Ok(self.real_servers(key)?.as_ref() == Some(&believed.reals))
    }

    /// The rows of these virtual servers as the kernel holds them now. One that is not there has none.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn rows_of(
        &mut self,
        services: &BTreeSet<VirtualServerKey>,
    ) -> Result<Rows<VirtualServerKey, Row>, KernelError> {
        let rows = services.iter().map(|key| Ok(self.row_of(key)?.map(|row| (*key, row))));
        rows.filter_map(Result::transpose).collect()
    }
}

/// The IPv6 virtual servers of ours in `believed`.
fn of_ipv6(believed: &Rows<VirtualServerKey, Row>) -> impl Iterator<Item = (&VirtualServerKey, &Observed<Row>)> {
    let from = |protocol| VirtualServerKey { protocol, addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED), port: 0 };
    let to = |protocol| VirtualServerKey { protocol, addr: IpAddr::V6(Ipv6Addr::from(u128::MAX)), port: u16::MAX };
    let all = Protocol::ALL.into_iter().flat_map(move |protocol| believed.range(from(protocol)..=to(protocol)));
    all.filter(|(_, row)| row.owner == Owner::Ours)
}

/// The IPv4 virtual servers of ours in `believed`; of the `suspects` only, where it is not all.
fn suspected(
    suspects: Option<BTreeSet<VirtualServerKey>>,
    believed: &Rows<VirtualServerKey, Row>,
) -> BTreeSet<VirtualServerKey> {
    let is_ours =
        |key: &VirtualServerKey| key.addr.is_ipv4() && believed.get(key).is_some_and(|row| row.owner == Owner::Ours);
    let mut suspected = suspects.unwrap_or_else(|| believed.keys().copied().collect());
    suspected.retain(is_ours);
    suspected
}

/// Those of the `suspected` that `listed` does not show as they are believed to be, or with another number of real servers.
fn differing(
    mut suspected: BTreeSet<VirtualServerKey>,
    listed: impl Iterator<Item = Listed>,
    believed: &Rows<VirtualServerKey, Row>,
) -> BTreeSet<VirtualServerKey> {
    for Listed { key, value, servers } in listed {
        let is_as = |row: &Observed<Row>| *row.value.server == value && row.value.reals.len() == servers;
        if believed.get(&key).is_some_and(is_as) {
            suspected.remove(&key);
        }
    }
    suspected
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;
    use netstate::ipvs::{RealServer, SchedulerFlags, VirtualServer};

    use super::*;

    fn key(port: u16) -> VirtualServerKey {
        VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port }
    }

    fn listed() -> Vec<Listed> {
        let server = |port, persistence: Option<u32>, servers| Listed {
            key: key(port),
            value: VirtualServer::new("rr".to_owned(), persistence.map(Into::into)),
            servers,
        };
        vec![server(80, None, 2), server(443, Some(10_800), 0), server(9, None, 1)]
    }

    fn believed() -> Rows<VirtualServerKey, Row> {
        let value =
            |persistence: Option<u32>| Row::from(VirtualServer::new("rr".to_owned(), persistence.map(Into::into)));
        let ours = |value| Observed { value, owner: Owner::Ours };
        let reals = [2, 3].map(|last| (([172, 7, 21, last], 8080).into(), RealServer::new(1)));
        Rows::from([
            (key(80), ours(value(None).with(reals.into_iter().collect()))),
            (key(443), ours(value(Some(10_800)))),
            (key(9), Observed { owner: Owner::Foreign, ..ours(value(None)) }),
        ])
    }

    fn compare(listed: Vec<Listed>) -> BTreeSet<VirtualServerKey> {
        differing(suspected(None, &believed()), listed.into_iter(), &believed())
    }

    #[test]
    fn rows_as_believed_differ_nowhere_and_foreign_servers_do_not_count() {
        assert_eq!(compare(listed()), BTreeSet::new());
        assert_eq!(suspected(None, &Rows::new()), BTreeSet::new());
        let suspects = BTreeSet::from([key(443), key(9), key(7)]);
        assert_eq!(suspected(Some(suspects), &believed()), BTreeSet::from([key(443)]));
    }

    #[test]
    fn each_kind_of_difference_names_its_virtual_server() {
        type Damage = fn(&mut Vec<Listed>);
        let damages: [(Damage, u16); 9] = [
            (|listed| listed.retain(|server| server.key != key(80)), 80),
            (|listed| listed[0].servers = 1, 80),
            (|listed| listed[0].servers = 3, 80),
            (|listed| listed[0].value.scheduler = "wlc".to_owned().into(), 80),
            (|listed| listed[0].value.scheduler.flags = SchedulerFlags::PORT, 80),
            (|listed| listed[0].value.foreign_options = true, 80),
            (|listed| listed[0].value.persistence = Some(1.into()), 80),
            (|listed| listed[1].value.persistence = None, 443),
            (|listed| listed[1].value.persistence = Some(10_801.into()), 443),
        ];
        for (index, (damage, port)) in damages.into_iter().enumerate() {
            let mut listed = listed();
            damage(&mut listed);
            assert_eq!(compare(listed), BTreeSet::from([key(port)]), "case {index}");
        }
        assert_eq!(compare(Vec::new()), BTreeSet::from([key(80), key(443)]));
    }
}
