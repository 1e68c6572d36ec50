//! Kernel parameters under /proc/sys.
//!
//! Invariant: a key never leaves /proc/sys/net: segments are not empty, not `.` or `..`, and the first is `net`.

use std::fmt;
use std::str::FromStr;

/// Path of a parameter below /proc/sys, with `/` as separator: `net/ipv4/ip_forward`. Slashes, because interface
/// names such as `flannel.1` contain dots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SysctlKey(String);

/// The text is no path of a network parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidSysctl(String);

impl fmt::Display for InvalidSysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a kernel parameter of the form net/ipv4/ip_forward", self.0)
    }
}

impl std::error::Error for InvalidSysctl {}

impl SysctlKey {
    /// The path below /proc/sys.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SysctlKey {
    type Err = InvalidSysctl;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let inside = s.starts_with("net/") && s.split('/').all(|seg| !matches!(seg, "" | "." | ".."));
        if inside { Ok(Self(s.to_owned())) } else { Err(InvalidSysctl(s.to_owned())) }
    }
}

impl fmt::Display for SysctlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_inside_net_are_keys() {
        assert!("net/ipv4/conf/flannel.1/rp_filter".parse::<SysctlKey>().is_ok());
        for bad in
            ["kernel/core_pattern", "net/../kernel/x", "/net/ipv4/ip_forward", "net//x", "net/", "net.ipv4.ip_forward"]
        {
            assert!(bad.parse::<SysctlKey>().is_err(), "{bad:?}");
        }
    }
}
