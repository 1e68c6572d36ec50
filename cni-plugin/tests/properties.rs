//! Whatever a runtime, a user or a broken disk executor in is answered, never panicked at; what is written is read back.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failed expectation is how a test fails")]

use std::net::IpAddr;

use cni_plugin::{
    AddResult, Attachment, BandwidthConf, BridgeConf, CniArgs, CniError, Code, ContainerId, Defaults, Dns, Fields,
    FlannelConf, Honoured, Interface, IpConfig, NetConf, PortmapConf, Range, RangeSet, Request, ResultRoute,
    RuntimeConfig, SpecVersion, Subject, parse_host_local, parse_result,
};
use netstate::IfName;
use netstate::{MacAddr, Prefix};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// Keys that mean something somewhere, so that random objects get past the first check.
const KEYS: [&str; 41] = [
    "cniVersion",
    "name",
    "type",
    "delegate",
    "ipam",
    "runtimeConfig",
    "prevResult",
    "args",
    "cni",
    "bridge",
    "mtu",
    "hairpinMode",
    "isDefaultGateway",
    "ipMasq",
    "dns",
    "ranges",
    "subnet",
    "rangeStart",
    "rangeEnd",
    "gateway",
    "routes",
    "dst",
    "gw",
    "portMappings",
    "HostPort",
    "containerPort",
    "protocol",
    "ips",
    "address",
    "interfaces",
    "mac",
    "cni.dev/attachments",
    "containerID",
    "ifname",
    "bandwidth",
    "ingressRate",
    "ingressBurst",
    "EgressRate",
    "egressBurst",
    "ipRanges",
    "resolvConf",
];

/// Values that mean something somewhere.
const TEXTS: [&str; 14] = [
    "1.0.0",
    "0.3.1",
    "cbr0",
    "flannel",
    "172.7.21.0/24",
    "172.7.21.2/24",
    "172.7.21.1",
    "fd00::/64",
    "fd00::1",
    "tcp",
    "02:00:00:00:00:01",
    "eth0",
    "",
    "\u{0}",
];

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..70_000_u32).prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        prop::sample::select(TEXTS.to_vec()).prop_map(Value::from),
        ".*".prop_map(Value::from),
    ]
}

fn document() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(6, 64, 6, |inner| {
        let key = prop_oneof![4 => prop::sample::select(KEYS.to_vec()).prop_map(str::to_owned), 1 => ".{0,8}".prop_map(|s| s)];
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((key, inner), 0..6).prop_map(|entries| Value::Object(entries.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn address() -> impl Strategy<Value = (IpAddr, u8)> {
    prop_oneof![
        (any::<[u8; 4]>(), 0..=32_u8).prop_map(|(a, len)| (IpAddr::from(a), len)),
        (any::<[u8; 16]>(), 0..=128_u8).prop_map(|(a, len)| (IpAddr::from(a), len)),
    ]
}

fn add_result() -> impl Strategy<Value = AddResult> {
    let interface =
        ("[a-z0-9]{1,15}", any::<Option<[u8; 6]>>(), prop::option::of(68..65_535_u32), prop::option::of("/[a-z]{1,9}"))
            .prop_map(|(name, mac, mtu, sandbox)| Interface { name, mac: mac.map(MacAddr), mtu, sandbox });
    let ip = (address(), prop::option::of(0..4_usize), prop::option::of(address()))
        .prop_map(|((addr, len), interface, gw)| IpConfig { interface, addr, len, gateway: gw.map(|(gw, _)| gw) });
    let number = || prop::option::of(1..u32::MAX);
    let route = (address(), prop::option::of(address()), number(), number(), number(), number(), any::<Option<u8>>())
        .prop_map(|((addr, len), gw, mtu, advmss, priority, table, scope)| {
            let dst = Prefix::new(addr, len).unwrap();
            ResultRoute { dst, gw: gw.map(|(gw, _)| gw), mtu, advmss, priority, table, scope }
        });
    let texts = || vec("[a-z0-9.]{1,12}", 0..3);
    let dns = (texts(), "[a-z.]{0,9}", texts(), texts()).prop_map(|(nameservers, domain, search, options)| Dns {
        nameservers,
        domain,
        search,
        options,
    });
    (vec(interface, 0..4), vec(ip, 0..4), vec(route, 0..4), dns).prop_map(|(interfaces, ips, routes, dns)| AddResult {
        interfaces,
        ips,
        routes,
        dns,
    })
}

/// Reads `text` as every kind of configuration; answers the errors.
fn read_as_everything(text: &[u8]) -> Vec<CniError> {
    let mut errors = Vec::new();
    let conf = match NetConf::parse(text) {
        Ok(conf) => conf,
        Err(error) => return vec![error],
    };
    let all = Honoured { port_mappings: true, attachment: true };
    let runtime = RuntimeConfig::parse(conf.runtime.clone(), all).map_err(|e| errors.push(e)).unwrap_or_default();
    errors.extend(FlannelConf::parse(conf.fields.clone()).err());
    errors.extend(FlannelConf::parse_native(conf.fields.clone()).err());
    errors.extend(PortmapConf::take(&mut conf.fields.clone()).err());
    errors.extend(BandwidthConf::take(&mut conf.fields.clone()).err());
    errors.extend(conf.runtime.clone().and_then(|mut runtime| BandwidthConf::of_runtime(&mut runtime).err()));
    errors.extend(parse_host_local(conf.clone(), &CniArgs::default()).err());
    errors.extend(
        BridgeConf::parse(
            conf.fields,
            Defaults { bridge: IfName::literal("cbr0"), lease: None },
            &CniArgs::default(),
            &runtime,
        )
        .err(),
    );
    errors.extend(conf.prev_result.and_then(|previous| parse_result(previous).err()));
    errors
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn no_configuration_panics_and_every_error_has_a_code_and_a_place(document in document()) {
        let mut document = document;
        if let Value::Object(map) = &mut document {
            // Past the common checks, most of the time.
            map.entry("name").or_insert_with(|| json!("cbr0"));
        }
        for error in read_as_everything(document.to_string().as_bytes()) {
            let expected = [Code::InvalidConfig, Code::UnsupportedField, Code::IncompatibleVersion, Code::Decode];
            prop_assert!(expected.contains(&error.code), "{}", error);
            prop_assert!(!error.msg.is_empty());
            let object: Value = serde_json::from_str(&error.render(SpecVersion::NEWEST)).unwrap();
            prop_assert!(object["code"].as_u64().is_some());
        }
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..200)) {
        read_as_everything(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = CniArgs::parse(&text);
        let _ = Subject::of_reservation(&text);
        let _ = Subject::of_record(&text);
        let _ = netstate::subnet_file::SubnetFile::parse(&text);
        let _ = Request::parse(|name| (name != "CNI_COMMAND").then(|| text.clone().into_owned()).or(Some("ADD".to_owned())));
    }

    #[test]
    fn a_result_of_the_newest_version_is_read_back_whole(result in add_result()) {
        let rendered = result.render(SpecVersion::NEWEST).unwrap();
        prop_assert_eq!(parse_result(rendered).unwrap(), result);
    }

    #[test]
    fn errors_never_carry_the_words_that_make_containerd_swallow_them(text in ".*", trap in "(?i)(not found|no such file or directory)") {
        let error = CniError::new(Code::Io, format!("{text}{trap}")).details(format!("{trap}{text}{trap}"));
        let rendered = error.render(SpecVersion::NEWEST).to_lowercase();
        prop_assert!(!rendered.contains("not found") && !rendered.contains("no such file or directory"), "{}", rendered);
    }

    #[test]
    fn every_range_hands_out_each_address_once_and_none_outside(
        base in any::<[u8; 4]>(), len in 22..=30_u8, last in any::<[u8; 4]>(), cut in 0..900_u32,
    ) {
        let subnet = Prefix::new(IpAddr::from(base), len).unwrap();
        let first = subnet.nth(u128::from(cut) + 1);
        let Ok(range) = Range::new(subnet, first, None, None) else { return Ok(()) };
        let set = RangeSet::new(vec![range]).unwrap();
        let all: Vec<IpAddr> = set.candidates(Some(IpAddr::from(last))).map(|(addr, _)| addr).collect();
        let mut unique = all.clone();
        unique.sort();
        unique.dedup();
        prop_assert_eq!(unique.len(), all.len());
        prop_assert_eq!(u128::try_from(all.len()).unwrap(), set.capacity());
        prop_assert!(all.iter().all(|addr| subnet.contains(*addr) && !set.is_gateway(*addr) && *addr != subnet.last()));
    }

    #[test]
    fn names_derived_from_an_attachment_are_always_names(container in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,80}", ifname in "[a-z][a-z0-9]{0,14}") {
        let attachment = Attachment::new(ContainerId::new(&container).unwrap(), ifname.parse().unwrap());
        let link = attachment.host_link();
        prop_assert_eq!(link.as_str().len(), 15);
        prop_assert!(link.as_str().starts_with("veth"));
        let reservation = format!("{container}\r\n{ifname}");
        prop_assert_eq!(Subject::of_reservation(&reservation), Some(Subject::Attachment(attachment.clone())));
        prop_assert_eq!(Subject::of_record(&format!("{container}@{ifname}")), Some(Subject::Attachment(attachment)));
    }

    #[test]
    fn every_limit_is_one_that_the_kernel_holds_or_an_error(rate in any::<u64>(), burst in any::<u64>(), cut in 0..64_u32) {
        let asked = json!({"bandwidth": {"ingressRate": rate >> cut, "ingressBurst": burst >> cut}});
        let mut runtime = Fields::of(asked, "runtimeConfig").unwrap();
        if let Ok(Some(limits)) = BandwidthConf::of_runtime(&mut runtime)
            && let Some(bucket) = limits.receive
        {
            prop_assert_eq!(bucket.rate, (rate >> cut) / 8);
            prop_assert!(bucket.depth <= netstate::qdisc::MAX_DEPTH && u64::from(bucket.limit) >= bucket.rate.min(1));
            prop_assert_eq!(netstate::TokenBucket::depth_of(bucket.ticks()), bucket.depth);
        }
    }

    #[test]
    fn fields_lose_nothing(document in document()) {
        if let Value::Object(map) = document {
            let fields = Fields::root(map.clone());
            prop_assert_eq!(fields.rest(), map);
        }
    }
}
