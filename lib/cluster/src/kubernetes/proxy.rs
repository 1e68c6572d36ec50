//! Which proxy leads to the API server: the kubeconfig's, or that of the environment.
//!
//! Invariant: the same as client-go, whose transport uses Go's `http.ProxyFromEnvironment` (golang.org/x/net/http/httpproxy): nothing
//! on this host is asked for through a proxy, and `NO_PROXY` holds names, domains, addresses and networks, each with a port or without.

use std::net::IpAddr;

use hyper::http::Uri;

use super::access::Environment;

/// The proxy for `server`, if there is one.
///
/// # Errors
/// What is wrong with the proxy's URL, with the accepted form.
pub(super) fn for_server(
    server: &Uri,
    kubeconfig: Option<&str>,
    environment: &Environment,
) -> Result<Option<Uri>, String> {
    if let Some(text) = kubeconfig.filter(|text| !text.is_empty()) {
        return proxy("proxy-url", text).map(Some);
    }
    let is_tls = server.scheme_str() == Some("https");
    let (name, text) =
        if is_tls { ("HTTPS_PROXY", &environment.https_proxy) } else { ("HTTP_PROXY", &environment.http_proxy) };
    let Some(text) = text else { return Ok(None) };
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']).to_lowercase();
    let port = server.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    if is_exempt(&host, port, &environment.no_proxy) {
        return Ok(None);
    }
    proxy(name, text).map(Some)
}

fn proxy(name: &str, text: &str) -> Result<Uri, String> {
    let accepted = "accepted: http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT";
    // Go takes a text without a scheme for one with http.
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let (scheme, rest) = whole.split_once("://").unwrap_or_default();
    let scheme = Some(scheme.to_ascii_lowercase()).filter(|scheme| scheme != "socks5h").unwrap_or("socks5".to_owned());
    let uri: Uri = format!("{scheme}://{rest}").parse().map_err(|error| format!("{name}: {error}; {accepted}"))?;
    match uri.scheme_str() {
        Some("http" | "https" | "socks5") if uri.host().is_some() => Ok(uri),
        // The text may hold a password.
        _ => Err(format!("{name}: no usable proxy; {accepted}")),
    }
}

/// True for a host that is asked directly.
fn is_exempt(host: &str, port: u16, no_proxy: &str) -> bool {
    let address: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    let words = no_proxy.split(',').map(|word| word.trim().to_lowercase());
    words.filter(|word| !word.is_empty()).any(|word| word == "*" || exempts(&word, host, port, address))
}

fn exempts(word: &str, host: &str, port: u16, address: Option<IpAddr>) -> bool {
    if let Some((network, length)) = word.split_once('/') {
        let network = network.parse().ok().zip(length.parse().ok());
        return address.zip(network).is_some_and(|(address, (network, length))| is_within(address, network, length));
    }
    if let Ok(listed) = word.trim_matches(['[', ']']).parse::<IpAddr>() {
        return address == Some(listed);
    }
    let (name, listed) = match word.rsplit_once(':') {
        Some((name, digits)) => (name, digits.parse::<u16>().ok()),
        None => (word, None),
    };
    if word.contains(':') && listed != Some(port) {
        return false;
    }
    if let Ok(listed) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
        return address == Some(listed);
    }
    // A name exempts its subdomains too, one with a dot in front only these.
    let domain = name.trim_start_matches('*');
    match domain.strip_prefix('.') {
        Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
        None => host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
    }
}

fn is_within(address: IpAddr, network: IpAddr, length: u32) -> bool {
    let same = |address: u128, network: u128, bits: u32| {
        length <= bits && (length == 0 || (address ^ network).checked_shr(bits.saturating_sub(length)) == Some(0))
    };
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => same(address.to_bits().into(), network.to_bits().into(), 32),
        (IpAddr::V6(address), IpAddr::V6(network)) => same(address.to_bits(), network.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(no_proxy: &str) -> Environment {
        Environment {
            http_proxy: Some("plain.example:3128".to_owned()),
            https_proxy: Some("http://user:secret@tls.example:3129".to_owned()),
            no_proxy: no_proxy.to_owned(),
            ..Environment::default()
        }
    }

    fn host_of_proxy(server: &str, no_proxy: &str) -> Option<String> {
        let server: Uri = server.parse().unwrap();
        for_server(&server, None, &environment(no_proxy)).unwrap().map(|uri| uri.host().unwrap().to_owned())
    }

    #[test]
    fn the_servers_scheme_chooses_the_proxy_and_the_kubeconfigs_comes_first() {
        assert_eq!(host_of_proxy("https://10.0.0.1:6443", "").as_deref(), Some("tls.example"));
        assert_eq!(host_of_proxy("http://10.0.0.1:8080", "").as_deref(), Some("plain.example"));
        let server: Uri = "https://127.0.0.1:6443".parse().unwrap();
        let own = for_server(&server, Some("socks5h://own.example:1080"), &environment("*")).unwrap().unwrap();
        assert_eq!((own.scheme_str(), own.host()), (Some("socks5"), Some("own.example")));
        for (text, scheme) in [("SOCKS5H://p:1", "socks5"), ("Socks5://p:1", "socks5"), ("HTTP://p:1", "http")] {
            let own = for_server(&server, Some(text), &environment("")).unwrap().unwrap();
            assert_eq!(own.scheme_str(), Some(scheme), "{text}: a scheme has no case (RFC 3986 §3.1)");
        }
    }

    #[test]
    fn what_no_proxy_names_and_what_is_on_this_host_is_asked_directly() {
        for (server, no_proxy) in [
            ("https://localhost:6443", ""),
            ("https://127.0.0.1:6443", ""),
            ("https://[::1]:6443", ""),
            ("https://10.1.2.3:6443", "example.com, 10.0.0.0/8"),
            ("https://10.1.2.3:6443", "10.1.2.3"),
            ("https://10.1.2.3:6443", "10.1.2.3:6443"),
            ("https://[fd00::7]:6443", "fd00::/8"),
            ("https://api.example.com", "example.com"),
            ("https://api.example.com", ".example.com"),
            ("https://example.com:443", "example.com:443"),
            ("https://API.Example.com", "*.example.com"),
            ("https://anything", "*"),
        ] {
            assert_eq!(host_of_proxy(server, no_proxy), None, "{server} {no_proxy}");
        }
        for (server, no_proxy) in [
            ("https://10.1.2.3:6443", "10.2.0.0/16,fd00::/8"),
            ("https://10.1.2.3:6443", "10.1.2.3:443"),
            ("https://example.com", ".example.com"),
            ("https://badexample.com", "example.com"),
            ("https://example.com:6443", "example.com:443"),
        ] {
            assert_eq!(host_of_proxy(server, no_proxy).as_deref(), Some("tls.example"), "{server} {no_proxy}");
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_refused_without_its_password() {
        let server: Uri = "https://10.0.0.1".parse().unwrap();
        let text = for_server(&server, Some("ftp://user:secret@x:1"), &Environment::default()).unwrap_err();
        assert!(
            text.starts_with("proxy-url: no usable proxy; accepted: http://") && !text.contains("secret"),
            "{text}"
        );
    }
}
