//! What flags and a file say together.

use std::collections::BTreeSet;

use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn given(values: &[(&'static str, &str)]) -> Given {
    values.iter().map(|(key, text)| (*key, (*text).to_owned())).collect()
}

fn file(text: &str) -> Document {
    document::parse(&format!("{HEAD}{text}"))
}

#[test]
fn fields_and_flags_are_unique_and_defaults_have_their_form() {
    let keys: BTreeSet<_> = FIELDS.iter().map(Field::key).collect();
    assert_eq!(keys.len(), FIELDS.len());
    let flags: BTreeSet<_> = FIELDS.iter().map(|field| field.flag).filter(|flag| !flag.is_empty()).collect();
    assert_eq!(flags.len(), FIELDS.iter().filter(|field| !field.flag.is_empty()).count());
    for field in FIELDS {
        let unset = field.default.is_empty() && field.form.check("").is_err();
        assert!(unset || field.form.check(field.default).is_ok(), "{}: {:?}", field.key(), field.default);
        // The help of these two is the command's own.
        let own = [path::LOG_FORMAT, path::VERBOSITY].contains(&field.key());
        let is_read = matches!(field.served, Served::Start(_) | Served::Live) && !own;
        assert_eq!(is_read, !field.help.is_empty(), "{}: help is for what is read", field.key());
    }
}

#[test]
fn with_a_file_its_values_count_and_flags_beside_it_are_named() {
    let flags = given(&[(path::SCHEDULER, "lc"), (path::HOSTNAME, "n1"), (path::VERBOSITY, "2")]);
    let (settings, notes) = Settings::new(flags, Some(&file("ipvs: {scheduler: wrr}\nhostnameOverride: n2\n")), false);
    assert_eq!(settings.text(path::SCHEDULER), "wrr");
    assert_eq!((settings.text(path::HOSTNAME), settings.text(path::VERBOSITY)), ("n1", "2"));
    assert_eq!(notes.warnings, ["--ipvs-scheduler is ignored: with --config the file says it"]);
    assert_eq!(settings.name(path::SCHEDULER), "ipvs.scheduler");
    assert_eq!(settings.name(path::HOSTNAME), "--hostname-override");
}

#[test]
fn kube_proxys_defaults_count_under_its_name_and_with_a_file() {
    let alone = Settings::new(Given::new(), None, false).0;
    assert_eq!((alone.text(path::HEALTHZ), alone.text(path::MAX_PER_CORE)), ("127.0.0.1:10256", "0"));
    let empty = file("");
    for settings in [Settings::new(Given::new(), None, true).0, Settings::new(Given::new(), Some(&empty), false).0] {
        assert_eq!((settings.text(path::HEALTHZ), settings.text(path::MAX_PER_CORE)), ("0.0.0.0:10256", "32768"));
        assert_eq!((settings.text(path::ESTABLISHED), settings.text(path::OOM_SCORE)), ("24h", "-999"));
    }
}

/// What kubeadm writes where nobody asks for anything: every field, most of them zero.
const KUBEADM: &str = r#"
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: ""
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

#[test]
fn what_kubeadm_writes_is_read_without_a_word() {
    let document = file(KUBEADM);
    assert_eq!((&document.problems, &document.unknown), (&Vec::new(), &Vec::new()));
    let (settings, notes) = Settings::new(Given::new(), Some(&document), false);
    assert_eq!((notes, settings.problems()), (Notes::default(), Vec::new()));
    let values = |key| settings.text(key);
    assert_eq!((values(path::CLUSTER_CIDR), values(path::HEALTHZ)), ("10.244.0.0/16", "0.0.0.0:10256"));
}

#[test]
fn whatever_has_no_effect_is_reported_with_what_happens_instead() {
    let document = file(
        "clientConnection: {qps: 50}\nipvs: {syncPeriod: 10s}\n\
         enableProfiling: true\nfeatureGates: {TopologyAwareHints: true}\nipvs2: {}\n",
    );
    let (_, notes) = Settings::new(Given::new(), Some(&document), false);
    let warned = |word: &str| notes.warnings.iter().any(|warning| warning.contains(word));
    for word in ["enableProfiling", "featureGates", "ipvs2"] {
        assert!(warned(word), "{word}: {:?}", notes.warnings);
    }
    let remarks = notes.remarks.join("\n");
    assert!(remarks.contains("clientConnection.qps: 50") && remarks.contains("ipvs.syncPeriod: 10s"), "{remarks}");
    assert_eq!((notes.warnings.len(), notes.remarks.len()), (3, 2), "{notes:?}");
}

#[test]
fn what_would_lead_packets_elsewhere_is_refused_and_every_problem_is_reported_at_once() {
    let document = file(
        "mode: iptables\niptables: {masqueradeBit: 77}\nnodePortAddresses: [primary, 10.4.7.0/24]\ndetectLocalMode: NodeName\n\
         ipvs: {tcpTimeout: soon}\noomScoreAdj: 2000\nclusterCIDR: pods\n",
    );
    let (settings, _) = Settings::new(Given::new(), Some(&document), false);
    let problems: Vec<_> = settings.problems().iter().map(ToString::to_string).collect();
    let fields: Vec<_> = problems.iter().filter_map(|problem| problem.split(':').next()).collect();
    assert_eq!(
        fields,
        [
            "mode",
            "iptables.masqueradeBit",
            "ipvs.tcpTimeout",
            "detectLocalMode",
            "clusterCIDR",
            "nodePortAddresses",
            "oomScoreAdj"
        ]
    );
    assert!(problems[0].ends_with("accepted: \"\", auto, ipvs, nftables"), "{}", problems[0]);
}

#[test]
fn changes_are_followed_where_that_needs_no_new_start() {
    let settings = |text: &str| Settings::new(Given::new(), Some(&file(text)), false).0;
    let before = settings("mode: ipvs\nclusterCIDR: 172.7.0.0/16\n");
    let names = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let live = settings("mode: nftables\nclusterCIDR: 172.8.0.0/16\nlogging: {verbosity: 2}\n");
    assert_eq!(before.differences(&live), (names(&["logging.verbosity", "mode", "clusterCIDR"]), Vec::new()));
    let start = settings("mode: ipvs\nclusterCIDR: 172.7.0.0/16\nlogging: {format: json}\n");
    let reason = "logging.format: the log of a process is set up once, before the first line of it";
    assert_eq!(before.differences(&start), (names(&["logging.format"]), names(&[reason])));
    assert_eq!(before.differences(&before), (Vec::new(), Vec::new()));
    let needless = settings("mode: ipvs\nclusterCIDR: 172.7.0.0/16\nipvs: {syncPeriod: 5s}\n");
    assert_eq!(before.differences(&needless).1, Vec::<String>::new());
}

/// The page that says what becomes of every field.
const PAGE: &str = include_str!("../../../../docs/kube-proxy.md");

/// The line of a field in the page.
fn line(field: &Field) -> String {
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let flag = if field.flag.is_empty() { String::new() } else { format!("`--{}`", field.flag) };
    let served = match field.served {
        Served::Start(why) => format!("read at the start: {why}"),
        Served::Live => "read and followed".to_owned(),
        Served::Needless(why) => format!("not needed: {why}"),
        Served::Missing(why) => format!("without effect, with a warning: {why}"),
        Served::Only(words, why) => {
            let words: Vec<_> = words.iter().map(|word| format!("`{word:?}`")).collect();
            format!("other than {} refused: {why}", words.join(", "))
        }
    };
    format!("| {} | {flag} | {} | {served} |", code(field.path), code(field.default))
}

#[test]
fn page_names_every_field_with_what_becomes_of_it() {
    let expected: Vec<String> = FIELDS.iter().map(line).collect();
    let (_, table) = PAGE.split_once("\n## Fields and flags\n").unwrap();
    let found: Vec<&str> =
        table.lines().filter(|line| line.starts_with("| `") || line.starts_with("|  | `--")).collect();
    assert_eq!(found, expected, "docs/kube-proxy.md; expected\n{}", expected.join("\n"));
}
