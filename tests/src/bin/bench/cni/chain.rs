//! A chain of plugins, executed for one Pod as libcni executes it: environment, standard input, `prevResult`, order.
//!
//! Invariant: the time shown is from the start of a plugin to its end and the end of its output, summed over the chain; what a runtime
//! does between two plugins (decoding the result, composing the next input) is left out, the same for every chain.

use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Newest version of the specification that libcni 1.3 speaks.
const NEWEST: &str = "1.1.0";

/// A configuration list with the programs it runs; what the measuring process is given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Chain {
    /// Name in the report.
    pub(crate) title: String,
    /// Folder of the programs.
    pub(crate) folder: String,
    /// The bridge that Pods end up on.
    pub(crate) bridge: String,
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
    /// Each Pod publishes a port, as containerd passes it to plugins that declare `portMappings`.
    publishes: bool,
}

/// The host port of the first Pod; the others' follow.
const FIRST_PORT: usize = 20_000;

/// What one verb answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) took: Duration,
    pub(crate) result: Option<Value>,
}

impl Chain {
    /// Reads a list; the version is the newest of `cniVersions` that libcni speaks, else `cniVersion`.
    ///
    /// # Errors
    /// When it is no list.
    pub(crate) fn parse(title: &str, folder: &str, bridge: &str, list: &str) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct List {
            name: String,
            cni_version: String,
            #[serde(default)]
            cni_versions: Vec<String>,
            plugins: Vec<Map<String, Value>>,
        }
        let list: List = serde_json::from_str(list).with_context(|| format!("configuration list of {title}"))?;
        ensure!(!list.plugins.is_empty(), "configuration list of {title}: no plugins");
        let newest = list.cni_versions.into_iter().filter(|version| version.as_str() <= NEWEST).max();
        Ok(Self {
            title: title.to_owned(),
            folder: folder.to_owned(),
            bridge: bridge.to_owned(),
            name: list.name,
            version: newest.unwrap_or(list.cni_version),
            plugins: list.plugins,
            publishes: false,
        })
    }

    /// The same chain with one published port per Pod.
    pub(crate) fn publishing(mut self) -> Self {
        self.publishes = true;
        self.title = format!("{}, one host port", self.title);
        self
    }

    /// True when one of the plugins declares that it opens host ports.
    pub(crate) fn opens_ports(&self) -> bool {
        self.plugins.iter().any(opens_ports)
    }

    /// STATUS of the first plugin, as containerd asks every five seconds.
    pub(crate) fn status(&self) -> Result<Duration> {
        let plugin = self.plugins.first().context("a chain without plugins")?;
        Ok(self.execute(plugin, "STATUS", 0, None, &[])?.0)
    }

    /// ADD for the Pod with this number: each plugin gets the result of the one before it.
    pub(crate) fn add(&self, pod: usize, around: &[&str]) -> Result<Answer> {
        let mut answer = Answer::default();
        for plugin in &self.plugins {
            let (took, output) = self.execute(plugin, "ADD", pod, answer.result.as_ref(), around)?;
            let result = serde_json::from_slice(&output).with_context(|| format!("{}: result of ADD", self.title))?;
            answer = Answer { took: answer.took + took, result: Some(result) };
        }
        Ok(answer)
    }

    /// DEL, last plugin first; each gets the result of the ADD, from version 0.4.0 on.
    pub(crate) fn del(&self, pod: usize, added: Option<&Value>, around: &[&str]) -> Result<Answer> {
        let added = added.filter(|_| self.version.as_str() >= "0.4.0");
        let mut took = Duration::ZERO;
        for plugin in self.plugins.iter().rev() {
            took += self.execute(plugin, "DEL", pod, added, around)?.0;
        }
        Ok(Answer { took, result: None })
    }

    fn execute(
        &self,
        plugin: &Map<String, Value>,
        verb: &str,
        pod: usize,
        previous: Option<&Value>,
        around: &[&str],
    ) -> Result<(Duration, Vec<u8>)> {
        let kind = plugin.get("type").and_then(Value::as_str).context("a plugin without type")?;
        let mut request = plugin.clone();
        request.insert("name".to_owned(), Value::from(self.name.as_str()));
        request.insert("cniVersion".to_owned(), Value::from(self.version.as_str()));
        request.extend(previous.map(|result| ("prevResult".to_owned(), result.clone())));
        if self.publishes && opens_ports(plugin) {
            let port = json!({"HostPort": FIRST_PORT + pod, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""});
            request.insert("runtimeConfig".to_owned(), json!({"portMappings": [port]}));
        }
        let program = Path::new(&self.folder).join(kind);
        let container = container_id(pod);
        let mut command = match around.split_first() {
            None => Command::new(&program),
            Some((wrapper, args)) => {
                let mut command = Command::new(wrapper);
                command.args(args).arg(&program);
                command
            }
        };
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &container)
            .env("CNI_NETNS", netns(pod))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{pod};K8S_POD_INFRA_CONTAINER_ID={container}"))
            .env("CNI_PATH", &self.folder);
        timed(command, Value::Object(request).to_string().as_bytes())
            .with_context(|| format!("{kind} {verb} for Pod {pod}"))
    }
}

fn opens_ports(plugin: &Map<String, Value>) -> bool {
    plugin.get("capabilities").is_some_and(|capabilities| capabilities.get("portMappings").is_some())
}

/// Name of the Pod's namespace file in `/run/netns`.
pub(crate) fn netns_name(pod: usize) -> String {
    format!("pod{pod}")
}

fn netns(pod: usize) -> String {
    format!("/run/netns/{}", netns_name(pod))
}

/// 64 hexadecimal digits, different from the first ones on.
fn container_id(pod: usize) -> String {
    let number = u64::try_from(pod).unwrap_or_default() + 1;
    format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(4)
}

/// Runs a program to its end with this input; the time from its start until it is reaped, and its output.
///
/// # Errors
/// When it cannot be started or does not exit with 0; with its output, where a plugin puts its error object.
pub(crate) fn timed(mut command: Command, input: &[u8]) -> Result<(Duration, Vec<u8>)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut output = Vec::with_capacity(4096);
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input) {
            // A program may end without reading, as for VERSION; Go's os/exec, hence libcni, makes nothing of it either.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut output)?;
    }
    let status = child.wait()?;
    let took = started.elapsed();
    if !status.success() {
        bail!("{status}: {}", String::from_utf8_lossy(&output).trim());
    }
    Ok((took, output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_the_newest_that_libcni_speaks() {
        for (versions, expected) in [
            (r#""cniVersion": "0.3.1""#, "0.3.1"),
            (r#""cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0", "9.0.0"]"#, "1.1.0"),
        ] {
            let list = format!(r#"{{"name": "n", {versions}, "plugins": [{{"type": "bridge"}}]}}"#);
            assert_eq!(Chain::parse("", "", "", &list).unwrap().version, expected);
        }
    }

    #[test]
    fn container_ids_differ_in_their_first_eleven_digits() {
        let ids: std::collections::BTreeSet<String> = (0..=250).map(|pod| container_id(pod)[..11].to_owned()).collect();
        assert_eq!(ids.len(), 251);
        assert_eq!(container_id(7).len(), 64);
    }
}
