//! How far the members are that are not in use.
//!
//! Invariants: a question is about one key, is answered by the member alone (no quorum is asked), and one is under way at a
//! time, however many watches of a client want to know; the members have their turns; the more keys there are, the more
//! nodes ask, so the rarer each does.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::GetOptions;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::client::Client;
use super::member::Member;
use crate::Origin;

/// How much longer a pause is for each key: 10,000 nodes ask 400 times a second, all together.
const PER_KEY: Duration = Duration::from_millis(2);

/// A member other than the one in use, and the state that it has.
#[derive(Clone)]
pub(super) struct Other {
    pub(super) member: Arc<Member>,
    pub(super) origin: Origin,
}

/// What was asked last.
#[derive(Default)]
pub(super) struct Comparison {
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    at: Option<Instant>,
    answer: Option<Other>,
    turn: usize,
}

/// The pause between two questions of a node of a cluster with so many `keys`.
pub(super) fn pace(shortest: Duration, keys: i64) -> Duration {
    shortest.saturating_add(PER_KEY.saturating_mul(u32::try_from(keys).unwrap_or(0)))
}

impl Client {
    /// Asks a member that is not in use for the state that it has; what was asked within `fresh` is not asked again. `None`
    /// when there is no other, or it does not answer.
    pub(super) async fn other_member(&self, key: &str, fresh: Duration) -> Option<Other> {
        let mut asked = self.comparison().asked.lock().await;
        if asked.at.is_some_and(|at| at.elapsed() < fresh) {
            return asked.answer.clone();
        }
        asked.turn = asked.turn.wrapping_add(1);
        asked.answer = self.ask_other(key, asked.turn).await;
        asked.at = Some(Instant::now());
        asked.answer.clone()
    }

    async fn ask_other(&self, key: &str, turn: usize) -> Option<Other> {
        let member = self.other(turn)?;
        let request = |client: etcd_client::Client| {
            let key = key.to_owned();
            let options = GetOptions::new().with_serializable().with_keys_only();
            async move { client.kv_client().get(key, Some(options)).await }
        };
        match member.attempt("compare", key, self.limits(), &request).await {
            Ok(answer) => {
                let header = answer.header()?;
                let (store, member_id) = (header.cluster_id(), header.member_id());
                let (term, revision) = (header.raft_term(), header.revision());
                Some(Other { member, origin: Origin { store, member: member_id, term, revision } })
            }
            Err(error) => {
                tracing::debug!(%error, "another member of etcd does not say how far it is");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_a_large_cluster_ask_more_rarely() {
        let shortest = Duration::from_secs(5);
        assert_eq!(pace(shortest, 0), shortest);
        assert_eq!(pace(shortest, 10_000), Duration::from_secs(25));
        assert_eq!(pace(shortest, -1), shortest);
    }
}
