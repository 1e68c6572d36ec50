//! The tests' own client of an API server: single requests and watches, as JSON.
//!
//! Invariant: it asks the server itself, past every fault, from the server's machine; an answer other than success is an error with what
//! the server said.

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::ClientConfig;
use serde_json::Value;

use super::http::{Connection, Framing, Head};
use crate::host::Host;

/// Longest time for an answer.
const LIMIT: Duration = Duration::from_secs(60);

/// A client that asks with one token over one connection, one request after the other.
pub struct Client {
    host: Host,
    address: SocketAddr,
    trust: Arc<ClientConfig>,
    token: String,
    kept: Mutex<Option<Connection>>,
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Code of HTTP.
    pub code: u16,
    /// The object, or the server's Status.
    pub body: Value,
}

/// A watch that goes on.
pub struct Watch {
    connection: Connection,
    /// What came behind the last whole event.
    rest: Vec<u8>,
}

impl Client {
    pub(crate) fn new(host: &Host, address: SocketAddr, trust: Arc<ClientConfig>, token: &str) -> Self {
        Self { host: host.clone(), address, trust, token: token.to_owned(), kept: Mutex::new(None) }
    }

    /// The same server with another token.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self::new(&self.host, self.address, Arc::clone(&self.trust), token)
    }

    /// Asks once; anything that the server says is an answer. `body` is its type and itself.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn ask(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<Answer> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // A server that was started anew has ended what was kept; a request that it cannot have seen is sent again.
        if let Some(mut connection) = kept.take()
            && let Ok(answer) = self.exchange(&mut connection, method, path, body)
        {
            *kept = Some(connection);
            return Ok(answer);
        }
        let mut connection = self.connect()?;
        let answer = self
            .exchange(&mut connection, method, path, body)
            .with_context(|| format!("{method} {path} at {}", self.address))?;
        *kept = Some(connection);
        Ok(answer)
    }

    /// Sends a body that is text already, over the connection that is kept, and gives the code of the answer without reading what is in
    /// it: for those who send hundreds in a second.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn send(&self, method: &str, path: &str, body: (&str, &str)) -> Result<u16> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        connection.write(&self.request(method, path, Some(body)))?;
        let head = connection.head()?.context("the server ended the connection")?;
        connection.body(head.framing_of_answer(method))?;
        *kept = Some(connection);
        Ok(head.code())
    }

    /// Begins a watch of this path and query.
    pub(crate) fn watch(&self, path: &str) -> Result<Watch> {
        let mut connection = self.connect()?;
        connection.write(&self.request("GET", path, None))?;
        let head = connection.head()?.context("the server ended the connection")?;
        let framing = head.framing_of_answer("GET");
        if head.code() != 200 {
            bail!("GET {path}: {} {}", head.code(), String::from_utf8_lossy(&connection.body(framing)?));
        }
        ensure!(framing == Framing::Chunks, "GET {path}: a watch that is no stream");
        Ok(Watch { connection, rest: Vec::new() })
    }

    fn connect(&self) -> Result<Connection> {
        let socket = self.host.within(|| TcpStream::connect(self.address))?;
        let socket = socket.with_context(|| format!("connect to the API server at {}", self.address))?;
        let connection = Connection::to_server(socket, &self.trust)?;
        connection.set_limit(LIMIT)?;
        Ok(connection)
    }

    fn exchange(
        &self,
        over: &mut Connection,
        method: &str,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Answer> {
        let body = body.map(|(kind, body)| (kind, body.to_string()));
        over.write(&self.request(method, path, body.as_ref().map(|(kind, body)| (*kind, body.as_str()))))?;
        let head = over.head()?.context("the server ended the connection")?;
        let bytes = over.body(head.framing_of_answer(method))?;
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        Ok(Answer { code: head.code(), body: serde_json::from_slice(&bytes).unwrap_or_else(|_| text()) })
    }

    fn request(&self, method: &str, path: &str, body: Option<(&str, &str)>) -> Vec<u8> {
        let mut headers = vec![
            ("host".to_owned(), self.address.to_string()),
            ("accept".to_owned(), "application/json".to_owned()),
            ("user-agent".to_owned(), "tests".to_owned()),
        ];
        if !self.token.is_empty() {
            headers.push(("authorization".to_owned(), format!("Bearer {}", self.token)));
        }
        let text = body.map(|(_, text)| text).unwrap_or_default();
        if let Some((kind, _)) = body {
            headers.push(("content-type".to_owned(), kind.to_owned()));
            headers.push(("content-length".to_owned(), text.len().to_string()));
        }
        let mut bytes = Head { first: format!("{method} {path} HTTP/1.1"), headers }.bytes();
        bytes.extend(text.as_bytes());
        bytes
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Answer {
    /// The object of a success.
    ///
    /// # Errors
    /// What the server said instead.
    pub fn object(self) -> Result<Value> {
        match self.code {
            200..300 => Ok(self.body),
            code => bail!("the API server answers {code}: {}", self.body.get("message").unwrap_or(&self.body)),
        }
    }
}

impl Watch {
    /// The next event, `{"type": ..., "object": ...}`; `None` when the server has ended the watch.
    ///
    /// # Errors
    /// When nothing comes in time, or the connection is lost.
    pub fn next(&mut self, limit: Duration) -> Result<Option<Value>> {
        self.connection.set_limit(limit)?;
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line).context("an event that is no JSON")?));
            }
            let chunk = self.connection.chunk().context("the watch")?;
            if chunk.is_empty() {
                return Ok(None);
            }
            self.rest.extend(chunk);
        }
    }

    /// The next event that is no bookmark.
    ///
    /// # Errors
    /// As [`Watch::next`], and when the watch ends before.
    pub fn next_change(&mut self, limit: Duration) -> Result<Value> {
        loop {
            let event = self.next(limit)?.context("the watch has ended")?;
            if event.get("type").and_then(Value::as_str) != Some("BOOKMARK") {
                return Ok(event);
            }
        }
    }
}
