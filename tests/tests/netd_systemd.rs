//! The units as systemd runs them, on the kernel of this machine: started at the boot, stopped, killed, held, reloaded.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;
mod proxy;
mod units;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lab::{Host, Need, eventually};
use netd_node::VXLAN;
use units::{BOOT, Machine};

const ONE: &str = "hdss7-21";

fn units_end_and_begin_again_in_every_way_and_cost_no_packet() -> Result<()> {
    [units::NETD, units::NFTABLES].iter().try_for_each(units::ends_and_begins_again_in_every_way)
}

/// One certificate for etcd and for netd, each other's authority, and its key; as files of `owner` on `host`.
fn write_pki(host: &Host, certificate: &str, key: &str, owner: &str) -> Result<()> {
    host.run(&["mkdir", "-p", "/etc/etcd/pki"])?;
    for (name, text) in [("ca.crt", certificate), ("netd.crt", certificate), ("netd.key", key)] {
        let path = format!("/etc/etcd/pki/{name}");
        host.write(&path, text)?;
        host.run(&["chown", owner, &path])?;
        host.run(&["chmod", "0400", &path])?;
    }
    Ok(())
}

fn certificate() -> Result<(String, String)> {
    let mut params = rcgen::CertificateParams::new(vec!["10.4.7.12".to_owned()])?;
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = rcgen::KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// netd runs without the right to read other users' files, and etcd wants its certificate.
fn key_of_another_user_is_read_by_systemd() -> Result<()> {
    let cluster = lab::Cluster::reference()?;
    let (host, store) = (cluster.host(ONE)?, cluster.host("hdss7-12")?);
    let (certificate, key) = certificate()?;
    write_pki(store, &certificate, &key, "0:0")?;
    write_pki(host, &certificate, &key, "1234:1234")?;
    let files = |ca: &str, cert: &str, key: &str| {
        ["/ca.crt", "/netd.crt", "/netd.key"]
            .iter()
            .zip([ca, cert, key])
            .map(|(file, flag)| format!("--{flag}=/etc/etcd/pki{file}"))
            .collect::<Vec<_>>()
    };
    let serve = files("trusted-ca-file", "cert-file", "key-file");
    let urls = ["--listen-client-urls=https://10.4.7.12:2379", "--advertise-client-urls=https://10.4.7.12:2379"];
    let data = ["--client-cert-auth", "--data-dir=/run/etcd-tls"];
    let _etcd = store.command("etcd").args(urls).args(data).args(&serve).start("etcd")?;
    let ask = files("cacert", "cert", "key");
    let put = ["--endpoints=https://10.4.7.12:2379", "put", "/coreos.com/network/config", VXLAN];
    eventually(BOOT, || store.command("etcdctl").env("ETCDCTL_API", "3").args(&ask).args(put).run().map(drop))?;
    let plain = "FLANNELD_ETCD_ENDPOINTS=https://10.4.7.12:2379\nFLANNELD_IFACE=eth0\n";
    let direct = "FLANNELD_ETCD_CAFILE=/etc/etcd/pki/ca.crt\nFLANNELD_ETCD_CERTFILE=/etc/etcd/pki/netd.crt\n\
                  FLANNELD_ETCD_KEYFILE=/etc/etcd/pki/netd.key\n";
    {
        let machine = Machine::boot(host, "netd", &format!("{plain}{direct}"), &[])?;
        eventually(BOOT, || {
            let log = machine.log()?;
            ensure!(log.contains("/etc/etcd/pki/netd.key") && log.contains("Permission denied"), "{log}");
            Ok(())
        })?;
    }
    let machine = Machine::boot(host, "netd", plain, &[units::configs().join("netd.service.d/tls.conf")])?;
    machine.eventually_active()
}

fn main() -> ExitCode {
    lab::harness::Suite::new(&[Need::Vxlan, Need::Nftables]).unless(units::unbootable()).run(lab::tests![
        units_end_and_begin_again_in_every_way_and_cost_no_packet,
        key_of_another_user_is_read_by_systemd,
    ])
}
