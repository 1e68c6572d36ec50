//! The body of an answer: a whole page, or events as they come.
//!
//! Invariant: a client that takes no event for [`STALLED`] loses its connection, and nothing else.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Time for which a client may take no event.
pub(super) const STALLED: Duration = Duration::from_secs(30);

/// When a connection ends at the latest.
#[derive(Debug)]
pub(super) struct Deadline {
    begun: Instant,
    milliseconds: AtomicU64,
}

impl Deadline {
    /// After `limit`.
    pub(super) fn after(limit: Duration) -> Arc<Self> {
        let deadline = Self { begun: Instant::now(), milliseconds: AtomicU64::new(0) };
        deadline.extend(limit);
        Arc::new(deadline)
    }

    /// Not before `time` from now.
    fn extend(&self, time: Duration) {
        let end = u64::try_from((self.begun.elapsed() + time).as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.fetch_max(end, Ordering::Relaxed);
    }

    fn end(&self) -> Instant {
        self.begun + Duration::from_millis(self.milliseconds.load(Ordering::Relaxed))
    }

    /// Waits until it has passed.
    pub(super) async fn passed(&self) {
        while self.end() > Instant::now() {
            tokio::time::sleep_until(self.end()).await;
        }
    }
}

/// See the module's text.
pub(super) enum Body {
    /// A page.
    Whole(Full<Bytes>),
    /// Events, which keep their connection open.
    Events(mpsc::Receiver<Bytes>, Arc<Deadline>),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(page) => Pin::new(page).poll_frame(cx),
            Self::Events(frames, deadline) => frames.poll_recv(cx).map(|frame| {
                deadline.extend(STALLED);
                frame.map(|frame| Ok(Frame::data(frame)))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(page) => page.is_end_stream(),
            Self::Events(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(page) => page.size_hint(),
            Self::Events(..) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::fuzz::site;
    use crate::http::{Answer, Events, Reach, Room, Routes, talk};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_no_event_loses_its_connection_and_the_others_get_all() {
        let site = Arc::new(site());
        let (ended, mut end) = mpsc::channel(2);
        site.own.show("/events", move |asked| {
            let ended = ended.clone();
            async move {
                let (sender, events) = Events::open();
                tokio::spawn(async move {
                    while sender.send("text", &serde_json::json!("x".repeat(1000))).await {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    let _ = ended.send(asked.query).await;
                });
                Answer::Events(events)
            }
        });
        let room = Room::default();
        let mut clients = Vec::new();
        for query in ["slow", "quick"] {
            let (mut client, server) = tokio::io::duplex(4000);
            tokio::spawn(talk(server, (Routes::All, Reach::Loopback), Arc::clone(&site), room.enter()));
            client
                .write_all(format!("GET /events?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
                .await
                .unwrap();
            clients.push(client);
        }
        let mut quick = clients.pop().unwrap();
        let taking = async move {
            let mut taken = 0;
            while taken < 300_000 {
                taken += quick.read(&mut [0; 4096]).await.unwrap();
            }
            drop(quick);
        };
        let begun = Instant::now();
        let first = async { (end.recv().await, begun.elapsed(), end.recv().await) };
        let ((), (first, after, second)) = tokio::join!(taking, first);
        assert_eq!((first.as_deref(), second.as_deref()), (Some("slow"), Some("quick")));
        assert!(after >= STALLED && after < STALLED * 20, "{after:?}");
        assert!(begun.elapsed() > STALLED * 2, "far beyond the time for other connections");
        drop(clients);
        assert_eq!(room.len(), 0);
    }
}
