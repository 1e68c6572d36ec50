//! A network: a list of plugins with a name and a version, and the configuration each of its plugins gets.
//!
//! Invariant: a plugin gets its own object of the list with `name` and `cniVersion` of the list and nothing else added but
//! what libcni injects (`libcni/conf.go`, `libcni/api.go`); keys arrive sorted and numbers as Go's float64 prints them.

use std::cmp::Ordering;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::attachment::Attachment;
use super::client::{Release, by_age};

/// A network configuration list.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    pub(crate) name: String,
    pub(crate) cni_version: String,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    pub(crate) load_only_inlined: bool,
    pub(crate) plugins: Vec<Map<String, Value>>,
    pub(crate) source: String,
}

impl Network {
    /// Reads a list as the newest libcni does: the version is the newest of `cniVersions` and `cniVersion` that it speaks.
    ///
    /// # Errors
    /// What libcni refuses: no JSON object, no name, no plugins, a plugin without type, a flag that is none.
    pub fn parse(text: &str) -> Result<Self> {
        let network = Self::read(Release::V1_3, text)?;
        ensure!(!network.plugins.is_empty(), "no plugin configs found");
        Ok(network)
    }

    /// Reads a list, which may be without plugins when they lie in files of their own.
    pub(crate) fn read(release: Release, text: &str) -> Result<Self> {
        let list: Map<String, Value> = serde_json::from_str(text).context("error parsing configuration list")?;
        let with = |complaint: String| anyhow::anyhow!("error parsing configuration list: {complaint}");
        let name = list.get("name").ok_or_else(|| with("no name".to_owned()))?;
        let name = name.as_str().ok_or_else(|| with(format!("invalid name type {}", kind(name))))?;
        let is_new = release == Release::V1_3;
        let flag = |key: &str| if is_new || key == "disableCheck" { flag(&list, key) } else { Ok(false) };
        let load_only_inlined = flag("loadOnlyInlinedPlugins")?;
        Ok(Self {
            name: name.to_owned(),
            cni_version: version(release, &list)?,
            disable_check: flag("disableCheck")?,
            disable_gc: flag("disableGC")?,
            load_only_inlined: load_only_inlined || !is_new,
            plugins: plugins(&list, load_only_inlined || !is_new)?,
            source: text.to_owned(),
        })
    }

    /// A single plugin's configuration as a list of one (`ConfListFromConf`).
    pub(crate) fn from_single(plugin: &Map<String, Value>) -> Result<Self> {
        let text = |key: &str| plugin.get(key).and_then(Value::as_str).unwrap_or_default();
        let list = json!({"name": text("name"), "cniVersion": text("cniVersion"), "plugins": [plugin]});
        Self::parse(&list.to_string())
    }

    /// Name of the network, as `cbr0`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version its plugins are asked in.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.cni_version
    }

    /// Whether the list's version is at least this one, as `0.4.0`.
    pub(crate) fn speaks(&self, version: &str) -> bool {
        by_age(&self.cni_version, version) != Ordering::Less
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

fn version(release: Release, list: &Map<String, Value>) -> Result<String> {
    let named = match list.get("cniVersion") {
        Some(Value::String(version)) => version.as_str(),
        Some(other) => bail!("error parsing configuration list: invalid cniVersion type {}", kind(other)),
        None => "",
    };
    let offered = match list.get("cniVersions") {
        Some(Value::Array(offered)) if release == Release::V1_3 => offered,
        Some(other) if release == Release::V1_3 => {
            bail!("error parsing configuration list: invalid type for cniVersions: {}", kind(other))
        }
        _ => return Ok(named.to_owned()),
    };
    let mut known = vec![named];
    for (index, version) in offered.iter().enumerate() {
        let complaint = || format!("error parsing configuration list: invalid type for cniVersions index {index}");
        known.push(version.as_str().with_context(complaint)?);
    }
    known.retain(|version| !version.is_empty() && by_age(version, release.newest()) != Ordering::Greater);
    Ok(known.into_iter().max_by(|one, other| by_age(one, other)).unwrap_or(named).to_owned())
}

/// libcni takes the texts "true" and "false" in any case as well.
fn flag(list: &Map<String, Value>, key: &str) -> Result<bool> {
    match list.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) => text
            .to_lowercase()
            .parse()
            .with_context(|| format!("error parsing configuration list: invalid value {text:?} for {key}")),
        Some(other) => bail!("error parsing configuration list: invalid type {} for {key}", kind(other)),
    }
}

fn plugins(list: &Map<String, Value>, must_be_inlined: bool) -> Result<Vec<Map<String, Value>>> {
    let plugins = match list.get("plugins") {
        None if must_be_inlined => bail!("error parsing configuration list: no 'plugins' key"),
        None => return Ok(Vec::new()),
        Some(Value::Array(plugins)) => plugins,
        Some(other) => bail!("error parsing configuration list: invalid 'plugins' type {}", kind(other)),
    };
    ensure!(!plugins.is_empty(), "error parsing configuration list: no plugins in list");
    let read = |(index, plugin): (usize, &Value)| {
        self::plugin(plugin).with_context(|| format!("failed to parse plugin config {index}"))
    };
    plugins.iter().enumerate().map(read).collect()
}

/// One plugin's object (`ConfFromBytes`).
pub(crate) fn plugin(object: &Value) -> Result<Map<String, Value>> {
    let mut object = object.as_object().context("error parsing configuration: not an object")?.clone();
    ensure!(!plugin_type(&object).is_empty(), "error parsing configuration: missing 'type'");
    object.values_mut().for_each(round);
    Ok(object)
}

/// The `type` of a plugin, which is the name of its program.
pub(crate) fn plugin_type(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Numbers pass through Go's float64, which prints whole ones below 10^21 without exponent.
fn round(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 1e21)
                && let Ok(rounded) = format!("{float:.0}").parse()
            {
                *number = rounded;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(round),
        Value::Object(members) => members.values_mut().for_each(round),
        _ => {}
    }
}

/// Go's name for the type of a value.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        let (container_id, netns) = ("c1".to_owned(), "/run/netns/x".to_owned());
        Attachment { container_id, netns, ifname: "eth0".to_owned(), args: String::new(), capabilities: Map::new() }
    }

    #[test]
    fn version_is_the_newest_offered_that_libcni_speaks() {
        for (versions, old, new) in [
            (json!({"cniVersion": "0.3.1"}), "0.3.1", "0.3.1"),
            (json!({}), "", ""),
            (json!({"cniVersion": "0.3.1", "cniVersions": ["0.3.1", "1.0.0", "9.9.9"]}), "0.3.1", "1.0.0"),
            (json!({"cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"]}), "1.0.0", "1.1.0"),
            (json!({"cniVersion": "1.1.0", "cniVersions": ["0.4.0"]}), "1.1.0", "1.1.0"),
            (json!({"cniVersion": "9.9.9"}), "9.9.9", "9.9.9"),
            (json!({"cniVersion": "9.9.9", "cniVersions": []}), "9.9.9", "9.9.9"),
        ] {
            let mut list = json!({"name": "n", "plugins": [{"type": "flannel"}]});
            list.as_object_mut().unwrap().extend(versions.as_object().unwrap().clone());
            assert_eq!(Network::read(Release::V1_1, &list.to_string()).unwrap().cni_version, old, "{list}");
            assert_eq!(Network::read(Release::V1_3, &list.to_string()).unwrap().cni_version, new, "{list}");
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
    fn request_is_the_plugins_object_with_keys_sorted_and_unknown_ones_kept() {
        let list = r#"{"name": "n", "cniVersion": "1.0.0", "plugins": [
            {"zebra": 9007199254740993, "type": "t", "mtu": 1450.0, "name": "own", "capabilities": {"ips": true}, "a": [1.5, 1e3]}]}"#;
        let network = Network::parse(list).unwrap();
        assert_eq!(
            network.request(&network.plugins[0], &attachment(), None).to_string(),
            r#"{"a":[1.5,1000],"capabilities":{"ips":true},"cniVersion":"1.0.0","mtu":1450,"name":"n","type":"t","zebra":9007199254740992}"#
        );
    }

    #[test]
    fn list_that_libcni_refuses_is_refused() {
        for (text, complaint) in [
            ("[]", "error parsing configuration list"),
            (r#"{"plugins": [{"type": "a"}]}"#, "no name"),
            (r#"{"name": 7, "plugins": [{"type": "a"}]}"#, "invalid name type float64"),
            (r#"{"name": "n", "cniVersion": 1, "plugins": [{"type": "a"}]}"#, "invalid cniVersion type float64"),
            (
                r#"{"name": "n", "cniVersions": "1.0.0", "plugins": [{"type": "a"}]}"#,
                "invalid type for cniVersions: string",
            ),
            (r#"{"name": "n", "cniVersions": [1], "plugins": [{"type": "a"}]}"#, "cniVersions index 0"),
            (r#"{"name": "n"}"#, "no plugin configs found"),
            (r#"{"name": "n", "loadOnlyInlinedPlugins": true}"#, "no 'plugins' key"),
            (r#"{"name": "n", "plugins": {}}"#, "invalid 'plugins' type map"),
            (r#"{"name": "n", "plugins": []}"#, "no plugins in list"),
            (r#"{"name": "n", "plugins": [{}]}"#, "missing 'type'"),
            (r#"{"name": "n", "plugins": [7]}"#, "failed to parse plugin config 0"),
            (
                r#"{"name": "n", "disableCheck": 7, "plugins": [{"type": "a"}]}"#,
                "invalid type float64 for disableCheck",
            ),
            (r#"{"name": "n", "disableGC": "yes", "plugins": [{"type": "a"}]}"#, "invalid value \"yes\" for disableGC"),
        ] {
            let error = format!("{:#}", Network::parse(text).unwrap_err());
            assert!(error.contains(complaint), "{text} gave {error}");
        }
    }

    #[test]
    fn flags_may_be_texts_and_the_old_release_knows_one_of_them() {
        let text = r#"{"name": "n", "disableCheck": "TRUE", "disableGC": "true", "plugins": [{"type": "a"}]}"#;
        let (old, new) = (Network::read(Release::V1_1, text).unwrap(), Network::read(Release::V1_3, text).unwrap());
        assert_eq!((old.disable_check, old.disable_gc), (true, false));
        assert_eq!((new.disable_check, new.disable_gc), (true, true));
    }
}
