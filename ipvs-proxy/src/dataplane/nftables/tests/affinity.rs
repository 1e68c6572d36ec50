//! Clients that stay: the rows as the nft tool prints them, and what changes of them.

use super::*;

fn sticky(kind: Kind, policy: Policy, choice: &Choice, seconds: u32) -> Frontend {
    Frontend {
        affinity: Some(Affinity { seconds, port: 80, prefix: None }),
        ..frontend(kind, policy, choice, Sources::Any)
    }
}

fn node(port: u16) -> FrontendKey {
    FrontendKey { protocol: Protocol::Tcp, place: NODE, port }
}

/// The names of the rows that changed, those that went with a `-`.
fn names(changes: &BTreeMap<RowKey, Option<Row>>) -> Vec<String> {
    let name = |(key, row): (&RowKey, &Option<Row>)| {
        let sign = if row.is_some() { "" } else { "-" };
        let text = key.to_string();
        format!("{sign}{}", text.rsplit("ip ipvs-proxy ").next().unwrap())
    };
    changes.iter().map(name).collect()
}

#[test]
fn addresses_of_a_port_share_the_clients_of_an_endpoint() {
    let (mut plane, mut kernel) = (plane(), Kernel::default());
    let two = choice(&[2], &[3]);
    kernel.take(put(
        &mut plane,
        at("192.168.0.10", 80),
        None,
        Some(&sticky(Kind::ClusterIp, Policy::Cluster, &two, 90)),
    ));
    kernel.take(put(&mut plane, node(30_080), None, Some(&sticky(Kind::NodePort, Policy::Cluster, &two, 90))));
    let text = kernel.text();
    assert!(
        text.contains(
            "192.168.0.10 . tcp . 80 counter comment \"default/web\" : goto lead/2/2m/2m/192.168.0.10/tcp/80"
        ),
        "{text}"
    );
    assert!(text.contains("tcp . 30080 counter comment \"default/web\" : goto lead/2m/2m/2m/node/tcp/30080"), "{text}");
    assert!(!text.contains(" : 172.7.21.2 . 8080"), "who is chosen is in the chains: {text}");
    assert_eq!(text.matches("\tset clients/").count(), 2, "{text}");
    assert_eq!(
        chain(&text, "endpoint/default/web/tcp/80/172.7.21.2/8080"),
        [
            "update @clients/default/web/tcp/80/172.7.21.2/8080 { ip saddr timeout 1m30s }",
            "meta l4proto tcp dnat to 172.7.21.2:8080"
        ]
    );
    let keep = [
        "ip saddr @clients/default/web/tcp/80/172.7.21.2/8080 goto endpoint/default/web/tcp/80/172.7.21.2/8080",
        "ip saddr @clients/default/web/tcp/80/172.7.21.3/8080 goto endpoint/default/web/tcp/80/172.7.21.3/8080",
        "numgen random mod 2 0 goto endpoint/default/web/tcp/80/172.7.21.2/8080",
        "goto endpoint/default/web/tcp/80/172.7.21.3/8080",
    ];
    assert_eq!(chain(&text, "keep/192.168.0.10/tcp/80/0"), keep);
    assert_eq!(chain(&text, "keep/node/tcp/30080/0"), keep);
    assert_eq!(
        chain(&text, "lead/2/2m/2m/192.168.0.10/tcp/80"),
        [
            format!("ip saddr != {PODS} meta mark set meta mark | 0x00004000"),
            "goto keep/192.168.0.10/tcp/80/0".to_owned()
        ]
    );
}

#[test]
fn clients_of_a_local_policy_know_only_endpoints_of_their_class() {
    let (mut plane, mut kernel) = (plane(), Kernel::default());
    let local = sticky(Kind::LoadBalancer, Policy::Local, &choice(&[2], &[3]), 90);
    kernel.take(put(&mut plane, at("10.4.7.99", 80), None, Some(&local)));
    let text = kernel.text();
    assert_eq!(
        chain(&text, "lead/2/2m/1-at-2/10.4.7.99/tcp/80"),
        [
            format!("ip saddr {PODS} goto keep/10.4.7.99/tcp/80/0"),
            "fib saddr type local meta mark set meta mark | 0x00004000".to_owned(),
            "fib saddr type local goto keep/10.4.7.99/tcp/80/0".to_owned(),
            "goto keep/10.4.7.99/tcp/80/2".to_owned(),
        ]
    );
    let here = "endpoint/default/web/tcp/80/172.7.21.2/8080";
    assert_eq!(
        chain(&text, "keep/10.4.7.99/tcp/80/2"),
        [format!("ip saddr @{} goto {here}", here.replace("endpoint", "clients")), format!("goto {here}")]
    );
    // No endpoint here: no list of which nobody is led to one.
    let elsewhere = sticky(Kind::LoadBalancer, Policy::Local, &choice(&[], &[3]), 90);
    kernel.take(put(&mut plane, at("10.4.7.99", 80), Some(&local), Some(&elsewhere)));
    assert_eq!(kernel.text().matches("\tchain keep/").count(), 1, "{}", kernel.text());
    kernel.take(put(&mut plane, at("10.4.7.99", 80), Some(&elsewhere), None));
    assert_eq!(kernel.0, Rows::new());
}

#[test]
fn an_endpoint_that_leaves_takes_its_clients_along_and_no_others() {
    let (mut plane, mut kernel) = (plane(), Kernel::default());
    let key = at("192.168.0.10", 80);
    let with = |pods: &[u8]| sticky(Kind::ClusterIp, Policy::Cluster, &choice(&[], pods), 90);
    kernel.take(put(&mut plane, key, None, Some(&with(&[2, 3]))));
    let changes = put(&mut plane, key, Some(&with(&[2, 3])), Some(&with(&[2, 4])));
    assert_eq!(
        names(&changes),
        [
            "-clients/default/web/tcp/80/172.7.21.3/8080",
            "clients/default/web/tcp/80/172.7.21.4/8080",
            "-endpoint/default/web/tcp/80/172.7.21.3/8080",
            "endpoint/default/web/tcp/80/172.7.21.4/8080",
            "keep/192.168.0.10/tcp/80/0",
        ]
        .map(|name| name.replace("clients", "@clients"))
    );
}

#[test]
fn another_time_is_a_change_of_rules_and_not_of_sets() {
    let (mut plane, mut kernel) = (plane(), Kernel::default());
    let with = |seconds| sticky(Kind::ClusterIp, Policy::Cluster, &choice(&[], &[2, 3]), seconds);
    let node_port = |seconds| sticky(Kind::NodePort, Policy::Cluster, &choice(&[], &[2, 3]), seconds);
    let (vip, node) = (at("192.168.0.10", 80), node(30_080));
    kernel.take(put(&mut plane, vip, None, Some(&with(90))));
    kernel.take(put(&mut plane, node, None, Some(&node_port(90))));
    let deltas = [
        Delta { key: vip, old: Some(with(90)), new: Some(with(60)) },
        Delta { key: node, old: Some(node_port(90)), new: Some(node_port(60)) },
    ];
    let changes = plane.rows(&deltas).nft;
    assert_eq!(names(&changes), ["2", "3"].map(|last| format!("endpoint/default/web/tcp/80/172.7.21.{last}/8080")));
    kernel.take(changes);
    assert!(kernel.text().contains("ip saddr timeout 1m }"), "{}", kernel.text());
    let (_, found) = remembered(&kernel.observed(), |_| BTreeSet::new()).next().unwrap();
    assert_eq!(found.affinity, Some(Affinity { seconds: 60, port: 80, prefix: None }));
}

/// Whose datagrams have to be led elsewhere is known by the rows that change.
#[test]
fn a_chain_that_chooses_says_which_frontend_it_is_about() {
    let of = |place: &str, port| FrontendKey { place: Place::Address(place.parse().unwrap()), ..node(port) };
    for (family, name, expected) in [
        (IpFamily::V4, "keep/192.168.0.10/tcp/80/0", Some(of("192.168.0.10", 80))),
        (IpFamily::V4, "keep/node/tcp/30080/3", Some(node(30_080))),
        (IpFamily::V6, "keep/fd00..10/tcp/80/0", Some(of("fd00::10", 80))),
        (IpFamily::V4, "lead/2/2/2/192.168.0.10/tcp/80", None),
        (IpFamily::V4, "keep/x/tcp/80/0", None),
    ] {
        let key = ChainKey { table: table_key(family), chain: Name::new(name).unwrap() };
        assert_eq!(super::super::frontend(&RowKey::Chain(key)), expected, "{name}");
    }
}
