//! The dashboard of `configs/grafana`: what it asks Prometheus, as Grafana puts its variables in.
//!
//! Grafana (packages/grafana-prometheus, `datasource.ts`): of a variable that may have several values or all, a value stands there with what
//! regular expressions know escaped twice, `allValue` as it is; `$__rate_interval` is four times the interval of the scrapes at least.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// `$__rate_interval` with the scrape interval of `configs/prometheus`.
const RATE_INTERVAL: &str = "1m";

/// Takes the port of a target away, which is another one for each daemon: what Grafana puts in is the first group.
const WITHOUT_PORT: &str = "/^(.*?)(:[0-9]+)?$/";

/// A question of a panel.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) panel: String,
    expr: String,
    /// The labels in the names of its lines.
    pub(crate) labels: Vec<String>,
}

impl Question {
    /// As Prometheus gets it where this stands for `$node`.
    pub(crate) fn of(&self, node: &str) -> Result<String> {
        let text = self.expr.replace("$__rate_interval", RATE_INTERVAL).replace("$node", node);
        ensure!(!text.contains('$'), "{text} has a variable that is not put in");
        Ok(text)
    }
}

/// The dashboard as it is written.
pub(crate) struct Dashboard(Value);

impl Dashboard {
    pub(crate) fn read(text: &str) -> Result<Self> {
        Ok(Self(serde_json::from_str(text)?))
    }

    /// The questions of all its panels; each panel asks one at least.
    pub(crate) fn questions(&self) -> Result<Vec<Question>> {
        let panels = self.0["panels"].as_array().context("panels")?;
        let mut questions = Vec::new();
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            let title = panel["title"].as_str().context("title")?;
            let targets = panel["targets"].as_array().with_context(|| format!("{title} asks nothing"))?;
            ensure!(!targets.is_empty(), "{title} asks nothing");
            for target in targets {
                let expr = target["expr"].as_str().context("expr")?.to_owned();
                ensure!(expr.contains("instance=~\"$node"), "{expr} is of all nodes, whichever is chosen");
                let legend = target["legendFormat"].as_str().context("legendFormat")?;
                let labels = legend.split("{{").skip(1).filter_map(|part| part.split("}}").next());
                let labels = labels.map(|label| label.trim().to_owned()).collect();
                questions.push(Question { panel: title.to_owned(), expr, labels });
            }
        }
        ensure!(questions.len() > 15, "{questions:?}");
        Ok(questions)
    }

    fn node(&self) -> Result<&Value> {
        let variables = self.0.pointer("/templating/list").and_then(Value::as_array).context("variables")?;
        variables.iter().find(|variable| variable["name"] == "node").context("the variable `node`")
    }

    /// What stands for all nodes.
    pub(crate) fn all(&self) -> Result<&str> {
        self.node()?["allValue"].as_str().context("allValue")
    }

    /// Metric and label of `label_values(METRIC, LABEL)`, by which the nodes are found.
    pub(crate) fn values(&self) -> Result<(&str, &str)> {
        let query = self.node()?["query"].as_str().context("query")?;
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        inner.and_then(|inner| inner.rsplit_once(", ")).with_context(|| format!("{query} is no label_values(…)"))
    }

    /// What an operator chooses from, of the values that Prometheus gave.
    pub(crate) fn choices(&self, values: &[&str]) -> Result<BTreeSet<String>> {
        let regex = self.node()?["regex"].as_str().unwrap_or_default();
        ensure!(regex.is_empty() || regex == WITHOUT_PORT, "this test does not know {regex}");
        let choice = |value: &&str| match value.rsplit_once(':') {
            Some((node, port)) if !regex.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
                node.to_owned()
            }
            _ => (*value).to_owned(),
        };
        Ok(values.iter().map(choice).collect())
    }
}

/// A value as Grafana puts it into a question.
pub(crate) fn escaped(value: &str) -> String {
    let special = |letter: char| "\\^$*+?.()|[]{}".contains(letter);
    value.chars().map(|letter| if special(letter) { format!("\\\\{letter}") } else { letter.to_string() }).collect()
}
