//! The certificates that each host needs, by its roles: kubeadm's names, each with exactly the names and uses that who
//! reads it asks for.
//!
//! Pure. Invariant: one user of Kubernetes or of etcd per certificate; a host gets no certificate for a role that it has not.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Ca, Request, Usage};
use crate::topology::{Host, Role, SubnetPolicy, Topology, Version};

/// The domain of Services: kubeadm's and every default's.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// The group that may do everything, known to the API server itself.
const MASTERS: &str = "system:masters";
/// The group that kubeadm binds to `cluster-admin` in its place.
const ADMINS: &str = "kubeadm:cluster-admins";
/// Kubernetes since which clients of kubelets and etcd are in no group that may do everything, as kubeadm's.
const BOUND: Version = Version::new(1, 29, 0);

/// What `host` gets.
pub(crate) fn wanted(topology: &Topology, host: &Host) -> Vec<Request> {
    let mut requests = Vec::new();
    if host.has(Role::Etcd) {
        requests.extend(member(topology, host));
    }
    if host.has(Role::ControlPlane) {
        requests.extend(control_plane(topology, host));
    }
    if host.has(Role::Node) {
        requests.extend(node(topology, host));
    }
    if topology.has_netd(host) {
        requests.push(netd(topology, host));
    }
    requests
}

/// What operators keep: the users of `admin.conf`, and of `super-admin.conf` where that is another one.
pub(crate) fn wanted_by_operators(topology: &Topology) -> Vec<Request> {
    let user = |path: &str, name: &str, group: &str| Request {
        host: None,
        ..Request::client("", path, Ca::Cluster, name).of(Some(group))
    };
    let member = Request {
        host: None,
        ..Request::client("", "etcd/healthcheck-client", Ca::Etcd, "kube-etcd-healthcheck-client")
    };
    if bound(topology, None) {
        let both = [user("admin", "kubernetes-admin", ADMINS), user("super-admin", "kubernetes-super-admin", MASTERS)];
        both.into_iter().chain([member]).collect()
    } else {
        vec![user("admin", "kubernetes-admin", MASTERS), member.of(Some(MASTERS))]
    }
}

/// Whether the version of Kubernetes is one whose clients need bindings.
fn bound(topology: &Topology, host: Option<&Host>) -> bool {
    let versions = host.map_or(topology.versions, |host| host.versions.or(&topology.versions));
    versions.kubernetes.is_some_and(|version| version.value >= BOUND)
}

fn member(topology: &Topology, host: &Host) -> Vec<Request> {
    let name = host.name.value.as_str();
    let both = |path: &str| Request::client(name, path, Ca::Etcd, name).serving(Usage::Both, local(topology, host));
    let probe = Request::client(name, "etcd/healthcheck-client", Ca::Etcd, "kube-etcd-healthcheck-client");
    vec![both("etcd/server"), both("etcd/peer"), probe.of(masters(topology, host))]
}

/// The group of clients that kubeadm's older versions put there.
fn masters(topology: &Topology, host: &Host) -> Option<&'static str> {
    (!bound(topology, Some(host))).then_some(MASTERS)
}

fn control_plane(topology: &Topology, host: &Host) -> Vec<Request> {
    let name = host.name.value.as_str();
    let client = |path: &str, ca: Ca, user: &str| Request::client(name, path, ca, user);
    vec![
        client("apiserver", Ca::Cluster, "kube-apiserver").serving(Usage::Server, api_server(topology, host)),
        client("apiserver-kubelet-client", Ca::Cluster, "kube-apiserver-kubelet-client").of(masters(topology, host)),
        client("apiserver-etcd-client", Ca::Etcd, "kube-apiserver-etcd-client").of(masters(topology, host)),
        client("front-proxy-client", Ca::FrontProxy, "front-proxy-client"),
        client("controller-manager", Ca::Cluster, "system:kube-controller-manager"),
        client("scheduler", Ca::Cluster, "system:kube-scheduler"),
    ]
}

fn node(topology: &Topology, host: &Host) -> Vec<Request> {
    let name = host.name.value.as_str();
    // The Node authorizer knows a kubelet by exactly this user and group.
    let kubelet =
        |path: &str| Request::client(name, path, Ca::Cluster, format!("system:node:{name}")).of(Some("system:nodes"));
    vec![
        kubelet("kubelet-client"),
        // The API server connects to the Node's addresses, or to its name.
        kubelet("kubelet").serving(Usage::Server, own(topology, host)),
        Request::client(name, "kube-proxy", Ca::Cluster, "system:kube-proxy"),
    ]
}

/// netd's, for where its leases lie.
fn netd(topology: &Topology, host: &Host) -> Request {
    let name = host.name.value.as_str();
    match topology.pods.subnets.value {
        SubnetPolicy::NodeIp => Request::client(name, "netd-etcd-client", Ca::Etcd, "netd"),
        SubnetPolicy::Kubernetes => Request::client(name, "netd", Ca::Cluster, "netd"),
    }
}

/// The names and addresses of a host itself.
fn own(topology: &Topology, host: &Host) -> BTreeSet<String> {
    let name = host.name.value.clone();
    let mut names: BTreeSet<String> = host.addresses.iter().map(|address| address.value.to_string()).collect();
    if let Some(domain) = &topology.domain {
        let domain = format!(".{}", domain.value);
        if name.parse::<IpAddr>().is_err() && !name.ends_with(&domain) {
            names.insert(format!("{name}{domain}"));
        }
    }
    names.insert(name);
    names
}

/// The same with loopback: who is on the host connects there.
fn local(topology: &Topology, host: &Host) -> BTreeSet<String> {
    let mut names = own(topology, host);
    names.insert("localhost".to_owned());
    names.insert(Ipv4Addr::LOCALHOST.to_string());
    names.insert(Ipv6Addr::LOCALHOST.to_string());
    names
}

/// Names and addresses under which an API server is connected to: by Pods through the Service, by everybody through the
/// endpoint, and through every other control-plane host, because an endpoint may lead to any of them.
fn api_server(topology: &Topology, host: &Host) -> BTreeSet<String> {
    let mut names = local(topology, host);
    names.extend(topology.of(Role::ControlPlane).flat_map(|other| own(topology, other)));
    names.extend(topology.endpoint.map(|endpoint| endpoint.address.to_string()));
    names.extend(
        topology.networks.services.iter().filter_map(|network| network.value.nth(1)).map(|first| first.to_string()),
    );
    let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned);
    names.insert(format!("kubernetes.default.svc.{CLUSTER_DOMAIN}"));
    names.extend(service);
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    /// What each certificate of `host` says, one a line.
    fn printed(text: &str, host: &str) -> Vec<String> {
        let topology = check::text(text).topology.unwrap();
        let found = topology.hosts.iter().find(|one| one.name.value == host).unwrap();
        wanted(&topology, found).iter().map(line).collect()
    }

    fn line(request: &Request) -> String {
        let names = request.names.iter().cloned().chain(request.addresses.iter().map(ToString::to_string));
        let group = request.organization.as_ref().map(|group| format!(" O={group}")).unwrap_or_default();
        let names = names.collect::<Vec<_>>().join(",");
        format!(
            "{} by {:?}: CN={}{group}, {} [{names}]",
            request.path, request.authority, request.common_name, request.usage
        )
    }

    fn topology(file: &str) -> String {
        std::fs::read_to_string(format!("{}/fuzz/topology/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn every_host_gets_what_its_roles_need_and_nothing_else() {
        let reference = topology("reference.yaml");
        let service = "kubernetes,kubernetes.default,kubernetes.default.svc,kubernetes.default.svc.cluster.local";
        assert_eq!(
            printed(&reference, "hdss7-11"),
            [
                &*format!(
                    "apiserver by Cluster: CN=kube-apiserver, server [hdss7-11,hdss7-11.host.com,{service},localhost,\
                     10.4.7.11,127.0.0.1,192.168.0.1,::1]"
                ),
                "apiserver-kubelet-client by Cluster: CN=kube-apiserver-kubelet-client O=system:masters, client []",
                "apiserver-etcd-client by Etcd: CN=kube-apiserver-etcd-client O=system:masters, client []",
                "front-proxy-client by FrontProxy: CN=front-proxy-client, client []",
                "controller-manager by Cluster: CN=system:kube-controller-manager, client []",
                "scheduler by Cluster: CN=system:kube-scheduler, client []",
                "netd-etcd-client by Etcd: CN=netd, client []",
            ]
        );
        let member = "CN=hdss7-21, server and client [hdss7-21,hdss7-21.host.com,localhost,10.4.7.21,127.0.0.1,::1]";
        assert_eq!(
            printed(&reference, "hdss7-21"),
            [
                &*format!("etcd/server by Etcd: {member}"),
                &*format!("etcd/peer by Etcd: {member}"),
                "etcd/healthcheck-client by Etcd: CN=kube-etcd-healthcheck-client O=system:masters, client []",
                "kubelet-client by Cluster: CN=system:node:hdss7-21 O=system:nodes, client []",
                "kubelet by Cluster: CN=system:node:hdss7-21 O=system:nodes, server [hdss7-21,hdss7-21.host.com,10.4.7.21]",
                "kube-proxy by Cluster: CN=system:kube-proxy, client []",
                "netd-etcd-client by Etcd: CN=netd, client []",
            ]
        );
        assert_eq!(printed(&reference, "hdss7-200"), [""; 0]);
    }

    #[test]
    fn a_host_that_is_named_by_its_address_has_no_name_in_its_certificates() {
        let found = printed(&topology("atomic.yaml"), "192.168.197.131");
        assert_eq!(
            found[0],
            "etcd/server by Etcd: CN=192.168.197.131, server and client [localhost,127.0.0.1,192.168.197.131,::1]"
        );
        assert_eq!(
            found[4],
            "kubelet by Cluster: CN=system:node:192.168.197.131 O=system:nodes, server [192.168.197.131]"
        );
    }

    #[test]
    fn netd_is_a_client_of_where_its_leases_lie() {
        let found = printed(&topology("kubeadm.yaml"), "k8s-node1");
        assert_eq!(found.last().unwrap(), "netd by Cluster: CN=netd, client []");
        let found = printed(&topology("three-nodes.yaml"), "k8s-node1");
        assert_eq!(found.last().unwrap(), "netd-etcd-client by Etcd: CN=netd, client []");
    }

    #[test]
    fn the_service_and_every_api_server_and_the_endpoint_are_names_of_each_api_server() {
        let text = topology("reference.yaml").replace("roles: none", "roles: control-plane");
        let text = format!("endpoint: 10.4.7.10:7443\n{text}");
        let found = printed(&text, "hdss7-200");
        for name in
            ["hdss7-11", "hdss7-11.host.com", "hdss7-200", "10.4.7.11", "10.4.7.200", "10.4.7.10", "192.168.0.1"]
        {
            assert!(found[0].contains(&format!("{name},")), "{name} in {}", found[0]);
        }
    }

    /// kubeadm's groups since 1.29: whoever may do everything has a file of his own.
    #[test]
    fn newer_clients_are_in_no_group_that_may_do_everything() {
        let newer = topology("reference.yaml")
            .replace("1.20.2", "1.36.2")
            .replace("3.4.23", "3.5.30")
            .replace("1.6.20", "2.1.0");
        assert_eq!(
            printed(&newer, "hdss7-11")[1],
            "apiserver-kubelet-client by Cluster: CN=kube-apiserver-kubelet-client, client []"
        );
        let kept =
            |text: &str| wanted_by_operators(&check::text(text).topology.unwrap()).iter().map(line).collect::<Vec<_>>();
        assert_eq!(
            kept(&topology("reference.yaml")),
            [
                "admin by Cluster: CN=kubernetes-admin O=system:masters, client []",
                "etcd/healthcheck-client by Etcd: CN=kube-etcd-healthcheck-client O=system:masters, client []",
            ]
        );
        assert_eq!(
            kept(&newer),
            [
                "admin by Cluster: CN=kubernetes-admin O=kubeadm:cluster-admins, client []",
                "super-admin by Cluster: CN=kubernetes-super-admin O=system:masters, client []",
                "etcd/healthcheck-client by Etcd: CN=kube-etcd-healthcheck-client, client []",
            ]
        );
    }
}
