//! One API server for the tests of a binary, one after the other.
//!
//! Invariant: a test that gets it finds it serving, and without the Nodes, Services, endpoints, Pods and events of the tests before.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::Release;
use super::api_server::ApiServer;
use crate::host::Host;

/// The server that tests of a binary share; the next test gets it when this value ends.
#[derive(Debug)]
pub struct Shared(MutexGuard<'static, Option<ApiServer>>);

impl Deref for Shared {
    type Target = ApiServer;

    #[allow(clippy::unreachable, reason = "made with a server in it, and nothing takes it out")]
    fn deref(&self) -> &ApiServer {
        self.0.as_ref().unwrap_or_else(|| unreachable!())
    }
}

impl DerefMut for Shared {
    #[allow(clippy::unreachable, reason = "made with a server in it, and nothing takes it out")]
    fn deref_mut(&mut self) -> &mut ApiServer {
        self.0.as_mut().unwrap_or_else(|| unreachable!())
    }
}

impl ApiServer {
    /// The one that tests of this binary share, one after the other: started by the first on a machine of its own, without the
    /// objects of the tests before. [`Faults`](super::Faults) bring it to a machine of the test.
    ///
    /// # Errors
    /// As [`ApiServer::start`].
    pub fn shared(release: Release) -> Result<Shared> {
        static OLD: Mutex<Option<ApiServer>> = Mutex::new(None);
        static MODERN: Mutex<Option<ApiServer>> = Mutex::new(None);
        let kept = if release == Release::Modern { &MODERN } else { &OLD };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = kept.as_ref().is_some_and(|server| server.check().is_ok() && server.clear().is_ok());
        if !usable {
            *kept = None;
            let server = Self::start_with(&Host::start("kubernetes")?, release, &[])?;
            *kept = Some(server);
        }
        Ok(Shared(kept))
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
