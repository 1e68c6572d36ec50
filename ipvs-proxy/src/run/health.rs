//! kube-proxy's words about its health.

use std::time::SystemTime;

use daemon::http::{Health, Page, Probe};
use serde_json::json;

/// The page of `probe`: JSON as kube-proxy writes it; what is awaited beside it.
pub(super) fn page(probe: Probe, health: &Health) -> Page {
    let healthy = match probe {
        Probe::Health | Probe::Live => health.is_live(),
        Probe::Ready => health.is_live() && health.ready,
    };
    let now = rfc3339(SystemTime::now());
    let mut body = json!({"lastUpdated": now, "currentTime": now, "healthy": healthy});
    if let Some(fields) = body.as_object_mut() {
        if probe == Probe::Health {
            fields.insert("nodeEligible".to_owned(), true.into());
        }
        if !health.stuck.is_empty() {
            fields.insert("stuck".to_owned(), health.stuck.clone().into());
        }
        if probe == Probe::Ready {
            fields.insert("awaited".to_owned(), health.awaited.clone().into());
        }
    }
    Page::json(if healthy { 200 } else { 503 }, body.to_string())
}

/// `time` in UTC as RFC 3339 has it, in whole seconds.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a number of days since 1970 (Howard Hinnant, chrono-compatible date algorithms).
const fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_651_200, "2026-11-26T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_stuck_thread_is_unhealthy_and_a_new_daemon_is_not_ready() {
        let stuck = |live: bool| if live { Vec::new() } else { vec!["worker: has ended".to_owned()] };
        let health = |live, ready| Health { stuck: stuck(live), ready, awaited: vec!["tables".to_owned()] };
        let code = |probe, live, ready| page(probe, &health(live, ready)).code;
        assert_eq!((code(Probe::Health, true, false), code(Probe::Live, true, false)), (200, 200));
        assert_eq!((code(Probe::Health, false, true), code(Probe::Live, false, true)), (503, 503));
        assert_eq!((code(Probe::Ready, true, false), code(Probe::Ready, true, true)), (503, 200));
        let body: serde_json::Value = serde_json::from_str(&page(Probe::Health, &health(true, true)).body).unwrap();
        assert_eq!((&body["nodeEligible"], &body["healthy"]), (&json!(true), &json!(true)));
        assert!(body["lastUpdated"].as_str().unwrap().ends_with('Z'));
        assert!(page(Probe::Live, &health(false, true)).body.contains("worker: has ended"));
        assert!(page(Probe::Ready, &health(true, false)).body.contains("tables"));
    }
}
