//! HTTP/1.1 over TLS with blocking sockets: as much as the client and the relay of the tests need.
//!
//! Invariant: bodies are read by the length or the chunks that the head announces, never past them, so a connection serves request after
//! request. A read that times out loses nothing.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::authority::Issued;

/// The longest head that is read.
const LONGEST_HEAD: usize = 64 << 10;

/// One side's end of a TLS connection.
pub(crate) trait Stream: Read + Write + Send {
    fn socket(&self) -> &TcpStream;
}

impl Stream for StreamOwned<ClientConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

impl Stream for StreamOwned<ServerConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

/// A connection with what was read of it and not used.
pub(crate) struct Connection {
    reader: BufReader<Box<dyn Stream>>,
}

/// First line and headers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Head {
    pub(crate) first: String,
    pub(crate) headers: Vec<(String, String)>,
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunks,
    /// With the connection.
    Close,
}

/// How clients of a server trust it: by its authority alone.
pub(crate) fn trust(authority: &str) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// How a server shows itself.
pub(crate) fn identity(issued: &Issued) -> Result<Arc<ServerConfig>> {
    let certificate = CertificateDer::from_pem_slice(issued.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Connection {
    pub(crate) fn to_server(socket: TcpStream, config: &Arc<ClientConfig>) -> Result<Self> {
        let address = socket.peer_addr()?.ip();
        let tls = ClientConnection::new(Arc::clone(config), ServerName::IpAddress(address.into()))?;
        socket.set_nodelay(true)?;
        Ok(Self::over(Box::new(StreamOwned::new(tls, socket))))
    }

    pub(crate) fn to_client(socket: TcpStream, config: &Arc<ServerConfig>) -> Result<Self> {
        socket.set_nodelay(true)?;
        Ok(Self::over(Box::new(StreamOwned::new(ServerConnection::new(Arc::clone(config))?, socket))))
    }

    fn over(stream: Box<dyn Stream>) -> Self {
        Self { reader: BufReader::new(stream) }
    }

    pub(crate) fn set_limit(&self, limit: Duration) -> Result<()> {
        self.reader.get_ref().socket().set_read_timeout(Some(limit)).context("set the time limit of a connection")
    }

    /// Ends it at once, as a lost connection ends.
    pub(crate) fn break_off(&self) {
        // It may be gone already.
        let _ = self.reader.get_ref().socket().shutdown(Shutdown::Both);
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)?;
        self.reader.get_mut().flush()
    }

    /// Whether there is something to read: `None` when nothing came before the time limit, `false` at the end.
    pub(crate) fn has_more(&mut self) -> Option<bool> {
        match self.reader.fill_buf() {
            Ok(bytes) => Some(!bytes.is_empty()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
            Err(_) => Some(false),
        }
    }

    /// Reads the head of a request or an answer; `None` when the other side has ended the connection before it.
    pub(crate) fn head(&mut self) -> Result<Option<Head>> {
        let mut head = Head::default();
        let mut length = 0;
        loop {
            let line = self.line()?;
            length += line.len();
            ensure!(length < LONGEST_HEAD, "a head of more than {LONGEST_HEAD} bytes");
            match line.trim_end() {
                "" if line.is_empty() && head.first.is_empty() => return Ok(None),
                "" if head.first.is_empty() => {}
                "" => return Ok(Some(head)),
                first if head.first.is_empty() => first.clone_into(&mut head.first),
                header => {
                    let (name, value) = header.split_once(':').with_context(|| format!("no header: {header}"))?;
                    head.headers.push((name.trim().to_lowercase(), value.trim().to_owned()));
                }
            }
        }
    }

    /// A line with its end; empty at the end of the connection.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).context("read from the connection")?;
        String::from_utf8(line).context("a line that is no text")
    }

    /// The next bytes that are there, at most so many; empty at the end.
    pub(crate) fn some(&mut self, most: u64) -> io::Result<Vec<u8>> {
        let there = self.reader.fill_buf()?;
        let length = there.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let bytes = there.get(..length).unwrap_or_default().to_vec();
        self.reader.consume(length);
        Ok(bytes)
    }

    /// Exactly so many bytes.
    pub(crate) fn exactly(&mut self, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader.by_ref().take(length).read_to_end(&mut bytes).context("read a body")?;
        ensure!(bytes.len() as u64 == length, "a body of {} bytes, not {length}", bytes.len());
        Ok(bytes)
    }

    /// The next chunk of a body, without its frame; empty behind the last.
    pub(crate) fn chunk(&mut self) -> Result<Vec<u8>> {
        let line = self.line()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let length = u64::from_str_radix(size, 16).with_context(|| format!("no length of a chunk: {line:?}"))?;
        let bytes = self.exactly(length)?;
        self.line()?;
        Ok(bytes)
    }

    /// A whole body.
    pub(crate) fn body(&mut self, framing: Framing) -> Result<Vec<u8>> {
        match framing {
            Framing::Length(length) => self.exactly(length),
            Framing::Chunks => {
                let mut body = Vec::new();
                loop {
                    let chunk = self.chunk()?;
                    if chunk.is_empty() {
                        return Ok(body);
                    }
                    body.extend(chunk);
                }
            }
            Framing::Close => {
                let mut body = Vec::new();
                self.reader.read_to_end(&mut body)?;
                Ok(body)
            }
        }
    }
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The second word: the target of a request, the code of an answer.
    pub(crate) fn second(&self) -> &str {
        self.first.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn code(&self) -> u16 {
        self.second().parse().unwrap_or_default()
    }

    /// Of a request: without an announcement there is no body.
    pub(crate) fn framing_of_request(&self) -> Framing {
        self.announced().unwrap_or(Framing::Length(0))
    }

    /// Of the answer to a request of this method.
    pub(crate) fn framing_of_answer(&self, method: &str) -> Framing {
        match self.code() {
            _ if method == "HEAD" => Framing::Length(0),
            100..200 | 204 | 304 => Framing::Length(0),
            _ => self.announced().unwrap_or(Framing::Close),
        }
    }

    fn announced(&self) -> Option<Framing> {
        let chunked = self.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        if chunked {
            return Some(Framing::Chunks);
        }
        self.header("content-length")?.parse().ok().map(Framing::Length)
    }

    /// As it goes over the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let headers = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        format!("{}\r\n{}\r\n", self.first, headers.collect::<String>()).into_bytes()
    }
}
