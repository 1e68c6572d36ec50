//! All fields of KubeProxyConfiguration v1alpha1 and all flags of kube-proxy, with what becomes of each here, and the few of our own.
//!
//! Invariant: nothing is accepted in silence: a field is read, or its reason why not reaches whoever sets it.

use super::field::{Field, Form, Served};
use Served::{Live, Missing, Needless, Only, Start};

const ONE_SERVER: &str = "the API server is asked from the start on";
const JSON: &str = "objects are read as JSON, as they come";
const FEW_REQUESTS: &str = "there are three watches, and few requests besides";
const NO_PERIOD: &str = "changes are applied as they come, and what somebody else deletes is back within a second";

/// The same of IPVS, which announces nothing.
const NO_IPVS_PERIOD: &str = "changes are applied as they come, and a virtual server that somebody else deletes is back within a second, one of \
                              IPv6 as soon as a listing costs little, within 10 seconds, a real server or an option likewise, within 30 seconds";
const NO_MARK: &str = "what is masqueraded is marked by bit 14, and the mark is cleared behind it";
const ONE_NODE: &str = "the source is asked for the Node object by that name";
const ONE_LOG: &str = "the log of a process is set up once, before the first line of it";
const UNBUFFERED: &str = "the log goes to standard error, line by line";
const ONE_BIT: &str = "the mark of what is masqueraded is bit 14";
const WINDOWS: &str = "it is for Windows";

const BIT: Form = Form::Number { least: 0, most: 31 };
const COUNT: Form = Form::Number { least: 0, most: i32::MAX as i64 };
const SCORE: Form = Form::Number { least: -1000, most: 1000 };
const PORT: Form = Form::Number { least: 0, most: 65_535 };
const MODES: Form = Form::OneOf(&["", "auto", "ipvs", "nftables"]);
const DETECTIONS: Form = Form::OneOf(&["", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"]);

const fn field(path: &'static str, flag: &'static str, form: Form, default: &'static str, served: Served) -> Field {
    Field { path, flag, form, default, served, help: "" }
}

/// The fields by which they are asked for.
pub(crate) mod path {
    pub(crate) const KUBECONFIG: &str = "clientConnection.kubeconfig";
    pub(crate) const MASTER: &str = "master";
    pub(crate) const HOSTNAME: &str = "hostnameOverride";
    pub(crate) const HEALTHZ: &str = "healthzBindAddress";
    pub(crate) const METRICS: &str = "metricsBindAddress";
    pub(crate) const HARD_FAIL: &str = "bindAddressHardFail";
    pub(crate) const MODE: &str = "mode";
    pub(crate) const SCHEDULER: &str = "ipvs.scheduler";
    pub(crate) const EXCLUDED: &str = "ipvs.excludeCIDRs";
    pub(crate) const LOCAL: &str = "ipvs.localCIDRs";
    pub(crate) const STRICT_ARP: &str = "ipvs.strictARP";
    pub(crate) const TCP_TIMEOUT: &str = "ipvs.tcpTimeout";
    pub(crate) const TCP_FIN_TIMEOUT: &str = "ipvs.tcpFinTimeout";
    pub(crate) const UDP_TIMEOUT: &str = "ipvs.udpTimeout";
    pub(crate) const BIND: &str = "bindAddress";
    pub(crate) const MASQUERADE_ALL: &str = "iptables.masqueradeAll";
    pub(crate) const NFT_MASQUERADE_ALL: &str = "nftables.masqueradeAll";
    pub(crate) const NODE_PORTS: &str = "nodePortAddresses";
    pub(crate) const DETECTION: &str = "detectLocalMode";
    pub(crate) const BRIDGE: &str = "detectLocal.bridgeInterface";
    pub(crate) const LINK_PREFIX: &str = "detectLocal.interfaceNamePrefix";
    pub(crate) const CLUSTER_CIDR: &str = "clusterCIDR";
    pub(crate) const OOM_SCORE: &str = "oomScoreAdj";
    pub(crate) const LOG_FORMAT: &str = "logging.format";
    pub(crate) const VERBOSITY: &str = "logging.verbosity";
    pub(crate) const MODULES: &str = "logging.vmodule";
    pub(crate) const MAX_PER_CORE: &str = "conntrack.maxPerCore";
    pub(crate) const MIN: &str = "conntrack.min";
    pub(crate) const ESTABLISHED: &str = "conntrack.tcpEstablishedTimeout";
    pub(crate) const CLOSE_WAIT: &str = "conntrack.tcpCloseWaitTimeout";
    pub(crate) const LOCALHOST: &str = "iptables.localhostNodePorts";
    pub(crate) const BE_LIBERAL: &str = "conntrack.tcpBeLiberal";
    pub(crate) const UDP: &str = "conntrack.udpTimeout";
    pub(crate) const UDP_STREAM: &str = "conntrack.udpStreamTimeout";
    pub(crate) const HEALTHZ_PORT: &str = "healthz-port";
    pub(crate) const METRICS_PORT: &str = "metrics-port";
}

/// Fields that kube-proxy has not: a configuration that does not use them is one of kube-proxy's.
pub(crate) const OWN: [&str; 1] = [path::LOCAL];

/// The fields, in the order of kube-proxy's own documentation.
pub(crate) static FIELDS: &[Field] = &[
    field("featureGates", "feature-gates", Form::Gates, "", Missing("no feature gate changes anything here")),
    field(path::KUBECONFIG, "kubeconfig", Form::Text, "", Start(ONE_SERVER))
        .help("Read Services from the API server of this kubeconfig; in a Pod without it, from the cluster's own"),
    field("", path::MASTER, Form::Text, "", Start(ONE_SERVER))
        .help("URL of the API server, before the kubeconfig's"),
    field("clientConnection.acceptContentTypes", "", Form::Text, "", Needless(JSON)),
    field(
        "clientConnection.contentType",
        "kube-api-content-type",
        Form::Text,
        "application/vnd.kubernetes.protobuf",
        Needless(JSON),
    ),
    field("clientConnection.qps", "kube-api-qps", Form::Rate, "5", Needless(FEW_REQUESTS)),
    field("clientConnection.burst", "kube-api-burst", COUNT, "10", Needless(FEW_REQUESTS)),
    field(path::LOG_FORMAT, "log-format", Form::OneOf(&["auto", "text", "json", "journal"]), "text", Start(ONE_LOG)),
    field(path::VERBOSITY, "v", Form::Number { least: 0, most: i32::MAX as i64 }, "0", Live),
    field(path::MODULES, "vmodule", Form::Modules, "", Start(ONE_LOG))
        .help("Detail of single modules of the log, PATTERN=N,..."),
    field("logging.flushFrequency", "log-flush-frequency", Form::TimeOrNanoseconds, "5s", Needless(UNBUFFERED)),
    field("logging.options.text.splitStream", "log-text-split-stream", Form::Switch, "false", Needless(UNBUFFERED)),
    field(
        "logging.options.text.infoBufferSize",
        "log-text-info-buffer-size",
        Form::Quantity,
        "0",
        Needless(UNBUFFERED),
    ),
    field("logging.options.json.splitStream", "log-json-split-stream", Form::Switch, "false", Needless(UNBUFFERED)),
    field(
        "logging.options.json.infoBufferSize",
        "log-json-info-buffer-size",
        Form::Quantity,
        "0",
        Needless(UNBUFFERED),
    ),
    field(path::HOSTNAME, "hostname-override", Form::Text, "", Start(ONE_NODE))
        .help("Name of this node in EndpointSlices; the host name when not given"),
    field(
        "bindAddress",
        "bind-address",
        Form::Address,
        "0.0.0.0",
        Live,
    )
    .help("Primary address of this node where it is no unspecified one: that of the default route otherwise"),
    field(path::HEALTHZ, "healthz-bind-address", Form::Endpoint, "0.0.0.0:10256", Live)
        .help("Address for health checks, ADDRESS:PORT; an empty one serves none"),
    field("", path::HEALTHZ_PORT, PORT, "10256", Live)
        .help("Port for health checks where their address has none; 0 serves none"),
    field(path::METRICS, "metrics-bind-address", Form::Endpoint, "127.0.0.1:10249", Live)
        .help("Address for metrics, status and tables, ADDRESS:PORT; an empty one serves none"),
    field("", path::METRICS_PORT, PORT, "10249", Live)
        .help("Port for metrics where their address has none; 0 serves none"),
    field(path::HARD_FAIL, "bind-address-hard-fail", Form::Switch, "false", Live)
        .help("End when an address for health checks or metrics cannot be bound"),
    field("enableProfiling", "profiling", Form::Switch, "false", Missing("there is no /debug/pprof")),
    field(
        "showHiddenMetricsForVersion",
        "show-hidden-metrics-for-version",
        Form::Text,
        "",
        Needless("no metric is hidden"),
    ),
    field(path::MODE, "proxy-mode", MODES, "", Live).help(
        "The data path: ipvs, nftables, or auto (as when it is not given), which is ipvs where the kernel has it",
    ),
    field("iptables.masqueradeBit", "iptables-masquerade-bit", BIT, "14", Needless(NO_MARK)),
    field(path::MASQUERADE_ALL, "masquerade-all", Form::Switch, "false", Live)
        .help("Masquerade every connection to a ClusterIP, a Pod's too, on either data path"),
    field(path::LOCALHOST, "iptables-localhost-nodeports", Form::Switch, "true", Live)
        .help("Drop packets to 127.0.0.0/8 that come from another machine, as kube-proxy does beside NodePorts at 127.0.0.1, which are never served here"),
    field("iptables.syncPeriod", "iptables-sync-period", Form::Time, "30s", Needless(NO_PERIOD)),
    field("iptables.minSyncPeriod", "iptables-min-sync-period", Form::Time, "1s", Needless(NO_PERIOD)),
    field("ipvs.syncPeriod", "ipvs-sync-period", Form::Time, "30s", Needless(NO_IPVS_PERIOD)),
    field("ipvs.minSyncPeriod", "ipvs-min-sync-period", Form::Time, "0s", Needless(NO_IPVS_PERIOD)),
    field(path::SCHEDULER, "ipvs-scheduler", Form::Text, "", Live)
        .help("The scheduler: rr, wrr, lc, wlc, sh, mh, ..., with flags as in mh,mh-fallback; rr when empty"),
    field(
        path::EXCLUDED,
        "ipvs-exclude-cidrs",
        Form::NetworkList,
        "",
        Live,
    )
    .help("Networks in which virtual servers and addresses of kube-ipvs0 stay, also when a predecessor is taken over from"),
    field(path::LOCAL, "ipvs-local-cidrs", Form::NetworkList, "", Live)
        .help("Networks of ClusterIPs that one route each makes local, in place of an address of kube-ipvs0 for each Service: for many thousands of them. kube-proxy has no such setting"),
    field(path::STRICT_ARP, "ipvs-strict-arp", Form::Switch, "false", Live)
        .help("Answer ARP requests only at the interface that has the address"),
    field(path::TCP_TIMEOUT, "ipvs-tcp-timeout", Form::Time, "0s", Live)
        .help("Idle time after which IPVS forgets an established TCP connection; 0 leaves the kernel's"),
    field(path::TCP_FIN_TIMEOUT, "ipvs-tcpfin-timeout", Form::Time, "0s", Live).help("The same after a FIN"),
    field(path::UDP_TIMEOUT, "ipvs-udp-timeout", Form::Time, "0s", Live).help("The same for UDP"),
    field("nftables.masqueradeBit", "", BIT, "14", Only(&["14"], ONE_BIT)),
    field(path::NFT_MASQUERADE_ALL, "", Form::Switch, "false", Live).help("The same on the data path nftables"),
    field("nftables.syncPeriod", "", Form::Time, "30s", Needless(NO_PERIOD)),
    field("nftables.minSyncPeriod", "", Form::Time, "1s", Needless(NO_PERIOD)),
    field("winkernel.networkName", "", Form::Text, "", Needless(WINDOWS)),
    field("winkernel.sourceVip", "", Form::Text, "", Needless(WINDOWS)),
    field("winkernel.enableDSR", "", Form::Switch, "false", Needless(WINDOWS)),
    field("winkernel.rootHnsEndpointName", "", Form::Text, "", Needless(WINDOWS)),
    field("winkernel.forwardHealthCheckVip", "", Form::Switch, "false", Needless(WINDOWS)),
    field(path::DETECTION, "detect-local-mode", DETECTIONS, "", Live)
        .help("How clients are known for Pods: ClusterCIDR (as when it is not given), NodeCIDR (by spec.podCIDRs of the own Node object), BridgeInterface or InterfaceNamePrefix"),
    field(path::BRIDGE, "pod-bridge-interface", Form::Text, "", Live)
        .help("The bridge that Pods are behind, with --detect-local-mode=BridgeInterface"),
    field(path::LINK_PREFIX, "pod-interface-name-prefix", Form::Text, "", Live)
        .help("What names of interfaces begin with that Pods are behind, with --detect-local-mode=InterfaceNamePrefix"),
    field(path::CLUSTER_CIDR, "cluster-cidr", Form::Networks, "", Live)
        .help("The Pod network: its Pods keep their source address, everybody else is masqueraded"),
    field(path::NODE_PORTS, "nodeport-addresses", Form::NodeAddresses, "", Live)
        .help("Where NodePorts are: at addresses of the node in these networks, at the primary ones, or at all; without it at the primary ones in the mode nftables, and at all in the mode ipvs"),
    field(path::OOM_SCORE, "oom-score-adj", SCORE, "-999", Live)
        .help("The kernel's score of this process when memory runs out"),
    field(path::MAX_PER_CORE, "conntrack-max-per-core", COUNT, "32768", Live)
        .help("Tracked connections per processor at most; 0 leaves the kernel's"),
    field(path::MIN, "conntrack-min", COUNT, "131072", Live)
        .help("Tracked connections at most, however few processors there are"),
    field(path::ESTABLISHED, "conntrack-tcp-timeout-established", Form::Time, "24h", Live)
        .help("Idle time of tracked TCP connections; 0 leaves the kernel's"),
    field(path::CLOSE_WAIT, "conntrack-tcp-timeout-close-wait", Form::Time, "1h", Live).help("The same in CLOSE_WAIT"),
    field(path::BE_LIBERAL, "conntrack-tcp-be-liberal", Form::Switch, "false", Live)
        .help("Let connection tracking accept TCP packets outside the window, and forward packets that belong to no connection"),
    field(path::UDP, "conntrack-udp-timeout", Form::Time, "0s", Live)
        .help("Idle time of tracked UDP flows without an answer; 0 leaves the kernel's"),
    field(path::UDP_STREAM, "conntrack-udp-timeout-stream", Form::Time, "0s", Live).help("The same with answers"),
    field("configSyncPeriod", "config-sync-period", Form::Time, "15m", Needless("sources are followed, not polled")),
    field("portRange", "proxy-port-range", Form::Text, "", Needless("no port is opened for a Service")),
    field("windowsRunAsService", "", Form::Switch, "false", Needless(WINDOWS)),
];
