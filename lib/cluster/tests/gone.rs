//! An API server that keeps no state for as long as a listing takes: each watch is answered with 410 in its stream. The server is a few
//! lines of HTTP, because a real one keeps states for minutes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panic")]

#[path = "common/server.rs"]
mod server;

use std::time::{Duration, Instant};

use cluster::Event;
use cluster::kubernetes::{Access, Client, Collection, watch};
use serde_json::Value;
use server::target_of;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);

const LIST: &str = r#"{"metadata":{"resourceVersion":"7"},"items":[]}"#;
const GONE: &str =
    r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version: 7 (9)"}}"#;

async fn serve(mut stream: BufReader<TcpStream>) {
    while let Some(target) = target_of(&mut stream).await {
        let (head, body) = match &target {
            target if target.starts_with("/version") => (true, r#"{"major":"1","minor":"20"}"#.to_owned()),
            target if target.contains("watch=true") => (false, format!("{GONE}\n")),
            _ => (true, LIST.to_owned()),
        };
        let head = if head { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
        if stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}").as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Each listing reads everything there is: the pauses double from 100 ms on.
#[tokio::test]
async fn listing_after_listing_that_is_too_old_at_once_is_made_ever_more_slowly() {
    let url = server::start(serve).await;
    let client = Client::connect(&Access::new(None, Some(&url), "test/1", "a role")).unwrap();
    let mut source = watch::<Value>(&client, Collection::new("", "v1", "nodes"), 1);
    let begun = Instant::now();
    let mut listings = 0;
    let listed = async {
        while listings < 6 {
            let event = source.next().await.unwrap();
            assert!(!matches!(event, Event::Lost(_)), "{event:?}");
            listings += i32::from(matches!(event, Event::Complete));
        }
    };
    if timeout(DEADLINE, listed).await.is_err() {
        panic!("{listings} listings");
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(100 + 200 + 400 + 800 + 1600), "six listings within {took:?}");
}
