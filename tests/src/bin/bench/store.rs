//! Writing many keys into etcd fast, through its own JSON gateway (etcd 3.4, /v3/kv/txn), without a process per write.
//!
//! Invariant: a write has been taken by etcd when the call returns; every answer but 200 is an error that carries the answer.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::Host;
use serde_json::{Value, json};

/// Operations in one transaction at most (etcd's --max-txn-ops).
const TOGETHER: usize = 128;
const LIMIT: Duration = Duration::from_secs(30);

/// The etcd member of one machine.
#[derive(Debug)]
pub(crate) struct Store {
    host: Host,
    server: SocketAddr,
}

impl Store {
    /// The member on `host`, which serves at `address`.
    pub(crate) fn new(host: &Host, address: Ipv4Addr) -> Self {
        Self::at(host, SocketAddr::from((address, 2379)))
    }

    /// The member on `host` that serves there.
    pub(crate) fn at(host: &Host, server: SocketAddr) -> Self {
        Self { host: host.clone(), server }
    }

    /// A lease that lasts this long; its number as text, as the gateway speaks of it.
    pub(crate) fn grant(&self, seconds: u32) -> Result<String> {
        let granted = self.post("/v3/lease/grant", &json!({"TTL": seconds.to_string()}))?;
        granted.get("ID").and_then(Value::as_str).map(str::to_owned).with_context(|| format!("no lease in {granted}"))
    }

    /// Writes keys, bound to a lease if there is one.
    pub(crate) fn put_all(&self, entries: &[(String, String)], lease: Option<&str>) -> Result<()> {
        entries.chunks(TOGETHER).try_for_each(|part| self.put_written(&written(part, lease)))
    }

    /// Writes keys as [`written`] has them.
    pub(crate) fn put_written(&self, transaction: &str) -> Result<()> {
        self.post_text("/v3/kv/txn", transaction).map(drop)
    }

    /// Deletes one key.
    pub(crate) fn delete(&self, key: &str) -> Result<()> {
        self.post("/v3/kv/deleterange", &json!({"key": base64(key)})).map(drop)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.post_text(path, &body.to_string())
    }

    fn post_text(&self, path: &str, body: &str) -> Result<Value> {
        // HTTP/1.0: the answer is not chunked and ends with the connection.
        let head =
            format!("POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut stream = self.host.within(|| TcpStream::connect_timeout(&self.server, LIMIT))??;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(format!("{head}{body}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, text) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        if head.split_whitespace().nth(1) != Some("200") {
            bail!("etcd, {path}: {}: {}", head.lines().next().unwrap_or_default(), text.trim());
        }
        serde_json::from_str(text).with_context(|| format!("etcd, {path}: {text}"))
    }
}

/// The request that writes these keys, [`TOGETHER`] at most: for those who write hundreds in a second, and prepare them before.
pub(crate) fn written(entries: &[(String, String)], lease: Option<&str>) -> String {
    let put = |(key, value): &(String, String)| json!({"requestPut": {"key": base64(key), "value": base64(value), "lease": lease.unwrap_or("0")}});
    let puts: Vec<Value> = entries.iter().map(put).collect();
    json!({"success": puts}).to_string()
}

/// Standard alphabet with padding (RFC 4648 §4), as JSON carries bytes in protocol buffers.
fn base64(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: u32| ALPHABET.get(usize::try_from(bits & 63).unwrap_or(0)).map_or('=', |byte| char::from(*byte));
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let bits = (0..3).fold(0, |bits, index| bits << 8 | u32::from(chunk.get(index).copied().unwrap_or(0)));
        for place in 0..4_usize {
            encoded.push(if place <= chunk.len() { digit(bits >> (18 - 6 * place)) } else { '=' });
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_test_vectors_of_rfc_4648() {
        for (plain, encoded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain), encoded);
        }
    }
}
