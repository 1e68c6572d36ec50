//! A collection that servers have in several forms: which of them is listed. The server is a few lines of HTTP, because a real one has one
//! version only.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panic")]

#[path = "common/server.rs"]
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::kubernetes::{Access, Client, Collection, watch_first};
use cluster::{Event, Source};
use server::target_of;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than the pauses of the client.
const DEADLINE: Duration = Duration::from_secs(8);

const LIST: &str = r#"{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"n1","resourceVersion":"5"}}]}"#;
const GONE: &str =
    r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version: 7 (9)"}}"#;

/// Has the first form when `has_first` is set, never the second, always the third; the streams of that end when the first one is there.
async fn serve(mut stream: BufReader<TcpStream>, has_first: Arc<AtomicBool>) {
    while let Some(target) = target_of(&mut stream).await {
        let has_first = has_first.load(Ordering::Relaxed);
        let (status, body) = match target.as_str() {
            target if target.starts_with("/version") => ("200 OK", r#"{"major":"1","minor":"20"}"#),
            target if target.starts_with("/apis/g/v1/") && !has_first => ("404 Not Found", "404 page not found"),
            target if target.starts_with("/apis/g/v1beta1/") => ("404 Not Found", "404 page not found"),
            target if target.contains("watch=true") && has_first => ("200 OK", GONE),
            target if target.contains("watch=true") => ("503 Service Unavailable", "not now"),
            _ => ("200 OK", LIST),
        };
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}\n", body.len() + 1);
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Waits for an object in this form.
async fn until(source: &mut Source<String, &'static str>, form: &str) {
    let shown = async { while !matches!(source.next().await.unwrap(), Event::Put { value, .. } if value == form) {} };
    assert!(timeout(DEADLINE, shown).await.is_ok(), "nothing in the form {form}");
}

#[tokio::test]
async fn listing_begins_with_the_best_form_again_whichever_was_there_before() {
    let has_first = Arc::new(AtomicBool::new(false));
    let shared = Arc::clone(&has_first);
    let url = server::start(move |stream| serve(stream, Arc::clone(&shared))).await;
    let client = Client::connect(&Access::new(None, Some(&url), "test/1", "a role")).unwrap();
    let form = |version: &str| Collection::new("g", version, "slices");
    let others: Vec<cluster::kubernetes::Form<&'static str>> =
        vec![(form("v1beta1"), |_, _| "second"), (Collection::new("", "v1", "slices"), |_, _| "third")];
    let mut source = watch_first(&client, (form("v1"), |_, _| "first"), others, 1);
    until(&mut source, "third").await;
    has_first.store(true, Ordering::Relaxed);
    until(&mut source, "first").await;
}
