//! A listing in pages, all of one revision.
//!
//! Invariants: pages are cut from the same revision, so together they are one state of the folder; a page that
//! is too large for one message is asked for again in smaller pieces. 20,000 leases of 250 bytes do not fit
//! into gRPC's default message.

use etcd_client::{GetOptions, KeyValue};

use super::client::Client;
use super::prefix::Range;
use crate::Origin;
use crate::error::{Class, ClusterError, Reason};

/// Largest answer accepted, in bytes. One key can hold 1.5 MiB (etcd's `--max-request-bytes`).
pub(super) const MAX_MESSAGE: usize = 64 << 20;

/// A listing under way.
#[derive(Debug)]
pub(super) struct Pages {
    client: Client,
    range: Range,
    /// First key of the next page; `None` when the last page has been read.
    next: Option<Vec<u8>>,
    /// All 0 until the first page fixes it.
    origin: Origin,
    /// The member that answered last.
    endpoint: String,
    limit: i64,
}

impl Pages {
    pub(super) fn new(client: &Client, range: &Range) -> Self {
        Self {
            client: client.clone(),
            range: range.clone(),
            next: Some(range.start().into_bytes()),
            origin: Origin::default(),
            endpoint: String::new(),
            limit: i64::from(client.limits().page.max(1)),
        }
    }

    /// Which state of which cluster the listing shows; valid after the first page.
    pub(super) const fn origin(&self) -> Origin {
        self.origin
    }

    /// The member that answered last.
    pub(super) fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// The next page, `None` after the last. A folder without keys has one empty page.
    ///
    /// # Errors
    /// With reason `Compacted` when the revision was thrown away between two pages: start again.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<KeyValue>>, ClusterError> {
        let Some(start) = self.next.clone() else { return Ok(None) };
        loop {
            match self.page(&start).await {
                Err(error) if error.reason == Reason::TooLarge && self.limit > 1 => self.limit /= 2,
                Err(error) => return Err(error),
                Ok(page) => return Ok(Some(page)),
            }
        }
    }

    async fn page(&mut self, start: &[u8]) -> Result<Vec<KeyValue>, ClusterError> {
        let options =
            GetOptions::new().with_range(self.range.end()).with_limit(self.limit).with_revision(self.origin.revision);
        let (member, mut answer) = self
            .client
            .call_member("list", &self.range.to_string(), |client| {
                let (start, options) = (start.to_vec(), options.clone());
                async move { client.kv_client().max_decoding_message_size(MAX_MESSAGE).get(start, Some(options)).await }
            })
            .await?;
        self.endpoint = member.endpoint.to_string();
        if let Some(header) = answer.header() {
            let (store, member) = (header.cluster_id(), header.member_id());
            if self.origin.revision == 0 {
                self.origin = Origin { store, member, term: header.raft_term(), revision: header.revision() };
            } else if store != self.origin.store {
                // A page of another cluster says nothing about the keys of this one.
                let (endpoint, message) = (self.client.current_endpoint(), "a page came from another cluster");
                return Err(ClusterError::new("list", self.range.to_string(), endpoint, message, Class::Retry));
            }
        }
        let more = answer.more();
        let page = answer.take_kvs();
        self.next = page.last().filter(|_| more).map(|last| [last.key(), b"\0"].concat());
        Ok(page)
    }
}
