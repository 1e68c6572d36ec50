//! The verbs over a chain of plugins, as libcni runs them (`libcni/api.go`).
//!
//! Invariant: ADD and CHECK go through the chain forwards, DEL backwards; the first error ends the verb, and only a DEL that
//! went through forgets the cached result.

use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::attachment::Attachment;
use super::cache;
use super::network::{Network, plugin_type};
use super::plugin::execute;
use super::sandbox::Sandbox;
use crate::host::Host;

const CONF_DIR: &str = "/etc/cni/net.d";
const BIN_DIR: &str = "/opt/cni/bin";

/// A container runtime on a machine.
#[derive(Debug, Clone)]
pub struct Runtime {
    host: Host,
}

impl Runtime {
    /// The runtime of a machine, with `/opt/cni/bin` and `/etc/cni/net.d`.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        Self { host: host.clone() }
    }

    /// The machine.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Puts a program into `/opt/cni/bin` under each of these names.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn install(&self, program: &Path, names: &[&str]) -> Result<()> {
        let folder = self.host.path(BIN_DIR);
        std::fs::create_dir_all(&folder).context("make /opt/cni/bin")?;
        for name in names {
            // A link: a debug build copied for every machine would fill the lab kernel's memory.
            symlink(program, folder.join(name)).with_context(|| format!("install {BIN_DIR}/{name}"))?;
        }
        Ok(())
    }

    /// Writes a configuration list into `/etc/cni/net.d` under this file name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, file: &str, content: &str) -> Result<()> {
        self.host.write(format!("{CONF_DIR}/{file}"), content)
    }

    /// The network a runtime takes: that of the first `.conflist` by file name.
    ///
    /// # Errors
    /// When there is no list or the first one is refused.
    pub fn network(&self) -> Result<Network> {
        let folder = self.host.path(CONF_DIR);
        let entries = std::fs::read_dir(&folder).with_context(|| format!("list {CONF_DIR}"))?;
        let lists = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "conflist"));
        let first = lists.min().with_context(|| format!("no network configuration in {CONF_DIR}"))?;
        Network::parse(&std::fs::read_to_string(&first)?).with_context(|| format!("load {}", first.display()))
    }

    /// Makes a Pod and attaches it to the first network, with everything a runtime does around that.
    ///
    /// # Errors
    /// As [`Runtime::add`]; the half-made Pod is taken down as a runtime does.
    pub fn run_pod(&self, name: &str) -> Result<Sandbox> {
        Sandbox::run(self, name)
    }

    /// ADD through the chain; gives the last plugin's result.
    ///
    /// # Errors
    /// The first [`super::PluginError`], or a result of another version than the list's.
    pub fn add(&self, network: &Network, attachment: &Attachment) -> Result<Value> {
        let mut result: Option<Value> = None;
        for plugin in &network.plugins {
            let request = network.request(plugin, attachment, result.as_ref());
            let answer = self.execute(plugin_type(plugin)?, "ADD", Some(attachment), &request)?;
            let answer = answer
                .with_context(|| format!("plugin {} answered nothing to ADD", plugin_type(plugin).unwrap_or("?")))?;
            let version = answer.get("cniVersion").and_then(Value::as_str).unwrap_or(&network.cni_version);
            ensure!(version == network.cni_version, "asked in version {}, answered in {version}", network.cni_version);
            result = Some(answer);
        }
        let result = result.context("a list without plugins")?;
        cache::store(&self.host, network, attachment, &result)?;
        Ok(result)
    }

    /// The attachments of a network that libcni's cache knows.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn cached(&self, network: &Network) -> Result<Vec<Attachment>> {
        cache::list(&self.host, network)
    }

    /// CHECK through the chain, with the cached result of ADD.
    ///
    /// # Errors
    /// The first [`super::PluginError`]; also when nothing is cached or the list's version has no CHECK.
    pub fn check(&self, network: &Network, attachment: &Attachment) -> Result<()> {
        ensure!(
            network.speaks("0.4.0"),
            "configuration version {:?} does not support CHECK command",
            network.cni_version
        );
        if network.disable_check {
            return Ok(());
        }
        let cached = cache::load(&self.host, network, attachment)?.context("failed to get network cached result")?;
        for plugin in &network.plugins {
            let request = network.request(plugin, attachment, Some(&cached));
            self.execute(plugin_type(plugin)?, "CHECK", Some(attachment), &request)?;
        }
        Ok(())
    }

    /// DEL through the chain, last plugin first.
    ///
    /// # Errors
    /// The first [`super::PluginError`]; plugins before it in the list are then not asked, and the cached result stays.
    pub fn del(&self, network: &Network, attachment: &Attachment) -> Result<()> {
        let cached = if network.speaks("0.4.0") { cache::load(&self.host, network, attachment)? } else { None };
        for plugin in network.plugins.iter().rev() {
            let request = network.request(plugin, attachment, cached.as_ref());
            self.execute(plugin_type(plugin)?, "DEL", Some(attachment), &request)?;
        }
        cache::remove(&self.host, network, attachment)
    }

    /// GC: DEL for every cached attachment that is not valid any more, then the verb (from 1.1.0).
    ///
    /// # Errors
    /// All failures together; one does not keep the others from being tried.
    pub fn gc(&self, network: &Network, valid: &[Attachment]) -> Result<()> {
        if network.disable_gc {
            return Ok(());
        }
        let mut failures = Vec::new();
        let same = |a: &Attachment, b: &Attachment| a.container_id == b.container_id && a.ifname == b.ifname;
        for cached in cache::list(&self.host, network)? {
            if !valid.iter().any(|kept| same(kept, &cached)) {
                failures.extend(self.del(network, &cached).err());
            }
        }
        if network.speaks("1.1.0") {
            let kept: Vec<Value> =
                valid.iter().map(|kept| json!({"containerID": kept.container_id, "ifname": kept.ifname})).collect();
            for plugin in &network.plugins {
                let mut request = network.bare_request(plugin);
                for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                    request.insert(key.to_owned(), json!(kept));
                }
                failures.extend(self.execute(plugin_type(plugin)?, "GC", None, &Value::Object(request)).err());
            }
        }
        match failures.as_slice() {
            [] => Ok(()),
            all => bail!("{}", all.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("\n")),
        }
    }

    /// STATUS of every plugin (from 1.1.0; earlier lists are always well).
    ///
    /// # Errors
    /// The first [`super::PluginError`].
    pub fn status(&self, network: &Network) -> Result<()> {
        if network.speaks("1.1.0") {
            for plugin in &network.plugins {
                let request = Value::Object(network.bare_request(plugin));
                self.execute(plugin_type(plugin)?, "STATUS", None, &request)?;
            }
        }
        Ok(())
    }

    /// VERSION of one plugin: the versions it supports.
    ///
    /// # Errors
    /// When it fails or answers without `supportedVersions`.
    pub fn versions(&self, plugin: &str) -> Result<Vec<String>> {
        // libcni gives these placeholders (pkg/invoke/exec.go, GetVersionInfo).
        let placeholder = Attachment {
            container_id: "dummy".to_owned(),
            netns: "dummy".to_owned(),
            ifname: "dummy".to_owned(),
            args: String::new(),
            capabilities: serde_json::Map::new(),
        };
        let answer = self.execute(plugin, "VERSION", Some(&placeholder), &json!({"cniVersion": "1.1.0"}))?;
        let versions = answer.as_ref().and_then(|answer| answer.get("supportedVersions")).and_then(Value::as_array);
        let versions = versions.with_context(|| format!("plugin {plugin} told no supportedVersions: {answer:?}"))?;
        Ok(versions.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    fn execute(
        &self,
        plugin: &str,
        verb: &str,
        attachment: Option<&Attachment>,
        input: &Value,
    ) -> Result<Option<Value>> {
        execute(&self.host, BIN_DIR, plugin, verb, attachment, input)
    }
}
