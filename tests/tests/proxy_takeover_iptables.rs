//! From a real kube-proxy of the mode iptables, over iptables-nft, to ours and back, with packets.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod proxy;
mod takeover;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::harness::Suite;
use lab::kubernetes::Release;
use lab::{KubeProxy, Need};
use proxy::SOON;
use takeover::{Open, Takeover, bring_strangers, check_rules};

fn a_kube_proxy_of_iptables_is_taken_over_and_takes_over_again_without_a_failed_connection() -> Result<()> {
    let cluster = Takeover::start()?;
    let node = cluster.nodes.node()?;
    let kube_proxy = KubeProxy::start(node, &cluster.api, "iptables")?;
    let rules = node.run(&["iptables-nft-save", "-t", "nat"])?.stdout;
    ensure!(rules.contains("-A KUBE-SVC-"), "it is in the mode iptables, over iptables-nft: {rules}");
    let mut open = Open::start(&cluster.nodes)?;
    let connected = cluster.under_load(|| {
        let ours = cluster.ours("nftables")?;
        open.goes_on("the start of ours")?;
        Takeover::end(&kube_proxy)?;
        bring_strangers(node)?;
        let said = cluster.call("--cleanup-kube-proxy")?;
        ensure!(
            said.contains("chains of nft table ip nat") && said.contains("chains of nft table ip filter"),
            "{said}"
        );
        check_rules(node)?;
        open.goes_on("the clean-up behind kube-proxy")?;
        let again = cluster.call("--cleanup-kube-proxy")?;
        ensure!(again.contains("nothing of a kube-proxy was found"), "{again}");
        let _kube_proxy = KubeProxy::start(node, &cluster.api, "iptables")?;
        ensure!(ours.terminate(SOON)?.success());
        cluster.call("--cleanup")?;
        let tables = node.run(&["nft", "list", "tables"])?.stdout;
        ensure!(!tables.contains("ipvs-proxy"), "{tables}");
        open.goes_on_with_kube_proxy("the way back")
    })?;
    ensure!(connected.iter().all(|count| *count >= 10), "{connected:?}");
    Ok(())
}

fn main() -> ExitCode {
    Suite::new(&[Need::Nftables])
        .with_kubernetes(Release::V1_20)
        .run(lab::tests![a_kube_proxy_of_iptables_is_taken_over_and_takes_over_again_without_a_failed_connection,])
}
