//! Comparing believed rows with what the kernel holds.
//!
//! IPVS announces no changes, so this is how a change by another program is found. Two questions: what the virtual servers are and how
//! many real servers each has (one call, a millisecond for ten thousand); what the real servers are (a call for each virtual server, so
//! some in turn).

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::{Duration, Instant};

use netstate::ipvs::{RealServerKey, Row, RowKey, VirtualServerKey};

use super::IpvsTable;
use super::sockopt::Listed;
use crate::error::KernelError;
use reconcile::{Observed, Owner, Rows};

/// Virtual servers whose real servers are read in one turn at least.
const LEAST: usize = 4;

/// How long a turn goes on beyond these.
const TURN: Duration = Duration::from_micros(200);

impl IpvsTable {
    /// True when the kernel holds no IPv4 virtual server, whoever's. Costs one call.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn is_empty(&self) -> Result<bool, KernelError> {
        Ok(self.ipvs.sockopt.count()? == 0)
    }

    /// The IPv4 virtual servers of ours in `believed` that are missing, are different, or have a real server more or less.
    ///
    /// `believed` are the rows that this table has listed, with what its steps and readings since then made of them: compared are the
    /// virtual servers that either these or others have changed since the last time.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn differing(&mut self, believed: &Rows<RowKey, Row>) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        let listing = self.ipvs.sockopt.services()?;
        let suspects = self.agreement.suspects(listing.entries());
        let suspected = suspected(suspects, believed);
        let listed = listing.of(|key| suspected.contains(key));
        let differing = differing(suspected.clone(), listed, believed);
        self.agreement.keep_open(&differing);
        Ok(differing)
    }

    /// Of the virtual servers of ours in `believed` whose turn it is, those that are missing, whose real servers differ in
    /// anything, or, with an IPv6 address, that are different themselves. A turn begins behind the one before and lasts a fraction
    /// of a millisecond.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn differing_in_turn(
        &mut self,
        believed: &Rows<RowKey, Row>,
    ) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        let (begun, last, mut found) = (Instant::now(), self.compared, BTreeSet::new());
        let behind = last.map_or(Bound::Unbounded, |last| Bound::Excluded(RowKey::Virtual(last)));
        let before = last.map(|last| believed.range(..=RowKey::Virtual(last))).into_iter().flatten();
        let turn = believed.range((behind, Bound::Unbounded)).map_while(of_virtual);
        let turn = turn.chain(before.map_while(of_virtual)).filter(|(_, row)| row.owner == Owner::Ours);
        for (place, (key, row)) in turn.enumerate() {
            if place >= LEAST && begun.elapsed() >= TURN {
                break;
            }
            self.compared = Some(key);
            if !self.agrees(&key, &row.value, believed)? {
                found.insert(key);
            }
        }
        Ok(found)
    }

    /// Whether the kernel holds a virtual server as it is believed. Of one with an IPv4 address only the real servers are asked for.
    fn agrees(
        &mut self,
        key: &VirtualServerKey,
        value: &Row,
        believed: &Rows<RowKey, Row>,
    ) -> Result<bool, KernelError> {
        if key.addr.is_ipv6() {
            let Some(found) = self.ipvs().virtual_server(key)? else { return Ok(false) };
            if Row::from(found) != *value {
                return Ok(false);
            }
        }
        let Some(found) = self.real_rows(key)? else { return Ok(false) };
        let same = found.iter().all(|(key, row)| believed.get(key).map(|known| &known.value) == Some(&row.value));
        Ok(same && found.len() == count(believed, *key))
    }

    /// The rows of these virtual servers as the kernel holds them now. One that is not there has none.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn rows_of(&mut self, services: &BTreeSet<VirtualServerKey>) -> Result<Rows<RowKey, Row>, KernelError> {
        let mut rows = Rows::new();
        self.reopen(services);
        for key in services {
            let Some(value) = self.ipvs().virtual_server(key)? else { continue };
            let owner = self.owner(key);
            rows.insert(RowKey::Virtual(*key), Observed { value: value.into(), owner });
            if owner == Owner::Ours {
                rows.extend(self.real_rows(key)?.unwrap_or_default());
            }
        }
        Ok(rows)
    }
}

/// Virtual servers sort before all real servers.
fn of_virtual<'a>((key, row): (&'a RowKey, &'a Observed<Row>)) -> Option<(VirtualServerKey, &'a Observed<Row>)> {
    match key {
        RowKey::Virtual(key) => Some((*key, row)),
        RowKey::Real(_) => None,
    }
}

/// How many real servers of `service` are believed to be there.
fn count(believed: &Rows<RowKey, Row>, service: VirtualServerKey) -> usize {
    let first = RealServerKey { service, addr: std::net::Ipv4Addr::UNSPECIFIED.into(), port: 0 };
    let behind = believed.range(RowKey::Real(first)..);
    behind.take_while(|(key, _)| *key.service() == service).count()
}

/// The IPv4 virtual servers of ours in `believed`; of the `suspects` only, where it is not all.
fn suspected(suspects: Option<BTreeSet<VirtualServerKey>>, believed: &Rows<RowKey, Row>) -> BTreeSet<VirtualServerKey> {
    let is_ours = |key: &VirtualServerKey| {
        key.addr.is_ipv4() && believed.get(&RowKey::Virtual(*key)).is_some_and(|row| row.owner == Owner::Ours)
    };
    let mut suspected = suspects.unwrap_or_else(|| believed.iter().map_while(of_virtual).map(|(key, _)| key).collect());
    suspected.retain(is_ours);
    suspected
}

/// Those of the `suspected` that `listed` does not show as they are believed to be, or with another number of real servers.
fn differing(
    mut suspected: BTreeSet<VirtualServerKey>,
    listed: impl Iterator<Item = Listed>,
    believed: &Rows<RowKey, Row>,
) -> BTreeSet<VirtualServerKey> {
    for Listed { key, value, servers } in listed {
        let known = believed.get(&RowKey::Virtual(key)).is_some_and(|row| row.value == value.into());
        if known && count(believed, key) == servers {
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

    fn believed() -> Rows<RowKey, Row> {
        let value =
            |persistence: Option<u32>| Row::from(VirtualServer::new("rr".to_owned(), persistence.map(Into::into)));
        let ours = |value| Observed { value, owner: Owner::Ours };
        let mut rows = Rows::new();
        rows.insert(RowKey::Virtual(key(80)), ours(value(None)));
        rows.insert(RowKey::Virtual(key(443)), ours(value(Some(10_800))));
        rows.insert(RowKey::Virtual(key(9)), Observed { owner: Owner::Foreign, ..ours(value(None)) });
        for last in [2, 3] {
            let real = RealServerKey { service: key(80), addr: [172, 7, 21, last].into(), port: 8080 };
            rows.insert(RowKey::Real(real), ours(Row::Real(RealServer::new(1))));
        }
        rows
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
        assert_eq!(count(&believed(), key(80)), 2);
        assert_eq!(count(&believed(), key(443)), 0);
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
