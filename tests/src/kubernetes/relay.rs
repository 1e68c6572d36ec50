//! One connection through the faults: requests to the server, answers back.
//!
//! Invariant: an answer goes on as it comes, chunk by chunk, so a watch is as prompt as without; a side that ends is ended on the other.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::{ClientConfig, ServerConfig};
use serde_json::json;

use super::faults::{Fault, Seen, State};
use super::http::{Connection, Framing, Head};
use crate::host::Host;

/// How often it is checked, during a silent answer, whether the client has ended.
const PERIOD: Duration = Duration::from_millis(50);
const SHORT: Duration = Duration::from_millis(1);
/// Longest time for a message that has begun.
const LIMIT: Duration = Duration::from_secs(120);
/// The longest piece of a body without chunks.
const PIECE: u64 = 16 << 10;
/// Pieces per second of a slow answer.
const PACE: u32 = 20;

/// What every connection needs.
pub(crate) struct Relay {
    pub(crate) server: Host,
    pub(crate) address: SocketAddr,
    pub(crate) trust: Arc<ClientConfig>,
    pub(crate) identity: Arc<ServerConfig>,
}

/// A request in one line, for the faults that are for it.
struct Exchange<'a> {
    state: &'a State,
    client: &'a mut Connection,
    server: &'a mut Connection,
    method: String,
    request: String,
}

impl Relay {
    /// Serves a client until one side ends.
    pub(crate) fn converse(&self, state: &State, socket: TcpStream) -> Result<()> {
        socket.set_nonblocking(false)?;
        state.keep(&socket)?;
        state.pass();
        let mut client = Connection::to_client(socket, &self.identity)?;
        let outcome = self.serve(state, &mut client);
        client.break_off();
        outcome
    }

    fn serve(&self, state: &State, client: &mut Connection) -> Result<()> {
        let mut server = None;
        loop {
            client.set_limit(PERIOD)?;
            while client.has_more().is_none() {
                if state.has_ended() {
                    return Ok(());
                }
            }
            client.set_limit(LIMIT)?;
            let Some(mut head) = client.head()? else { return Ok(()) };
            let body = client.body(head.framing_of_request())?;
            head.headers.retain(|(name, _)| name != "transfer-encoding" && name != "content-length");
            if !body.is_empty() {
                head.headers.push(("content-length".to_owned(), body.len().to_string()));
            }
            let method = head.first.split(' ').next().unwrap_or_default().to_owned();
            let request = format!("{method} {}", head.second());
            state.pass();
            let answered = state.take(&request, |fault| matches!(fault, Fault::Answer(_)));
            if let Some(Fault::Answer(code)) = answered {
                state.note(seen(&method, &head, code));
                client.write(&refusal(code, &request))?;
                continue;
            }
            let server = match &mut server {
                Some(server) => server,
                none => none.insert(self.connect(state)?),
            };
            server.set_limit(LIMIT)?;
            server.write(&[head.bytes(), body].concat())?;
            let exchange = Exchange { state, client, server, method, request };
            exchange.answer(&head)?;
        }
    }

    fn connect(&self, state: &State) -> Result<Connection> {
        let socket = self.server.within(|| TcpStream::connect(self.address))?.context("connect to the API server")?;
        state.keep(&socket)?;
        Connection::to_server(socket, &self.trust)
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Exchange<'_> {
    /// Passes the server's answer on.
    fn answer(mut self, asked: &Head) -> Result<()> {
        let head = self.server.head()?.context("the server has ended the connection")?;
        self.state.note(seen(&self.method, asked, head.code()));
        if self.state.take(&self.request, |fault| fault == Fault::LoseAnswer).is_some() {
            bail!("the answer is lost");
        }
        if self.state.take(&self.request, |fault| fault == Fault::Withhold).is_some() {
            return self.until_the_client_goes();
        }
        let framing = head.framing_of_answer(&self.method);
        self.state.pass();
        self.client.write(&head.bytes())?;
        match framing {
            Framing::Length(length) => self.length(length),
            Framing::Close => self.length(u64::MAX),
            Framing::Chunks => self.chunks(),
        }
    }

    fn length(&mut self, mut left: u64) -> Result<()> {
        while left > 0 {
            if !self.wait()? && left > PIECE {
                bail!("the server has ended the answer");
            }
            let piece = self.server.some(left.min(PIECE))?;
            if piece.is_empty() {
                bail!("the server has ended the answer");
            }
            left -= piece.len() as u64;
            self.piece(&piece, &piece)?;
        }
        Ok(())
    }

    fn chunks(&mut self) -> Result<()> {
        loop {
            if !self.wait()? {
                bail!("the server has ended the answer");
            }
            let chunk = self.server.chunk()?;
            let framed = [format!("{:x}\r\n", chunk.len()).as_bytes(), &chunk, b"\r\n"].concat();
            if chunk.is_empty() {
                return Ok(self.client.write(&framed)?);
            }
            self.piece(&chunk, &framed)?;
        }
    }

    fn until_the_client_goes(&mut self) -> Result<()> {
        self.client.set_limit(PERIOD)?;
        while !self.state.has_ended() && self.client.has_more() != Some(false) {}
        bail!("the client has gone")
    }

    /// Waits until the server says more; `false` when it has ended. An error when the client has gone.
    fn wait(&mut self) -> Result<bool> {
        self.server.set_limit(PERIOD)?;
        self.client.set_limit(SHORT)?;
        let more = loop {
            if let Some(more) = self.server.has_more() {
                break more;
            }
            if self.state.has_ended() || self.client.has_more() == Some(false) {
                bail!("the client has gone");
            }
        };
        self.server.set_limit(LIMIT)?;
        Ok(more)
    }

    /// Writes a piece of the answer as it goes over the wire, or what a fault leaves of it.
    fn piece(&mut self, piece: &[u8], framed: &[u8]) -> Result<()> {
        self.state.pass();
        let fault = self.state.take(&self.request, |fault| matches!(fault, Fault::Cut | Fault::Slow(_)));
        match fault {
            Some(Fault::Cut) => {
                let half = (framed.len() - piece.len()) / 2 + piece.len() / 2;
                self.client.write(framed.get(..half).unwrap_or_default())?;
                bail!("cut");
            }
            Some(Fault::Slow(rate)) => {
                let step = usize::try_from(rate / PACE).unwrap_or(1).max(1);
                for part in framed.chunks(step) {
                    if self.state.has_ended() {
                        bail!("ended");
                    }
                    self.client.write(part)?;
                    thread::sleep(Duration::from_secs(1) / PACE);
                }
                Ok(())
            }
            _ => Ok(self.client.write(framed)?),
        }
    }
}

fn seen(method: &str, head: &Head, code: u16) -> Seen {
    let agent = head.header("user-agent").unwrap_or_default().to_owned();
    Seen { method: method.to_owned(), target: head.second().to_owned(), agent, code }
}

/// An answer as an API server gives it.
fn refusal(code: u16, request: &str) -> Vec<u8> {
    let (reason, word) = match code {
        401 => ("Unauthorized", "Unauthorized"),
        403 => ("Forbidden", "Forbidden"),
        409 => ("Conflict", "Conflict"),
        410 => ("Gone", "Expired"),
        429 => ("Too Many Requests", "TooManyRequests"),
        503 => ("Service Unavailable", "ServiceUnavailable"),
        _ => ("Internal Server Error", "InternalError"),
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": word, "code": code,
        "message": format!("a fault of the test answers {request}")});
    let (text, again) = (status.to_string(), if matches!(code, 429 | 503) { "retry-after: 1\r\n" } else { "" });
    let length = text.len();
    format!(
        "HTTP/1.1 {code} {reason}\r\ncontent-type: application/json\r\n{again}content-length: {length}\r\n\r\n{text}"
    )
    .into_bytes()
}
