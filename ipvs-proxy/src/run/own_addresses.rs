//! The addresses of this node, followed as they come and go, and which of them is primary as default routes do. Besides, local routes that
//! are gone: that of a virtual address may have been taken away by somebody else.
//!
//! Invariants: they are listed once, after the monitor is open, and from then on each change costs itself; where notifications
//! were lost they are listed again. What follows from a change is passed on only when it is another value than before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use daemon::liveness::Heartbeat;
use daemon::worker::Mailbox;
use kernel::address_watch::{AddressChange, AddressWatch};
use kernel::query::Query;
use kernel::{Chain, KernelError};
use netstate::family::PerFamily;
use netstate::{IfName, InterfaceAddress, IpFamily};

use super::worker::{Order, ProxyWork};
use crate::plan::here::{OwnAddresses, is_own};
use crate::source::Place;

/// Pause before a monitor that failed is opened again.
const PAUSE: Duration = Duration::from_secs(1);

/// Longest time for which nothing is listed or passed on although something changed.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// What is followed.
pub(super) struct Following {
    watch: AddressWatch,
    query: Query,
    except: IfName,
    links: Links,
}

/// All links by their indexes, and what else was announced.
#[derive(Default)]
struct Links {
    by_index: BTreeMap<u32, Link>,
    /// Addresses whose local routes are gone.
    unrouted: BTreeSet<IpAddr>,
}

/// A link with its addresses in the kernel's order.
struct Link {
    name: IfName,
    up: bool,
    addresses: Vec<InterfaceAddress>,
}

/// What a change asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    /// All is as it was.
    Nothing,
    /// It was taken in.
    Taken,
    /// A listing: of a link that is new, or of everything.
    Listing,
}

impl Following {
    /// Opens the monitor for all links but `except`, which holds virtual addresses. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn open(except: IfName) -> Result<Self, KernelError> {
        let watch = AddressWatch::open(except.clone())?;
        let mut following = Self { watch, query: Query::open()?, except, links: Links::default() };
        following.list().await?;
        Ok(following)
    }

    async fn list(&mut self) -> Result<(), KernelError> {
        // A conversation of its own: one keeps room for the longest answer that it ever had, and these may be ten thousand addresses.
        let found = Query::open()?.interfaces().await?;
        let addresses = |name: &IfName, found| if *name == self.except { Vec::new() } else { found };
        let link = |found: kernel::query::Interface| {
            let addresses = addresses(&found.name, found.addresses);
            (found.index, Link { name: found.name, up: found.up, addresses })
        };
        self.links.by_index = found.into_iter().map(link).collect();
        Ok(())
    }

    /// The addresses as they are.
    ///
    /// # Errors
    /// When the kernel cannot be asked for its default routes.
    pub(super) async fn addresses(&self) -> Result<OwnAddresses, KernelError> {
        let mut uplink = PerFamily::default();
        for family in IpFamily::ALL {
            let routes = self.query.default_routes(family).await?;
            *uplink.get_mut(family) = routes.into_iter().flat_map(|route| route.hops).find_map(|hop| hop.link);
        }
        let links = self.links.by_index.values().map(|link| (&link.name, link.addresses.as_slice()));
        Ok(OwnAddresses::of(links, &self.except, &uplink))
    }

    /// False when a default route leaves by a link that is not known: one without an address, or that was renamed this moment.
    fn have(&self, uplinks: &PerFamily<Option<IfName>>) -> bool {
        uplinks.present().all(|(_, name)| self.links.by_index.values().any(|link| link.name == *name))
    }

    /// Waits for changes and takes them in.
    async fn change(&mut self) -> Result<(), KernelError> {
        loop {
            let effects = self.watch.next().await?.into_iter().map(|change| self.links.apply(change));
            match effects.max() {
                Some(Effect::Listing) => return self.list().await,
                Some(Effect::Taken) => return Ok(()),
                Some(Effect::Nothing) | None => {}
            }
        }
    }
}

impl Links {
    /// Takes one change in.
    fn apply(&mut self, change: AddressChange) -> Effect {
        match change {
            AddressChange::Came(index, address) => {
                let Some(link) = self.by_index.get_mut(&index) else { return Effect::Listing };
                link.get(address);
            }
            AddressChange::Gone(index, addr, len) => {
                if let Some(link) = self.by_index.get_mut(&index) {
                    link.lose(addr, len);
                }
            }
            AddressChange::DefaultRoute => {}
            AddressChange::Unrouted(addr) => drop(self.unrouted.insert(addr)),
            AddressChange::Link { index, name, up } => {
                // One that is not known has no address.
                return self.by_index.get_mut(&index).map_or(Effect::Nothing, |link| link.turn(name, up));
            }
            AddressChange::Lost => return Effect::Listing,
        }
        Effect::Taken
    }
}

impl Link {
    /// Takes in an address that came, or another state of one. With another length of the prefix it is another one to the kernel: whoever
    /// changes the length, as DHCP does, adds the new one before he takes the earlier one away.
    fn get(&mut self, address: InterfaceAddress) {
        let is_it = |known: &&mut InterfaceAddress| known.addr == address.addr && known.len == address.len;
        match self.addresses.iter_mut().find(is_it) {
            Some(known) => *known = address,
            None => self.addresses.push(address),
        }
    }

    /// Takes in how it is called and whether it is up. When one with addresses goes down the kernel takes its default routes of IPv4 away
    /// without a word, after it has announced this; links are listed when it is through with that (`rtnl_dump_ifinfo`).
    fn turn(&mut self, name: IfName, up: bool) -> Effect {
        let goes_down = self.up && !up && self.addresses.iter().any(|address| is_own(address.addr));
        let is_renamed = self.name != name;
        (self.name, self.up) = (name, up);
        match (goes_down, is_renamed) {
            (true, _) => Effect::Listing,
            (false, true) => Effect::Taken,
            (false, false) => Effect::Nothing,
        }
    }

    fn lose(&mut self, addr: IpAddr, len: u8) {
        self.addresses.retain(|known| known.addr != addr || known.len != len);
    }
}

/// Passes on how the addresses change, for ever; connections to `place` from an address that is gone are left.
pub(super) async fn follow(
    following: Following,
    mut known: OwnAddresses,
    mailbox: Mailbox<ProxyWork>,
    place: Place,
    heartbeat: Heartbeat,
) {
    let except = following.except.clone();
    let mut open = Some(following);
    loop {
        heartbeat.idle();
        let result = match &mut open {
            Some(following) => follow_one(following, &heartbeat).await,
            None => match Following::open(except.clone()).await {
                Ok(following) => {
                    let addresses = following.addresses().await;
                    open = Some(following);
                    addresses
                }
                Err(error) => Err(error),
            },
        };
        heartbeat.busy();
        let unrouted = open.as_mut().map(|following| std::mem::take(&mut following.links.unrouted)).unwrap_or_default();
        if !unrouted.is_empty() {
            mailbox.send(Order::Unrouted(unrouted)).await;
        }
        match result {
            Ok(addresses) => {
                if addresses != known {
                    log(&known, &addresses);
                    if has_lost_a_member(&known, &addresses) {
                        place.dial_anew();
                    }
                    known = addresses.clone();
                    mailbox.send(Order::Addresses(addresses)).await;
                }
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the addresses of this node cannot be followed; tried again");
                open = None;
                heartbeat.back_within(PAUSE);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn follow_one(following: &mut Following, heartbeat: &Heartbeat) -> Result<OwnAddresses, KernelError> {
    following.change().await?;
    heartbeat.busy();
    let addresses = following.addresses().await?;
    if following.have(&addresses.uplinks) {
        return Ok(addresses);
    }
    following.list().await?;
    following.addresses().await
}

/// True when an address is gone from which this node may have connected: a member of a network, other than one alone, of which Pods have
/// some that come and go with them.
fn has_lost_a_member(before: &OwnAddresses, after: &OwnAddresses) -> bool {
    let is_member = |addr: &IpAddr| {
        let width = IpFamily::of(*addr).width();
        before.networks.iter().any(|network| network.len() < width && network.contains(*addr))
    };
    before.all.difference(&after.all).any(is_member)
}

fn log(before: &OwnAddresses, after: &OwnAddresses) {
    let text = |addr: &IpAddr| addr.to_string();
    let came: Vec<_> = after.all.difference(&before.all).map(text).collect();
    let gone: Vec<_> = before.all.difference(&after.all).map(text).collect();
    let primary: Vec<_> = after.primary.present().map(|(_, addr)| addr.to_string()).collect();
    tracing::info!(
        came = came.join(" "),
        gone = gone.join(" "),
        primary = primary.join(" "),
        "addresses of this node changed"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_whose_network_gets_another_length_stays() {
        let addr: IpAddr = [10, 4, 7, 21].into();
        let [earlier, new] = [32, 24].map(|len| InterfaceAddress::lasting(addr, len));
        let mut link = Link { name: IfName::new("eth0").unwrap(), up: true, addresses: vec![earlier] };
        link.get(new);
        link.lose(addr, 32);
        assert_eq!(link.addresses, [new]);
        let again = InterfaceAddress { unfit: true, ..new };
        link.get(again);
        assert_eq!(link.addresses, [again], "another state of the same one");
        link.lose(addr, 24);
        assert_eq!(link.addresses, []);
    }

    #[test]
    fn a_link_is_followed_by_its_index_through_names_and_asked_about_only_where_it_matters() {
        let link = |addr: &str| {
            let addresses = vec![InterfaceAddress::lasting(addr.parse().unwrap(), 24)];
            Link { name: IfName::new("eth0").unwrap(), up: true, addresses }
        };
        let said = |index, name: &str, up| AddressChange::Link { index, name: IfName::new(name).unwrap(), up };
        let by_index = BTreeMap::from([(2, link("10.4.7.21")), (3, link("fe80::1"))]);
        let mut links = Links { by_index, unrouted: BTreeSet::new() };
        for (change, effect, what) in [
            (said(2, "eth0", true), Effect::Nothing, "statistics, an MTU"),
            (said(2, "wan0", true), Effect::Taken, "renamed while it is up"),
            (said(2, "wan0", true), Effect::Nothing, "once more"),
            (said(2, "wan0", false), Effect::Listing, "down, with its default routes"),
            (said(2, "wan0", true), Effect::Nothing, "up; its default routes are announced"),
            (said(3, "eth0", false), Effect::Nothing, "a Pod's, down"),
            (said(4, "eth0", true), Effect::Nothing, "a Pod's, new"),
            (AddressChange::Lost, Effect::Listing, "anything"),
        ] {
            assert_eq!(links.apply(change), effect, "{what}");
        }
        assert_eq!(links.by_index[&2].name.as_str(), "wan0");
    }

    #[test]
    fn only_a_member_of_a_network_that_is_gone_ends_connections() {
        let name = |text: &str| IfName::new(text).unwrap();
        let own = |addresses: &[(&str, &str, u8)]| {
            let links: Vec<(IfName, [InterfaceAddress; 1])> = addresses
                .iter()
                .map(|(link, addr, len)| (name(link), [InterfaceAddress::lasting(addr.parse().unwrap(), *len)]))
                .collect();
            let links = links.iter().map(|(link, addresses)| (link, addresses.as_slice()));
            OwnAddresses::of(links, &name("kube-ipvs0"), &PerFamily::default())
        };
        let uplink = ("eth0", "10.4.7.21", 24);
        let before = own(&[uplink, ("cali1", "169.254.1.1", 32), ("wg0", "fd00::1", 64)]);
        for (after, ends) in [
            (own(&[uplink, ("cali1", "169.254.1.1", 32), ("wg0", "fd00::1", 64)]), false),
            (own(&[uplink, ("wg0", "fd00::1", 64)]), false),
            (own(&[uplink, ("cali1", "169.254.1.1", 32)]), true),
            (own(&[("eth0", "10.4.7.121", 24), ("wg0", "fd00::1", 64)]), true),
            (own(&[uplink, ("eth1", "10.4.8.21", 24), ("wg0", "fd00::1", 64)]), false),
        ] {
            assert_eq!(has_lost_a_member(&before, &after), ends, "{after:?}");
        }
    }
}
