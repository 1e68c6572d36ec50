//! The member `Backend` of net-conf.
//!
//! Invariant: an option that a backend does not have here is ignored and named; what the options mean is the backend's
//! own room to say.

use super::go_json::Object;
use crate::plan::backend::Backend;
use cluster::Problem;

/// Takes the member `Backend` of net-conf; `None` when it has problems.
pub(crate) fn take(object: &mut Object, problems: &mut Vec<Problem>, notes: &mut Vec<String>) -> Option<Backend> {
    let Some(mut options) = object.take_object("Backend", problems) else {
        if problems.iter().any(|problem| problem.field == "Backend") {
            return None;
        }
        notes.push("Backend: absent, taken as vxlan (flannel would take udp)".to_owned());
        return Some(Backend::absent());
    };
    let kind: String = options.take("Type", Backend::accepted(), problems).unwrap_or_default();
    let taken = Backend::take(&kind, &mut options, problems)?;
    notes.extend(options.rest().iter().map(|key| format!("{key}: not an option of {kind} here, ignored")));
    Some(taken)
}
