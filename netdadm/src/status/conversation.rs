//! One question over TCP, with or without TLS, and what stands in its way by name.
//!
//! Invariants: each step has what is left of the time of the whole; a certificate that is not accepted is named with the reason, never
//! as an answer that stays out; the certificate of the other end is known however the handshake ends.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cluster::problem::elided;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme, StreamOwned,
};

use super::keys::Identity;

/// Bytes of an answer that are read at most.
const MOST: u64 = 16 << 20;

/// The shortest time that a socket takes.
const LEAST: Duration = Duration::from_millis(1);

/// An answer of HTTP.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) body: String,
}

impl Answer {
    /// What it says, as far as it fits into a row.
    pub(super) fn words(&self) -> String {
        elided(self.body.trim().to_owned())
    }
}

/// Whom to ask.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) at: SocketAddr,
    /// Authorities that its certificate must be of; without them any is taken.
    pub(super) roots: Option<Arc<RootCertStore>>,
    /// The file of these, for messages.
    pub(super) authority: &'static str,
    pub(super) identity: Option<Arc<Identity>>,
    /// The file of that, for messages.
    pub(super) own: &'static str,
    pub(super) end: Instant,
}

/// What the other end showed.
#[derive(Default)]
struct Seen {
    certificate: Option<CertificateDer<'static>>,
}

impl Peer {
    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now()).max(LEAST)
    }

    fn connect(&self) -> Result<TcpStream, String> {
        let stream = TcpStream::connect_timeout(&self.at, self.left()).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => format!("nothing listens at {}", self.at),
            io::ErrorKind::TimedOut => format!("{} does not answer: the host is down, or a firewall drops it", self.at),
            _ => format!("connect to {}: {error}", self.at),
        })?;
        let limit = Some(self.left());
        let set = stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit));
        set.map_err(|error| format!("set the time of the socket to {}: {error}", self.at))?;
        Ok(stream)
    }

    /// Asks over plain HTTP.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(super) fn ask(&self, request: &str) -> Result<Answer, String> {
        talk(self.connect()?, request).map_err(|error| self.silence(&error))
    }

    /// Asks over TLS; the certificate of the other end comes with either outcome.
    pub(super) fn ask_secretly(&self, request: &str) -> (Option<CertificateDer<'static>>, Result<Answer, String>) {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let answer = self.secret(&seen, request);
        let certificate = seen.lock().unwrap_or_else(PoisonError::into_inner).certificate.clone();
        (certificate, answer)
    }

    fn secret(&self, seen: &Arc<Mutex<Seen>>, request: &str) -> Result<Answer, String> {
        let config = self.config(Arc::clone(seen)).map_err(|error| format!("prepare TLS: {error}"))?;
        let name = ServerName::IpAddress(self.at.ip().into());
        let mut connection =
            ClientConnection::new(Arc::new(config), name).map_err(|error| format!("prepare TLS: {error}"))?;
        let mut stream = self.connect()?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream).map_err(|error| self.refusal(&error, "the handshake of TLS"))?;
        }
        talk(StreamOwned::new(connection, stream), request).map_err(|error| self.refusal(&error, "an answer"))
    }

    fn config(&self, seen: Arc<Mutex<Seen>>) -> Result<ClientConfig, Error> {
        let provider = Arc::new(ring::default_provider());
        let inner = match &self.roots {
            Some(roots) => {
                let built =
                    WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(&provider)).build();
                Some(built.map_err(|error| Error::General(error.to_string()))?)
            }
            None => None,
        };
        let verifier = Arc::new(Recording { inner, seen, provider: Arc::clone(&provider) });
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.dangerous().with_custom_certificate_verifier(verifier);
        match &self.identity {
            Some(identity) => config.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key()),
            None => Ok(config.with_no_client_auth()),
        }
    }

    /// Why TLS did not come about, in words of who is wrong.
    fn refusal(&self, error: &io::Error, awaited: &str) -> String {
        let (at, authority, own) = (self.at, self.authority, self.own);
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
                format!("the certificate of {at} is of another authority than {authority}")
            }
            Some(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
                format!("the certificate of {at} has expired")
            }
            Some(Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            )) => {
                format!("the certificate of {at} is not valid yet: its clock or this one is wrong")
            }
            Some(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {
                format!("the certificate of {at} does not have the address {}", at.ip())
            }
            Some(Error::AlertReceived(AlertDescription::CertificateRequired)) => {
                format!("{at} asks for a certificate, and there is none: name the rendered folder by -o")
            }
            Some(Error::AlertReceived(
                AlertDescription::BadCertificate | AlertDescription::UnknownCA | AlertDescription::CertificateExpired,
            )) if self.identity.is_some() => {
                format!(
                    "{at} does not accept {own}: it is of another authority than that of the server, or has expired"
                )
            }
            Some(Error::AlertReceived(AlertDescription::BadCertificate | AlertDescription::UnknownCA)) => {
                format!("{at} asks for a certificate, and there is none: name the rendered folder by -o")
            }
            Some(Error::InvalidMessage(_)) => format!("{at} does not speak TLS"),
            Some(error) => format!("TLS with {at}: {error}"),
            None if is_late(error) => {
                format!("{at} takes connections, and {awaited} stays out: the process is stopped or overloaded")
            }
            None => self.silence(error),
        }
    }

    fn silence(&self, error: &io::Error) -> String {
        if is_late(error) {
            return format!("{} takes connections and does not answer: the process is stopped or overloaded", self.at);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                format!("{} ends the connection without an answer", self.at)
            }
            _ => format!("ask {}: {error}", self.at),
        }
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// HTTP/1.0: the answer ends with the connection and is in one piece.
fn talk(mut stream: impl Read + Write, request: &str) -> io::Result<Answer> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut bytes = Vec::new();
    match stream.take(MOST).read_to_end(&mut bytes) {
        // Some servers end without TLS's own farewell.
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof || bytes.is_empty() => return Err(error),
        _ => {}
    }
    parse_answer(&String::from_utf8_lossy(&bytes)).ok_or_else(|| io::Error::other("the answer is no HTTP"))
}

/// Status code and body of an answer.
pub(super) fn parse_answer(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { code, body: body.to_owned() })
}

/// Verifies as everybody does, and remembers the certificate.
#[derive(Debug)]
struct Recording {
    inner: Option<Arc<WebPkiServerVerifier>>,
    seen: Arc<Mutex<Seen>>,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seen").field("certificate", &self.certificate.is_some()).finish()
    }
}

impl ServerCertVerifier for Recording {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).certificate = Some(end.clone().into_owned());
        match &self.inner {
            Some(inner) => inner.verify_server_cert(end, chain, name, ocsp, now),
            // Nothing is sent that is secret: without authorities there is no identity either.
            None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_code_and_its_body() {
        let found = parse_answer("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").unwrap();
        assert_eq!((found.code, found.body.as_str()), (403, "no"));
        for text in ["", "HTTP/1.1 200 OK", "SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 x\r\n\r\n"] {
            assert!(parse_answer(text).is_none(), "{text}");
        }
    }
}
