//! Members of etcd, each by its own answer: `Maintenance.Status` over the JSON gateway, which needs no quorum.
//!
//! Invariant: a member is not asked through another one; 64-bit numbers are texts, as grpc-gateway has them.

use cluster::problem::elided;
use serde::Deserialize;

use super::conversation::{Answer, Peer};
use super::row::{Place, Row, State};
use crate::topology::Version;

const QUESTION: &str = "POST /v3/maintenance/status HTTP/1.0\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";

/// What a member says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Member {
    header: Header,
    version: String,
    db_size: String,
    db_size_in_use: String,
    leader: String,
    errors: Vec<String>,
    is_learner: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Header {
    member_id: String,
}

/// Asks a member.
pub(super) fn ask(peer: &Peer, place: Place, wanted: Option<Version>) -> Row {
    let (certificate, answer) = peer.ask_secretly(QUESTION);
    let mut row = match answer {
        Ok(answer) => answered(place, &answer, wanted),
        Err(reason) => Row::new(place, State::Failed, reason),
    };
    row.days = certificate.and_then(|certificate| super::days(&certificate));
    row
}

/// The row of a member that has answered.
pub(super) fn answered(place: Place, answer: &Answer, wanted: Option<Version>) -> Row {
    if answer.code != 200 {
        return Row::new(place, State::Failed, format!("it answers {}: {}", answer.code, answer.words()));
    }
    match serde_json::from_str::<Member>(&answer.body) {
        Ok(status) => judged(place, &status, wanted),
        Err(error) => Row::new(place, State::Failed, format!("it answers no status: {}", elided(error.to_string()))),
    }
}

fn judged(place: Place, status: &Member, wanted: Option<Version>) -> Row {
    let number = |text: &str| text.parse::<u64>().unwrap_or_default();
    let has_leader = number(&status.leader) != 0;
    let part = if !has_leader {
        "no leader: too few members live for a quorum"
    } else if status.leader == status.header.member_id {
        "leads"
    } else if status.is_learner {
        "learns, and does not vote yet"
    } else {
        "follows"
    };
    let (size, used) = (number(&status.db_size), number(&status.db_size_in_use));
    let mut found = vec![part.to_owned(), format!("{} ({} in use)", bytes(size), bytes(used))];
    let alarms: Vec<String> = status.errors.iter().filter_map(|error| alarm(error, &status.header.member_id)).collect();
    found.extend(alarms.iter().cloned());
    if let Some(wanted) = wanted.filter(|wanted| status.version != wanted.to_string()) {
        found.push(format!("the topology has {wanted}"));
    }
    let state = match (has_leader, alarms.is_empty(), status.is_learner) {
        (false, ..) | (_, false, _) => State::Failed,
        (.., true) => State::Waiting,
        _ => State::Ok,
    };
    Row::new(place, state, found.join(", ")).of_version(status.version.clone())
}

/// `memberID:10276657743932975437 alarm:NOSPACE `, as a member says it of itself and of others; of others it is theirs to say.
fn alarm(error: &str, own: &str) -> Option<String> {
    let Some((id, alarm)) = error.trim().strip_prefix("memberID:").and_then(|rest| rest.split_once(" alarm:")) else {
        // That there is no leader is said above.
        return (!error.contains("no leader")).then(|| error.trim().to_owned());
    };
    if id != own {
        return None;
    }
    Some(match alarm {
        "NOSPACE" => "alarm NOSPACE, no write is taken: compact, defragment each member, leader last, then `etcdctl alarm disarm`".to_owned(),
        "CORRUPT" => "alarm CORRUPT: replace this member".to_owned(),
        other => format!("alarm {other}"),
    })
}

fn bytes(number: u64) -> String {
    match number {
        ..1_048_576 => format!("{} KiB", number >> 10),
        _ => format!("{} MiB", number >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::row::Component;

    fn row(json: &str, wanted: Option<Version>) -> Row {
        judged(Place { host: "a".into(), component: Component::Etcd }, &serde_json::from_str(json).unwrap(), wanted)
    }

    #[test]
    fn a_member_leads_follows_learns_or_has_no_leader() {
        let status = |leader: &str, more: &str| {
            format!(
                r#"{{"header":{{"member_id":"7"}},"version":"3.4.23","dbSize":"20480","dbSizeInUse":"16384","leader":"{leader}"{more}}}"#
            )
        };
        let leads = row(&status("7", ""), None);
        assert_eq!((leads.state, leads.found.as_str()), (State::Ok, "leads, 20 KiB (16 KiB in use)"));
        assert!(row(&status("8", ""), None).found.starts_with("follows"));
        assert_eq!(row(&status("8", r#","isLearner":true"#), None).state, State::Waiting);
        let alone = row(&status("0", r#","errors":["etcdserver: no leader"]"#), None);
        assert_eq!(alone.state, State::Failed);
        assert!(alone.found.starts_with("no leader: too few") && !alone.found.contains("etcdserver"), "{alone:?}");
        let older = row(&status("7", ""), Some(Version::new(3, 5, 30)));
        assert!(older.state == State::Ok && older.found.ends_with("the topology has 3.5.30"), "{older:?}");
    }

    #[test]
    fn an_answer_of_another_kind_is_no_status() {
        let said = |code: u16, body: &str| {
            let answer = Answer { code, body: body.to_owned() };
            let row = answered(Place { host: "a".into(), component: Component::Etcd }, &answer, None);
            assert_eq!(row.state, State::Failed);
            row.found
        };
        assert_eq!(said(503, "{\"leader\":\"7\"}"), "it answers 503: {\"leader\":\"7\"}");
        assert!(said(200, "<html>").starts_with("it answers no status: "));
    }

    #[test]
    fn an_alarm_is_of_the_member_that_raised_it() {
        let errors = r#"{"header":{"member_id":"7"},"leader":"7","errors":["memberID:7 alarm:NOSPACE ","memberID:8 alarm:CORRUPT "]}"#;
        let full = row(errors, None);
        assert_eq!(full.state, State::Failed);
        assert!(full.found.contains("alarm NOSPACE") && !full.found.contains("CORRUPT"), "{full:?}");
    }
}
