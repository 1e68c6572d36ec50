//! The server with real clients on loopback and on its unix socket.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panic")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use daemon::http::{
    Address, Answer, AskError, Board, Events, OwnPages, Page, Probe, Routes, SOCKET, Site, Vitals, ask, ask_some,
    serve_wherever,
};
use daemon::liveness::Liveness;
use daemon::log::Recent;
use daemon::metrics::Metrics;
use daemon::readiness::Readiness;
use daemon::status::{RowText, TableRows};
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

const LIMIT: Duration = Duration::from_secs(10);

/// Futures that run on a thread of their own until this is dropped.
struct Running(Option<oneshot::Sender<()>>, Option<JoinHandle<()>>);

impl Running {
    fn start(futures: Vec<Pin<Box<dyn Future<Output = ()> + Send>>>) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for future in futures {
                    tokio::spawn(future);
                }
                let _ = stopped.await;
            });
        });
        Self(Some(stop), Some(thread))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.take());
        let _ = self.1.take().unwrap().join();
    }
}

/// A running server.
struct Server {
    _running: Running,
    address: SocketAddr,
    readiness: Readiness,
    folder: tempfile::TempDir,
}

/// A page that repeats its question, and a stream of three events.
fn own_pages() -> OwnPages {
    let pages = OwnPages::default();
    pages.show("/own", |asked| async move {
        let headers = vec![("cache-control", "no-cache".to_owned())];
        let text =
            if asked.query == "long" { "x".repeat(1 << 24) } else { format!("{} {:?}\n", asked.query, asked.reach) };
        Answer::Page(Page { headers, ..Page::text(200, text) })
    });
    pages.show("/events", |_| async {
        let (sender, events) = Events::open();
        tokio::spawn(async move {
            for number in 0..3 {
                let _ = sender.send("count", &json!(number)).await;
            }
        });
        Answer::Events(events)
    });
    pages.show("/endless", |_| async {
        let (sender, events) = Events::open();
        tokio::spawn(async move { sender.closed().await });
        Answer::Events(events)
    });
    pages
}

fn site(readiness: &Readiness) -> Arc<Site> {
    let board = Board::new(|status| format!("node {}\n", status["node"].as_str().unwrap()));
    board.set(&json!({"node": "n1"}));
    let row = RowText { desired: Some("route a".to_owned()), actual: None, equal: false, own: true };
    let table = TableRows { name: "routes".to_owned(), listed: true, rows: vec![row] };
    Arc::new(Site {
        readiness: readiness.clone(),
        liveness: Liveness::default(),
        metrics: Arc::new(Metrics::new("netd", "0.1.0", readiness.clone())),
        board,
        tables: Box::new(move |_| {
            let tables = vec![table.clone()];
            Box::pin(async move { Ok(tables) })
        }),
        vitals: Arc::new(Mutex::new(Vitals { pages: [("/proxyMode", "ipvs")].into(), ..Vitals::default() })),
        own: own_pages(),
        recent: Recent::default(),
        health: |probe, health| match probe {
            Probe::Ready if !health.ready => Page::text(503, format!("waits for {}\n", health.awaited.join(", "))),
            _ => Page::text(200, "well\n"),
        },
    })
}

/// An address that was free a moment ago.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn start(routes: Routes) -> Server {
    let (address, readiness) = (free(), Readiness::new(["leases"]));
    let folder = tempfile::tempdir().unwrap();
    let site = site(&readiness);
    let socket = Address::Unix(folder.path().join(SOCKET));
    let (_, places) = watch::channel(vec![(Address::Tcp(address), routes), (socket, Routes::All)]);
    let running = Running::start(vec![Box::pin(serve_wherever(places, site))]);
    until(|| TcpStream::connect(address).is_ok() && folder.path().join(SOCKET).exists());
    Server { _running: running, address, readiness, folder }
}

fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "the server does not start");
        std::thread::yield_now();
    }
}

/// Runs curl; returns the status code and the answer with its header.
fn curl(server: &Server, path: &str, flags: &[&str]) -> (u16, String) {
    let url = format!("http://{}{path}", server.address);
    let output = Command::new("curl").args(["-s", "-i", "--max-time", "10"]).args(flags).arg(url).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let code = text.split(' ').nth(1).unwrap_or_default().parse().unwrap_or(0);
    (code, text)
}

#[test]
fn every_page_is_there_for_a_real_client() {
    let server = start(Routes::All);
    assert_eq!(curl(&server, "/healthz", &[]).0, 200);
    assert_eq!(curl(&server, "/livez", &[]).0, 200);
    let (code, text) = curl(&server, "/readyz", &[]);
    assert!(code == 503 && text.ends_with("waits for leases\n"), "{text}");
    server.readiness.open("leases");
    assert_eq!(curl(&server, "/readyz", &[]).0, 200);
    let (_, text) = curl(&server, "/metrics", &[]);
    assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
    assert!(text.contains("\nnetd_readiness_gate{gate=\"leases\"} 1\n"), "{text}");
    let (_, text) = curl(&server, "/status", &[]);
    assert!(text.ends_with("\r\n\r\nnode n1\n") && text.contains("x-content-type-options: nosniff"), "{text}");
    let (_, text) = curl(&server, "/tables", &[]);
    assert!(text.ends_with("\r\n\r\ntable routes (1 desired)\n+ route a\n"), "{text}");
    let (_, text) = curl(&server, "/tables?format=json", &[]);
    let body: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body[0]["rows"][0]["desired"], "route a");
    let (_, text) = curl(&server, "/proxyMode", &[]);
    assert!(text.ends_with("\r\n\r\nipvs"), "{text}");
}

#[test]
fn a_program_has_pages_and_streams_of_its_own() {
    let server = start(Routes::All);
    let (code, text) = curl(&server, "/own?a=b", &[]);
    assert!(code == 200 && text.ends_with("\r\n\r\na=b Loopback\n"), "{text}");
    assert!(text.contains("cache-control: no-cache\r\n") && !text.contains("no-store"), "{text}");
    let (code, text) = curl(&server, "/events", &[]);
    assert!(code == 200 && text.contains("content-type: text/event-stream\r\n"), "{text}");
    assert!(
        text.ends_with("\r\n\r\nevent: count\ndata: 0\n\nevent: count\ndata: 1\n\nevent: count\ndata: 2\n\n"),
        "{text}"
    );
    let (code, text) = curl(&server, "/events", &["--head"]);
    assert!(code == 200 && text.ends_with("\r\n\r\n"), "{text}");
    assert!(ask(server.folder.path(), "/own?x", LIMIT).unwrap().ends_with("x Unix\n"));
    assert!(ask_some(server.folder.path(), "/own?x", LIMIT, 20).is_err(), "cut within its header");
    assert_eq!(curl(&start(Routes::Health), "/own", &[]).0, 404);
}

#[test]
fn a_page_of_somebody_elses_site_cannot_read_what_is_on_loopback() {
    let server = start(Routes::All);
    for (host, code) in
        [("localhost", 200), ("127.0.0.1:1", 200), ("evil.example", 403), ("localhost.evil.example", 403)]
    {
        let header = format!("Host: {host}");
        for path in ["/own", "/events", "/status", "/tables", "/changes"] {
            assert_eq!(curl(&server, path, &["-H", &header]).0, code, "{host} {path}");
        }
        assert_eq!(curl(&server, "/healthz", &["-H", &header]).0, 200, "{host}");
        assert_eq!(curl(&server, "/metrics", &["-H", &header]).0, 200, "{host}");
    }
}

#[test]
fn server_only_reads() {
    let server = start(Routes::All);
    for method in ["POST", "PUT", "DELETE"] {
        let (code, text) = curl(&server, "/status", &["-X", method, "-d", "x"]);
        assert!(code == 405 && text.contains("allow: GET, HEAD"), "{text}");
    }
    assert_eq!(curl(&server, "/status", &["-I"]).0, 200);
    assert_eq!(curl(&server, "/../etc/passwd", &["--path-as-is"]).0, 404);
}

#[test]
fn address_for_health_has_nothing_else() {
    let server = start(Routes::Health);
    assert_eq!(curl(&server, "/healthz", &[]).0, 200);
    for path in ["/metrics", "/status", "/tables", "/proxyMode", "/"] {
        assert_eq!(curl(&server, path, &[]).0, 404, "{path}");
    }
}

#[test]
fn listeners_are_where_they_are_wanted_and_one_that_stays_is_never_closed() {
    let places = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [first, second] = places.map(|listener| listener.local_addr().unwrap());
    let site = site(&Readiness::new([]));
    let liveness = site.liveness.clone();
    let at = |addresses: &[SocketAddr]| -> Vec<_> {
        addresses.iter().map(|address| (Address::Tcp(*address), Routes::Health)).collect()
    };
    let (wanted, listeners) = watch::channel(at(&[first]));
    let _running = Running::start(vec![Box::pin(serve_wherever(listeners, site))]);
    let is_open = |address: SocketAddr| TcpStream::connect(address).is_ok();
    until(|| is_open(first));
    wanted.send_replace(at(&[first, second]));
    until(|| is_open(second));
    assert!(is_open(first));
    wanted.send_replace(at(&[second]));
    until(|| !is_open(first));
    assert!(is_open(second));
    assert_eq!(liveness.names(), [format!("HTTP at {second}")]);
    assert!(!liveness.is_stuck(), "{:?}", liveness.stuck());
}

#[test]
fn header_that_is_too_large_or_never_ends_is_given_up() {
    let server = start(Routes::Health);
    let (code, text) = curl(&server, "/healthz", &["-H", &format!("X-Large: {}", "x".repeat(40_000))]);
    assert!(code == 431 || code == 0, "{text}");
    let mut slow = TcpStream::connect(server.address).unwrap();
    slow.set_read_timeout(Some(LIMIT)).unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nX-Slow: ").unwrap();
    let mut rest = Vec::new();
    // Ends because the server hangs up, not because nothing comes.
    slow.read_to_end(&mut rest).unwrap();
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
}

/// Waits until `/healthz` is answered, which is sooner than a connection ends by itself.
fn is_answered_at_once(server: &Server) {
    let url = format!("http://{}/healthz", server.address);
    let output = Command::new("curl").args(["-s", "--max-time", "3", &url]).output().unwrap();
    assert_eq!(output.stdout, b"well\n");
}

#[test]
fn connections_that_are_open_and_silent_keep_nobody_out() {
    let server = start(Routes::Health);
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    is_answered_at_once(&server);
    drop(silent);
}

#[test]
fn answers_that_nobody_takes_and_streams_keep_nobody_out() {
    for path in ["/own?long", "/endless"] {
        let server = start(Routes::All);
        let open = |_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            stream
        };
        let greedy: Vec<TcpStream> = (0..100).map(open).collect();
        is_answered_at_once(&server);
        drop(greedy);
    }
}

#[test]
fn taken_address_is_tried_again_and_hinders_nobody() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let site = site(&Readiness::new(["leases"]));
    let socket = Address::Unix(folder.path().join(SOCKET));
    let (_, places) = watch::channel(vec![(Address::Tcp(address), Routes::All), (socket, Routes::All)]);
    let _running = Running::start(vec![Box::pin(serve_wherever(places, site))]);
    until(|| ask(folder.path(), "/status", LIMIT).is_ok());
    drop(taken);
    until(|| TcpStream::connect(address).is_ok());
}

#[test]
fn daemon_is_asked_over_its_socket_and_an_absent_one_is_named() {
    let server = start(Routes::Health);
    let socket = std::fs::metadata(server.folder.path().join(daemon::http::SOCKET)).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let text = ask(server.folder.path(), "/tables", LIMIT).unwrap();
    assert_eq!(text, "table routes (1 desired)\n+ route a\n");
    let refused = ask(server.folder.path(), "/nothing", LIMIT).unwrap_err();
    assert!(matches!(refused, AskError::Refused { code: 404, .. }), "{refused}");
    let absent = ask(Path::new("/run/no-such-daemon"), "/tables", LIMIT).unwrap_err().to_string();
    assert_eq!(absent, "no daemon answers at /run/no-such-daemon/http.sock: is it running, with this --run-dir?");
}
