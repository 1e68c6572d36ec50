//! ipvs-proxy: its configuration in kube-proxy's form, its variables, and its unit as the project ships it.
//!
//! Invariant: it reads the API server of the cluster as the user that kube-proxy has.

use super::tree::Start;
use super::unit::MADE;
use super::{KUBERNETES, Place, Tree, place};
use crate::topology::{Program, Purpose};

/// The unit that the project ships.
const UNIT: &str = include_str!("../../../configs/systemd/ipvs-proxy.service");

/// Its configuration, which it follows.
const CONFIG: &str = "/etc/ipvs-proxy/config.yaml";

/// Its variables.
const SETTINGS: &str = "/etc/default/ipvs-proxy";

/// Adds ipvs-proxy of this host.
pub(super) fn add(place: &Place<'_>, tree: &mut Tree) {
    let any = place::unspecified(place.address);
    let config = format!(
        "# Rendered by netdadm. ipvs-proxy follows this file: a change needs no restart.\n\
         apiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
         kind: KubeProxyConfiguration\n\
         # IPVS where the kernel has it, nftables elsewhere.\n\
         mode: auto\n\
         bindAddress: \"{any}\"\n\
         clusterCIDR: \"{pods}\"\n\
         hostnameOverride: \"{name}\"\n\
         healthzBindAddress: \"{health}\"\n\
         metricsBindAddress: \"{metrics}\"\n\
         clientConnection:\n  kubeconfig: {KUBERNETES}/kube-proxy.conf\n\
         ipvs:\n  scheduler: rr\n",
        pods = place.pods(),
        name = place.name(),
        health = place.everywhere(Purpose::ProxyHealth),
        metrics = place.loopback(Purpose::ProxyMetrics),
    );
    tree.file(CONFIG, config);
    let settings = format!(
        "{MADE}# A change asks for a restart of ipvs-proxy.service; the data path stays.\n\
         IPVS_PROXY_CONFIG={CONFIG}\nIPVS_PROXY_SERVICE_CIDR={}\n",
        place.services()
    );
    tree.file(SETTINGS, settings);
    let program = place.program(Program::Netd, "ipvs-proxy");
    let text = UNIT.replace("/usr/local/bin/ipvs-proxy", &program);
    // It waits for the API server of another host.
    let url = format!("http://{}/readyz", place.loopback(Purpose::ProxyMetrics));
    let start = Start::alone().until(url, None, 120);
    tree.unit("ipvs-proxy.service", format!("{MADE}{text}"), &[SETTINGS], start);
}
