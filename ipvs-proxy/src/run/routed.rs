//! `Routed`: addresses with their local routes, without which packets to them go elsewhere.
//!
//! The kernel makes the route with the address and takes it away with it; somebody else can take away the route alone. Invariant: an
//! address that is made once more gets its route back. On a link that is down the kernel takes no such route by itself (IPv6), and nobody
//! reaches the address meanwhile anyway, so that it goes and comes again.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel::{KernelError, Rtnl};
use netstate::route::TABLE_LOCAL;
use netstate::{Address, AddressKey, RouteKind};
use reconcile::{Layer, Owner, Rows, Step, Target};

use super::targets::VirtualAddresses;

/// See the module's text.
pub(crate) struct Routed<T> {
    table: T,
    routes: Rtnl,
    /// Addresses that were found without a route.
    unrouted: BTreeSet<AddressKey>,
}

impl<T> Routed<T> {
    /// The addresses of `table`.
    pub(crate) const fn new(table: T, routes: Rtnl) -> Self {
        Self { table, routes, unrouted: BTreeSet::new() }
    }
}

impl<T: Target<Key = AddressKey, Value = Address, Error = KernelError>> Layer for Routed<T> {
    type Inner = T;

    fn inner(&self) -> &T {
        &self.table
    }

    fn inner_mut(&mut self) -> &mut T {
        &mut self.table
    }

    fn apply(&mut self, steps: &[Step<AddressKey, Address>]) -> Vec<Result<(), KernelError>> {
        let mut gone = Vec::new();
        for step in steps {
            if let Step::Create(key, _) = step
                && self.unrouted.remove(key)
            {
                gone.push(Step::Remove(key.clone(), Address));
            }
        }
        // One that does not go has no route afterwards, and is found again.
        drop(self.table.apply(&gone));
        self.table.apply(steps)
    }
}

impl<T: Target<Key = AddressKey, Value = Address, Error = KernelError>> VirtualAddresses for Routed<T> {
    fn unrouted(&mut self, held: &Rows<AddressKey, Address>) -> Result<BTreeSet<AddressKey>, KernelError> {
        let local = self.routes.routes_of(Some(TABLE_LOCAL), |_, route| route.kind == RouteKind::Local)?;
        let local: BTreeSet<IpAddr> = local.into_iter().map(|(key, _)| key.dst.addr()).collect();
        let ours = held.iter().filter(|(_, row)| row.owner == Owner::Ours).map(|(key, _)| key);
        self.unrouted = ours.filter(|key| !local.contains(&key.addr)).cloned().collect();
        Ok(self.unrouted.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses about which somebody fights.
    struct Contested;

    impl Target for Contested {
        type Key = AddressKey;
        type Value = Address;
        type Error = KernelError;

        fn observe(&mut self) -> Result<Rows<AddressKey, Address>, KernelError> {
            Ok(Rows::new())
        }

        fn rival(&self, key: &AddressKey) -> Option<String> {
            Some(format!("who has {}", key.addr))
        }

        fn apply(&mut self, steps: &[Step<AddressKey, Address>]) -> Vec<Result<(), KernelError>> {
            steps.iter().map(|_| Ok(())).collect()
        }
    }

    #[test]
    fn who_fights_about_an_address_is_known_although_its_route_is_seen_to() {
        let routed = Routed::new(Contested, Rtnl::open().unwrap());
        let link = "kube-ipvs0".parse().unwrap();
        let key = AddressKey { link, addr: [192, 168, 0, 10].into(), len: 32 };
        assert_eq!(Target::rival(&routed, &key), Some("who has 192.168.0.10".to_owned()));
    }
}
