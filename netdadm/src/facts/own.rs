//! Which addresses are this host's own.
//!
//! Invariant: reads only.

use std::net::IpAddr;

use kernel::Rtnl;

/// Whether a link of this host has the address. That it can be bound says nothing: with `ip_nonlocal_bind` any can.
pub(crate) fn is_own(address: IpAddr) -> bool {
    let own = Rtnl::open().and_then(|mut rtnl| rtnl.addresses()).unwrap_or_default();
    own.iter().any(|(_, found, _)| *found == address.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn an_address_that_may_be_bound_is_not_therefore_own() {
        for own in ["127.0.0.1", "::ffff:127.0.0.1"] {
            assert!(is_own(own.parse().unwrap()), "{own}");
        }
        for other in ["198.51.100.7", "0.0.0.0", "::"] {
            assert!(!is_own(other.parse().unwrap()), "{other}");
        }
        // As keepalived's hosts have it.
        let in_own_network = || {
            unshare(CloneFlags::CLONE_NEWNET).ok()?;
            fs::write("/proc/sys/net/ipv4/ip_nonlocal_bind", "1").ok()?;
            Some(is_own([198, 51, 100, 7].into()))
        };
        let found = std::thread::spawn(in_own_network).join().unwrap();
        if found.is_none() {
            eprintln!("SKIPPED: ip_nonlocal_bind is tried in a network namespace, which root makes");
        }
        assert_ne!(found, Some(true));
    }
}
