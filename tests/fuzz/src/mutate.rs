//! Makes new inputs out of those of a corpus: bytes changed, moved and repeated, JSON values exchanged.

use proptest::prelude::RngExt;
use proptest::test_runner::TestRng;
use serde_json::{Map, Value, json};

/// The longest input that mutation makes, in bytes.
const LENGTH_MAX: usize = 64 * 1024;

/// Pieces that parsers treat in a special way.
const TOKENS: [&str; 32] = [
    "\0",
    "\n",
    "\r\n",
    "\"",
    "\\u0000",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "=",
    ";",
    "..",
    "/",
    "../../etc",
    "-1",
    "1e400",
    "0.5",
    "18446744073709551616",
    "null",
    "true",
    "255.255.255.255/33",
    "::ffff:10.0.0.1/128",
    "0.0.0.0/0",
    "not found",
    "No Such File Or Directory",
    "\u{feff}",
    "\u{1f980}",
    "IgnoreUnknown=1",
    "eth0",
    "sixteen-bytes-xx",
];

fn below(rng: &mut TestRng, limit: usize) -> usize {
    if limit == 0 { 0 } else { rng.random_range(0..limit) }
}

fn pick<'a, T>(rng: &mut TestRng, items: &'a [T]) -> Option<&'a T> {
    items.get(below(rng, items.len()))
}

/// Numbers at which lengths and counts of binary messages go wrong.
const NUMBERS: [u32; 10] = [0, 1, 3, 4, 5, 0x7f, 0xff, 0xffff, 0x7fff_ffff, u32::MAX];

/// An input made from one or two of `corpus`.
#[must_use]
pub fn mutated(rng: &mut TestRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = pick(rng, corpus).cloned().unwrap_or_default();
    for _ in 0..=below(rng, 4) {
        match serde_json::from_slice::<Value>(&input) {
            Ok(value) if rng.random_range(0..3) > 0 => {
                input = changed_value(rng, value, corpus).to_string().into_bytes()
            }
            _ => change_bytes(rng, &mut input, corpus),
        }
    }
    input.truncate(LENGTH_MAX);
    input
}

fn change_bytes(rng: &mut TestRng, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = below(rng, input.len() + 1);
    let end = (at + 1 + below(rng, 16)).min(input.len());
    match below(rng, 9) {
        0 => input.truncate(at),
        1 if at < input.len() => input[at] ^= 1 << below(rng, 8),
        2 if at < end => drop(input.drain(at..end)),
        3 if at < end => {
            let piece = input[at..end].to_vec().repeat(1 + below(rng, 400));
            input.splice(at..at, piece).for_each(drop);
        }
        4 => {
            let other = pick(rng, corpus).cloned().unwrap_or_default();
            input.truncate(at);
            input.extend_from_slice(&other[below(rng, other.len())..]);
        }
        5 | 6 => {
            // Where messages have their lengths and types: at multiples of two bytes.
            let number = pick(rng, &NUMBERS).copied().unwrap_or_default().to_ne_bytes();
            let width = [1, 2, 4][below(rng, 3)];
            for (byte, new) in input.iter_mut().skip(at & !1).zip(&number[..width]) {
                *byte = *new;
            }
        }
        _ => {
            let token = pick(rng, &TOKENS).copied().unwrap_or_default();
            input.splice(at..at, token.bytes()).for_each(drop);
        }
    }
}

/// `value` with one of its parts exchanged.
fn changed_value(rng: &mut TestRng, mut value: Value, corpus: &[Vec<u8>]) -> Value {
    let new = odd_value(rng, corpus);
    let depth = below(rng, 5);
    change_at(rng, &mut value, depth, new);
    value
}

fn change_at(rng: &mut TestRng, value: &mut Value, depth: usize, new: Value) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let Some(key) = pick(rng, &keys) else { return };
            match (below(rng, 8), map.get_mut(key)) {
                (0, _) => drop(map.remove(key)),
                (1, _) => drop(map.insert(recased(key), new)),
                (2, _) => drop(map.insert(pick(rng, &TOKENS).map_or_else(String::new, |t| (*t).to_owned()), new)),
                (_, Some(inner)) if depth > 0 && (inner.is_object() || inner.is_array()) => {
                    change_at(rng, inner, depth - 1, new);
                }
                _ => drop(map.insert(key.clone(), new)),
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let at = below(rng, items.len());
            match below(rng, 4) {
                0 => drop(items.remove(at)),
                1 => items.extend(vec![items[at].clone(); 1 + below(rng, 600)]),
                _ if depth > 0 => change_at(rng, &mut items[at], depth - 1, new),
                _ => items[at] = new,
            }
        }
        other => *other = new,
    }
}

fn recased(key: &str) -> String {
    if key.chars().any(char::is_lowercase) { key.to_uppercase() } else { key.to_lowercase() }
}

/// A value that stands somewhere in the corpus, or one at the edge of what a type can hold.
fn odd_value(rng: &mut TestRng, corpus: &[Vec<u8>]) -> Value {
    match below(rng, 10) {
        0 => Value::Null,
        1 => json!(rng.random_range(i64::MIN..i64::MAX)),
        2 => json!([0_u64, 1, 65_535, 65_536, u64::MAX][below(rng, 5)]),
        3 => json!(f64::MAX),
        4 => Value::String(pick(rng, &TOKENS).map_or_else(String::new, |t| t.repeat(1 + below(rng, 300)))),
        5 => (0..below(rng, 100)).fold(json!(7), |inner, _| json!([inner])),
        6 => (0..below(rng, 50)).fold(json!({}), |inner, _| json!({"ipam": inner})),
        7 => Value::Object((0..below(rng, 500)).map(|n| (format!("k{n}"), json!(n))).collect::<Map<_, _>>()),
        _ => {
            let text = pick(rng, corpus).cloned().unwrap_or_default();
            let mut value = serde_json::from_slice::<Value>(&text).unwrap_or(Value::Null);
            for _ in 0..below(rng, 5) {
                value = match &value {
                    Value::Object(map) => {
                        let values: Vec<&Value> = map.values().collect();
                        pick(rng, &values).map_or(Value::Null, |v| (*v).clone())
                    }
                    Value::Array(items) => pick(rng, items).cloned().unwrap_or_default(),
                    _ => value,
                };
            }
            value
        }
    }
}
