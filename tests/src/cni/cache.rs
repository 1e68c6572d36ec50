//! libcni's cache of results: where DEL, CHECK and GC find what ADD answered.
//!
//! Invariant: one file per attachment, `/var/lib/cni/results/NETWORK-CONTAINER-IFNAME`, of kind `cniCacheV1`
//! (`libcni/api.go`, cachedInfo).

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::attachment::Attachment;
use super::network::Network;
use crate::host::Host;

const FOLDER: &str = "/var/lib/cni/results";

fn file(network: &Network, attachment: &Attachment) -> String {
    format!("{FOLDER}/{}-{}-{}", network.name, attachment.container_id, attachment.ifname)
}

/// Keeps the result of an ADD.
pub(crate) fn store(host: &Host, network: &Network, attachment: &Attachment, result: &Value) -> Result<()> {
    let args: Vec<Vec<&str>> =
        attachment.args.split(';').filter_map(|pair| pair.split_once('=')).map(|(k, v)| vec![k, v]).collect();
    let entry = json!({
        "kind": "cniCacheV1",
        "containerId": attachment.container_id,
        "config": base64(network.source.as_bytes()),
        "ifName": attachment.ifname,
        "networkName": network.name,
        "netns": attachment.netns,
        "cniArgs": args,
        "capabilityArgs": attachment.capabilities,
        "result": result,
    });
    host.write(file(network, attachment), entry.to_string())
}

/// The result of the ADD of an attachment; `None` when there is no cached one.
pub(crate) fn load(host: &Host, network: &Network, attachment: &Attachment) -> Result<Option<Value>> {
    let path = host.path(file(network, attachment));
    match fs::read_to_string(&path) {
        Ok(text) => {
            let entry: Value = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
            Ok(entry.get("result").cloned())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Forgets an attachment.
pub(crate) fn remove(host: &Host, network: &Network, attachment: &Attachment) -> Result<()> {
    match fs::remove_file(host.path(file(network, attachment))) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("remove a cached result"),
        _ => Ok(()),
    }
}

/// Every cached attachment of a network.
pub(crate) fn list(host: &Host, network: &Network) -> Result<Vec<Attachment>> {
    let folder = host.path(FOLDER);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
        let entry: Value = serde_json::from_str(&fs::read_to_string(entry?.path())?).context("read a cached result")?;
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        if text("networkName") != network.name {
            continue;
        }
        let pairs = entry.get("cniArgs").and_then(Value::as_array).cloned().unwrap_or_default();
        let pair = |pair: &Value| {
            pair.as_array().map(|both| both.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("="))
        };
        found.push(Attachment {
            container_id: text("containerId"),
            netns: text("netns"),
            ifname: text("ifName"),
            args: pairs.iter().filter_map(pair).collect::<Vec<_>>().join(";"),
            capabilities: entry.get("capabilityArgs").and_then(Value::as_object).cloned().unwrap_or_default(),
        });
    }
    Ok(found)
}

/// Standard alphabet with padding (RFC 4648 §4), as Go encodes a byte slice in JSON.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| ALPHABET.get(usize::try_from(bits & 63).unwrap_or(0)).map_or('=', |byte| char::from(*byte));
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, index| bits << 8 | u32::from(chunk.get(index).copied().unwrap_or(0)));
        for place in 0..4_usize {
            text.push(if place <= chunk.len() { digit(bits >> (18 - 6 * place)) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_test_vectors_of_rfc_4648() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }
}
