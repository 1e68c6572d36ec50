//! The backends without a data path of netd's: `alloc`, and `extension`, whose hooks are files.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use lab::{Host, Need, eventually};
use netd_node::{Net, SOON, pod};

const FOLDER: &str = "/run/netd/extension";

/// What an operator writes in the place of flannel's commands: a route for each file, and none for what is gone.
const PROGRAM: &str = r#"
while :; do
  for file in /run/netd/extension/subnets/*; do
    [ -f "$file" ] || continue
    SUBNET= PUBLIC_IP=; . /dev/stdin <<END
$(sed '/^$/q' "$file")
END
    ip route replace "$SUBNET" via "$PUBLIC_IP" proto 200
  done
  for subnet in $(ip route show proto 200 | cut -d' ' -f1); do
    [ -f "/run/netd/extension/subnets/$(echo "$subnet" | tr / -)" ] || ip route del "$subnet" proto 200
  done
  sleep 0.1
done
"#;

fn eventually_reads(host: &Host, name: &str, expected: &str) -> Result<()> {
    eventually(SOON, || {
        let text = host.read(format!("{FOLDER}/{name}"))?;
        ensure!(text == expected, "{text}");
        Ok(())
    })
}

fn program_of_the_operator_joins_pods_by_what_the_files_say() -> Result<()> {
    let net = Net::start(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"extension"}}"#)?;
    let (here, there) = (net.host("hdss7-21")?, net.host("hdss7-22")?);
    here.run(&["mkdir", "-p", FOLDER])?;
    here.write(format!("{FOLDER}/backend-data"), "key of 21\nsecond line\n")?;
    let programs = [here, there].map(|host| host.command("sh").args(["-c", PROGRAM]).start("program"));
    let [_first, _second] = programs;
    let netd = [net.launch("hdss7-21", &[])?, net.launch("hdss7-22", &[])?];
    for netd in &netd {
        netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    }
    let node = "NETWORK=172.7.0.0/16\nSUBNET=172.7.21.0/24\nPUBLIC_IP=10.4.7.21\nMTU=1500\n\nkey of 21\nsecond line";
    eventually_reads(here, "node.env", node)?;
    let peer = "SUBNET=172.7.21.0/24\nPUBLIC_IP=10.4.7.21\n\nkey of 21\nsecond line";
    eventually_reads(there, "subnets/172.7.21.0-24", peer)?;
    let lease = net.etcd.get("/coreos.com/network/subnets/172.7.21.0-24")?.context("no lease")?;
    ensure!(lease.ends_with(r#""BackendType":"extension","BackendData":"key of 21\nsecond line"}"#), "{lease}");
    let (first, _other) = (pod(here, "172.7.21")?, pod(there, "172.7.22")?);
    eventually(SOON, || first.run(&["ping", "-c1", "-W2", "172.7.22.2"]).map(drop))?;
    // A node that leaves while netd is away has its file removed at the next start.
    let far = r#"{"PublicIP":"10.4.7.200","PublicIPv6":null,"BackendType":"extension"}"#;
    net.etcd.put("/coreos.com/network/subnets/172.7.99.0-24", far)?;
    eventually_reads(here, "subnets/172.7.99.0-24", "SUBNET=172.7.99.0/24\nPUBLIC_IP=10.4.7.200\n\n")?;
    let routed = |wanted: bool| {
        eventually(SOON, || {
            let routes = here.run(&["ip", "route"])?.stdout;
            ensure!(routes.contains("172.7.99.0/24 via 10.4.7.200") == wanted, "{routes}");
            Ok(())
        })
    };
    routed(true)?;
    here.run(&["rm", &format!("{FOLDER}/subnets/172.7.99.0-24")])?;
    eventually_reads(here, "subnets/172.7.99.0-24", "SUBNET=172.7.99.0/24\nPUBLIC_IP=10.4.7.200\n\n")?;
    routed(true)?;
    netd[0].kill()?;
    net.etcd.delete("/coreos.com/network/subnets/172.7.99.0-24")?;
    let _again = net.netd("hdss7-21")?;
    routed(false)?;
    first.run(&["ping", "-c1", "-W5", "172.7.22.2"])?;
    Ok(())
}

fn alloc_leases_a_subnet_and_leaves_the_rest_to_others() -> Result<()> {
    let net = Net::start(r#"{"Network":"172.7.0.0/16","Backend":{"Type":"alloc"}}"#)?;
    net.put_lease("172.7.22.0-24", "10.4.7.22", "host-gw")?;
    let _netd = net.netd("hdss7-21")?;
    let host = net.host("hdss7-21")?;
    ensure!(host.read("/run/flannel/subnet.env")?.contains("FLANNEL_SUBNET=172.7.21.1/24"));
    let lease = net.etcd.get("/coreos.com/network/subnets/172.7.21.0-24")?;
    ensure!(lease.as_deref() == Some(r#"{"PublicIP":"10.4.7.21","PublicIPv6":null}"#), "{lease:?}");
    let text = host.run(&["sh", "-c", "ip route; ip -br link"])?.stdout;
    ensure!(!text.contains("172.7.") && !text.contains("flannel"), "{text}");
    Ok(())
}

fn main() -> ExitCode {
    lab::harness::main(
        &[Need::Nftables],
        lab::tests![
            program_of_the_operator_joins_pods_by_what_the_files_say,
            alloc_leases_a_subnet_and_leaves_the_rest_to_others,
        ],
    )
}
