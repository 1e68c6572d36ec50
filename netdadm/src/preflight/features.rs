//! What netd, the plugin and ipvs-proxy use of the kernel.
//!
//! Pure. Invariant: the kernel was asked for each in a network namespace that has ended; only what this host's programs use counts.

use daemon::doctor::Trouble;

use super::facts::Case;
use crate::topology::{Backend, Role};

/// What is asked for, and what a kernel without it needs.
pub(crate) const FEATURES: [(&str, &str); 9] = [
    ("bridge", "bridge"),
    ("veth", "veth"),
    ("dummy", "dummy"),
    ("vxlan", "vxlan"),
    ("wireguard", "wireguard"),
    ("nftables", "nf_tables nft_masq nft_chain_nat nft_ct nft_fib_inet"),
    ("ipvs", "ip_vs"),
    ("ipvs rr", "ip_vs_rr"),
    ("overlay", "overlay"),
];

/// Features that are missing.
pub(super) fn judge(case: &Case) -> Vec<Trouble> {
    let backend = case.plan.as_ref().map_or(Backend::Vxlan, |plan| plan.topology.pods.backend.value);
    let used = |name: &str| match name {
        "vxlan" => case.has_netd() && backend == Backend::Vxlan,
        "wireguard" => case.has_netd() && backend == Backend::Wireguard,
        "nftables" => case.has_netd(),
        _ => case.is(Role::Node),
    };
    let mut troubles = Vec::new();
    for (name, modules) in FEATURES.into_iter().filter(|(name, _)| used(name)) {
        let Some(Err(reason)) = case.facts.features.get(name) else { continue };
        let user = match name {
            "overlay" => "containerd",
            "bridge" | "veth" => "netd-cni",
            "dummy" | "ipvs" | "ipvs rr" => "ipvs-proxy",
            "nftables" => "netd and ipvs-proxy",
            _ => "netd",
        };
        let other =
            if name.starts_with("ipvs") { "; or ipvs-proxy --proxy-mode nftables, which needs none" } else { "" };
        let fix =
            format!("modprobe -a {modules}, from the package of modules of this kernel if it is not there{other}");
        troubles.push(Trouble::problem(format!("this kernel has no {name}, which {user} needs: {reason}"), fix));
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::tests::said;

    #[test]
    fn a_host_with_an_api_server_and_no_pods_needs_what_netd_needs() {
        let mut case = Case::default().of_host("hdss7-11");
        case.facts.features = FEATURES.map(|(name, _)| (name, Err("EOPNOTSUPP".to_owned()))).into();
        let found = said(judge(&case));
        assert_eq!(found.matches("this kernel has no ").count(), 2, "{found}");
        assert!(found.contains("no vxlan, which") && found.contains("no nftables, which"), "{found}");
    }

    #[test]
    fn a_feature_that_this_hosts_programs_use_and_the_kernel_lacks_is_found() {
        for (name, modules) in FEATURES {
            let mut case = Case::default();
            case.facts.features.insert(name, Err("Operation not supported".into()));
            let found = said(judge(&case));
            if name == "wireguard" {
                assert_eq!(found, "", "nobody uses it");
                continue;
            }
            assert!(found.contains(&format!("no {name}, which")) && found.contains(modules), "{found}");
            case.facts.features.insert(name, Ok(()));
            assert_eq!(said(judge(&case)), "");
        }
    }
}
