//! The shipped configuration files say what the program understands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::format::net_conf::NetConf;
use crate::plan::backend::Backend;

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(path)
}

#[test]
fn network_of_the_reference_cluster_is_read_without_a_remark() {
    let conf = NetConf::parse(&std::fs::read_to_string(shipped("net-conf.json")).unwrap()).unwrap();
    assert_eq!(conf.notes, Vec::<String>::new());
    assert_eq!(conf.network.to_string(), "172.7.0.0/16");
    assert!(matches!(conf.network.backend, Backend::Vxlan(options) if options.port == 8472 && options.vni == 1));
}

#[test]
fn variables_of_the_unit_are_ones_that_netd_reads() {
    let unit = std::fs::read_to_string(shipped("systemd/netd.service")).unwrap();
    let known = super::args::variables();
    let settings = unit.lines().filter_map(|line| line.strip_prefix("Environment="));
    let set: BTreeMap<&str, &str> =
        settings.flat_map(str::split_whitespace).map(|pair| pair.split_once('=').unwrap()).collect();
    assert!(!set.is_empty());
    for name in set.keys() {
        assert!(known.contains(*name), "{name} is read by nobody");
    }
    for line in unit.lines().filter(|line| line.starts_with('#')) {
        for name in
            line.split([' ', ',', ':']).filter(|word| word.starts_with("FLANNELD_") || word.starts_with("NETD_"))
        {
            assert!(known.contains(name) || name == "NETD_", "the comment names {name}, which is read by nobody");
        }
    }
}

#[test]
fn unit_leaves_the_data_path_alone_and_is_hardened() {
    let unit = std::fs::read_to_string(shipped("systemd/netd.service")).unwrap();
    for line in [
        "Type=notify",
        "KillMode=process",
        "Restart=always",
        "RuntimeDirectory=netd flannel",
        "RuntimeDirectoryPreserve=yes",
        "CapabilityBoundingSet=CAP_NET_ADMIN",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    let after = unit.lines().find_map(|line| line.strip_prefix("After=")).unwrap();
    assert!(after.split(' ').any(|unit| unit == "etcd.service"));
    let before: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("Before=")).collect();
    assert_eq!(before, ["shutdown.target"], "nothing waits for a store that is away");
    assert!(unit.lines().any(|line| line == "DefaultDependencies=no"), "multi-user.target would wait");
    assert!(!unit.contains("RequiredBy") && !unit.contains("TimeoutStartSec=infinity"));
    assert!(!unit.contains("ExecStop") && !unit.contains("PartOf"), "nothing may tear the data path down");
}
