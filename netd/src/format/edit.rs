//! Changes to the text of a net-conf, member by member.
//!
//! Invariant: what is not named stays as it was written, in its place; a name is found in any case, as flannel finds it.

use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::go_json::Object;
use cluster::Problem;

/// Names from a net-conf's top to what is changed; flannel has two.
const DEPTH: usize = 8;

/// One change, as it is typed: `Backend.MTU=1400`; nothing behind the equals sign removes the member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change<'a> {
    path: Vec<&'a str>,
    value: &'a str,
}

impl<'a> Change<'a> {
    /// Reads what was typed.
    ///
    /// # Errors
    /// When it is no change.
    pub(crate) fn parse(text: &'a str) -> Result<Self, Problem> {
        let accepted = "FIELD=VALUE such as Backend.MTU=1400, or FIELD= to remove it";
        let refuse = || Problem::new("change", format!("{text:?}"), accepted);
        let (path, value) = text.split_once('=').ok_or_else(refuse)?;
        let path: Vec<&str> = path.trim().split('.').collect();
        if path.len() > DEPTH || path.iter().any(|name| name.is_empty()) {
            Err(refuse())
        } else {
            Ok(Self { path, value: value.trim() })
        }
    }

    /// `text` with this change.
    ///
    /// # Errors
    /// When `text` is no object, or the path leads into something that is none.
    pub(crate) fn apply(&self, text: &str) -> Result<String, Problem> {
        let Some((last, above)) = self.path.split_last() else { return Ok(text.to_owned()) };
        let changed = set(text, above, last, self.value)?;
        // A value that is read by itself may be nested too deeply where it stands now.
        match serde_json::from_str::<Value>(&changed) {
            Ok(_) => Ok(changed),
            Err(error) => Err(Problem::new((*last).to_owned(), error.to_string(), "a value that is less nested")),
        }
    }
}

fn set(text: &str, above: &[&str], last: &str, value: &str) -> Result<String, Problem> {
    let invalid =
        |error: serde_json::Error| Problem::new(above.first().unwrap_or(&last).to_owned(), error.to_string(), "");
    let mut object =
        Object::parse(text).map_err(|error| Problem::new("net-conf", error.to_string(), "a JSON object"))?;
    let Some((first, below)) = above.split_first() else {
        object.set(last, raw(value).map_err(invalid)?);
        return Ok(object.render());
    };
    let inner = object.get(first).filter(|inner| inner.get() != "null");
    let inner = set(inner.as_deref().map_or("{}", RawValue::get), below, last, value)?;
    object.set(first, Some(RawValue::from_string(inner).map_err(invalid)?));
    Ok(object.render())
}

/// JSON as it is typed, and text without its quotes.
fn raw(value: &str) -> Result<Option<Box<RawValue>>, serde_json::Error> {
    if value.is_empty() {
        return Ok(None);
    }
    RawValue::from_string(value.to_owned()).or_else(|_| to_raw_value(value)).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(text: &str, change: &str) -> String {
        Change::parse(change).unwrap().apply(text).unwrap()
    }

    #[test]
    fn members_are_changed_in_place_and_the_rest_stays() {
        let text = r#"{"network":"172.7.0.0/16", "Extra": [1, 2],"Backend":{"Type":"vxlan","mtu":1400}}"#;
        for (change, result) in [
            (
                "Network=10.5.0.0/16",
                r#"{"network":"10.5.0.0/16","Extra":[1, 2],"Backend":{"Type":"vxlan","mtu":1400}}"#,
            ),
            ("Backend.MTU=1300", r#"{"network":"172.7.0.0/16","Extra":[1, 2],"Backend":{"Type":"vxlan","mtu":1300}}"#),
            (
                "backend.VNI=7",
                r#"{"network":"172.7.0.0/16","Extra":[1, 2],"Backend":{"Type":"vxlan","mtu":1400,"VNI":7}}"#,
            ),
            ("Backend.MTU=", r#"{"network":"172.7.0.0/16","Extra":[1, 2],"Backend":{"Type":"vxlan"}}"#),
            ("Extra=", r#"{"network":"172.7.0.0/16","Backend":{"Type":"vxlan","mtu":1400}}"#),
        ] {
            assert_eq!(edited(text, change), result, "{change}");
        }
        assert_eq!(edited("{}", "Backend.Type=host-gw"), r#"{"Backend":{"Type":"host-gw"}}"#);
        assert_eq!(edited(r#"{"Backend":null}"#, "Backend.GBP=true"), r#"{"Backend":{"GBP":true}}"#);
        assert_eq!(edited(r#"{"A":1,"a":2,"B":3}"#, "A=9"), r#"{"A":9,"B":3}"#);
    }

    #[test]
    fn what_nobody_could_read_again_is_refused() {
        let deep = format!("Backend.{}A=1", "A.".repeat(DEPTH));
        assert!(Change::parse(&deep).is_err());
        let nested = format!("Backend.A={}{}", "[".repeat(127), "]".repeat(127));
        let error = Change::parse(&nested).unwrap().apply("{}").unwrap_err();
        assert!(error.to_string().contains("less nested"), "{error}");
    }

    #[test]
    fn what_is_no_change_is_refused() {
        for text in ["MTU", "=1", "Backend..MTU=1", "Backend.=1", ""] {
            assert!(Change::parse(text).is_err(), "{text}");
        }
        let error = Change::parse("Network.X=1").unwrap().apply(r#"{"Network":"172.7.0.0/16"}"#).unwrap_err();
        assert!(error.to_string().contains("a JSON object"), "{error}");
        assert!(Change::parse("A=1").unwrap().apply("junk").is_err());
    }
}
