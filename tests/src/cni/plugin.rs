//! One execution of one plugin.
//!
//! Invariant: the plugin is the first regular file of its name in the folders of `CNI_PATH`, runs with the machine's network
//! and files and the runtime's whole environment, gets its input at once and end of file, and its failure is reported as
//! `pkg/invoke/raw_exec.go` reports it.

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};
use serde::Deserialize;
use serde_json::Value;

use super::attachment::Attachment;
use crate::host::Host;

/// The error object a plugin answered (SPEC §5, Error), or what stands for it when it answered none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginError {
    /// Program name of the plugin.
    pub plugin: String,
    /// `ADD`, `DEL` ...
    pub verb: String,
    /// Number of the error; 0 when the plugin answered no error object.
    pub code: u32,
    /// Short text.
    pub message: String,
    /// Long text; may be empty.
    pub details: String,
}

#[derive(Deserialize)]
struct ErrorObject {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl fmt::Display for PluginError {
    /// libcni's words: chains wrap what ADD, DEL and GC say, and pass on CHECK and STATUS as they are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verb.as_str() {
            "ADD" => write!(f, "plugin type={:?} failed (add): ", self.plugin)?,
            "DEL" => write!(f, "plugin type={:?} failed (delete): ", self.plugin)?,
            "GC" => write!(f, "failed to GC plugin {}: ", self.plugin)?,
            _ => {}
        }
        write!(f, "{}", self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

impl std::error::Error for PluginError {}

/// The variables of a call.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) verb: &'a str,
    pub(crate) container_id: &'a str,
    pub(crate) netns: &'a str,
    pub(crate) ifname: &'a str,
    pub(crate) args: &'a str,
    pub(crate) path: &'a str,
}

impl<'a> Call<'a> {
    /// A verb about one attachment.
    pub(crate) fn about(verb: &'a str, attachment: &'a Attachment, path: &'a str) -> Self {
        let Attachment { container_id, netns, ifname, args, .. } = attachment;
        Self { verb, container_id, netns, ifname, args, path }
    }

    /// GC and STATUS: the other variables are there and empty.
    pub(crate) fn about_nothing(verb: &'a str, path: &'a str) -> Self {
        Self { verb, container_id: "", netns: "", ifname: "", args: "", path }
    }

    /// VERSION: plugins of an older skel want some value (`pkg/invoke/exec.go`, GetVersionInfo).
    pub(crate) fn version() -> Self {
        Self { verb: "VERSION", container_id: "", netns: "dummy", ifname: "dummy", args: "", path: "dummy" }
    }
}

/// The file of a plugin in the folders of a path (`pkg/invoke/find.go`).
///
/// # Errors
/// When the name is none or no folder has such a regular file.
pub(crate) fn find(host: &Host, plugin: &str, folders: &[String]) -> Result<String> {
    if plugin.is_empty() {
        bail!("no plugin name provided");
    }
    if plugin.contains('/') {
        bail!("invalid plugin name: {plugin}");
    }
    if folders.is_empty() {
        bail!("no paths provided");
    }
    let candidates: Vec<String> = folders.iter().map(|folder| format!("{folder}/{plugin}")).collect();
    // Seen from inside, where absolute links lead to the machine's own files.
    let found = host.within(|| candidates.into_iter().find(|file| Path::new(file).is_file()))?;
    match found {
        Some(file) => Ok(file),
        None => bail!("failed to find plugin {plugin:?} in path [{}]", folders.join(" ")),
    }
}

/// Executes the file of a plugin and gives what it printed.
///
/// # Errors
/// [`PluginError`] when it ends with anything but success.
pub(crate) fn execute(host: &Host, file: &str, call: &Call<'_>, input: &Value) -> Result<String> {
    let command = host
        .command(file)
        .env("CNI_COMMAND", call.verb)
        .env("CNI_CONTAINERID", call.container_id)
        .env("CNI_NETNS", call.netns)
        .env("CNI_ARGS", call.args)
        .env("CNI_IFNAME", call.ifname)
        .env("CNI_PATH", call.path)
        .input(input.to_string());
    let output = command.output()?;
    if !output.status.success() {
        let plugin = file.rsplit('/').next().unwrap_or(file);
        return Err(failure(plugin, call.verb, &output).into());
    }
    Ok(output.stdout)
}

fn failure(plugin: &str, verb: &str, output: &crate::Output) -> PluginError {
    let (plugin, verb) = (plugin.to_owned(), verb.to_owned());
    let without_object = |message: String| PluginError {
        plugin: plugin.clone(),
        verb: verb.clone(),
        code: 0,
        message,
        details: String::new(),
    };
    if output.stdout.is_empty() && output.stderr.is_empty() {
        return without_object(format!("netplugin failed with no error message: {}", output.status));
    }
    if output.stdout.is_empty() {
        return without_object(format!("netplugin failed: {:?}: {}", output.stderr, output.status));
    }
    match serde_json::from_str::<ErrorObject>(&output.stdout) {
        Ok(ErrorObject { code, msg, details }) => PluginError { plugin, verb, code, message: msg, details },
        Err(error) => without_object(format!(
            "netplugin failed but error parsing its diagnostic message {:?}: {error}",
            output.stdout
        )),
    }
}
