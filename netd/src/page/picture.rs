//! This node, the others and the links between them, as one SVG.
//!
//! This node stands in the middle, the others to its left and right, each with its link. Invariants: no more than [`MOST`] nodes are drawn,
//! and how many are not is said; how a link stands is said in words and by the form of its line, never by a colour alone.

use super::Query;
use super::facts::Snapshot;
use super::html::Html;
use super::sections::{begin_link, found};
use super::words::{Link, ago, counted};
use crate::format::status::Peer;

/// Nodes that are drawn.
pub(super) const MOST: usize = 24;

/// Sizes in units of the drawing.
const WIDTH: usize = 1000;
const BOX: usize = 180;
const HEIGHT: usize = 56;
const GAP: usize = 22;
const MIDDLE: usize = 196;
/// Room beside the middle in which links turn; what is written on one ends before it.
const TURN: usize = 22;
/// Letters of what is written on a link that fit between its node's box and there.
const LETTERS: usize = 32;

/// The picture.
pub(super) fn picture(snapshot: &Snapshot, query: &Query) -> Html {
    let drawn: Vec<_> = found(snapshot, query).take(MOST).collect();
    let lines = drawn.len().div_ceil(2).max(2);
    let height = lines * (HEIGHT + GAP) + GAP;
    let mut html = Html::default();
    html.raw("<svg viewBox=\"0 0 ").text(WIDTH).raw(" ").text(height);
    html.raw("\" role=\"group\" aria-label=\"The cluster as this node knows it; arrow keys lead from node to node\">");
    for (number, (subnet, peer)) in drawn.iter().enumerate() {
        link(&mut html, snapshot, (number, height), (subnet, peer));
    }
    middle(&mut html, snapshot, height);
    for (number, (subnet, peer)) in drawn.iter().enumerate() {
        node(&mut html, (snapshot, query), number, (subnet, peer));
    }
    html.raw("</svg>");
    caption(&mut html, snapshot, found(snapshot, query).count(), drawn.len());
    html
}

fn caption(html: &mut Html, snapshot: &Snapshot, matching: usize, drawn: usize) {
    html.raw("<p class=\"count\">");
    if snapshot.peers().next().is_none() {
        html.raw("This node knows no other node");
    } else {
        html.text(drawn).raw(" of ").text(counted(matching, "node", "nodes")).raw(" drawn");
    }
    html.raw(". <span class=\"key reached\">solid</span> reached, <span class=\"key narrow\">long dashes</span> reached by small packets alone, ");
    html.raw(
        "<span class=\"key lost\">short dashes</span> lost, <span class=\"key unprobed\">dots</span> not probed.</p>",
    );
}

/// Left edge and middle of the box of node `number`.
const fn place(number: usize) -> (usize, usize) {
    let x = if number.is_multiple_of(2) { WIDTH - BOX - 5 } else { 5 };
    (x, GAP + (number / 2) * (HEIGHT + GAP) + HEIGHT / 2)
}

fn link(html: &mut Html, snapshot: &Snapshot, (number, height): (usize, usize), (subnet, peer): (&str, &Peer)) {
    let ((x, y), link) = (place(number), Link::of(snapshot, subnet));
    let right = number.is_multiple_of(2);
    let (from, to) = if right { (WIDTH / 2 + MIDDLE / 2, x) } else { (WIDTH / 2 - MIDDLE / 2, x + BOX) };
    let turn = if right { from + TURN } else { from - TURN };
    html.raw("<path class=\"link ").raw(link.class()).raw("\" d=\"M");
    html.text(format_args!("{from} {0} C{turn} {0}, {from} {y}, {turn} {y} H{to}", height / 2)).raw("\"/>");
    let (anchor, at) = if right { ("end", to - 8) } else { ("start", to + 8) };
    for (line, text) in [
        (
            y - 8,
            format!(
                "{} {}, MTU {}",
                peer.backend.split(' ').next().unwrap_or_default(),
                peer.path,
                snapshot.status.node.mtu
            ),
        ),
        (y + 17, link.at().map_or_else(|| link.short(), |at| format!("{} {}", link.short(), ago(snapshot.now, at)))),
    ] {
        html.raw("<text class=\"label\" aria-hidden=\"true\" text-anchor=\"").raw(anchor);
        html.raw("\" x=\"").text(at).raw("\" y=\"").text(line).raw("\">").text(cut(&text, LETTERS)).raw("</text>");
    }
}

fn middle(html: &mut Html, snapshot: &Snapshot, height: usize) {
    let node = &snapshot.status.node;
    let (x, y, tall) = (WIDTH / 2 - MIDDLE / 2, height / 2 - 65, 130);
    html.raw("<g class=\"here\"><rect rx=\"8\" x=\"").text(x).raw("\" y=\"").text(y).raw("\" width=\"").text(MIDDLE);
    html.raw("\" height=\"").text(tall).raw("\"/>");
    let name = if node.public_ip.is_empty() { "this node" } else { node.public_ip.as_str() };
    let subnet = node.subnet.as_deref().unwrap_or("no subnet yet");
    let pods = counted(snapshot.pods.len(), "Pod", "Pods");
    let state = if node.in_sync { "in sync" } else { "not in sync" };
    for (line, class, text) in [
        (28, "name", name.to_owned()),
        (50, "subnet", subnet.to_owned()),
        (72, "subnet", format!("{}, MTU {}", node.backend, node.mtu)),
        (94, "subnet", if snapshot.has_records { pods } else { "Pods not known".to_owned() }),
        (116, "subnet", format!("this node, {state}")),
    ] {
        html.raw("<text class=\"").raw(class).raw("\" text-anchor=\"middle\" x=\"").text(WIDTH / 2).raw("\" y=\"");
        html.text(y + line).raw("\">").text(text).raw("</text>");
    }
    html.raw("</g>");
}

fn node(html: &mut Html, (snapshot, query): (&Snapshot, &Query), number: usize, (subnet, peer): (&str, &Peer)) {
    let ((x, y), link) = (place(number), Link::of(snapshot, subnet));
    begin_link(html, ("picture ", subnet), query);
    html.raw(" class=\"node ").raw(link.class()).raw("\"");
    html.raw(if subnet == query.node { " aria-current=\"true\"" } else { "" });
    html.raw(" aria-label=\"Node ").text(&peer.public_ip).raw(", subnet ").text(subnet).raw(", link ").text(link);
    html.raw("\"><rect rx=\"6\" x=\"").text(x).raw("\" y=\"").text(y - HEIGHT / 2).raw("\" width=\"").text(BOX);
    html.raw("\" height=\"").text(HEIGHT).raw("\"/>");
    for (line, class, text) in [(y - 5, "name", peer.public_ip.as_str()), (y + 16, "subnet", subnet)] {
        html.raw("<text class=\"").raw(class).raw("\" text-anchor=\"middle\" x=\"").text(x + BOX / 2).raw("\" y=\"");
        html.text(line).raw("\">").text(cut(text, 24)).raw("</text>");
    }
    html.raw("</a>");
}

/// What fits into `letters`; all of it is in the table.
fn cut(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        text.to_owned()
    } else {
        text.chars().take(letters.saturating_sub(1)).chain(['…']).collect()
    }
}
