//! The verbs over a chain of plugins, as libcni runs them (`libcni/api.go`).
//!
//! Invariant: ADD and CHECK go through the chain forwards, DEL backwards; the first error ends the verb, and only a DEL that
//! went through forgets the cached result. GC goes on after errors, STATUS stops at the first.

use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::attachment::Attachment;
use super::client::{Client, Release};
use super::network::{Network, plugin_type};
use super::plugin::{Call, execute, find};
use super::sandbox::Sandbox;
use super::{cache, conf_dir, result};
use crate::host::Host;

const CONF_DIR: &str = "/etc/cni/net.d";
const BIN_DIR: &str = "/opt/cni/bin";

/// A container runtime on a machine.
#[derive(Debug, Clone)]
pub struct Runtime {
    host: Host,
    client: Client,
    path: Vec<String>,
}

impl Runtime {
    /// The runtime of a machine, with `/opt/cni/bin` and `/etc/cni/net.d`, on the newest libcni.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        Self { host: host.clone(), client: Client::Cnitool, path: vec![BIN_DIR.to_owned()] }
    }

    /// The same, as another program calls libcni.
    #[must_use]
    pub fn acting_as(mut self, client: Client) -> Self {
        self.client = client;
        self
    }

    /// Other folders for plugins.
    #[must_use]
    pub fn path(mut self, folders: &[&str]) -> Self {
        self.path = folders.iter().map(|folder| (*folder).to_owned()).collect();
        self
    }

    /// The machine.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Who calls.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client
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

    /// Writes a configuration into `/etc/cni/net.d` under this file name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, file: &str, content: &str) -> Result<()> {
        self.host.write(format!("{CONF_DIR}/{file}"), content)
    }

    /// The network that the client takes without being given a name: that of the first file. CRI-O takes it only when each
    /// of its plugins is there and lists its version.
    ///
    /// # Errors
    /// When there is none or it is refused.
    pub fn network(&self) -> Result<Network> {
        let network = conf_dir::first(&self.host.path(CONF_DIR), self.client)?;
        if self.client == Client::CriO {
            self.validate(&network)?;
        }
        Ok(network)
    }

    /// The network of this name (`LoadNetworkConf`).
    ///
    /// # Errors
    /// When there is none, or a file before it is malformed.
    pub fn load(&self, name: &str) -> Result<Network> {
        conf_dir::load(&self.host.path(CONF_DIR), self.client.release(), name)
    }

    /// Reads a list as the client's libcni does.
    ///
    /// # Errors
    /// As [`Network::parse`].
    pub fn parse(&self, list: &str) -> Result<Network> {
        Network::read(self.client.release(), list)
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
    /// The first [`super::PluginError`], or a result of a version that the client's libcni does not know.
    pub fn add(&self, network: &Network, attachment: &Attachment) -> Result<Value> {
        let mut result: Option<Value> = None;
        for plugin in &network.plugins {
            let file = find(&self.host, plugin_type(plugin), &self.path)?;
            attachment.validate(&network.name)?;
            let request = network.request(plugin, attachment, result.as_ref());
            let path = self.path.join(":");
            let printed = execute(&self.host, &file, &Call::about("ADD", attachment, &path), &request)?;
            let answer = result::read(self.release(), &network.cni_version, &printed);
            result = Some(answer.with_context(|| format!("plugin type={:?} failed (add)", plugin_type(plugin)))?);
        }
        let result = result.context("a list without plugins")?;
        cache::store(&self.host, self.release(), network, attachment, &result)
            .with_context(|| format!("failed to set network {:?} cached result", network.name))?;
        Ok(result)
    }

    /// The attachments of a network that libcni's cache knows.
    #[must_use]
    pub fn cached(&self, network: &Network) -> Vec<Attachment> {
        cache::list(&self.host, network).unwrap_or_default()
    }

    /// CHECK through the chain, with the cached result of ADD where there is one.
    ///
    /// # Errors
    /// The first [`super::PluginError`]; also when the cache cannot be understood or the list's version has no CHECK.
    pub fn check(&self, network: &Network, attachment: &Attachment) -> Result<()> {
        ensure!(
            network.speaks("0.4.0"),
            "configuration version {:?} does not support the CHECK command",
            network.cni_version
        );
        if network.disable_check {
            return Ok(());
        }
        let cached = self.cached_result(network, attachment)?;
        network.plugins.iter().try_for_each(|plugin| {
            self.ask(plugin, "CHECK", Some(attachment), &network.request(plugin, attachment, cached.as_ref()))
        })
    }

    /// DEL through the chain, last plugin first.
    ///
    /// # Errors
    /// The first [`super::PluginError`]; plugins before it in the list are then not asked, and the cached result stays.
    pub fn del(&self, network: &Network, attachment: &Attachment) -> Result<()> {
        let cached = match network.speaks("0.4.0").then(|| self.cached_result(network, attachment)) {
            None => None,
            Some(Ok(cached)) => cached,
            Some(Err(error)) if self.release() == Release::V1_1 => return Err(error),
            Some(Err(_)) => {
                cache::remove(&self.host, network, attachment)?;
                None
            }
        };
        for plugin in network.plugins.iter().rev() {
            let request = network.request(plugin, attachment, cached.as_ref());
            self.ask(plugin, "DEL", Some(attachment), &request)?;
        }
        cache::remove(&self.host, network, attachment)
    }

    /// GC: DEL for every cached attachment that is not valid any more, then the verb (from 1.1.0) with the valid ones under
    /// both keys. `None` is no list at all, as cnitool passes it: nothing is valid, and no key is sent.
    ///
    /// # Errors
    /// All failures together; one does not keep the others from being tried.
    pub fn gc(&self, network: &Network, valid: Option<&[Attachment]>) -> Result<()> {
        ensure!(self.release() == Release::V1_3, "this release of libcni has no GC");
        // Without a cache folder libcni gives up before the verb, without an error.
        let (false, Some(cached)) = (network.disable_gc, cache::list(&self.host, network)) else { return Ok(()) };
        let mut failures = Vec::new();
        let same = |a: &Attachment, b: &Attachment| a.container_id == b.container_id && a.ifname == b.ifname;
        for stale in cached.iter().filter(|cached| !valid.unwrap_or_default().iter().any(|kept| same(kept, cached))) {
            let what = format!("failed to delete stale attachment {} {}", stale.container_id, stale.ifname);
            failures.extend(self.del(network, stale).err().map(|error| error.context(what)));
        }
        if network.speaks("1.1.0") {
            for plugin in &network.plugins {
                let request = Value::Object(gc_request(network, plugin, valid));
                failures.extend(self.ask(plugin, "GC", None, &request).err());
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
        if self.release() == Release::V1_1 || !network.speaks("1.1.0") {
            return Ok(());
        }
        network
            .plugins
            .iter()
            .try_for_each(|plugin| self.ask(plugin, "STATUS", None, &Value::Object(network.bare_request(plugin))))
    }

    /// VERSION of one plugin: the versions it supports.
    ///
    /// # Errors
    /// When it fails or answers without `supportedVersions`.
    pub fn versions(&self, plugin: &str) -> Result<Vec<String>> {
        let file = find(&self.host, plugin, &self.path)?;
        let input = json!({"cniVersion": self.release().newest()});
        let printed = execute(&self.host, &file, &Call::version(), &input)?;
        let answer: Value = serde_json::from_str(&printed).with_context(|| format!("VERSION of {plugin}"))?;
        let versions = answer.get("supportedVersions").and_then(Value::as_array);
        let versions =
            versions.with_context(|| format!("plugin {plugin} returned no supportedVersions: {answer:?}"))?;
        Ok(versions.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// Requires that every plugin of a network exists and lists its version (`ValidateNetworkList`).
    ///
    /// # Errors
    /// For the first plugin that does not.
    pub fn validate(&self, network: &Network) -> Result<()> {
        let version = if network.cni_version.is_empty() { "0.1.0" } else { &network.cni_version };
        for plugin in network.plugins.iter().map(plugin_type) {
            let known = self.versions(plugin)?;
            ensure!(
                known.iter().any(|known| known == version),
                "plugin {plugin} does not support config version {version:?}"
            );
        }
        Ok(())
    }

    pub(crate) fn release(&self) -> Release {
        self.client.release()
    }

    fn cached_result(&self, network: &Network, attachment: &Attachment) -> Result<Option<Value>> {
        cache::load(&self.host, self.release(), network, attachment)
            .with_context(|| format!("failed to get network {:?} cached result", network.name))
    }

    /// A verb without a result; what the plugin prints on success is not read.
    fn ask(
        &self,
        plugin: &Map<String, Value>,
        verb: &str,
        attachment: Option<&Attachment>,
        input: &Value,
    ) -> Result<()> {
        let (file, path) = (find(&self.host, plugin_type(plugin), &self.path)?, self.path.join(":"));
        let call = match attachment {
            Some(attachment) => Call::about(verb, attachment, &path),
            None => Call::about_nothing(verb, &path),
        };
        execute(&self.host, &file, &call, input).map(drop)
    }
}

fn gc_request(network: &Network, plugin: &Map<String, Value>, valid: Option<&[Attachment]>) -> Map<String, Value> {
    let mut request = network.bare_request(plugin);
    if let Some(valid) = valid {
        let listed = |kept: &Attachment| json!({"containerID": kept.container_id, "ifname": kept.ifname});
        let listed: Vec<Value> = valid.iter().map(listed).collect();
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            request.insert(key.to_owned(), json!(listed));
        }
    }
    request
}
