//! `Audit`: which virtual servers are compared with the kernel next.
//!
//! IPVS announces no change, so all virtual servers are verified in turn. Invariant: a turn costs the same however many
//! there are; that all of them are gone (`ipvsadm -C`) shows at the first turn, one changed row after at most as many turns
//! as there are parts.

use std::collections::BTreeMap;

use netstate::ipvs::{RealServerKey, Row, RowKey, VirtualServerKey};
use reconcile::{Owner, Rows};

/// Virtual servers per turn.
const PART: usize = 64;

/// Where the round stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Audit {
    last: Option<VirtualServerKey>,
}

impl Audit {
    /// The rows of the next virtual servers of ours, in the order of their keys and then from the first again.
    pub(super) fn next(&mut self, rows: &Rows<RowKey, Row>) -> BTreeMap<RowKey, Row> {
        let mut chosen: Vec<_> =
            ours(rows).skip_while(|key| self.last.is_some_and(|last| *key <= last)).take(PART).collect();
        if let Some(missing) = PART.checked_sub(chosen.len()).filter(|missing| *missing > 0) {
            let first: Vec<_> = ours(rows).take(missing).filter(|key| !chosen.contains(key)).collect();
            chosen.extend(first);
        }
        self.last = chosen.last().copied();
        let keys = chosen
            .into_iter()
            .flat_map(|key| std::iter::once(RowKey::Virtual(key)).chain(reals_of(rows, key).map(RowKey::Real)));
        keys.filter_map(|key| rows.get(&key).map(|row| (key, row.value.clone()))).collect()
    }
}

/// Our virtual servers; their keys stand before those of all real servers.
fn ours(rows: &Rows<RowKey, Row>) -> impl Iterator<Item = VirtualServerKey> {
    let services = rows.iter().map_while(|(key, row)| match key {
        RowKey::Virtual(service) => Some((*service, row.owner)),
        RowKey::Real(_) => None,
    });
    services.filter(|(_, owner)| *owner == Owner::Ours).map(|(service, _)| service)
}

/// The real servers of `service` among `rows`.
pub(super) fn reals_of(
    rows: &reconcile::Rows<RowKey, Row>,
    service: VirtualServerKey,
) -> impl Iterator<Item = RealServerKey> {
    // The lowest key that a real server of this virtual server can have.
    let first = RealServerKey { service, addr: std::net::Ipv4Addr::UNSPECIFIED.into(), port: 0 };
    rows.range(RowKey::Real(first)..).map_while(move |(key, _)| match key {
        RowKey::Real(real) if real.service == service => Some(*real),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use netstate::Protocol;
    use netstate::ipvs::VirtualServer;
    use reconcile::Observed;

    use super::*;

    fn rows(count: u16) -> Rows<RowKey, Row> {
        let row = |port| {
            let key = VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port };
            let value = Row::Virtual(VirtualServer { scheduler: "rr".to_owned(), persistence: None });
            let owner = if port % 10 == 0 { Owner::Foreign } else { Owner::Ours };
            (RowKey::Virtual(key), Observed { value, owner })
        };
        (1..=count).map(row).collect()
    }

    #[test]
    fn every_server_of_ours_has_its_turn_and_no_foreign_one_has() {
        let rows = rows(200);
        let mut audit = Audit::default();
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let part = audit.next(&rows);
            assert_eq!(part.len(), PART);
            seen.extend(part.into_keys());
        }
        let ours: BTreeSet<_> = rows.iter().filter(|(_, row)| row.owner == Owner::Ours).map(|(key, _)| *key).collect();
        assert_eq!(seen, ours);
    }

    #[test]
    fn few_servers_are_all_looked_at_each_turn() {
        let mut audit = Audit::default();
        assert_eq!(audit.next(&rows(5)).len(), 5);
        assert_eq!(audit.next(&rows(5)).len(), 5);
        assert!(audit.next(&rows(0)).is_empty());
    }
}
