//! An etcd that is spoken to over TLS with client certificates.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use lab::{Host, Process, eventually};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use super::SOON;

pub(crate) const ENDPOINT: &str = "https://10.4.7.12:2378";
pub(crate) const FOLDER: &str = "/run/tls";
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// Writes a new CA, and what it signs for `lifetime`, to both machines.
pub(crate) fn renew(hosts: [&Host; 2], lifetime: Duration) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let end = rcgen::date_time_ymd(1970, 1, 1) + now + lifetime;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "CA of the test");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let issued = |subject: &str| -> Result<(String, String)> {
        let mut params = CertificateParams::new(vec![subject.to_owned()])?;
        params.not_after = end;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &ca)?.pem(), key.serialize_pem()))
    };
    for (host, (certificate, key)) in hosts.into_iter().zip([issued("10.4.7.12")?, issued("netd")?]) {
        for (name, text) in [("ca.pem", ca.pem()), ("own.pem", certificate), ("own.key", key)] {
            host.write(format!("{FOLDER}/{name}"), &text)?;
        }
    }
    Ok(())
}

/// A member that serves with TLS, and without on its own loopback.
pub(crate) fn etcd(host: &Host) -> Result<Process> {
    let urls = format!("http://127.0.0.1:2379,{ENDPOINT}");
    let file = |name: &str| format!("{FOLDER}/{name}");
    let flags = [
        ("--data-dir", "/run/etcd".to_owned()),
        ("--listen-client-urls", urls.clone()),
        ("--advertise-client-urls", urls),
        ("--cert-file", file("own.pem")),
        ("--key-file", file("own.key")),
        ("--trusted-ca-file", file("ca.pem")),
        ("--client-cert-auth", "true".to_owned()),
        ("--logger", "zap".to_owned()),
        ("--log-level", "warn".to_owned()),
    ];
    let flags = flags.into_iter().map(|(flag, value)| format!("{flag}={value}"));
    let etcd = host.command("etcd").args(flags).start("etcd")?;
    eventually(SOON, || put(host, "/ready", "yes"))?;
    Ok(etcd)
}

pub(crate) fn put(host: &Host, key: &str, value: &str) -> Result<()> {
    host.command("etcdctl").env("ETCDCTL_API", "3").args(["put", "--", key, value]).run().map(drop)
}
