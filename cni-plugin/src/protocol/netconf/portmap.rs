//! Options of host ports: of the `portmap` name (plugins/meta/portmap) and of the native configuration.

use super::conditions::Conditions;
use crate::protocol::error::CniError;
use crate::protocol::fields::{Fields, unsupported};

/// When the source of traffic to a host port is rewritten to this node's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snat {
    /// Never (`snat: false`): Pods and the node itself cannot use the port.
    Never,
    /// Where the answer would otherwise not come back this way: from Pods of this node and from 127.0.0.1.
    WhereNeeded,
    /// Always (`masqAll: true`).
    Always,
}

/// How host ports are opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortmapConf {
    /// See [`Snat`].
    pub snat: Snat,
    /// Bit of the packet mark that says "rewrite the source", 0 to 31.
    pub mark_bit: u8,
    /// Whom the ports are open to.
    pub conditions: Conditions,
}

impl PortmapConf {
    /// The mark's bit as a number.
    #[must_use]
    pub fn mark(&self) -> u32 {
        1_u32.checked_shl(u32::from(self.mark_bit)).unwrap_or(0)
    }

    /// Takes the options out of `fields`.
    ///
    /// # Errors
    /// Code 7 for an invalid value, 2 for an option that is not honoured: host ports are nftables only.
    pub fn take(fields: &mut Fields) -> Result<Self, CniError> {
        if let Some(backend) = fields.take_text("backend")?.filter(|b| !matches!(b.as_str(), "" | "nftables")) {
            return Err(unsupported(&fields.path_of("backend"), &backend).details("accepted is nftables"));
        }
        if let Some(chain) = fields.take_text("externalSetMarkChain")?.filter(|chain| !chain.is_empty()) {
            let why = "host ports are in nftables, which has no chains of iptables to go through: use markMasqBit";
            return Err(unsupported(&fields.path_of("externalSetMarkChain"), &chain).details(why));
        }
        let conditions = Conditions::take(fields)?;
        let mark_bit = fields.take_number("markMasqBit", 31)?.and_then(|bit| u8::try_from(bit).ok()).unwrap_or(13);
        let snat = match (fields.take_bool("snat")?.unwrap_or(true), fields.take_bool("masqAll")?.unwrap_or(false)) {
            (false, _) => Snat::Never,
            (true, false) => Snat::WhereNeeded,
            (true, true) => Snat::Always,
        };
        Ok(Self { snat, mark_bit, conditions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Code;
    use serde_json::json;

    #[test]
    fn options_are_honoured_or_refused() {
        let parse = |value| {
            let mut fields = Fields::of(value, "").unwrap();
            let conf = PortmapConf::take(&mut fields)?;
            fields.finish().map(|()| conf)
        };
        assert_eq!(
            parse(json!({})).unwrap(),
            PortmapConf { snat: Snat::WhereNeeded, mark_bit: 13, conditions: Conditions::default() }
        );
        let conf = parse(json!({"snat": false, "backend": "nftables", "markMasqBit": 7})).unwrap();
        assert_eq!(conf, PortmapConf { snat: Snat::Never, mark_bit: 7, conditions: Conditions::default() });
        assert_eq!(parse(json!({"masqAll": true})).unwrap().snat, Snat::Always);
        for value in [
            json!({"backend": "iptables"}),
            json!({"conditionsV4": ["-s", "10.0.0.0/8"]}),
            json!({"externalSetMarkChain": "X"}),
        ] {
            assert_eq!(parse(value.clone()).unwrap_err().code, Code::UnsupportedField, "{value}");
        }
        assert_eq!(parse(json!({"markMasqBit": 32})).unwrap_err().code, Code::InvalidConfig);
    }
}
