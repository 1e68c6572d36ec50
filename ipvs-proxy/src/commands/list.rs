//! `list`: the Services in etcd with their endpoints, as a table.

use std::net::SocketAddr;

use cluster::Event;
use cluster::etcd::{Prefix, Store};
use daemon::status::Lines;
use daemon::terminal;

use super::answered;
use crate::object::key::ObjectKey;
use crate::object::service::Service;
use crate::plan::here::Here;
use crate::plan::select::{Backend, Choice};
use crate::source::update;
use crate::source::view::View;

/// Prints the table; malformed objects are reported on standard error.
pub(super) async fn list(store: &Store, prefix: &Prefix) -> anyhow::Result<()> {
    let mut view = View::default();
    for entry in answered(store.list(prefix).await)?.entries {
        let put = Event::Put { key: entry.key, value: entry.value, revision: entry.mod_revision };
        if let Some(update) = update(put, ObjectKey::from_etcd, true) {
            view.take(update);
        }
    }
    terminal::put(&table(&view))?;
    terminal::aside(&refusals(&view));
    Ok(())
}

/// What is not in the table, and why.
fn refusals(view: &View) -> String {
    let mut lines = Lines::new();
    for (key, reason, _) in view.malformed() {
        lines.push(format_args!("{key}: {reason}"));
    }
    lines.into_text()
}

fn table(view: &View) -> String {
    let mut rows = vec![["NAMESPACE", "NAME", "CLUSTER-IP", "PORTS", "ENDPOINTS"].map(str::to_owned)];
    rows.extend(view.services().map(|service| row(view, service)));
    let widths = [0, 1, 2, 3].map(|column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths.get(column).copied().unwrap_or(0);
            format!("{cell:width$}")
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(view: &View, service: &Service) -> [String; 5] {
    let ports: Vec<_> = service.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
    let addresses: Vec<_> = service.cluster_ips.iter().map(ToString::to_string).collect();
    let nowhere = Here::on("");
    let mut endpoints: Vec<String> = Vec::new();
    for port in &service.ports {
        for family in service.families() {
            let chosen = Choice::of(port, family, view.slices(&service.name), &nowhere);
            let to = |backend: &Backend| SocketAddr::new(backend.addr, backend.port).to_string();
            endpoints.extend(chosen.cluster.iter().map(to));
        }
    }
    let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
    [
        service.name.namespace().to_owned(),
        service.name.name().to_owned(),
        if addresses.is_empty() { "None".to_owned() } else { addresses.join(",") },
        or_none(ports.join(",")),
        or_none(endpoints.join(",")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_stand_in_columns_with_the_endpoints_that_take_traffic() {
        let mut view = View::default();
        let objects = [
            (
                "services/default/web",
                r#"{"kind":"Service","metadata":{"name":"web"},
              "spec":{"clusterIP":"192.168.0.10","ports":[{"name":"http","port":80}]}}"#,
            ),
            (
                "endpointslices/default/web-1",
                r#"{"kind":"EndpointSlice","addressType":"IPv4",
              "metadata":{"name":"web-1","labels":{"kubernetes.io/service-name":"web"}},
              "ports":[{"name":"http","port":8080}],
              "endpoints":[{"addresses":["172.7.21.2"]},{"addresses":["172.7.21.3"],"conditions":{"ready":false}}]}"#,
            ),
            (
                "services/default/both",
                r#"{"kind":"Service","metadata":{"name":"both"},"spec":{"clusterIP":"fd00::10","clusterIPs":["fd00::10","192.168.0.11"],
              "ports":[{"port":80}]}}"#,
            ),
            (
                "endpointslices/default/both-6",
                r#"{"kind":"EndpointSlice","addressType":"IPv6",
              "metadata":{"name":"both-6","labels":{"kubernetes.io/service-name":"both"}},
              "ports":[{"port":8080}],"endpoints":[{"addresses":["fd00:7::2"]}]}"#,
            ),
            (
                "services/kube-system/headless",
                r#"{"kind":"Service","metadata":{"name":"headless","namespace":"kube-system"},
              "spec":{"clusterIP":"None"}}"#,
            ),
        ];
        for (key, json) in objects {
            let put = Event::Put { key: key.to_owned(), value: json.as_bytes().to_vec(), revision: 1 };
            view.take(update(put, ObjectKey::from_etcd, true).unwrap());
        }
        assert_eq!(
            table(&view),
            "\
NAMESPACE    NAME      CLUSTER-IP             PORTS   ENDPOINTS
default      both      fd00::10,192.168.0.11  80/tcp  [fd00:7::2]:8080
default      web       192.168.0.10           80/tcp  172.7.21.2:8080
kube-system  headless  None                   <none>  <none>
"
        );
    }

    #[test]
    fn a_key_forges_no_line_and_drives_no_terminal() {
        let mut view = View::default();
        for key in ["x\nservices/default/web: \u{1b}[2J", "services/default/y\nz\u{9b}2J"] {
            let put = Event::Put { key: key.to_owned(), value: b"\"\"".to_vec(), revision: 1 };
            view.take(update(put, ObjectKey::from_etcd, true).unwrap());
        }
        let text = refusals(&view);
        assert_eq!(text.lines().count(), 2, "{text:?}");
        assert!(text.contains("services/default/y\\nz\\u{9b}2J: ") && !text.contains('\u{1b}'), "{text:?}");
    }
}
