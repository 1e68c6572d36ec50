//! Claims that the kernel keeps in the network namespace: a bound abstract unix socket for each Pod network and device.
//!
//! Files are seen in one folder; a second daemon in a container has another `/run`, and the same devices and routes.
//! Invariant: of two daemons in one network namespace one holds a Pod network or a device, whatever folders they see; what
//! a daemon holds ends with its process. The names are `@netd/network/PREFIX` and `@netd/device/NAME` (`ss -xlp`).

use std::collections::BTreeMap;
use std::io;

use kernel::name::{self, Name, Taken};
use netstate::Prefix;

/// What every name begins with.
const NETWORK: &str = "network/";
const DEVICE: &str = "device/";

/// The names that this daemon holds.
#[derive(Debug)]
pub(super) struct Names {
    /// What they begin with: `netd/`.
    root: String,
    held: BTreeMap<String, Option<Name>>,
}

impl Default for Names {
    fn default() -> Self {
        Self { root: "netd/".to_owned(), held: BTreeMap::new() }
    }
}

impl Names {
    /// Takes the names of these Pod networks and devices; returns what another daemon holds of them, and then takes nothing
    /// more. What is held already stays held.
    ///
    /// # Errors
    /// When the kernel refuses a socket, or does not list those there are.
    pub(super) fn take(&mut self, networks: &[Prefix], devices: &[String]) -> io::Result<Option<String>> {
        // Held before the others are read: of two daemons at once at least one sees the other.
        for name in networks.iter().map(|network| format!("{NETWORK}{network}")) {
            if !self.bind(&name)? {
                return Ok(Some(name.replacen(NETWORK, "Pod network ", 1)));
            }
        }
        for name in devices.iter().map(|device| format!("{DEVICE}{device}")) {
            if !self.bind(&name)? {
                return Ok(Some(name.replacen(DEVICE, "device ", 1)));
            }
        }
        let theirs = self.others()?;
        let overlap = |own: &Prefix| theirs.iter().find(|their| own.overlaps(their)).map(|their| (*own, *their));
        let found = networks.iter().find_map(overlap);
        Ok(found.map(|(own, their)| format!("Pod network {their}, which overlaps {own},")))
    }

    /// Holds `name`; false when another daemon does. A name that a user without rights has bound is as good as held.
    fn bind(&mut self, name: &str) -> io::Result<bool> {
        if self.held.contains_key(name) {
            return Ok(true);
        }
        let whole = format!("{}{name}", self.root);
        let held = match name::take(&whole)? {
            Taken::Own(own) => Some(own),
            Taken::Other => return Ok(false),
            Taken::Stranger(uid) => {
                tracing::warn!(
                    name = whole,
                    uid,
                    "a process of this user holds the daemon's name, for nothing: find it with `ss -xlp`"
                );
                None
            }
        };
        self.held.insert(name.to_owned(), held);
        Ok(true)
    }

    /// The Pod networks of other daemons.
    pub(super) fn others(&self) -> io::Result<Vec<Prefix>> {
        let names = name::taken(&format!("{}{NETWORK}", self.root))?;
        let names = names.iter().filter_map(|name| name.strip_prefix(&self.root));
        let others = names.filter(|name| !self.held.contains_key(*name));
        Ok(others.filter_map(|name| name.strip_prefix(NETWORK)?.parse().ok()).collect())
    }
}

#[cfg(test)]
impl Names {
    /// Names that no other test takes, and no daemon of this host.
    pub(super) fn of_test(test: &str) -> Self {
        Self { root: format!("netd-test/{}/{test}/", std::process::id()), held: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn network_and_device_are_held_by_one_and_free_when_it_ends() {
        let (mut first, mut second) = (Names::of_test("one"), Names::of_test("one"));
        let (pods, device) = (networks(&["172.7.0.0/16"]), ["flannel.1".to_owned()]);
        assert_eq!(first.take(&pods, &[]).unwrap(), None);
        assert_eq!(first.take(&pods, &device).unwrap(), None, "again, with more");
        assert_eq!(second.take(&pods, &[]).unwrap().unwrap(), "Pod network 172.7.0.0/16");
        assert_eq!(second.take(&networks(&["10.5.0.0/16"]), &device).unwrap().unwrap(), "device flannel.1");
        drop(first);
        assert_eq!(second.take(&pods, &device).unwrap(), None);
    }

    #[test]
    fn networks_that_overlap_are_noticed_and_others_get_along() {
        let (mut first, mut second, mut third) = (Names::of_test("two"), Names::of_test("two"), Names::of_test("two"));
        assert_eq!(first.take(&networks(&["172.7.0.0/16", "fd00:7::/48"]), &[]).unwrap(), None);
        assert_eq!(second.take(&networks(&["10.5.0.0/16"]), &[]).unwrap(), None);
        let found = third.take(&networks(&["172.7.128.0/17"]), &[]).unwrap().unwrap();
        assert_eq!(found, "Pod network 172.7.0.0/16, which overlaps 172.7.128.0/17,");
    }
}
