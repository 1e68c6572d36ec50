//! `Row`: what one component of one host is like; the table of all of them.
//!
//! Pure. Invariant: each row is one line of the table, of a bounded length, whatever its words are.

use std::fmt;

use cluster::problem::elided;
use daemon::status::Lines;
use serde::Serialize;

/// How a component is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It does its work.
    Ok,
    /// It could not be asked from here, which says nothing about it.
    Unknown,
    /// It is on its way.
    Waiting,
    /// It does not do its work.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Unknown => "?",
            Self::Waiting => "waiting",
            Self::Failed => "FAILED",
        })
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Component {
    /// Members of etcd.
    Etcd,
    /// API servers.
    KubeApiserver,
    /// The controller-manager that leads.
    KubeControllerManager,
    /// The scheduler that leads.
    KubeScheduler,
    /// Kubelets, by their Nodes.
    Kubelet,
    /// netd.
    Netd,
    /// ipvs-proxy.
    IpvsProxy,
}

impl Component {
    /// Its name, as its program has it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::Netd => "netd",
            Self::IpvsProxy => "ipvs-proxy",
        }
    }
}

/// Whose row it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Place {
    /// The host, by its name in the topology; of what is one for the cluster, `-`.
    pub(crate) host: String,
    /// The component.
    pub(crate) component: Component,
}

/// What one component of one host is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    /// Whose.
    #[serde(flatten)]
    pub(crate) place: Place,
    /// How it is.
    pub(crate) state: State,
    /// What it says, or why it does not.
    pub(crate) found: String,
    /// Its version, as it says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    /// Whole days until the certificate ends that it showed; negative when it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) days: Option<i64>,
}

impl Row {
    /// Without version and certificate.
    pub(crate) fn new(place: Place, state: State, found: impl Into<String>) -> Self {
        Self { place, state, found: elided(found.into()), version: None, days: None }
    }

    /// The same with the version that it says it has.
    pub(crate) fn of_version(self, version: impl Into<String>) -> Self {
        Self { version: Some(elided(version.into())), ..self }
    }

    /// Everything of a row in words: version, what was found, the certificate.
    fn words(&self) -> String {
        let version = self.version.clone().into_iter();
        let days = self.days.map(|days| format!("certificate {days} d"));
        let found = Some(self.found.clone()).filter(|found| !found.is_empty());
        version.chain(found).chain(days).collect::<Vec<_>>().join(", ")
    }
}

/// The rows for a person, a line each.
pub(crate) fn table(rows: &[Row]) -> String {
    let width = |of: &dyn Fn(&Row) -> usize| rows.iter().map(of).max().unwrap_or_default();
    let (hosts, components) =
        (width(&|row| row.place.host.len()).max(4), width(&|row| row.place.component.name().len()).max(9));
    let mut lines = Lines::new();
    lines.push(format_args!("{:hosts$} {:components$} {:7} FOUND", "HOST", "COMPONENT", "STATE"));
    for row in rows {
        let (host, component) = (&row.place.host, row.place.component.name());
        lines.push(format_args!("{host:hosts$} {component:components$} {:7} {}", row.state, row.words()));
    }
    lines.into_text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_line_whatever_its_words_are() {
        let place = |host: &str, component| Place { host: host.into(), component };
        let rows = [
            Row {
                version: Some("3.4.23".into()),
                days: Some(364),
                ..Row::new(place("hdss7-12", Component::Etcd), State::Ok, "leads, 20 KiB")
            },
            Row::new(
                place("hdss7-200-of-a-long-name", Component::KubeControllerManager),
                State::Failed,
                format!("no answer\nok {}", "word ".repeat(30)),
            ),
        ];
        let text = table(&rows);
        assert!(text.contains(" 3.4.23, leads, 20 KiB, certificate 364 d\n"), "{text}");
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("FAILED"), "{text}");
    }

    #[test]
    fn what_others_say_has_a_length() {
        let (place, long) = (Place { host: "a".into(), component: Component::Kubelet }, "x".repeat(1 << 20));
        let row = Row::new(place, State::Failed, long.clone()).of_version(long);
        assert!(row.found.len() < 1000 && row.version.as_ref().unwrap().len() < 1000);
        assert!(table(&[row]).len() < 2000);
    }
}
