//! The networks of a ServiceCIDR (networking.k8s.io), out of which ClusterIPs are given.
//!
//! Invariant: a network of all addresses is none: whatever a node sends would be for Services.

use std::collections::BTreeSet;

use cluster::Problem;
use netstate::Prefix;
use serde::Deserialize;

#[derive(Deserialize)]
struct ServiceCidr {
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    cidrs: Vec<String>,
}

/// The networks of an object in JSON.
///
/// # Errors
/// What is wrong with it, and the accepted form.
pub(crate) fn read(text: &str) -> Result<BTreeSet<Prefix>, String> {
    let problem = |field: &str, found: String, accepted: &str| Problem::new(field, found, accepted).to_string();
    let object: ServiceCidr =
        serde_json::from_str(text).map_err(|error| problem("spec", error.to_string(), "cidrs, a list of texts"))?;
    let network = |text: &String| {
        let network: Option<Prefix> = text.parse().ok().filter(|network: &Prefix| network.len() > 0);
        network.ok_or_else(|| problem("spec.cidrs", format!("{text:?}"), "ADDRESS/LENGTH, the length from 1"))
    };
    object.spec.cidrs.iter().map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_what_is_none_is_named() {
        let networks = |cidrs: &str| read(&format!(r#"{{"spec":{{"cidrs":{cidrs}}}}}"#));
        assert_eq!(networks(r#"["10.96.0.0/16","fd09::/108"]"#).map(|found| found.len()), Ok(2));
        assert_eq!(networks(r#"["128.0.0.0/1"]"#).map(|found| found.len()), Ok(1));
        assert_eq!(read("{}"), Ok(BTreeSet::new()));
        for cidrs in [r#"["10.96.0.0"]"#, r#"["0.0.0.0/0"]"#, r#"["::/0"]"#, "[7]", r#""10.96.0.0/16""#] {
            let found = networks(cidrs).unwrap_err();
            assert!(found.starts_with("spec") && found.contains("; accepted: "), "{found}");
        }
    }
}
