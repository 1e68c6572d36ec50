//! An API server of a few lines of HTTP, for what a real one does not do.
//!
//! Invariant: it knows nothing of requests but their target.

use std::future::Future;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Starts it at loopback: `serve` has each connection. Returns its URL.
pub(crate) async fn start<F>(serve: impl Fn(BufReader<TcpStream>) -> F + Send + 'static) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(BufReader::new(stream)));
        }
    });
    url
}

/// Path and query of a request; nothing when the client has left.
pub(crate) async fn target_of(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut target = None;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if target.is_none() {
            target = line.split(' ').nth(1).map(str::to_owned);
        } else if line.trim().is_empty() {
            return target;
        }
    }
}
