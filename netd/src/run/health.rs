//! flannel's words about its health; behind flannel's line, each loop that makes no progress, or what is awaited.

use daemon::http::{Health, Page, Probe};

/// The page of `probe`.
pub(super) fn page(probe: Probe, health: &Health) -> Page {
    match probe {
        Probe::Health | Probe::Live if health.is_live() => Page::text(200, "flanneld is running"),
        Probe::Ready if health.ready && health.is_live() => Page::text(200, "flanneld is ready"),
        _ if !health.is_live() => {
            let stuck = health.stuck.iter().map(|stuck| format!("\n{stuck}")).collect::<String>();
            Page::text(503, format!("flanneld is stuck{stuck}"))
        }
        _ => {
            let awaited = health.awaited.iter().map(|gate| format!("\nwaits for {gate}")).collect::<String>();
            Page::text(503, format!("flanneld is not ready yet{awaited}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use daemon::http::Vitals;

    use super::*;

    #[test]
    fn bodies_and_codes_are_flannels() {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let health = |stuck, ready, awaited| Health {
            stuck: texts(stuck),
            ready,
            awaited: texts(awaited),
            vitals: Vitals::default(),
        };
        assert_eq!(page(Probe::Health, &health(&[], false, &[])), Page::text(200, "flanneld is running"));
        assert_eq!(page(Probe::Ready, &health(&[], true, &[])), Page::text(200, "flanneld is ready"));
        let waiting = page(Probe::Ready, &health(&[], false, &["leases", "tables"]));
        assert_eq!(
            (waiting.code, waiting.body.as_str()),
            (503, "flanneld is not ready yet\nwaits for leases\nwaits for tables")
        );
        let stuck = Page::text(503, "flanneld is stuck\nkeeper: has ended");
        for probe in [Probe::Health, Probe::Live, Probe::Ready] {
            assert_eq!(page(probe, &health(&["keeper: has ended"], true, &[])), stuck);
        }
    }
}
