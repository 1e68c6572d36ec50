//! Keys and leases: what netd needs to own a subnet and ipvs-proxy to keep objects.
//!
//! Invariant: every write may be sent twice. A member that does not answer may have carried it out, so each
//! write is made such that the second sending recognises the first: a lease is asked for under an id chosen
//! here, a transaction that finds our own lease or value on the key counts as done, a deletion that finds
//! nothing as well. When nobody answers at all the outcome is unknown; the error is of class `Retry`, and the
//! caller begins with reading.

use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse,
};

use super::client::Client;
use super::entry::{Creation, Deletion, Entry, Hold, LeaseId, Listing, Replacement, Shown};
use super::pages::{MAX_MESSAGE, Pages};
use super::prefix::{Prefix, Range};
use crate::{Class, ClusterError};

/// Operations in a transaction (etcd's `--max-txn-ops`).
const MAX_OPS: usize = 128;

/// Keys and values in a transaction, in bytes; below etcd's `--max-request-bytes` of 1.5 MiB, with room for its frame.
const MAX_BYTES: usize = 1 << 20;

/// What a transaction found.
enum Found {
    Done { mod_revision: i64 },
    Otherwise(Option<Entry>),
}

/// Key-value operations on a cluster.
#[derive(Debug, Clone)]
pub struct Store {
    client: Client,
}

impl Store {
    /// A store behind `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The client, for watching the same cluster.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Reads one key.
    ///
    /// # Errors
    /// When nobody answers or the cluster refuses.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, ClusterError> {
        let mut answer = self
            .client
            .call("get", key, |client| async move {
                client.kv_client().max_decoding_message_size(MAX_MESSAGE).get(key, None).await
            })
            .await?;
        Ok(answer.take_kvs().into_iter().next().map(|entry| Entry::new(key.to_owned(), entry)))
    }

    /// Reads every key below `prefix/`, in pages of one revision.
    ///
    /// # Errors
    /// When nobody answers, the cluster refuses, or the revision was compacted while paging (class `Retry`).
    pub async fn list(&self, prefix: &Prefix) -> Result<Listing, ClusterError> {
        let Shown { values, origin } = self.show(prefix, |entry| entry).await?;
        Ok(Listing { entries: values.into_iter().map(|(_, _, entry)| entry).collect(), origin })
    }

    /// As [`Store::list`], and keeps of each entry only what `read` makes of it.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn show<V>(&self, prefix: &Prefix, read: impl Fn(Entry) -> V) -> Result<Shown<V>, ClusterError> {
        let mut pages = Pages::new(&self.client, &Range::Below(prefix.clone()));
        let mut values = Vec::new();
        while let Some(page) = pages.next().await? {
            values.extend(page.into_iter().map(|entry| {
                let (key, revision) = (prefix.below(entry.key()), entry.mod_revision());
                (key.clone(), revision, read(Entry::new(key, entry)))
            }));
        }
        Ok(Shown { values, origin: pages.origin() })
    }

    /// Writes a key whatever it held before and returns the revision of the change.
    ///
    /// # Errors
    /// When nobody answers or the cluster refuses, for example because the lease is gone.
    pub async fn put(&self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<i64, ClusterError> {
        let answer = self
            .client
            .call(
                "put",
                key,
                |client| async move { client.kv_client().put(key, value, Some(put_options(lease))).await },
            )
            .await?;
        Ok(answer.header().map_or(0, ResponseHeader::revision))
    }

    /// Writes several keys whatever they held before, in one transaction as far as etcd allows (128 keys and
    /// 1 MiB of values), so that whoever watches sees them change together.
    ///
    /// # Errors
    /// When nobody answers or the cluster refuses; what was written before that stays.
    pub async fn put_all(&self, entries: &[(String, Vec<u8>)]) -> Result<(), ClusterError> {
        let mut rest = entries;
        while let [(first, _), ..] = rest {
            let (now, later) = rest.split_at(one_transaction(rest));
            let puts: Vec<TxnOp> =
                now.iter().map(|(key, value)| TxnOp::put(key.as_str(), value.as_slice(), None)).collect();
            let object = if now.len() == 1 { first.clone() } else { format!("{first} and {} more", now.len() - 1) };
            self.client
                .call("put", &object, |client| {
                    let transaction = Txn::new().and_then(puts.clone());
                    async move { client.kv_client().txn(transaction).await }
                })
                .await?;
            rest = later;
        }
        Ok(())
    }

    /// Deletes a key; one that does not exist is fine.
    ///
    /// # Errors
    /// When nobody answers or the cluster refuses.
    pub async fn delete(&self, key: &str) -> Result<(), ClusterError> {
        self.client
            .call("delete", key, |client| async move { client.kv_client().delete(key, None::<DeleteOptions>).await })
            .await
            .map(|_| ())
    }

    /// Writes a key if it does not exist, in one transaction.
    ///
    /// A lost race costs nothing: the lease made for it is revoked again.
    ///
    /// # Errors
    /// When nobody answers or the cluster refuses. If the outcome is unknown the new lease is revoked, so that
    /// a key which did get written does not stay behind; only when that fails as well may it exist until its
    /// time is over.
    pub async fn create(&self, key: &str, value: &[u8], hold: Hold) -> Result<Creation, ClusterError> {
        let lease = self.lease_for(hold).await?;
        let absent = Compare::version(key, CompareOp::Equal, 0);
        let found = self.write_if("create", key, value, lease, absent).await;
        let outcome = found.and_then(|found| match found {
            Found::Done { mod_revision } => Ok(Creation::Created { lease, mod_revision }),
            Found::Otherwise(Some(entry)) if lease.is_some() && entry.lease == lease && entry.value == value => {
                Ok(Creation::Created { lease, mod_revision: entry.mod_revision })
            }
            Found::Otherwise(Some(entry)) => Ok(Creation::Exists(entry)),
            Found::Otherwise(None) => {
                let message = "the key is said to exist, but its value is missing from the answer";
                Err(ClusterError::new("create", key, self.client.endpoints(), message, Class::Retry))
            }
        });
        if !matches!(outcome, Ok(Creation::Created { .. })) {
            self.drop_new_lease(hold, lease).await;
        }
        outcome
    }

    /// Writes a key if it has not changed since `mod_revision`, in one transaction.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn replace_if(
        &self,
        key: &str,
        value: &[u8],
        hold: Hold,
        mod_revision: i64,
    ) -> Result<Replacement, ClusterError> {
        let lease = self.lease_for(hold).await?;
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, mod_revision);
        let found = self.write_if("replace", key, value, lease, unchanged).await;
        let outcome = found.map(|found| match found {
            Found::Done { mod_revision } => Replacement::Replaced { lease, mod_revision },
            Found::Otherwise(Some(entry)) if entry.lease == lease && entry.value == value => {
                Replacement::Replaced { lease, mod_revision: entry.mod_revision }
            }
            Found::Otherwise(entry) => Replacement::Changed(entry),
        });
        if !matches!(outcome, Ok(Replacement::Replaced { .. })) {
            self.drop_new_lease(hold, lease).await;
        }
        outcome
    }

    /// Deletes a key if it has not changed since `mod_revision`.
    ///
    /// # Errors
    /// When nobody answers or the cluster refuses.
    pub async fn delete_if(&self, key: &str, mod_revision: i64) -> Result<Deletion, ClusterError> {
        let transaction = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, mod_revision)])
            .and_then([TxnOp::delete(key, None)])
            .or_else([TxnOp::get(key, None::<GetOptions>)]);
        Ok(match self.transact("delete", key, transaction).await? {
            Found::Done { .. } | Found::Otherwise(None) => Deletion::Gone,
            Found::Otherwise(Some(entry)) => Deletion::Changed(entry),
        })
    }

    async fn lease_for(&self, hold: Hold) -> Result<Option<LeaseId>, ClusterError> {
        match hold {
            Hold::Forever => Ok(None),
            Hold::Lease(lease) => Ok(Some(lease)),
            Hold::Seconds(seconds) => self.grant(seconds).await.map(Some),
        }
    }

    /// A lease nothing will use; it ends by itself when this fails.
    async fn drop_new_lease(&self, hold: Hold, lease: Option<LeaseId>) {
        if let (Hold::Seconds(_), Some(lease)) = (hold, lease)
            && let Err(error) = self.revoke(lease).await
        {
            tracing::debug!(%error, "unused lease stays until its time is over");
        }
    }

    async fn write_if(
        &self,
        op: &'static str,
        key: &str,
        value: &[u8],
        lease: Option<LeaseId>,
        condition: Compare,
    ) -> Result<Found, ClusterError> {
        let transaction = Txn::new()
            .when([condition])
            .and_then([TxnOp::put(key, value, Some(put_options(lease)))])
            .or_else([TxnOp::get(key, None::<GetOptions>)]);
        self.transact(op, key, transaction).await
    }

    async fn transact(&self, op: &'static str, key: &str, transaction: Txn) -> Result<Found, ClusterError> {
        let answer = self
            .client
            .call(op, key, |client| {
                let transaction = transaction.clone();
                async move { client.kv_client().txn(transaction).await }
            })
            .await?;
        if answer.succeeded() {
            let mod_revision = answer.header().map_or(0, ResponseHeader::revision);
            return Ok(Found::Done { mod_revision });
        }
        let entry = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next(),
            _ => None,
        });
        Ok(Found::Otherwise(entry.map(|entry| Entry::new(key.to_owned(), entry))))
    }
}

/// How many of `entries` go into one transaction; at least one.
fn one_transaction(entries: &[(String, Vec<u8>)]) -> usize {
    let mut bytes = 0_usize;
    let fits = |(key, value): &&(String, Vec<u8>)| {
        bytes = bytes.saturating_add(key.len()).saturating_add(value.len());
        bytes <= MAX_BYTES
    };
    entries.iter().take(MAX_OPS).take_while(fits).count().max(1)
}

fn put_options(lease: Option<LeaseId>) -> PutOptions {
    PutOptions::new().with_lease(lease.map_or(0, LeaseId::get))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_holds_what_etcd_takes_at_once() {
        let entries = |count: usize, size: usize| vec![("k".to_owned(), vec![0; size]); count];
        assert_eq!(one_transaction(&entries(3, 10)), 3);
        assert_eq!(one_transaction(&entries(500, 10)), MAX_OPS);
        assert_eq!(one_transaction(&entries(10, 400_000)), 2);
        assert_eq!(one_transaction(&entries(2, 2_000_000)), 1, "etcd says itself that this is too much");
    }
}
