//! A rendered folder for one machine of the lab, made by hand, and `netdadm apply` on it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Host, Output};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Where the folder lies on its machine.
pub(crate) const OUT: &str = "/srv/out";

/// The part of a folder that is one host's.
#[derive(Debug, Clone)]
pub(crate) struct Rendered {
    pub(crate) host: String,
    pub(crate) files: BTreeMap<String, (String, String, String)>,
    pub(crate) units: Vec<Value>,
}

impl Rendered {
    pub(crate) fn for_host(host: &Host) -> Self {
        Self { host: host.name().to_owned(), files: BTreeMap::new(), units: Vec::new() }
    }

    /// Adds a file of root's that everybody reads.
    pub(crate) fn file(&mut self, path: &str, content: &str) -> &mut Self {
        self.owned(path, "0644", "root:root", content)
    }

    pub(crate) fn owned(&mut self, path: &str, mode: &str, owner: &str, content: &str) -> &mut Self {
        self.files.insert(path.to_owned(), (mode.to_owned(), owner.to_owned(), content.to_owned()));
        self
    }

    /// Adds a unit that is restarted when one of these files changes.
    pub(crate) fn unit(&mut self, name: &str, restart: &[&str]) -> &mut Self {
        self.units.push(json!({"name": name, "restart": restart, "reload": [], "ready": null, "wait": true}));
        self
    }

    /// Changes the unit added last.
    pub(crate) fn with(&mut self, key: &str, value: Value) -> &mut Self {
        self.units.last_mut().unwrap()[key] = value;
        self
    }

    /// Writes the folder to its machine, in place of the one before.
    pub(crate) fn write(&self, to: &Host) -> Result<()> {
        self.write_to(to, OUT)
    }

    /// Writes the folder to `out` on its machine.
    pub(crate) fn write_to(&self, to: &Host, out: &str) -> Result<()> {
        to.run(&["rm", "-rf", out])?;
        let base = format!("{out}/hosts/{}", self.host);
        let mut entries = BTreeMap::new();
        to.run(&["mkdir", "-p", &format!("{base}/root")])?;
        for (path, (mode, owner, content)) in &self.files {
            to.write(format!("{base}/root{path}"), content)?;
            let digest: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
            entries.insert(path, json!({"mode": mode, "owner": owner, "sha256": digest}));
        }
        let manifest = json!({
            "format": 1, "cluster": "lab", "authority": "ab".repeat(32), "host": self.host,
            "files": entries, "units": self.units,
        });
        to.write(format!("{base}/manifest.json"), manifest.to_string())
    }

    /// Writes the folder and applies it, whatever comes of it.
    pub(crate) fn try_on(&self, host: &Host) -> Result<Output> {
        self.write(host)?;
        apply(host, &self.host).output()
    }

    /// Writes the folder and applies it with success; returns what was printed.
    pub(crate) fn on(&self, host: &Host) -> Result<String> {
        let output = self.try_on(host)?;
        ensure!(output.status.success(), "{}{}", output.stdout, output.stderr);
        Ok(output.stdout)
    }
}

/// The command that applies the folder on a machine.
pub(crate) fn apply(host: &Host, name: &str) -> lab::Command {
    let words = ["apply", "--yes", "--host", name, OUT];
    host.command("/usr/local/bin/netdadm").args(words).limit(Duration::from_secs(120))
}
