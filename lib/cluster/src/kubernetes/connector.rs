//! The way to the API server: TCP, a proxy before it where there is one, TLS.
//!
//! Invariant: a server that has vanished (power, network) is noticed by its silence within [`SILENCE`], also behind a watch on which
//! nothing happens; whoever does not answer at all, within [`CONNECT`] for all its addresses together.

use std::time::Duration;

use base64::Engine as _;
use hyper::http::{HeaderValue, Uri};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Config;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use tower::util::MapErr;
use tower::{BoxError, Service};

use super::fault::chain;

/// Longest time for a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// The peer's kernel is asked whether it is there after this time of silence.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Data that nobody acknowledges for this long ends the connection.
const SILENCE: Duration = Duration::from_secs(30);

/// Connections that nobody uses are closed after this time.
const IDLE: Duration = Duration::from_secs(60);

/// A client for this configuration. Must be called inside a tokio runtime.
///
/// # Errors
/// What is wrong with the credentials or the proxy.
pub(super) fn client(config: &Config) -> Result<kube::Client, String> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE / 3));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(SILENCE));
    let Some(proxy) = config.proxy_url.clone() else { return over(tcp, config) };
    let credentials = proxy.authority().and_then(|authority| authority.as_str().rsplit_once('@')).map(|(user, _)| user);
    match proxy.scheme_str() {
        Some("socks5") => {
            let mut socks = SocksV5::new(proxy.clone(), tcp);
            if let Some((user, password)) = credentials.and_then(|credentials| credentials.split_once(':')) {
                socks = socks.with_auth(unescaped(user), unescaped(password));
            }
            over(socks, config)
        }
        Some("https") => {
            let tls = config.rustls_https_connector_with_connector(tcp).map_err(|error| chain(&error))?;
            over(authorised(Tunnel::new(proxy.clone(), tls), credentials), config)
        }
        _ => over(authorised(Tunnel::new(proxy.clone(), tcp), credentials), config),
    }
}

fn authorised<C>(tunnel: Tunnel<C>, credentials: Option<&str>) -> Tunnel<C> {
    let Some(credentials) = credentials else { return tunnel };
    let text = base64::engine::general_purpose::STANDARD.encode(unescaped(credentials));
    match HeaderValue::try_from(format!("Basic {text}")) {
        Ok(header) => tunnel.with_auth(header),
        Err(_) => tunnel,
    }
}

/// Text of a URL without its escapes.
fn unescaped(text: &str) -> String {
    let (mut found, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..2).filter(|digits| *first == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        found.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { behind.get(2..).unwrap_or_default() } else { behind };
    }
    String::from_utf8_lossy(&found).into_owned()
}

/// HTTP over what `connector` connects, with TLS where the server's URL asks for it.
fn over<C>(connector: C, config: &Config) -> Result<kube::Client, String>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: std::error::Error + Send + Sync + 'static,
{
    let tls = config.rustls_https_connector_with_connector(connector).map_err(|error| chain(&error))?;
    let http: Client<_, Body> =
        Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).build(tls);
    let headers = config.extra_headers_layer().map_err(|error| chain(&error))?;
    let builder =
        ClientBuilder::new(MapErr::new(http, BoxError::from), config.default_namespace.clone()).with_layer(&headers);
    let base = config.base_uri_layer();
    Ok(match config.auth_layer().map_err(|error| chain(&error))? {
        Some(auth) => builder.with_layer(&auth).with_layer(&base).build(),
        None => builder.with_layer(&base).build(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_a_proxy_are_read_without_their_escapes() {
        assert_eq!(unescaped("us%40er:p%3a%zz%"), "us@er:p:%zz%");
    }
}
