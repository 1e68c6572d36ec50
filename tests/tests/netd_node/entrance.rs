//! What `netd doctor` says of a firewall that closes a tunnel, and doing it.

use anyhow::{Context, Result, ensure};
use lab::{Host, eventually};
use serde_json::Value;

use super::SOON;

/// The problem that `netd doctor` has with the firewall, and what it says is to be done; waited for, as leases may still come.
pub(crate) fn closed_entrance(host: &Host, says: &str) -> Result<String> {
    eventually(4 * SOON, || {
        let output = host.command(lab::bin("netd")?).args(["doctor", "--json"]).limit(3 * SOON).output()?;
        let all: Vec<Value> = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
        let found = all.iter().find(|finding| {
            finding["check"] == "firewall"
                && finding["severity"] == "problem"
                && finding["found"].as_str().is_some_and(|found| found.contains(says))
        });
        let fix = found.and_then(|found| found["fix"].as_str()).with_context(|| format!("no {says:?}: {all:#?}"))?;
        Ok::<_, anyhow::Error>(fix.to_owned())
    })
}

/// Does what `netd doctor` says is to be done about the entrance of a tunnel, and nothing else.
pub(crate) fn open_as_doctor_says(host: &Host, says: &str) -> Result<()> {
    let fix = closed_entrance(host, says)?;
    let command = fix.split(", and the same where").next().unwrap_or_default();
    host.run(&["sh", "-ec", command]).with_context(|| fix.clone())?;
    eventually(4 * SOON, || {
        let text = host.command(lab::bin("netd")?).arg("doctor").limit(3 * SOON).output()?.stdout;
        ensure!(!text.contains("PROBLEM"), "after {command}: {text}");
        Ok(())
    })
}
