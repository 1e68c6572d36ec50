//! The lines of a response that goes on and on: one JSON text each.
//!
//! Invariant: a line is handed out whole or not at all; what a connection that breaks off leaves of one is an error, not a line.

use std::fmt;
use std::io::BufRead as _;

use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use kube::client::Body;

/// A longer line is no object: etcd takes 1.5 MiB, a large custom limit ten times that.
const MOST: usize = 32 << 20;

/// Room that stays for the next lines.
const KEPT: usize = 256 << 10;

/// Reads lines from a body.
pub(super) struct Lines<B = Body> {
    body: B,
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to where no end of a line was found.
    searched: usize,
}

/// Why there is no further line.
#[derive(Debug)]
pub(super) enum Broken {
    /// The body ended inside a line.
    Inside,
    /// A line grew beyond [`MOST`].
    TooLong,
    /// What the connection says.
    Connection(String),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inside => f.write_str("the connection ended in the middle of an object"),
            Self::TooLong => write!(f, "an object is longer than {MOST} bytes"),
            Self::Connection(error) => f.write_str(error),
        }
    }
}

impl<B> Lines<B>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + 'static,
{
    pub(super) const fn new(body: B) -> Self {
        Self { body, buffer: Vec::new(), start: 0, searched: 0 }
    }

    /// The next line without its end, or nothing when the body ended behind one. Cancel-safe.
    ///
    /// # Errors
    /// When the body breaks off, or a line is too long.
    pub(super) async fn next(&mut self) -> Result<Option<&[u8]>, Broken> {
        loop {
            let mut fresh = self.buffer.get(self.searched..).unwrap_or_default();
            // Several bytes at a time; nothing can fail in memory.
            let behind = self.searched.saturating_add(fresh.skip_until(b'\n').unwrap_or_default());
            let end = behind.saturating_sub(1);
            if behind > self.searched && self.buffer.get(end) == Some(&b'\n') {
                let start = std::mem::replace(&mut self.start, behind);
                self.searched = behind;
                return Ok(self.buffer.get(start..end));
            }
            self.searched = self.buffer.len();
            match self.body.frame().await {
                Some(Ok(frame)) => self.add(frame.data_ref())?,
                Some(Err(error)) => return Err(Broken::Connection(super::fault::chain(&error))),
                None if self.start == self.buffer.len() => return Ok(None),
                None => return Err(Broken::Inside),
            }
        }
    }

    fn add(&mut self, data: Option<&Bytes>) -> Result<(), Broken> {
        let Some(data) = data else { return Ok(()) };
        self.buffer.drain(..self.start);
        self.start = 0;
        self.searched = self.buffer.len();
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT {
            self.buffer.shrink_to(KEPT);
        }
        self.buffer.extend_from_slice(data);
        if self.buffer.len() > MOST { Err(Broken::TooLong) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;
    use proptest::prelude::*;

    use super::*;

    struct Chunks(VecDeque<Bytes>);

    impl hyper::body::Body for Chunks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk))))
        }
    }

    fn read(chunks: &[&[u8]]) -> (Vec<String>, Option<String>) {
        let body = Chunks(chunks.iter().map(|chunk| Bytes::copy_from_slice(chunk)).collect());
        let mut lines = Lines::new(body);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut found = Vec::new();
            loop {
                match lines.next().await {
                    Ok(Some(line)) => found.push(String::from_utf8(line.to_vec()).unwrap()),
                    Ok(None) => return (found, None),
                    Err(broken) => return (found, Some(broken.to_string())),
                }
            }
        })
    }

    #[test]
    fn a_body_that_ends_inside_a_line_yields_the_whole_ones_and_an_error() {
        let (lines, error) = read(&[b"{1}\n{2", b"}\n{3"]);
        assert_eq!(
            (lines, error.as_deref()),
            (vec!["{1}".to_owned(), "{2}".to_owned()], Some("the connection ended in the middle of an object"))
        );
    }

    #[test]
    fn an_object_beyond_the_limit_is_refused_and_what_came_before_is_served() {
        let part = vec![b'x'; 8 << 20];
        let (lines, error) = read(&[b"{1}\n", &part, &part, &part, &part, &part, b"\n"]);
        assert_eq!(lines, ["{1}"]);
        assert_eq!(error.as_deref(), Some("an object is longer than 33554432 bytes"));
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_the_body_is_cut(texts in prop::collection::vec("[a-z]{0,9}", 0..9), cuts in prop::collection::vec(1..7_usize, 1..9)) {
            let whole: String = texts.iter().map(|text| format!("{text}\n")).collect();
            let (mut rest, mut chunks) = (whole.as_bytes(), Vec::new());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (chunk, next) = rest.split_at((*cut).min(rest.len()));
                chunks.push(chunk);
                rest = next;
            }
            prop_assert_eq!(read(&chunks), (texts, None));
        }
    }
}
