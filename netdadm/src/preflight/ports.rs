//! Ports: whether those of this host's programs are free, and what listens where node ports are.
//!
//! Pure. Invariant: a program at its own port is no finding, so that a host that runs already is fit.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use daemon::doctor::Trouble;

use super::facts::{Case, Process, Socket};
use crate::topology::{Backend, Ports, Purpose, Transport};

/// Where Services have their node ports (`--service-node-port-range`).
const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

/// Where old API servers, managers and kubelets answer everybody without asking who it is.
const INSECURE: [(u16, &str); 5] = [
    (8080, "kube-apiserver"),
    (10251, "kube-scheduler"),
    (10252, "kube-controller"),
    (10255, "kubelet"),
    (4194, "kubelet"),
];

/// Ports that are taken, with who has them.
pub(super) fn judge(case: &Case) -> Vec<Trouble> {
    let usual = Ports::default();
    let ports = case.plan.as_ref().map_or(&usual, |plan| &plan.topology.ports);
    let backend = case.plan.as_ref().map(|plan| plan.topology.pods.backend.value);
    let mut troubles = Vec::new();
    for (purpose, port, _) in ports.iter().filter(|(purpose, ..)| case.serves(*purpose)) {
        let unused = match purpose {
            Purpose::Vxlan => backend.is_some_and(|backend| backend != Backend::Vxlan),
            Purpose::Wireguard => backend.is_none_or(|backend| backend != Backend::Wireguard),
            _ => false,
        };
        let transport = purpose.transport();
        let taken =
            case.facts.sockets.iter().filter(|socket| socket.transport == transport && socket.at.port() == port);
        let foreign = taken.filter(|socket| !unused && !is_own(purpose, socket));
        // Several addresses of one process are one finding.
        let mut seen = BTreeSet::new();
        for socket in foreign.filter(|socket| seen.insert(socket.owner.as_ref().map(|owner| owner.pid))) {
            let found = format!("{port}/{}, the port of {purpose}, is taken by {}", word(transport), who(socket));
            troubles.push(Trouble::problem(found, stopping(socket.owner.as_ref())));
        }
    }
    for (port, program) in INSECURE {
        let open = |socket: &&Socket| {
            socket.at.port() == port && socket.owner.as_ref().is_some_and(|owner| owner.name == program)
        };
        if let Some(socket) = case.facts.sockets.iter().find(open) {
            let found = format!("{} answers everybody at {} without asking who it is", who(socket), socket.at);
            let flag = if program == "kubelet" {
                "--read-only-port=0 --cadvisor-port=0"
            } else {
                "--insecure-port=0, or --port=0"
            };
            troubles.push(Trouble::problem(found, format!("start it with {flag}")));
        }
    }
    troubles
}

/// What keeps node ports from being Services'.
pub(super) fn node_ports(case: &Case) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    if !case.is(crate::topology::Role::Node) {
        return troubles;
    }
    let range = case.facts.text("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let numbers: Vec<u16> = range.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    if let [first, last] = *numbers
        && first <= *NODE_PORTS.end()
        && last >= *NODE_PORTS.start()
        && !reserved(case).contains(&first.max(*NODE_PORTS.start()))
    {
        let found =
            format!("this host's own connections take ports from {first} to {last}, node ports of Services among them");
        troubles.push(Trouble::problem(
            found,
            "sysctl -w net.ipv4.ip_local_port_range='32768 60999', and in /etc/sysctl.d",
        ));
    }
    let there = case.facts.sockets.iter().filter(|socket| NODE_PORTS.contains(&socket.at.port()));
    let foreign = there.filter(|socket| {
        socket.owner.as_ref().is_none_or(|owner| owner.name != "ipvs-proxy" && owner.name != "kube-proxy")
    });
    let mut seen = BTreeSet::new();
    for socket in foreign.filter(|socket| seen.insert((socket.at.port(), socket.transport))) {
        let found = format!("{} listens at {}, where a Service may get its node port", who(socket), socket.at);
        troubles.push(Trouble::note(found, "move it below 30000 or above 32767"));
    }
    troubles
}

/// Ports that the kernel gives to no connection by itself.
fn reserved(case: &Case) -> BTreeSet<u16> {
    let text = case.facts.text("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let ranges = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u16>().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

/// True when the program that the port is for has it; the kernel's own tunnels have no process.
fn is_own(purpose: Purpose, socket: &Socket) -> bool {
    let program = match purpose {
        Purpose::ApiServer => "kube-apiserver",
        Purpose::EtcdClient | Purpose::EtcdPeer | Purpose::EtcdMetrics => "etcd",
        Purpose::Kubelet | Purpose::KubeletHealth => "kubelet",
        // At most 15 characters (TASK_COMM_LEN).
        Purpose::ControllerManager => "kube-controller",
        Purpose::Scheduler => "kube-scheduler",
        Purpose::ProxyMetrics | Purpose::ProxyHealth => "ipvs-proxy",
        Purpose::Netd => "netd",
        Purpose::Vxlan | Purpose::Wireguard => return socket.owner.is_none(),
    };
    socket.owner.as_ref().is_some_and(|owner| owner.name == program)
}

const fn word(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

fn who(socket: &Socket) -> String {
    match &socket.owner {
        Some(Process { pid, name, unit: Some(unit) }) => format!("{name} (process {pid}, {unit})"),
        Some(Process { pid, name, unit: None }) => format!("{name} (process {pid})"),
        None => "a socket of the kernel or of a process that is not seen from here".to_owned(),
    }
}

fn stopping(owner: Option<&Process>) -> String {
    match owner {
        Some(Process { name, .. }) if name == "kube-proxy" => {
            "kubectl -n kube-system delete daemonset kube-proxy (or stop its unit), then ipvs-proxy --cleanup-kube-proxy"
                .to_owned()
        }
        Some(Process { unit: Some(unit), .. }) if unit.ends_with(".service") => {
            format!("systemctl disable --now {unit}")
        }
        Some(Process { pid, .. }) => {
            format!("kill {pid}, and find what starts it; or give ours another port in the topology")
        }
        None => "ip -details link shows a tunnel at that port; ss -lnp a process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::tests::said;

    fn socket(transport: Transport, at: &str, name: &str, unit: Option<&str>) -> Socket {
        let owner = Process { pid: 812, name: name.into(), unit: unit.map(str::to_owned) };
        Socket { transport, at: at.parse().unwrap(), owner: (!name.is_empty()).then_some(owner) }
    }

    fn with(sockets: Vec<Socket>) -> Case {
        let mut case = Case::default();
        case.facts.sockets = sockets;
        case
    }

    #[test]
    fn a_port_that_another_program_has_is_found_with_who_it_is() {
        let haproxy = socket(Transport::Tcp, "[::]:6443", "haproxy", Some("haproxy.service"));
        let found = said(judge(&with(vec![haproxy.clone()])));
        assert!(
            found.contains("6443/tcp, the port of apiServer, is taken by haproxy (process 812, haproxy.service)"),
            "{found}"
        );
        assert!(found.contains("systemctl disable --now haproxy.service"), "{found}");
        assert_eq!(said(judge(&with(vec![haproxy]).of_host("hdss7-21"))), "", "no API server there");
        let old = socket(Transport::Tcp, "0.0.0.0:10256", "kube-proxy", None);
        assert!(said(judge(&with(vec![old]))).contains("then ipvs-proxy --cleanup-kube-proxy"));
        for (at, name) in
            [("10.4.7.21:2379", "etcd"), ("127.0.0.1:10257", "kube-controller"), ("[::]:10250", "kubelet")]
        {
            assert_eq!(said(judge(&with(vec![socket(Transport::Tcp, at, name, None)]))), "", "{name}");
        }
        assert_eq!(said(judge(&with(vec![socket(Transport::Udp, "0.0.0.0:8472", "", None)]))), "", "a tunnel");
        assert!(
            said(judge(&with(vec![socket(Transport::Udp, "0.0.0.0:8472", "flanneld", None)]))).contains("8472/udp")
        );
    }

    #[test]
    fn a_port_that_answers_everybody_is_found() {
        let found = said(judge(&with(vec![socket(Transport::Tcp, "0.0.0.0:10255", "kubelet", None)])));
        assert!(
            found.contains("answers everybody at 0.0.0.0:10255") && found.contains("--read-only-port=0"),
            "{found}"
        );
        assert_eq!(said(judge(&with(vec![socket(Transport::Tcp, "0.0.0.0:8080", "tomcat", None)]))), "");
    }

    #[test]
    fn node_ports_that_others_take_are_found() {
        let range = "/proc/sys/net/ipv4/ip_local_port_range";
        let found = said(node_ports(&Case::planted(&[(range, "1024\t60999\n")])));
        assert!(found.contains("take ports from 1024 to 60999"), "{found}");
        let reserved = ("/proc/sys/net/ipv4/ip_local_reserved_ports", "8080,30000-32767\n");
        assert_eq!(said(node_ports(&Case::planted(&[(range, "1024\t60999\n"), reserved]))), "");
        assert_eq!(said(node_ports(&Case::planted(&[(range, "32768\t60999\n")]))), "");
        let found = said(node_ports(&with(vec![socket(Transport::Tcp, "0.0.0.0:30080", "nginx", None)])));
        assert!(found.starts_with("note nginx (process 812) listens at 0.0.0.0:30080"), "{found}");
    }
}
