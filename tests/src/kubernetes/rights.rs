//! Accounts with exactly the rights that a test gives them.

use anyhow::Result;
use serde_json::json;

use super::api_server::ApiServer;

impl ApiServer {
    /// A token of a service account of `kube-system` with these rights, each a group, a resource and a verb, and no other.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn token_with(&self, account: &str, rights: &[(&str, &str, &str)]) -> Result<String> {
        let rule = |(group, resource, verb): &(&str, &str, &str)| json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]});
        let rules: Vec<_> = rights.iter().map(rule).collect();
        let (version, metadata) = ("rbac.authorization.k8s.io/v1", json!({"name": account}));
        self.put(&json!({"apiVersion": version, "kind": "ClusterRole", "metadata": metadata, "rules": rules}))?;
        let subjects = json!([{"kind": "ServiceAccount", "namespace": "kube-system", "name": account}]);
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": account});
        self.put(
            &json!({"apiVersion": version, "kind": "ClusterRoleBinding", "metadata": metadata, "subjects": subjects,
            "roleRef": role}),
        )?;
        self.token_of("kube-system", account)
    }
}
