//! `ServiceMetrics`: what `/metrics` says of each Service.

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServiceMetrics {
    /// Connections, and what virtual servers of IPVS carried.
    All,
    /// Connections alone.
    Connections,
    /// Nothing.
    Off,
}

impl ServiceMetrics {
    /// The words that there are.
    pub(crate) const FORM: &str = "all, connections or off";

    /// What a word asks for.
    #[must_use]
    pub(crate) fn of_word(word: &str) -> Option<Self> {
        match word {
            "all" => Some(Self::All),
            "connections" => Some(Self::Connections),
            "off" => Some(Self::Off),
            _ => None,
        }
    }
}
