//! `status`: what the running daemon says about itself.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::command::args::Flags;
use crate::run::status::Status;

/// Prints the status; the exit status is 0 when all is well, 1 when not.
///
/// # Errors
/// When there is no status to read.
pub(crate) fn status(flags: &Flags, json: bool) -> anyhow::Result<ExitCode> {
    let run_dir = Path::new(&flags.run_dir);
    let context = || format!("no status in {}; is the daemon running, with the same --run-dir?", run_dir.display());
    let status = Status::read(run_dir).with_context(context)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", text(&status));
    }
    Ok(if status.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(status: &Status) -> String {
    let mut lines = vec![format!(
        "{} on {} (version {}): {} Services, {} EndpointSlices",
        if status.ok { "in place" } else { "NOT in place" },
        status.node,
        status.version,
        status.services,
        status.endpoint_slices
    )];
    lines.extend(
        status.waiting_for.iter().map(|source| format!("waiting for the first list of {source}; nothing is removed")),
    );
    lines.extend(status.lost.iter().map(|reason| format!("source: {reason}")));
    for table in &status.tables {
        lines.push(format!("table {}: {} of {} rows in place", table.name, table.done, table.desired));
        lines.extend(table.error.iter().map(|error| format!("  cannot be read: {error}")));
        lines.extend(table.open.iter().map(|row| format!("  {row}")));
    }
    lines.extend(status.draining.iter().map(|server| format!("draining: {server}")));
    for refused in &status.refused {
        let earlier = if refused.earlier_version_served { " (an earlier version is served)" } else { "" };
        lines.push(format!("refused: {}: {}{earlier}", refused.object, refused.reason));
    }
    lines.extend(status.remembered.iter().map(|service| format!("served as the kernel remembers it: {service}")));
    for service in &status.not_served {
        lines.extend(service.fields.iter().map(|field| format!("not served yet: {}: {field}", service.object)));
    }
    lines.extend(status.advice.iter().map(|advice| format!("advice: {advice}")));
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::status::{NotServed, Refused, Table};

    #[test]
    fn everything_that_is_not_in_place_is_a_line() {
        let status = Status {
            version: "0.1.0".into(),
            node: "n".into(),
            services: 2,
            tables: vec![Table {
                name: "ipvs".into(),
                desired: 3,
                done: 2,
                open: vec!["tcp 192.168.0.10:80: pending".into()],
                error: None,
            }],
            refused: vec![Refused {
                object: "services/default/api".into(),
                reason: "spec.clusterIP: \"x\"; accepted: an address".into(),
                earlier_version_served: true,
            }],
            not_served: vec![NotServed {
                object: "services/default/web".into(),
                fields: vec!["spec.ports.nodePort: 30080".into()],
            }],
            ..Status::default()
        };
        assert_eq!(
            text(&status),
            "\
NOT in place on n (version 0.1.0): 2 Services, 0 EndpointSlices
table ipvs: 2 of 3 rows in place
  tcp 192.168.0.10:80: pending
refused: services/default/api: spec.clusterIP: \"x\"; accepted: an address (an earlier version is served)
not served yet: services/default/web: spec.ports.nodePort: 30080
"
        );
    }
}
