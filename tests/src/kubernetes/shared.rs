//! API servers for the tests of a binary, each for one test after the other.
//!
//! Invariant: a test that gets one finds it serving, and without the Nodes, Services, endpoints, Pods and events of the tests before. There are
//! never more than two of a release: most of a test is waiting, and a server takes as much memory as all else of one.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::Release;
use super::api_server::ApiServer;
use crate::host::Host;

/// Servers of a release, at most.
const MOST: usize = 2;

/// The servers of one release.
#[derive(Debug)]
struct Pool {
    servers: Mutex<Servers>,
    returned: Condvar,
}

#[derive(Debug)]
struct Servers {
    free: Vec<ApiServer>,
    taken: usize,
}

static OLD: Pool = Pool::new();
static MODERN: Pool = Pool::new();

impl Pool {
    const fn new() -> Self {
        Self { servers: Mutex::new(Servers { free: Vec::new(), taken: 0 }), returned: Condvar::new() }
    }

    const fn of(release: Release) -> &'static Self {
        match release {
            Release::V1_20 => &OLD,
            Release::Modern => &MODERN,
        }
    }

    /// A place for a server, with one that is free where there is one.
    fn take(&self) -> Option<ApiServer> {
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |servers: &mut Servers| servers.taken >= MOST;
        let mut servers = self.returned.wait_while(servers, full).unwrap_or_else(PoisonError::into_inner);
        servers.taken += 1;
        servers.free.pop()
    }

    fn give_back(&self, server: Option<ApiServer>) {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.taken -= 1;
        servers.free.extend(server);
        self.returned.notify_one();
    }
}

/// A server that tests of a binary share; another test gets it when this value ends.
#[derive(Debug)]
pub struct Shared {
    server: Option<ApiServer>,
    pool: &'static Pool,
}

impl Deref for Shared {
    type Target = ApiServer;

    #[allow(clippy::unreachable, reason = "handed out with a server in it, which its end alone takes out")]
    fn deref(&self) -> &ApiServer {
        self.server.as_ref().unwrap_or_else(|| unreachable!())
    }
}

impl DerefMut for Shared {
    #[allow(clippy::unreachable, reason = "handed out with a server in it, which its end alone takes out")]
    fn deref_mut(&mut self) -> &mut ApiServer {
        self.server.as_mut().unwrap_or_else(|| unreachable!())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.pool.give_back(self.server.take());
    }
}

impl ApiServer {
    /// One that tests of this binary share, each for itself: started on a machine of its own by the first that needs it, without the
    /// objects of the tests before. [`Faults`](super::Faults) bring it to a machine of the test.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub fn shared(release: Release) -> Result<Shared> {
        let pool = Pool::of(release);
        let mut shared = Shared { server: pool.take(), pool };
        let is_usable = |server: &ApiServer| server.check().is_ok() && server.clear().is_ok();
        if !shared.server.as_ref().is_some_and(is_usable) {
            shared.server = None;
            shared.server = Some(Self::start_with(&Host::start("kubernetes")?, release, &[])?);
        }
        Ok(shared)
    }

    /// Deletes what tests have put.
    fn clear(&self) -> Result<()> {
        let cidrs = "/apis/networking.k8s.io/v1/servicecidrs";
        let cidrs = (self.release() == Release::Modern).then_some(cidrs);
        let slices = format!("/apis/{}/endpointslices", self.release().slices());
        let core = ["services", "endpoints", "nodes", "pods", "events"].map(|plural| format!("/api/v1/{plural}"));
        for collection in core.iter().map(String::as_str).chain([slices.as_str()]).chain(cidrs) {
            for object in self.get(collection)?.get("items").and_then(Value::as_array).into_iter().flatten() {
                let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
                let (root, plural) = collection.rsplit_once('/').unwrap_or_default();
                let path = match (text("/metadata/namespace"), text("/metadata/name")) {
                    // The server's own.
                    ("default", "kubernetes") => continue,
                    ("", name) => format!("{collection}/{name}"),
                    (namespace, name) => format!("{root}/namespaces/{namespace}/{plural}/{name}"),
                };
                let answer = self.ask("DELETE", &path, None)?;
                ensure!(matches!(answer.code, 200 | 202 | 404), "{path}: {}", answer.body);
            }
        }
        Ok(())
    }
}
