//! API servers, each by `/readyz` and `/version`, which everybody may ask.
//!
//! Invariant: 403 is "not yet": a server refuses everybody until it has read its rules.

use cluster::problem::elided;
use serde::Deserialize;

use super::conversation::{Answer, Peer};
use super::row::{Place, Row, State};
use crate::topology::Version;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServerVersion {
    git_version: String,
}

/// Asks a server.
pub(super) fn ask(peer: &Peer, place: Place, wanted: Option<Version>) -> Row {
    let (certificate, answer) = peer.ask_secretly(&request("/readyz"));
    let (state, mut found) = match &answer {
        Ok(answer) => judged(answer),
        Err(reason) => (State::Failed, reason.clone()),
    };
    let version = answer.ok().and_then(|_| peer.ask_secretly(&request("/version")).1.ok());
    let version = version.and_then(|answer| serde_json::from_str::<ServerVersion>(&answer.body).ok());
    let version = version.map(|version| version.git_version.trim_start_matches('v').to_owned());
    if let (Some(version), Some(wanted)) = (&version, wanted.map(|wanted| wanted.to_string()))
        && *version != wanted
    {
        found = format!("{found}, the topology has {wanted}");
    }
    let days = certificate.and_then(|certificate| super::days(&certificate));
    let row = Row { days, ..Row::new(place, state, found) };
    match version {
        Some(version) => row.of_version(version),
        None => row,
    }
}

/// The row of a server that has answered.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn answered(place: Place, answer: &Answer) -> Row {
    let (state, found) = judged(answer);
    Row::new(place, state, found)
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.0\r\nHost: kubernetes\r\nAccept: application/json\r\n\r\n")
}

fn judged(answer: &Answer) -> (State, String) {
    match answer.code {
        200 => (State::Ok, "ready".to_owned()),
        403 => (State::Waiting, "not ready yet: 403, its rules are not read".to_owned()),
        401 => (State::Unknown, "it lives, and answers nobody without a name (401)".to_owned()),
        code => {
            let failed = answer.body.lines().filter_map(|line| line.strip_prefix("[-]")?.split(' ').next());
            let failed = elided(failed.collect::<Vec<_>>().join(", "));
            let why = if failed.is_empty() { answer.words() } else { failed };
            (State::Failed, format!("not ready: {code}, {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ready_not_yet_or_says_what_it_lacks() {
        let judged = |code, body: &str| judged(&Answer { code, body: body.to_owned() });
        assert_eq!(judged(200, "ok").0, State::Ok);
        assert_eq!(judged(403, "").0, State::Waiting);
        assert_eq!(judged(401, "").0, State::Unknown);
        let lacks = judged(
            500,
            "[+]ping ok\n[-]etcd failed: reason withheld\n[-]poststarthook/rbac/bootstrap-roles failed\nreadyz check failed",
        );
        assert_eq!(lacks, (State::Failed, "not ready: 500, etcd, poststarthook/rbac/bootstrap-roles".to_owned()));
    }
}
