//! What a source says that is wrong or not served, in the log.
//!
//! Invariant: each thing is written when it is new, not once more with every change of its object.

use std::convert::Infallible;

use cluster::Event;

use crate::dataplane::DataPlane;
use crate::object::service::Service;
use crate::source::view::View;
use crate::source::{JUNK, Update};

/// Writes into the log what a source says that is wrong or not served.
pub(super) fn log(update: &Update, view: &View, plane: &DataPlane) {
    match update {
        Update::Service(Event::Put { key, value: Ok(new), .. }) => {
            let old = view.service(key);
            log_not_served(new, old, plane);
            log_skipped(&format!("services/{key}"), &new.skipped, old.map(|old| old.skipped.as_slice()));
        }
        Update::Slice(Event::Put { key, value: Ok(new), .. }) => {
            let old = view.slice(key).map(|old| old.skipped.as_slice());
            log_skipped(&format!("endpointslices/{key}"), &new.skipped, old);
        }
        Update::Node(Event::Put { key, value: Ok(new), .. }) => {
            let old = view.node(key.name()).map(|old| old.skipped.as_slice());
            log_skipped(&format!("nodes/{key}"), &new.skipped, old);
        }
        Update::Node(Event::Put { key, value: Err(reason), .. }) => {
            tracing::warn!(object = %format_args!("nodes/{key}"), reason, "object is malformed");
        }
        Update::Service(Event::Put { key, value: Err(reason), .. }) => {
            tracing::warn!(object = %format_args!("services/{key}"), reason, "object is malformed");
        }
        Update::Slice(Event::Put { key, value: Err(reason), .. }) => {
            tracing::warn!(object = %format_args!("endpointslices/{key}"), reason, "object is malformed");
        }
        Update::Junk(Event::Put { key, .. }) => tracing::warn!(object = key, reason = JUNK, "object is malformed"),
        Update::Every(event) => log_source(event, view),
        Update::Service(event) => event.clone().keyless().iter().for_each(|event| log_source(event, view)),
        Update::Slice(event) => event.clone().keyless().iter().for_each(|event| log_source(event, view)),
        Update::Node(event) => event.clone().keyless().iter().for_each(|event| log_source(event, view)),
        Update::Junk(_) => {}
    }
}

/// Writes into the log how the source itself is.
fn log_source(event: &Event<Infallible, Infallible>, view: &View) {
    match event {
        Event::Invalid { source, reason, .. } => tracing::warn!(source, reason, "file cannot be read"),
        Event::Lost(error) => tracing::warn!(%error, "source is out of reach; what is known stays in force"),
        Event::Complete if view.lost().is_some() => tracing::info!("source is in reach again"),
        Event::Notes { source, notes } if !notes.is_empty() => tracing::info!(source, ?notes, "file holds more"),
        _ => {}
    }
}

fn log_not_served(new: &Service, old: Option<&Service>, plane: &DataPlane) {
    let fields = plane.not_served(new);
    if !fields.is_empty() && old.is_none_or(|old| plane.not_served(old) != fields) {
        tracing::warn!(service = %new.name, ?fields, "Service asks for what is not served yet");
    }
}

fn log_skipped(object: &str, new: &[String], old: Option<&[String]>) {
    if !new.is_empty() && old != Some(new) {
        tracing::warn!(object, elements = ?new, "elements cannot be read and are left out");
    }
}
