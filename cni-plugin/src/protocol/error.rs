//! `CniError`: what the runtime reads on standard output when a verb fails.
//!
//! Codes are those of SPEC "Error"; 100 and up are this plugin's own. Invariant: no rendered text contains the words by
//! which containerd (go-cni `isCNIErrNotFound` and its empty-namespace test) decides that a DEL failed only because
//! the object was gone: an error we report is one we want retried.

use serde_json::{Value, json};

use crate::protocol::version::SpecVersion;

/// The number of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 1: the configuration's version is not spoken, or does not have the verb.
    IncompatibleVersion,
    /// 2: the configuration asks for something this plugin does not do; the message names key and value.
    UnsupportedField,
    /// 3: the container is unknown or does not exist; the runtime need not clean up.
    ContainerUnknown,
    /// 4: `CNI_*` variables are missing or bad; the message names them.
    InvalidEnvironment,
    /// 5: reading or writing a file failed.
    Io,
    /// 6: standard input is no JSON object.
    Decode,
    /// 7: the configuration is invalid.
    InvalidConfig,
    /// 8: the network namespace is unusable.
    InvalidNamespace,
    /// 11: a passing condition; try again later.
    TryAgainLater,
    /// 50: STATUS: the plugin cannot serve ADD.
    NotAvailable,
    /// 51: STATUS: it cannot serve ADD, and Pods that exist may have lost connectivity.
    LimitedConnectivity,
    /// 100: the kernel refused an operation.
    Kernel,
    /// 101: this container already has this interface.
    AlreadyAttached,
    /// 102: CHECK found a difference.
    Differs,
}

impl Code {
    /// The number in the error object.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::ContainerUnknown => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::InvalidConfig => 7,
            Self::InvalidNamespace => 8,
            Self::TryAgainLater => 11,
            Self::NotAvailable => 50,
            Self::LimitedConnectivity => 51,
            Self::Kernel => 100,
            Self::AlreadyAttached => 101,
            Self::Differs => 102,
        }
    }
}

/// Why a verb failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { "; " })]
pub struct CniError {
    /// The number of the error.
    pub code: Code,
    /// What failed, on which object, in one line.
    pub msg: String,
    /// What the kernel or the file system said, and what to do next; may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    #[must_use]
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// Adds `details` after those that are there.
    #[must_use]
    pub fn details(mut self, details: impl AsRef<str>) -> Self {
        if !self.details.is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str(details.as_ref());
        self
    }

    /// Code 7 for the field at `path`.
    #[must_use]
    pub fn invalid_field(path: &str, found: &str, accepted: &str) -> Self {
        let msg = format!("invalid network configuration: {path}: {found}");
        Self::new(Code::InvalidConfig, msg).details(format!("accepted is {accepted}"))
    }

    /// Code 5 for a failed file operation.
    #[must_use]
    pub fn io(operation: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::new(Code::Io, format!("cannot {operation} {}", path.display())).details(error.to_string())
    }

    /// The error object, in the form of `version`.
    #[must_use]
    pub fn render(&self, version: SpecVersion) -> String {
        let mut object = json!({
            "cniVersion": version.as_str(),
            "code": self.code.number(),
            "msg": plain(&self.msg),
        });
        if !self.details.is_empty()
            && let Value::Object(map) = &mut object
        {
            map.insert("details".to_owned(), Value::String(plain(&self.details)));
        }
        format!("{object:#}\n")
    }
}

/// Phrases that containerd's DEL takes for "nothing to do", each with our words for it.
const TRAPS: [(&str, &str); 3] = [
    ("not found", "absent"),
    ("no such file or directory", "path is missing"),
    ("no such device", "device is missing"),
];

/// The longest text in an error object, in bytes: whatever a configuration says may be part of one.
const TEXT_MAX: usize = 4096;

/// `text` without the phrases of [`TRAPS`], in whatever case they stand, and not longer than [`TEXT_MAX`].
fn plain(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_MAX);
    let cut = text.get(..end).unwrap_or_default();
    let mut plain = if end < text.len() { format!("{cut}...") } else { cut.to_owned() };
    for (trap, words) in TRAPS {
        plain = replaced(&plain, trap, words);
    }
    plain
}

/// `text` with `words` for every `phrase`, which is in lower case, in one pass.
fn replaced(text: &str, phrase: &str, words: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest
        .to_ascii_lowercase()
        .find(phrase)
        .and_then(|start| Some((rest.get(..start)?, rest.get(start + phrase.len()..)?)))
    {
        out.push_str(before);
        out.push_str(words);
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_has_version_code_message_and_details() {
        let error = CniError::new(Code::InvalidConfig, "bad mtu").details("accepted is 68").details("or more");
        let object: Value = serde_json::from_str(&error.render(SpecVersion::V1_0_0)).unwrap();
        assert_eq!(
            object,
            json!({"cniVersion": "1.0.0", "code": 7, "msg": "bad mtu", "details": "accepted is 68; or more"})
        );
        assert!(!CniError::new(Code::Io, "x").render(SpecVersion::NEWEST).contains("details"));
    }

    #[test]
    fn words_that_make_containerd_swallow_an_error_are_never_rendered() {
        let error = std::io::Error::from_raw_os_error(2);
        let text = CniError::io("open", std::path::Path::new("/x"), &error)
            .details("Link NOT FOUND")
            .render(SpecVersion::NEWEST);
        let lower = text.to_lowercase();
        assert!(!lower.contains("not found") && !lower.contains("no such file or directory"), "{text}");
        assert!(lower.contains("absent") && lower.contains("path is missing"), "{text}");
    }

    #[test]
    fn however_long_and_full_of_traps_a_text_is_the_error_is_short() {
        let long = "Not Found, ".repeat(400_000);
        let text = CniError::new(Code::InvalidConfig, &long).details("\u{e9}".repeat(5000)).render(SpecVersion::NEWEST);
        assert!(text.len() < 3 * TEXT_MAX, "{}", text.len());
        assert!(text.contains("absent, absent") && !text.to_lowercase().contains("not found"));
    }

    #[test]
    fn numbers_are_the_specifications() {
        let numbers: Vec<u32> =
            [Code::IncompatibleVersion, Code::UnsupportedField, Code::InvalidEnvironment, Code::TryAgainLater]
                .map(Code::number)
                .to_vec();
        assert_eq!(numbers, [1, 2, 4, 11]);
    }
}
