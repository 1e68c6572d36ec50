//! `netd trace` on a node, and what it must say.
#![allow(clippy::indexing_slicing, reason = "a missing member reads as null")]

use anyhow::{Context, Result, ensure};
use lab::{Host, Output, eventually};
use serde_json::Value;

use super::SOON;

/// From the Pod of this node to that of the other, where nobody is at the port.
pub(crate) const POD_TO_POD: [&str; 3] = ["172.7.21.2", "to", "172.7.22.2:80"];

pub(crate) fn output(host: &Host, words: &[&str]) -> Result<Output> {
    host.command(lab::bin("netd")?).arg("trace").args(words).limit(3 * SOON).output()
}

/// The steps of a trace, and whether it passes; the exit status says the same.
pub(crate) fn trace(host: &Host, words: &[&str]) -> Result<(Vec<Value>, bool)> {
    let output = output(host, &[words, &["--json"]].concat())?;
    let all: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    let passes = all["passes"] == true;
    ensure!(output.status.code() == Some(i32::from(!passes)), "{output:?}");
    let steps = all["steps"].as_array().context("steps")?.clone();
    let stops = |step: &&Value| step["verdict"] == "missing" || step["verdict"] == "wrong";
    ensure!(steps.iter().filter(stops).all(|step| !step["fix"].as_str().unwrap_or_default().is_empty()), "{steps:?}");
    Ok((steps, passes))
}

/// Requires a step of this node (`here` or an address), part and verdict with these words in what was found.
pub(crate) fn expect(steps: &[Value], [node, part, verdict, words]: [&str; 4]) -> Result<()> {
    let is = |step: &&Value| step["node"] == node && step["part"] == part && step["verdict"] == verdict;
    let found = |step: &Value| step["found"].as_str().is_some_and(|text| text.contains(words));
    ensure!(steps.iter().filter(is).any(found), "no {verdict} {part} of {node} with {words:?} in {steps:#?}");
    Ok(())
}

/// Waits until a packet passes, this node knows its own subnet and the other one says what it sees.
pub(crate) fn passes_and_is_watched(here: &Host) -> Result<Vec<Value>> {
    eventually(SOON, || {
        let (steps, passes) = trace(here, &POD_TO_POD)?;
        let watched = steps.iter().any(|step| step["node"] == "10.4.7.22" && step["part"] == "last seen");
        ensure!(passes && watched, "{steps:#?}");
        Ok(steps)
    })
}
