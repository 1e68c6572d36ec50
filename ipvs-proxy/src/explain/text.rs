//! A report for a terminal.

use daemon::status::Lines;

use super::report::{Place, Report, State};

/// The report, a line for each thing.
pub(super) fn text(report: &Report) -> String {
    let mut lines = Lines::new();
    if let Some(daemon) = &report.daemon {
        lines.push(format_args!("note: {daemon}"));
    }
    if let Some(source) = &report.source {
        lines.push(format_args!("note: Services cannot be read, only the kernel is shown: {source}"));
    }
    for place in &report.places {
        write_place(&mut lines, report.mode, place);
    }
    lines.into_text()
}

fn write_place(lines: &mut Lines, mode: &str, place: &Place) {
    lines.push(format_args!("{} (mode {mode})", place.place));
    if let Some(service) = &place.service {
        let port = if service.port.is_empty() { String::new() } else { format!(", port {}", service.port) };
        lines.push(format_args!("  service   {}, {}{port}", service.name, service.kind));
        if !service.policy.is_empty() {
            lines.push(format_args!("  policy    {}", service.policy));
        }
        if let Some(seconds) = service.affinity {
            let client = match &service.affinity_prefix {
                Some(prefix) => format!("a client, all addresses of a network ({prefix}),"),
                None => "a client".to_owned(),
            };
            lines.push(format_args!("  affinity  {client} stays with its endpoint for {seconds} s"));
        }
        if let Some(weights) = &service.weights {
            lines.push(format_args!("  weights   {weights}"));
        }
        if let Some(distribution) = service.distribution {
            lines.push(format_args!("  prefers   {distribution}"));
        }
        if !service.sources.is_empty() {
            lines.push(format_args!("  sources   only {}", service.sources.join(", ")));
        }
    }
    for note in &place.notes {
        lines.push(format_args!("  note      {note}"));
    }
    for endpoint in &place.endpoints {
        let out = match (&endpoint.out, &endpoint.out_by_policy) {
            (Some(out), _) => format!("out: {out}"),
            (None, Some(out)) => format!("in for clients inside, out for others: {out}"),
            (None, None) => "takes connections".to_owned(),
        };
        lines.push(format_args!("  endpoint  {} on {}, {out}", endpoint.endpoint, endpoint.on));
    }
    for client in &place.clients {
        let class = serde_json::to_value(client.class).unwrap_or_default();
        let class = class.as_str().unwrap_or_default();
        lines.push(format_args!("  from {} ({class}): {}", client.address, client.kernel.join("; or ")));
        if !client.planned.is_empty() {
            lines.push(format_args!("    PLANNED {}", client.planned.join("; or ")));
        }
        if let Some(reason) = &client.reason {
            lines.push(format_args!("    because {reason}"));
        }
    }
    for row in &place.rows {
        let state = match row.state {
            State::InPlace => "in place",
            State::Draining => "draining",
            State::Missing => "MISSING",
            State::Different => "DIFFERS",
            State::NotPlanned => "NOT PLANNED",
        };
        let value = if row.value.is_empty() { String::new() } else { format!(" {}", row.value) };
        lines.push(format_args!("  row       {state:<11} {}{value}", row.row));
    }
}
