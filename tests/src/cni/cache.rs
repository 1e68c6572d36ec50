//! libcni's cache of results: where DEL, CHECK and GC find what ADD answered.
//!
//! Invariant: one file per attachment, `/var/lib/cni/results/NETWORK-CONTAINER-IFNAME`, of kind `cniCacheV1`, 0600 in a folder
//! of 0700 (`libcni/api.go`, cachedInfo). A file of another kind is a bare result, as libcni before 0.8 wrote it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::attachment::Attachment;
use super::client::Release;
use super::network::Network;
use super::result;
use crate::host::Host;

const FOLDER: &str = "/var/lib/cni/results";
const KIND: &str = "cniCacheV1";

fn file(host: &Host, network: &Network, attachment: &Attachment) -> PathBuf {
    host.path(format!("{FOLDER}/{}-{}-{}", network.name, attachment.container_id, attachment.ifname))
}

/// Keeps the result of an ADD.
pub(crate) fn store(
    host: &Host,
    release: Release,
    network: &Network,
    attachment: &Attachment,
    result: &Value,
) -> Result<()> {
    // Empty members are left out; the older release does not know the namespace.
    let args: Vec<Vec<&str>> =
        attachment.args.split(';').filter_map(|pair| pair.split_once('=')).map(|(k, v)| vec![k, v]).collect();
    let mut entry = json!({
        "kind": KIND,
        "containerId": attachment.container_id,
        "config": base64(network.source.as_bytes()),
        "ifName": attachment.ifname,
        "networkName": network.name,
        "netns": if release == Release::V1_3 { attachment.netns.as_str() } else { "" },
        "cniArgs": args,
        "capabilityArgs": attachment.capabilities,
        "result": result,
    });
    if let Some(members) = entry.as_object_mut() {
        members.retain(|_, value| ![json!(""), json!([]), json!({})].contains(value));
    }
    let folder = host.path(FOLDER);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).context("make the folder of cached results")?;
    let file = file(host, network, attachment);
    fs::write(&file, entry.to_string()).with_context(|| format!("write {}", file.display()))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).context("set the mode of a cached result")
}

/// The result of the ADD of an attachment in the version of the network; `None` when there is no cached one.
///
/// # Errors
/// When there is one that makes no sense.
pub(crate) fn load(host: &Host, release: Release, network: &Network, attachment: &Attachment) -> Result<Option<Value>> {
    // libcni takes every failure to read for an absent file.
    let Ok(text) = fs::read_to_string(file(host, network, attachment)) else { return Ok(None) };
    let entry: Value = serde_json::from_str(&text).context("not JSON")?;
    let result = if entry.get("kind") == Some(&json!(KIND)) { entry.get("result") } else { Some(&entry) };
    let result = result.filter(|result| result.is_object()).context("no result in it")?;
    ensure!(result.get("cniVersion").is_some(), "a result without version");
    result::convert(release, result, &network.cni_version)
        .with_context(|| format!("failed to convert cached result to config version {:?}", network.cni_version))
        .map(Some)
}

/// Forgets an attachment.
pub(crate) fn remove(host: &Host, network: &Network, attachment: &Attachment) -> Result<()> {
    match fs::remove_file(file(host, network, attachment)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("remove a cached result"),
        _ => Ok(()),
    }
}

/// The configuration that the ADD of an attachment had; CRI-O deletes with it.
pub(crate) fn configuration(host: &Host, network: &Network, attachment: &Attachment) -> Option<String> {
    let text = fs::read_to_string(file(host, network, attachment)).ok()?;
    let entry: Value = serde_json::from_str(&text).ok()?;
    String::from_utf8(from_base64(entry.get("config")?.as_str()?)?).ok()
}

/// Every cached attachment of a network, by file name; `None` without the folder. What cannot be read is passed over.
pub(crate) fn list(host: &Host, network: &Network) -> Option<Vec<Attachment>> {
    let mut files: Vec<PathBuf> = fs::read_dir(host.path(FOLDER)).ok()?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let entries = files.iter().filter_map(|file| serde_json::from_str(&fs::read_to_string(file).ok()?).ok());
    let of_network = |entry: &Map<String, Value>| {
        entry.get("kind") == Some(&json!(KIND)) && entry.get("networkName") == Some(&json!(network.name))
    };
    Some(entries.filter(of_network).map(|entry| attachment(&entry)).collect())
}

fn attachment(entry: &Map<String, Value>) -> Attachment {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let pairs = entry.get("cniArgs").and_then(Value::as_array).cloned().unwrap_or_default();
    let pair =
        |pair: &Value| pair.as_array().map(|both| both.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("="));
    Attachment {
        container_id: text("containerId"),
        netns: text("netns"),
        ifname: text("ifName"),
        args: pairs.iter().filter_map(pair).collect::<Vec<_>>().join(";"),
        capabilities: entry.get("capabilityArgs").and_then(Value::as_object).cloned().unwrap_or_default(),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard alphabet with padding (RFC 4648 §4), as Go encodes a byte slice in JSON.
fn base64(bytes: &[u8]) -> String {
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

/// The inverse; `None` for a digit that is none.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0_u32);
    for digit in text.bytes().filter(|digit| *digit != b'=') {
        let value = ALPHABET.iter().position(|known| *known == digit)?;
        bits = (bits << 6 | u32::try_from(value).ok()?) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
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
            assert_eq!(from_base64(encoded).unwrap(), plain.as_bytes());
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
        assert_eq!(from_base64("+/8=").unwrap(), [0xfb, 0xff]);
        assert_eq!(from_base64("a b"), None);
    }
}
