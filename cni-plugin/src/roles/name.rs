//! `PluginName`: which plugin a call is for. One binary stands in for several.
//!
//! A runtime executes the file that a configuration names in `type`; installed under several names, the binary learns
//! from the name it was called by what it shall be. Called by another name it goes by `type`.

use std::fmt;

use super::Role;
use super::bandwidth::Bandwidth;
use super::bridge::Bridge;
use super::host_local::HostLocal;
use super::loopback::Loopback;
use super::portmap::Portmap;
use crate::protocol::error::CniError;

/// A plugin that this binary can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PluginName {
    /// `netd-cni`: bridge, address management and host ports in one step.
    Native,
    /// `flannel`: what flannel's plugin and its delegates do, from flannel's configuration.
    Flannel,
    /// `bridge`: the reference bridge plugin with host-local inside; everything comes from the configuration.
    Bridge,
    /// `portmap`: host ports, chained behind another plugin.
    Portmap,
    /// `bandwidth`: limits of a Pod's traffic, chained behind another plugin.
    Bandwidth,
    /// `loopback`: sets `lo` up.
    Loopback,
    /// `host-local`: address management that other plugins delegate to.
    HostLocal,
}

impl PluginName {
    /// Every role with its name.
    pub(crate) const ALL: [(Self, &'static str); 7] = [
        (Self::Native, "netd-cni"),
        (Self::Flannel, "flannel"),
        (Self::Bridge, "bridge"),
        (Self::Portmap, "portmap"),
        (Self::Bandwidth, "bandwidth"),
        (Self::Loopback, "loopback"),
        (Self::HostLocal, "host-local"),
    ];

    /// True for a name that has a plugin of its own elsewhere: files that were written for it must work here.
    #[must_use]
    pub(crate) const fn stands_in(self) -> bool {
        !matches!(self, Self::Native)
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, n)| *n == name).map(|(role, _)| role)
    }

    /// What carries out the verbs of this name.
    #[must_use]
    pub(crate) fn role(self) -> &'static dyn Role {
        match self {
            Self::Native => &Bridge::Native,
            Self::Flannel => &Bridge::Flannel,
            Self::Bridge => &Bridge::Reference,
            Self::Portmap => &Portmap,
            Self::Bandwidth => &Bandwidth,
            Self::Loopback => &Loopback,
            Self::HostLocal => &HostLocal,
        }
    }

    /// The name of a binary called as `program` (a path) with a configuration of type `kind`.
    ///
    /// # Errors
    /// Code 7 when neither names a role.
    pub(crate) fn of(program: &str, kind: &str) -> Result<Self, CniError> {
        let base = program.rsplit('/').next().unwrap_or_default();
        let by_name = Self::named(base).filter(|role| *role != Self::Native);
        by_name.or_else(|| Self::named(kind)).ok_or_else(|| {
            let names = Self::ALL.map(|(_, name)| name).join(", ");
            CniError::invalid_field("type", &format!("{kind:?}"), &format!("one of {names}"))
        })
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.into_iter().find(|(name, _)| name == self).map_or("", |(_, text)| text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_called_by_decides_and_type_comes_second() {
        for (program, kind, role) in [
            ("/opt/cni/bin/flannel", "flannel", PluginName::Flannel),
            ("/opt/cni/bin/portmap", "flannel", PluginName::Portmap),
            ("/opt/cni/bin/netd-cni", "netd-cni", PluginName::Native),
            ("/opt/cni/bin/netd-cni", "flannel", PluginName::Flannel),
            ("netd-cni-1.2", "portmap", PluginName::Portmap),
            ("/opt/cni/bin/bridge", "bridge", PluginName::Bridge),
            ("/opt/cni/bin/netd-cni", "bridge", PluginName::Bridge),
            ("/opt/cni/bin/host-local", "macvlan", PluginName::HostLocal),
        ] {
            assert_eq!(PluginName::of(program, kind).unwrap(), role, "{program} {kind}");
        }
        assert!(PluginName::of("/opt/cni/bin/netd-cni", "macvlan").unwrap_err().msg.contains("macvlan"));
        assert!(PluginName::of("", "").is_err());
    }
}
