//! Kernel parameters under /proc/sys.
//!
//! Invariant: a key never leaves /proc/sys/net: segments are not empty, not `.` or `..`, and the first is `net`.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::{IfName, IpFamily};

/// Path of a parameter below /proc/sys, with `/` as separator: `net/ipv4/ip_forward`. Slashes, because interface
/// names such as `flannel.1` contain dots.
///
/// In order of their names, and forwarding of IPv6 behind all others: when it is switched on, the kernel forgets the
/// default routes that routers announced on links whose `accept_ra` is not 2 yet (net/ipv6/route.c,
/// `rt6_purge_dflt_routers`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysctlKey(Cow<'static, str>);

impl Ord for SysctlKey {
    fn cmp(&self, other: &Self) -> Ordering {
        let last = |key: &Self| key.0.starts_with("net/ipv6/") && key.0.ends_with("/forwarding");
        (last(self), &self.0).cmp(&(last(other), &other.0))
    }
}

impl PartialOrd for SysctlKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The text is no path of a network parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidSysctl(String);

impl fmt::Display for InvalidSysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a kernel parameter of the form net/ipv4/ip_forward", self.0)
    }
}

impl std::error::Error for InvalidSysctl {}

/// True when no byte sequence between slashes is empty, `.` or `..`, and the first of two or more is `net`.
const fn valid(bytes: &[u8]) -> bool {
    let [b'n', b'e', b't', b'/', rest @ ..] = bytes else { return false };
    let mut rest = rest;
    loop {
        let (mut len, mut dots) = (0_usize, 0_usize);
        while let [byte, behind @ ..] = rest
            && *byte != b'/'
        {
            len = len.saturating_add(1);
            dots = dots.saturating_add(if *byte == b'.' { 1 } else { 0 });
            rest = behind;
        }
        if len == 0 || (len == dots && len <= 2) {
            return false;
        }
        match rest {
            [_, behind @ ..] => rest = behind,
            [] => return true,
        }
    }
}

impl SysctlKey {
    /// A parameter known when the program is written; costs no allocation. An invalid one in a `const` does not compile.
    ///
    /// # Panics
    /// When `path` breaks the module's invariant; parse what comes from outside.
    #[must_use]
    pub const fn literal(path: &'static str) -> Self {
        assert!(valid(path.as_bytes()), "not a parameter below net/");
        Self(Cow::Borrowed(path))
    }

    /// The parameter `name` that `link` has for `family`: `net/ipv4/conf/<link>/<name>`. A link's name is always one segment.
    #[must_use]
    pub fn of_link(family: IpFamily, link: &IfName, name: &'static str) -> Self {
        let family = if family.is_v4() { "ipv4" } else { "ipv6" };
        Self(Cow::Owned(format!("net/{family}/conf/{link}/{name}")))
    }

    /// The path below /proc/sys.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SysctlKey {
    type Err = InvalidSysctl;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if valid(s.as_bytes()) { Ok(Self(Cow::Owned(s.to_owned()))) } else { Err(InvalidSysctl(s.to_owned())) }
    }
}

impl fmt::Display for SysctlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forwarding_of_ipv6_comes_behind_what_it_has_an_effect_on() {
        let mut keys = ["net/ipv6/conf/all/forwarding", "net/ipv6/conf/eth0/accept_ra", "net/ipv4/ip_forward"]
            .map(|text| text.parse::<SysctlKey>().unwrap());
        keys.sort();
        let sorted = keys.map(|key| key.to_string());
        assert_eq!(sorted, ["net/ipv4/ip_forward", "net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/all/forwarding"]);
    }

    #[test]
    fn only_paths_inside_net_are_keys() {
        assert!("net/ipv4/conf/flannel.1/rp_filter".parse::<SysctlKey>().is_ok());
        assert!("net/...".parse::<SysctlKey>().is_ok());
        for bad in [
            "",
            "net",
            "net/",
            "net/.",
            "net/x/..",
            "net/x/",
            "net//x",
            "kernel/core_pattern",
            "net/../kernel/x",
            "/net/ipv4/ip_forward",
            "net.ipv4.ip_forward",
        ] {
            assert!(bad.parse::<SysctlKey>().is_err(), "{bad:?}");
            assert!(std::panic::catch_unwind(|| SysctlKey::literal(bad)).is_err(), "{bad:?}");
        }
        const FORWARD: SysctlKey = SysctlKey::literal("net/ipv4/ip_forward");
        assert_eq!(Ok(FORWARD), "net/ipv4/ip_forward".parse());
    }

    #[test]
    fn parameter_of_a_link_is_what_its_text_says() {
        let key = SysctlKey::of_link(IpFamily::V6, &IfName::literal("flannel.1"), "accept_ra");
        assert_eq!(Ok(key), "net/ipv6/conf/flannel.1/accept_ra".parse());
    }

    proptest! {
        #[test]
        fn keys_are_the_paths_whose_segments_are_names(text in "(net|kernel|x)?(/|[a.]|\\.\\.){0,6}") {
            let names = text.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
            prop_assert_eq!(text.parse::<SysctlKey>().is_ok(), text.starts_with("net/") && names);
        }
    }
}
