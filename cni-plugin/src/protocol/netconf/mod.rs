//! The configuration on standard input (SPEC "Section 1" and "Section 3"): what every verb and every plugin name share.
//!
//! Checks come in the order of the reference implementation (skel): JSON (code 6), name (7), version (1). What is
//! left in [`NetConf::fields`] belongs to the plugin that the call is for: [`bridge`], [`flannel`] or [`portmap`].

pub(crate) mod bandwidth;
pub(crate) mod bridge;
pub(crate) mod conditions;
pub(crate) mod flannel;
pub(crate) mod host_local;
pub(crate) mod ipam;
pub(crate) mod portmap;
pub(crate) mod runtime;
pub(crate) mod vlan;

use std::rc::Rc;

use netstate::IfName;
use serde_json::Value;

use crate::protocol::attachment::{Attachment, ContainerId, is_identifier};
use crate::protocol::error::{CniError, Code};
use crate::protocol::fields::{Fields, Unknown};
use crate::protocol::version::SpecVersion;

pub use bandwidth::BandwidthConf;
pub use bridge::BridgeConf;
pub use flannel::FlannelConf;
pub(crate) use ipam::IpamConf;
pub use portmap::PortmapConf;
pub(crate) use portmap::Snat;
pub(crate) use runtime::PortMapping;
pub use runtime::RuntimeConfig;
pub(crate) use vlan::VlanConf;

/// Where records are kept unless configured otherwise.
pub(crate) const DEFAULT_STATE_DIR: &str = "/var/lib/cni/netd";

/// The part of a configuration that does not depend on the plugin.
#[derive(Debug, Clone)]
pub struct NetConf {
    /// Version of the specification that the result must have.
    pub version: SpecVersion,
    /// The configuration says so itself; 0.1.0 is meant otherwise.
    pub is_versioned: bool,
    /// Name of the network: an identifier.
    pub name: String,
    /// The plugin's name, `type`.
    pub plugin: String,
    /// Result of the plugin before this one, or of ADD.
    pub prev_result: Option<Value>,
    /// `runtimeConfig`, not yet read.
    pub runtime: Option<Fields>,
    /// GC: attachments that must stay; `None` when neither key stood there.
    pub valid_attachments: Option<Vec<Attachment>>,
    /// What belongs to the plugin.
    pub fields: Fields,
    /// What becomes of fields that nobody takes.
    pub unknown: Unknown,
}

impl NetConf {
    /// Reads the text of standard input.
    ///
    /// # Errors
    /// Code 6 when it is no JSON object, 7 when a common field is invalid, 1 when its version is not spoken.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        let value: Value = serde_json::from_slice(input).map_err(|e| {
            CniError::new(Code::Decode, "error unmarshall network config: no JSON on standard input")
                .details(e.to_string())
        })?;
        let Value::Object(map) = value else {
            return Err(CniError::new(
                Code::Decode,
                "error unmarshall network config: standard input is no JSON object",
            ));
        };
        let mut fields = Fields::root(map);
        let name = network_name(&mut fields)?;
        let (version, is_versioned) = version(&mut fields)?;
        let plugin = fields.take_text("type")?.unwrap_or_default();
        let prev_result = fields.take("prevResult")?;
        let runtime = fields.take_object("runtimeConfig")?;
        let valid_attachments = attachments(&mut fields)?;
        // Concerns of the runtime: it reads them and leaves them in (libcni does not strip `capabilities`).
        for key in ["capabilities", "cniVersions", "disableCheck", "disableGC", "loadOnlyInlinedPlugins"] {
            fields.take(key)?;
        }
        Ok(Self {
            version,
            is_versioned,
            name,
            plugin,
            prev_result,
            runtime,
            valid_attachments,
            fields,
            unknown: Unknown::Refused,
        })
    }
}

impl NetConf {
    /// The same, with the fields that nobody takes ignored instead of refused.
    #[must_use]
    pub fn lenient(self) -> Self {
        let unknown = Unknown::Ignored(Rc::default());
        let runtime = self.runtime.map(|fields| fields.leaving(&unknown));
        Self { runtime, fields: self.fields.leaving(&unknown), unknown, ..self }
    }
}

fn network_name(fields: &mut Fields) -> Result<String, CniError> {
    let name = fields.take_text("name")?.unwrap_or_default();
    if name.is_empty() {
        return Err(CniError::new(Code::InvalidConfig, "missing network name"));
    }
    if !is_identifier(&name) || name.len() > 200 {
        let error = CniError::new(Code::InvalidConfig, "invalid characters found in network name").details(&name);
        return Err(error.details("accepted are up to 200 letters, digits, '_', '.' and '-', first a letter or digit"));
    }
    Ok(name)
}

fn version(fields: &mut Fields) -> Result<(SpecVersion, bool), CniError> {
    let Some(text) = fields.take_text("cniVersion")?.filter(|text| !text.is_empty()) else {
        return Ok((SpecVersion::V0_1_0, false));
    };
    text.parse().map(|version| (version, true)).map_err(|_| {
        let spoken = SpecVersion::ALL.map(SpecVersion::as_str).join(" ");
        CniError::new(Code::IncompatibleVersion, "incompatible CNI versions")
            .details(format!("config is {text:?}, plugin supports [{spoken}]"))
    })
}

/// Both keys exist in the wild: SPEC 1.1.0 as tagged says `cni.dev/attachments`, later texts and libcni
/// `cni.dev/valid-attachments`. `null` means that nothing is valid.
fn attachments(fields: &mut Fields) -> Result<Option<Vec<Attachment>>, CniError> {
    let mut found = None;
    for key in ["cni.dev/attachments", "cni.dev/valid-attachments"] {
        let path = fields.path_of(key);
        let mut list = Vec::new();
        let items = fields.take_objects(key)?;
        if items.is_empty() {
            continue;
        }
        for mut item in items {
            let container = item.take_text("containerID")?.and_then(|text| ContainerId::new(&text));
            let ifname = item.take_text("ifname")?.and_then(|text| IfName::new(text).ok());
            let (Some(container), Some(ifname)) = (container, ifname) else {
                return Err(CniError::invalid_field(
                    &path,
                    "an incomplete entry",
                    "{containerID, ifname} in each entry",
                ));
            };
            list.push(Attachment::new(container, ifname));
        }
        found = Some(list);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: &Value) -> Result<NetConf, CniError> {
        NetConf::parse(value.to_string().as_bytes())
    }

    #[test]
    fn common_fields_are_taken_and_the_rest_is_left() {
        let conf = parse(&json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "netd-cni", "bridge": "br7",
            "capabilities": {"portMappings": true}, "disableGC": "true", "prevResult": {"ips": []}}))
        .unwrap();
        assert_eq!((conf.version, conf.name.as_str(), conf.plugin.as_str()), (SpecVersion::V1_0_0, "cbr0", "netd-cni"));
        assert!(conf.prev_result.is_some());
        assert_eq!(Value::Object(conf.fields.rest()), json!({"bridge": "br7"}));
    }

    #[test]
    fn checks_come_in_the_order_of_skel() {
        for (text, code, msg) in [
            ("{", Code::Decode, "error unmarshall network config"),
            ("[]", Code::Decode, "error unmarshall network config"),
            ("", Code::Decode, "error unmarshall network config"),
            (r#"{"cniVersion":"9.9.9"}"#, Code::InvalidConfig, "missing network name"),
            (r#"{"name":"a/b"}"#, Code::InvalidConfig, "invalid characters found in network name"),
            (r#"{"name":7}"#, Code::InvalidConfig, "name: 7"),
            (r#"{"name":"x","cniVersion":"9.9.9"}"#, Code::IncompatibleVersion, "incompatible CNI versions"),
        ] {
            let error = NetConf::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.code, code, "{text}");
            assert!(error.msg.contains(msg), "{text}: {error}");
        }
        assert_eq!(NetConf::parse(br#"{"name":"x"}"#).unwrap().version, SpecVersion::V0_1_0);
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        let deep = format!("{}{}", r#"{"name":"x","a":"#, "[".repeat(100_000));
        assert_eq!(NetConf::parse(deep.as_bytes()).unwrap_err().code, Code::Decode);
    }

    #[test]
    fn either_key_lists_the_valid_attachments() {
        let entry = json!([{"containerID": "c1", "ifname": "eth0"}]);
        for key in ["cni.dev/attachments", "cni.dev/valid-attachments"] {
            let conf = parse(&json!({"name": "x", key: entry})).unwrap();
            assert_eq!(conf.valid_attachments.unwrap().len(), 1, "{key}");
        }
        let none = json!({"name": "x", "cni.dev/valid-attachments": null});
        assert_eq!(parse(&none).unwrap().valid_attachments, None);
        let broken = json!({"name": "x", "cni.dev/attachments": [{"containerID": "c1"}]});
        assert_eq!(parse(&broken).unwrap_err().code, Code::InvalidConfig);
    }
}
