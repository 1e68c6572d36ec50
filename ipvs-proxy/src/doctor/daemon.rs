//! Whether the daemon runs, is in order, and serves every object.

use daemon::doctor::Trouble;

use super::Facts;

/// Whether it runs and says that everything is in place.
pub(super) fn judge(facts: &Facts) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    if let Some(silence) = &facts.known.silence {
        let fix =
            "systemctl start ipvs-proxy, and read its log; what stands in the kernel goes on, nothing follows changes";
        troubles.push(Trouble::problem(silence.clone(), fix));
    }
    if let Some(lost) = &facts.known.lost {
        let fix = "make it reachable (--etcd-endpoints, certificates, or --services-dir); what is known stays in force";
        troubles.push(Trouble::problem(format!("Services cannot be read: {lost}"), fix));
    }
    let Some(status) = facts.known.status.as_ref().filter(|_| facts.known.silence.is_none()) else { return troubles };
    for kind in &status.waiting_for {
        let fix = "see `ipvs-proxy status`; nothing is removed before";
        troubles.push(Trouble::problem(format!("the first list of {kind} is awaited"), fix));
    }
    if let Some(alarm) = &status.alarm {
        let fix = "look at the source: it shows next to nothing of what it did";
        troubles.push(Trouble::problem(alarm.clone(), fix));
    }
    for table in status.tables.iter().filter(|table| !table.rows.is_done()) {
        troubles.push(Trouble::of_table(&table.name, &table.rows, "ipvs-proxy"));
    }
    troubles
}

/// Whether every object is read and served.
pub(super) fn objects(facts: &Facts) -> Vec<Trouble> {
    let view = &facts.known.view;
    let mut troubles = Vec::new();
    let unread = view.malformed().map(|(object, reason, _)| format!("{object}: {reason}"));
    let files = view.unreadable().map(|(file, reason)| format!("{file}: {reason}"));
    for found in unread.chain(files) {
        troubles.push(Trouble::problem(found, "correct it: the reason names the field and what is accepted"));
    }
    for (service, reason) in &facts.known.planned.misplaced {
        troubles.push(Trouble::problem(
            format!("services/{service}: {reason}"),
            "give it an address of the Service network, or correct --service-cidr and --cluster-cidr",
        ));
    }
    for service in view.services() {
        let name = &service.name;
        for reason in &service.skipped {
            troubles.push(Trouble::note(format!("services/{name}: {reason}"), "correct it; the rest is served"));
        }
        for field in facts.known.planned.plane.not_served(service) {
            let fix = "see docs/proxy-modes.md for what each data path serves";
            troubles.push(Trouble::problem(format!("services/{name}: {field} is not served"), fix));
        }
        if let Some(field) = crate::plan::unhinted(service, view.slices(name)) {
            let fix = "have the controller that writes the EndpointSlices write hints, or write them";
            troubles.push(Trouble::note(format!("services/{name}: {field}"), fix));
        }
        for port in crate::plan::unmatched(service, view.slices(name)) {
            let fix = "give the Service's port and the EndpointSlice's one name and protocol";
            troubles.push(Trouble::problem(format!("services/{name}: {port}"), fix));
        }
    }
    troubles
}
