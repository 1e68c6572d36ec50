//! Files of operators that cannot be used: each is named with what was found and what to do, and nothing is issued.

use super::*;

/// The form that costs the least.
const EC: &str = "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out FILE";

/// What is said of a cluster's folder after `change`.
fn fault(change: impl Fn(&Folder), now: Time) -> String {
    let folder = Folder::new();
    folder.kubeadm(EC);
    change(&folder);
    let fault = Store::open(None, Some(folder.path()), now).unwrap_err().to_string();
    fault.replace(&format!("{}/", folder.path().display()), "")
}

fn wrong(change: impl Fn(&Folder)) -> String {
    fault(change, now())
}

#[test]
fn dates_of_an_authority_are_held_against_now() {
    let said = fault(|_| {}, now().plus_days(31));
    assert!(said.starts_with("ca.crt: it ended at 2") && said.contains("put a CA there that is valid"), "{said}");
    let said = fault(|_| {}, now().plus_days(-1));
    assert!(said.starts_with("ca.crt: it is not valid before 2") && said.contains("set the clock"), "{said}");
}

#[test]
fn a_key_that_does_not_fit_and_half_a_pair_are_named() {
    let said = wrong(|folder| folder.openssl(&EC.replace("FILE", "etcd/ca.key")));
    assert_eq!(
        said,
        "etcd/ca.crt: its key etcd/ca.key does not fit; put the key there that this certificate was made with"
    );
    let said = wrong(|folder| fs::remove_file(folder.file("front-proxy-ca.key")).unwrap());
    assert!(said.starts_with("front-proxy-ca.crt: front-proxy-ca.key is missing beside it"), "{said}");
    let said = wrong(|folder| fs::remove_file(folder.file("ca.crt")).unwrap());
    assert!(said.starts_with("ca.key: ca.crt is missing beside it"), "{said}");
    let said = wrong(|folder| folder.openssl(&EC.replace("FILE", "sa.key")));
    assert!(said.starts_with("sa.pub: its key sa.key does not fit"), "{said}");
}

#[test]
fn a_pipe_in_the_place_of_a_file_keeps_nobody_waiting() {
    let said = wrong(|folder| {
        fs::remove_file(folder.file("etcd/ca.key")).unwrap();
        nix::unistd::mkfifo(&folder.file("etcd/ca.key"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    });
    assert!(said.starts_with("etcd/ca.key: it cannot be read: it is a pipe"), "{said}");
    let said = wrong(|folder| fs::write(folder.file("ca.crt"), "x".repeat((1 << 20) + 1)).unwrap());
    assert!(said.starts_with("ca.crt: ") && said.contains("1048576 bytes"), "{said}");
}

#[test]
fn what_may_not_sign_is_no_authority() {
    let said = wrong(|folder| folder.root("ca", "/CN=a", &["basicConstraints=critical,CA:FALSE"]));
    assert!(said.starts_with("ca.crt: it is no CA: it does not say CA:TRUE"), "{said}");
    let said = wrong(|folder| folder.root("ca", "/CN=a", &["keyUsage=digitalSignature"]));
    assert!(said.starts_with("ca.crt: it is no CA: its uses have no signing of certificates"), "{said}");
}

#[test]
fn one_authority_for_two_purposes_is_refused() {
    let said = wrong(|folder| {
        for suffix in ["crt", "key"] {
            fs::copy(folder.file(&format!("ca.{suffix}")), folder.file(&format!("etcd/ca.{suffix}"))).unwrap();
        }
    });
    assert!(said.starts_with("etcd/ca.crt: it is the cluster's CA and etcd's CA in one; give two"), "{said}");
}

#[test]
fn encrypted_keys_in_both_forms_are_refused_by_name() {
    for line in
        ["pkey -in ca.key -aes128 -passout pass:x -out ca.new", "ec -in ca.key -aes128 -passout pass:x -out ca.new"]
    {
        let said = wrong(|folder| {
            folder.openssl(line);
            fs::rename(folder.file("ca.new"), folder.file("ca.key")).unwrap();
        });
        assert!(said.starts_with("ca.key: the key is encrypted") && said.contains("openssl pkey"), "{line}: {said}");
    }
}

#[test]
fn bundles_garbage_and_der_are_refused_by_name() {
    let said = wrong(|folder| folder.put("ca.crt", &format!("{}{}", folder.get("ca.crt"), folder.get("etcd/ca.crt"))));
    assert!(said.starts_with("ca.crt: it has 2 blocks `CERTIFICATE`, a bundle"), "{said}");
    let said = wrong(|folder| folder.put("ca.key", &format!("{}{}", folder.get("ca.key"), folder.get("sa.key"))));
    assert!(said.starts_with("ca.key: it has 2 blocks `PRIVATE KEY`, a bundle"), "{said}");
    let said = wrong(|folder| folder.openssl("x509 -in etcd/ca.crt -outform der -out ca.crt"));
    assert!(said.starts_with("ca.crt: it has no PEM block `CERTIFICATE`"), "{said}");
    let said = wrong(|folder| folder.put("ca.crt", &folder.get("ca.crt").replace('M', "?")));
    assert_eq!(said, "ca.crt: line 1 is no PEM; copy the file anew");
    let said = wrong(|folder| folder.put("ca.crt", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"));
    assert!(said.starts_with("ca.crt: it is no X.509 certificate"), "{said}");
    let cut = |folder: &Folder, name: &str| {
        let text = folder.get(name);
        folder.put(name, &text[..text.len() / 2]);
    };
    assert_eq!(wrong(|folder| cut(folder, "etcd/ca.key")), "etcd/ca.key: line 1 is no PEM; copy the file anew");
    assert_eq!(
        wrong(|folder| folder.put("sa.key", "")),
        "sa.key: it has no PEM block `PRIVATE KEY`; put one there (openssl x509 -in FILE -inform der turns DER into PEM)"
    );
    let said = wrong(|folder| folder.put("ca.crt", &"-".repeat((1 << 20) + 1)));
    assert!(said.starts_with("ca.crt: it has more than 1048576 bytes"), "{said}");
    let said = wrong(|folder| {
        fs::remove_file(folder.file("ca.crt")).unwrap();
        fs::create_dir(folder.file("ca.crt")).unwrap();
    });
    assert!(said.starts_with("ca.crt: it cannot be read: Is a directory"), "{said}");
}

#[test]
fn kinds_of_keys_that_cannot_be_used_are_named_with_those_that_can() {
    for line in ["genrsa -out ca.key 1024", "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521 -out ca.key"] {
        let said = wrong(|folder| folder.openssl(line));
        assert!(said.starts_with("ca.key: it is no key that can be used; accepted: RSA from 2048 bits"), "{said}");
    }
    let said = wrong(|folder| folder.openssl("genpkey -algorithm ED25519 -out sa.key"));
    assert!(said.starts_with("sa.key: an Ed25519 key signs no tokens"), "{said}");
}

#[test]
fn a_folder_of_another_cluster_is_refused() {
    let (folder, given) = (Folder::new(), Folder::new());
    write(folder.path(), &mut Store::open(None, None, now()).unwrap(), &member());
    given.kubeadm(EC);
    let said = Store::open(Some(folder.path()), Some(given.path()), now()).unwrap_err().to_string();
    assert!(said.contains("pki/ca.crt: it is not the CA that was given as "), "{said}");
    assert!(said.contains("render into an empty folder"), "{said}");
}

#[test]
fn an_authority_that_was_renewed_with_its_key_takes_the_place_of_the_one_before() {
    let (folder, given) = (Folder::new(), Folder::new());
    given.kubeadm(EC);
    write(folder.path(), &mut Store::open(None, Some(given.path()), now()).unwrap(), &kubelet());
    given.root("ca", "/CN=kubernetes", &["keyUsage=critical,keyCertSign,cRLSign"]);
    let mut store = Store::open(Some(folder.path()), Some(given.path()), now()).unwrap();
    assert_eq!(store.authority(Ca::Cluster).certificate_pem, given.get("ca.crt"));
    store.issue(&kubelet()).unwrap();
    assert_eq!(store.issued(), [], "what the key signed is believed as before");
}

#[test]
fn a_folder_that_is_given_for_its_authorities_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let (empty, absent) = (folder.path().to_path_buf(), folder.path().join("pki"));
    for given in [empty, absent] {
        let fault = Store::open(None, Some(&given), NOW).unwrap_err();
        assert_eq!((fault.file, fault.flaw), (given.display().to_string(), Flaw::NoAuthorities));
    }
}
