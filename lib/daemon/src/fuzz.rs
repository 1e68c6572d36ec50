//! What is typed, and what is sent to the HTTP server: the parsers for fuzzing, each by the name of its corpus in `fuzz/`.
//!
//! Invariant: every input is answered; a connection ends when its client has nothing more to say, whatever it sent.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::glog::{Modules, SourceLine};
use crate::http::{Board, OwnPages, Page, Reach, Room, Routes, Site, Vitals, parse, talk};
use crate::liveness::Liveness;
use crate::log::Recent;
use crate::metrics::Metrics;
use crate::readiness::Readiness;

/// Every parser by the name of its corpus.
#[allow(unreachable_pub, clippy::type_complexity, reason = "public with the feature, and a pair is no noun")]
pub const TARGETS: [(&str, fn(&[u8])); 3] =
    [("glog", glog), ("http_answer", http_answer), ("http_request", http_request)];

/// Bytes of the answers to one connection: some pages, each short here.
const ANSWERS: usize = 1 << 20;

/// Bytes of a flag: each pattern in it is compiled, which takes a millisecond for each of thousands.
const FLAG: usize = 2000;

fn glog(input: &[u8]) {
    let text = String::from_utf8_lossy(input.get(..FLAG).unwrap_or(input));
    if let Ok(modules) = text.parse::<Modules>() {
        assert_eq!(text.parse::<Modules>(), Ok(modules));
    }
    if let Ok(line) = text.parse::<SourceLine>() {
        assert_eq!(text.parse::<SourceLine>(), Ok(line));
    }
}

fn http_answer(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some((_, body)) = parse(&text) {
        assert!(text.ends_with(body));
    }
}

pub(crate) fn site() -> Site {
    let readiness = Readiness::new(["sources listed"]);
    Site {
        readiness: readiness.clone(),
        liveness: Liveness::default(),
        metrics: Arc::new(Metrics::new("fuzz", "0", readiness)),
        board: Board::new(ToString::to_string),
        tables: Box::new(|_| Box::pin(async { Ok(Vec::new()) })),
        vitals: Arc::new(Mutex::new(Vitals { pages: [("/proxyMode", "ipvs")].into(), ..Vitals::default() })),
        own: OwnPages::default(),
        recent: Recent::default(),
        health: |_, health| Page::text(if health.ready { 200 } else { 500 }, "ok"),
    }
}

/// Sends a whole connection's bytes and waits until the server has ended it.
fn http_request(input: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        let Ok((client, server)) = UnixStream::pair() else { return };
        let place = Room::default().enter();
        let (mut answers, mut requests) = client.into_split();
        let send = async {
            // The server may end the connection before it has read all.
            let _ = requests.write_all(input).await;
            let _ = requests.shutdown().await;
        };
        let mut text = Vec::new();
        let receive = answers.read_to_end(&mut text);
        let (_, _, ()) =
            tokio::join!(send, receive, talk(server, (Routes::All, Reach::Loopback), Arc::new(site()), place));
        assert!(text.len() <= ANSWERS, "{} bytes of answers", text.len());
        assert!(text.is_empty() || text.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&text));
    });
}

#[cfg(test)]
mod tests {
    #[test]
    fn whatever_is_typed_or_sent_is_answered() {
        ::fuzz::check_all(env!("CARGO_MANIFEST_DIR"), &super::TARGETS);
    }
}
