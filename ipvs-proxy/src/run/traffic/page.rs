//! `ServicePage`: the numbers of Services as Prometheus reads them.
//!
//! Invariant: each number is one counter of the kernel, under the labels of what it counted for. Numbers of several addresses are never
//! added up here: the sum would fall, and be taken for a new beginning, when one of them goes.

use std::fmt;
use std::sync::{Arc, Mutex};

use daemon::metrics::counters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Sample, ServicePlace, locked};
use crate::plan::frontend::Kind;

const CONNECTIONS: &str = "ipvs_proxy_service_connections";
const PACKETS: &str = "ipvs_proxy_service_packets";
const BYTES: &str = "ipvs_proxy_service_bytes";
const LEFT_OUT: &str = "ipvs_proxy_service_addresses_left_out";

/// From clients, and to them.
const DIRECTIONS: [&str; 2] = ["in", "out"];

/// What is shown next; clones are the same page.
#[derive(Debug, Clone, Default)]
pub(super) struct ServicePage(Arc<Mutex<Sample>>);

type Labels = Vec<(&'static str, String)>;

impl ServicePage {
    /// Puts up what is shown once.
    pub(super) fn put(&self, sample: Sample) {
        *locked(&self.0) = sample;
    }
}

impl ServicePlace {
    fn labels(&self) -> Labels {
        let kind = match self.kind {
            Kind::ClusterIp => "ClusterIP",
            Kind::NodePort => "NodePort",
            Kind::External => "ExternalIP",
            Kind::LoadBalancer => "LoadBalancer",
        };
        vec![
            ("namespace", self.service.namespace().to_owned()),
            ("service", self.service.name().to_owned()),
            ("port_name", self.port_name.clone()),
            ("protocol", self.protocol.to_string().to_uppercase()),
            ("kind", kind.to_owned()),
            ("address", self.at.to_string()),
        ]
    }

    fn labels_of(&self, direction: &str) -> Labels {
        let mut labels = self.labels();
        labels.push(("direction", direction.to_owned()));
        labels
    }
}

impl Collector for ServicePage {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Sample { connections, traffic, left_out } = std::mem::take(&mut *locked(&self.0));
        let help = "New connections that came to an address and port of a Service.";
        counters(&mut encoder, (CONNECTIONS, help), connections.iter().map(|(at, count)| (at.labels(), *count)))?;
        let by_direction = |numbers: fn(&kernel::ipvs::Traffic) -> [u64; 2]| {
            traffic.iter().flat_map(move |(at, counted)| {
                DIRECTIONS.into_iter().zip(numbers(counted)).map(|(direction, count)| (at.labels_of(direction), count))
            })
        };
        let help = "Packets that virtual servers of IPVS passed on, from clients (in) and to them (out).";
        counters(&mut encoder, (PACKETS, help), by_direction(|counted| counted.packets))?;
        counters(&mut encoder, (BYTES, "Bytes of these packets."), by_direction(|counted| counted.bytes))?;
        let help = "Addresses and ports of Services that are not shown because there are too many.";
        let gauge = encoder.encode_descriptor(LEFT_OUT, help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(left_out).unwrap_or(i64::MAX)).encode(gauge)
    }
}

#[cfg(test)]
mod tests {
    use daemon::metrics::Metrics;
    use daemon::readiness::Readiness;
    use kernel::ipvs::Traffic;
    use netstate::Protocol;

    use super::*;
    use crate::object::ObjectName;

    fn place(port_name: &str, kind: Kind, at: &str) -> ServicePlace {
        let (service, protocol) = (ObjectName::new("shop", "web"), Protocol::Tcp);
        ServicePlace { service, port_name: port_name.to_owned(), protocol, kind, at: at.parse().unwrap() }
    }

    /// The lines about Services.
    fn lines(metrics: &Metrics) -> Vec<String> {
        let text = metrics.encode();
        text.lines().filter(|line| line.contains("ipvs_proxy_service_")).map(str::to_owned).collect()
    }

    #[test]
    fn each_counter_stands_under_the_labels_of_its_service_port_and_is_shown_once() {
        let metrics = Metrics::new("ipvs-proxy", "0.1.0", Readiness::new([]));
        let page = ServicePage::default();
        metrics.extend(|registry| registry.register_collector(Box::new(page.clone())));
        let none = lines(&metrics);
        let connections = vec![
            (place("http", Kind::ClusterIp, "192.168.0.10:80"), 7),
            (place("", Kind::NodePort, "[::]:30080"), u64::MAX),
        ];
        let counted = Traffic { connections: 7, packets: [40, 30], bytes: [4000, 1 << 40] };
        let traffic = vec![(place("http", Kind::ClusterIp, "192.168.0.10:80"), counted)];
        page.put(Sample { connections, traffic, left_out: 2 });
        let text = lines(&metrics).join("\n") + "\n";
        assert_eq!(text, include_str!("page.txt"));
        assert_eq!(lines(&metrics), none, "the next one reads anew");
    }
}
