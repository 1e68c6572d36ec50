//! The configuration of the `portmap` name: host ports as a chained plugin (plugins/meta/portmap).

use crate::error::CniError;
use crate::fields::{Fields, unsupported};

/// How host ports are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortmapConf {
    /// Rewrite the source of traffic that would otherwise be answered past this node: hairpin and from 127.0.0.1.
    pub snat: bool,
}

impl PortmapConf {
    /// Reads `fields`.
    ///
    /// # Errors
    /// Code 7 for an invalid value, 2 for an option that is not honoured: host ports are nftables only.
    pub fn parse(mut fields: Fields) -> Result<Self, CniError> {
        if let Some(backend) = fields.take_text("backend")?.filter(|b| !matches!(b.as_str(), "" | "nftables")) {
            return Err(unsupported("backend", &backend).details("accepted is nftables"));
        }
        // A bit of the packet mark that the iptables rules use; the nftables rules need none.
        fields.take_number("markMasqBit", 31)?;
        for key in ["conditionsV4", "conditionsV6"] {
            if !fields.take_texts(key)?.is_empty() {
                return Err(unsupported(key, "set"));
            }
        }
        let snat = fields.take_bool("snat")?.unwrap_or(true);
        if fields.take_bool("masqAll")? == Some(true) {
            return Err(unsupported("masqAll", "true"));
        }
        fields.finish()?;
        Ok(Self { snat })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use serde_json::json;

    #[test]
    fn options_are_honoured_or_refused() {
        let parse = |value| PortmapConf::parse(Fields::of(value, "").unwrap());
        assert!(parse(json!({})).unwrap().snat);
        assert!(!parse(json!({"snat": false, "backend": "nftables", "markMasqBit": 13})).unwrap().snat);
        for value in [
            json!({"backend": "iptables"}),
            json!({"conditionsV4": ["-s", "10.0.0.0/8"]}),
            json!({"masqAll": true}),
            json!({"externalSetMarkChain": "X"}),
        ] {
            assert_eq!(parse(value.clone()).unwrap_err().code, Code::UnsupportedField, "{value}");
        }
        assert_eq!(parse(json!({"markMasqBit": 32})).unwrap_err().code, Code::InvalidConfig);
    }
}
