//! `Administration`: questions to one member about the cluster that it is in, and changes of its members.
//!
//! Invariants: a request goes to the member that was named, once: after a failure whoever asked lists the members again and
//! decides anew, because a change that nobody answered for may have been made; every request ends within the limits.

use etcd_client::{MemberAddOptions, SnapshotStreaming};
use tokio::time::timeout;

use super::client::Client;
use super::config::Config;
use super::fault::fault;
use crate::error::Class;
use crate::{ClusterError, Problem};

/// One member, for operators.
#[derive(Debug, Clone)]
pub struct Administration {
    client: Client,
}

/// A member as the cluster lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberEntry {
    /// What it is known by; it stays when names and URLs change.
    pub id: u64,
    /// Empty until the member has started for the first time.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; none until it has started.
    pub client_urls: Vec<String>,
    /// True while it does not vote.
    pub is_learner: bool,
}

/// What a member says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its own id.
    pub id: u64,
    /// The id of the member that leads, 0 for none.
    pub leader: u64,
    /// The revision of its store.
    pub revision: i64,
    /// How far it is in the log.
    pub applied: u64,
    /// Bytes of its database.
    pub size: u64,
    /// What it runs: `3.4.23`.
    pub version: String,
    /// True while it does not vote.
    pub is_learner: bool,
}

/// A snapshot on its way.
pub struct Download {
    stream: SnapshotStreaming,
    client: Client,
}

impl Administration {
    /// The member that is the first of the endpoints. Nothing is asked yet.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration.
    pub fn new(config: &Config) -> Result<Self, Vec<Problem>> {
        Client::new(config, 0).map(|client| Self { client })
    }

    /// Who the members are, as this one knows them.
    ///
    /// # Errors
    /// When it does not answer in time, or refuses.
    pub async fn members(&self) -> Result<Vec<MemberEntry>, ClusterError> {
        let request = |client: etcd_client::Client| async move { client.cluster_client().member_list().await };
        let answer = self.client.once("list", "the members", request).await?;
        Ok(answer.members().iter().map(entry).collect())
    }

    /// How it is.
    ///
    /// # Errors
    /// When it does not answer in time, has no leader, or refuses.
    pub async fn status(&self) -> Result<MemberStatus, ClusterError> {
        let request = |client: etcd_client::Client| async move { client.maintenance_client().status().await };
        let answer = self.client.once("ask", "the status", request).await?;
        let header = answer.header();
        Ok(MemberStatus {
            id: header.map_or(0, etcd_client::ResponseHeader::member_id),
            leader: answer.leader(),
            revision: header.map_or(0, etcd_client::ResponseHeader::revision),
            applied: answer.raft_applied_index().max(answer.raft_index()),
            size: u64::try_from(answer.db_size()).unwrap_or_default(),
            version: answer.version().to_owned(),
            is_learner: answer.is_learner(),
        })
    }

    /// Adds a member that does not vote yet, and returns its id.
    ///
    /// # Errors
    /// As [`Self::members`]; `unhealthy cluster` while a member is not connected to the others.
    pub async fn add_learner(&self, peer_url: &str) -> Result<u64, ClusterError> {
        let request = |client: etcd_client::Client| async move {
            let options = MemberAddOptions::new().with_is_learner();
            client.cluster_client().member_add([peer_url.to_owned()], Some(options)).await
        };
        let answer = self.client.once("add", peer_url, request).await?;
        Ok(answer.member().map_or(0, etcd_client::Member::id))
    }

    /// Makes a voter of a learner.
    ///
    /// # Errors
    /// As [`Self::members`]; while it is not in sync with the leader.
    pub async fn promote(&self, id: u64) -> Result<(), ClusterError> {
        let request = |client: etcd_client::Client| async move { client.cluster_client().member_promote(id).await };
        self.client.once("promote", &format!("{id:x}"), request).await.map(drop)
    }

    /// Removes a member.
    ///
    /// # Errors
    /// As [`Self::members`]; when the quorum of the others would be lost.
    pub async fn remove(&self, id: u64) -> Result<(), ClusterError> {
        let request = |client: etcd_client::Client| async move { client.cluster_client().member_remove(id).await };
        self.client.once("remove", &format!("{id:x}"), request).await.map(drop)
    }

    /// Has another member lead; only the one that leads can be asked for it.
    ///
    /// # Errors
    /// As [`Self::members`]; when this member does not lead.
    pub async fn move_leader(&self, to: u64) -> Result<(), ClusterError> {
        let request = |client: etcd_client::Client| async move { client.maintenance_client().move_leader(to).await };
        self.client.once("move the leadership to", &format!("{to:x}"), request).await.map(drop)
    }

    /// The member's database, as it is now.
    ///
    /// # Errors
    /// As [`Self::members`].
    pub async fn snapshot(&self) -> Result<Download, ClusterError> {
        let request = |client: etcd_client::Client| async move { client.maintenance_client().snapshot().await };
        let stream = self.client.once("read", SNAPSHOT, request).await?;
        Ok(Download { stream, client: self.client.clone() })
    }
}

/// What is read, in errors.
const SNAPSHOT: &str = "the snapshot";

impl Download {
    /// The next piece; nothing behind the last one.
    ///
    /// # Errors
    /// When it stays out for longer than an operation may take, or the stream breaks.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ClusterError> {
        let (endpoint, limit) = (self.client.current_endpoint(), self.client.limits().operation);
        match timeout(limit, self.stream.message()).await {
            Ok(Ok(piece)) => Ok(piece.map(|piece| piece.blob().to_vec())),
            Ok(Err(error)) => Err(fault("read", SNAPSHOT, &endpoint, &error)),
            Err(_) => Err(ClusterError::new(
                "read",
                SNAPSHOT,
                endpoint,
                format!("nothing more came within {limit:?}"),
                Class::Retry,
            )),
        }
    }
}

fn entry(member: &etcd_client::Member) -> MemberEntry {
    MemberEntry {
        id: member.id(),
        name: member.name().to_owned(),
        peer_urls: member.peer_urls().to_vec(),
        client_urls: member.client_urls().to_vec(),
        is_learner: member.is_learner(),
    }
}
