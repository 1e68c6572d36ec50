//! ServiceCIDR: the networks of ClusterIPs as the API server announces them.

use anyhow::{Result, ensure};
use lab::eventually;
use lab::kubernetes::{ApiServer, Fault, Faults, Release};
use serde_json::{Value, json};

use crate::proxy::{Nodes, SOON};
use crate::{answered_by, service, slice, start};

const OBJECTS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
/// Where 1.31 and 1.32 have them.
const EARLIER: &str = "/apis/networking.k8s.io/v1beta1/servicecidrs";

/// Waits until the status names exactly these networks as announced and used.
fn announced(nodes: &Nodes, networks: &[&str]) -> Result<()> {
    eventually(SOON, || {
        let status = nodes.status()?;
        let found: Vec<_> = status["serviceNetworks"].as_array().into_iter().flatten().collect();
        ensure!(found.iter().all(|network| network["used"] == true), "{status}");
        let named: Vec<_> = found.iter().filter_map(|network| network["network"].as_str()).collect();
        ensure!(named == networks, "{}", status["serviceNetworks"]);
        Ok(())
    })
}

/// Waits until new connections to this address are dropped, or are not.
fn is_dropped(nodes: &Nodes, network: &str, dropped: bool) -> Result<()> {
    eventually(SOON, || {
        let rules = nodes.node()?.run(&["nft", "list", "chain", "ip", "ipvs-proxy", "refuse-forward"])?.stdout;
        ensure!(rules.contains(&format!("ip daddr {network} ")) == dropped, "{rules}");
        Ok(())
    })
}

pub(crate) fn service_cidrs_of_the_api_are_followed() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::Modern)?, Nodes::start()?);
    let cidr = |name: &str, networks: &[&str]| -> Value {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
            "spec": {"cidrs": networks}})
    };
    server.put(&service("web", "192.168.0.10"))?;
    server.put(&slice(Release::Modern, &["172.7.21.2"]))?;
    server.put(&cidr("kubernetes", &["192.168.0.0/20"]))?;
    let faults = Faults::start(&server, nodes.node()?)?;
    let proxy = start(&nodes, &faults.kubeconfig())?;
    announced(&nodes, &["192.168.0.0/20"])?;
    is_dropped(&nodes, "192.168.0.0/20", true)?;
    let text = nodes.node()?.command(lab::bin("ipvs-proxy")?).arg("status").run()?.stdout;
    ensure!(text.contains("Service network 192.168.0.0/20: by ServiceCIDR kubernetes"), "{text}");
    // A cluster that runs out of addresses gets another network; a Service in none of them is served all the same.
    server.put(&cidr("more", &["192.168.64.0/20"]))?;
    announced(&nodes, &["192.168.0.0/20", "192.168.64.0/20"])?;
    is_dropped(&nodes, "192.168.64.0/20", true)?;
    answered_by(&nodes, &["172.7.21.2"])?;
    // During an outage they stay.
    faults.refuse()?;
    crate::lost(&nodes, "refused")?;
    announced(&nodes, &["192.168.0.0/20", "192.168.64.0/20"])?;
    server.delete(&format!("{OBJECTS}/more"))?;
    server.delete(&format!("{OBJECTS}/kubernetes"))?;
    faults.heal()?;
    announced(&nodes, &[])?;
    is_dropped(&nodes, "192.168.0.0/20", false)?;
    answered_by(&nodes, &["172.7.21.2"])?;
    let seen: Vec<_> = faults.seen().into_iter().filter(|seen| seen.target.starts_with(OBJECTS)).collect();
    ensure!(
        !seen.is_empty() && seen.iter().all(|seen| seen.method == "GET"),
        "its role allows list and watch: {seen:?}"
    );
    // Whoever may not read them goes on without.
    faults.inject("servicecidrs", Fault::Answer(403));
    faults.break_connections();
    eventually(SOON, || {
        let status = nodes.status()?;
        let advice = status["advice"].to_string();
        ensure!(
            advice.contains("ServiceCIDRs: cannot") && advice.contains("403") && status["lost"].is_null(),
            "{status}"
        );
        Ok(())
    })?;
    answered_by(&nodes, &["172.7.21.2"])?;
    ensure!(proxy.is_running());
    Ok(())
}

pub(crate) fn service_cidrs_of_a_server_of_1_31_are_followed_in_its_version() -> Result<()> {
    let nodes = Nodes::start()?;
    let server = ApiServer::start_with(nodes.outside()?, Release::Modern, &["--service-cidrs-beta"])?;
    let codes = [OBJECTS, EARLIER].map(|path| server.ask("GET", path, None).map(|answer| answer.code));
    ensure!(matches!(codes, [Ok(404), Ok(200)]), "one version is served, the earlier one: {codes:?}");
    let cidr = |name: &str, network: &str| -> Value {
        json!({"apiVersion": "networking.k8s.io/v1beta1", "kind": "ServiceCIDR", "metadata": {"name": name},
            "spec": {"cidrs": [network]}})
    };
    server.put(&service("web", "192.168.0.10"))?;
    server.put(&slice(Release::Modern, &["172.7.21.2"]))?;
    server.put(&cidr("kubernetes", "192.168.0.0/20"))?;
    let faults = Faults::start(&server, nodes.node()?)?;
    let _proxy = start(&nodes, &faults.kubeconfig())?;
    announced(&nodes, &["192.168.0.0/20"])?;
    is_dropped(&nodes, "192.168.0.0/20", true)?;
    server.put(&cidr("more", "192.168.64.0/20"))?;
    announced(&nodes, &["192.168.0.0/20", "192.168.64.0/20"])?;
    faults.inject(EARLIER, Fault::Answer(403));
    faults.break_connections();
    eventually(SOON, || {
        let advice = nodes.status()?["advice"].to_string();
        let grants = "for `servicecidrs.networking.k8s.io`: apply the ClusterRole of configs/kubernetes/ipvs-proxy";
        ensure!(advice.contains(grants), "{advice}");
        Ok(())
    })?;
    announced(&nodes, &["192.168.0.0/20", "192.168.64.0/20"])?;
    faults.heal()?;
    server.delete(&format!("{EARLIER}/more"))?;
    announced(&nodes, &["192.168.0.0/20"])?;
    is_dropped(&nodes, "192.168.64.0/20", false)?;
    answered_by(&nodes, &["172.7.21.2"])
}
