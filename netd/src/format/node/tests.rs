//! What flannel writes is read, what is written is flannel's.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;

const BOTH: Families = PerFamily::new(true, true);
const V4: Families = PerFamily::new(true, false);

fn prefix() -> AnnotationPrefix {
    prefix::DEFAULT.parse().unwrap()
}

/// A Node as an API server shows it.
fn node(spec: &Value, annotations: &[(&str, &str)]) -> Node {
    let named = annotations.iter().map(|(name, value)| (format!("flannel.alpha.coreos.com/{name}"), (*value).into()));
    let annotations: serde_json::Map<String, Value> =
        named.chain([("node.alpha.kubernetes.io/ttl".to_owned(), "0".into())]).collect();
    let metadata = json!({"name": "n1", "uid": "u-1", "creationTimestamp": "2026-11-27T06:45:05Z",
        "resourceVersion": "1234", "labels": {"a": "b"}, "annotations": annotations,
        "managedFields": [{"manager": "kubelet"}]});
    let status = json!({"conditions": [{"type": "Ready", "status": "True"}], "images": [{"names": ["x"]}]});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
}

/// What flannel writes on a node with both families.
const DUAL: [(&str, &str); 6] = [
    ("kube-subnet-manager", "true"),
    ("backend-type", "vxlan"),
    ("backend-data", r#"{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}"#),
    ("public-ip", "192.0.2.1"),
    ("backend-v6-data", r#"{"VNI":1,"VtepMAC":"02:11:22:33:44:66"}"#),
    ("public-ipv6", "2001:db8::1"),
];

fn dual_spec() -> Value {
    json!({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fc00:0:0:1::/64"]})
}

fn render(node: &Node, families: Families) -> Result<(String, String), String> {
    prefix().lease(node, families).unwrap().map(|lease| (lease.key.to_string(), lease.attrs.render()))
}

const DUAL_VALUE: &str = r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:11:22:33:44:55"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:11:22:33:44:66"}}"#;

#[test]
fn a_node_that_flannel_marked_is_the_lease_that_etcd_would_hold() {
    let lease = render(&node(&dual_spec(), &DUAL), BOTH).unwrap();
    assert_eq!(lease, ("10.244.1.0-24&fc00:0:0:1::-64".to_owned(), DUAL_VALUE.to_owned()));
    for (kind, data, value) in [
        ("host-gw", "null", r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#),
        ("ipip", "null", r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"ipip"}"#),
        ("", "null", r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#),
        (
            "wireguard",
            r#"{"PublicKey":"mvYzHQ0Ks4LBoVPzf8JgBxKwYRAJxtPcmNCpxdpnVgs=","Port":51820}"#,
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"mvYzHQ0Ks4LBoVPzf8JgBxKwYRAJxtPcmNCpxdpnVgs=","Port":51820}}"#,
        ),
        (
            "extension",
            r#""output""#,
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"extension","BackendData":"output"}"#,
        ),
    ] {
        let said = [
            ("kube-subnet-manager", "true"),
            ("backend-type", kind),
            ("backend-data", data),
            ("public-ip", "192.0.2.1"),
        ];
        let node = node(&json!({"podCIDR": "10.244.1.0/24"}), &said);
        assert_eq!(render(&node, V4), Ok(("10.244.1.0-24".to_owned(), value.to_owned())), "{kind}");
    }
}

#[test]
fn what_is_written_is_what_flannel_writes_and_only_what_differs() {
    let (fresh, prefix) = (node(&dual_spec(), &[]), prefix());
    let families = || IpFamily::ALL.into_iter();
    let attrs = LeaseAttrs::parse(DUAL_VALUE.as_bytes(), families()).unwrap();
    let patch = annotations_patch(&prefix.differing(&fresh, &attrs)).to_string();
    assert_eq!(
        patch,
        r#"{"metadata":{"annotations":{"flannel.alpha.coreos.com/backend-data":"{\"VNI\":1,\"VtepMAC\":\"02:11:22:33:44:55\"}","flannel.alpha.coreos.com/backend-type":"vxlan","flannel.alpha.coreos.com/backend-v6-data":"{\"VNI\":1,\"VtepMAC\":\"02:11:22:33:44:66\"}","flannel.alpha.coreos.com/kube-subnet-manager":"true","flannel.alpha.coreos.com/public-ip":"192.0.2.1","flannel.alpha.coreos.com/public-ipv6":"2001:db8::1"}}}"#
    );
    assert!(prefix.differing(&node(&dual_spec(), &DUAL), &attrs).is_empty(), "flannel's own are left as they are");
    let stripped: Vec<_> = DUAL.into_iter().filter(|(name, _)| *name != "public-ip").collect();
    let patch = annotations_patch(&prefix.differing(&node(&dual_spec(), &stripped), &attrs)).to_string();
    assert_eq!(patch, r#"{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip":"192.0.2.1"}}}"#);
    // Dataless backends write `null`, and alloc an empty type.
    for (value, texts) in [
        (
            r#"{"PublicIP":"192.0.2.1","BackendType":"host-gw"}"#,
            r#"backend-data":"null","flannel.alpha.coreos.com/backend-type":"host-gw""#,
        ),
        (r#"{"PublicIP":"192.0.2.1"}"#, r#"backend-data":"null","flannel.alpha.coreos.com/backend-type":"""#),
    ] {
        let attrs = LeaseAttrs::parse(value.as_bytes(), families()).unwrap();
        let patch = annotations_patch(&prefix.differing(&fresh, &attrs)).to_string();
        assert!(patch.contains(texts) && !patch.contains("v6"), "{patch}");
    }
    let v6 = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"02:11:22:33:44:66"}}"#;
    let attrs = LeaseAttrs::parse(v6.as_bytes(), [IpFamily::V6].into_iter()).unwrap();
    let written: Vec<String> = prefix.differing(&fresh, &attrs).into_keys().collect();
    assert_eq!(written.len(), 4, "nothing of IPv4: {written:?}");
}

#[test]
fn an_operators_annotations_count_before_the_nodes_own_addresses() {
    let said = [("public-ip-overwrite", "203.0.113.7"), ("node-public-ip", "10.4.7.21"), ("node-public-ipv6", "junk")];
    let (node, prefix) = (node(&dual_spec(), &said), prefix());
    let attrs = LeaseAttrs::parse(DUAL_VALUE.as_bytes(), IpFamily::ALL.into_iter()).unwrap();
    let wanted = prefix.differing(&node, &attrs);
    assert_eq!(wanted["flannel.alpha.coreos.com/public-ip"], "203.0.113.7");
    assert_eq!(wanted["flannel.alpha.coreos.com/public-ipv6"], "2001:db8::1");
    assert_eq!(prefix.node_public_ips(&node), PerFamily::new(Some([10, 4, 7, 21].into()), None));
    assert_eq!(
        prefix.unusable(&node),
        [
            r#"annotation flannel.alpha.coreos.com/node-public-ipv6: "junk" is no address of IPv6 that a host has; it counts for nothing"#
        ]
    );
}

#[test]
fn an_annotation_with_the_address_of_no_host_counts_for_nothing_and_is_named() {
    let attrs = LeaseAttrs::parse(DUAL_VALUE.as_bytes(), IpFamily::ALL.into_iter()).unwrap();
    for (names, address) in [
        (["node-public-ip", "public-ip-overwrite"], "127.0.0.1"),
        (["node-public-ip", "public-ip-overwrite"], "0.0.0.0"),
        (["node-public-ip", "public-ip-overwrite"], "224.0.0.1"),
        (["node-public-ip", "public-ip-overwrite"], "255.255.255.255"),
        (["node-public-ipv6", "public-ipv6-overwrite"], "::1"),
        (["node-public-ipv6", "public-ipv6-overwrite"], "fe80::21"),
        (["node-public-ipv6", "public-ipv6-overwrite"], "::ffff:10.4.7.21"),
    ] {
        let (node, prefix) = (node(&dual_spec(), &names.map(|name| (name, address))), prefix());
        assert_eq!(prefix.node_public_ips(&node), PerFamily::default(), "{address}");
        let wanted = prefix.differing(&node, &attrs);
        assert!(wanted.values().all(|value| value != address), "{wanted:?}");
        let named = prefix.unusable(&node);
        assert!(named.len() == 2 && named.iter().all(|text| text.contains(address)), "{named:?}");
    }
}

#[test]
fn a_node_with_something_usable_of_one_family_is_served_in_it() {
    let without = |gone: &str| DUAL.into_iter().filter(|(name, _)| *name != gone).collect::<Vec<_>>();
    for gone in ["public-ipv6", "backend-v6-data"] {
        let lease = prefix().lease(&node(&dual_spec(), &without(gone)), BOTH).unwrap().unwrap();
        assert!(lease.attrs.public_ips.v4.is_some() && lease.attrs.backend.macs().v4.is_some(), "{gone}");
    }
    let mut broken = DUAL;
    broken[2].1 = "{junk";
    let lease = prefix().lease(&node(&dual_spec(), &broken), BOTH).unwrap().unwrap();
    assert!(lease.attrs.backend.macs().v6.is_some() && lease.attrs.backend.macs().v4.is_none());
    // Of a network without IPv6 nothing of it is read.
    let lease = prefix().lease(&node(&dual_spec(), &DUAL), V4).unwrap().unwrap();
    assert_eq!((lease.key.to_string().as_str(), lease.attrs.public_ips.v6), ("10.244.1.0-24", None));
}

#[test]
fn pod_cidrs_are_one_of_each_family_in_any_order() {
    let read = |spec: Value| node(&spec, &DUAL).pod_cidrs().map(|subnets| subnets.list());
    let both = Ok("10.244.1.0/24,fc00:0:0:1::/64".to_owned());
    assert_eq!(read(json!({"podCIDR": "10.244.1.0/24"})), Ok("10.244.1.0/24".to_owned()));
    assert_eq!(read(dual_spec()), both);
    assert_eq!(read(json!({"podCIDR": "fc00:0:0:1::/64", "podCIDRs": ["fc00:0:0:1::/64", "10.244.1.0/24"]})), both);
    assert_eq!(read(json!({"podCIDRs": ["fc00:0:0:1::/64"]})), Ok("fc00:0:0:1::/64".to_owned()));
    for wrong in [json!(["10.244.1.0/24", "10.244.2.0/24"]), json!(["10.244.1.0"]), json!(["10.244.1.1/32"])] {
        assert!(read(json!({"podCIDRs": wrong})).is_err());
    }
    let none = node(&json!({}), &DUAL);
    assert_eq!(prefix().lease(&none, BOTH), Some(Err("it has no podCIDR".to_owned())));
    let v6 = node(&json!({"podCIDR": "fc00:0:0:1::/64"}), &DUAL);
    assert_eq!(
        prefix().lease(&v6, V4),
        Some(Err("it has no podCIDR of IPv4, which is what the network has".to_owned()))
    );
}

#[test]
fn a_node_that_no_subnet_manager_has_marked_is_no_lease() {
    for value in ["", "false", "TRUE"] {
        let said = DUAL.map(|(name, text)| (name, if name == "kube-subnet-manager" { value } else { text }));
        assert_eq!(prefix().lease(&node(&dual_spec(), &said), BOTH), None);
    }
    let other: AnnotationPrefix = "example.org/pods".parse().unwrap();
    assert_eq!(other.lease(&node(&dual_spec(), &DUAL), BOTH), None, "another network's annotations");
    let said = [("kube-subnet-manager", "true"), ("public-ip", "10.4.7")];
    let error = render(&node(&dual_spec(), &said), V4).unwrap_err();
    assert!(
        error.starts_with(r#"annotation flannel.alpha.coreos.com/public-ip: "\"10.4.7\"""#) || error.contains("10.4.7"),
        "{error}"
    );
}

#[test]
fn of_a_node_only_what_is_needed_is_kept() {
    let kept = node(&dual_spec(), &DUAL);
    assert_eq!(kept.metadata.annotations.len(), DUAL.len());
    assert_eq!((kept.revision(), kept.created()), (1234, 20_261_127_064_505));
    let bare: OwnNode = serde_json::from_value(json!({"metadata": {"name": "n", "annotations": null}})).unwrap();
    assert!(bare.node.metadata.annotations.is_empty() && bare.status.conditions.is_empty());
    assert_eq!((bare.node.revision(), bare.node.created()), (0, 0));
}

#[test]
fn an_annotation_of_more_than_64_kib_is_refused_by_its_name_and_others_of_any_length_are_passed_over() {
    let read = |name: &str, length: usize| {
        let annotations = json!({name: "x".repeat(length)});
        serde_json::from_value::<Node>(json!({"metadata": {"name": "n1", "annotations": annotations}}))
    };
    let name = "flannel.alpha.coreos.com/backend-data";
    assert_eq!(read(name, 64 * 1024).unwrap().metadata.annotations[0].1.len(), 65_536);
    let error = read(name, 64 * 1024 + 1).unwrap_err().to_string();
    assert!(error.contains(&format!("annotation {name} has 65537 bytes; accepted: up to 65536")), "{error}");
    assert!(read("example.com/notes", 1 << 20).unwrap().metadata.annotations.is_empty());
}

#[test]
fn the_condition_is_flannels_and_its_opposite() {
    let now = Duration::from_secs(1_795_762_705);
    // As flannel sends it, whatever the order of the members.
    assert_eq!(
        condition_patch(&Condition::Stands, now),
        serde_json::from_str::<Value>(r#"{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False","lastHeartbeatTime":"2026-11-27T06:58:25Z","lastTransitionTime":"2026-11-27T06:58:25Z","reason":"FlannelIsUp","message":"Flannel is running on this node"}]}}"#).unwrap()
    );
    let broken = Condition::Broken("links: 0 of 1 rows in place".to_owned());
    assert_eq!(condition_patch(&broken, now)["status"]["conditions"][0]["status"], "True");
    let own = |status: &str, reason: &str, message: &str| -> OwnNode {
        let condition = json!({"type": "NetworkUnavailable", "status": status, "reason": reason, "message": message});
        serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": {"conditions": [condition]}})).unwrap()
    };
    let stands = Condition::Stands;
    assert_eq!(stands.observed(&own("False", "FlannelIsUp", "Flannel is running on this node")), Observed::Same);
    assert_eq!(stands.observed(&own("False", "RouteCreated", "")), Observed::OtherWords);
    assert_eq!(stands.observed(&own("True", "NoRouteCreated", "")), Observed::Differs);
    assert_eq!(stands.observed(&OwnNode::default()), Observed::Differs);
    assert_eq!(broken.observed(&own("False", "FlannelIsUp", "")), Observed::Differs);
}
