//! The parts of the page that change, each by itself, under the id that it has there.

use std::collections::BTreeMap;

use super::facts::{Change, Kind, Pod, Snapshot};
use super::html::{Html, Value};
use super::words::{Link, ago, clock, counted, time};
use super::{Query, ROWS, picture, services};
use crate::format::status::Peer;

/// Warnings that are listed.
const WARNINGS: usize = 20;

/// The ids of the parts, in the order of the page.
pub(crate) const IDS: [&str; 7] = ["summary", "picture", "detail", "nodes", "pods", "services", "changes"];

/// The parts by their ids.
#[must_use]
pub(crate) fn sections(snapshot: &Snapshot, query: &Query) -> BTreeMap<&'static str, String> {
    let of = |id: &'static str| {
        let part = match id {
            "summary" => summary(snapshot),
            "picture" => picture::picture(snapshot, query),
            "detail" => detail(snapshot, query),
            "nodes" => nodes(snapshot, query),
            "pods" => pods(snapshot, query),
            "services" => services::services(snapshot, query),
            _ => changes(snapshot),
        };
        (id, part.into_text())
    };
    IDS.into_iter().map(of).collect()
}

/// The other nodes in which `query` is found, by subnet.
pub(super) fn found<'a>(snapshot: &'a Snapshot, query: &'a Query) -> impl Iterator<Item = (&'a String, &'a Peer)> {
    let search = query.nodes.as_str();
    snapshot.peers().filter(move |(subnet, peer)| {
        let state = || Link::of(snapshot, subnet).to_string();
        [*subnet, &peer.public_ip, &peer.backend, &peer.path].iter().any(|text| text.contains(search))
            || state().contains(search)
    })
}

/// A link that shows the details of a node, without its end.
pub(super) fn begin_link(html: &mut Html, (place, subnet): (&'static str, &str), query: &Query) {
    html.raw("<a data-key=\"").raw(place).text(subnet).raw("\" data-node=\"").text(subnet).raw("\" href=\"?node=");
    html.text(Value(subnet));
    for (name, value) in query.fields().into_iter().filter(|(name, value)| *name != "node" && !value.is_empty()) {
        html.raw("&amp;").text(name).raw("=").text(Value(value));
    }
    html.raw("#detail\"");
}

/// A term and what there is to say of it.
fn row(html: &mut Html, term: &'static str, text: impl std::fmt::Display) {
    html.raw("<div><dt>").raw(term).raw("</dt><dd>").text(text).raw("</dd></div>");
}

fn summary(snapshot: &Snapshot) -> Html {
    let (mut html, status) = (Html::default(), &snapshot.status);
    let node = &status.node;
    html.raw("<dl>");
    if node.interface.is_empty() {
        row(&mut html, "This node", "not begun yet");
    } else {
        let sync = if node.in_sync { "in sync" } else { "not in sync" };
        html.raw("<div class=\"").raw(if node.in_sync { "good" } else { "bad" }).raw("\"><dt>This node</dt><dd>");
        html.text(format_args!("{} on {}: {sync}", node.public_ip, node.interface)).raw("</dd></div>");
        let subnet = node.subnet.as_deref().unwrap_or("none yet");
        row(&mut html, "Subnet", format_args!("{subnet} of {}", node.network));
        row(&mut html, "Backend", format_args!("{}, Pod MTU {} bytes", node.backend, node.mtu));
    }
    let listed = if status.store.complete { "listed" } else { "not yet listed" };
    row(&mut html, "Store", format_args!("{}: {listed}", status.store.kind));
    row(&mut html, "Other nodes", counted(status.lease_count, "is used", "are used"));
    let (done, desired) = status.tables.values().fold((0, 0), |(d, w), table| (d + table.done, w + table.desired));
    row(&mut html, "Kernel", format_args!("{done} of {} in place", counted(desired, "row", "rows")));
    let repaired = usize::try_from(status.repaired).unwrap_or(usize::MAX);
    row(&mut html, "Repairs", format_args!("{} since the start", counted(repaired, "row", "rows")));
    html.raw("</dl>");
    html.part(&warnings(snapshot));
    html
}

/// What an operator should look into.
fn warnings(snapshot: &Snapshot) -> Html {
    let (mut html, status) = (Html::default(), &snapshot.status);
    let store = &status.store;
    let doubted = store.doubted.then(|| {
        "the store lacks leases that were there; waiting for a second look before anything is removed".to_owned()
    });
    let troubles = [("store", &store.lost), ("store", &store.broken), ("lease", &store.lease_trouble)];
    let troubles = troubles.into_iter().filter_map(|(what, text)| Some(format!("{what}: {}", text.as_ref()?)));
    let open = status.tables.iter().filter(|(_, table)| table.done < table.desired);
    let open = open.map(|(name, table)| format!("{name}: {} of {} rows in place", table.done, table.desired));
    let invalid = status.invalid.iter().map(|(key, why)| format!("invalid {key}: {why}"));
    let skipped = status.skipped.iter().map(|(key, why)| format!("not used {key}: {why}"));
    let all: Vec<String> = doubted
        .into_iter()
        .chain(troubles)
        .chain(status.warnings.iter().cloned())
        .chain(open)
        .chain(invalid)
        .chain(skipped)
        .collect();
    let unlisted =
        (status.invalid_count + status.skipped_count).saturating_sub(status.invalid.len() + status.skipped.len());
    let count = all.len() + unlisted;
    if count == 0 {
        return html;
    }
    html.raw("<h3>").text(counted(count, "warning", "warnings")).raw("</h3><ul class=\"warnings\">");
    for warning in all.iter().take(WARNINGS) {
        html.raw("<li>").text(warning).raw("</li>");
    }
    html.raw("</ul>");
    more(&mut html, count.saturating_sub(WARNINGS.min(all.len())), "netd status names more");
    html
}

/// Says how many of a list are not shown.
pub(super) fn more(html: &mut Html, count: usize, what: &'static str) {
    if count > 0 {
        html.raw("<p class=\"more\">")
            .text(counted(count, "more is", "more are"))
            .raw(" not shown; ")
            .raw(what)
            .raw(".</p>");
    }
}

/// When a link was probed.
fn probed(html: &mut Html, snapshot: &Snapshot, link: Link) {
    match link.at() {
        Some(at) => {
            html.raw("<time datetime=\"").text(time(at)).raw("\" title=\"").text(clock(at)).raw("\">");
            html.text(ago(snapshot.now, at)).raw("</time>");
        }
        None => {
            html.raw("never");
        }
    }
}

fn detail(snapshot: &Snapshot, query: &Query) -> Html {
    let mut html = Html::default();
    if query.node.is_empty() {
        html.raw("<p>Choose a node in the picture or in the table.</p>");
        return html;
    }
    let Some(peer) = snapshot.status.leases.as_ref().and_then(|leases| leases.get(&query.node)) else {
        html.raw("<h3>").text(&query.node).raw("</h3><p>");
        match snapshot.status.skipped.get(&query.node) {
            Some(why) => html.raw("Its lease is not used: ").text(why),
            None => html.raw("No lease of this subnet is used"),
        };
        html.raw(".</p>");
        return html;
    };
    let link = Link::of(snapshot, &query.node);
    html.raw("<h3>").text(&peer.public_ip).raw("</h3><dl>");
    row(&mut html, "Subnet", &query.node);
    row(&mut html, "Backend", &peer.backend);
    row(&mut html, "Leaves by", &peer.path);
    row(&mut html, "Pod MTU", format_args!("{} bytes", snapshot.status.node.mtu));
    html.raw("<div class=\"").raw(link.class()).raw("\"><dt>Link</dt><dd>").text(link).raw("</dd></div>");
    html.raw("<div><dt>Probed</dt><dd>");
    probed(&mut html, snapshot, link);
    html.raw("</dd></div></dl><p class=\"more\"><code>netd doctor</code> on this node probes it.</p>");
    html
}

fn nodes(snapshot: &Snapshot, query: &Query) -> Html {
    let mut html = Html::default();
    let matching = found(snapshot, query).count();
    html.raw("<p class=\"count\">").text(counted(matching, "node", "nodes"));
    html.text(format_args!(" of {}", counted(snapshot.peers().count(), "other node", "other nodes"))).raw("</p>");
    html.raw("<table><caption>Other nodes and the links to them</caption><thead><tr><th scope=\"col\">Node</th>");
    html.raw("<th scope=\"col\">Subnet</th><th scope=\"col\">Backend</th><th scope=\"col\">Leaves by</th>");
    html.raw(
        "<th scope=\"col\">Pod MTU</th><th scope=\"col\">Link</th><th scope=\"col\">Probed</th></tr></thead><tbody>",
    );
    for (subnet, peer) in found(snapshot, query).take(ROWS) {
        let link = Link::of(snapshot, subnet);
        html.raw("<tr><th scope=\"row\">");
        begin_link(&mut html, ("table ", subnet), query);
        html.raw(if *subnet == query.node { " aria-current=\"true\">" } else { ">" });
        html.text(&peer.public_ip).raw("</a></th><td>").text(subnet).raw("</td><td>");
        html.text(peer.backend.split(' ').next().unwrap_or_default())
            .raw("</td><td>")
            .text(&peer.path)
            .raw("</td><td>");
        html.text(snapshot.status.node.mtu).raw("</td><td class=\"").raw(link.class()).raw("\">").text(link);
        html.raw("</td><td>");
        probed(&mut html, snapshot, link);
        html.raw("</td></tr>");
    }
    html.raw("</tbody></table>");
    more(&mut html, matching.saturating_sub(ROWS), "search for them");
    html
}

fn pods(snapshot: &Snapshot, query: &Query) -> Html {
    let mut html = Html::default();
    if !snapshot.has_records {
        html.raw("<p class=\"problem\">/var/lib/cni has no records of Pods, as far as netd sees: none was started here, or netd runs in ");
        html.raw("a container without that folder.</p>");
        return html;
    }
    let search = query.pods.as_str();
    let has = |pod: &&Pod| {
        pod.container.contains(search)
            || pod.name.as_ref().is_some_and(|name| name.contains(search))
            || pod.addresses.iter().any(|address| address.to_string().contains(search))
    };
    let matching = snapshot.pods.iter().filter(has).count();
    html.raw("<p class=\"count\">").text(counted(matching, "Pod", "Pods"));
    html.text(format_args!(" of {}, as the records of the runtime and of netd-cni have them", snapshot.pods.len()))
        .raw("</p>");
    html.raw("<table><caption>Pods of this node</caption><thead><tr><th scope=\"col\">Pod</th>");
    html.raw("<th scope=\"col\">Addresses</th><th scope=\"col\">Container</th></tr></thead><tbody>");
    for pod in snapshot.pods.iter().filter(has).take(ROWS) {
        let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        html.raw("<tr><th scope=\"row\">").text(pod.name.as_deref().unwrap_or("name not recorded")).raw("</th><td>");
        html.text(addresses.join(", ")).raw("</td><td><code>").text(short(&pod.container)).raw("</code></td></tr>");
    }
    html.raw("</tbody></table>");
    more(&mut html, matching.saturating_sub(ROWS), "search for them");
    html
}

/// The beginning of a container's id, as runtimes show it.
fn short(id: &str) -> &str {
    id.char_indices().nth(12).and_then(|(end, _)| id.get(..end)).unwrap_or(id)
}

fn changes(snapshot: &Snapshot) -> Html {
    let mut html = Html::default();
    html.raw("<table><caption>The last lines of the logs of netd and ipvs-proxy on this node, the newest first</caption><thead><tr>");
    html.raw("<th scope=\"col\">Time</th><th scope=\"col\">Program</th><th scope=\"col\">What</th>");
    html.raw("<th scope=\"col\">Text</th></tr></thead><tbody>");
    for Change { at, program, kind, text, .. } in snapshot.changes.iter().rev().take(ROWS) {
        let (class, kind) = match kind {
            Kind::Change => ("change", "change"),
            Kind::Repair => ("repair", "repair"),
            Kind::Warning => ("warning", "warning"),
        };
        html.raw("<tr><td><time datetime=\"").text(time(*at)).raw("\">").text(clock(*at)).raw("</time></td><td>");
        html.raw(program).raw("</td><td class=\"").raw(class).raw("\">").raw(kind).raw("</td><td>").text(text);
        html.raw("</td></tr>");
    }
    html.raw("</tbody></table>");
    html
}
