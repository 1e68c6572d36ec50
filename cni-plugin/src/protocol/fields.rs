//! `Fields`: reads a JSON object of the configuration field by field.
//!
//! Invariants: keys match in any case, as Go's decoder matches them (containerd sends `HostPort`, CRI-O `hostPort`);
//! every error names the field by its path. A field that nobody took is an error with its key and value (code 2),
//! because an option that is silently ignored is a promise silently broken; for a name whose own plugin ignores such fields,
//! and for whose files that plugin was the judge, it is collected for one warning.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::protocol::error::{CniError, Code};

/// What becomes of fields that nobody takes: of one object and all within.
#[derive(Debug, Clone, Default)]
pub enum Unknown {
    /// An error.
    #[default]
    Refused,
    /// Their paths are collected.
    Ignored(Rc<RefCell<BTreeSet<String>>>),
}

impl Unknown {
    /// The paths that were collected.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        match self {
            Self::Refused => Vec::new(),
            Self::Ignored(paths) => paths.borrow().iter().cloned().collect(),
        }
    }
}

/// The fields of one object that have not been taken yet.
#[derive(Debug, Clone)]
pub struct Fields {
    path: String,
    map: Map<String, Value>,
    unknown: Unknown,
}

impl Fields {
    /// The fields of the outermost object.
    #[must_use]
    pub fn root(map: Map<String, Value>) -> Self {
        Self { path: String::new(), map, unknown: Unknown::Refused }
    }

    /// The fields of the object `value`, which stands at `path`.
    ///
    /// # Errors
    /// Code 7 when `value` is no object.
    pub fn of(value: Value, path: &str) -> Result<Self, CniError> {
        match value {
            Value::Object(map) => Ok(Self::at(path, map)),
            other => Err(CniError::invalid_field(path, &other.to_string(), "an object")),
        }
    }

    /// The fields of the object `map`, which stands at `path`.
    #[must_use]
    pub fn at(path: &str, map: Map<String, Value>) -> Self {
        Self { path: path.to_owned(), map, unknown: Unknown::Refused }
    }

    /// The same with `unknown` for what nobody takes.
    #[must_use]
    pub fn leaving(self, unknown: &Unknown) -> Self {
        Self { unknown: unknown.clone(), ..self }
    }

    /// The fields of the object `value`, which stands at `path` within this one.
    ///
    /// # Errors
    /// Code 7 when `value` is no object.
    pub fn within(&self, value: Value, path: &str) -> Result<Self, CniError> {
        Self::of(value, path).map(|fields| fields.leaving(&self.unknown))
    }

    /// The path of field `key`, from the outermost object.
    #[must_use]
    pub fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Takes `key`; `null` counts as absent.
    ///
    /// # Errors
    /// Code 7 when the key stands there in two spellings.
    pub fn take(&mut self, key: &str) -> Result<Option<Value>, CniError> {
        let found: Vec<String> = self.map.keys().filter(|k| k.eq_ignore_ascii_case(key)).cloned().collect();
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(self.map.remove(one).filter(|v| !v.is_null())),
            many => Err(CniError::invalid_field(&self.path_of(key), &many.join(" and "), "one spelling of the key")),
        }
    }

    /// Takes a boolean.
    ///
    /// # Errors
    /// Code 7 when the value is no boolean.
    pub fn take_bool(&mut self, key: &str) -> Result<Option<bool>, CniError> {
        let path = self.path_of(key);
        self.take(key)?
            .map(|v| v.as_bool().ok_or_else(|| CniError::invalid_field(&path, &v.to_string(), "true or false")))
            .transpose()
    }

    /// Takes a whole number from `0` to `max`.
    ///
    /// # Errors
    /// Code 7 when the value is no such number.
    pub fn take_number(&mut self, key: &str, max: u64) -> Result<Option<u64>, CniError> {
        let path = self.path_of(key);
        self.take(key)?
            .map(|v| {
                whole(&v).filter(|n| *n <= max).ok_or_else(|| {
                    CniError::invalid_field(&path, &v.to_string(), &format!("a whole number from 0 to {max}"))
                })
            })
            .transpose()
    }

    /// Takes a text.
    ///
    /// # Errors
    /// Code 7 when the value is no text.
    pub fn take_text(&mut self, key: &str) -> Result<Option<String>, CniError> {
        let path = self.path_of(key);
        match self.take(key)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(CniError::invalid_field(&path, &other.to_string(), "a text")),
        }
    }

    /// Takes a text that parses as `T`; the empty text counts as absent, as in Go's zero values.
    ///
    /// # Errors
    /// Code 7 with `accepted` when the text does not parse.
    pub fn take_parsed<T: FromStr>(&mut self, key: &str, accepted: &str) -> Result<Option<T>, CniError> {
        let path = self.path_of(key);
        self.take_text(key)?
            .filter(|text| !text.is_empty())
            .map(|text| text.parse().map_err(|_| CniError::invalid_field(&path, &format!("{text:?}"), accepted)))
            .transpose()
    }

    /// Takes an address.
    ///
    /// # Errors
    /// Code 7 when the value is no address.
    pub fn take_address(&mut self, key: &str) -> Result<Option<IpAddr>, CniError> {
        self.take_parsed(key, "an address such as 172.7.21.1 or fd00::1")
    }

    /// Takes an array; absent counts as empty.
    ///
    /// # Errors
    /// Code 7 when the value is no array.
    pub fn take_list(&mut self, key: &str) -> Result<Vec<Value>, CniError> {
        let path = self.path_of(key);
        match self.take(key)? {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(CniError::invalid_field(&path, &other.to_string(), "an array")),
        }
    }

    /// Takes an array of texts; absent counts as empty.
    ///
    /// # Errors
    /// Code 7 when the value is no array of texts.
    pub fn take_texts(&mut self, key: &str) -> Result<Vec<String>, CniError> {
        let path = self.path_of(key);
        let text = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(CniError::invalid_field(&path, &other.to_string(), "an array of texts")),
        };
        self.take_list(key)?.into_iter().map(text).collect()
    }

    /// Takes an array of objects; absent counts as empty.
    ///
    /// # Errors
    /// Code 7 when the value is no array of objects.
    pub fn take_objects(&mut self, key: &str) -> Result<Vec<Self>, CniError> {
        let path = self.path_of(key);
        let items = self.take_list(key)?.into_iter().enumerate();
        items.map(|(index, value)| self.within(value, &format!("{path}[{index}]"))).collect()
    }

    /// Takes an object.
    ///
    /// # Errors
    /// Code 7 when the value is no object.
    pub fn take_object(&mut self, key: &str) -> Result<Option<Self>, CniError> {
        let path = self.path_of(key);
        self.take(key)?.map(|value| self.within(value, &path)).transpose()
    }

    /// True when nothing is left to take.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// What has not been taken, as a JSON object.
    #[must_use]
    pub fn rest(self) -> Map<String, Value> {
        self.map
    }

    /// Ends the reading. Keys that start with `_` are comments.
    ///
    /// # Errors
    /// Code 2 when a field is left that nobody took and that is not ignored.
    pub fn finish(self) -> Result<(), CniError> {
        let mut left = self.map.iter().filter(|(key, value)| !key.starts_with('_') && !value.is_null());
        left.try_for_each(|(key, value)| self.leave(key, value))
    }

    /// Leaves `key` with its `value` to nobody.
    ///
    /// # Errors
    /// Code 2 unless it is ignored.
    pub fn leave(&self, key: &str, value: &Value) -> Result<(), CniError> {
        match &self.unknown {
            Unknown::Refused => Err(unsupported(&self.path_of(key), &value.to_string())),
            Unknown::Ignored(paths) => {
                paths.borrow_mut().insert(self.path_of(key));
                Ok(())
            }
        }
    }

    /// What becomes of fields that nobody takes.
    #[must_use]
    pub fn unknown(&self) -> &Unknown {
        &self.unknown
    }
}

/// Code 2: the configuration asks at `path` for something that this plugin does not do.
#[must_use]
pub(crate) fn unsupported(path: &str, value: &str) -> CniError {
    CniError::new(Code::UnsupportedField, format!("unsupported field in network configuration: {path}={value}"))
        .details("remove it, or correct its spelling; an option that cannot be honoured is refused, never ignored")
}

/// A JSON number as a whole number: libcni passes numbers through a float64.
pub(crate) fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let float = value.as_f64().filter(|f| f.fract() == 0.0 && (0.0..9e15).contains(f))?;
        format!("{float:.0}").parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::of(value, "ipam").unwrap()
    }

    #[test]
    fn keys_match_in_any_case_and_null_is_absent() {
        let mut f = fields(json!({"HostPort": 8080, "mtu": null}));
        assert_eq!(f.take_number("hostPort", 65535).unwrap(), Some(8080));
        assert_eq!(f.take_number("mtu", 65535).unwrap(), None);
        f.finish().unwrap();
    }

    #[test]
    fn fields_that_nobody_takes_are_collected_where_they_are_ignored() {
        let unknown = Unknown::Ignored(Rc::default());
        let value = json!({"a": 1, "_note": 1, "none": null, "in": {"b": [{"c": 2}]}});
        let mut fields = Fields::of(value, "").unwrap().leaving(&unknown);
        let mut inner = fields.take_object("in").unwrap().unwrap();
        inner.take_objects("b").unwrap().into_iter().try_for_each(Fields::finish).unwrap();
        inner.finish().unwrap();
        fields.finish().unwrap();
        assert_eq!(unknown.paths(), ["a", "in.b[0].c"]);
    }

    #[test]
    fn two_spellings_of_one_key_are_refused() {
        let error = fields(json!({"mtu": 1, "MTU": 2})).take("mtu").unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(error.msg.contains("ipam.mtu"), "{error}");
    }

    #[test]
    fn errors_name_path_value_and_accepted_form() {
        let error = fields(json!({"mtu": "big"})).take_number("mtu", 65535).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid network configuration: ipam.mtu: \"big\"; accepted is a whole number from 0 to 65535"
        );
        for (key, value) in [("mtu", json!(-1)), ("mtu", json!(1.5)), ("mtu", json!(70000)), ("mtu", json!([]))] {
            assert!(fields(json!({key: value})).take_number("mtu", 65535).is_err());
        }
        assert!(fields(json!({"x": 1})).take_bool("x").is_err());
        assert!(fields(json!({"x": [1]})).take_texts("x").is_err());
        assert!(fields(json!({"x": [1]})).take_objects("x").is_err());
        assert!(fields(json!({"x": "10.0.0"})).take_address("x").is_err());
    }

    #[test]
    fn numbers_that_went_through_a_float_are_whole() {
        assert_eq!(fields(json!({"mtu": 1450.0})).take_number("mtu", 65535).unwrap(), Some(1450));
        assert_eq!(fields(json!({"burst": 4294967295.0})).take_number("burst", u64::MAX).unwrap(), Some(4_294_967_295));
    }

    #[test]
    fn what_nobody_took_is_unsupported_and_named_with_its_value() {
        let error = fields(json!({"_comment": "ours", "vlna": 7})).finish().unwrap_err();
        assert_eq!(error.code, Code::UnsupportedField);
        assert!(error.msg.contains("ipam.vlna=7"), "{error}");
    }
}
