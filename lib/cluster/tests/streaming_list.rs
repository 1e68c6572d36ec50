//! Streaming lists of API servers that begin one and do not end it. The server is a few lines of HTTP, because a real one keeps its word.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panic")]

#[path = "common/server.rs"]
mod server;

use std::time::Duration;

use cluster::Event;
use cluster::kubernetes::{Access, Client, Collection, watch};
use serde_json::Value;
use server::target_of;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Shorter than the silence that a streaming list may have.
const DEADLINE: Duration = Duration::from_secs(8);

const LIST: &str = r#"{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"n1","resourceVersion":"5"}}]}"#;
const ADDED: &str = r#"{"type":"ADDED","object":{"metadata":{"name":"n1","resourceVersion":"5"}}}"#;
const BOOKMARK: &str = r#"{"type":"BOOKMARK","object":{"kind":"Node","metadata":{"resourceVersion":"7"}}}"#;

/// A server whose streaming list shows `lines`; whether it ends then.
async fn start(lines: &[&'static str], ends: bool) -> String {
    let lines = lines.to_vec();
    server::start(move |stream| serve(stream, lines.clone(), ends)).await
}

async fn serve(mut stream: BufReader<TcpStream>, lines: Vec<&'static str>, ends: bool) {
    while let Some(target) = target_of(&mut stream).await {
        let streams = target.contains("watch=true");
        let body = if target.starts_with("/version") {
            r#"{"major":"1","minor":"32"}"#.to_owned()
        } else if target.contains("sendInitialEvents=true") {
            lines.iter().map(|line| format!("{line}\n")).collect()
        } else if streams {
            String::new()
        } else {
            LIST.to_owned()
        };
        let head = if streams { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}").as_bytes()).await.unwrap();
        if ends && target.contains("sendInitialEvents=true") {
            return;
        }
    }
}

/// What a watch says up to the end of its first listing.
async fn first_listing(url: &str) -> Vec<Event<String, Result<Box<Value>, String>>> {
    let client = Client::connect(&Access::new(None, Some(url), "test/1", "a role")).unwrap();
    let mut source = watch::<Value>(&client, Collection::new("", "v1", "nodes"), 1);
    let mut seen = Vec::new();
    let listed = async {
        loop {
            let event = source.next().await.unwrap();
            let is_whole = matches!(event, Event::Complete);
            seen.push(event);
            if is_whole {
                return;
            }
        }
    };
    if timeout(DEADLINE, listed).await.is_err() {
        panic!("the listing has no end: {seen:?}");
    }
    seen
}

#[tokio::test]
async fn streaming_list_that_ends_before_it_is_whole_is_made_in_pages() {
    let seen = first_listing(&start(&[ADDED], true).await).await;
    assert!(!seen.iter().any(|event| matches!(event, Event::Lost(_))), "{seen:?}");
}

/// A server that reads over `sendInitialEvents` and on which something happens all the time is never silent.
#[tokio::test]
async fn bookmark_of_another_kind_inside_a_streaming_list_shows_that_it_has_no_end() {
    let seen = first_listing(&start(&[ADDED, BOOKMARK], false).await).await;
    assert!(!seen.iter().any(|event| matches!(event, Event::Lost(_))), "{seen:?}");
}

/// A server whose cache does not come as far as its store says so in the stream.
#[tokio::test]
async fn streaming_list_that_ends_with_an_error_is_made_in_pages() {
    let late = r#"{"type":"ERROR","object":{"kind":"Status","code":504,"message":"Timeout: Too large resource version: 9, current: 7"}}"#;
    let seen = first_listing(&start(&[late], false).await).await;
    assert!(!seen.iter().any(|event| matches!(event, Event::Lost(_))), "{seen:?}");
}
