//! Answers load balancers that ask whether this node has endpoints of a Service (`healthCheckNodePort`), in kube-proxy's words.
//!
//! Invariants. A change costs the Services in it: only a Service whose port, family or addresses changed gets other listeners. A port that
//! cannot be bound is reported and tried again until it can, and hinders nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use daemon::http::{self, Page};
use daemon::liveness::Liveness;
use daemon::slot::locked;
use netstate::IpFamily;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::object::ObjectName;
use crate::plan::check::HealthCheck;

/// Time between two tries of a port that is taken.
const PAUSE: Duration = Duration::from_secs(1);

/// What is to be answered, filled by the thread that plans; clones are the same.
#[derive(Clone, Default)]
pub(super) struct Checks {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    wanted: Mutex<Wanted>,
    problems: Mutex<BTreeMap<(ObjectName, SocketAddr), String>>,
    changed: Notify,
}

#[derive(Default)]
struct Wanted {
    /// Services that changed, merged until they are taken.
    services: BTreeMap<ObjectName, Option<HealthCheck>>,
    /// Where to listen, when that changed.
    addresses: Option<BTreeSet<IpAddr>>,
}

impl Checks {
    /// Takes in what changed.
    pub(super) fn change(
        &self,
        services: BTreeMap<ObjectName, Option<HealthCheck>>,
        addresses: Option<BTreeSet<IpAddr>>,
    ) {
        if services.is_empty() && addresses.is_none() {
            return;
        }
        let mut wanted = locked(&self.shared.wanted);
        wanted.services.extend(services);
        wanted.addresses = addresses.or(wanted.addresses.take());
        self.shared.changed.notify_one();
    }

    /// Ports that cannot be bound.
    pub(super) fn problems(&self) -> Vec<Unbound> {
        let problem = |((service, at), reason): (&(ObjectName, SocketAddr), &String)| {
            let (service, reason) = (service.clone(), reason.clone());
            Unbound { service, at: *at, reason }
        };
        locked(&self.shared.problems).iter().map(problem).collect()
    }

    /// Serves, for as long as the future is polled.
    pub(super) async fn serve(self, liveness: Liveness) {
        let mut served =
            Served { addresses: BTreeSet::new(), services: BTreeMap::new(), closing: Vec::new(), liveness };
        loop {
            let waits = !locked(&self.shared.problems).is_empty();
            tokio::select! {
                () = self.shared.changed.notified() => {}
                () = tokio::time::sleep(PAUSE), if waits => {}
            }
            let wanted = std::mem::take(&mut *locked(&self.shared.wanted));
            served.take(wanted);
            served.close().await;
            *locked(&self.shared.problems) = served.listen();
        }
    }
}

/// A port that cannot be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unbound {
    /// Whose `healthCheckNodePort` it is.
    pub(super) service: ObjectName,
    pub(super) at: SocketAddr,
    /// What the system says.
    pub(super) reason: String,
}

impl fmt::Display for Unbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, at, reason } = self;
        write!(
            f,
            "services/{service}: spec.healthCheckNodePort: {at} cannot be bound: {reason}; tried again every second"
        )
    }
}

/// What is served.
struct Served {
    addresses: BTreeSet<IpAddr>,
    services: BTreeMap<ObjectName, Asked>,
    /// Listeners that nobody asks for any more.
    closing: Vec<Listener>,
    liveness: Liveness,
}

/// A Service that is asked about.
struct Asked {
    /// Shared with its listeners, which answer from it.
    check: Arc<Mutex<HealthCheck>>,
    listeners: BTreeMap<SocketAddr, Listener>,
}

struct Listener(JoinHandle<()>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Served {
    fn take(&mut self, wanted: Wanted) {
        if let Some(addresses) = wanted.addresses {
            self.addresses = addresses;
        }
        for (service, check) in wanted.services {
            match (check, self.services.get(&service)) {
                (None, _) => {
                    let gone = self.services.remove(&service);
                    self.closing.extend(gone.into_iter().flat_map(|asked| asked.listeners.into_values()));
                }
                (Some(check), Some(asked)) => *locked(&asked.check) = check,
                (Some(check), None) => {
                    let asked = Asked { check: Arc::new(Mutex::new(check)), listeners: BTreeMap::new() };
                    self.services.insert(service, asked);
                }
            }
        }
        for asked in self.services.values_mut() {
            let check = *locked(&asked.check);
            let is_left = |at: &SocketAddr| !is_asked(&check, *at) || !self.addresses.contains(&at.ip());
            self.closing.extend(asked.listeners.extract_if(.., |at, _| is_left(at)).map(|(_, listener)| listener));
        }
    }

    /// Waits until what nobody asks for is closed: a port may go from one Service to another, which cannot bind it before.
    async fn close(&mut self) {
        for mut listener in self.closing.drain(..) {
            listener.0.abort();
            // That it was ended is what it says.
            let _ = (&mut listener.0).await;
        }
    }

    /// Opens the listeners that are missing; returns why some cannot be.
    fn listen(&mut self) -> BTreeMap<(ObjectName, SocketAddr), String> {
        let mut problems = BTreeMap::new();
        for (service, asked) in &mut self.services {
            let check = *locked(&asked.check);
            let places = self.addresses.iter().map(|addr| SocketAddr::new(*addr, check.port));
            for at in places.filter(|at| is_asked(&check, *at)) {
                if asked.listeners.contains_key(&at) {
                    continue;
                }
                match http::bind(at) {
                    Ok(listener) => {
                        let page = answer(service.clone(), at, Arc::clone(&asked.check), self.liveness.clone());
                        let serving = tokio::spawn(http::serve_page(listener, page));
                        asked.listeners.insert(at, Listener(serving));
                    }
                    Err(error) => drop(problems.insert((service.clone(), at), error.to_string())),
                }
            }
        }
        problems
    }
}

/// Whether a Service is asked about at this place.
fn is_asked(check: &HealthCheck, at: SocketAddr) -> bool {
    at.port() == check.port && check.ready.get(IpFamily::of(at.ip())).is_some()
}

/// What is answered at a place.
fn answer(
    service: ObjectName,
    at: SocketAddr,
    check: Arc<Mutex<HealthCheck>>,
    liveness: Liveness,
) -> Arc<dyn Fn() -> Page + Send + Sync> {
    Arc::new(move || {
        let ready = locked(&check).ready.get(IpFamily::of(at.ip())).unwrap_or_default();
        page(&service, ready, !liveness.is_stuck())
    })
}

/// kube-proxy's page (pkg/proxy/healthcheck/service_health.go), tabs and all.
fn page(service: &ObjectName, ready: usize, healthy: bool) -> Page {
    let (namespace, name) = (service.namespace(), service.name());
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": {ready},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    let code = if ready > 0 && healthy { 200 } else { 503 };
    Page { headers: vec![("x-load-balancing-endpoint-weight", ready.to_string())], ..Page::json(code, body) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use netstate::family::PerFamily;

    use super::*;

    #[test]
    fn pages_are_those_that_kube_proxy_was_recorded_with() {
        let found = page(&ObjectName::new("default", "a"), 2, true);
        assert_eq!((found.code, found.body.len(), found.content_type), (200, 112, "application/json"));
        let body: serde_json::Value = serde_json::from_str(&found.body).unwrap();
        assert_eq!(body["service"]["name"], "a");
        assert_eq!(found.headers, [("x-load-balancing-endpoint-weight", "2".to_owned())]);
        let code = |ready, healthy| page(&ObjectName::new("default", "a"), ready, healthy).code;
        assert_eq!((code(0, true), code(1, false)), (503, 503));
    }

    /// What stands before the body of the answer at `at`, and the body.
    fn ask(at: SocketAddr) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET /any/path HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    async fn until(at: SocketAddr, is_right: impl Fn(&std::io::Result<String>) -> bool) -> String {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        loop {
            let found = tokio::task::spawn_blocking(move || ask(at)).await.unwrap();
            if is_right(&found) {
                return found.unwrap_or_default();
            }
            assert!(std::time::Instant::now() < deadline, "{found:?}");
        }
    }

    #[tokio::test]
    async fn a_port_is_served_as_long_as_it_is_asked_for_and_tried_again_while_it_is_taken() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        let checks = Checks::default();
        let serving = tokio::spawn(checks.clone().serve(Liveness::default()));
        let service = ObjectName::new("default", "a");
        let check = |ready| Some(HealthCheck { port: at.port(), ready: PerFamily::only(IpFamily::V4, ready) });
        let addresses = BTreeSet::from([at.ip()]);
        checks.change(BTreeMap::from([(service.clone(), check(2))]), Some(addresses));
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while checks.problems().is_empty() {
            assert!(std::time::Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        assert!(checks.problems()[0].to_string().contains(&at.to_string()), "{:?}", checks.problems());
        drop(taken);
        let text = until(at, |found| found.as_ref().is_ok_and(|text| text.contains("200 OK"))).await;
        assert!(text.to_lowercase().contains("x-load-balancing-endpoint-weight: 2"), "{text}");
        assert!(!text.to_lowercase().contains("cache-control"), "{text}");
        checks.change(BTreeMap::from([(service.clone(), check(0))]), None);
        until(at, |found| found.as_ref().is_ok_and(|text| text.contains("503"))).await;
        checks.change(BTreeMap::from([(service, None)]), None);
        until(at, Result::is_err).await;
        serving.abort();
    }

    #[tokio::test]
    async fn a_port_that_goes_from_one_service_to_another_is_answered_for_the_other_at_once() {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (first, second) = (free(), free());
        let checks = Checks::default();
        let serving = tokio::spawn(checks.clone().serve(Liveness::default()));
        let check = |at: SocketAddr| Some(HealthCheck { port: at.port(), ready: PerFamily::only(IpFamily::V4, 1) });
        let [a, b, c] = ["a", "b", "c"].map(|name| ObjectName::new("default", name));
        let named = |name: &str| {
            let name = format!("\"name\": \"{name}\"");
            move |found: &std::io::Result<String>| found.as_ref().is_ok_and(|text| text.contains(&name))
        };
        let both = BTreeMap::from([(a.clone(), check(first)), (b.clone(), check(second))]);
        checks.change(both, Some(BTreeSet::from([first.ip()])));
        until(second, named("b")).await;
        for (services, [at_first, at_second]) in [
            (BTreeMap::from([(a.clone(), check(second)), (b.clone(), check(first))]), ["b", "a"]),
            (BTreeMap::from([(a, None), (c, check(second))]), ["b", "c"]),
        ] {
            checks.change(services, None);
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            for (at, name) in [(first, at_first), (second, at_second)] {
                let is_right = named(name);
                while !is_right(&tokio::task::spawn_blocking(move || ask(at)).await.unwrap()) {
                    assert_eq!(checks.problems(), [], "{at} for {name}");
                    assert!(std::time::Instant::now() < deadline, "{at} is not answered for {name}");
                }
            }
        }
        serving.abort();
    }

    #[tokio::test]
    async fn nothing_listens_any_more_at_a_port_or_an_address_that_is_not_asked_at() {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (first, second) = (free(), free());
        let checks = Checks::default();
        let serving = tokio::spawn(checks.clone().serve(Liveness::default()));
        let service = ObjectName::new("default", "a");
        let to = |at: SocketAddr| {
            let check = HealthCheck { port: at.port(), ready: PerFamily::only(IpFamily::V4, 1) };
            BTreeMap::from([(service.clone(), Some(check))])
        };
        checks.change(to(first), Some(BTreeSet::from([first.ip()])));
        until(first, Result::is_ok).await;
        checks.change(to(second), None);
        until(second, Result::is_ok).await;
        until(first, Result::is_err).await;
        checks.change(BTreeMap::new(), Some(BTreeSet::from([[127, 0, 0, 2].into()])));
        let there = SocketAddr::new([127, 0, 0, 2].into(), second.port());
        until(there, Result::is_ok).await;
        until(second, Result::is_err).await;
        let of_ipv6 = HealthCheck { port: second.port(), ready: PerFamily::only(IpFamily::V6, 1) };
        checks.change(BTreeMap::from([(service.clone(), Some(of_ipv6))]), None);
        until(there, Result::is_err).await;
        serving.abort();
    }

    #[tokio::test]
    async fn a_connection_that_is_kept_open_ends_with_what_was_asked_about() {
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let checks = Checks::default();
        let serving = tokio::spawn(checks.clone().serve(Liveness::default()));
        let service = ObjectName::new("default", "a");
        let check = HealthCheck { port: at.port(), ready: PerFamily::only(IpFamily::V4, 1) };
        checks.change(BTreeMap::from([(service.clone(), Some(check))]), Some(BTreeSet::from([at.ip()])));
        until(at, Result::is_ok).await;
        let mut kept = TcpStream::connect(at).unwrap();
        kept.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut probe = move || {
            let mut bytes = [0; 1024];
            let asked = kept.write_all(b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n");
            asked.and_then(|()| kept.read(&mut bytes)).is_ok_and(|count| bytes[..count].starts_with(b"HTTP/1.1 200"))
        };
        let mut ask_again = tokio::task::spawn_blocking(move || (probe(), probe)).await.unwrap();
        assert!(ask_again.0);
        checks.change(BTreeMap::from([(service, None)]), None);
        until(at, Result::is_err).await;
        let answered = tokio::task::spawn_blocking(move || (ask_again.1)()).await.unwrap();
        assert!(!answered, "by whom nobody asks about any more");
        serving.abort();
    }
}
