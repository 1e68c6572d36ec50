//! `KubeApi`: as much of a Kubernetes API server as a kube-proxy needs, in a machine of the lab.
//!
//! It lists and watches objects that a test puts, as JSON over HTTP, and takes events without keeping them. Invariant: every change has a
//! version of its own, and a watch shows everything behind the version that it was asked from, in order.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::host::Host;

/// The longest body of a request that is read.
const MOST: u64 = 1 << 20;

/// How often a watch without changes checks whether the server has ended.
const PERIOD: Duration = Duration::from_millis(200);

/// Collections by path, with the kind and the version of their objects.
const COLLECTIONS: [(&str, &str, &str); 5] = [
    ("/api/v1/nodes", "Node", "v1"),
    ("/api/v1/services", "Service", "v1"),
    ("/api/v1/endpoints", "Endpoints", "v1"),
    ("/apis/discovery.k8s.io/v1beta1/endpointslices", "EndpointSlice", "discovery.k8s.io/v1beta1"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "EndpointSlice", "discovery.k8s.io/v1"),
];

/// The server; it ends with this value.
#[derive(Debug)]
pub struct KubeApi {
    shared: Arc<Shared>,
    address: String,
}

#[derive(Debug, Default)]
struct Shared {
    store: Mutex<Store>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Store {
    /// Objects by the version of the API, kind and name.
    objects: BTreeMap<(String, String, String), Value>,
    /// What happened, the version of each change being its place.
    log: Vec<(&'static str, Value)>,
    streams: Vec<TcpStream>,
    ended: bool,
}

impl KubeApi {
    /// Begins to serve on a loopback port of the machine.
    ///
    /// # Errors
    /// When the machine cannot be entered or has no port.
    pub fn start(host: &Host) -> Result<Self> {
        let listener = host.within(|| TcpListener::bind("127.0.0.1:0"))?.context("listen for the API")?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        thread::Builder::new().name("kube-api".to_owned()).spawn(move || serving.accept(&listener))?;
        Ok(Self { shared, address })
    }

    /// Where it serves, `ADDRESS:PORT` of the machine.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Puts an object in place of the one of its kind and name.
    pub fn put(&self, object: Value) {
        self.shared.change(object, "MODIFIED");
    }

    /// Deletes an object.
    pub fn delete(&self, object: Value) {
        self.shared.change(object, "DELETED");
    }
}

impl Drop for KubeApi {
    fn drop(&mut self) {
        let mut store = self.shared.lock();
        store.ended = true;
        // Wakes whoever reads.
        store.streams.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, mut object: Value, kind: &'static str) {
        let mut store = self.lock();
        let version = store.log.len() + 1;
        let kinds = (text(&object, "/apiVersion").to_owned(), text(&object, "/kind").to_owned());
        let key = (kinds.0, kinds.1, text(&object, "/metadata/name").to_owned());
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            if key.1 != "Node" {
                metadata.entry("namespace").or_insert_with(|| "default".into());
            }
            metadata.insert("resourceVersion".to_owned(), version.to_string().into());
            metadata.insert("uid".to_owned(), format!("{}-{}", key.1, key.2).into());
        }
        let known =
            if kind == "DELETED" { store.objects.remove(&key) } else { store.objects.insert(key, object.clone()) };
        let kind = if known.is_none() { "ADDED" } else { kind };
        store.log.push((kind, object));
        self.changed.notify_all();
    }

    /// Serves until it is dropped; the listener is let go of then.
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        listener.set_nonblocking(true).ok();
        while !self.lock().ended {
            let Ok((stream, _)) = listener.accept() else {
                thread::park_timeout(Duration::from_millis(5));
                continue;
            };
            stream.set_nonblocking(false).ok();
            let Ok(ours) = stream.try_clone() else { continue };
            self.lock().streams.push(ours);
            let shared = Arc::clone(self);
            thread::spawn(move || shared.converse(&stream));
        }
    }

    /// Answers requests on a connection until one side ends it.
    fn converse(&self, stream: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        loop {
            let (line, body) = request(&mut reader)?;
            let mut words = line.split_whitespace();
            let (method, target) = (words.next()?, words.next()?);
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            if method == "GET" && query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1") {
                return self.watch(stream, path, query);
            }
            let (code, answer) = if method == "GET" { self.get(path) } else { ("201 Created", body) };
            write(stream, code, &answer)?;
        }
    }

    fn get(&self, path: &str) -> (&'static str, Value) {
        let store = self.lock();
        if let Some((_, kind, version)) = COLLECTIONS.iter().find(|(collection, ..)| *collection == path) {
            let items: Vec<_> = store.of(kind, version).cloned().collect();
            let version_of_list = store.log.len().to_string();
            let list = json!({"kind": format!("{kind}List"), "apiVersion": version,
                "metadata": {"resourceVersion": version_of_list}, "items": items});
            return ("200 OK", list);
        }
        let object = path.rsplit_once('/').and_then(|(collection, name)| {
            let (_, kind, version) = COLLECTIONS.iter().find(|(known, ..)| *known == collection)?;
            store.objects.get(&((*version).to_owned(), (*kind).to_owned(), name.to_owned())).cloned()
        });
        let absent =
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404});
        object.map_or(("404 Not Found", absent), |object| ("200 OK", object))
    }

    /// Shows changes of a collection as they come.
    fn watch(&self, mut stream: &TcpStream, path: &str, query: &str) -> Option<()> {
        let (_, kind, version) = COLLECTIONS.iter().find(|(collection, ..)| *collection == path)?;
        let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let mut shown: usize = from.and_then(|from| from.parse().ok()).unwrap_or_default();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).ok()?;
        let mut store = self.lock();
        while !store.ended {
            let changes: Vec<_> = store.log.iter().skip(shown).cloned().collect();
            shown = store.log.len().max(shown);
            drop(store);
            for (change, object) in changes {
                if is_of(&object, kind, version) {
                    let text = format!("{}\n", json!({"type": change, "object": object}));
                    write!(stream, "{:x}\r\n{text}\r\n", text.len()).ok()?;
                }
            }
            store = self.lock();
            if store.log.len() == shown {
                store = self.changed.wait_timeout(store, PERIOD).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        Some(())
    }
}

impl Store {
    fn of<'a>(&'a self, kind: &'a str, version: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.values().filter(move |object| is_of(object, kind, version))
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn is_of(object: &Value, kind: &str, version: &str) -> bool {
    text(object, "/kind") == kind && text(object, "/apiVersion") == version
}

/// The first line of a request and its body, if that is JSON.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(String, Value)> {
    let mut first = String::new();
    let mut length = 0;
    for number in 0.. {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if number == 0 {
            first = line;
        } else if line.trim().is_empty() {
            break;
        } else if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = Vec::new();
    reader.take(u64::min(length, MOST)).read_to_end(&mut body).ok()?;
    Some((first, serde_json::from_slice(&body).unwrap_or_default()))
}

fn write(mut stream: &TcpStream, code: &str, answer: &Value) -> Option<()> {
    let text = answer.to_string();
    let head = format!("HTTP/1.1 {code}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", text.len());
    stream.write_all((head + &text).as_bytes()).ok()
}
