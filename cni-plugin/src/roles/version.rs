//! VERSION: which versions of the specification are spoken. Reads nothing, not even standard input.

use serde_json::json;

use crate::protocol::error::{CniError, Code};
use crate::protocol::version::SpecVersion;
use crate::roles::Role;

/// The versions that a plugin of `role` speaks; `None` is a binary under no plugin's name.
fn spoken(role: Option<&dyn Role>) -> Vec<&'static str> {
    let since = role.map_or(SpecVersion::V0_1_0, Role::since);
    SpecVersion::ALL.into_iter().filter(|version| *version >= since).map(SpecVersion::as_str).collect()
}

/// The answer, as skel prints it.
#[must_use]
pub(crate) fn version(role: Option<&dyn Role>) -> String {
    format!("{}\n", json!({"cniVersion": SpecVersion::NEWEST.as_str(), "supportedVersions": spoken(role)}))
}

/// Makes sure that a plugin of `role` speaks `version`.
///
/// # Errors
/// Code 1.
pub(crate) fn spoken_by(role: &dyn Role, version: SpecVersion) -> Result<(), CniError> {
    let spoken = spoken(Some(role));
    if spoken.contains(&version.as_str()) {
        return Ok(());
    }
    let details = format!("config is \"{version}\", plugin supports [{}]", spoken.join(" "));
    Err(CniError::new(Code::IncompatibleVersion, "incompatible CNI versions").details(details))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::PluginName;

    #[test]
    fn golden() {
        assert_eq!(
            version(None),
            "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
        );
    }

    #[test]
    fn limits_need_results_with_interfaces() {
        assert!(version(Some(PluginName::Bandwidth.role())).contains("[\"0.3.0\","));
        assert_eq!(
            spoken_by(PluginName::Bandwidth.role(), SpecVersion::V0_2_0).unwrap_err().code,
            Code::IncompatibleVersion
        );
        assert!(spoken_by(PluginName::Bandwidth.role(), SpecVersion::V0_3_0).is_ok());
        assert!(spoken_by(PluginName::Flannel.role(), SpecVersion::V0_1_0).is_ok());
    }
}
