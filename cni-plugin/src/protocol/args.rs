//! The `CNI_*` environment of one call (SPEC "Parameters") and `CNI_ARGS`.
//!
//! Invariant: a [`Request`] is complete and checked; every missing variable is reported at once. `CNI_PATH` is not
//! needed: this plugin executes no other.

use std::net::IpAddr;
use std::path::PathBuf;

use netstate::{IfName, MacAddr};

use crate::protocol::attachment::{Attachment, ContainerId};
use crate::protocol::error::{CniError, Code};

/// What the runtime asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Attach a container to the network.
    Add(Call),
    /// Say whether an attachment is as ADD left it.
    Check(Call),
    /// Remove an attachment.
    Del(Call),
    /// Remove every attachment that the configuration does not list.
    Gc,
    /// Say whether ADD can be served.
    Status,
    /// Say the spoken versions.
    Version,
}

/// Parameters of a verb that concerns one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which attachment.
    pub attachment: Attachment,
    /// Path of the container's network namespace. Always there for ADD and CHECK.
    pub netns: Option<PathBuf>,
    /// The text of `CNI_ARGS`, not yet parsed: DEL must not fail because of it.
    pub args: String,
    /// `CNI_NETNS_OVERRIDE` is `1` or `true`: the namespace may be the one the plugin runs in. Tests of plugins set it.
    pub own_netns: bool,
}

impl Call {
    /// The path of the namespace.
    ///
    /// # Errors
    /// Code 4 when there is none.
    pub fn netns(&self) -> Result<&PathBuf, CniError> {
        self.netns.as_ref().ok_or_else(|| missing(&["CNI_NETNS"]))
    }
}

/// The longest accepted container identifier in bytes: it becomes part of file names, which end at 255 (NAME_MAX).
const CONTAINER_ID_MAX: usize = 200;

/// The longest accepted path in bytes, as the kernel's: its `PATH_MAX` counts the end.
const PATH_MAX: usize = 4095;

impl Request {
    /// Reads the environment through `var`, which answers `None` for a variable that is not set.
    ///
    /// # Errors
    /// Code 4, naming every missing variable or the first bad one.
    pub fn parse(var: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let command = var("CNI_COMMAND").unwrap_or_default();
        match command.as_str() {
            "ADD" => Ok(Self::Add(call(&var, true)?)),
            "CHECK" => Ok(Self::Check(call(&var, true)?)),
            "DEL" => Ok(Self::Del(call(&var, false)?)),
            "GC" => Ok(Self::Gc),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            "" => Err(missing(&["CNI_COMMAND"])),
            other => Err(CniError::new(Code::InvalidEnvironment, format!("unknown CNI_COMMAND: {other}"))
                .details("accepted is ADD, CHECK, DEL, GC, STATUS or VERSION")),
        }
    }
}

fn missing(names: &[&str]) -> CniError {
    CniError::new(Code::InvalidEnvironment, format!("required env variables [{}] missing", names.join(",")))
}

fn call(var: &impl Fn(&str) -> Option<String>, needs_netns: bool) -> Result<Call, CniError> {
    let get = |name: &str| var(name).filter(|value| !value.is_empty());
    let (container, netns, ifname) = (get("CNI_CONTAINERID"), get("CNI_NETNS"), get("CNI_IFNAME"));
    let absent: Vec<&str> = [
        ("CNI_CONTAINERID", container.is_none()),
        ("CNI_NETNS", needs_netns && netns.is_none()),
        ("CNI_IFNAME", ifname.is_none()),
    ]
    .iter()
    .filter_map(|(name, is_absent)| is_absent.then_some(*name))
    .collect();
    let (Some(container), Some(ifname), true) = (container, ifname, absent.is_empty()) else {
        return Err(missing(&absent));
    };
    let attachment = Attachment::new(container_id(&container)?, interface(&ifname)?);
    let netns = match netns.map(namespace).transpose() {
        // No Pod was ever attached there: DEL has nothing to do in it.
        Err(_) if !needs_netns => None,
        checked => checked?,
    };
    let own_netns = get("CNI_NETNS_OVERRIDE").is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"));
    Ok(Call { attachment, netns, args: get("CNI_ARGS").unwrap_or_default(), own_netns })
}

fn container_id(text: &str) -> Result<ContainerId, CniError> {
    let bad =
        || CniError::new(Code::InvalidEnvironment, "invalid characters in containerID: CNI_CONTAINERID").details(text);
    let id = ContainerId::new(text).ok_or_else(bad)?;
    if text.len() > CONTAINER_ID_MAX {
        let msg = format!("CNI_CONTAINERID has {} bytes", text.len());
        return Err(CniError::new(Code::InvalidEnvironment, msg).details(format!("at most {CONTAINER_ID_MAX}")));
    }
    Ok(id)
}

fn namespace(text: String) -> Result<PathBuf, CniError> {
    if text.len() > PATH_MAX {
        let msg = format!("CNI_NETNS has {} bytes", text.len());
        return Err(CniError::new(Code::InvalidEnvironment, msg).details(format!("at most {PATH_MAX}")));
    }
    Ok(PathBuf::from(text))
}

fn interface(text: &str) -> Result<IfName, CniError> {
    IfName::new(text).map_err(|e| CniError::new(Code::InvalidEnvironment, "invalid CNI_IFNAME").details(e.to_string()))
}

/// What `CNI_ARGS` may say to this plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs {
    /// `IP`: the address the container must get; a prefix length is dropped.
    pub ip: Option<IpAddr>,
    /// `MAC`: the hardware address of the container's interface.
    pub mac: Option<MacAddr>,
}

impl CniArgs {
    /// Reads `K=V;K2=V2`. A value may contain `=`. Unknown keys are refused unless `IgnoreUnknown` is `1` or `true`,
    /// wherever it stands: containerd sends the pairs in random order.
    ///
    /// # Errors
    /// Code 4 for a pair without `=`, a bad value or an unknown key.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let bad = |pair: &str, accepted: &str| {
            CniError::new(Code::InvalidEnvironment, format!("CNI_ARGS: invalid pair {pair:?}"))
                .details(format!("accepted is {accepted}"))
        };
        let (mut args, mut unknown, mut ignore_unknown) = (Self::default(), Vec::new(), false);
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| bad(pair, "KEY=VALUE;KEY=VALUE"))?;
            match key {
                "IgnoreUnknown" => ignore_unknown = value == "1" || value.eq_ignore_ascii_case("true"),
                "IP" | "MAC" if value.is_empty() => {}
                "IP" => args.ip = Some(address(value).ok_or_else(|| bad(pair, "an address such as 172.7.21.9"))?),
                "MAC" => args.mac = Some(value.parse().map_err(|_| bad(pair, "an address such as 0a:58:ac:07:15:09"))?),
                _ => unknown.push(pair),
            }
        }
        if unknown.is_empty() || ignore_unknown {
            return Ok(args);
        }
        Err(CniError::new(Code::InvalidEnvironment, format!("CNI_ARGS: unknown args {unknown:?}"))
            .details("set IgnoreUnknown=1 to have them ignored"))
    }
}

/// An address, with or without a prefix length; an IPv4 address in IPv6 form is an IPv4 address.
#[must_use]
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    let (addr, len) = text.split_once('/').unwrap_or((text, "0"));
    len.parse::<u8>().ok()?;
    addr.parse().ok().map(|addr: IpAddr| addr.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Request, CniError> {
        Request::parse(|name| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()))
    }

    const FULL: [(&str, &str); 4] =
        [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/run/netns/c1"), ("CNI_IFNAME", "eth0")];

    fn with(name: &str, value: &str) -> Result<Request, CniError> {
        let pairs: Vec<_> = FULL.iter().map(|(k, v)| if *k == name { (*k, value) } else { (*k, *v) }).collect();
        parse(&pairs)
    }

    #[test]
    fn complete_environment_becomes_a_call() {
        let Ok(Request::Add(call)) = parse(&FULL) else { panic!("no ADD") };
        assert_eq!(call.attachment.to_string(), "interface eth0 of container c1");
        assert_eq!(call.netns().unwrap(), &PathBuf::from("/run/netns/c1"));
        assert!(matches!(with("CNI_COMMAND", "CHECK"), Ok(Request::Check(_))));
    }

    #[test]
    fn every_missing_variable_is_named_at_once() {
        let error = parse(&[("CNI_COMMAND", "ADD")]).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert_eq!(error.msg, "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing");
        let error = parse(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "")]).unwrap_err();
        assert_eq!(error.msg, "required env variables [CNI_CONTAINERID,CNI_IFNAME] missing");
        assert_eq!(parse(&[]).unwrap_err().msg, "required env variables [CNI_COMMAND] missing");
    }

    #[test]
    fn only_attachment_verbs_need_an_attachment_and_del_needs_no_namespace() {
        let Ok(Request::Del(call)) =
            parse(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")])
        else {
            panic!("no DEL")
        };
        assert_eq!(call.netns, None);
        for (verb, request) in [("GC", Request::Gc), ("STATUS", Request::Status), ("VERSION", Request::Version)] {
            assert_eq!(parse(&[("CNI_COMMAND", verb)]).unwrap(), request);
        }
    }

    #[test]
    fn bad_values_are_refused_with_code_4() {
        let long = "x".repeat(201);
        for (name, value) in [
            ("CNI_COMMAND", "add"),
            ("CNI_COMMAND", "UPDATE"),
            ("CNI_CONTAINERID", "../etc"),
            ("CNI_CONTAINERID", "a b"),
            ("CNI_CONTAINERID", &long),
            ("CNI_IFNAME", "eth0/1"),
            ("CNI_IFNAME", "sixteen-bytes-xx"),
            ("CNI_IFNAME", ".."),
        ] {
            assert_eq!(with(name, value).unwrap_err().code, Code::InvalidEnvironment, "{name}={value}");
        }
    }

    #[test]
    fn a_path_of_a_namespace_is_no_longer_than_the_kernels() {
        let path = |length: usize| format!("/{}", "n".repeat(length - 1));
        assert!(matches!(with("CNI_NETNS", &path(4095)), Ok(Request::Add(_))));
        let error = with("CNI_NETNS", &path(4096)).unwrap_err();
        assert_eq!((error.code, error.msg.as_str()), (Code::InvalidEnvironment, "CNI_NETNS has 4096 bytes"));
        let of_del = FULL.map(|(name, value)| (name, if name == "CNI_COMMAND" { "DEL" } else { value }));
        let long = path(4096);
        let of_del = of_del.map(|(name, value)| (name, if name == "CNI_NETNS" { long.as_str() } else { value }));
        assert!(matches!(parse(&of_del), Ok(Request::Del(call)) if call.netns.is_none()));
    }

    #[test]
    fn cni_args_are_read_in_any_order_and_values_may_contain_equals() {
        let args =
            CniArgs::parse("K8S_POD_NAME=a=b;IP=172.7.21.9/24;IgnoreUnknown=TRUE;MAC=02:00:00:00:00:01;").unwrap();
        assert_eq!(args.ip, Some("172.7.21.9".parse().unwrap()));
        assert_eq!(args.mac, Some(MacAddr([2, 0, 0, 0, 0, 1])));
        assert_eq!(CniArgs::parse("").unwrap(), CniArgs::default());
        assert_eq!(CniArgs::parse("IP=;MAC=").unwrap(), CniArgs::default(), "Go's empty texts ask for nothing");
        assert_eq!(CniArgs::parse("IP=::ffff:172.7.21.9").unwrap().ip, args.ip);
    }

    #[test]
    fn unknown_or_bad_cni_args_are_refused() {
        assert_eq!(CniArgs::parse("FOO=BAR").unwrap_err().msg, "CNI_ARGS: unknown args [\"FOO=BAR\"]");
        for bad in ["FOO", "IP=300.1.1.1", "IP=10.0.0.1/x", "MAC=02:00", "IgnoreUnknown=0;A=1", "ip=10.0.0.1"] {
            assert_eq!(CniArgs::parse(bad).unwrap_err().code, Code::InvalidEnvironment, "{bad}");
        }
    }
}
