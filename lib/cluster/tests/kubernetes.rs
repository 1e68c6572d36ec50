//! The client of the API server when this host's address changes: nothing comes back on what is connected then. And beside a server that
//! says back what it was asked with. The server is a few lines of HTTP, because a real one answers, and keeps credentials to itself.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panic")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::Event;
use cluster::kubernetes::{Access, Client, Collection, Patch, watch};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

/// Shorter than each limit of the client.
const DEADLINE: Duration = Duration::from_secs(8);

const LIST: &str = r#"{"metadata":{"resourceVersion":"7"},"items":[]}"#;
const CHANGE: &str = r#"{"type":"ADDED","object":{"metadata":{"name":"n1","resourceVersion":"9"}}}"#;

/// Answers of old lists at once; of anything else the first request of its kind never, later ones.
#[derive(Default)]
struct Server {
    /// Requests by verb and path.
    asked: Mutex<BTreeMap<String, usize>>,
    changed: Notify,
}

impl Server {
    async fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Arc::new(Self::default());
        let shared = Arc::clone(&server);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&shared).serve(stream));
            }
        });
        (server, url)
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        while let Some(request) = read_request(&mut stream).await {
            let count = self.count(&request);
            let body = match request.as_str() {
                "GET /version" => r#"{"major":"1","minor":"20"}"#,
                "GET /api/v1/nodes" => LIST,
                _ if count == 1 => "",
                "GET /api/v1/nodes watch from 7" => {
                    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n";
                    stream.write_all(format!("{head}{CHANGE}\n").as_bytes()).await.unwrap();
                    continue;
                }
                _ => "{}",
            };
            // A host with another address gets nothing any more.
            if !body.is_empty() {
                let length = body.len();
                let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
                stream.write_all(text.as_bytes()).await.unwrap();
            } else if request.contains("watch") {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            }
        }
    }

    fn count(&self, request: &str) -> usize {
        let mut asked = self.asked.lock().unwrap();
        let count = asked.entry(request.to_owned()).or_default();
        *count += 1;
        self.changed.notify_waiters();
        *count
    }

    /// Waits until `request` has come so often.
    async fn is_asked(&self, request: &str, times: usize) {
        let waits = async {
            loop {
                let changed = self.changed.notified();
                if self.asked.lock().unwrap().get(request).is_some_and(|count| *count >= times) {
                    return;
                }
                changed.await;
            }
        };
        if timeout(DEADLINE, waits).await.is_err() {
            panic!("{request} did not come {times} times: {:?}", self.asked.lock().unwrap());
        }
    }
}

/// Verb and path of a request, and the revision that a watch begins at; nothing when the client has left.
async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let (mut first, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let lower = line.trim().to_lowercase();
        if let Some(number) = lower.strip_prefix("content-length: ") {
            length = number.parse().unwrap();
        }
        if first.is_empty() {
            first = line;
        } else if lower.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let mut words = first.split(' ');
    let (verb, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let revision = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
    Some(match revision.filter(|_| query.contains("watch=true")) {
        Some(revision) => format!("{verb} {path} watch from {revision}"),
        None => format!("{verb} {path}"),
    })
}

fn client(url: &str) -> Client {
    Client::connect(&Access::new(None, Some(url), "test/1", "a role")).unwrap()
}

#[tokio::test]
async fn stream_goes_on_at_what_it_showed_last() {
    let (server, url) = Server::start().await;
    let client = client(&url);
    let mut source = watch::<Value>(&client, Collection::new("", "v1", "nodes"), 1);
    server.is_asked("GET /api/v1/nodes watch from 7", 1).await;
    client.dial_anew();
    let mut seen = Vec::new();
    let change = async {
        loop {
            let event = source.next().await.unwrap();
            if let Event::Put { key, revision, .. } = &event {
                return (key.clone(), *revision);
            }
            seen.push(event);
        }
    };
    assert_eq!(timeout(DEADLINE, change).await.unwrap(), ("n1".to_owned(), 9));
    assert!(!seen.iter().any(|event| matches!(event, Event::Lost(_))), "{seen:?}");
}

#[tokio::test]
async fn request_that_changes_nothing_is_made_again_and_another_one_fails_with_the_reason() {
    let (server, url) = Server::start().await;
    let client = client(&url);
    let path = "/api/v1/nodes/n1";
    let (read, write) = (client.clone(), client.clone());
    let read = tokio::spawn(async move { read.get::<Value>(path).await });
    let write = tokio::spawn(async move { write.patch::<Value>(path, &Patch::Merge(json!({}))).await });
    server.is_asked("GET /api/v1/nodes/n1", 1).await;
    server.is_asked("PATCH /api/v1/nodes/n1", 1).await;
    client.dial_anew();
    assert_eq!(timeout(DEADLINE, read).await.unwrap().unwrap().unwrap(), json!({}));
    let error = timeout(DEADLINE, write).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("this host has another address now"), "{error}");
    assert_eq!(client.patch::<Value>(path, &Patch::Merge(json!({}))).await.unwrap(), json!({}));
}

/// Answers each connection's first request with 401 and what it was asked with, as a proxy in a mode for debugging does.
async fn say_back(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") && stream.read_buf(&mut asked).await.unwrap() > 0 {}
        let head = format!("HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", asked.len());
        stream.write_all(&[head.as_bytes(), &asked].concat()).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_server_says_back_is_repeated_without_the_credentials() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(say_back(listener));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    for (user, secrets) in [
        ("token: SECRET-TOKEN", vec!["SECRET-TOKEN"]),
        // RFC 7617, section 2: base64 of `proxy:SECRET-WORD`.
        ("username: proxy, password: SECRET-WORD", vec!["SECRET-WORD", "cHJveHk6U0VDUkVULVdPUkQ="]),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        let client = Client::connect(&Access::new(path.to_str(), None, "test/1", "a role")).unwrap();
        let error = timeout(DEADLINE, client.get::<Value>("/api/v1/nodes/n1")).await.unwrap().unwrap_err().to_string();
        assert!(error.contains("401 Unauthorized: GET /api/v1/nodes/n1") && error.contains("(hidden)"), "{error}");
        assert!(secrets.iter().all(|secret| !error.contains(secret)), "{error}");
    }
}
