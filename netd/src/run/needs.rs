//! What a network needs of this node's kernel, asked for before anything is made.
//!
//! Invariant: a network that cannot work without what is missing is refused with the name of it and what to do; what is only slower or less
//! without it is said and goes on.

use anyhow::{Result, bail};
use kernel::feature::{self, Feature};

use crate::command::config::Config;
use crate::format::net_conf::Network;
use crate::plan::Masquerade;
use crate::plan::backend::Backend;

/// What the rules of `masquerade` are made of.
const RULES: [Feature; 3] = [Feature::Nftables, Feature::Tracking, Feature::Translation];

/// Everything that some network needs.
pub(crate) const ALL: [Feature; 7] = [
    Feature::Vxlan,
    Feature::Ipip,
    Feature::WireGuard,
    Feature::Nftables,
    Feature::Tracking,
    Feature::Translation,
    Feature::Flowtable,
];

/// What only Pods need that ask for it, with what the plugin refuses without it. Not `ifb`: its module makes two links as soon as it is asked for.
pub(crate) const OF_SOME_PODS: [(Feature, &str); 2] = [
    (Feature::TokenBucket, "Pods with a limit of bandwidth"),
    (Feature::BridgeTables, "Pods of networks with macspoofchk"),
];

/// The devices that a backend makes, which are of the kind that it is named after.
fn of_backend(backend: &Backend) -> Option<Feature> {
    Feature::of_kind(backend.name())
}

fn of_rules(wanted: &Masquerade) -> &'static [Feature] {
    match wanted {
        Masquerade { masquerade: true, .. } => &RULES,
        Masquerade { untracked: true, .. } => &[Feature::Nftables, Feature::Tracking],
        Masquerade { .. } => &[],
    }
}

/// Refuses what cannot work on this kernel.
///
/// # Errors
/// Each thing that the kernel has not, with what to do.
pub(super) fn check(config: &Config, network: &Network) -> Result<()> {
    let rules = of_rules(&config.masquerade);
    let wanted: Vec<Feature> = of_backend(&network.backend).into_iter().chain(rules.iter().copied()).collect();
    let missing = match feature::missing(&wanted) {
        Ok(missing) => missing,
        Err(error) => {
            tracing::warn!(error = %kernel::Chain(&error), "what this kernel has cannot be found out");
            return Ok(());
        }
    };
    if let Some(reason) = refusal(&network.backend, &missing) {
        bail!(reason);
    }
    if network.flowtable && !Feature::Flowtable.is_there().unwrap_or(true) {
        tracing::warn!(
            "this kernel has no {}: flows take the long way; {}",
            Feature::Flowtable,
            Feature::Flowtable.advice()
        );
    }
    Ok(())
}

/// Why a network with this backend cannot be on a kernel without `missing`.
fn refusal(backend: &Backend, missing: &[Feature]) -> Option<String> {
    let of_backend = of_backend(backend);
    feature::refusal(missing, |feature| match of_backend {
        Some(of_backend) if of_backend == feature => "; or take another backend: host-gw needs none of its own",
        _ => "; or do without --ip-masq and --untracked-tunnel",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::net_conf::NetConf;

    #[test]
    fn each_backend_names_its_devices_and_the_rules_what_they_are_made_of() {
        let backend = |kind: &str| {
            let conf = format!(r#"{{"Network":"172.7.0.0/16","Backend":{{"Type":"{kind}"}}}}"#);
            NetConf::parse(&conf).unwrap().network.backend
        };
        for (kind, feature, option) in [
            ("vxlan", Feature::Vxlan, "CONFIG_VXLAN"),
            ("ipip", Feature::Ipip, "CONFIG_NET_IPIP"),
            ("wireguard", Feature::WireGuard, "CONFIG_WIREGUARD"),
        ] {
            let backend = backend(kind);
            assert_eq!(of_backend(&backend), Some(feature));
            let text = refusal(&backend, &[feature]).unwrap();
            assert!(text.contains(&format!("this kernel has no {kind} devices")) && text.contains(option), "{text}");
            assert!(text.contains("host-gw needs none"), "{text}");
            assert_eq!(refusal(&backend, &[]), None);
        }
        assert_eq!(of_backend(&backend("host-gw")), None);
        let both = refusal(&backend("host-gw"), &[Feature::Nftables, Feature::Translation]).unwrap();
        assert_eq!(both.lines().count(), 2, "{both}");
        assert!(
            both.contains("no nftables: ") && both.contains("without --ip-masq") && !both.contains("host-gw"),
            "{both}"
        );
    }

    #[test]
    fn rules_need_nftables_only_where_there_are_some() {
        assert_eq!(of_rules(&Masquerade::MASQ), RULES);
        let none = Masquerade { masquerade: false, forward: false, ..Masquerade::MASQ };
        assert_eq!(of_rules(&none), []);
        assert_eq!(of_rules(&Masquerade { untracked: true, ..none }), [Feature::Nftables, Feature::Tracking]);
    }
}
