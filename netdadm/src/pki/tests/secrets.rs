//! No key is in what is printed.

use super::*;

/// The private number of a P-256 key in PKCS #8: its public half stands behind it, and in certificates too.
const NUMBER: std::ops::Range<usize> = 36..68;

/// The private half of a key in pieces: of its base64, of its bytes as hex, and as a derived Debug prints them.
fn pieces(pem: &str) -> Vec<String> {
    let der = super::super::pem::parse(pem.as_bytes()).unwrap().remove(0).der;
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let base64 = base64.as_bytes()[48..88].chunks(8).map(|part| String::from_utf8_lossy(part).into_owned());
    let number = &der[NUMBER];
    let hex = number.chunks(4).map(|part| part.iter().map(|byte| format!("{byte:02x}")).collect());
    base64.chain(hex).chain(number.chunks(4).map(|part| format!("{part:?}").replace(['[', ']'], ""))).collect()
}

#[test]
fn no_value_and_no_message_has_a_byte_of_a_key() {
    let folder = Folder::new();
    folder.kubeadm("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out FILE");
    let mut store = Store::open(None, Some(folder.path()), now()).unwrap();
    let pair = store.issue(&member()).unwrap().clone();
    let server = "https://10.4.7.11:6443";
    let credentials = crate::kubeconfig::Credentials::Inline(&pair);
    let config = crate::kubeconfig::render("a", server, crate::kubeconfig::Trust::Inline(""), "b", credentials);
    let authority = store.authority(Ca::Cluster);
    let mut printed = format!("{store:?} {store:#?} {pair:?} {authority:?} {:?} {config:?}", authority.key);
    printed += &format!("{:?} {credentials:?}", super::super::pem::parse(folder.get("ca.key").as_bytes()).unwrap());
    // A key where a certificate belongs, one that is cut, one of another pair: every flaw that has seen a key.
    let key = folder.get("ca.key");
    let half = &key[..key.len() / 2];
    for (file, text) in
        [("ca.crt", key.as_str()), ("ca.key", half), ("etcd/ca.key", &key), ("sa.key", half), ("sa.pub", &key)]
    {
        let before = folder.get(file);
        folder.put(file, text);
        let fault = Store::open(None, Some(folder.path()), now()).unwrap_err();
        printed += &format!("{fault} {fault:?}");
        folder.put(file, &before);
    }
    let keys = [key.as_str(), pair.key_pem.expose(), store.service_account().0.expose()];
    for piece in keys.into_iter().flat_map(pieces) {
        assert!(!printed.contains(&piece), "{piece} in {printed}");
    }
    assert!(!printed.contains("PRIVATE KEY-----"));
}
