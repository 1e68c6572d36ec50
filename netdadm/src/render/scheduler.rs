//! kube-scheduler: one beside each API server, of which one leads.
//!
//! Invariant: it serves loopback only.

use super::controller_manager::{serve, start};
use super::flags::Flags;
use super::unit::{self, CONFINED, INSTALL, RESTART};
use super::{KUBERNETES, Place, Tree};
use crate::topology::{Component, Program, Purpose};

/// Adds the scheduler of this host.
pub(super) fn add(place: &Place<'_>, tree: &mut Tree) {
    let config = format!("{KUBERNETES}/scheduler.conf");
    let mut flags = Flags::default();
    serve(place, Purpose::Scheduler, &mut flags);
    if !place.since(24) {
        // Port 10251 asks nobody who he is; later versions do not know the flag.
        flags.set("port", 0);
    }
    for name in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        flags.set(name, &config);
    }
    flags.set("leader-elect", true);
    flags.deviate(place.topology, Component::Scheduler);
    let text = format!(
        "{head}Type=exec\nExecStart={program}{flags}\n{RESTART}{CONFINED}{INSTALL}",
        head = unit::head("Scheduler of Kubernetes", " kube-apiserver.service", true),
        program = place.program(Program::Kubernetes, "kube-scheduler"),
    );
    tree.unit("kube-scheduler.service", text, &[&config], start(place, Purpose::Scheduler));
}
