//! What came together is planned together, and what one change costs.

use super::*;

/// The Service's object with its port under another name.
fn renamed_port(rig: &mut Rig, name: &str) {
    let ports = json!([{"name": name, "port": 80, "protocol": "TCP"}]);
    let spec = json!({"clusterIP": "192.168.0.10", "ports": ports});
    rig.put("services/default/web", &json!({"kind": "Service", "metadata": {"name": "web"}, "spec": spec}));
}

#[test]
fn a_port_renamed_in_service_and_slice_together_takes_nothing_down() {
    let mut rig = Rig::web();
    renamed_port(&mut rig, "www");
    assert_eq!(rig.work_midway(), Vec::<String>::new(), "half of a change is no change");
    let endpoint = |last: u8| json!({"addresses": [format!("172.7.22.{last}")], "nodeName": "hdss7-22.host.com"});
    let endpoints = [2, 3].map(endpoint);
    rig.put(
        "endpointslices/default/web-1",
        &json!({
            "kind": "EndpointSlice", "addressType": "IPv4",
            "endpoints": endpoints,
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "www", "port": 80, "protocol": "TCP"}],
        }),
    );
    assert_eq!(rig.work_midway(), Vec::<String>::new());
    assert_eq!(rig.work(), Vec::<String>::new(), "the same servers behind another name");
    // Alone, each of them is a change of its own.
    renamed_port(&mut rig, "main");
    assert!(!rig.work().is_empty());
}

#[test]
fn services_that_change_their_addresses_or_names_together_take_nothing_down() {
    let mut rig = Rig::web();
    rig.service("api", 11, "TCP");
    rig.endpoints("api", "TCP", &[2, 3]);
    rig.receive(Event::Commit);
    assert!(!rig.work().is_empty());
    // Two Services of one file swap their addresses.
    rig.service("web", 11, "TCP");
    rig.service("api", 10, "TCP");
    assert_eq!(rig.work_midway(), Vec::<String>::new());
    let steps = rig.work();
    assert!(steps.iter().all(|step| step.starts_with("nft ~")), "only owners in the record change: {steps:?}");
    // A Service of one file is renamed, with its slice.
    for key in ["services/default/web", "endpointslices/default/web-1"] {
        rig.receive(Event::Delete { key: key.to_owned(), revision: 2 });
    }
    rig.service("www", 11, "TCP");
    rig.endpoints("www", "TCP", &[2, 3]);
    assert_eq!(rig.work_midway(), Vec::<String>::new());
    let steps = rig.work();
    assert!(steps.iter().all(|step| step.starts_with("nft ~")), "{steps:?}");
}

#[test]
fn a_change_that_begins_while_another_is_planned_is_left_for_its_end() {
    let mut rig = Rig::web();
    rig.endpoints("web", "TCP", &[2, 3, 4]);
    rig.receive(Event::Commit);
    renamed_port(&mut rig, "www");
    assert_eq!(rig.work_midway(), Vec::<String>::new());
    renamed_port(&mut rig, "main");
    assert!(rig.work().iter().any(|step| step.contains("+") && step.contains("172.7.22.4")));
}

#[test]
fn the_status_is_not_in_order_while_it_counts_objects_of_a_change_that_has_not_ended() {
    let mut rig = Rig::web();
    let status = |rig: &Rig| ProxyStatus::of(&rig.proxy, "hdss7-21", &[], rig.now);
    assert!(status(&rig).ok);
    rig.service("api", 11, "TCP");
    assert_eq!(rig.work_midway(), Vec::<String>::new());
    assert_eq!((status(&rig).services, status(&rig).ok), (2, false), "it is known, and not in the kernel");
    assert!(!rig.work().is_empty());
    assert!(status(&rig).ok);
}

#[test]
fn one_changed_endpoint_is_one_step() {
    let mut rig = Rig::web();
    rig.endpoints("web", "TCP", &[2, 3, 4]);
    assert_eq!(rig.work(), ["ipvs + tcp 192.168.0.10:80 -> 172.7.22.4:80"]);
}

proptest! {
    /// Whatever the kernel refuses on the way, in the end it holds what is wanted, and then nothing is left to do.
    #[test]
    fn any_refusal_at_any_step_converges_later(
        refusals in prop::collection::vec(prop::collection::vec(prop::option::weighted(0.4, prop::sample::select(vec![1, 2, 3, 12, 16, 22, 105])), 0..12), 3),
        changes in prop::collection::vec((10u8..13, prop::collection::vec(2u8..6, 0..4)), 1..6),
        mode in prop::sample::select(vec![Mode::Ipvs, Mode::Nftables]),
    ) {
        let mut rig = Rig::in_mode(mode, 1000, Kept::default());
        rig.nft.contents().errors.extend(&refusals[0]);
        rig.servers.contents().errors.extend(&refusals[1]);
        rig.addresses.contents().errors.extend(&refusals[2]);
        rig.receive(Event::Reset);
        rig.complete();
        for (last, pods) in &changes {
            let name = format!("s{last}");
            rig.service(&name, *last, "TCP");
            rig.endpoints(&name, "TCP", pods);
            rig.later(1);
        }
        for _ in 0..40 {
            rig.later(61);
        }
        for stage in rig.proxy.tables().stack().stages() {
            prop_assert!(stage.status().is_done(), "{}: {:?}", stage.name(), stage.status());
        }
        let wanted: BTreeMap<u8, BTreeSet<u8>> =
            changes.iter().map(|(last, pods)| (*last, pods.iter().copied().collect())).collect();
        let rows = wanted.len() + wanted.values().map(BTreeSet::len).sum::<usize>();
        let (rows, addresses) = if mode == Mode::Ipvs { (rows, wanted.len()) } else { (0, 0) };
        prop_assert_eq!(rig.servers.contents().rows.len(), rows);
        prop_assert_eq!(rig.addresses.contents().rows.len(), addresses);
        let of_services = |row: &&nft_rows::RowKey| row.to_string().contains("@vips");
        prop_assert_eq!(rig.nft.contents().rows.keys().filter(of_services).count(), wanted.len());
        prop_assert!(rig.later(61).is_empty());
    }
}

#[test]
fn a_service_has_the_scheduler_of_its_annotation_or_everybodys_where_the_kernel_has_not_its_own() {
    let mut rig = Rig::new();
    rig.endpoints("web", "TCP", &[2]);
    rig.complete();
    let key =
        ServerKey::Virtual(VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port: 80 });
    for (asked, has) in
        [("mh,mh-fallback", "scheduler mh,mh-fallback"), ("nosuch", "scheduler rr"), ("wlc", "scheduler wlc")]
    {
        let metadata = json!({"name": "web", "annotations": {"ipvs-proxy/scheduler": asked}});
        let spec = json!({"clusterIP": "192.168.0.10", "ports": [{"name": "main", "port": 80}]});
        rig.put("services/default/web", &json!({"kind": "Service", "metadata": metadata, "spec": spec}));
        rig.work();
        assert_eq!(rig.servers.contents().rows[&key].value.to_string(), has);
        let named =
            rig.proxy.findings().iter().any(|(_, found)| found.not_served.iter().any(|text| text.contains("nosuch")));
        assert_eq!(named, asked == "nosuch");
    }
}

#[test]
fn networks_of_clients_are_those_of_the_annotation_and_named_where_nothing_reads_them() {
    let put = |rig: &mut Rig, affinity: &str| {
        let annotations = json!({"ipvs-proxy/affinity-prefix": "ipv4=24,ipv6=64"});
        let ports = json!([{"name": "main", "port": 80}]);
        let spec = json!({"clusterIP": "192.168.0.10", "ports": ports, "sessionAffinity": affinity});
        let service = json!({"kind": "Service", "metadata": {"name": "web", "annotations": annotations}, "spec": spec});
        rig.put("services/default/web", &service);
        rig.endpoints("web", "TCP", &[2]);
        rig.work();
    };
    let named = |rig: &Rig| -> Vec<String> {
        rig.proxy.findings().iter().flat_map(|(_, found)| found.not_served.clone()).collect()
    };
    let key =
        ServerKey::Virtual(VirtualServerKey { protocol: Protocol::Tcp, addr: [192, 168, 0, 10].into(), port: 80 });
    let shown = |rig: &Rig| rig.servers.contents().rows[&key].value.to_string();
    let of = "metadata.annotations.ipvs-proxy/affinity-prefix: ipv4=24,ipv6=64, which ";
    let mut rig = Rig::new();
    rig.complete();
    put(&mut rig, "ClientIP");
    assert_eq!((shown(&rig), named(&rig)), ("scheduler rr persistent 10800 netmask /24".to_owned(), vec![]));
    put(&mut rig, "None");
    assert_eq!(shown(&rig), "scheduler rr");
    assert_eq!(named(&rig), [format!("{of}needs spec.sessionAffinity: ClientIP")]);
    let mut rig = Rig::in_mode(Mode::Nftables, 1000, Kept::default());
    rig.complete();
    put(&mut rig, "ClientIP");
    assert_eq!(named(&rig), [format!("{of}is of IPVS")]);
}

#[test]
fn endpoints_have_the_weights_of_the_annotation_also_when_they_come_back() {
    let put = |rig: &mut Rig, scheduler: &str, pods: &[u8]| {
        let annotations = json!({"ipvs-proxy/scheduler": scheduler, "ipvs-proxy/weights": "here=4,elsewhere=2"});
        let spec = json!({"clusterIP": "192.168.0.10", "ports": [{"name": "main", "port": 80}]});
        let service = json!({"kind": "Service", "metadata": {"name": "web", "annotations": annotations}, "spec": spec});
        rig.put("services/default/web", &service);
        let node = |last: u8| if last == 2 { "hdss7-21.host.com" } else { "hdss7-22.host.com" };
        let endpoint = |last: &u8| json!({"addresses": [format!("172.7.22.{last}")], "nodeName": node(*last)});
        let endpoints: Vec<_> = pods.iter().map(endpoint).collect();
        rig.put(
            "endpointslices/default/web-1",
            &json!({
                "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
                "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
                "ports": [{"name": "main", "port": 80}],
            }),
        );
        rig.work();
    };
    let weights = |rig: &Rig| {
        let weight = |last| match rig.servers.contents().rows.get(&ServerKey::Real(real(Protocol::Tcp, last))) {
            Some(Observed { value: Server::Real(real), .. }) => Some(real.weight),
            _ => None,
        };
        [weight(2), weight(3)]
    };
    let named = |rig: &Rig| -> Vec<String> {
        rig.proxy.findings().iter().flat_map(|(_, found)| found.not_served.clone()).collect()
    };
    let mut rig = Rig::new();
    rig.complete();
    put(&mut rig, "wrr", &[2, 3]);
    assert_eq!((weights(&rig), named(&rig)), ([Some(4), Some(2)], vec![]));
    rig.busy.lock().unwrap().insert(real(Protocol::Tcp, 3));
    put(&mut rig, "wrr", &[2]);
    assert_eq!(weights(&rig), [Some(4), Some(0)], "it drains");
    put(&mut rig, "wrr", &[2, 3]);
    assert_eq!(weights(&rig), [Some(4), Some(2)]);
    put(&mut rig, "rr", &[2, 3]);
    let of = "metadata.annotations.ipvs-proxy/weights: here=4,elsewhere=2, which ";
    assert_eq!(named(&rig), [format!("{of}the scheduler rr does not read")]);
    let mut rig = Rig::in_mode(Mode::Nftables, 1000, Kept::default());
    rig.complete();
    put(&mut rig, "wrr", &[2, 3]);
    let scheduler = "metadata.annotations.ipvs-proxy/scheduler: wrr, which is of IPVS";
    assert_eq!(named(&rig), [scheduler.to_owned(), format!("{of}is of IPVS")]);
}
