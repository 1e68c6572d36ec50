//! Questions to the health servers: status, headers and body.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::eventually;
use netstate::IpFamily;
use oracle::{Probe, Run, Seen, twin};
use serde_json::Value;

use super::machines::Machines;

const LIMIT: Duration = Duration::from_secs(20);

/// The daemon's own health server, which is the same for all families.
const OWN: u16 = 10256;

/// Asks as the probe did, in one family, until the answer is the same, and says what differs in the end: listeners and what they say follow
/// the tables.
pub(crate) fn compare(machines: &Machines, probe: &Probe, run: Run, family: IpFamily) -> Result<Option<String>> {
    let mut last = None;
    let same = eventually(LIMIT, || match compare_once(machines, probe, run, family) {
        Ok(None) => Ok(()),
        Ok(Some(text)) => {
            last = Some(text.clone());
            Err(text)
        }
        Err(error) => Err(format!("{error:#}")),
    });
    match (same, last) {
        (Ok(()), _) => Ok(None),
        (Err(_), Some(text)) => Ok(Some(text)),
        (Err(error), None) => Err(error),
    }
}

/// The twin of a Service has another name and a port that is 1000 higher.
fn compare_once(machines: &Machines, probe: &Probe, run: Run, family: IpFamily) -> Result<Option<String>> {
    let url = probe.http.as_deref().unwrap_or_default();
    let rest = url.strip_prefix("http://").context("no URL of HTTP")?;
    let (host, path) = rest.split_once('/').context("no path")?;
    let mut server: SocketAddr = host.parse()?;
    let mut theirs = probe.seen(run, IpFamily::V4).clone();
    if !family.is_v4() && server.port() != OWN {
        server = SocketAddr::new(twin::address(server.ip()), server.port() + 1000);
        if let Some(name) = theirs.body.pointer_mut("/service/name") {
            *name = Value::String(format!("{}{}", name.as_str().unwrap_or_default(), twin::SUFFIX));
            let longer = |length: &String| {
                length
                    .parse::<usize>()
                    .map_or_else(|_| length.clone(), |length| (length + twin::SUFFIX.len()).to_string())
            };
            theirs.headers.entry("Content-Length".to_owned()).and_modify(|length| *length = longer(length));
        }
    }
    let ours = machines.at(&probe.client, || get(server, path))?;
    Ok(match (ours, &theirs.error) {
        (Err(error), Some(_)) if format!("{error:#}").contains("refused") => None,
        (Err(error), _) => Some(format!("kube-proxy: {:?} {:?}; ours: {error:#}", theirs.status, theirs.error)),
        (Ok(text), None) => difference(&text, &theirs),
        (Ok(text), Some(error)) => Some(format!("kube-proxy: {error}; ours: {text}")),
    })
}

fn get(server: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn difference(text: &str, theirs: &Seen) -> Option<String> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let has = |name: &str, value: &str| {
        head.lines().filter_map(|line| line.split_once(": ")).any(|(n, v)| n.eq_ignore_ascii_case(name) && v == value)
    };
    let timed = theirs.body.to_string().contains("lastUpdated");
    let missing =
        theirs.headers.iter().filter(|(name, _)| !(timed && *name == "Content-Length")).find(|(n, v)| !has(n, v));
    let same = same(&serde_json::from_str(body).unwrap_or(Value::String(body.to_owned())), &theirs.body);
    if status == theirs.status && missing.is_none() && same {
        return None;
    }
    Some(format!("kube-proxy: {:?} {:?} {}; ours: {text:?}", theirs.status, theirs.headers, theirs.body))
}

/// Whether two bodies say the same; times may differ.
fn same(ours: &Value, theirs: &Value) -> bool {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
        }
        (Value::String(a), Value::String(b)) if b.ends_with('Z') => a.ends_with('Z'),
        _ => ours == theirs,
    }
}
