//! `Object`: a JSON object read as Go's `encoding/json` reads one into a struct.
//!
//! flannel's formats are what Go makes of them, so they are matched here: keys in any case, the last of several
//! spellings wins, unknown keys are ignored (but named), `null` leaves a field at its default. A value of the wrong
//! type is a problem of its field, never of the whole object.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use cluster::Problem;

/// The accepted form of a switch.
pub(crate) const BOOL: &str = "true or false";

/// The members that have not been taken yet, in the order of the text, of which they are parts as far as they were not
/// changed: a node reads one text per lease.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    path: String,
    members: Vec<(Cow<'a, str>, Cow<'a, RawValue>)>,
}

/// A member's name: a part of the text unless something in it is escaped.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Object<'a> {
    /// Reads a whole text that must be one object; anything behind it is an error.
    ///
    /// # Errors
    /// What is wrong with the text, with line and column.
    pub(crate) fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Takes the member `name`; a value of the wrong type is added to `problems` and counts as absent.
    pub(crate) fn take<T: DeserializeOwned>(
        &mut self,
        name: &str,
        accepted: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<T> {
        let raw = self.take_raw(name).filter(|raw| raw.get() != "null")?;
        let value = serde_json::from_str(raw.get());
        value.map_err(|_| problems.push(Problem::new(self.path_of(name), raw.get(), accepted))).ok()
    }

    /// Takes the member `name` as an object of its own.
    pub(crate) fn take_object(&mut self, name: &str, problems: &mut Vec<Problem>) -> Option<Self> {
        let raw = self.take_raw(name).filter(|raw| raw.get() != "null")?;
        let parsed = match &raw {
            Cow::Borrowed(raw) => Self::parse(raw.get()),
            Cow::Owned(raw) => Object::parse(raw.get()).map(Object::into_owned),
        };
        let path = self.path_of(name);
        match parsed {
            Ok(object) => Some(Self { path, ..object }),
            Err(_) => {
                problems.push(Problem::new(path, raw.get(), "an object {...}"));
                None
            }
        }
    }

    /// The same apart from the text.
    fn into_owned(self) -> Object<'static> {
        let owned =
            |(name, value): (Cow<str>, Cow<RawValue>)| (Cow::Owned(name.into_owned()), Cow::Owned(value.into_owned()));
        Object { path: self.path, members: self.members.into_iter().map(owned).collect() }
    }

    /// Takes the member `name` as it was written, `null` included; the last spelling wins.
    pub(crate) fn take_raw(&mut self, name: &str) -> Option<Cow<'a, RawValue>> {
        self.members.extract_if(.., |(key, _)| key.eq_ignore_ascii_case(name)).last().map(|(_, raw)| raw)
    }

    /// The member `name` as it was written; it stays.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<Box<RawValue>> {
        let found = self.members.iter().rfind(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone().into_owned())
    }

    /// Makes `value` the only member of this name, where the first of that name stood, or removes the name.
    pub(crate) fn set(&mut self, name: &str, value: Option<Box<RawValue>>) {
        let first = self.members.iter().position(|(key, _)| key.eq_ignore_ascii_case(name));
        let name = first.and_then(|at| self.members.get(at)).map_or(name, |(key, _)| key.as_ref()).to_owned();
        self.members.retain(|(key, _)| !key.eq_ignore_ascii_case(&name));
        if let Some(value) = value {
            let at = first.unwrap_or(self.members.len()).min(self.members.len());
            self.members.insert(at, (Cow::Owned(name), Cow::Owned(value)));
        }
    }

    /// The text of one object with the members that nobody took.
    #[must_use]
    pub(crate) fn render(&self) -> String {
        let member =
            |(key, value): &(Cow<str>, Cow<RawValue>)| format!("{}:{}", Value::from(key.as_ref()), value.get());
        let members: Vec<String> = self.members.iter().map(member).collect();
        format!("{{{}}}", members.join(","))
    }

    /// The full name of member `name`: `Backend.VNI`.
    #[must_use]
    pub(crate) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The full names of the members that nobody took.
    #[must_use]
    pub(crate) fn rest(&self) -> Vec<String> {
        self.members.iter().map(|(key, _)| self.path_of(key)).collect()
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object {...}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
        let mut members = Vec::new();
        while let Some((Name(name), value)) = map.next_entry::<_, &RawValue>()? {
            members.push((name, Cow::Borrowed(value)));
        }
        Ok(Object { path: String::new(), members })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_in_any_case_and_the_last_spelling_wins() {
        let mut object = Object::parse(r#"{"network":"a","NETWORK":"b","Other":1}"#).unwrap();
        let mut problems = Vec::new();
        assert_eq!(object.take::<String>("Network", "text", &mut problems).as_deref(), Some("b"));
        assert_eq!(object.rest(), ["Other"]);
        assert!(problems.is_empty());
    }

    #[test]
    fn null_is_absent_and_a_wrong_type_is_the_fields_problem() {
        let mut object = Object::parse(r#"{"SubnetLen":"24","Backend":{"vni":-1,"Port":null}}"#).unwrap();
        let mut problems = Vec::new();
        assert_eq!(object.take::<u8>("SubnetLen", "a number", &mut problems), None);
        let mut backend = object.take_object("Backend", &mut problems).unwrap();
        assert_eq!(backend.take::<u32>("VNI", "1 to 16777215", &mut problems), None);
        assert_eq!(backend.take::<u16>("Port", "a port", &mut problems), None);
        let texts: Vec<String> = problems.iter().map(Problem::to_string).collect();
        assert_eq!(texts, [r#"SubnetLen: "24"; accepted: a number"#, "Backend.VNI: -1; accepted: 1 to 16777215"]);
    }

    #[test]
    fn what_is_no_single_object_is_refused() {
        for bad in ["", "[]", "null", "{} x", "{\"a\":}", "{\"a\":1", "\u{0}"] {
            assert!(Object::parse(bad).is_err(), "{bad:?}");
        }
    }
}
