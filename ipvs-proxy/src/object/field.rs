//! `Field`: a reader of an object's JSON that knows where it is.
//!
//! Invariant: an error names the field by its path in the object, what stands there and what is accepted. Fields that
//! nobody asks for are read over: Services in the wild carry dozens of them.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use cluster::Problem;
use netstate::{Prefix, Protocol};
use serde_json::Value;

use super::key::Kind;

/// A place in an object: a value, or its absence, and the path that leads there.
#[derive(Debug, Clone)]
pub(crate) struct Field<'a> {
    /// Nothing at the object itself.
    path: Option<Rc<Path>>,
    value: Option<&'a Value>,
}

/// The way to a field, shared by all that lie below it: only a problem has it as text, and nearly every field has none.
#[derive(Debug)]
struct Path {
    above: Option<Rc<Self>>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Key(&'static str),
    Index(usize),
}

impl fmt::Display for Path {
    /// `spec.ports[0].port`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(above) = &self.above {
            above.fmt(f)?;
        }
        match self.step {
            Step::Key(key) if self.above.is_none() => f.write_str(key),
            Step::Key(key) => write!(f, ".{key}"),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

impl<'a> Field<'a> {
    /// The object itself.
    #[must_use]
    pub(crate) const fn root(value: &'a Value) -> Self {
        Self { path: None, value: Some(value) }
    }

    /// The field `key` of the object that stands here; absent when this is no object.
    #[must_use]
    pub(crate) fn get(&self, key: &'static str) -> Self {
        self.below(Step::Key(key), self.value.and_then(|value| value.get(key)).filter(|value| !value.is_null()))
    }

    fn below(&self, step: Step, value: Option<&'a Value>) -> Self {
        Self { path: Some(Rc::new(Path { above: self.path.clone(), step })), value }
    }

    /// True when nothing, or `null`, stands here.
    #[must_use]
    pub(crate) const fn is_absent(&self) -> bool {
        self.value.is_none()
    }

    /// The problem that what stands here is not `accepted`.
    #[must_use]
    pub(crate) fn problem(&self, accepted: &'static str) -> Problem {
        let found = self.value.map_or_else(|| "missing".to_owned(), |value| shortened(&value.to_string()));
        let field = self.path.as_ref().map_or_else(|| "(the object)".to_owned(), ToString::to_string);
        Problem::new(field, found, accepted)
    }

    /// A text; `None` when absent.
    ///
    /// # Errors
    /// When something else stands here.
    pub(crate) fn text(&self) -> Result<Option<&'a str>, Problem> {
        self.value.map(|value| value.as_str().ok_or_else(|| self.problem("a text"))).transpose()
    }

    /// True or false; `None` when absent.
    ///
    /// # Errors
    /// When something else stands here.
    pub(crate) fn flag(&self) -> Result<Option<bool>, Problem> {
        self.value.map(|value| value.as_bool().ok_or_else(|| self.problem("true or false"))).transpose()
    }

    /// A port; `None` when absent.
    ///
    /// # Errors
    /// When something else stands here.
    pub(crate) fn port(&self) -> Result<Option<u16>, Problem> {
        let port = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
        self.value.map(|value| port(value).ok_or_else(|| self.problem("a port from 1 to 65535"))).transpose()
    }

    /// True when an object stands here.
    #[must_use]
    pub(crate) fn is_object(&self) -> bool {
        self.value.is_some_and(Value::is_object)
    }

    /// True when the number 0 stands here.
    #[must_use]
    pub(crate) fn is_zero(&self) -> bool {
        self.value.and_then(Value::as_u64) == Some(0)
    }

    /// A time in seconds; `None` when absent.
    ///
    /// # Errors
    /// When something else stands here.
    pub(crate) fn seconds(&self) -> Result<Option<u32>, Problem> {
        // v1.ClientIPConfig: more than 0 and at most a day.
        let seconds =
            |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=86_400).contains(n));
        self.value.map(|value| seconds(value).ok_or_else(|| self.problem("seconds from 1 to 86400"))).transpose()
    }

    /// An address; `None` when absent.
    ///
    /// # Errors
    /// When something else stands here.
    pub(crate) fn address(&self) -> Result<Option<IpAddr>, Problem> {
        let Some(text) = self.text()? else { return Ok(None) };
        parse_address(text).map(Some).ok_or_else(|| self.problem("an address such as 192.168.0.10"))
    }

    /// Refuses an object of another kind than `kind`, which another group may call the same. One that says no version is taken for ours.
    ///
    /// # Errors
    /// When the object's `kind` or `apiVersion` is another.
    pub(crate) fn expect_kind(&self, kind: Kind) -> Result<(), Problem> {
        let (field, version) = (self.get("kind"), self.get("apiVersion"));
        if field.text()? != Some(kind.name()) {
            return Err(field.problem(kind.name()));
        }
        if kind.has(version.text()?) { Ok(()) } else { Err(version.problem(kind.versions())) }
    }

    /// A transport protocol; TCP when absent.
    ///
    /// # Errors
    /// When something else stands here.
    pub(crate) fn protocol(&self) -> Result<Protocol, Problem> {
        match self.text()? {
            None | Some("TCP") => Ok(Protocol::Tcp),
            Some("UDP") => Ok(Protocol::Udp),
            Some("SCTP") => Ok(Protocol::Sctp),
            Some(_) => Err(self.problem("TCP, UDP or SCTP")),
        }
    }

    /// The places of an array; none when absent.
    ///
    /// # Errors
    /// When something else stands here.
    pub(crate) fn items(&self) -> Result<Vec<Self>, Problem> {
        let Some(value) = self.value else { return Ok(Vec::new()) };
        let array = value.as_array().ok_or_else(|| self.problem("a list"))?;
        let item = |(index, value)| self.below(Step::Index(index), Some(value));
        Ok(array.iter().enumerate().map(item).collect())
    }
}

/// Takes an element of a list in; one that cannot be read is noted and left out, and the others count.
pub(crate) fn keep<T>(elements: &mut Vec<T>, skipped: &mut Vec<String>, element: Result<T, Problem>) {
    match element {
        Ok(element) => elements.push(element),
        Err(problem) => skip(skipped, &problem),
    }
}

/// Elements of an object that are named when they are left out: whoever writes it chooses how many there are.
const NAMED: usize = 50;

/// Notes an element that is left out; of many only the first, and that there are more.
pub(crate) fn skip(skipped: &mut Vec<String>, problem: &Problem) {
    match skipped.len().cmp(&NAMED) {
        Ordering::Less => skipped.push(problem.to_string()),
        Ordering::Equal => {
            skipped.push(format!("{}: it and further elements that cannot be read are not named", problem.field))
        }
        Ordering::Greater => {}
    }
}

/// The value, or what counts when it is left open; why it cannot be read is noted.
pub(crate) fn or_open<T: Default>(skipped: &mut Vec<String>, value: Result<T, Problem>) -> T {
    value.unwrap_or_else(|problem| {
        skip(skipped, &problem);
        T::default()
    })
}

/// Enough of a long value to recognise it.
fn shortened(text: &str) -> String {
    const ENOUGH: usize = 80;
    let head: String = text.chars().take(ENOUGH).collect();
    if head.len() == text.len() { head } else { format!("{head}...") }
}

/// Reads an address as Kubernetes does: leading zeros of an IPv4 address are allowed and mean nothing
/// (k8s.io/utils/net ParseIPSloppy; `192.168.000.010` is 192.168.0.10).
#[must_use]
pub(crate) fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse().ok();
    }
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| IpAddr::V4(Ipv4Addr::from(octets)))
}

/// Reads a network as Kubernetes does: its address as [`parse_address`].
#[must_use]
pub(crate) fn parse_network(text: &str) -> Option<Prefix> {
    let (addr, len) = text.split_once('/')?;
    let len = Some(len).filter(|len| len.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()?;
    Prefix::new(parse_address(addr)?, len).ok()
}

/// True for an address that cannot be a virtual address or an endpoint.
pub(crate) fn is_unusable(addr: IpAddr) -> bool {
    let local = match addr {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        // What an IPv4-mapped one stands for would be judged nowhere, and no packet of IPv6 has it.
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    local || addr.is_unspecified() || addr.is_loopback() || addr.is_multicast()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_problem_names_path_value_and_accepted_form() {
        let object = json!({"spec": {"ports": [{"port": 80}, {"port": 99_999}]}});
        let ports = Field::root(&object).get("spec").get("ports").items().unwrap();
        assert_eq!(ports[0].get("port").port(), Ok(Some(80)));
        let problem = ports[1].get("port").port().unwrap_err();
        assert_eq!(problem.to_string(), "spec.ports[1].port: 99999; accepted: a port from 1 to 65535");
    }

    #[test]
    fn null_counts_as_absent_and_long_values_are_cut() {
        let object = json!({"a": null, "b": "x".repeat(200)});
        assert!(Field::root(&object).get("a").is_absent());
        assert_eq!(Field::root(&object).get("b").flag().unwrap_err().found.len(), 83);
        assert_eq!(Field::root(&object).get("c").get("d").problem("x").to_string(), "c.d: missing; accepted: x");
    }

    #[test]
    fn addresses_that_name_no_single_host_of_a_network_are_of_no_use() {
        for bad in [
            "0.0.0.0",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.7.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(is_unusable(bad.parse().unwrap()), "{bad}");
        }
        for good in ["192.168.0.10", "10.0.0.255", "100.64.0.1", "fd00::1", "2001:db8::1"] {
            assert!(!is_unusable(good.parse().unwrap()), "{good}");
        }
    }

    #[test]
    fn addresses_are_read_as_kubernetes_reads_them() {
        for (text, address) in
            [("192.168.0.10", "192.168.0.10"), ("192.168.000.010", "192.168.0.10"), ("fd00::1", "fd00::1")]
        {
            assert_eq!(parse_address(text), address.parse().ok(), "{text}");
        }
        for junk in ["", "1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.x", "1.2..4", "+1.2.3.4", "None", "fd00:::1"] {
            assert_eq!(parse_address(junk), None, "{junk}");
        }
    }
}
