//! One member and its connection.
//!
//! Invariants: an attempt ends within [`Limits::operation`]; a connection on which an answer stayed out, or that was
//! made with TLS material that was renewed or a token that was refused since, is used for no further request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Mutex;
use tokio::time::timeout;

use super::access::Access;
use super::config::Limits;
use super::endpoints::Endpoint;
use super::fault::{fault, is_without_users, other_scheme, wants_another_token};
use crate::error::{Class, ClusterError, Reason};

/// rustls' words for a certificate that is in order and of another name.
const OTHER_NAME: &str = "certificate not valid for name";

/// One member and its connection, made at the first request.
pub(super) struct Member {
    pub(super) endpoint: Endpoint,
    /// What its certificate may bear instead of its host, and which of them was taken to: 0 is the host.
    names: Vec<String>,
    name: AtomicUsize,
    access: Arc<Access>,
    /// It has answered once, be it with a refusal: TLS is on at both sides or at neither.
    has_answered: AtomicBool,
    session: Mutex<Session>,
}

/// The connection, numbered so that a late failure of an old one does not end its successor.
#[derive(Default)]
struct Session {
    number: u64,
    /// Of the TLS material that it was made with.
    generation: u64,
    client: Option<etcd_client::Client>,
}

impl Member {
    /// The member at `endpoint`, whose certificate bears that host or one of `names`.
    pub(super) fn new(endpoint: Endpoint, names: Vec<String>, access: Arc<Access>) -> Self {
        let (name, has_answered) = (AtomicUsize::new(0), AtomicBool::new(false));
        Self { endpoint, names, name, access, has_answered, session: Mutex::default() }
    }

    /// True when the failure was the name in the certificate, and it is worth trying with the next one.
    pub(super) fn takes_another_name(&self, failure: &ClusterError) -> bool {
        let tried = self.name.load(Ordering::Relaxed);
        if !failure.message.contains(OTHER_NAME) || tried >= self.names.len() {
            return false;
        }
        self.name.store(tried.saturating_add(1), Ordering::Relaxed);
        true
    }

    /// Carries out a request at this member.
    ///
    /// # Errors
    /// When it does not answer in time, or refuses.
    pub(super) async fn attempt<T, F, Fut>(
        &self,
        op: &'static str,
        object: &str,
        limits: &Limits,
        request: &F,
    ) -> Result<T, ClusterError>
    where
        F: Fn(etcd_client::Client) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let (mut used, mut left) = (None, self.access.left());
        let asked = timeout(limits.operation, async {
            let (number, client) = self.connected().await?;
            used = Some(number);
            match request(client).await {
                Err(error) if self.access.has_user() && wants_another_token(&error) => {
                    self.hang_up(used).await;
                    let (number, client) = self.connected().await?;
                    used = Some(number);
                    request(client).await
                }
                answer => answer,
            }
        });
        let answer = tokio::select! {
            answer = asked => answer,
            _ = left.changed() => {
                let message = "its connection was left for one from this host's new address".to_owned();
                return Err(ClusterError::new(op, object, self.endpoint.as_str(), message, Class::Retry));
            }
        };
        let failure = match answer {
            Ok(Ok(answer)) => {
                self.has_answered.store(true, Ordering::Relaxed);
                return Ok(answer);
            }
            Ok(Err(error)) => self.fault(op, object, &error),
            Err(_) => {
                self.hang_up(used).await;
                let message = format!("no answer within {:?}", limits.operation);
                ClusterError::new(op, object, self.endpoint.as_str(), message, Class::Retry)
            }
        };
        if failure.reason == Reason::Unreachable && self.endpoint.is_tls() {
            // What the handshake is made with may have been renewed: the files, or the system's roots.
            self.hang_up(used).await;
            let _gave_up = timeout(limits.operation, self.access.reload()).await;
        }
        Err(failure)
    }

    fn fault(&self, op: &'static str, object: &str, error: &etcd_client::Error) -> ClusterError {
        let mut failure = fault(op, object, self.endpoint.as_str(), error);
        if failure.reason != Reason::Unreachable {
            self.has_answered.store(true, Ordering::Relaxed);
        } else if !self.has_answered.load(Ordering::Relaxed) {
            failure.message.push_str(other_scheme(&self.endpoint, error));
        }
        failure
    }

    /// With a user this asks etcd for a token, else it sends nothing. As Go's client does, a store that has no users is asked without.
    async fn connected(&self) -> Result<(u64, etcd_client::Client), etcd_client::Error> {
        let mut session = self.session.lock().await;
        if let Some(client) = session.client.as_ref().filter(|_| session.generation == self.access.generation()) {
            return Ok((session.number, client.clone()));
        }
        let name = self.name.load(Ordering::Relaxed).checked_sub(1).and_then(|index| self.names.get(index));
        let (generation, options) = self.access.options(name.map(String::as_str));
        let connect = |options| etcd_client::Client::connect([self.endpoint.as_str()], Some(options));
        let client = match connect(self.access.with_user(options.clone())).await {
            Err(error) if is_without_users(&error) => connect(options).await?,
            client => client?,
        };
        session.number = session.number.wrapping_add(1);
        session.generation = generation;
        session.client = Some(client.clone());
        Ok((session.number, client))
    }

    /// Gives up a connection on which an answer stayed out: a host that vanished without a FIN would keep it
    /// open for a quarter of an hour (tcp_retries2). Open watches keep their own hold on it.
    async fn hang_up(&self, used: Option<u64>) {
        let mut session = self.session.lock().await;
        if used == Some(session.number) {
            session.client = None;
        }
    }
}
