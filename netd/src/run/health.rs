//! flannel's words about its health.

use daemon::http::{Health, Page, Probe};

/// The page of `probe`; behind flannel's line, what is awaited.
pub(super) fn page(probe: Probe, health: &Health) -> Page {
    match probe {
        Probe::Health | Probe::Live if health.live => Page::text(200, "flanneld is running"),
        Probe::Health | Probe::Live => Page::text(503, "flanneld is stuck"),
        Probe::Ready if health.ready && health.live => Page::text(200, "flanneld is ready"),
        Probe::Ready => {
            let awaited = health.awaited.iter().map(|gate| format!("\nwaits for {gate}")).collect::<String>();
            Page::text(503, format!("flanneld is not ready yet{awaited}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_and_codes_are_flannels() {
        let health = |live, ready, awaited: &[&str]| Health {
            live,
            ready,
            awaited: awaited.iter().map(|&gate| gate.to_owned()).collect(),
        };
        assert_eq!(page(Probe::Health, &health(true, false, &[])), Page::text(200, "flanneld is running"));
        assert_eq!(page(Probe::Ready, &health(true, true, &[])), Page::text(200, "flanneld is ready"));
        let waiting = page(Probe::Ready, &health(true, false, &["leases", "tables"]));
        assert_eq!(
            (waiting.code, waiting.body.as_str()),
            (503, "flanneld is not ready yet\nwaits for leases\nwaits for tables")
        );
        assert_eq!(page(Probe::Live, &health(false, true, &[])).code, 503);
    }
}
