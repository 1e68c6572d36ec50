//! `status`: what the running daemon says about itself.

use std::path::Path;

use anyhow::Context;
use daemon::json;
use daemon::lifecycle::Exit;
use daemon::status::{FILE, Lines, Stored};
use daemon::terminal::{self, Shown, Text, Tone, Watch};
use serde::Deserialize;
use serde_json::Value;

use crate::run::NAME;
use crate::run::status::{Conflict, ProxyStatus, ServiceNetwork};

/// Prints the status, once or again and again; the exit status is 0 when the daemon runs and all is well, 1 when not.
///
/// # Errors
/// When there is no status to read.
pub(crate) fn status(run_dir: &Path, json: bool, watch: Watch) -> anyhow::Result<Exit> {
    terminal::show(watch, tone, || shown(run_dir, json))
}

fn shown(run_dir: &Path, json: bool) -> anyhow::Result<Shown> {
    let context = || format!("no status in {}; is the daemon running, with the same --run-dir?", run_dir.display());
    let mut stored = Stored::read(run_dir).with_context(context)?;
    let warning = stored.warning(NAME);
    if let (Some(_), Value::Object(fields)) = (&warning, &mut stored.status) {
        // Nobody knows whether the kernel is as desired.
        fields.insert("ok".to_owned(), false.into());
    }
    let status = ProxyStatus::deserialize(&stored.status)
        .with_context(|| format!("understand {}", run_dir.join(FILE).display()))?;
    let text = if json { Text::Json(json::pretty(&stored.status)?) } else { Text::Lines(render(&status)) };
    Ok(Shown {
        notes: warning.into_iter().collect(),
        text,
        exit: if status.ok { Exit::Success } else { Exit::Failure },
    })
}

fn tone(line: &str) -> Tone {
    let begins = |words: &[&str]| words.iter().any(|word| line.starts_with(word));
    match line {
        _ if begins(&["in place on "]) => Tone::Good,
        _ if begins(&["NOT in place on ", "ALARM: ", "source: ", "refused: ", "conflict: "]) => Tone::Bad,
        _ if begins(&["waiting for ", "load balancers: ", "left out: ", "not served yet: ", "advice: "]) => Tone::Note,
        _ => Tone::Plain,
    }
}

/// A status for a terminal.
#[must_use]
pub(crate) fn text(status: &Value) -> String {
    // Before the first status there is nothing to say.
    ProxyStatus::deserialize(status).map(|status| render(&status)).unwrap_or_default()
}

fn render(status: &ProxyStatus) -> String {
    let mut lines = Lines::new();
    let place = if status.ok { "in place" } else { "NOT in place" };
    let ProxyStatus { node, version, mode, services, endpoint_slices, .. } = status;
    lines.push(format_args!(
        "{place} on {node} (version {version}, mode {mode}): {services} Services, {endpoint_slices} EndpointSlices"
    ));
    for source in &status.waiting_for {
        lines.push(format_args!("waiting for the first list of {source}; nothing is removed"));
    }
    if let Some(alarm) = &status.alarm {
        lines.push(format_args!("ALARM: {alarm}"));
    }
    if let Some(reason) = &status.lost {
        lines.push(format_args!("source: {reason}"));
    }
    if let Some(reason) = &status.ineligible {
        lines.push(format_args!("load balancers: nobody is to be sent here, /healthz answers 503: {reason}"));
    }
    for ServiceNetwork { network, from, used } in &status.service_networks {
        let rest = if *used { "" } else { ", not used beside --service-cidr" };
        lines.push(format_args!("Service network {network}: by {from}{rest}"));
    }
    for table in &status.tables {
        lines.push(format_args!("table {}: {} of {} rows in place", table.name, table.rows.done, table.rows.desired));
        table.rows.write_open(&mut lines, "  ");
    }
    for server in &status.draining {
        lines.push(format_args!("draining: {server}"));
    }
    for refused in &status.refused {
        let earlier = if refused.earlier_version_served { " (an earlier version is served)" } else { "" };
        lines.push(format_args!("refused: {}: {}{earlier}", refused.object, refused.reason));
    }
    for Conflict { place, served, not_served, reason } in &status.conflicts {
        lines.push(format_args!("conflict: {place}: {not_served} is not served, {served} is, {reason}"));
    }
    for object in &status.skipped {
        for element in &object.elements {
            lines.push(format_args!("left out: {}: {element}", object.object));
        }
    }
    for service in &status.remembered {
        lines.push(format_args!("served as the kernel remembers it, its endpoints as they were: {service}"));
    }
    for service in &status.not_served {
        for field in &service.fields {
            lines.push(format_args!("not served yet: {}: {field}", service.object));
        }
    }
    for advice in &status.advice {
        lines.push(format_args!("advice: {advice}"));
    }
    lines.into_text()
}

#[cfg(test)]
mod tests {
    use daemon::status::{Row, Table as Rows};

    use super::*;
    use crate::run::status::{NotServed, Refused, Skipped, Table};

    fn troubled() -> ProxyStatus {
        ProxyStatus {
            version: "0.1.0".into(),
            node: "n".into(),
            mode: "ipvs".into(),
            services: 2,
            tables: vec![Table {
                name: "ipvs".into(),
                rows: Rows {
                    desired: 3,
                    done: 2,
                    open: vec![Row { key: "tcp 192.168.0.10:80".into(), state: "pending".into(), ..Row::default() }],
                    open_count: 1,
                    error: None,
                },
            }],
            refused: vec![Refused {
                object: "services/default/api\nin place on n".into(),
                reason: "spec.clusterIP: \"x\"; accepted: an address".into(),
                earlier_version_served: true,
            }],
            conflicts: vec![Conflict {
                place: "tcp 10.4.7.9:80".into(),
                served: "services/default/web".into(),
                not_served: "services/default/api".into(),
                reason: "which is older".into(),
            }],
            skipped: vec![Skipped {
                object: "services/default/web".into(),
                elements: vec!["spec.externalIPs[1]: \"x\"; accepted: an address".into()],
            }],
            not_served: vec![NotServed {
                object: "services/default/web".into(),
                fields: vec!["spec.ports.nodePort: 30080".into()],
            }],
            ..ProxyStatus::default()
        }
    }

    #[test]
    fn everything_that_is_not_in_place_is_a_line_and_no_name_can_forge_one() {
        let status = troubled();
        assert_eq!(
            render(&status),
            "\
NOT in place on n (version 0.1.0, mode ipvs): 2 Services, 0 EndpointSlices
table ipvs: 2 of 3 rows in place
  pending tcp 192.168.0.10:80
refused: services/default/api\\nin place on n: spec.clusterIP: \"x\"; accepted: an address (an earlier version is served)
conflict: tcp 10.4.7.9:80: services/default/api is not served, services/default/web is, which is older
left out: services/default/web: spec.externalIPs[1]: \"x\"; accepted: an address
not served yet: services/default/web: spec.ports.nodePort: 30080
"
        );
    }

    #[test]
    fn every_field_of_the_status_in_json_is_documented() {
        let text = include_str!("../../../docs/proxy-tools.md");
        let (_, section) = text.split_once("\n## status\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let documented =
            |name: &str| section.lines().any(|line| line.starts_with("| ") && line.contains(&format!("`{name}`")));
        let Value::Object(fields) = serde_json::to_value(troubled()).unwrap() else { panic!("no object") };
        for (name, value) in &fields {
            assert!(documented(name), "{name} is not in docs/proxy-tools.md");
            let items = value.as_array().into_iter().flatten().filter_map(Value::as_object);
            for key in items.flat_map(|item| item.keys()) {
                assert!(section.contains(&format!("`{key}`")), "{name}.{key} is not in docs/proxy-tools.md");
            }
        }
    }
}
