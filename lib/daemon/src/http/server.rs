//! The listeners, and what bounds a connection.

use std::convert::Infallible;
use std::fmt;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::task::JoinSet;

use super::body::{Body, Deadline};
use super::host::Reach;
use super::own::{Answer, Asked};
use super::pages::{Page, Site};
use super::room::{Ended, Place, Room};
use crate::liveness::Heartbeat;

/// Time for the header of a request.
const HEADER_LIMIT: Duration = Duration::from_secs(5);

/// Time for a whole connection.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);

/// Longest time for which a listener makes no progress.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// Bytes of a request's header.
const HEADER_BYTES: usize = 16 * 1024;

/// Connections that wait in the kernel.
const BACKLOG: u32 = 64;

/// Pages that are of the moment, and that kube-proxy has no word about caching for.
const PROBES: [&str; 2] = ["/healthz", "/livez"];

/// Content type of server-sent events.
const EVENTS: &str = "text/event-stream";

/// Pause before a listener is opened again.
const PAUSE: Duration = Duration::from_secs(5);

/// Pause after an accept that failed, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Address and port.
    Tcp(SocketAddr),
    /// A unix socket, which only the daemon's user may open.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Which pages a listener has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routes {
    /// Whether the daemon is well, and nothing else.
    Health,
    /// All of them.
    All,
}

/// Serves `site` at `address`, for as long as the future is polled; `heartbeat` shows that it makes progress.
pub(super) async fn serve(address: Address, routes: Routes, site: Arc<Site>, heartbeat: Heartbeat) {
    let room = Room::default();
    let mut reason = String::new();
    let note = |site: &Site, reason: Option<&str>| {
        site.vitals.lock().unwrap_or_else(PoisonError::into_inner).note(&address, routes, reason);
    };
    loop {
        let error = match Listener::bind(&address).await {
            Ok(listener) => {
                tracing::debug!(%address, "serving HTTP");
                reason.clear();
                note(&site, None);
                accept(listener, routes, &site, &room, &heartbeat).await;
                continue;
            }
            Err(error) => error.to_string(),
        };
        if error != reason {
            tracing::warn!(%address, error, "no HTTP here; tried again every {} s", PAUSE.as_secs());
            note(&site, Some(&error));
            reason = error;
        }
        heartbeat.back_within(PAUSE);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Opens a listener at `address`, of its own family only.
///
/// # Errors
/// When the system refuses.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Answers whoever asks at `listener` with what `page` returns, whatever the path, for as long as the future is polled. Connections that are
/// kept open end with it: what the page says is not true any more then.
pub async fn serve_page(listener: TcpListener, page: Arc<dyn Fn() -> Page + Send + Sync>) {
    let (room, mut open) = (Room::default(), JoinSet::new());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let page = Arc::clone(&page);
                open.spawn(converse(stream, room.enter(), move |_, _| std::future::ready(respond(page()))));
                while open.try_join_next().is_some() {}
                tokio::task::yield_now().await;
            }
            Err(error) => {
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            Address::Unix(path) => {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
                Ok(Self::Unix(listener))
            }
        }
    }
}

/// Accepts until the listener is of no use any more.
async fn accept(listener: Listener, routes: Routes, site: &Arc<Site>, room: &Room, heartbeat: &Heartbeat) {
    loop {
        heartbeat.idle();
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                let reach = Reach::of(stream.local_addr().ok());
                tokio::spawn(talk(stream, (routes, reach), Arc::clone(site), room.enter()));
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(talk(stream, (routes, Reach::Unix), Arc::clone(site), room.enter()));
            }),
        };
        if let Err(error) = accepted {
            tracing::debug!(%error, "a connection could not be accepted");
            heartbeat.back_within(ACCEPT_PAUSE);
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        // Whoever has asked already is answered before the next one may need the place.
        tokio::task::yield_now().await;
    }
}

pub(crate) async fn talk<S>(stream: S, at: (Routes, Reach), site: Arc<Site>, place: (Place, Ended))
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = move |request: Request<Incoming>, deadline| {
        let site = Arc::clone(&site);
        async move { answer(&request, at, &site, deadline).await }
    };
    converse(stream, place, answer).await;
}

/// Answers the requests of one connection.
async fn converse<S, F>(
    stream: S,
    (place, ended): (Place, Ended),
    answer: impl Fn(Request<Incoming>, Arc<Deadline>) -> F,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = Response<Body>>,
{
    let deadline = Deadline::after(CONNECTION_LIMIT);
    let service = service_fn(|request| {
        let (answer, place) = (answer(request, Arc::clone(&deadline)), &place);
        async move {
            place.set_answering(true);
            let response = answer.await;
            // A stream goes on, and there are fewer of them than connections.
            place.set_answering(matches!(response.body(), Body::Events(..)));
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off or takes too long is not worth a line.
    tokio::select! {
        _ = connection => {}
        () = deadline.passed() => {}
        _ = ended => {}
    }
}

async fn answer(
    request: &Request<Incoming>,
    (routes, reach): (Routes, Reach),
    site: &Site,
    deadline: Arc<Deadline>,
) -> Response<Body> {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = uncached(Page::text(405, "only GET and HEAD\n"));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let all = routes == Routes::All;
    if all && site.is_guarded(path) && !reach.admits(request) {
        return uncached(Page::text(403, "ask for localhost or an address, not by another name\n"));
    }
    if all && let Some(answer) = site.own(path, Asked { query: query.to_owned(), reach }).await {
        return match answer {
            Answer::Page(page) => uncached(page),
            Answer::Events(events) => {
                let mut response = respond(Page { content_type: EVENTS, ..Page::text(200, "") });
                response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                *response.body_mut() = Body::Events(events.frames, deadline);
                response
            }
        };
    }
    let page = site.page(path, query, all).await.unwrap_or_else(|| Page::text(404, "no such page\n"));
    if PROBES.contains(&path) { respond(page) } else { uncached(page) }
}

/// An answer that is of the moment; a page that says otherwise keeps its word.
fn uncached(page: Page) -> Response<Body> {
    let mut response = respond(page);
    response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn respond(page: Page) -> Response<Body> {
    // hyper sends no body to HEAD.
    let mut response = Response::new(Body::Whole(Full::new(Bytes::from(page.body))));
    *response.status_mut() = StatusCode::from_u16(page.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    for (name, value) in page.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    response
}
