//! Settings that kube-proxy has as well: its flags, its configuration file, its defaults.
//!
//! Pure. Invariants: a value is found by its field whether a flag or the file gave it, and is named as it was given; with a
//! file the flags of its fields do not count, as for kube-proxy, but for the node's name and the log; whatever is set and
//! has no effect is reported.

pub(crate) mod document;
mod field;
pub(crate) mod fields;
pub(crate) mod flags;

use std::collections::BTreeMap;

use cluster::Problem;
use netstate::Prefix;

use self::document::Document;
use self::field::{Field, Served};
use self::fields::{FIELDS, path};

/// Values that flags give, by the key of their field.
pub(crate) type Given = BTreeMap<&'static str, String>;

/// Fields whose flag counts beside a file.
const BESIDE_A_FILE: [&str; 5] = [path::MASTER, path::HOSTNAME, path::LOG_FORMAT, path::VERBOSITY, path::MODULES];

/// Defaults of this program where it does not stand in for kube-proxy: nothing is served to other hosts, parameters of
/// the whole host stay as they are, and the log has the form that its reader can use.
const OWN_DEFAULTS: [(&str, &str); 7] = [
    (path::LOG_FORMAT, "auto"),
    (path::HEALTHZ, "127.0.0.1:10256"),
    (path::OOM_SCORE, ""),
    (path::MAX_PER_CORE, "0"),
    (path::MIN, "0"),
    (path::ESTABLISHED, "0s"),
    (path::CLOSE_WAIT, "0s"),
];

/// A value and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    text: String,
    by_flag: bool,
}

/// The settings; see the module's text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    values: BTreeMap<&'static str, Setting>,
    as_kube_proxy: bool,
}

/// What an operator should know of settings that have no effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Notes {
    /// Something is not as it was asked for.
    pub(crate) warnings: Vec<String>,
    /// Nothing has to be done for it.
    pub(crate) remarks: Vec<String>,
}

impl Notes {
    /// Writes them into the log.
    pub(crate) fn log(&self) {
        self.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        self.remarks.iter().for_each(|remark| tracing::info!("{remark}"));
    }
}

impl Field {
    /// What the field is found by: its place in a file, or its flag.
    pub(crate) const fn key(&self) -> &'static str {
        if self.path.is_empty() { self.flag } else { self.path }
    }
}

impl Settings {
    /// Puts flags and file together; with `as_kube_proxy`, or a file, kube-proxy's defaults count.
    pub(crate) fn new(given: Given, file: Option<&Document>, as_kube_proxy: bool) -> (Self, Notes) {
        let mut notes = Notes::default();
        let mut values = BTreeMap::new();
        let from_file = file.iter().flat_map(|file| &file.values);
        values.extend(from_file.map(|(path, text)| (*path, Setting { text: text.clone(), by_flag: false })));
        for (key, text) in given {
            if file.is_none() || BESIDE_A_FILE.contains(&key) {
                values.insert(key, Setting { text, by_flag: true });
            } else {
                let flag = field(key).map_or(key, |field| field.flag);
                notes.warnings.push(format!("--{flag} is ignored: with --config the file says it"));
            }
        }
        for path in file.iter().flat_map(|file| &file.unknown) {
            notes.warnings.push(format!("{path} is ignored: kube-proxy has no such field"));
        }
        let settings = Self { values, as_kube_proxy: as_kube_proxy || file.is_some() };
        settings.note_unserved(&mut notes);
        (settings, notes)
    }

    fn note_unserved(&self, notes: &mut Notes) {
        for (field, setting) in self.given() {
            let name = self.name(field.key());
            if setting.text == field.default || matches!(setting.text.as_str(), "" | "0" | "0s" | "false") {
                continue;
            }
            match field.served {
                Served::Missing(why) => notes.warnings.push(format!("{name}: {} has no effect: {why}", setting.text)),
                Served::Needless(why) => notes.remarks.push(format!("{name}: {} changes nothing: {why}", setting.text)),
                Served::Start(_) | Served::Live | Served::Only(..) => {}
            }
        }
    }

    fn given(&self) -> impl Iterator<Item = (&'static Field, &Setting)> {
        FIELDS.iter().filter_map(|field| Some((field, self.values.get(field.key())?)))
    }

    /// What is wrong with the values: their form, or that they cannot be done here.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (field, setting) in self.given() {
            let (name, text) = (self.name(field.key()), &setting.text);
            if let Err(accepted) = field.form.check(text) {
                problems.push(Problem::new(name, format!("{text:?}"), accepted));
            } else if let Served::Only(words, why) = field.served
                && !words.contains(&text.as_str())
            {
                let accepted: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
                problems.push(Problem::new(name, format!("{text:?} cannot be done: {why}"), accepted.join(", ")));
            }
        }
        problems
    }

    /// The networks of a list; what is none is reported by its form.
    pub(crate) fn networks(&self, key: &str) -> Vec<Prefix> {
        self.text(key).split(',').filter_map(|word| word.trim().parse().ok()).collect()
    }

    /// The text of a field, or of its default.
    pub(crate) fn text(&self, key: &str) -> &str {
        match self.values.get(key) {
            Some(setting) => &setting.text,
            None => self.default(key),
        }
    }

    /// Whether somebody gave the field a value.
    pub(crate) fn is_given(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Whether the command line gave the field its value.
    pub(crate) fn is_by_flag(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|setting| setting.by_flag)
    }

    fn default(&self, key: &str) -> &'static str {
        let own = own_default(key).filter(|_| !self.as_kube_proxy);
        own.unwrap_or_else(|| field(key).map_or("", |field| field.default))
    }

    /// How whoever gave the field its value knows it: `--ipvs-scheduler`, or `ipvs.scheduler` in a file.
    pub(crate) fn name(&self, key: &str) -> String {
        match field(key) {
            Some(field) if !field.flag.is_empty() && (self.is_by_flag(key) || !self.as_kube_proxy) => {
                format!("--{}", field.flag)
            }
            Some(field) => field.key().to_owned(),
            None => key.to_owned(),
        }
    }

    /// The names of fields whose values differ in `other`, and what takes a new start among them, with the reason.
    pub(crate) fn differences(&self, other: &Self) -> (Vec<String>, Vec<String>) {
        let differs = |field: &&Field| self.text(field.key()) != other.text(field.key());
        let differing: Vec<&Field> = FIELDS.iter().filter(differs).collect();
        let names = differing.iter().map(|field| other.name(field.key())).collect();
        let at_start = differing.iter().filter_map(|field| match field.served {
            Served::Start(why) => Some(format!("{}: {why}", other.name(field.key()))),
            _ => None,
        });
        (names, at_start.collect())
    }

    /// The settings as the text of a configuration file.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub(crate) fn write(&self) -> anyhow::Result<String> {
        Ok(document::write(|field| self.text(field.key()).to_owned())?)
    }
}

fn own_default(key: &str) -> Option<&'static str> {
    OWN_DEFAULTS.iter().find(|(own, _)| *own == key).map(|(_, text)| *text)
}

fn field(key: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.key() == key)
}

#[cfg(test)]
mod tests;
