//! `Instance`: which of this host's Pod networks a daemon serves.
//!
//! flannel's set-up for several networks on one host gives each a subnet file of its own, and the CNI plugin knows a
//! network by that file; so the file names the network here as well. Invariants: the network with flannel's default file
//! has the names that it has alone; different files have different names, the same file always the same one.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use netstate::IpFamily;
use netstate::nft::{Family, Name, TableKey};
use netstate::subnet_file::DEFAULT_PATH;

use crate::plan::TABLE;

/// Longest part of a name that is taken from the file's; nft bounds comments to 128 bytes.
const LONGEST: usize = 32;

/// One of the Pod networks of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance(Option<String>);

impl Instance {
    /// The network whose subnet file is at `path`.
    #[must_use]
    pub(crate) fn of(path: &Path) -> Self {
        let path = normal(path);
        if path == Path::new(DEFAULT_PATH) {
            return Self(None);
        }
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let usable = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let name: String = stem.chars().filter(|character| usable(*character)).take(LONGEST).collect();
        let beside_default = path.parent() == Path::new(DEFAULT_PATH).parent();
        let env = path.extension().is_some_and(|extension| extension == "env");
        // What the name leaves out of the path, a number holds.
        if beside_default && env && name == stem && !name.is_empty() {
            return Self(Some(name));
        }
        Self(Some(format!("{name}-{:08x}", hash(path.as_os_str().as_encoded_bytes()))))
    }

    /// Its name; none for the default network.
    #[must_use]
    pub(crate) fn name(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// The name of the nft tables of its rules. The dot keeps it apart from the tables of the CNI plugin.
    #[must_use]
    pub(crate) fn table(&self) -> Name {
        self.name().and_then(|name| Name::new(format!("{TABLE}.{name}")).ok()).unwrap_or(TABLE)
    }

    /// The nft tables of its rules, one of each family.
    #[must_use]
    pub(crate) fn tables(&self) -> BTreeSet<TableKey> {
        let table = |family: IpFamily| TableKey { family: family.into(), name: self.table() };
        IpFamily::ALL.into_iter().map(table).collect()
    }

    /// The nft table of its flowtable, which sees both families.
    #[must_use]
    pub(crate) fn flowtable(&self) -> TableKey {
        TableKey { family: Family::Inet, name: self.table() }
    }

    /// The nft tables of what sees packets as they arrive on links: its flowtable, and what is not tracked.
    #[must_use]
    pub(crate) fn ingress(&self) -> [TableKey; 2] {
        [self.flowtable(), TableKey { family: Family::Netdev, name: self.table() }]
    }

    /// All its nft tables.
    #[must_use]
    pub(crate) fn all_tables(&self) -> BTreeSet<TableKey> {
        self.tables().into_iter().chain(self.ingress()).collect()
    }

    /// The comment of its rules in foreign chains, and of nobody else's.
    #[must_use]
    pub(crate) fn marker(&self) -> String {
        self.name().map_or_else(|| "netd: Pod network".to_owned(), |name| format!("netd: Pod network {name}"))
    }

    /// Its folder of run-time files below `folder`.
    #[must_use]
    pub(crate) fn folder(&self, folder: &Path) -> PathBuf {
        self.name().map_or_else(|| folder.to_owned(), |name| folder.join("networks.d").join(name))
    }

    /// True for the nft table of any network of this program.
    #[must_use]
    pub(crate) fn is_table(table: &TableKey) -> bool {
        let rest = table.name.as_str().strip_prefix(TABLE.as_str());
        matches!(table.family, Family::Ip | Family::Ip6 | Family::Inet | Family::Netdev)
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// The same file by one path: without `.` and doubled slashes, and below `/run` where `/var/run` only leads there.
pub(crate) fn normal(path: &Path) -> PathBuf {
    let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
    path.strip_prefix("/var/run").map(|below| Path::new("/run").join(below)).unwrap_or(path)
}

/// 32-bit FNV-1a.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> Instance {
        Instance::of(Path::new(path))
    }

    #[test]
    fn network_with_the_default_file_has_the_names_that_it_has_alone() {
        for path in [DEFAULT_PATH, "/var/run/flannel/subnet.env", "/run//flannel/./subnet.env"] {
            let instance = of(path);
            assert_eq!(instance.table(), TABLE, "{path}");
            assert_eq!(instance.marker(), "netd: Pod network");
            assert_eq!(instance.folder(Path::new("/run/netd")), Path::new("/run/netd"));
        }
    }

    #[test]
    fn every_other_file_names_a_network_of_its_own() {
        let blue = of("/run/flannel/blue.env");
        assert_eq!(
            (blue.table().to_string(), blue.marker()),
            ("netd.blue".to_owned(), "netd: Pod network blue".to_owned())
        );
        assert_eq!(blue.folder(Path::new("/run/netd")), Path::new("/run/netd/networks.d/blue"));
        assert_eq!(blue, of("/var/run/flannel/blue.env"));
        let paths = [
            "/run/flannel/blue.env",
            "/run/flannel/blue",
            "/run/flannel/blue.txt",
            "/run/blue.env",
            "/run/flannel/bl ue.env",
            "/run/flannel/bl-ue.env",
            "/run/flannel/.env",
            "/etc/blue.env",
            "blue.env",
            "/run/flannel/subnet",
            "/a/subnet.env",
        ];
        let names: std::collections::BTreeSet<_> = paths.iter().map(|path| of(path).table()).collect();
        assert_eq!(names.len(), paths.len(), "{names:?}");
        assert!(!names.contains(&TABLE), "{names:?}");
        let tables = paths.iter().flat_map(|path| of(path).all_tables()).chain(Instance(None).all_tables());
        assert!(tables.map(|table| assert!(Instance::is_table(&table), "{table}")).count() == 4 * paths.len() + 4);
        assert!(!Instance::is_table(&TableKey { family: Family::Ip, name: Name::literal("netd-ports") }));
    }
}
