//! VERSION: which versions of the specification are spoken. Reads nothing, not even standard input.

use serde_json::json;

use crate::version::SpecVersion;

/// The answer, as skel prints it.
#[must_use]
pub fn version() -> String {
    let spoken = SpecVersion::ALL.map(SpecVersion::as_str);
    format!("{}\n", json!({"cniVersion": SpecVersion::NEWEST.as_str(), "supportedVersions": spoken}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        assert_eq!(
            version(),
            "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
        );
    }
}
