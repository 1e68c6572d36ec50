//! What an API server is started with: its files and its flags.
//!
//! Invariant: keys and tokens are those of one server and lie on its machine alone.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use rcgen::KeyPair;

use super::authority::Authority;
use super::{Release, etcd};
use crate::host::Host;

const FOLDER: &str = "/run/kubernetes";
pub(super) const PORT: u16 = 6443;
/// Where Services have their addresses, as on the reference cluster.
const SERVICES: &str = "192.168.0.0/16";
/// Whoever has it may do everything.
pub(super) const ADMIN: &str = "admin-token";
/// Whoever has it is known and may do nothing (but what everybody may).
pub(super) const STRANGER: &str = "stranger-token";

/// Writes the files that the flags name.
pub(super) fn write_files(host: &Host, authority: &Authority, own: IpAddr) -> Result<()> {
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let shown = authority.server(&names, &[own, Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(192, 168, 0, 1).into()])?;
    let accounts = KeyPair::generate()?;
    for (name, text) in [
        ("ca.crt", authority.pem()),
        ("tls.crt", shown.certificate),
        ("tls.key", shown.key),
        ("accounts.key", accounts.serialize_pem()),
        ("accounts.pub", accounts.public_key_pem()),
        ("tokens.csv", tokens()),
    ] {
        host.write(format!("{FOLDER}/{name}"), text)?;
    }
    Ok(())
}

/// For a server without controllers: none makes the account that each Pod would wait for.
pub(super) const WITHOUT_ACCOUNTS: &str = "--disable-admission-plugins=ServiceAccount";

/// Its flags.
pub(super) fn arguments(host: &Host, release: Release) -> Vec<String> {
    let file = |name: &str| format!("{FOLDER}/{name}");
    let mut flags = vec![
        format!("--etcd-servers={}", etcd::URL),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--secure-port={PORT}"),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--token-auth-file={}", file("tokens.csv")),
        format!("--client-ca-file={}", file("ca.crt")),
    ];
    match release {
        Release::Modern => flags.push(format!("--cert-dir={FOLDER}")),
        Release::V1_20 => flags.extend([
            format!("--tls-cert-file={}", file("tls.crt")),
            format!("--tls-private-key-file={}", file("tls.key")),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ]),
    }
    match (release, host.address()) {
        (Release::Modern, _) => {}
        (Release::V1_20, Ok(address)) => flags.push(format!("--advertise-address={address}")),
        // It wants one that is no loopback, and need not publish it.
        (Release::V1_20, Err(_)) => {
            flags.extend(["--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none"].map(str::to_owned));
        }
    }
    flags
}

fn tokens() -> String {
    format!("{ADMIN},admin,admin,\"system:masters\"\n{STRANGER},stranger,stranger,\n")
}
