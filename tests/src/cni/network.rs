//! A network: a `.conflist` file of the machine and the configuration each of its plugins gets.
//!
//! Invariant: a plugin gets its own object of the list with `name` and `cniVersion` of the list and nothing else added but
//! what libcni injects (`libcni/conf.go`, `libcni/api.go`); keys arrive sorted, as from a Go map.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::attachment::Attachment;

/// Newest version of the specification that libcni 1.3 speaks.
const NEWEST: &str = "1.1.0";
/// Version of a list that names none (`libcni/conf.go`).
const UNNAMED: &str = "0.1.0";

/// A network configuration list.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    pub(crate) name: String,
    #[serde(default = "unnamed")]
    pub(crate) cni_version: String,
    #[serde(default)]
    cni_versions: Vec<String>,
    #[serde(default, deserialize_with = "flag")]
    pub(crate) disable_check: bool,
    #[serde(default, rename = "disableGC", deserialize_with = "flag")]
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<Map<String, Value>>,
    #[serde(skip)]
    pub(crate) source: String,
}

fn unnamed() -> String {
    UNNAMED.to_owned()
}

/// libcni takes the texts "true" and "false" as well.
fn flag<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Bool(flag) => Ok(flag),
        Value::String(text) => text.parse().map_err(serde::de::Error::custom),
        other => Err(serde::de::Error::custom(format!("expected true or false, not {other}"))),
    }
}

impl Network {
    /// Reads a list and chooses its version: the newest of `cniVersions` that libcni speaks, else `cniVersion`.
    ///
    /// # Errors
    /// When it is no JSON object, has no name, no plugins, or a plugin without type.
    pub fn parse(text: &str) -> Result<Self> {
        let mut network: Self = serde_json::from_str(text).context("network configuration list")?;
        ensure!(!network.name.is_empty(), "network configuration list: name is empty");
        ensure!(!network.plugins.is_empty(), "network configuration list {:?}: no plugins in list", network.name);
        for plugin in &network.plugins {
            plugin_type(plugin)?;
        }
        let newest = number(NEWEST);
        let offered =
            network.cni_versions.iter().chain([&network.cni_version]).filter(|version| number(version) <= newest);
        if let Some(best) = offered.max_by_key(|version| number(version)).filter(|_| !network.cni_versions.is_empty()) {
            network.cni_version = best.clone();
        }
        text.clone_into(&mut network.source);
        Ok(network)
    }

    /// Name of the network, as `cbr0`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the list's version is at least this one, as `0.4.0`.
    pub(crate) fn speaks(&self, version: &str) -> bool {
        number(&self.cni_version) >= number(version)
    }

    /// Standard input of a plugin for ADD, CHECK and DEL.
    pub(crate) fn request(
        &self,
        plugin: &Map<String, Value>,
        attachment: &Attachment,
        previous: Option<&Value>,
    ) -> Value {
        let mut request = self.bare_request(plugin);
        if let Some(previous) = previous {
            request.insert("prevResult".to_owned(), previous.clone());
        }
        let declared = plugin.get("capabilities").and_then(Value::as_object).cloned().unwrap_or_default();
        let wanted = declared.into_iter().filter(|(_, wanted)| *wanted == Value::Bool(true));
        let runtime: Map<String, Value> = wanted
            .filter_map(|(name, _)| attachment.capabilities.get(&name).cloned().map(|value| (name, value)))
            .collect();
        if !runtime.is_empty() {
            request.insert("runtimeConfig".to_owned(), Value::Object(runtime));
        }
        Value::Object(request)
    }

    /// What every verb's standard input begins from.
    pub(crate) fn bare_request(&self, plugin: &Map<String, Value>) -> Map<String, Value> {
        let mut request = plugin.clone();
        request.insert("name".to_owned(), Value::from(self.name.as_str()));
        request.insert("cniVersion".to_owned(), Value::from(self.cni_version.as_str()));
        request
    }
}

/// The `type` of a plugin, which is the name of its program.
pub(crate) fn plugin_type(plugin: &Map<String, Value>) -> Result<&str> {
    let program = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
    ensure!(!program.is_empty() && !program.contains('/'), "plugin type {program:?} is no program name");
    Ok(program)
}

/// A version as numbers, for comparison.
fn number(version: &str) -> Vec<u32> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn attachment() -> Attachment {
        let (container_id, netns) = ("c1".to_owned(), "/run/netns/x".to_owned());
        Attachment { container_id, netns, ifname: "eth0".to_owned(), args: String::new(), capabilities: Map::new() }
    }

    #[test]
    fn version_is_the_newest_offered_that_libcni_speaks() {
        for (versions, expected) in [
            (json!({"cniVersion": "0.3.1"}), "0.3.1"),
            (json!({}), "0.1.0"),
            (json!({"cniVersion": "0.3.1", "cniVersions": ["0.3.1", "1.0.0", "9.9.9"]}), "1.0.0"),
            (json!({"cniVersion": "1.1.0", "cniVersions": ["0.4.0"]}), "1.1.0"),
        ] {
            let mut list = json!({"name": "n", "plugins": [{"type": "flannel"}]});
            list.as_object_mut().unwrap().extend(versions.as_object().unwrap().clone());
            assert_eq!(Network::parse(&list.to_string()).unwrap().cni_version, expected, "{list}");
        }
    }

    #[test]
    fn capability_reaches_only_the_plugin_that_declares_it() {
        let list = json!({"name": "n", "cniVersion": "1.0.0", "plugins": [
            {"type": "flannel"}, {"type": "portmap", "capabilities": {"portMappings": true, "mac": false, "ips": true}}]});
        let network = Network::parse(&list.to_string()).unwrap();
        let attachment =
            attachment().capability("portMappings", json!([{"hostPort": 80}])).capability("mac", json!("x"));
        assert_eq!(
            network.request(&network.plugins[0], &attachment, None),
            json!({"name": "n", "cniVersion": "1.0.0", "type": "flannel"})
        );
        let request = network.request(&network.plugins[1], &attachment, Some(&json!({"ips": []})));
        assert_eq!(request["runtimeConfig"], json!({"portMappings": [{"hostPort": 80}]}));
        assert_eq!(request["prevResult"], json!({"ips": []}));
    }

    #[test]
    fn list_that_libcni_refuses_is_refused() {
        for (text, complaint) in [
            ("[]", "network configuration list"),
            (r#"{"plugins": [{"type": "a"}]}"#, "missing field `name`"),
            (r#"{"name": "n", "plugins": []}"#, "no plugins in list"),
            (r#"{"name": "n", "plugins": [{}]}"#, "is no program name"),
            (r#"{"name": "n", "disableCheck": 7, "plugins": [{"type": "a"}]}"#, "expected true or false"),
        ] {
            let error = format!("{:#}", Network::parse(text).unwrap_err());
            assert!(error.contains(complaint), "{text} gave {error}");
        }
    }
}
