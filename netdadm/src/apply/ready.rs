//! Whether something serves: an answer 200 to a request by HTTP or HTTPS, asked again until it comes or the time is over.
//!
//! Invariant: every attempt has a limit, and so has the whole; an answer counts only if the server's certificate is of the authority that the
//! manifest names.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host::Ready;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// One attempt, from the connection to the status line.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest status line that is read, in bytes.
const LINE: usize = 512;

/// Waits until the URL answers 200, unless `in_vain` says why it never will.
///
/// # Errors
/// When it does not in time, with what it said last.
pub(super) fn wait(ready: &Ready, in_vain: impl Fn() -> Option<String>) -> Result<(), String> {
    let end = Instant::now() + Duration::from_secs(u64::from(ready.seconds));
    loop {
        let last = match ask(ready) {
            Ok(200) => return Ok(()),
            Ok(status) => format!("it answers {status}"),
            Err(cause) => cause,
        };
        if let Some(reason) = in_vain() {
            return Err(format!("{reason}: {last}"));
        }
        if Instant::now() + PAUSE >= end {
            return Err(format!("{} does not answer 200 within {} s: {last}", ready.url, ready.seconds));
        }
        std::thread::sleep(PAUSE);
    }
}

/// The status of one answer.
fn ask(ready: &Ready) -> Result<u16, String> {
    let target = Target::parse(&ready.url).ok_or("the URL has no host")?;
    let stream = connect(&target).map_err(|cause| format!("connect to {}: {cause}", target.authority()))?;
    let status = |answer: io::Result<u16>| answer.map_err(|cause| cause.to_string());
    if !target.is_tls {
        return status(exchange(stream, &target));
    }
    let name =
        ServerName::try_from(target.host.clone()).map_err(|_| format!("{} is no name of a server", target.host))?;
    let session = ClientConnection::new(Arc::new(config(ready)?), name).map_err(|cause| cause.to_string())?;
    status(exchange(StreamOwned::new(session, stream), &target))
}

/// What is asked, from a URL.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    is_tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Target {
    fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let is_tls = scheme == "https";
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => v6.split_once(']').map(|(host, port)| (host, port.strip_prefix(':')))?,
            None => authority.rsplit_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Ok(if is_tls { 443 } else { 80 }), str::parse).ok()?;
        let path = if path.is_empty() { "/" } else { path };
        (!host.is_empty()).then(|| Self { is_tls, host: host.to_owned(), port, path: path.to_owned() })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

fn connect(target: &Target) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in (target.host.as_str(), target.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ATTEMPT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(ATTEMPT))?;
                stream.set_write_timeout(Some(ATTEMPT))?;
                return Ok(stream);
            }
            Err(cause) => last = cause,
        }
    }
    Err(last)
}

/// Sends the request and reads the status line; the rest of the answer is nobody's.
fn exchange(mut stream: impl Read + Write, target: &Target) -> io::Result<u16> {
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", target.path, target.authority());
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let end = Instant::now() + ATTEMPT;
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.len() < LINE && Instant::now() < end && stream.read(&mut byte)? == 1 && byte != *b"\n" {
        line.extend(byte);
    }
    let text = String::from_utf8_lossy(&line);
    let status = text.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.trim().parse().ok());
    status.ok_or_else(|| io::Error::other(format!("no answer of HTTP/1.1: {:?}", text.trim())))
}

fn config(ready: &Ready) -> Result<ClientConfig, String> {
    let path = ready.authority.as_ref().ok_or("https without an authority: nothing to hold its certificate against")?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|cause| format!("{}: {cause}", path.display()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|cause| cause.to_string())?.with_root_certificates(roots);
    let (Some(certificate), Some(key)) = (&ready.certificate, &ready.key) else {
        return Ok(builder.with_no_client_auth());
    };
    let read = PrivateKeyDer::from_pem_file(key).map_err(|cause| format!("read the key {}: {cause}", key.display()))?;
    builder
        .with_client_auth_cert(certificates(certificate)?, read)
        .map_err(|cause| format!("{}: {cause}", certificate.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |cause: &dyn std::fmt::Display| format!("read the certificate {}: {cause}", path.display());
    let read = CertificateDer::pem_file_iter(path).map_err(|cause| failed(&cause))?;
    let all: Result<Vec<_>, _> = read.collect();
    match all {
        Ok(all) if all.is_empty() => Err(failed(&"there is none in it")),
        Ok(all) => Ok(all),
        Err(cause) => Err(failed(&cause)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn a_url_is_read_with_and_without_its_parts() {
        let read = |url: &str| Target::parse(url).map(|target| (target.is_tls, target.authority(), target.path));
        let is = |tls, authority: &str, path: &str| Some((tls, authority.to_owned(), path.to_owned()));
        assert_eq!(read("https://127.0.0.1:2379/health"), is(true, "127.0.0.1:2379", "/health"));
        assert_eq!(read("http://[::1]:2381"), is(false, "[::1]:2381", "/"));
        assert_eq!(read("https://api.example/readyz?verbose"), is(true, "api.example:443", "/readyz?verbose"));
        assert_eq!(read("https://:1/"), None);
        assert_eq!(read("https://a:x/"), None);
    }

    /// What a server says, with what it was sent.
    struct Said(Cursor<Vec<u8>>, Vec<u8>);

    impl Write for &mut Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for &mut Said {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    #[test]
    fn the_status_line_decides() {
        let target = Target::parse("http://h:1/x").unwrap();
        let status = |said: &str| {
            let mut stream = Said(Cursor::new(said.as_bytes().to_vec()), Vec::new());
            let status = exchange(&mut stream, &target).map_err(|cause| cause.to_string());
            assert!(String::from_utf8(stream.1).unwrap().starts_with("GET /x HTTP/1.1\r\nHost: h:1\r\n"));
            status
        };
        assert_eq!(status("HTTP/1.1 200 OK\r\n\r\nok"), Ok(200));
        assert_eq!(status("HTTP/1.0 403 Forbidden\r\n"), Ok(403));
        assert!(status("SSH-2.0-OpenSSH\r\n").unwrap_err().contains("SSH-2.0"));
        assert!(status("").is_err());
    }
}
