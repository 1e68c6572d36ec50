//! kube-proxy's words about its health.

use std::time::SystemTime;

use daemon::http::{Health, Page, Probe};
use serde_json::json;

/// The page of `probe`, in kube-proxy's words and order; what is stuck or awaited beside it.
pub(super) fn page(probe: Probe, health: &Health) -> Page {
    let live = health.is_live();
    let healthy = match probe {
        Probe::Health => live && !health.vitals.ineligible,
        Probe::Live => live,
        Probe::Ready => live && health.ready,
    };
    let now = SystemTime::now();
    let families = &health.vitals.updated;
    let last = if live { Some(&now) } else { families.values().max() };
    let of_family = |(family, time): (&&str, &SystemTime)| {
        format!("\"{family}\":{{\"lastUpdated\":\"{}\",\"healthy\":{live}}}", rfc3339(*time))
    };
    let status: Vec<_> = families.iter().map(of_family).collect();
    let mut fields = vec![
        format!("\"lastUpdated\":\"{}\"", rfc3339(last.copied().unwrap_or(SystemTime::UNIX_EPOCH))),
        format!("\"currentTime\":\"{}\"", rfc3339(now)),
    ];
    if probe == Probe::Health {
        fields.push(format!("\"nodeEligible\":{}", !health.vitals.ineligible));
    }
    fields.push(format!("\"healthy\":{healthy}"));
    fields.push(format!("\"status\":{{{}}}", status.join(",")));
    if !health.stuck.is_empty() {
        fields.push(format!("\"stuck\":{}", json!(health.stuck)));
    }
    if probe == Probe::Ready {
        fields.push(format!("\"awaited\":{}", json!(health.awaited)));
    }
    Page::json(if healthy { 200 } else { 503 }, format!("{{{}}}", fields.join(",")))
}

/// `time` in UTC as RFC 3339 has it, with as many digits of a second as there are (Go's RFC3339Nano).
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let fraction = format!(".{:09}", since.subsec_nanos());
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}{fraction}Z", second / 3600, second / 60 % 60, second % 60)
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
    use std::collections::BTreeMap;
    use std::time::Duration;

    use daemon::http::Vitals;

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
    fn fractions_of_a_second_have_the_digits_that_they_need() {
        let at = |nanos| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos));
        assert_eq!(at(1_500_000_000), "1970-01-01T00:00:01.5Z");
        assert_eq!(at(87_302_029), "1970-01-01T00:00:00.087302029Z");
    }

    #[test]
    fn pages_are_those_that_kube_proxy_was_recorded_with() {
        let time = |nanos| SystemTime::UNIX_EPOCH + Duration::new(1_795_651_200, nanos);
        let updated = BTreeMap::from([("IPv4", time(389_460_937)), ("IPv6", time(419_991_798))]);
        let health = |ineligible| Health {
            ready: true,
            vitals: Vitals { ineligible, updated: updated.clone(), ..Vitals::default() },
            ..Health::default()
        };
        let found = page(Probe::Health, &health(false));
        let body: serde_json::Value = serde_json::from_str(&found.body).unwrap();
        let keys = ["lastUpdated", "currentTime", "nodeEligible", "healthy", "status"];
        let places: Vec<_> = keys.iter().map(|key| found.body.find(&format!("\"{key}\":")).unwrap()).collect();
        assert!(places.is_sorted(), "{}", found.body);
        assert_eq!(body["status"]["IPv6"]["lastUpdated"], "2026-11-26T00:00:00.419991798Z");
        assert_eq!((found.code, &body["healthy"], body["status"].as_object().unwrap().len()), (200, &json!(true), 2));
        let live = page(Probe::Live, &health(true));
        assert!(live.code == 200 && !live.body.contains("nodeEligible"), "{}", live.body);
        let leaving = page(Probe::Health, &health(true));
        assert!(
            leaving.code == 503 && leaving.body.contains("\"nodeEligible\":false,\"healthy\":false"),
            "{leaving:?}"
        );
    }

    #[test]
    fn a_stuck_thread_is_unhealthy_and_a_new_daemon_is_not_ready() {
        let stuck = |live: bool| if live { Vec::new() } else { vec!["worker: has ended".to_owned()] };
        let awaited = || vec!["tables".to_owned()];
        let health = |live, ready| Health { stuck: stuck(live), ready, awaited: awaited(), ..Health::default() };
        let code = |probe, live, ready| page(probe, &health(live, ready)).code;
        assert_eq!((code(Probe::Health, true, false), code(Probe::Live, true, false)), (200, 200));
        assert_eq!((code(Probe::Health, false, true), code(Probe::Live, false, true)), (503, 503));
        assert_eq!((code(Probe::Ready, true, false), code(Probe::Ready, true, true)), (503, 200));
        assert_eq!(code(Probe::Ready, false, true), 503);
        let body: serde_json::Value = serde_json::from_str(&page(Probe::Health, &health(true, true)).body).unwrap();
        assert_eq!((&body["nodeEligible"], &body["healthy"]), (&json!(true), &json!(true)));
        assert!(body["lastUpdated"].as_str().unwrap().ends_with('Z'));
        assert!(page(Probe::Live, &health(false, true)).body.contains("worker: has ended"));
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let updated = BTreeMap::from([("IPv4", at(7)), ("IPv6", at(5))]);
        let last = |live| {
            let health =
                Health { vitals: Vitals { updated: updated.clone(), ..Vitals::default() }, ..health(live, true) };
            page(Probe::Live, &health).body.contains("\"lastUpdated\":\"1970-01-01T00:00:07Z\",\"currentTime\"")
        };
        assert_eq!([true, false].map(last), [false, true], "now, or when it was last well");
        assert!(page(Probe::Ready, &health(true, false)).body.contains("tables"));
    }
}
