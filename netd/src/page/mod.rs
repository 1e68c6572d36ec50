//! The page that shows an operator the cluster as this node knows it: facts in, HTML out.
//!
//! | module | what it is |
//! |---|---|
//! | [`facts`] | what is shown, as values |
//! | [`html`] | text and markup, kept apart |
//! | [`document`] | the frame of the page, which a browser loads once |
//! | [`sections`] | the parts that change, each by itself |
//! | [`picture`] | this node, the others and the links between, as SVG |
//!
//! Pure. Invariants: whatever comes from a store, a file or another program is escaped ([`html::Html::text`] is the only way in); lists are
//! bounded and say how many there are; nothing is said that is not known: what was not probed is "not probed", and what is old has its age.

pub(crate) mod document;
pub(crate) mod facts;
mod html;
mod picture;
pub(crate) mod sections;
mod services;
#[cfg(test)]
mod tests;
mod words;

/// Rows of a list.
pub(crate) const ROWS: usize = 100;

/// What the page is asked to show: the fields of its query.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Query {
    /// The node whose details are shown, by its subnet.
    pub node: String,
    /// What is searched for among the nodes.
    pub nodes: String,
    /// The same among the Pods.
    pub pods: String,
    /// The same among the Services.
    pub services: String,
}

impl Query {
    /// The fields by their names.
    pub(crate) fn fields(&self) -> [(&'static str, &str); 4] {
        [("node", &self.node), ("nodes", &self.nodes), ("pods", &self.pods), ("services", &self.services)]
    }
}
