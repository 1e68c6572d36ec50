// Keeps the page as the daemon's events say, and its query as the operator chooses. Everything that is shown comes as escaped HTML.
"use strict";
(() => {
  const SILENT = 25000; // The daemon says at least every ten seconds that it is there.
  const AGAIN = 3000;
  const live = document.getElementById("live");
  const said = document.getElementById("said");
  const query = new URLSearchParams(location.search);
  let source = null;
  let last = 0;
  let again = 0;
  let asked = ""; // The part that the operator's last choice is shown in, until it is announced.

  const clock = (time) => new Date(time).toISOString().slice(11, 19) + " UTC";

  function state(text, isLost) {
    if (live.textContent !== text) live.textContent = text;
    live.classList.toggle("lost", isLost);
  }

  // The one node of the picture that the tab key reaches; arrow keys lead to the others.
  function rove() {
    const nodes = [...document.querySelectorAll("svg a.node")];
    const chosen = nodes.find((node) => node === document.activeElement) || nodes.find((node) => node.hasAttribute("aria-current")) || nodes[0];
    nodes.forEach((node) => node.setAttribute("tabindex", node === chosen ? "0" : "-1"));
  }

  function newest() {
    const row = document.querySelector('[data-part="changes"] tbody tr');
    return row ? row.textContent : "";
  }

  // What there is to say of a part that was asked for: how many were found, or the details of a node.
  function answer(part) {
    return [...part.querySelectorAll(".problem, .count, h3, h3 + p, dt, dd")].map((element) => element.textContent).join(" ");
  }

  function replace(sections) {
    const before = newest();
    for (const [id, html] of Object.entries(sections)) {
      const part = document.querySelector(`[data-part="${CSS.escape(id)}"]`);
      if (!part) continue;
      const focused = part.contains(document.activeElement) ? document.activeElement.dataset.key : null;
      part.innerHTML = html;
      part.classList.remove("changed");
      void part.offsetWidth;
      part.classList.add("changed");
      if (focused) {
        const same = [...part.querySelectorAll("[data-key]")].find((element) => element.dataset.key === focused);
        if (same) same.focus({ preventScroll: true });
      }
    }
    rove();
    const row = document.querySelector('[data-part="changes"] tbody tr');
    if (asked in sections) {
      said.textContent = answer(document.querySelector(`[data-part="${CSS.escape(asked)}"]`));
      asked = "";
    } else if (before && row && newest() !== before) said.textContent = row.cells[2].textContent + ": " + row.cells[3].textContent;
  }

  function connect() {
    clearTimeout(again);
    if (source) source.close();
    source = new EventSource("events?" + query);
    source.addEventListener("sections", (event) => {
      const message = JSON.parse(event.data);
      if (message.version !== document.body.dataset.version) return location.reload();
      last = Date.now();
      replace(message.sections);
      state("live", false);
    });
    source.addEventListener("alive", () => {
      last = Date.now();
      state("live", false);
    });
    source.addEventListener("error", () => {
      const since = last ? "as of " + clock(last) : "not connected";
      state(since + ": netd does not answer; trying again", true);
      if (source.readyState === EventSource.CLOSED) again = setTimeout(connect, AGAIN);
    });
  }

  setInterval(() => {
    if (last && Date.now() - last > SILENT) state("as of " + clock(last) + ": no word from netd since; trying again", true);
  }, 5000);

  function ask(field, value) {
    asked = field === "node" ? "detail" : field;
    if (value) query.set(field, value);
    else query.delete(field);
    history.replaceState(null, "", "?" + query + location.hash);
    connect();
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-node]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    link.focus();
    ask("node", link.dataset.node);
  });

  document.addEventListener("keydown", (event) => {
    const node = event.target.closest && event.target.closest("svg a.node");
    if (!node) return;
    const nodes = [...document.querySelectorAll("svg a.node")];
    const at = nodes.indexOf(node);
    // Two columns: the first node stands to the right of this one, the second to its left.
    const steps = { ArrowDown: 2, ArrowUp: -2, ArrowRight: at % 2 ? -1 : 0, ArrowLeft: at % 2 ? 0 : 1, Home: -at, End: nodes.length - 1 - at };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = nodes[at + steps[event.key]];
    if (!next) return;
    nodes.forEach((other) => other.setAttribute("tabindex", other === next ? "0" : "-1"));
    next.focus();
  });

  for (const form of document.querySelectorAll("form")) {
    const input = form.querySelector('input[type="search"]');
    let typing = 0;
    input.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => ask(input.name, input.value), 250);
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(typing);
      ask(input.name, input.value);
    });
  }

  rove();
  connect();
})();
