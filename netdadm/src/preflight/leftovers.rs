//! What other clusters and other networks of Pods have left here.
//!
//! Pure. Invariant: what `netdadm apply` recorded as its own is no leftover.

use daemon::doctor::Trouble;
use netstate::Prefix;

use super::facts::Case;
use crate::topology::Role;

/// What `netdadm apply` wrote.
pub(crate) const APPLIED: &str = "/var/lib/netdadm/applied.json";
/// Networks of Pods, the first by name is the one that is used.
pub(crate) const NETWORKS: &str = "/etc/cni/net.d";
/// The last name that ours has there.
const OURS: &str = "10-netd.conflist";
/// Folders and files that others leave, with who reads them.
pub(crate) const PATHS: [(&str, Role); 6] = [
    ("/var/lib/etcd/member", Role::Etcd),
    ("/var/lib/etcd/default.etcd/member", Role::Etcd),
    ("/etc/kubernetes/admin.conf", Role::ControlPlane),
    ("/etc/kubernetes/pki/ca.crt", Role::ControlPlane),
    ("/etc/kubernetes/kubelet.conf", Role::Node),
    ("/var/lib/kubelet/pki/kubelet-client-current.pem", Role::Node),
];
/// Where a kubelet of kubeadm finds Pods of the control plane.
pub(crate) const STATIC_PODS: &str = "/etc/kubernetes/manifests";

/// Links of other networks of Pods, by what their names begin with.
const STRANGERS: [(&str, &str); 5] = [
    ("cali", "Calico"),
    ("cilium", "Cilium"),
    ("lxc_health", "Cilium"),
    ("weave", "Weave"),
    ("kube-bridge", "kube-router"),
];

/// Everything that is left.
pub(super) fn judge(case: &Case) -> Vec<Trouble> {
    let applied = case.facts.text(APPLIED).unwrap_or_default();
    let foreign = |path: &str| !applied.contains(&format!("\"{path}\""));
    let mut troubles = Vec::new();
    // A cluster that was applied here has all of these.
    let left = PATHS
        .into_iter()
        .filter(|(path, role)| applied.is_empty() && case.is(*role) && case.facts.paths.contains(*path));
    for (path, role) in left {
        let cost = match role {
            Role::Etcd => "a member takes up the cluster that is in there, whatever its configuration says",
            _ => "it is of another cluster",
        };
        troubles.push(Trouble::problem(
            format!("{path} is there already: {cost}"),
            format!("mv {path} {path}.old, or keep it if it is of this cluster"),
        ));
    }
    if let Some((path, _)) = case.facts.files_in(STATIC_PODS).find(|(path, _)| foreign(path)) {
        let found = format!("{path} is there: a kubelet with staticPodPath runs it beside the units of this cluster");
        troubles.push(Trouble::problem(found, format!("mv {path} out of {STATIC_PODS}")));
    }
    if case.is(Role::Node) {
        troubles.extend(networks(case, &foreign));
    }
    if case.has_netd() {
        troubles.extend(links(case));
    }
    troubles
}

/// Lists of other networks that the runtime would take before ours, or that call other plugins.
fn networks(case: &Case, foreign: &dyn Fn(&str) -> bool) -> Vec<Trouble> {
    let is_list = |path: &str| [".conf", ".conflist", ".json"].iter().any(|end| path.ends_with(end));
    let others = case.facts.files_in(NETWORKS).filter(|(path, _)| is_list(path) && foreign(path));
    let others = others.filter(|(_, text)| !is_flannels(text));
    let trouble = |(path, _): (&str, &str)| {
        let found = format!("{path} is another network of Pods: the first by name is taken");
        let fix = format!("mv {path} {path}.old");
        if path.rsplit('/').next().is_some_and(|name| name > OURS) {
            Trouble::note(found, fix)
        } else {
            Trouble::problem(found, fix)
        }
    };
    others.map(trouble).collect()
}

/// The list that flannel and our plugin have in common, whoever wrote it.
fn is_flannels(text: &str) -> bool {
    let compact: String = text.chars().filter(|letter| !letter.is_whitespace()).collect();
    compact.contains("\"type\":\"flannel\"") || compact.contains("\"type\":\"netd-cni\"")
}

fn links(case: &Case) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    for link in &case.facts.links {
        if let Some((_, who)) = STRANGERS.iter().find(|(begin, _)| link.name.starts_with(begin)) {
            let fix = format!("uninstall {who} and restart this host: its rules and routes go with that");
            troubles.push(Trouble::problem(format!("{} is a link of {who}, another network of Pods", link.name), fix));
        }
        let Some(plan) = case.plan.as_ref().filter(|_| matches!(link.name.as_str(), "cni0" | "cbr0")) else { continue };
        let pods: Vec<Prefix> = plan.topology.networks.pods.iter().map(|pods| pods.value).collect();
        let outside = |address: &std::net::IpAddr| {
            let mut own = pods.iter().filter(|pods| pods.is_ipv4() == address.is_ipv4()).peekable();
            own.peek().is_some() && !own.any(|pods| pods.contains(*address))
        };
        let global = link.addresses.iter().map(|(address, _)| *address).filter(|address| !is_link_local(*address));
        if let Some(address) = global.into_iter().find(outside) {
            let found = format!(
                "{} has {address} of another network of Pods: \"cni0 already has an IP address different from\" ours",
                link.name
            );
            troubles.push(Trouble::problem(found, format!("ip link delete {}", link.name)));
        }
    }
    troubles
}

fn is_link_local(address: std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Programs that delete links and routes which they did not make.
pub(super) fn keepers(case: &Case) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    if !case.has_netd() {
        return troubles;
    }
    let says = |folders: &[&str], word: &str| {
        folders.iter().any(|folder| {
            case.facts.files_in(folder).any(|(_, text)| {
                text.lines().map(str::trim).any(|line| !line.starts_with('#') && line.starts_with(word))
            })
        })
    };
    if case.facts.paths.contains("/run/NetworkManager") && !says(&NETWORK_MANAGER, "unmanaged-devices") {
        let found = "NetworkManager takes links of Pods for its own, and their addresses away";
        let fix = "write [keyfile] and unmanaged-devices=interface-name:cni0;interface-name:cbr0;interface-name:flannel*;interface-name:veth*;interface-name:kube-ipvs0 into /etc/NetworkManager/conf.d/kubernetes.conf, and systemctl reload NetworkManager";
        troubles.push(Trouble::note(found, fix));
    }
    if case.facts.paths.contains("/run/systemd/netif/links") && !says(&NETWORKD, "ManageForeignRoutes=no") {
        let found = "systemd-networkd deletes routes that it did not make when it starts again";
        let fix = "write [Network] and ManageForeignRoutes=no, ManageForeignRoutingPolicyRules=no into /etc/systemd/networkd.conf.d/kubernetes.conf, and systemctl restart systemd-networkd";
        troubles.push(Trouble::note(found, fix));
    }
    troubles
}

/// Folders of NetworkManager's configuration.
pub(crate) const NETWORK_MANAGER: [&str; 2] = ["/etc/NetworkManager", "/etc/NetworkManager/conf.d"];
/// Folders of systemd-networkd's configuration.
pub(crate) const NETWORKD: [&str; 2] = ["/etc/systemd", "/etc/systemd/networkd.conf.d"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::facts::Link;
    use crate::preflight::tests::said;

    #[test]
    fn a_member_and_keys_of_another_cluster_are_found_until_they_are_ours() {
        let mut case = Case::default();
        case.facts.paths.extend(PATHS.map(|(path, _)| path.to_owned()));
        let found = said(judge(&case));
        for (path, _) in PATHS {
            assert!(found.contains(&format!("{path} is there already")), "{found}");
        }
        assert_eq!(said(judge(&case.clone().of_host("hdss7-12"))).lines().count(), 4, "its member alone");
        case.facts.texts.insert(APPLIED.into(), "{\"files\":{}}".into());
        assert_eq!(said(judge(&case)), "");
    }

    #[test]
    fn other_networks_of_pods_are_found_by_their_files_and_links() {
        let calico = ("/etc/cni/net.d/10-calico.conflist", "{\"plugins\":[{\"type\": \"calico\"}]}");
        let own = ("/etc/cni/net.d/10-flannel.conflist", "{\"plugins\":[{\"type\": \"flannel\"}]}");
        let found = said(judge(&Case::planted(&[calico, own, ("/etc/cni/net.d/README", "calico")])));
        assert!(found.contains("mv /etc/cni/net.d/10-calico.conflist") && found.lines().count() == 2, "{found}");
        let later = ("/etc/cni/net.d/87-podman-bridge.conflist", "{\"plugins\":[{\"type\": \"bridge\"}]}");
        assert!(said(judge(&Case::planted(&[later]))).starts_with("note /etc/cni/net.d/87-podman-bridge.conflist"));
        let kubeadm = ("/etc/kubernetes/manifests/etcd.yaml", "kind: Pod");
        assert!(said(judge(&Case::planted(&[kubeadm]))).contains("staticPodPath"));
        let mut case = Case::default().of_host("hdss7-21");
        let link = |name: &str, address: &str| Link {
            name: name.into(),
            mtu: 1450,
            addresses: vec![(address.parse().unwrap(), 24)],
        };
        case.facts.links = vec![link("cni0", "10.244.0.1"), link("cali12ab", "fe80::1"), link("cbr0", "172.7.21.1")];
        let found = said(judge(&case));
        assert!(
            found.contains("cni0 has 10.244.0.1 of another network") && found.contains("a link of Calico"),
            "{found}"
        );
        assert_eq!(found.lines().count(), 4, "{found}");
    }

    #[test]
    fn programs_that_delete_what_they_did_not_make_are_noted() {
        let mut case = Case::default();
        case.facts.paths.extend(["/run/NetworkManager".to_owned(), "/run/systemd/netif/links".to_owned()]);
        let found = said(keepers(&case));
        assert!(found.contains("note NetworkManager") && found.contains("note systemd-networkd"), "{found}");
        let files = [
            ("/etc/NetworkManager/conf.d/k.conf", "[keyfile]\nunmanaged-devices=*\n"),
            ("/etc/systemd/networkd.conf", "ManageForeignRoutes=no\n"),
        ];
        case.facts.texts.extend(files.map(|(path, text)| (path.to_owned(), text.to_owned())));
        assert_eq!(said(keepers(&case)), "");
    }
}
