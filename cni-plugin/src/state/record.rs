//! What a record says of an attachment: what ADD did, kept for DEL, GC and a second ADD.
//!
//! Invariant: nothing depends on it: a record that is empty or junk only means that DEL searches instead of knowing where
//! things are.

use std::net::IpAddr;

pub(crate) use kernel::sysctl::boot_id;
use netstate::nft::ElementKey;
use netstate::{IfName, MacAddr};
use serde_json::{Value, json};

use crate::plan::hostports::keys;
use crate::protocol::fields::Fields;

/// The most that is read of a record, in bytes.
pub(super) const RECORD_MAX: u64 = 64 * 1024;

/// What is known of an attachment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The boot that the attachment was made in: after another one nothing of it but files can exist.
    pub boot: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports of the host that lead to it.
    pub ports: Ports,
    /// Its port of the bridge is guarded against frames from other hardware addresses than this one.
    pub guarded: Option<MacAddr>,
    /// What it sends goes over an `ifb` device.
    pub ifb: bool,
    /// The link of this host through which it is reached, when that is not its bridge.
    pub via: Option<IfName>,
}

impl Record {
    /// True when the node was started anew since the attachment was made.
    #[must_use]
    pub fn is_of_earlier_boot(&self) -> bool {
        let boot = boot_id();
        !boot.is_empty() && !self.boot.is_empty() && self.boot != boot
    }
}

/// What is known of an attachment's host ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Ports {
    /// It has none.
    #[default]
    None,
    /// It has some: the record is of the form that did not say which, `"ports": true`.
    Unlisted,
    /// It has these, by their keys in the table.
    Keys(Vec<ElementKey>),
}

impl Ports {
    /// These and `others`.
    #[must_use]
    pub fn and(self, others: Self) -> Self {
        match (self, others) {
            (Self::None, ports) | (ports, Self::None) => ports,
            (Self::Keys(keys), Self::Keys(others)) => Self::Keys([keys, others].concat()),
            (Self::Unlisted, _) | (_, Self::Unlisted) => Self::Unlisted,
        }
    }
}

/// The text of `record`.
pub(super) fn text_of(record: &Record) -> String {
    let addresses: Vec<String> = record.addresses.iter().map(IpAddr::to_string).collect();
    let mut object = json!({"boot": record.boot, "addresses": addresses, "ports": ports(&record.ports),
                            "guarded": record.guarded.map(|mac| mac.to_string())});
    if let Some(map) = object.as_object_mut() {
        if record.ifb {
            map.insert("ifb".to_owned(), Value::Bool(true));
        }
        if let Some(via) = &record.via {
            map.insert("via".to_owned(), json!(via.as_str()));
        }
    }
    object.to_string()
}

/// Reads a text; `None` when it is empty or junk.
pub(super) fn parse(text: &str) -> Option<Record> {
    let value: Value = serde_json::from_str(text).ok()?;
    let mut fields = Fields::of(value, "record").ok()?;
    let addresses = fields.take_texts("addresses").ok()?.iter().map(|a| a.parse().ok()).collect::<Option<_>>()?;
    let ports = match fields.take("ports").ok()? {
        None | Some(Value::Bool(false)) => Ports::None,
        Some(Value::Array(keys)) => {
            let keys = keys.iter().map(|key| key.as_str().and_then(keys::parse)).collect::<Option<Vec<_>>>();
            keys.map_or(Ports::Unlisted, Ports::Keys)
        }
        Some(_) => Ports::Unlisted,
    };
    let guarded = fields.take_parsed("guarded", "a hardware address").ok()?;
    let via = fields.take_parsed("via", "a link").ok()?;
    let ifb = fields.take_bool("ifb").ok()?.unwrap_or(false);
    Some(Record { boot: fields.take_text("boot").ok()??, addresses, ports, guarded, ifb, via })
}

fn ports(ports: &Ports) -> Value {
    match ports {
        Ports::None => Value::Bool(false),
        Ports::Unlisted => Value::Bool(true),
        Ports::Keys(keys) => keys.iter().map(keys::text).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_of_every_form_are_known() {
        let ports = |text: &str| parse(&format!(r#"{{"boot":"b","addresses":[],"ports":{text}}}"#)).unwrap().ports;
        assert_eq!(ports("false"), Ports::None);
        assert_eq!(ports("true"), Ports::Unlisted);
        assert_eq!(ports("[]"), Ports::Keys(Vec::new()));
        assert_eq!(ports(r#"["ports4 tcp 8080"]"#), Ports::Keys(vec![keys::parse("ports4 tcp 8080").unwrap()]));
        for junk in [r#"["ports4 tcp"]"#, "[7]", "7", r#""x""#] {
            assert_eq!(ports(junk), Ports::Unlisted, "what cannot be read is looked for");
        }
        assert_eq!(parse(r#"{"boot":"b","addresses":[]}"#).unwrap().ports, Ports::None);
    }

    #[test]
    fn ports_of_two_records_are_all_known_or_all_searched_for() {
        let keys = |text: &str| Ports::Keys(vec![keys::parse(text).unwrap()]);
        assert_eq!(Ports::None.and(Ports::None), Ports::None);
        assert_eq!(keys("ports4 tcp 1").and(Ports::None), keys("ports4 tcp 1"));
        assert_eq!(Ports::Unlisted.and(keys("ports4 tcp 1")), Ports::Unlisted);
        let both = keys("ports4 tcp 1").and(keys("ports4 tcp 2"));
        assert!(matches!(both, Ports::Keys(keys) if keys.len() == 2));
    }
}
