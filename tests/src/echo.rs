//! The answering side of every traffic test: a server that sends its name and whom it saw, and clients that ask it.
//!
//! Invariant: a client opens its socket in the place it asks from and gives up at its limit, so a lost packet is an error of
//! that request and not a hanging test.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use crate::place::Place;
use crate::process::Process;
use crate::programs::bin;

/// How long the server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Answer {
    /// Name the server was started with.
    pub name: String,
    /// Source address and port of the request as the server saw it: what masquerading changes.
    pub client: SocketAddr,
    /// Time from the first packet to the whole answer, measured by the client.
    #[serde(skip)]
    pub took: Duration,
}

/// Starts the server `echo-http` on `port` of a place, for HTTP over TCP and for UDP, and waits until it listens.
///
/// # Errors
/// When it is not built or the port is taken.
pub fn serve(place: &impl Place, name: &str, port: u16) -> Result<Process> {
    let process = place.command(bin("echo-http")?.as_os_str()).arg(name).arg(port.to_string()).start(name)?;
    process.wait_for_line("listening", START_LIMIT)?;
    Ok(process)
}

/// One HTTP request over a new TCP connection.
///
/// # Errors
/// When connection or answer do not come within `limit`, or the answer is not the server's.
pub fn ask_tcp(from: &impl Place, server: SocketAddr, limit: Duration) -> Result<Answer> {
    let asked = from.within(|| {
        let started = Instant::now();
        let mut connection = Connection::open_here(server, limit)?;
        connection.ask().map(|answer| Answer { took: started.elapsed(), ..answer })
    })?;
    asked.with_context(|| format!("ask tcp {server} from {}", from.label()))
}

/// One datagram from a new socket and its answer.
///
/// # Errors
/// When the answer does not come within `limit` or is not the server's.
pub fn ask_udp(from: &impl Place, server: SocketAddr, limit: Duration) -> Result<Answer> {
    let asked = from.within(|| {
        let started = Instant::now();
        let any = if server.is_ipv4() { "0.0.0.0" } else { "::" };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(limit))?;
        socket.connect(server)?;
        socket.send(b"who are you?\n")?;
        let mut bytes = [0; 512];
        let length = socket.recv(&mut bytes).context("no answer")?;
        let answer: Answer =
            serde_json::from_slice(bytes.get(..length).unwrap_or_default()).context("not the server's answer")?;
        Ok::<_, anyhow::Error>(Answer { took: started.elapsed(), ..answer })
    })?;
    asked.with_context(|| format!("ask udp {server} from {}", from.label()))
}

/// A kept-alive HTTP connection: what must survive a restart of the programs under test.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects from `from`; the connection stays there, whatever thread uses it.
    ///
    /// # Errors
    /// When the connection does not come up within `limit`, which also bounds each answer.
    pub fn open(from: &impl Place, server: SocketAddr, limit: Duration) -> Result<Self> {
        from.within(|| Self::open_here(server, limit))?
            .with_context(|| format!("connect to {server} from {}", from.label()))
    }

    fn open_here(server: SocketAddr, limit: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&server, limit).context("no connection")?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// One request on the connection.
    ///
    /// # Errors
    /// When the answer does not come in time, the connection is broken or the answer is not the server's.
    pub fn ask(&mut self) -> Result<Answer> {
        let started = Instant::now();
        let body = request(&mut self.stream, "lab", "/")?;
        let answer: Answer =
            serde_json::from_str(&body).with_context(|| format!("not the server's answer: {body:?}"))?;
        Ok(Answer { took: started.elapsed(), ..answer })
    }
}

/// `GET path` of any HTTP server that sends the length of its answer; gives the body of a 200.
///
/// # Errors
/// When nothing answers within `limit`, or with another status.
pub fn fetch(from: &impl Place, server: SocketAddr, path: &str, limit: Duration) -> Result<String> {
    let fetched =
        from.within(|| request(&mut Connection::open_here(server, limit)?.stream, &server.to_string(), path))?;
    fetched.with_context(|| format!("GET http://{server}{path} from {}", from.label()))
}

fn request(stream: &mut TcpStream, host: &str, path: &str) -> Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let length = stream.read(&mut chunk).context("no answer")?;
        bytes.extend_from_slice(chunk.get(..length).unwrap_or_default());
        if let Some(body) = whole_body(&bytes)? {
            return Ok(body);
        }
        if length == 0 {
            bail!("the connection was closed within the answer {:?}", String::from_utf8_lossy(&bytes));
        }
    }
}

/// The body once all of it is there (RFC 9112 §6.3, answers with a Content-Length only).
fn whole_body(bytes: &[u8]) -> Result<Option<String>> {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(None) };
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("answered {text:?}");
    }
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case("content-length"));
    let length: usize = length.ok_or_else(|| anyhow!("no Content-Length in {head:?}"))?.1.trim().parse()?;
    Ok((body.len() >= length).then(|| body.get(..length).unwrap_or(body).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_is_given_only_when_whole() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody";
        assert_eq!(whole_body(answer).unwrap().as_deref(), Some("body"));
        assert_eq!(whole_body(&answer[..answer.len() - 1]).unwrap(), None);
        assert_eq!(whole_body(b"HTTP/1.1 200 OK\r\n").unwrap(), None);
    }

    #[test]
    fn answer_of_another_status_is_an_error() {
        let error = whole_body(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n").unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
    }
}
