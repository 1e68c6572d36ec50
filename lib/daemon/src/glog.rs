//! What glog and klog read besides `-v`: detail of single modules, and a stack where one line of the source logs.
//!
//! Pure. A module is named as there, by its file without ending: `worker=2`; here that is the last word of its path.
//! Invariant: a text that klog refuses is refused, one that names nothing of this program has no effect.

use std::str::FromStr;

use regex::Regex;
use tracing::{Level, Metadata};

/// Detail of modules whose names match patterns, klog's `-vmodule`.
#[derive(Debug, Clone, Default)]
pub struct Modules(Vec<(Regex, u8)>);

impl PartialEq for Modules {
    fn eq(&self, other: &Self) -> bool {
        let texts = |modules: &Self| -> Vec<(String, u8)> {
            modules.0.iter().map(|(pattern, detail)| (pattern.as_str().to_owned(), *detail)).collect()
        };
        texts(self) == texts(other)
    }
}

impl Eq for Modules {}

impl Modules {
    /// True when no module has a detail of its own.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when an event of `meta` is part of its module's detail. The first pattern that fits counts, as in klog.
    #[must_use]
    pub(crate) fn enables(&self, meta: &Metadata<'_>) -> bool {
        let path = meta.module_path().unwrap_or_default().replace("::", "/");
        self.detail(&path).is_some_and(|detail| *meta.level() <= level(detail))
    }

    fn detail(&self, path: &str) -> Option<u8> {
        let name = path.rsplit('/').next().unwrap_or_default();
        self.0.iter().find(|(pattern, _)| pattern.is_match(name) || pattern.is_match(path)).map(|(_, detail)| *detail)
    }
}

/// The level up to which `detail` shows events.
const fn level(detail: u8) -> Level {
    match detail {
        0 => Level::INFO,
        1 => Level::DEBUG,
        _ => Level::TRACE,
    }
}

impl FromStr for Modules {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const ACCEPTED: &str = "PATTERN=N,... such as worker=2,plan*=1";
        let mut modules = Vec::new();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (pattern, detail) = item.split_once('=').filter(|(pattern, _)| !pattern.is_empty()).ok_or(ACCEPTED)?;
            let detail = detail.parse::<i32>().map_err(|_| ACCEPTED)?;
            let Some(detail @ 1..) = u8::try_from(detail.min(255)).ok() else { continue };
            let pattern = regex::escape(pattern).replace(r"\*", "[^/]*").replace(r"\?", "[^/]");
            modules.push((Regex::new(&format!("^(?:{pattern})$")).map_err(|_| ACCEPTED)?, detail));
        }
        Ok(Self(modules))
    }
}

/// A line of the source, klog's `-log_backtrace_at`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLine {
    file: String,
    line: u32,
}

impl SourceLine {
    /// True when events of `meta` are written there.
    #[must_use]
    pub(crate) fn is_of(&self, meta: &Metadata<'_>) -> bool {
        let file = meta.file().unwrap_or_default();
        let same = file == self.file || file.strip_suffix(&self.file).is_some_and(|before| before.ends_with('/'));
        same && meta.line() == Some(self.line)
    }
}

impl FromStr for SourceLine {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const ACCEPTED: &str = "FILE:LINE such as worker.rs:97";
        let (file, line) = text.split_once(':').ok_or(ACCEPTED)?;
        let line = line.parse().ok().filter(|line| *line > 0).ok_or(ACCEPTED)?;
        if file.contains('.') { Ok(Self { file: file.to_owned(), line }) } else { Err(ACCEPTED) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(text: &str) -> Modules {
        text.parse().unwrap()
    }

    #[test]
    fn modules_match_by_name_path_and_pattern_and_the_first_counts() {
        let some = modules("worker=2,plan*=1,netd/run/?aemon=3,,off=0");
        for (path, detail) in [
            ("netd/run/worker", Some(2)),
            ("netd/plan", Some(1)),
            ("netd/run/planning", Some(1)),
            ("netd/run/daemon", Some(3)),
            ("ipvs/run/daemon", None),
            ("netd/run/coworker", None),
            ("netd/off", None),
        ] {
            assert_eq!(some.detail(path), detail, "{path}");
        }
        assert!(modules("").is_empty() && modules("x=0,y=-1").is_empty());
        assert_eq!(modules("w.rker=9").detail("worker"), None, "a dot is a dot");
    }

    #[test]
    fn what_klog_refuses_is_refused() {
        for text in ["worker", "worker=", "=2", "worker=two", "a=1,b"] {
            assert!(text.parse::<Modules>().is_err(), "{text}");
        }
        for text in ["worker.rs", "worker.rs:0", "worker:1", "worker.rs:x", ""] {
            assert!(text.parse::<SourceLine>().is_err(), "{text}");
        }
        assert_eq!("main.go:12".parse(), Ok(SourceLine { file: "main.go".to_owned(), line: 12 }));
    }
}
