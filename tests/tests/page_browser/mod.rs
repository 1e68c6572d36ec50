//! Debian's Chromium without a window, driven over the DevTools protocol through two named pipes.
//!
//! Invariants: it runs inside the machine, so it reaches nothing else; every answer is waited for with a deadline; it ends with its value.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{Host, Process, allowing_for_load, eventually};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

/// Longest wait for one answer.
const LIMIT: Duration = Duration::from_secs(20);

/// Its program, and its pipes on the machine.
const PROGRAM: &str = "/usr/bin/chromium";
/// Names another place of its program, for whether there is one.
pub(crate) const VARIABLE: &str = "NETD_TEST_CHROMIUM";
const FOLDER: &str = "/run/browser";

/// Why there is none, if so.
pub(crate) fn missing() -> Option<String> {
    let program = std::env::var(VARIABLE).unwrap_or_else(|_| PROGRAM.to_owned());
    let there = std::path::Path::new(&program).exists();
    (!there).then(|| format!("{program} is missing: tests/setup run installs it"))
}

/// A running browser with one page.
pub(crate) struct Browser {
    _process: Process,
    requests: File,
    answers: File,
    /// What has come of the next message.
    partial: Vec<u8>,
    number: u64,
    session: String,
    /// What the browser has reported, in order.
    pub(crate) events: Vec<Value>,
}

impl Browser {
    /// Starts it on `host` with an empty page.
    pub(crate) fn start(host: &Host) -> Result<Self> {
        let flags = "--headless=new --log-level=3 --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions \
                     --disable-background-networking --disable-component-update --disable-sync --renderer-process-limit=1 \
                     --js-flags=--max-old-space-size=128 --window-size=1280,1000 --force-device-scale-factor=1 \
                     --user-data-dir=/run/browser/profile --remote-debugging-pipe about:blank";
        host.run(&["mkdir", "-p", FOLDER])?;
        host.run(&["mkfifo", &format!("{FOLDER}/requests"), &format!("{FOLDER}/answers")])?;
        // For both directions, so that opening does not wait for the other end.
        let open = |name: &str| {
            let path = host.path(format!("{FOLDER}/{name}"));
            OpenOptions::new().read(true).write(true).open(&path).with_context(|| path.display().to_string())
        };
        let (requests, answers) = (open("requests")?, open("answers")?);
        let chromium = host.command("sh").env("HOME", FOLDER).env("FLAGS", flags);
        let process = chromium
            .args(["-c", "exec chromium $FLAGS 3</run/browser/requests 4>/run/browser/answers"])
            .start("chromium")?;
        let (partial, session, events) = (Vec::new(), String::new(), Vec::new());
        let mut browser = Self { _process: process, requests, answers, partial, number: 0, session, events };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach)?;
        browser.session = attached["sessionId"].as_str().context("sessionId")?.to_owned();
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility", "DOM"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Asks and waits for the answer.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut text = message.to_string().into_bytes();
        text.push(0);
        self.requests.write_all(&text).context("write to the browser")?;
        let deadline = Instant::now() + allowing_for_load(LIMIT);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self.receive(left)?.with_context(|| format!("{method}: no answer"))?;
            if message["id"] != self.number {
                self.events.push(message);
                continue;
            }
            ensure!(message["error"].is_null(), "{method}: {}", message["error"]);
            return Ok(message["result"].clone());
        }
    }

    /// The next message, if one comes within `limit`.
    fn receive(&mut self, limit: Duration) -> Result<Option<Value>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = self.partial.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = self.partial.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(message.strip_suffix(&[0]).unwrap_or_default())?));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut ready = [PollFd::new(self.answers.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, timeout)? == 0 {
                return Ok(None);
            }
            let mut bytes = vec![0; 1 << 16];
            let count = self.answers.read(&mut bytes)?;
            self.partial.extend_from_slice(bytes.get(..count).unwrap_or_default());
        }
    }

    /// Opens `url` and waits until it is loaded.
    pub(crate) fn open(&mut self, url: &str) -> Result<()> {
        let opened = self.call("Page.navigate", json!({"url": url}))?;
        ensure!(opened["errorText"].is_null(), "{url}: {}", opened["errorText"]);
        self.until("document.readyState === 'complete'")
    }

    /// What an expression is on the page.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let done = self.call("Runtime.evaluate", params)?;
        if !done["exceptionDetails"].is_null() {
            bail!("{expression}: {}", done["exceptionDetails"]);
        }
        Ok(done["result"]["value"].clone())
    }

    /// The text of the element that `selector` finds.
    pub(crate) fn text(&mut self, selector: &str) -> Result<String> {
        let text = self.evaluate(&format!("document.querySelector({})?.textContent ?? ''", json!(selector)))?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until an expression is true.
    pub(crate) fn until(&mut self, expression: &str) -> Result<()> {
        let live = "document.getElementById('live')?.textContent";
        eventually(LIMIT, || {
            let (value, state) = (self.evaluate(expression)?, self.evaluate(live)?);
            ensure!(value == true, "{expression} is {value}; the page is {state}");
            Ok(())
        })
    }

    /// Waits until the element that `selector` finds has this text in it.
    pub(crate) fn shows(&mut self, selector: &str, text: &str) -> Result<()> {
        eventually(LIMIT, || {
            let shown = self.text(selector)?;
            ensure!(shown.contains(text), "{selector} lacks {text:?}: {shown}");
            Ok(())
        })
    }

    /// Clicks into the middle of what `selector` finds.
    pub(crate) fn click(&mut self, selector: &str) -> Result<()> {
        let place = self.evaluate(&format!(
            "(() => {{ const e = document.querySelector({}); e.scrollIntoView({{block: 'center'}}); \
             const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()",
            json!(selector)
        ))?;
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", event)?;
        }
        Ok(())
    }

    /// Presses a key that has a name.
    pub(crate) fn key(&mut self, key: &str, code: u32) -> Result<()> {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in [if text.is_empty() { "rawKeyDown" } else { "keyDown" }, "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            if kind == "keyDown" {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// What the browser found wrong with the page: errors and warnings of its console, exceptions.
    pub(crate) fn problems(&mut self) -> Result<Vec<String>> {
        // What came before this answer is in.
        self.evaluate("1")?;
        let is_problem = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Log.entryAdded") => {
                ["error", "warning"].iter().any(|level| event["params"]["entry"]["level"] == **level)
            }
            Some("Runtime.consoleAPICalled") => {
                ["error", "warning"].iter().any(|kind| event["params"]["type"] == **kind)
            }
            _ => false,
        };
        Ok(self.events.iter().filter(is_problem).map(|event| event["params"].to_string()).collect())
    }

    /// Everything that the page asked for.
    pub(crate) fn requests(&self) -> Vec<String> {
        let sent = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| event["params"]["request"]["url"].as_str()).map(str::to_owned).collect()
    }
}
