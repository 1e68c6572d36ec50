//! Authorities, pairs and what is wrong with them, beside openssl.

mod etcd;
mod faults;
mod kept;
mod openssl;
mod secrets;

use std::fs;
use std::path::Path;

use super::*;
use openssl::Folder;

/// Some day.
const NOW: Time = Time::new(1_795_791_600);

/// The time of this machine, which openssl judges by, and as much later as a test may take until it opens what openssl made.
fn now() -> Time {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Time::after_1970(since_1970 + std::time::Duration::from_secs(200))
}

/// A certificate of a member of etcd.
fn member() -> Request {
    let names = ["m1", "localhost", "127.0.0.1", "::1"].map(str::to_owned);
    Request::client("m1", "etcd/server", Ca::Etcd, "m1").serving(Usage::Both, names)
}

/// A certificate of a kubelet's user.
fn kubelet() -> Request {
    Request::client("m1", "kubelet-client", Ca::Cluster, "system:node:m1").of(Some("system:nodes"))
}

/// Writes authorities and a pair where the store reads them.
fn write(folder: &Path, store: &mut Store, request: &Request) {
    let put = |place: &Path, suffix: &str, text: &str| {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(store::suffixed(place, suffix), text).unwrap();
    };
    for ca in [Ca::Cluster, Ca::Etcd, Ca::FrontProxy] {
        let authority = store.authority(ca);
        put(&folder.join("pki").join(ca.path()), "crt", &authority.certificate_pem);
        put(&folder.join("pki").join(ca.path()), "key", authority.key.pem().expose());
    }
    let (private, public) = store.service_account();
    put(&folder.join("pki/sa"), "key", private.expose());
    put(&folder.join("pki/sa"), "pub", public);
    let pair = store.issue(request).unwrap();
    put(&store::place(folder, request), "crt", &pair.certificate_pem);
    put(&store::place(folder, request), "key", pair.key_pem.expose());
}

#[test]
fn a_certificate_says_what_was_asked_for_and_nothing_else() {
    let mut store = Store::open(None, None, NOW).unwrap();
    for request in [member(), kubelet()] {
        let authority = store.authority(request.authority).certificate.clone();
        let pair = store.issue(&request).unwrap().clone();
        let found = Certificate::read(pair.certificate_pem.as_bytes()).unwrap();
        assert_eq!(found.common_name, request.common_name);
        assert_eq!(found.organizations, request.organization.iter().cloned().collect::<Vec<_>>());
        assert_eq!((&found.names, &found.addresses), (&request.names, &request.addresses));
        assert_eq!((found.usage, found.authority, found.may_sign), (Some(request.usage), false, false));
        assert!(found.is_signed_by(&authority) && found.is_of(&Key::read(pair.key_pem.expose().as_bytes()).unwrap()));
        assert_eq!((found.from, found.end), (NOW.minus(300), NOW.plus_days(365)));
        assert!(pair.key_pem.expose().starts_with("-----BEGIN PRIVATE KEY-----\n"));
    }
    let ca = &store.authority(Ca::Cluster).certificate;
    assert_eq!((ca.from, ca.end), (NOW.minus(300), NOW.plus_days(3650)));
    assert!(ca.authority && ca.may_sign && ca.organizations.is_empty());
    assert_eq!(ca.common_name, "kubernetes");
}

#[test]
fn serials_are_random_and_positive() {
    let mut store = Store::open(None, None, NOW).unwrap();
    let mut serials = std::collections::BTreeSet::new();
    for number in 0..20 {
        let request = Request { path: format!("client-{number}"), ..kubelet() };
        let pair = store.issue(&request).unwrap();
        let serial = Certificate::read(pair.certificate_pem.as_bytes()).unwrap().serial;
        assert_eq!(serial.len(), 16);
        assert!(serial[0] < 0x80, "{serial:?}");
        serials.insert(serial);
    }
    assert_eq!(serials.len(), 20);
    // rcgen's own choice would be the same for the same key.
    let key = store.authority(Ca::Cluster).key.public_der();
    let again = Authority::create(Ca::Cluster, NOW).unwrap();
    assert_ne!(again.certificate.serial, store.authority(Ca::Cluster).certificate.serial);
    assert_ne!(again.key.public_der(), key);
}

#[test]
fn what_is_signed_ends_with_its_authority_at_the_latest() {
    let folder = Folder::new();
    let mut store = Store::open(None, None, NOW.plus_days(-3600)).unwrap();
    write(folder.path(), &mut store, &kubelet());
    let mut store = Store::open(Some(folder.path()), None, NOW).unwrap();
    let pair = store.issue(&kubelet()).unwrap().clone();
    let found = Certificate::read(pair.certificate_pem.as_bytes()).unwrap();
    assert_eq!(found.end, store.authority(Ca::Cluster).certificate.end);
    assert_eq!(NOW.days_until(found.end), 50);
    assert_eq!(store.issued()[0].reason, Reason::Ended(NOW.plus_days(-3600 + 365)));
}

#[test]
fn three_authorities_are_three() {
    let store = Store::open(None, None, NOW).unwrap();
    let keys: std::collections::BTreeSet<_> =
        [Ca::Cluster, Ca::Etcd, Ca::FrontProxy].map(|ca| store.authority(ca).key.public_der()).into();
    assert_eq!(keys.len(), 3);
    let issued: Vec<&str> = store.issued().iter().map(|issued| issued.path.as_str()).collect();
    assert_eq!(issued, ["ca", "etcd/ca", "front-proxy-ca", "sa"]);
}

/// Every certificate of every host of the reference cluster, judged by openssl.
#[test]
fn openssl_believes_every_certificate_of_a_cluster_for_its_use_its_names_and_its_addresses() {
    let folder = Folder::new();
    let text = fs::read_to_string(format!("{}/fuzz/topology/reference.yaml", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let topology = crate::check::text(&text).topology.unwrap();
    let mut store = Store::open(None, None, now()).unwrap();
    let requests: Vec<Request> = topology.hosts.iter().flat_map(|host| wanted(&topology, host)).collect();
    assert_eq!(requests.len(), (6 + 1) + 3 + 2 * (3 + 4));
    for request in requests.iter().chain(&wanted_by_operators(&topology)) {
        let ca = store.authority(request.authority).certificate_pem.clone();
        let pair = store.issue(request).unwrap().clone();
        folder.put("ca.crt", &ca);
        folder.put("leaf.crt", &pair.certificate_pem);
        for (serves, purpose) in [(request.usage.serves(), "sslserver"), (request.usage.connects(), "sslclient")] {
            let verdict = folder.verify(&["-purpose", purpose]);
            assert_eq!(verdict.is_ok(), serves, "{} as {purpose}: {verdict:?}", request.label());
        }
        for name in &request.names {
            folder.verify(&["-verify_hostname", name]).unwrap();
        }
        for address in &request.addresses {
            folder.verify(&["-verify_ip", &address.to_string()]).unwrap();
        }
        folder.verify(&["-verify_hostname", "stranger"]).unwrap_err();
    }
}
