//! A machine that is alone: the network's configuration is a file, and there is no other node.
//!
//! Invariant: the same file gives the same subnet; nothing is ever lost, so nothing has to be kept.

use std::path::{Path, PathBuf};

use cluster::ClusterError;
use daemon::followed::FollowedFile;

use super::{AcquireError, ConfigError, Configs, Held, Keeping, LeaseEvent, LeaseEvents, LeaseRequest, LeaseSource};
use crate::choose::subnet::{Attempt, Choice, Claims, choose};
use crate::format::lease::Lease;

/// Leases of a machine that is alone.
#[derive(Debug, Clone)]
pub(crate) struct LocalLeases {
    net_conf: PathBuf,
}

impl LocalLeases {
    /// The network of the file `net_conf`.
    #[must_use]
    pub(crate) const fn new(net_conf: PathBuf) -> Self {
        Self { net_conf }
    }
}

impl LeaseSource for LocalLeases {
    fn kind(&self) -> &'static str {
        "local"
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn config_place(&self) -> String {
        self.net_conf.display().to_string()
    }

    async fn config(&self) -> Result<Option<Vec<u8>>, ConfigError> {
        read_file(&self.net_conf).await.map(Some)
    }

    fn configs(&self) -> Configs {
        follow_file(self.net_conf.clone())
    }

    fn events(&self) -> LeaseEvents {
        LeaseEvents::spawn(|events| async move {
            for event in [LeaseEvent::Reset, LeaseEvent::Complete] {
                if !events.send(event).await {
                    return;
                }
            }
            events.closed().await;
        })
    }

    async fn list(&self) -> Result<Vec<LeaseEvent>, ClusterError> {
        Ok(vec![LeaseEvent::Reset, LeaseEvent::Complete])
    }

    async fn acquire(&self, request: &LeaseRequest) -> Result<Held, AcquireError> {
        let choice =
            choose(&request.network, &request.node, &Claims::default(), &request.policies, Attempt::default())?;
        let lease = match choice {
            Choice::Keep(lease) => lease,
            Choice::Take { key, .. } => Lease { key, attrs: request.attrs.clone() },
        };
        let how = "this machine is alone".to_owned();
        Ok(Held { lease, token: None, revision: 0, how, others: Vec::new() })
    }

    async fn keep(&self, _: &Held, _: impl FnMut(Keeping) + Send) -> Result<String, ClusterError> {
        std::future::pending().await
    }
}

/// The network's configuration in a file.
pub(super) async fn read_file(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || bounded::read(&file, bounded::SETTINGS)).await;
    read.map_err(std::io::Error::other).flatten().map_err(|error| ConfigError::File(path.to_owned(), error))
}

/// The same, followed.
pub(super) fn follow_file(path: PathBuf) -> Configs {
    let mut file = FollowedFile::new(path);
    Configs::spawn(|texts| async move {
        loop {
            let text = tokio::select! {
                () = texts.closed() => return,
                text = file.next() => text,
            };
            if !texts.send(text).await {
                return;
            }
        }
    })
}
