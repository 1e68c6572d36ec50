//! The Services of this node's ipvs-proxy.

use super::facts::{Place, Service, Services, Snapshot};
use super::html::Html;
use super::sections::more;
use super::words::counted;
use super::{Query, ROWS};

pub(super) fn services(snapshot: &Snapshot, _: &Query) -> Html {
    let mut html = Html::default();
    if let Some(problem) = &snapshot.proxy.problem {
        html.raw("<p class=\"problem\">").text(problem).raw("</p>");
    }
    if let Some(services) = &snapshot.proxy.services {
        table(&mut html, services);
    }
    html
}

fn table(html: &mut Html, Services { mode, count, matching, services }: &Services) {
    html.raw("<p class=\"count\">").text(counted(*matching, "Service", "Services"));
    html.text(format_args!(" of {}, served by {mode}", counted(*count, "Service", "Services"))).raw("</p>");
    html.raw("<table><caption>Services, and who takes connections from outside the cluster, with weights</caption>");
    html.raw("<thead><tr><th scope=\"col\">Service</th><th scope=\"col\">Address</th><th scope=\"col\">Kind</th>");
    html.raw("<th scope=\"col\">Endpoints and weights</th></tr></thead>");
    for service in services.iter().take(ROWS) {
        rows(html, service);
    }
    html.raw("</table>");
    more(html, matching.saturating_sub(services.len().min(ROWS)), "search for them");
}

fn rows(html: &mut Html, Service { name, places, place_count }: &Service) {
    html.raw("<tbody>");
    for (number, place) in places.iter().enumerate() {
        html.raw("<tr>");
        if number == 0 {
            html.raw("<th scope=\"rowgroup\" rowspan=\"").text(places.len()).raw("\">").text(name);
            if let Some(left) = place_count.checked_sub(places.len()).filter(|left| *left > 0) {
                html.raw(" <span class=\"more\">and ")
                    .text(counted(left, "more address", "more addresses"))
                    .raw("</span>");
            }
            html.raw("</th>");
        }
        html.raw("<td>").text(&place.at).raw("</td><td>").text(&place.kind).raw("</td><td>");
        endpoints(html, place);
        html.raw("</td></tr>");
    }
    if places.is_empty() {
        html.raw("<tr><th scope=\"rowgroup\">").text(name).raw("</th><td colspan=\"3\">served nowhere</td></tr>");
    }
    html.raw("</tbody>");
}

fn endpoints(html: &mut Html, Place { answer, endpoints, endpoint_count, .. }: &Place) {
    if endpoints.is_empty() {
        html.raw("<span class=\"bad\">").text(answer).raw("</span>");
        return;
    }
    html.raw("<ul class=\"endpoints\">");
    for endpoint in endpoints {
        html.raw("<li>").text(&endpoint.at).text(format_args!(" weight {}", endpoint.weight));
        if endpoint.here == Some(true) {
            html.raw(", on this node");
        }
        html.raw("</li>");
    }
    if let Some(left) = endpoint_count.checked_sub(endpoints.len()).filter(|left| *left > 0) {
        html.raw("<li class=\"more\">and ").text(counted(left, "more", "more")).raw("</li>");
    }
    html.raw("</ul>");
}
