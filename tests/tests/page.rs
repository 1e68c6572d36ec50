//! The page at netd's port, in Debian's Chromium: what it shows, live, for everybody, and for nobody else.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

mod netd_node;
mod page_browser;
mod pictured;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use lab::cni::Runtime;
use lab::harness::Suite;
use lab::{Host, Need, Process, eventually};
use netd_node::{Net, SOON, VXLAN, lease};
use page_browser::Browser;
use serde_json::{Value, json};

/// Where the page is, on the node.
const URL: &str = "http://127.0.0.1:10247/";

/// Folder of Services.
const SERVICES: &str = "/run/services";

/// A Service with an endpoint on this node and one on the other.
fn service(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{clusterIP: {address}, ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
         endpoints: [{{addresses: [172.7.21.2], nodeName: hdss7-21.host.com}}, {{addresses: [172.7.22.2], nodeName: hdss7-22.host.com}}]\n"
    )
}

/// A small cluster: netd on two nodes, the lease of a third that does not answer, and ipvs-proxy with a Service on the first.
struct Small {
    net: Net,
    netd: Process,
    _other: Process,
    proxy: Process,
}

impl Small {
    fn start() -> Result<Self> {
        let net = Net::start(VXLAN)?;
        net.put_lease("172.7.200.0-24", "10.4.7.200", "02:00:00:00:02:00")?;
        let [netd, other] = net.both()?;
        let host = net.host("hdss7-21")?;
        host.write(format!("{SERVICES}/web.yaml"), service("web", "192.168.0.10"))?;
        let proxy = start_proxy(host)?;
        Ok(Self { net, netd, _other: other, proxy })
    }

    fn host(&self) -> Result<&Host> {
        self.net.host("hdss7-21")
    }
}

fn start_proxy(host: &Host) -> Result<Process> {
    let services = format!("--services-dir={SERVICES}");
    let flags = ["--proxy-mode=nftables", &services, "--service-cidr=192.168.0.0/16"];
    let proxy = host.command(lab::bin("ipvs-proxy")?).args(flags).start("ipvs-proxy")?;
    proxy.wait_for_line("ready", SOON)?;
    Ok(proxy)
}

fn pod(host: &Host, name: &str) -> Result<lab::cni::Sandbox> {
    let runtime = Runtime::new(host);
    runtime.install(&lab::bin("netd-cni")?, &["flannel", "bridge", "host-local", "portmap"])?;
    runtime.configure("10-flannel.conflist", include_str!("../../configs/cni/10-flannel.conflist"))?;
    runtime.run_pod(name)
}

/// The page has asked for nothing but its own, and the browser found nothing wrong with it.
fn is_without_fault(browser: &mut Browser) -> Result<()> {
    let problems = browser.problems()?;
    ensure!(problems.is_empty(), "{problems:#?}");
    let elsewhere: Vec<_> =
        browser.requests().into_iter().filter(|url| !url.starts_with(URL) && url != "about:blank").collect();
    ensure!(elsewhere.is_empty(), "{elsewhere:?}");
    ensure!(browser.requests().len() > 3, "{:?}", browser.requests());
    Ok(())
}

fn page_shows_the_cluster_and_follows_it_without_being_loaded_again() -> Result<()> {
    let small = Small::start()?;
    let host = small.host()?;
    let mut browser = Browser::start(host)?;
    browser.open(URL)?;
    browser.evaluate("window.loaded = 'once'")?;
    browser.shows("#live", "live")?;
    for (selector, text) in [
        ("#summary", "10.4.7.21 on eth0: in sync"),
        ("#summary", "172.7.21.0/24 of 172.7.0.0/16"),
        ("[data-part=nodes]", "10.4.7.22"),
        ("[data-part=nodes]", "10.4.7.200"),
        ("[data-part=nodes]", "not probed"),
        ("[data-part=picture]", "vxlan flannel.1, MTU"),
        ("[data-part=services]", "shop/web"),
        ("[data-part=services]", "tcp 192.168.0.10:80"),
        ("[data-part=services]", "172.7.21.2:8080 weight 1"),
        ("[data-part=changes]", "ready"),
    ] {
        browser.shows(selector, text)?;
    }
    // A click shows a node's details; what its probe finds comes by itself.
    browser.click("svg a.node[data-node='172.7.22.0/24']")?;
    browser.shows("#detail", "vxlan ")?;
    browser.shows("#detail", "not probed")?;
    ensure!(browser.evaluate("location.search")? == "?node=172.7.22.0%2F24");
    // It finds that one node does not answer, and says so by its exit status.
    host.command(lab::bin("netd")?).args(["doctor"]).output()?;
    browser.shows("#detail", "reached")?;
    browser.shows("[data-part=nodes]", "lost")?;
    probes_have_their_age(host, &mut browser)?;
    changes_come_by_themselves(&small, &mut browser)?;
    // A repair, with what somebody else has changed.
    host.run(&["ip", "route", "del", "172.7.22.0/24"])?;
    browser.shows("[data-part=changes] td.repair", "repair")?;
    browser.until("/since the start/.test(document.querySelector('#summary').textContent) && !/ 0 rows since/.test(document.querySelector('#summary').textContent)")?;
    is_without_fault(&mut browser)?;
    outlives_the_daemons(small, &mut browser)
}

/// What a probe found is shown with its age, in the picture, the list and the details, as it grows.
fn probes_have_their_age(host: &Host, browser: &mut Browser) -> Result<()> {
    const KEPT: &str = "/run/netd/probes.json";
    let places = ["[data-part=picture]", "[data-part=nodes]", "#detail"];
    for place in places {
        browser.shows(place, "less than a minute ago")?;
    }
    for (age, words) in [(3 * 60 + 5, "3 minutes ago"), (7260, "2 hours ago")] {
        let mut probes: Value = serde_json::from_str(&host.read(KEPT)?)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        for probe in probes.as_object_mut().context("probes")?.values_mut() {
            probe["at"] = json!(now - age);
        }
        // As a probe does: whole, by another name.
        host.write(format!("{KEPT}.new"), probes.to_string())?;
        host.run(&["mv", &format!("{KEPT}.new"), KEPT])?;
        for place in places {
            browser.shows(place, words)?;
        }
    }
    Ok(())
}

/// A lease, a Pod and a Service.
fn changes_come_by_themselves(small: &Small, browser: &mut Browser) -> Result<()> {
    let host = small.host()?;
    small.net.etcd.put("/coreos.com/network/subnets/172.7.30.0-24", &lease("10.4.7.130", "02:00:00:00:00:30"))?;
    browser.shows("[data-part=nodes]", "172.7.30.0/24")?;
    browser.shows("[data-part=picture]", "10.4.7.130")?;
    let pod = pod(host, "web-0")?;
    browser.shows("[data-part=pods]", &pod.address().to_string())?;
    host.write(format!("{SERVICES}/api.yaml"), service("api", "192.168.0.11"))?;
    browser.shows("[data-part=services]", "shop/api")?;
    // What is searched for stays while everything else goes on; nothing typed is lost.
    browser.evaluate(NOTE_ANNOUNCEMENTS)?;
    browser.evaluate("document.getElementById('search-services').focus()")?;
    browser.call("Input.insertText", json!({"text": "192.168.0.11"}))?;
    browser.shows("[data-part=services] .count", "1 Service of 2 Services")?;
    announces(browser, "1 Service of 2 Services, served by nftables")?;
    browser.shows("[data-part=services]", "shop/api")?;
    small.net.etcd.put("/coreos.com/network/subnets/172.7.31.0-24", &lease("10.4.7.131", "02:00:00:00:00:31"))?;
    browser.shows("[data-part=nodes]", "172.7.31.0/24")?;
    ensure!(browser.evaluate("document.activeElement.value")? == "192.168.0.11");
    arrows_lead_through_many_nodes(small, browser)?;
    ensure!(browser.evaluate("window.loaded")? == "once", "it was loaded again");
    Ok(())
}

/// Notes what a screen reader is given to say by itself.
const NOTE_ANNOUNCEMENTS: &str = "(() => { const said = document.getElementById('said'); window.announced = []; \
     new MutationObserver(() => window.announced.push(said.textContent)).observe(said, { childList: true }); })()";

fn announces(browser: &mut Browser, text: &str) -> Result<()> {
    browser.until(&format!("window.announced.some((said) => said.startsWith({}))", json!(text)))
}

/// Two columns of nodes: up and down lead through one, left and right to the other beside.
fn arrows_lead_through_many_nodes(small: &Small, browser: &mut Browser) -> Result<()> {
    for number in 32..41 {
        let (key, address) = (format!("172.7.{number}.0-24"), format!("10.4.7.1{number}"));
        small.net.put_lease(&key, &address, &format!("02:00:00:00:00:{number}"))?;
    }
    browser.until("document.querySelectorAll('svg a.node').length === 13")?;
    browser.evaluate("document.querySelector('svg a.node[tabindex=\"0\"]').focus()")?;
    let mut at = Vec::new();
    let ways = [("Home", 36, 1), ("ArrowDown", 40, 7), ("ArrowUp", 38, 2), ("ArrowLeft", 37, 2), ("ArrowDown", 40, 3)];
    for (key, code, times) in ways.into_iter().chain([("ArrowRight", 39, 2), ("End", 35, 1)]) {
        for _ in 0..times {
            browser.key(key, code)?;
            let number = "[...document.querySelectorAll('svg a.node')].indexOf(document.activeElement)";
            at.push(browser.evaluate(number)?.as_i64().context("a node")?);
        }
    }
    // To the end of a column and no further; the left one is shorter.
    let expected = [0, 2, 4, 6, 8, 10, 12, 12, 10, 8, 9, 9, 11, 11, 11, 10, 10, 12];
    ensure!(at == expected, "{at:?}");
    let reached = "document.querySelectorAll('svg a.node[tabindex=\"0\"]').length";
    ensure!(browser.evaluate(reached)? == 1, "the tab key reaches one node of the picture");
    browser.evaluate("document.getElementById('search-services').focus()").map(drop)
}

/// ipvs-proxy ends and comes back, and so does netd.
fn outlives_the_daemons(small: Small, browser: &mut Browser) -> Result<()> {
    let Small { net, netd, _other, proxy } = small;
    let host = net.host("hdss7-21")?;
    proxy.kill()?;
    browser.shows("[data-part=services]", "ipvs-proxy is not running on this node")?;
    let weighed = service("api", "192.168.0.11").replacen(
        "name: api,",
        "name: api, annotations: {ipvs-proxy/weights: 'here=4,elsewhere=1'},",
        1,
    );
    host.write(format!("{SERVICES}/api.yaml"), weighed)?;
    let _proxy = start_proxy(host)?;
    browser.shows("[data-part=services]", "172.7.21.2:8080 weight 4, on this node")?;
    browser.shows("[data-part=services]", "172.7.22.2:8080 weight 1")?;
    netd.terminate(SOON)?;
    browser.shows("#live", "netd does not answer")?;
    ensure!(browser.evaluate("document.getElementById('live').classList.contains('lost')")? == true);
    browser.shows("[data-part=nodes]", "10.4.7.22")?;
    let _netd = net.netd("hdss7-21")?;
    browser.until("document.getElementById('live').textContent === 'live'")?;
    browser.shows("#summary", "in sync")?;
    browser.shows("#detail", "10.4.7.22")?;
    ensure!(browser.evaluate("window.loaded")? == "once", "it was loaded again");
    // While nobody answered the browser may say that, and no more.
    let unlike: Vec<_> =
        browser.problems()?.into_iter().filter(|problem| !problem.contains("ERR_CONNECTION_REFUSED")).collect();
    let unlike: Vec<_> =
        unlike.into_iter().filter(|problem| !problem.contains("ERR_INCOMPLETE_CHUNKED_ENCODING")).collect();
    ensure!(unlike.is_empty(), "{unlike:#?}");
    Ok(())
}

/// Contrast of every text against what stands behind it, as WCAG 2 counts it; the failures.
const CONTRAST: &str = r#"(() => {
  const parse = (c) => { const n = c.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const behind = (e) => {
    const box = e.closest("svg a, svg g")?.querySelector("rect");
    if (box && e !== box) return parse(getComputedStyle(box).fill);
    for (let at = e; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color[3] > 0) return color;
    }
    return [255, 255, 255, 1];
  };
  const failed = []; let seen = 0;
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    seen += 1;
    const style = getComputedStyle(e);
    const r = ratio(parse(e.closest("svg") ? style.fill : style.color), behind(e));
    if (r < 4.5) failed.push(`${e.tagName} ${e.className.baseVal ?? e.className} ${r.toFixed(2)} ${e.textContent.slice(0, 30)}`);
  }
  for (const e of document.querySelectorAll("svg .link")) {
    const r = ratio(parse(getComputedStyle(e).stroke), behind(document.querySelector("main")));
    if (r < 3) failed.push(`link ${r.toFixed(2)}`);
  }
  return { seen, failed };
})()"#;

/// What is shown on paper in another colour than black, or on another ground than white.
const BLACK_ON_WHITE: &str = r#"(() => {
  const other = []; let seen = 0;
  const is = (color, wanted) => wanted.includes(color);
  // What was just changed fades in: white of less than full strength.
  const grounds = ["rgb(255, 255, 255)", "rgba(0, 0, 0, 0)"];
  const isWhite = (color) => is(color, grounds) || color.startsWith("rgba(255, 255, 255, ");
  for (const e of [document.documentElement, ...document.querySelectorAll("body, body *")]) {
    if (!e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const name = `${e.tagName} ${e.className.baseVal ?? e.className}`;
    if (!isWhite(style.backgroundColor)) other.push(`${name} on ${style.backgroundColor}`);
    if (e.tagName === "rect" && !isWhite(style.fill)) other.push(`${name} filled ${style.fill}`);
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    seen += 1;
    const ink = e.closest("svg") ? style.fill : style.color;
    if (!is(ink, ["rgb(0, 0, 0)"])) other.push(`${name} in ${ink}: ${e.textContent.slice(0, 30)}`);
  }
  if (getComputedStyle(document.documentElement).backgroundColor !== grounds[0]) other.push("the ground is not white");
  return { seen, other };
})()"#;

/// What is written in the picture and crossed by a link, in the browser's own measures.
const CROSSED: &str = r#"(() => {
  const crossed = []; let seen = 0;
  for (const label of document.querySelectorAll("svg .label")) {
    const box = label.getBBox();
    for (const link of document.querySelectorAll("svg path.link")) {
      const length = link.getTotalLength();
      for (let at = 0; at <= length; at += 2) {
        const { x, y } = link.getPointAtLength(at);
        seen += 1;
        // The box has room above capitals and below the line.
        if (x > box.x && x < box.x + box.width && y > box.y + 2 && y < box.y + box.height - 2) { crossed.push(label.textContent); break; }
      }
    }
  }
  return { seen, crossed };
})()"#;

fn page_can_be_used_by_everybody_and_on_paper() -> Result<()> {
    let small = Small::start()?;
    let host = small.host()?;
    let _pod = pod(host, "web-0")?;
    host.command(lab::bin("netd")?).args(["doctor"]).output()?;
    let mut browser = Browser::start(host)?;
    for (colors, motion) in [("light", "no-preference"), ("dark", "reduce")] {
        let features = json!([{"name": "prefers-color-scheme", "value": colors}, {"name": "prefers-reduced-motion", "value": motion}]);
        browser.call("Emulation.setEmulatedMedia", json!({"features": features}))?;
        browser.open(URL)?;
        browser.shows("#live", "live")?;
        browser.shows("[data-part=pods]", "172.7.21.2")?;
        let contrast = browser.evaluate(CONTRAST)?;
        ensure!(contrast["failed"].as_array().is_some_and(Vec::is_empty), "{colors}: {contrast}");
        ensure!(contrast["seen"].as_u64().is_some_and(|seen| seen > 60), "{colors}: {contrast}");
        let crossed = browser.evaluate(CROSSED)?;
        ensure!(crossed["crossed"].as_array().is_some_and(Vec::is_empty), "{crossed}");
        ensure!(crossed["seen"].as_u64().is_some_and(|seen| seen > 200), "{crossed}");
        let moves =
            browser.evaluate("getComputedStyle(document.querySelector('[data-part].changed')).animationName")?;
        ensure!((moves == "none") == (motion == "reduce"), "{motion}: {moves}");
        let ground = browser.evaluate("getComputedStyle(document.documentElement).backgroundColor")?;
        ensure!((ground == "rgb(255, 255, 255)") == (colors == "light"), "{colors}: {ground}");
    }
    names_and_structure(&mut browser)?;
    keyboard(&mut browser)?;
    is_without_fault(&mut browser)?;
    printed(&mut browser)?;
    screenshot(&mut browser)
}

/// What a screen reader has: every control a name, landmarks, headings in order, tables with captions and headers.
fn names_and_structure(browser: &mut Browser) -> Result<()> {
    let tree = browser.call("Accessibility.getFullAXTree", json!({}))?;
    let nodes: Vec<&Value> =
        tree["nodes"].as_array().context("nodes")?.iter().filter(|node| node["ignored"] == false).collect();
    let of = |role: &str| nodes.iter().filter(move |node| node["role"]["value"] == role).copied().collect::<Vec<_>>();
    for role in ["link", "button", "searchbox", "table", "region", "navigation", "search"] {
        ensure!(!of(role).is_empty(), "there is no {role}");
        for node in of(role) {
            ensure!(
                node["name"]["value"].as_str().is_some_and(|name| !name.trim().is_empty()),
                "a {role} without a name: {node}"
            );
        }
    }
    for role in ["banner", "main", "contentinfo"] {
        ensure!(of(role).len() == 1, "{} of {role}", of(role).len());
    }
    let levels: Vec<u64> = of("heading")
        .iter()
        .filter_map(|node| {
            node["properties"].as_array()?.iter().find(|p| p["name"] == "level")?["value"]["value"].as_u64()
        })
        .collect();
    ensure!(levels.first() == Some(&1) && levels.iter().filter(|level| **level == 1).count() == 1, "{levels:?}");
    ensure!(levels.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{levels:?}");
    let pictured = of("link")
        .into_iter()
        .filter(|node| node["name"]["value"].as_str().is_some_and(|name| name.starts_with("Node 10.4.7.")));
    let names: BTreeSet<String> =
        pictured.map(|node| node["name"]["value"].as_str().unwrap_or_default().to_owned()).collect();
    ensure!(names.contains("Node 10.4.7.22, subnet 172.7.22.0/24, link reached"), "{names:?}");
    ensure!(names.contains("Node 10.4.7.200, subnet 172.7.200.0/24, link lost"), "{names:?}");
    for (what, count) in [
        ("document.querySelectorAll('table').length - document.querySelectorAll('table > caption').length", 0),
        ("document.querySelectorAll('th:not([scope])').length", 0),
        ("document.querySelectorAll('[aria-live=polite]').length", 1),
        ("document.querySelectorAll('input:not([type=hidden])').length - document.querySelectorAll('label').length", 0),
        (
            "[...document.querySelectorAll('[id]')].length - new Set([...document.querySelectorAll('[id]')].map((e) => e.id)).size",
            0,
        ),
        (
            "[...document.querySelectorAll('[aria-labelledby]')].filter((e) => !document.getElementById(e.getAttribute('aria-labelledby'))).length",
            0,
        ),
    ] {
        let found = browser.evaluate(what)?;
        ensure!(found == count, "{what}: {found}");
    }
    ensure!(browser.evaluate("document.documentElement.lang")? == "en");
    Ok(())
}

/// The tab key reaches every control, visibly; arrow keys lead through the picture, and Enter shows a node's details.
fn keyboard(browser: &mut Browser) -> Result<()> {
    let wanted = browser.evaluate(
        "document.querySelectorAll('a[href]:not([tabindex=\"-1\"]), button, input:not([type=hidden])').length",
    )?;
    let wanted = usize::try_from(wanted.as_u64().context("a number")?)?;
    browser.evaluate("document.activeElement.blur(); window.reached = new Set(); document.addEventListener('focusin', (e) => window.reached.add(e.target)); 1")?;
    for _ in 0..wanted + 4 {
        browser.key("Tab", 9)?;
        let outlined = browser.evaluate(
            "(() => { const e = document.activeElement; const s = getComputedStyle(e.querySelector?.('rect') ?? e); \
             return e === document.body || e.id === 'main' || s.outlineStyle !== 'none' || parseFloat(s.strokeWidth) >= 4; })()",
        )?;
        let focused = browser.evaluate("document.activeElement.outerHTML.slice(0, 200)")?;
        ensure!(outlined == true, "the focus does not show at {focused}");
    }
    let missed = browser.evaluate(
        "[...document.querySelectorAll('a[href]:not([tabindex=\"-1\"]), button, input:not([type=hidden])')]\
         .filter((e) => !window.reached.has(e)).map((e) => e.outerHTML.slice(0, 120))",
    )?;
    ensure!(missed.as_array().is_some_and(Vec::is_empty), "the tab key does not reach {missed}");
    browser.evaluate("document.querySelector('svg a.node[tabindex=\"0\"]').focus()")?;
    let mut seen = BTreeSet::new();
    for (key, code) in [("Home", 36), ("ArrowLeft", 37), ("ArrowRight", 39), ("End", 35)] {
        browser.key(key, code)?;
        let focused = browser.evaluate("document.activeElement.dataset.node")?;
        seen.insert(focused.as_str().unwrap_or_default().to_owned());
    }
    ensure!(seen == ["172.7.200.0/24", "172.7.22.0/24"].map(str::to_owned).into(), "{seen:?}");
    browser.key("Home", 36)?;
    browser.evaluate(NOTE_ANNOUNCEMENTS)?;
    browser.key("Enter", 13)?;
    browser.shows("#detail", "10.4.7.200")?;
    announces(browser, "10.4.7.200 Subnet 172.7.200.0/24 Backend vxlan")?;
    // The picture was drawn anew, and the focus is where it was.
    browser.until("document.activeElement.dataset.key === 'picture 172.7.200.0/24'")
}

/// On paper everything is black on white, and nothing that can only be clicked is left.
fn printed(browser: &mut Browser) -> Result<()> {
    let printed = browser.call("Page.printToPDF", json!({"printBackground": true}))?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(printed["data"].as_str().context("data")?)?;
    ensure!(bytes.starts_with(b"%PDF-") && bytes.len() > 10_000, "{} bytes", bytes.len());
    browser.call("Emulation.setEmulatedMedia", json!({"media": "print"}))?;
    let shown = browser
        .evaluate("[...document.querySelectorAll('form, nav')].filter((e) => e.getClientRects().length).length")?;
    ensure!(shown == 0, "{shown} forms");
    // Also for whoever has the system dark: ink costs, and grey on black is what no printer shows.
    for colors in ["light", "dark"] {
        let features = json!([{"name": "prefers-color-scheme", "value": colors}]);
        browser.call("Emulation.setEmulatedMedia", json!({"media": "print", "features": features}))?;
        let contrast = browser.evaluate(CONTRAST)?;
        ensure!(contrast["failed"].as_array().is_some_and(Vec::is_empty), "{colors}: {contrast}");
        let printed = browser.evaluate(BLACK_ON_WHITE)?;
        ensure!(printed["other"].as_array().is_some_and(Vec::is_empty), "{colors}: {printed}");
        ensure!(printed["seen"].as_u64().is_some_and(|seen| seen > 60), "{colors}: {printed}");
    }
    Ok(())
}

/// Writes the picture of the README where `NETD_SCREENSHOT` says.
fn screenshot(browser: &mut Browser) -> Result<()> {
    let features = json!([{"name": "prefers-color-scheme", "value": "light"}, {"name": "prefers-reduced-motion", "value": "reduce"}]);
    browser.call("Emulation.setEmulatedMedia", json!({"media": "", "features": features}))?;
    let size = json!({"width": 1200, "height": 1000, "deviceScaleFactor": 1, "mobile": false});
    browser.call("Emulation.setDeviceMetricsOverride", size)?;
    browser.evaluate("document.activeElement.blur(); window.scrollTo(0, 0); 1")?;
    let tall = browser.evaluate("Math.min(document.documentElement.scrollHeight, 1500)")?;
    let clip = json!({"x": 0, "y": 0, "width": 1200, "height": tall, "scale": 0.75});
    browser.call("Emulation.setScrollbarsHidden", json!({"hidden": true}))?;
    let shot = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
    let shot = browser.call("Page.captureScreenshot", shot)?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().context("data")?)?;
    ensure!(bytes.starts_with(b"\x89PNG") && (10_000..200_000).contains(&bytes.len()), "{} bytes", bytes.len());
    if let Some(place) = std::env::var_os("NETD_SCREENSHOT") {
        // Cargo starts a test in the folder of its package.
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(place);
        std::fs::write(pictured::beside(&place), pictured::sums(&bytes)?).context("write the sums")?;
        std::fs::write(&place, bytes).context("write the screenshot")?;
    }
    Ok(())
}

/// Status code and whole answer of a request.
fn asked(host: &Host, url: &str, flags: &[&str]) -> Result<(u16, String)> {
    let text = host.command("curl").args(["-s", "-i", "--max-time", "10"]).args(flags).arg(url).output()?.stdout;
    Ok((text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), text))
}

fn page_is_for_this_host_alone_until_the_operator_says_otherwise() -> Result<()> {
    let net = Net::start(VXLAN)?;
    let host = net.host("hdss7-21")?;
    let other = net.host("hdss7-22")?;
    let everywhere = "--metrics-bind-address=0.0.0.0:10247";
    let netd = net.launch("hdss7-21", &[everywhere])?;
    netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
    let (code, text) = asked(host, URL, &[])?;
    ensure!(code == 200 && text.contains("ipvs-proxy is not running on this node"), "{text}");
    let head = text.split("\r\n\r\n").next().unwrap_or_default().to_lowercase();
    for header in [
        "content-security-policy: default-src 'none'",
        "x-content-type-options: nosniff",
        "cache-control: no-store",
        "x-frame-options: deny",
    ] {
        ensure!(head.contains(header), "{header}: {head}");
    }
    ensure!(!head.contains("set-cookie") && !head.contains("access-control"), "{head}");
    for path in ["", "events", "page.js", "page.css", "icon.svg"] {
        let url = format!("{URL}{path}");
        ensure!(asked(host, &url, &["-X", "POST"])?.0 == 405, "{url}");
        ensure!(asked(host, &url, &["-H", "Host: evil.example"])?.0 == 403, "{url}");
        let from_outside = asked(other, &format!("http://10.4.7.21:10247/{path}"), &[])?;
        ensure!(from_outside.0 == 403 && from_outside.1.contains("--page=network"), "{from_outside:?}");
    }
    ensure!(asked(other, "http://10.4.7.21:10247/metrics", &[])?.0 == 200);
    watchers_are_bounded(host)?;
    for (flag, inside, outside) in [("--page=network", 200, 200), ("--page=off", 404, 404)] {
        let netd = net.launch("hdss7-22", &[everywhere, flag])?;
        netd.wait_for_line("ready: every lease is in the kernel", SOON)?;
        let codes = (asked(other, URL, &[])?.0, asked(host, "http://10.4.7.22:10247/", &[])?.0);
        ensure!(codes == (inside, outside), "{flag}: {codes:?}");
        netd.terminate(SOON)?;
    }
    Ok(())
}

/// Sixteen watch; one more is turned away, and everything else is served as before.
fn watchers_are_bounded(host: &Host) -> Result<()> {
    let events = format!("{URL}events");
    let watch = |number: usize| host.command("curl").args(["-sN", &events]).start(&format!("watcher {number}"));
    let watchers: Vec<Process> = (0..16).map(watch).collect::<Result<_>>()?;
    for watcher in &watchers {
        watcher.wait_for_line("event: sections", SOON)?;
    }
    let (code, text) = asked(host, &events, &[])?;
    ensure!(code == 503 && text.contains("16 watch already"), "{text}");
    ensure!(asked(host, URL, &[])?.0 == 200 && asked(host, &format!("{URL}metrics"), &[])?.0 == 200);
    drop(watchers);
    eventually(SOON, || {
        let (code, text) = asked(host, &events, &["--max-time", "1"])?;
        ensure!(code == 200, "{text}");
        Ok(())
    })
}

/// Without a browser the tests of this file are passed over by name, or fail where that was asked for.
fn without_a_browser_tests_are_skipped_by_its_name_or_fail_where_they_are_required() -> Result<()> {
    let tried = |mode: &str| {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.env(page_browser::VARIABLE, "/nowhere/chromium").env("NETD_LAB", mode);
        let output = command.arg("page_can_be_used").output()?;
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        Ok::<_, anyhow::Error>((output.status.success(), said))
    };
    let (passed, said) = tried("")?;
    ensure!(
        passed && said.contains("1 ignored") && said.contains("SKIPPED, not passed: /nowhere/chromium is missing"),
        "{said}"
    );
    let (passed, said) = tried("require")?;
    ensure!(!passed && said.contains("cannot run here") && said.contains("/nowhere/chromium is missing"), "{said}");
    Ok(())
}

fn main() -> ExitCode {
    let suite = Suite::new(&[Need::Nftables, Need::Vxlan]).unless(page_browser::missing());
    suite.run(lab::tests![
        page_shows_the_cluster_and_follows_it_without_being_loaded_again,
        page_can_be_used_by_everybody_and_on_paper,
        page_is_for_this_host_alone_until_the_operator_says_otherwise,
        without_a_browser_tests_are_skipped_by_its_name_or_fail_where_they_are_required,
    ])
}
