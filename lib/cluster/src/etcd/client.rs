//! One connection per member and our own sticky failover between them.
//!
//! A balanced channel over several members is not used: tonic counts a dead member as ready, so with one of
//! three dead a third of the requests fails (grpc-rust issue 643). Here all requests go to one member until it
//! fails; then everybody moves to the next.
//!
//! Invariants: an attempt ends within [`Limits::operation`]; an operation tries every member before it fails;
//! only requests that may be repeated go through [`Client::call`], because a member that does not answer may
//! have carried the request out. Secrets are in no `Debug` and no error.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::access::Access;
use super::comparison::{Comparison, pace};
use super::config::{Config, Limits};
use super::endpoints::Endpoint;
use super::member::Member;
use super::members::Members;
use crate::Problem;
use crate::error::{Class, ClusterError, Reason};

/// A handle on the cluster; clones share connections and the choice of member.
#[derive(Clone)]
pub struct Client {
    members: Arc<Members>,
    access: Arc<Access>,
    comparison: Arc<Comparison>,
    /// The most keys that a watch has listed.
    keys: Arc<AtomicI64>,
    limits: Limits,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoints", &self.endpoints()).field("limits", &self.limits).finish()
    }
}

impl Client {
    /// Checks the configuration and prepares the connections; nothing is sent before the first operation.
    ///
    /// The member to begin with is taken from `seed`, so that the nodes of a cluster spread over the members.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration, each with its field.
    pub fn new(config: &Config, seed: u64) -> Result<Self, Vec<Problem>> {
        let mut errors = Vec::new();
        let endpoints = Endpoint::parse_list(&config.endpoints, config.tls.any()).unwrap_or_else(|found| {
            errors.extend(found);
            Vec::new()
        });
        let user = config.user(&mut errors);
        let tls = config.tls_options(&endpoints, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let begin = fastrand::Rng::with_seed(seed).usize(..endpoints.len().max(1));
        let access = Arc::new(Access::new(config.options(), config.tls.clone(), tls).of_user(user));
        let members = Members::new(endpoints, Arc::clone(&access), begin);
        let limits = config.limits.clone();
        Ok(Self { members: Arc::new(members), access, comparison: Arc::default(), keys: Arc::default(), limits })
    }

    /// The members, comma separated, for messages.
    #[must_use]
    pub fn endpoints(&self) -> String {
        self.members.endpoints().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// The member that is asked at the moment.
    #[must_use]
    pub fn current_endpoint(&self) -> String {
        self.members.current().map_or_else(String::new, |member| member.endpoint.to_string())
    }

    /// Leaves every connection for a new one: this host has other addresses, and nothing comes back to the earlier ones.
    /// Requests that wait are made again, watches list what has changed meanwhile.
    pub fn dial_anew(&self) {
        tracing::info!("connections to etcd are made anew: this host has another address");
        self.access.dial_anew();
    }

    /// Changes when connections that are there now are left.
    pub(super) fn left(&self) -> watch::Receiver<()> {
        self.access.left()
    }

    /// Moves everybody to the next member, as when the current one had failed: for a second opinion.
    pub fn move_on(&self) {
        if let Some(current) = self.members.current() {
            self.leave(&current);
        }
    }

    /// Moves everybody away from a member that failed.
    pub(super) fn leave(&self, failed: &Arc<Member>) {
        self.members.leave(failed);
    }

    /// Moves everybody to a member that is known to be better than the one in use.
    pub(super) fn prefer(&self, better: &Arc<Member>) {
        self.members.prefer(better);
    }

    /// One of the members that are not in use; `turn` says which. `None` when there is no other.
    pub(super) fn other(&self, turn: usize) -> Option<Arc<Member>> {
        self.members.other(turn)
    }

    /// What the members that are not in use have said.
    pub(super) fn comparison(&self) -> &Comparison {
        &self.comparison
    }

    /// A watch has listed so many keys.
    pub(super) fn note_keys(&self, keys: i64) {
        self.keys.fetch_max(keys, Ordering::Relaxed);
    }

    /// The pause until another member is asked again how far it is.
    pub(super) fn pace(&self) -> Duration {
        pace(self.limits.compare, self.keys.load(Ordering::Relaxed))
    }

    /// How many members are known.
    pub(super) fn member_count(&self) -> usize {
        self.members.count()
    }

    /// Asks the current member who the members are, and remembers those that lead somewhere.
    pub(super) async fn learn_members(&self) {
        let Some(current) = self.members.current() else { return };
        let request = |client: etcd_client::Client| async move { client.cluster_client().member_list().await };
        match current.attempt("list", "the members", &self.limits, &request).await {
            // One that has not started has no URL; a learner answers no reads.
            Ok(answer) => {
                let voters = answer.members().iter().filter(|member| !member.is_learner());
                self.members.learn(voters.flat_map(|member| member.client_urls()));
            }
            Err(error) => tracing::debug!(%error, "etcd's members stay as they were known"),
        }
    }

    /// Reads TLS files again, for connections that are made from now on.
    pub(super) async fn reload(&self) {
        self.access.reload().await;
    }

    /// The limits this client works with.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Carries out a request that may be repeated, at whichever member answers.
    ///
    /// # Errors
    /// When no member answers in time, or one refuses.
    pub(super) async fn call<T, F, Fut>(&self, op: &'static str, object: &str, request: F) -> Result<T, ClusterError>
    where
        F: Fn(etcd_client::Client) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.call_member(op, object, request).await.map(|(_, answer)| answer)
    }

    /// Carries out a request at the current member, once: for what may not be repeated unseen.
    ///
    /// # Errors
    /// When it does not answer in time, or refuses.
    pub(super) async fn once<T, F, Fut>(&self, op: &'static str, object: &str, request: F) -> Result<T, ClusterError>
    where
        F: Fn(etcd_client::Client) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        match self.members.current() {
            Some(member) => member.attempt(op, object, &self.limits, &request).await,
            None => Err(unanswered(op, object, Vec::new())),
        }
    }

    /// As [`Self::call`], with the member that answered.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(super) async fn call_member<T, F, Fut>(
        &self,
        op: &'static str,
        object: &str,
        request: F,
    ) -> Result<(Arc<Member>, T), ClusterError>
    where
        F: Fn(etcd_client::Client) -> Fut,
        Fut: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut failures: Vec<ClusterError> = Vec::new();
        // A single member gets a second attempt: the first may have found a connection that died unnoticed.
        let mut attempts = self.members.count().max(2);
        while attempts > 0 {
            let Some(member) = self.members.current() else { break };
            match member.attempt(op, object, &self.limits, &request).await {
                Ok(answer) => return Ok((member, answer)),
                Err(failure) if failure.reason == Reason::Unreachable => {
                    if member.takes_another_name(&failure) {
                        continue;
                    }
                    attempts -= 1;
                    self.leave(&member);
                    failures.push(failure);
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Err(unanswered(op, object, failures))
    }
}

/// One error for "nobody answered", with each member's words once.
fn unanswered(op: &'static str, object: &str, failures: Vec<ClusterError>) -> ClusterError {
    let mut endpoints: Vec<String> = Vec::new();
    let mut said: Vec<String> = Vec::new();
    for failure in failures {
        let words = format!("[{}] {}", failure.endpoint, failure.message);
        if !said.contains(&words) {
            said.push(words);
        }
        if !endpoints.contains(&failure.endpoint) {
            endpoints.push(failure.endpoint);
        }
    }
    ClusterError::new(op, object, endpoints.join(","), said.join("; "), Class::Retry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_spread_nodes_over_the_members() {
        let config = Config { endpoints: "http://a:1,http://b:1,http://c:1".into(), ..Config::default() };
        let mut begun: Vec<String> =
            (0..30).map(|seed| Client::new(&config, seed).unwrap().current_endpoint()).collect();
        begun.sort_unstable();
        begun.dedup();
        assert_eq!(begun, ["http://a:1", "http://b:1", "http://c:1"]);
    }

    #[test]
    fn nobody_answering_names_every_member_once() {
        let failure = |endpoint: &str| ClusterError::new("get", "k", endpoint, "refused", Class::Retry);
        let error = unanswered("get", "k", vec![failure("http://a:1"), failure("http://b:1"), failure("http://a:1")]);
        assert_eq!(error.endpoint, "http://a:1,http://b:1");
        assert_eq!(error.message, "[http://a:1] refused; [http://b:1] refused");
    }
}
