//! One execution of the plugin: environment and standard input in, standard output and exit code out.
//!
//! Invariant: exactly one JSON object goes to standard output: the result (nothing for verbs without one), or the
//! error, and then the exit code is 1.

use std::io::{self, Read, Write as _};

use netstate::calls::Verb;

use crate::protocol::args::Request;
use crate::protocol::error::{CniError, Code};
use crate::protocol::netconf::NetConf;
use crate::protocol::version::SpecVersion;
use crate::roles::{self, PluginName};
use crate::state::calls::Counted;

/// The most that is read from standard input, in bytes.
const INPUT_MAX: u64 = 4 * 1024 * 1024;

/// What the process prints and how it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Text for standard output.
    pub stdout: String,
    /// Exit code.
    pub code: u8,
    /// What is counted of the call.
    pub counted: Option<Counted>,
}

/// Serves one call of a binary called as `program`. `var` answers environment variables.
pub fn serve(program: &str, var: impl Fn(&str) -> Option<String>, input: &mut dyn Read) -> Answer {
    let mut version = SpecVersion::NEWEST;
    let verb = var("CNI_COMMAND").and_then(|name| Verb::from_name(&name));
    let counted = |error| verb.map(|verb| Counted { verb, error });
    match dispatch(program, var, input, &mut version) {
        Ok(stdout) => Answer { stdout, code: 0, counted: counted(None) },
        Err(error) => Answer { stdout: error.render(version), code: 1, counted: counted(Some(error.code.number())) },
    }
}

fn dispatch(
    program: &str,
    var: impl Fn(&str) -> Option<String>,
    input: &mut dyn Read,
    version: &mut SpecVersion,
) -> Result<String, CniError> {
    let request = Request::parse(var)?;
    if request == Request::Version {
        return Ok(roles::version::version(PluginName::of(program, "").ok().map(PluginName::role)));
    }
    let mut conf = read(input)?;
    *version = conf.version;
    gate(&request, conf.version)?;
    let name = PluginName::of(program, &conf.plugin)?;
    let role = name.role();
    roles::version::spoken_by(role, conf.version)?;
    if name.stands_in() {
        conf = conf.lenient();
    }
    let result = match &request {
        Request::Add(call) => {
            let (network, unknown) = (conf.name.clone(), conf.unknown.clone());
            let result = role.add(conf, call)?;
            warn_of_ignored(&network, name, &unknown.paths());
            Some(result)
        }
        Request::Check(call) => role.check(conf, call).map(|()| None)?,
        Request::Del(call) => role.del(&conf, call).map(|()| None)?,
        Request::Gc => role.gc(&conf).map(|()| None)?,
        Request::Status => role.status(conf).map(|()| None)?,
        Request::Version => None,
    };
    Ok(result.map(|object| format!("{object:#}\n")).unwrap_or_default())
}

/// Writes into the runtime's log which keys had no effect: they have none on the plugin that this one stands in for, either.
fn warn_of_ignored(network: &str, name: PluginName, paths: &[String]) {
    if !paths.is_empty() {
        let paths = paths.join(", ");
        // A runtime that has closed its log gets its Pod all the same.
        let _ = writeln!(
            io::stderr(),
            "netd-cni: network {network}: keys that plugin {name} does not know are ignored: {paths}"
        );
    }
}

fn read(input: &mut dyn Read) -> Result<NetConf, CniError> {
    let mut bytes = Vec::new();
    input
        .take(INPUT_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| CniError::new(Code::Io, "error reading from stdin").details(e.to_string()))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > INPUT_MAX {
        return Err(CniError::new(Code::Decode, format!("standard input has more than {INPUT_MAX} bytes")));
    }
    NetConf::parse(&bytes)
}

/// Verbs that came with later versions need a configuration of such a version.
fn gate(request: &Request, version: SpecVersion) -> Result<(), CniError> {
    let (verb, since) = match request {
        Request::Check(_) => ("CHECK", SpecVersion::V0_4_0),
        Request::Gc => ("GC", SpecVersion::V1_1_0),
        Request::Status => ("STATUS", SpecVersion::V1_1_0),
        Request::Add(_) | Request::Del(_) | Request::Version => return Ok(()),
    };
    if version >= since {
        return Ok(());
    }
    let msg = format!("config version does not allow {verb}");
    Err(CniError::new(Code::IncompatibleVersion, msg).details(format!("config is {version}, {verb} came with {since}")))
}
