//! A cluster by `netdadm apply` alone: etcd with TLS on three machines that boot, netd on two of them, through reboots and a cold start.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netdadm_host;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Cluster, Host, Need, Topology, eventually};
use netdadm_host::{Rendered, apply};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(90);
const THREE: &str = "network 10.4.7.0/24\nhdss7-12.host.com 10.4.7.12 etcd\nhdss7-21.host.com 10.4.7.21 etcd node\n\
                     hdss7-22.host.com 10.4.7.22 etcd node\n";
const NAMES: [&str; 3] = ["hdss7-12", "hdss7-21", "hdss7-22"];
const PKI: &str = "/etc/etcd/pki";
const UNIT: &str = "[Unit]\nDescription=etcd\nAfter=network-online.target\nWants=network-online.target\n[Service]\nType=notify\n\
                    User=etcd\nStateDirectory=etcd\nStateDirectoryMode=0700\nEnvironmentFile=/etc/etcd/etcd.conf\nExecStart=/usr/bin/etcd\n\
                    Restart=always\nRestartSec=2\nStartLimitIntervalSec=0\nTimeoutStartSec=infinity\n[Install]\nWantedBy=multi-user.target\n";

/// The authority of this etcd.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "etcd-ca");
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// A certificate of a host for both ends of a connection, and its key.
    fn issue(&self, host: &Host) -> Result<(String, String)> {
        let mut params = CertificateParams::new(vec![host.name().to_owned(), "localhost".to_owned()])?;
        params
            .subject_alt_names
            .extend([SanType::IpAddress(host.address()?.into()), SanType::IpAddress([127, 0, 0, 1].into())]);
        params.distinguished_name.push(DnType::CommonName, host.name());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.0)?.pem(), key.serialize_pem()))
    }
}

/// What a member of etcd gets.
fn member(host: &Host, cluster: &Cluster, authority: &Authority) -> Result<Rendered> {
    let mut rendered = Rendered::for_host(host);
    let (certificate, key) = authority.issue(host)?;
    let address = host.address()?;
    let members: Result<Vec<String>> =
        cluster.hosts().map(|host| Ok(format!("{}=https://{}:2380", host.name(), host.address()?))).collect();
    let mut conf = format!(
        "ETCD_NAME={0}\nETCD_DATA_DIR=/var/lib/etcd/default.etcd\nETCD_LISTEN_PEER_URLS=https://{address}:2380\n\
         ETCD_LISTEN_CLIENT_URLS=https://{address}:2379,https://127.0.0.1:2379\nETCD_ADVERTISE_CLIENT_URLS=https://{address}:2379\n\
         ETCD_INITIAL_ADVERTISE_PEER_URLS=https://{address}:2380\nETCD_INITIAL_CLUSTER={1}\n",
        host.name(),
        members?.join(",")
    );
    for side in ["", "PEER_"] {
        conf += &format!(
            "ETCD_{side}CERT_FILE={PKI}/member.crt\nETCD_{side}KEY_FILE={PKI}/member.key\n\
             ETCD_{side}TRUSTED_CA_FILE={PKI}/ca.crt\nETCD_{side}CLIENT_CERT_AUTH=true\n"
        );
    }
    rendered.file("/etc/etcd/etcd.conf", &conf).file("/etc/systemd/system/etcd.service", UNIT);
    rendered.file(&format!("{PKI}/ca.crt"), &authority.0.pem()).file(&format!("{PKI}/member.crt"), &certificate);
    rendered.owned(&format!("{PKI}/member.key"), "0600", "etcd:etcd", &key);
    rendered.unit("etcd.service", &["/etc/etcd/etcd.conf"]).with("wait", json!(false));
    Ok(rendered)
}

/// Adds netd with a certificate of its own.
fn add_netd(rendered: &mut Rendered, host: &Host, authority: &Authority) -> Result<()> {
    let (certificate, key) = authority.issue(host)?;
    let unit = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/systemd/netd.service"))?;
    let endpoints = NAMES.map(|name| format!("https://10.4.7.{}:2379", name.rsplit('-').next().unwrap())).join(",");
    let conf = format!(
        "FLANNELD_ETCD_ENDPOINTS={endpoints}\nFLANNELD_IFACE=eth0\nFLANNELD_ETCD_CAFILE=/etc/netd/ca.crt\n\
         FLANNELD_ETCD_CERTFILE=/etc/netd/client.crt\nFLANNELD_ETCD_KEYFILE=/etc/netd/client.key\n"
    );
    rendered.file("/etc/default/netd", &conf).file("/etc/systemd/system/netd.service", &unit);
    rendered.file("/etc/netd/ca.crt", &authority.0.pem()).file("/etc/netd/client.crt", &certificate);
    rendered.owned("/etc/netd/client.key", "0600", "root:root", &key);
    rendered.unit("netd.service", &["/etc/default/netd", "/etc/systemd/system/netd.service"]);
    Ok(())
}

fn etcdctl(host: &Host, words: &[&str]) -> Result<String> {
    let tls = [format!("--cacert={PKI}/ca.crt"), format!("--cert={PKI}/member.crt"), format!("--key={PKI}/member.key")];
    let command = host.command("etcdctl").env("ETCDCTL_API", "3").args(tls).arg("--endpoints=https://127.0.0.1:2379");
    Ok(command.args(words).run()?.stdout)
}

fn every_member_serves(cluster: &Cluster) -> Result<()> {
    cluster.hosts().try_for_each(|host| eventually(SOON, || etcdctl(host, &["endpoint", "health"]).map(drop)))
}

fn subnet(host: &Host) -> Result<String> {
    let state = host.run(&["systemctl", "is-active", "netd"])?.stdout;
    ensure!(state.trim() == "active", "netd is {state}");
    let file = host.read("/run/flannel/subnet.env")?;
    let line = file.lines().find(|line| line.starts_with("FLANNEL_SUBNET="));
    Ok(line.unwrap_or_default().to_owned())
}

fn three_members_with_tls_and_netd_come_up_by_apply_and_again_after_a_cold_start() -> Result<()> {
    let cluster = Cluster::boot(&Topology::parse(THREE)?)?;
    let authority = Authority::new()?;
    let mut rendered = Vec::new();
    for host in cluster.hosts() {
        let member = member(host, &cluster, &authority)?;
        let printed = member.on(host)?;
        ensure!(printed.contains("etcd.service is asked to start, and not waited for"), "{printed}");
        rendered.push((host, member));
    }
    every_member_serves(&cluster)?;
    etcdctl(
        cluster.host("hdss7-12")?,
        &["put", "/coreos.com/network/config", r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}"#],
    )?;
    // From now on a member has a leader: it is waited for, until it says so itself to a client that has a certificate.
    for (host, member) in &mut rendered {
        let at = |file: &str| format!("{PKI}/{file}");
        member.with("wait", json!(true)).with(
            "ready",
            json!({
                "url": "https://127.0.0.1:2379/health", "authority": at("ca.crt"), "certificate": at("member.crt"),
                "key": at("member.key"), "seconds": 60,
            }),
        );
        let conf = member.files.get_mut("/etc/etcd/etcd.conf").unwrap();
        conf.2 += "ETCD_SNAPSHOT_COUNT=5000\n";
        if host.name() != "hdss7-12.host.com" {
            add_netd(member, host, &authority)?;
        }
        let printed = member.on(host)?;
        ensure!(printed.contains("etcd.service is ready"), "{printed}");
    }
    let nodes = [cluster.host("hdss7-21")?, cluster.host("hdss7-22")?];
    let before = [subnet(nodes[0])?, subnet(nodes[1])?];
    ensure!(before[0].starts_with("FLANNEL_SUBNET=172.7.") && before[0] != before[1], "{before:?}");
    // One host, then all of them at once.
    for names in [&NAMES[2..], &NAMES[..]] {
        cluster.reboot(names)?;
        every_member_serves(&cluster)?;
        for (node, subnet_before) in nodes.iter().zip(&before) {
            eventually(SOON, || {
                let now = subnet(node)?;
                ensure!(now == *subnet_before, "{now}, was {subnet_before}");
                Ok(())
            })?;
        }
    }
    for (host, member) in &rendered {
        let printed = apply(host, &member.host).run()?.stdout;
        ensure!(printed.contains("nothing to do"), "{printed}");
    }
    Ok(())
}

fn main() -> ExitCode {
    let suite = lab::harness::Suite::new(&[Need::Vxlan, Need::Nftables]);
    suite
        .unless(Cluster::boot_obstacle())
        .run(lab::tests![three_members_with_tls_and_netd_come_up_by_apply_and_again_after_a_cold_start,])
}
