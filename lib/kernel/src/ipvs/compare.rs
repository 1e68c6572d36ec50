//! Comparing believed rows with `/proc/net/ip_vs`.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher as _;

use netstate::ipvs::{RealServerKey, Row, RowKey, VirtualServer, VirtualServerKey};

use super::IpvsTable;
use super::listing::{Listed, fingerprint, listed_with_fingerprint};
use crate::error::KernelError;
use reconcile::{Observed, Owner, Rows};

impl IpvsTable {
    /// The virtual servers of ours in `believed` of which the kernel holds something else: missing, different, a real
    /// server more or less. One reading of `/proc/net/ip_vs` for all of them, which is much cheaper than a question for each.
    ///
    /// A server that another program adds or removes meanwhile may hide or double one: what is named here is to be read
    /// again ([`Self::rows_of`]) before it is believed.
    ///
    /// `believed` are the rows that this table has listed, with what its steps and readings since then made of them: while
    /// it has done nothing, and the kernel's text says the same as when it last differed in nothing, the text is not taken apart.
    ///
    /// # Errors
    /// When the kernel cannot be read or its text is not understood.
    pub fn differing(&mut self, believed: &Rows<RowKey, Row>) -> Result<BTreeSet<VirtualServerKey>, KernelError> {
        if self.agreed.is_some() && self.agreed == Some(fingerprint(self.hashes.build_hasher())?) {
            return Ok(BTreeSet::new());
        }
        let (listed, fingerprint) = listed_with_fingerprint(self.hashes.build_hasher())?;
        if self.ticks.is_none() {
            self.ticks = self.learn_ticks(&listed, believed)?;
        }
        let differing = differing(&listed, believed, self.ticks);
        self.agreed = differing.is_empty().then_some(fingerprint);
        Ok(differing)
    }

    /// The kernel's ticks per second, from a server whose persistence both listings show.
    fn learn_ticks(&mut self, listed: &[Listed], believed: &Rows<RowKey, Row>) -> Result<Option<u32>, KernelError> {
        for server in listed.iter().filter(|server| believed.contains_key(&RowKey::Virtual(server.key))) {
            let Some(persistence) = server.persistence else { continue };
            let Some(seconds) = self.ipvs().virtual_server(&server.key)?.and_then(|value| value.persistence) else {
                continue;
            };
            let ticks = persistence.ticks.checked_div(seconds);
            if ticks.is_some_and(|ticks| ticks.checked_mul(seconds) == Some(persistence.ticks)) {
                return Ok(ticks);
            }
        }
        Ok(None)
    }

    /// The rows of these virtual servers as the kernel holds them now. One that is not there has none.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn rows_of(&mut self, services: &BTreeSet<VirtualServerKey>) -> Result<Rows<RowKey, Row>, KernelError> {
        let mut rows = Rows::new();
        self.agreed = None;
        for key in services {
            let Some(value) = self.ipvs().virtual_server(key)? else { continue };
            let owner = self.owner(key);
            rows.insert(RowKey::Virtual(*key), Observed { value: value.into(), owner });
            if owner == Owner::Ours {
                rows.extend(self.real_rows(key)?);
            }
        }
        Ok(rows)
    }
}

/// The virtual servers of ours in `believed` that `listed` does not show as they are believed to be.
fn differing(listed: &[Listed], believed: &Rows<RowKey, Row>, ticks: Option<u32>) -> BTreeSet<VirtualServerKey> {
    let mut servers: BTreeMap<&VirtualServerKey, usize> = BTreeMap::new();
    let mut differing: BTreeSet<VirtualServerKey> = BTreeSet::new();
    for (key, _) in believed.iter().filter(|(_, row)| row.owner == Owner::Ours) {
        match key {
            // Until it is seen.
            RowKey::Virtual(key) => {
                differing.insert(*key);
            }
            RowKey::Real(key) => *servers.entry(&key.service).or_default() += 1,
        }
    }
    let mut seen = BTreeSet::new();
    for server in listed {
        let row = believed.get(&RowKey::Virtual(server.key)).filter(|row| row.owner == Owner::Ours);
        let Some(Row::Virtual(value)) = row.map(|row| &row.value) else { continue };
        let real = servers.get(&server.key).copied().unwrap_or(0);
        let same = is_same(server, value, ticks) && real == server.servers.len() && has_servers(server, believed);
        // Twice in one text: the table changed while it was read.
        if same && seen.insert(server.key) {
            differing.remove(&server.key);
        } else {
            differing.insert(server.key);
        }
    }
    differing
}

fn is_same(listed: &Listed, value: &VirtualServer, ticks: Option<u32>) -> bool {
    let persistence = match (listed.persistence, value.persistence) {
        (None, None) => true,
        (Some(found), Some(seconds)) => {
            let wanted = ticks.and_then(|ticks| ticks.checked_mul(seconds));
            found.whole_address && wanted == Some(found.ticks)
        }
        _ => false,
    };
    persistence && (!listed.one_packet || value.foreign_options) && listed.scheduler == value.scheduler
}

fn has_servers(listed: &Listed, believed: &Rows<RowKey, Row>) -> bool {
    listed.servers.iter().all(|server| {
        let key = RealServerKey { service: listed.key, addr: server.addr, port: server.port };
        match believed.get(&RowKey::Real(key)).map(|row| &row.value) {
            Some(Row::Real(value)) => {
                value.weight == server.weight && (server.is_masqueraded() || value.foreign_options)
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use netstate::Protocol;
    use netstate::ipvs::RealServer;

    use super::*;
    use crate::ipvs::listing::{Forwarding, ListedServer, Persistence};

    fn key(port: u16) -> VirtualServerKey {
        VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port }
    }

    fn server(last: u8) -> ListedServer {
        let (addr, forwarding) = ([172, 7, 21, last].into(), Forwarding::Masquerade);
        ListedServer { addr, port: 8080, forwarding, weight: 1, connections: Default::default() }
    }

    fn listed() -> Vec<Listed> {
        let server = |port, persistence, servers: &[u8]| Listed {
            key: key(port),
            scheduler: "rr".to_owned(),
            one_packet: false,
            persistence,
            servers: servers.iter().map(|last| self::server(*last)).collect(),
        };
        let sticky = Persistence { ticks: 2_700_000, whole_address: true };
        vec![server(80, None, &[2, 3]), server(443, Some(sticky), &[]), server(9, None, &[9])]
    }

    fn believed() -> Rows<RowKey, Row> {
        let value = |persistence| Row::Virtual(VirtualServer::new("rr".to_owned(), persistence));
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

    #[test]
    fn rows_as_believed_differ_nowhere_and_foreign_servers_do_not_count() {
        assert_eq!(differing(&listed(), &believed(), Some(250)), BTreeSet::new());
        assert_eq!(differing(&[], &Rows::new(), None), BTreeSet::new());
    }

    #[test]
    fn a_server_of_this_host_and_one_that_is_known_to_have_options_of_others_differ_not() {
        let (mut listed, mut believed) = (listed(), believed());
        listed[0].servers[1].forwarding = Forwarding::Local;
        assert_eq!(differing(&listed, &believed, Some(250)), BTreeSet::new());
        listed[0].servers[1].forwarding = Forwarding::Tunnel;
        for row in believed.values_mut() {
            if let Row::Real(real) = &mut row.value {
                real.foreign_options = true;
            }
        }
        assert_eq!(differing(&listed, &believed, Some(250)), BTreeSet::new(), "it is to be put right already");
    }

    #[test]
    fn each_kind_of_difference_names_its_virtual_server() {
        type Damage = fn(&mut Vec<Listed>);
        let web: [Damage; 11] = [
            |listed| listed.retain(|server| server.key != key(80)),
            |listed| listed[0].servers.truncate(1),
            |listed| listed[0].servers.push(server(4)),
            |listed| listed[0].servers[1] = server(4),
            |listed| listed[0].servers[1].weight = 0,
            |listed| listed[0].servers[1].port = 81,
            |listed| listed[0].servers[1].forwarding = Forwarding::Tunnel,
            |listed| listed[0].servers[1].forwarding = Forwarding::Route,
            |listed| listed[0].scheduler = "wlc".to_owned(),
            |listed| listed[0].one_packet = true,
            |listed| listed.push(listed[0].clone()),
        ];
        for (index, damage) in web.into_iter().enumerate() {
            let mut listed = listed();
            damage(&mut listed);
            assert_eq!(differing(&listed, &believed(), Some(250)), BTreeSet::from([key(80)]), "case {index}");
        }
        let sticky: [Damage; 3] = [
            |listed| listed[1].persistence = None,
            |listed| listed[1].persistence = Some(Persistence { ticks: 1, whole_address: true }),
            |listed| listed[1].persistence = Some(Persistence { ticks: 2_700_000, whole_address: false }),
        ];
        for (index, damage) in sticky.into_iter().enumerate() {
            let mut listed = listed();
            damage(&mut listed);
            assert_eq!(differing(&listed, &believed(), Some(250)), BTreeSet::from([key(443)]), "case {index}");
        }
        assert_eq!(differing(&[], &believed(), Some(250)), BTreeSet::from([key(80), key(443)]));
    }
}
