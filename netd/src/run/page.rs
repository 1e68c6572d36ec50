//! The page at the daemon's port: its files, its document, and its events for those who watch.
//!
//! | module | what it does |
//! |---|---|
//! | [`gather`] | gets the facts, from the daemon, from files and from ipvs-proxy |
//! | [`watch`] | sends what has changed to one who watches |
//!
//! Invariants: nothing is gathered unless somebody asks or watches, and then for all of them together; no more than [`WATCHERS`] watch;
//! other hosts see nothing of it unless the operator said so (`--page=network`).

mod gather;
mod watch;

use std::sync::Arc;

use daemon::http::{Answer, Asked, Events, Page, Reach};
use daemon::shell::Shell;
use tokio::sync::Semaphore;

use self::gather::Gatherer;
use crate::command::page::{Shown, Wanted};
use crate::page::Query;
use crate::page::document::{ICON, POLICY, SCRIPT, STYLE, document};
use crate::page::sections::sections;

/// Streams of events at a time, of the connections that a listener has: the rest is for metrics and probes.
const WATCHERS: usize = 16;

/// Shows the page, where it is wanted.
pub(super) fn show(shell: &Shell, wanted: &Wanted) {
    if wanted.shown == Shown::Off {
        return;
    }
    let (shown, gatherer) = (wanted.shown, Arc::new(Gatherer::new(shell, wanted)));
    for (path, content_type, text) in [
        ("/page.css", "text/css; charset=utf-8", STYLE),
        ("/page.js", "text/javascript; charset=utf-8", SCRIPT),
        ("/icon.svg", "image/svg+xml", ICON),
    ] {
        let file = move || Page { content_type, headers: headers(), ..Page::text(200, text) };
        shell
            .own_pages
            .show(path, move |asked| async move { Answer::Page(refusal(shown, &asked).unwrap_or_else(file)) });
    }
    let whole = Arc::clone(&gatherer);
    shell.own_pages.show("/", move |asked| {
        let gatherer = Arc::clone(&whole);
        async move { Answer::Page(first(shown, &asked, &gatherer).await) }
    });
    let room = Arc::new(Semaphore::new(WATCHERS));
    shell.own_pages.show("/events", move |asked| {
        let (gatherer, room) = (Arc::clone(&gatherer), Arc::clone(&room));
        async move { events(shown, &asked, gatherer, &room) }
    });
}

/// The whole page.
async fn first(shown: Shown, asked: &Asked, gatherer: &Gatherer) -> Page {
    if let Some(refusal) = refusal(shown, asked) {
        return refusal;
    }
    let query = query(asked);
    let snapshot = gatherer.snapshot(&query.services).await;
    let text = document(&snapshot, &query, &sections(&snapshot, &query));
    Page { content_type: "text/html; charset=utf-8", headers: headers(), ..Page::text(200, text) }
}

/// A stream for one who watches, if there is room.
fn events(shown: Shown, asked: &Asked, gatherer: Arc<Gatherer>, room: &Arc<Semaphore>) -> Answer {
    if let Some(refusal) = refusal(shown, asked) {
        return Answer::Page(refusal);
    }
    let Ok(permit) = Arc::clone(room).try_acquire_owned() else {
        let headers = vec![("retry-after", "5".to_owned())];
        let text = format!("{WATCHERS} watch already\n");
        return Answer::Page(Page { headers, ..Page::text(503, text) });
    };
    let (sender, events) = Events::open();
    let query = query(asked);
    tokio::spawn(async move {
        watch::watch(&gatherer, &query, sender).await;
        drop(permit);
    });
    Answer::Events(events)
}

/// Why whoever asks sees nothing.
fn refusal(shown: Shown, asked: &Asked) -> Option<Page> {
    let text = "the page is shown on this host only; netd --page=network shows it to others\n";
    (shown == Shown::Loopback && asked.reach == Reach::Network).then(|| Page::text(403, text))
}

fn query(asked: &Asked) -> Query {
    let field = |name| asked.field(name).unwrap_or_default();
    Query { node: field("node"), nodes: field("nodes"), pods: field("pods"), services: field("services") }
}

fn headers() -> Vec<(&'static str, String)> {
    vec![
        ("content-security-policy", POLICY.to_owned()),
        ("referrer-policy", "no-referrer".to_owned()),
        ("x-frame-options", "DENY".to_owned()),
        ("cross-origin-resource-policy", "same-origin".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_hosts_see_the_page_only_where_the_operator_said_so() {
        let asked = |reach| Asked { query: String::new(), reach };
        for (shown, reach, refused) in [
            (Shown::Loopback, Reach::Loopback, false),
            (Shown::Loopback, Reach::Unix, false),
            (Shown::Loopback, Reach::Network, true),
            (Shown::Network, Reach::Network, false),
        ] {
            assert_eq!(refusal(shown, &asked(reach)).is_some(), refused, "{shown:?} {reach:?}");
        }
    }

    #[test]
    fn the_query_is_what_was_typed() {
        let asked = Asked { query: "node=a%2Fb&services=shop%20x&other=1".to_owned(), reach: Reach::Loopback };
        let expected = Query { node: "a/b".to_owned(), services: "shop x".to_owned(), ..Query::default() };
        assert_eq!(query(&asked), expected);
    }
}
