//! `Client`: requests to the API server, each with a limit of time.
//!
//! Invariants: credentials, authorities and the kubeconfig itself are read again every few seconds while there is something to ask, and
//! at once when the server does not accept them; what was read last stays while a file is being replaced; a request that nobody answers
//! ends by its limit; none waits on a connection from an address that this host has no more.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Bytes;
use hyper::http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use hyper::http::{Method, Request, Response};
use kube::client::Body;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tower::BoxError;

use super::access::Access;
use super::connector;
use super::fault::{Ask, Fault, chain};
use super::material::Material;
use crate::certificates::InUse;
use crate::credentials::Credentials;
use crate::{ClusterError, provider};

/// Limit of a request for one object.
const LIMIT: Duration = Duration::from_secs(10);

/// Credentials are read again after this time.
const FRESH: Duration = Duration::from_secs(10);

/// Where a server says whether it is ready; everybody may ask (`system:public-info-viewer`).
const READY: &str = "/readyz";

/// What it says there without its store.
const WITHOUT_STORE: &str = "[-]etcd";

/// It is asked for that again after this time, although it answers otherwise.
const STORE: Duration = Duration::from_secs(30);

/// The largest answer: a page of a listing has a few MiB.
const MOST: usize = 256 << 20;

/// The largest text that comes with a refusal.
const MOST_WORDS: usize = 64 << 10;

/// Why a request has no answer whose connection was left.
const OTHER_ADDRESS: &str = "this host has another address now, so its connection was left";

/// A client of one API server; clones share everything.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    /// What grants the rights that this clone needs, where that is not what grants all others.
    grants: Option<Arc<str>>,
}

struct Shared {
    access: Access,
    current: Mutex<Current>,
    /// When the server answered last, whatever it answered.
    answered: Mutex<Instant>,
    /// When it said last that it has its store.
    ready: Mutex<Instant>,
    /// Changes when connections that are there are left.
    anew: watch::Sender<()>,
}

struct Current {
    material: Material,
    _in_use: InUse,
    _credentials: Credentials,
    read: Instant,
    client: Option<kube::Client>,
}

impl Current {
    fn new(material: Material, read: Instant) -> Self {
        let (_in_use, _credentials) = (material.in_use(), material.credentials());
        Self { material, _in_use, _credentials, read, client: None }
    }
}

/// What is changed of an object, in the form of one of the API's patches.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    /// `application/strategic-merge-patch+json`: lists with a merge key are merged.
    Strategic(Value),
    /// `application/merge-patch+json` (RFC 7396).
    Merge(Value),
    /// `application/json-patch+json` (RFC 6902).
    Json(Value),
}

impl Patch {
    const fn parts(&self) -> (&'static str, &Value) {
        match self {
            Self::Strategic(value) => ("application/strategic-merge-patch+json", value),
            Self::Merge(value) => ("application/merge-patch+json", value),
            Self::Json(value) => ("application/json-patch+json", value),
        }
    }
}

/// One request.
pub(super) struct Query<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) verb: &'static str,
    /// RBAC's resource, or the path of one object.
    pub(super) object: &'a str,
    /// Type and bytes of what is sent.
    pub(super) body: Option<(&'static str, Vec<u8>)>,
}

impl<'a> Query<'a> {
    pub(super) const fn get(verb: &'static str, object: &'a str, path: &'a str) -> Self {
        Self { method: Method::GET, path, verb, object, body: None }
    }
}

impl Client {
    /// A client of what the flags say. Nothing is asked yet.
    ///
    /// # Errors
    /// When the kubeconfig, a file that it names or the service account cannot be used; not when the server does not answer.
    pub fn connect(access: &Access) -> Result<Self, ClusterError> {
        provider::install();
        let material = Material::of(access)?;
        let current = Mutex::new(Current::new(material, Instant::now()));
        let shared = Shared {
            access: access.clone(),
            current,
            answered: Mutex::new(Instant::now()),
            ready: Mutex::new(Instant::now()),
            anew: watch::Sender::new(()),
        };
        Ok(Self { shared: Arc::new(shared), grants: None })
    }

    /// The same client for requests whose rights are granted by something else, as a 403 names it.
    #[must_use]
    pub fn granted_by(&self, grants: &str) -> Self {
        Self { shared: Arc::clone(&self.shared), grants: Some(grants.into()) }
    }

    /// Leaves every connection for a new one: this host has other addresses, and nothing comes back to the earlier ones. Requests that wait
    /// and change nothing are made again, others end with an error; streams go on at what they showed last.
    pub fn dial_anew(&self) {
        tracing::info!("connections to the API server are made anew: this host has another address");
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner).client = None;
        self.shared.anew.send_replace(());
    }

    /// Changes when connections that are there now are left.
    pub(super) fn left(&self) -> watch::Receiver<()> {
        self.shared.anew.subscribe()
    }

    /// The URL of the API server.
    #[must_use]
    pub fn server(&self) -> String {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner).material.server()
    }

    /// The object at `path`, such as `/api/v1/nodes/n1`, as far as `T` reads it.
    ///
    /// # Errors
    /// What the server says, or that it does not answer in time.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClusterError> {
        self.object(Query::get("get", path, path)).await
    }

    /// The listing at `path`, which may have selectors, as far as `T` reads it: a short one, of one page.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClusterError> {
        self.object(Query::get("list", path, path)).await
    }

    /// Changes the object at `path`, which may be a subresource such as `/api/v1/nodes/n1/status`, and returns it as it is then.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn patch<T: DeserializeOwned>(&self, path: &str, patch: &Patch) -> Result<T, ClusterError> {
        let (kind, value) = patch.parts();
        let body = Some((kind, value.to_string().into_bytes()));
        self.object(Query { method: Method::PATCH, path, verb: "patch", object: path, body }).await
    }

    /// Creates an object in the collection at `path`, such as `/api/v1/namespaces/default/events`, and returns it as it is then.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn create<T: DeserializeOwned>(&self, path: &str, object: &Value) -> Result<T, ClusterError> {
        let body = Some(("application/json", object.to_string().into_bytes()));
        self.object(Query { method: Method::POST, path, verb: "create", object: path, body }).await
    }

    /// Deletes the object at `path`.
    ///
    /// # Errors
    /// As [`Client::get`]; 404 when it is gone already.
    pub async fn delete(&self, path: &str) -> Result<(), ClusterError> {
        let query = Query { method: Method::DELETE, path, verb: "delete", object: path, body: None };
        self.whole(query, LIMIT).await.map(drop).map_err(|fault| fault.error)
    }

    async fn object<T: DeserializeOwned>(&self, query: Query<'_>) -> Result<T, ClusterError> {
        let (verb, object) = (query.verb, query.object);
        let body = self.whole(query, LIMIT).await.map_err(|fault| fault.error)?;
        serde_json::from_slice(&body).map_err(|error| self.ask(verb, object, &self.server()).broken(error.to_string()))
    }

    /// The whole answer to a request.
    pub(super) async fn whole(&self, query: Query<'_>, limit: Duration) -> Result<Bytes, Fault> {
        let answer = async {
            loop {
                if let Some(answer) = self.unless_left(&query, self.whole_once(&query, limit)).await? {
                    return Ok(answer);
                }
            }
        };
        let server = self.server();
        timeout(limit, answer)
            .await
            .unwrap_or_else(|_| Err(self.ask(query.verb, query.object, &server).late(limit).into()))
    }

    async fn whole_once(&self, query: &Query<'_>, limit: Duration) -> Result<Bytes, Fault> {
        let response = self.send_once(query, limit).await?;
        let whole = Limited::new(response.into_body(), MOST).collect().await;
        let server = self.server();
        let broken = |error: BoxError| self.ask(query.verb, query.object, &server).broken(chain(error.as_ref()));
        whole.map(http_body_util::Collected::to_bytes).map_err(|error| broken(error).into())
    }

    /// The answer to a request, when its head is there.
    pub(super) async fn send(&self, query: Query<'_>, limit: Duration) -> Result<Response<Body>, Fault> {
        loop {
            if let Some(answer) = self.unless_left(&query, self.send_once(&query, limit)).await? {
                return Ok(answer);
            }
        }
    }

    /// The answer; nothing where connections were left before it came, and the request changes nothing and may be made again.
    async fn unless_left<T>(
        &self,
        query: &Query<'_>,
        answer: impl Future<Output = Result<T, Fault>>,
    ) -> Result<Option<T>, Fault> {
        let mut left = self.left();
        tokio::select! {
            biased;
            answer = answer => answer.map(Some),
            _ = left.changed() => self.may_be_made_again(query).map(|()| None),
        }
    }

    /// Whether a request whose connection was left changes nothing.
    fn may_be_made_again(&self, query: &Query<'_>) -> Result<(), Fault> {
        if query.method == Method::GET {
            return Ok(());
        }
        Err(self.ask(query.verb, query.object, &self.server()).broken(OTHER_ADDRESS).into())
    }

    async fn send_once(&self, query: &Query<'_>, limit: Duration) -> Result<Response<Body>, Fault> {
        let server = self.server();
        let ask = self.ask(query.verb, query.object, &server);
        let client = self.current().map_err(|message| ask.broken(message))?;
        let request = Request::builder().method(&query.method).uri(query.path);
        let request = request.header(USER_AGENT, &self.shared.access.agent).header(ACCEPT, "application/json");
        let request = match &query.body {
            Some((kind, body)) => request.header(CONTENT_TYPE, *kind).body(Body::from(body.clone())),
            None => request.body(Body::empty()),
        };
        let request = request.map_err(|error| ask.broken(error.to_string()))?;
        let response = timeout(limit, client.send(request)).await.map_err(|_| ask.late(limit))?;
        let response = response.map_err(|error| {
            // Its certificate, ours or the server's place may have been replaced.
            self.distrust();
            ask.broken(format!("{}{}", chain(&error), self.way()))
        })?;
        self.note_answer();
        if response.status().is_success() {
            return Ok(response);
        }
        if response.status().as_u16() == 401 {
            self.distrust();
        }
        let (head, body) = response.into_parts();
        let words = timeout(limit, Limited::new(body, MOST_WORDS).collect()).await.ok().and_then(Result::ok);
        let words = words.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(ask.refused(&head, &words))
    }

    /// For the texts of faults.
    pub(super) fn ask<'a>(&'a self, verb: &'static str, object: &'a str, server: &'a str) -> Ask<'a> {
        Ask { verb, object, server, grants: self.grants.as_deref().unwrap_or(&self.shared.access.grants) }
    }

    /// The client of what the files hold now, as far as that can be used.
    fn current(&self) -> Result<kube::Client, String> {
        let mut current = self.shared.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.saturating_duration_since(current.read) >= FRESH {
            current.read = now;
            match Material::of(&self.shared.access) {
                Ok(material) if material.is_same(&current.material) => {}
                Ok(material) => {
                    tracing::info!(server = material.server(), "the credentials for the API server were replaced");
                    *current = Current::new(material, now);
                }
                Err(error) => tracing::debug!(%error, "the credentials that were read before stay"),
            }
        }
        if let Some(client) = &current.client {
            return Ok(client.clone());
        }
        let client = connector::client(&current.material.config)?;
        current.client = Some(client.clone());
        Ok(client)
    }

    /// The proxy on the way to the server, for the texts of faults; without credentials.
    fn way(&self) -> String {
        let current = self.shared.current.lock().unwrap_or_else(PoisonError::into_inner);
        let proxy = current.material.config.proxy_url.as_ref().and_then(hyper::Uri::authority);
        let host = proxy.map(|proxy| proxy.as_str().rsplit_once('@').map_or(proxy.as_str(), |(_, host)| host));
        host.map(|host| format!(", by the proxy {host}")).unwrap_or_default()
    }

    /// Has the credentials read again before the next request.
    fn distrust(&self) {
        let mut current = self.shared.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.read = current.read.checked_sub(FRESH).unwrap_or(current.read);
    }

    /// The server has answered something.
    pub(super) fn note_answer(&self) {
        *self.shared.answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether the server is there, and its store behind it: it has answered within `silence` and said so within [`STORE`], or does when it
    /// is asked. A server without its store goes on with its watches, on which nothing happens then, and with their bookmarks.
    ///
    /// # Errors
    /// That it is not.
    pub(super) async fn verify(&self, silence: Duration) -> Result<(), Fault> {
        let elapsed = |since: &Mutex<Instant>| since.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        if elapsed(&self.shared.answered) < silence && elapsed(&self.shared.ready) < STORE {
            return Ok(());
        }
        match self.whole(Query::get("get", READY, READY), LIMIT).await {
            Err(fault) if fault.error.status().is_none() => return Err(fault),
            Err(fault) if fault.error.message.contains(WITHOUT_STORE) => {
                let server = self.server();
                return Err(self.ask("get", READY, &server).broken("the API server does not reach its etcd").into());
            }
            // Who may not ask has an answer as well, and what else a server is not ready for is no trouble here.
            _ => {}
        }
        *self.shared.ready.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(())
    }
}

/// Without credentials.
impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("access", &self.shared.access).finish_non_exhaustive()
    }
}
