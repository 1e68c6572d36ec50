//! One execution of one plugin.
//!
//! Invariant: the plugin runs with the machine's network and files, gets its whole input at once and end of file, and its
//! answer is read as `pkg/invoke/raw_exec.go` reads it.

use std::fmt;

use anyhow::{Context, Result};
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
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

impl fmt::Display for PluginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plugin type={:?} failed ({}), code {}: {}", self.plugin, self.verb, self.code, self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

impl std::error::Error for PluginError {}

/// Executes `plugin` from `bin_dir` and gives the JSON it answered; `None` when it answered nothing.
pub(crate) fn execute(
    host: &Host,
    bin_dir: &str,
    plugin: &str,
    verb: &str,
    attachment: Option<&Attachment>,
    input: &Value,
) -> Result<Option<Value>> {
    let given = |field: fn(&Attachment) -> &str| attachment.map_or("", field);
    let command = host
        .command(format!("{bin_dir}/{plugin}"))
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", given(|attachment| &attachment.container_id))
        .env("CNI_NETNS", given(|attachment| &attachment.netns))
        .env("CNI_IFNAME", given(|attachment| &attachment.ifname))
        .env("CNI_ARGS", given(|attachment| &attachment.args))
        .env("CNI_PATH", bin_dir)
        .input(input.to_string());
    let output = command.output()?;
    if !output.status.success() {
        return Err(failure(plugin, verb, &output).into());
    }
    if output.stdout.trim().is_empty() {
        return Ok(None);
    }
    let answer = serde_json::from_str(&output.stdout);
    answer
        .map(Some)
        .with_context(|| format!("plugin {plugin} ({verb}) succeeded and printed no JSON: {:?}", output.stdout))
}

fn failure(plugin: &str, verb: &str, output: &crate::Output) -> PluginError {
    let (plugin, verb) = (plugin.to_owned(), verb.to_owned());
    match serde_json::from_str::<ErrorObject>(&output.stdout) {
        Ok(ErrorObject { code, msg, details }) => PluginError { plugin, verb, code, message: msg, details },
        Err(_) => {
            let message = format!("netplugin failed with no error object: {}", output.status);
            let details = format!("stdout {:?}, stderr {:?}", output.stdout.trim(), output.stderr.trim());
            PluginError { plugin, verb, code: 0, message, details }
        }
    }
}
