//! The frame of the page: what a browser loads once, with the first state of every part, so that it shows something without a script.

use std::collections::BTreeMap;

use super::Query;
use super::facts::Snapshot;
use super::html::Html;
use super::words::clock;

/// The style sheet.
pub(crate) const STYLE: &str = include_str!("page.css");

/// The script.
pub(crate) const SCRIPT: &str = include_str!("page.js");

/// The icon.
pub(crate) const ICON: &str = include_str!("icon.svg");

/// What a browser may do with the page: load its own style and script, ask for its own events, and nothing else.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                                 form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// A part of the page.
struct Part {
    /// Its id, and the field of the query with what is searched for in it.
    id: &'static str,
    heading: &'static str,
    /// What can be searched for, if anything can.
    search: Option<&'static str>,
}

/// The parts, in their order.
const PARTS: [Part; 6] = [
    Part { id: "summary", heading: "This node", search: None },
    Part { id: "picture", heading: "Cluster", search: None },
    Part { id: "nodes", heading: "Nodes", search: Some("Search nodes by address, subnet, backend or link") },
    Part { id: "pods", heading: "Pods of this node", search: Some("Search Pods by name, address or container") },
    Part { id: "services", heading: "Services", search: Some("Search Services by name, address or port") },
    Part { id: "changes", heading: "Recent changes and repairs", search: None },
];

/// The whole page.
#[must_use]
pub(crate) fn document(snapshot: &Snapshot, query: &Query, sections: &BTreeMap<&'static str, String>) -> String {
    let mut html = Html::default();
    html.raw("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    html.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">");
    html.raw("<meta name=\"referrer\" content=\"no-referrer\"><title>netd ").text(&snapshot.status.node.public_ip);
    html.raw("</title><link rel=\"icon\" href=\"icon.svg\"><link rel=\"stylesheet\" href=\"page.css\">");
    html.raw("<script src=\"page.js\" defer></script></head><body data-version=\"").text(snapshot.version).raw("\">");
    html.raw("<a class=\"skip\" href=\"#main\">Skip to the content</a><header><h1>netd <span>")
        .text(&snapshot.status.node.public_ip);
    html.raw("</span></h1><p id=\"live\" role=\"status\">as of ").text(clock(snapshot.now));
    html.raw("; reload the page for a newer state</p><nav aria-label=\"Parts of the page\"><ul>");
    for Part { id, heading, .. } in PARTS {
        html.raw("<li><a href=\"#").raw(id).raw("\">").raw(heading).raw("</a></li>");
    }
    html.raw("</ul></nav></header><main id=\"main\" tabindex=\"-1\">");
    let mut text = html.into_text();
    for of in PARTS {
        text.push_str(&part(&of, query, sections));
    }
    let mut end = Html::default();
    end.raw("</main><p id=\"said\" class=\"hidden\" aria-live=\"polite\"></p><footer><p>netd ").text(snapshot.version);
    end.raw(", read-only: what this node knows, and nothing of what only others do.</p></footer></body></html>\n");
    text + &end.into_text()
}

/// One part, under its heading; the details of a node stand below the picture.
fn part(part: &Part, query: &Query, sections: &BTreeMap<&'static str, String>) -> String {
    let Part { id, heading, search } = *part;
    let mut html = Html::default();
    html.raw("<section id=\"").raw(id).raw("\" aria-labelledby=\"").raw(id).raw("-heading\"><h2 id=\"").raw(id);
    html.raw("-heading\">").raw(heading).raw("</h2>");
    if let Some(label) = search {
        let name = id;
        html.raw("<form role=\"search\" aria-label=\"")
            .raw(heading)
            .raw("\"><label for=\"search-")
            .raw(name)
            .raw("\">")
            .raw(label);
        html.raw("</label> <input type=\"search\" maxlength=\"200\" autocomplete=\"off\" id=\"search-").raw(name);
        html.raw("\" name=\"").raw(name).raw("\" value=\"");
        let value = query.fields().into_iter().find(|(field, _)| *field == name).map_or("", |(_, value)| value);
        html.text(value).raw("\">");
        for (field, value) in query.fields().into_iter().filter(|(field, value)| *field != name && !value.is_empty()) {
            html.raw("<input type=\"hidden\" name=\"").text(field).raw("\" value=\"").text(value).raw("\">");
        }
        html.raw(" <button>Search</button></form>");
    }
    let live = |id: &'static str, text: &mut String| {
        text.push_str(&format!("<div data-part=\"{id}\">{}</div>", sections.get(id).map_or("", String::as_str)));
    };
    let mut text = html.into_text();
    live(id, &mut text);
    if id == "picture" {
        text.push_str("<section id=\"detail\" aria-label=\"Details of a node\" tabindex=\"-1\">");
        live("detail", &mut text);
        text.push_str("</section>");
    }
    text + "</section>"
}
