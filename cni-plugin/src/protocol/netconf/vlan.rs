//! `vlan`, `vlanTrunk` and `preserveDefaultVlan`: which VLANs a Pod's port of the bridge carries.
//!
//! Invariant: an identifier is from 1 to 4094. The words of an error are the reference's, with the field in front.

use netstate::vlan::VLAN_MAX;
use netstate::{PortVlans, VlanMode};

use crate::protocol::error::CniError;
use crate::protocol::fields::Fields;

/// The VLAN of frames without a tag where only a trunk is asked for: every bridge's default.
const DEFAULT_VLAN: u16 = 1;

/// What a Pod's port carries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VlanConf {
    /// The VLAN that the Pod itself is in, without knowing it.
    pub native: Option<u16>,
    /// The VLANs of the Pod's port; empty on a bridge that does not look at VLANs.
    pub port: PortVlans,
    /// Besides these the port keeps the bridge's default VLAN.
    pub keeps_default: bool,
}

impl VlanConf {
    /// Takes the three options out of `fields`.
    ///
    /// # Errors
    /// Code 7 for an identifier or a range that is none.
    pub fn take(fields: &mut Fields) -> Result<Self, CniError> {
        let native = native(fields)?;
        let mut port = PortVlans::default();
        let path = fields.path_of("vlanTrunk");
        for mut item in fields.take_objects("vlanTrunk")? {
            let ids = trunk(&mut item).map_err(|why| bad_trunk(&path, why))?;
            item.finish()?;
            port.0.extend(ids.map(|id| (id, VlanMode::Tagged)));
        }
        if let Some(id) = native.or_else(|| (!port.0.is_empty()).then_some(DEFAULT_VLAN)) {
            port.0.insert(id, VlanMode::Native);
        }
        let keeps_default = fields.take_bool("preserveDefaultVlan")?.unwrap_or(false);
        Ok(Self { native, port, keeps_default })
    }

    /// True when the bridge must look at VLANs.
    #[must_use]
    pub fn is_used(&self) -> bool {
        !self.port.0.is_empty()
    }
}

fn native(fields: &mut Fields) -> Result<Option<u16>, CniError> {
    let path = fields.path_of("vlan");
    let Some(value) = fields.take("vlan")? else { return Ok(None) };
    let id = identifier(&value).ok_or_else(|| {
        let found = format!("invalid VLAN ID {value} (must be between 0 and {VLAN_MAX})");
        CniError::invalid_field(&path, &found, "a VLAN, or 0 for none")
    })?;
    Ok(Some(id).filter(|id| *id != 0))
}

fn bad_trunk(path: &str, why: &str) -> CniError {
    let accepted = format!("{{\"id\": 7}} or {{\"minID\": 7, \"maxID\": 9}} with identifiers from 1 to {VLAN_MAX}");
    CniError::invalid_field(path, &format!("failed to parse vlan trunks: {why}"), &accepted)
}

/// The identifiers of one entry: a range, a single one, or both.
fn trunk(item: &mut Fields) -> Result<impl Iterator<Item = u16> + use<>, &'static str> {
    let mut id = |key: &str, wrong: &'static str| match item.take(key) {
        Ok(None) => Ok(None),
        Ok(Some(value)) => identifier(&value).filter(|id| *id != 0).map(Some).ok_or(wrong),
        Err(_) => Err(wrong),
    };
    let first = id("minID", "incorrect trunk minID parameter")?;
    let last = id("maxID", "incorrect trunk maxID parameter")?;
    let single = id("id", "incorrect trunk id parameter")?;
    let range = match (first, last) {
        (Some(first), Some(last)) if first > last => return Err("minID is greater than maxID in trunk parameter"),
        (Some(first), Some(last)) => Some(first..=last),
        (None, None) => None,
        (None, _) => return Err("minID and maxID should be configured simultaneously, minID is missing"),
        (_, None) => return Err("minID and maxID should be configured simultaneously, maxID is missing"),
    };
    Ok(range.into_iter().flatten().chain(single))
}

/// A whole number from 0 to 4094; libcni passes numbers through a float64.
fn identifier(value: &serde_json::Value) -> Option<u16> {
    let number = crate::protocol::fields::whole(value)?;
    u16::try_from(number).ok().filter(|id| *id <= VLAN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::error::Code;
    use serde_json::{Value, json};

    fn take(value: Value) -> Result<VlanConf, CniError> {
        let mut fields = Fields::of(value, "delegate").unwrap();
        let conf = VlanConf::take(&mut fields)?;
        fields.finish().map(|()| conf)
    }

    #[test]
    fn ports_carry_what_the_options_say() {
        for (value, expected) in [
            (json!({}), ""),
            (json!({"vlan": 0, "vlanTrunk": []}), ""),
            (json!({"vlan": 100}), "100 native"),
            (json!({"vlan": 4094.0}), "4094 native"),
            (json!({"vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 210}]}), "1 native, 101 tagged, 200-210 tagged"),
            (json!({"vlan": 100, "vlanTrunk": [{"minID": 99, "maxID": 101}]}), "99 tagged, 100 native, 101 tagged"),
            (json!({"vlanTrunk": [{"minID": 7, "maxID": 9, "ID": 3}]}), "1 native, 3 tagged, 7-9 tagged"),
            (json!({"vlanTrunk": [{"minID": 1, "maxID": 4094}]}), "1 native, 2-4094 tagged"),
            (json!({"vlanTrunk": [{}]}), ""),
        ] {
            assert_eq!(take(value.clone()).unwrap().port.to_string(), expected, "{value}");
        }
        assert!(!take(json!({"vlan": 7})).unwrap().keeps_default);
        assert!(take(json!({"vlan": 7, "preserveDefaultVlan": true})).unwrap().keeps_default);
    }

    #[test]
    fn wrong_identifiers_have_the_references_words_and_the_field() {
        for (value, path, words) in [
            (json!({"vlan": 4095}), "delegate.vlan", "invalid VLAN ID 4095 (must be between 0 and 4094)"),
            (json!({"vlan": -100}), "delegate.vlan", "invalid VLAN ID -100 (must be between 0 and 4094)"),
            (json!({"vlan": "x"}), "delegate.vlan", "invalid VLAN ID"),
            (json!({"vlanTrunk": [{"minID": 0, "maxID": 9}]}), "delegate.vlanTrunk", "incorrect trunk minID parameter"),
            (json!({"vlanTrunk": [{"minID": 5000, "maxID": 9}]}), "delegate.vlanTrunk", "incorrect trunk minID"),
            (
                json!({"vlanTrunk": [{"minID": 9, "maxID": 4095}]}),
                "delegate.vlanTrunk",
                "incorrect trunk maxID parameter",
            ),
            (
                json!({"vlanTrunk": [{"minID": 9, "maxID": -1}]}),
                "delegate.vlanTrunk",
                "incorrect trunk maxID parameter",
            ),
            (json!({"vlanTrunk": [{"minID": 9, "maxID": 8}]}), "delegate.vlanTrunk", "minID is greater than maxID"),
            (json!({"vlanTrunk": [{"minID": 9}]}), "delegate.vlanTrunk", "simultaneously, maxID is missing"),
            (json!({"vlanTrunk": [{"maxID": 9}]}), "delegate.vlanTrunk", "simultaneously, minID is missing"),
            (json!({"vlanTrunk": [{"id": 4095}]}), "delegate.vlanTrunk", "incorrect trunk id parameter"),
            (json!({"vlanTrunk": [{"id": 0}]}), "delegate.vlanTrunk", "incorrect trunk id parameter"),
            (json!({"vlanTrunk": [{"id": 1.5}]}), "delegate.vlanTrunk", "incorrect trunk id parameter"),
            (json!({"vlanTrunk": {"id": 1}}), "delegate.vlanTrunk", "an array"),
        ] {
            let error = take(value).unwrap_err();
            assert_eq!(error.code, Code::InvalidConfig);
            assert!(error.msg.contains(path) && error.to_string().contains(words), "{error}");
        }
        let unknown = take(json!({"vlanTrunk": [{"id": 7, "max": 9}]})).unwrap_err();
        assert!(unknown.code == Code::UnsupportedField && unknown.msg.contains("vlanTrunk[0].max"), "{unknown}");
    }
}
