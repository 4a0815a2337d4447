"""The page in a real browser before a real service: both started here, and the page read as a person would read it."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from llm_rerank.service.app import create_app
from llm_rerank.service.settings import ServiceSettings

# such as survive the reading of titles, which takes closed tags out
IMAGE = '<img src=x alt="<" onerror="window.broken = 1">'
SCRIPT = '<script x="<">window.broken = 1; //'
HOSTILE_USER = "<script>window.broken = 1</script>/?#&"


@contextmanager
def served(shop: Any, **settings: Any) -> Iterator[str]:
    """Serve a shop on a free port of this machine; gives the address. settings: of the service."""
    patient = ServiceSettings(**{"time_limit_s": 30.0, **settings})  # other tests may have the cores
    server = uvicorn.Server(uvicorn.Config(create_app(shop, patient), port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    for _ in range(600):
        if server.started:
            break
        assert thread.is_alive(), "the service did not start"
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def api(base: str, path: str, body: Any = None, kind: str = "application/json", key: str = "") -> Any:
    """Ask the service as any client would: POST with a body, else GET. Refusals come back as they are."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": kind, **({"x-api-key": key} if key else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{base}/{path}", data, headers)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as refusal:
        return json.load(refusal)


@dataclass
class Visit:
    """An open page with all that went wrong in it, and what it asked the service for: (method, path, body)."""

    page: Any
    base: str
    wrong: list[str] = field(default_factory=list)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)

    def show(self, user: str) -> None:
        """Type a user and ask."""
        self.page.fill("#user", user)
        self.page.keyboard.press("Enter")
        self.settle()

    def settle(self) -> None:
        """Wait until a list is shown and nothing is on its way: sliders wait a little before they ask."""
        self.page.wait_for_timeout(300)
        self.page.wait_for_selector('#lists[aria-busy="false"]')

    def count(self, path: str) -> int:
        """How often a path was asked for."""
        return sum(asked == path for _, asked, _ in self.asked)

    def last(self, path: str) -> Any:
        """The body that was last sent to a path."""
        return next(body for _, asked, body in reversed(self.asked) if asked == path)

    def rows(self, of: str = "#ours") -> list[dict[str, Any]]:
        """The rows of a list, as they read."""
        return self.page.evaluate(READ, of)

    def slide(self, slider: str, key: str, times: int = 1) -> None:
        """Move a slider by keys, and wait for what follows."""
        self.page.focus(slider)
        for _ in range(times):
            self.page.keyboard.press(key)
        self.settle()

    def find(self, words: str) -> None:
        """Type words into the search box and wait for what is found."""
        with self.page.expect_response(lambda response: "/catalogue" in response.url):
            self.page.fill("#words", words)
        self.page.wait_for_selector("#found button")

    def text(self, selector: str) -> str:
        """The words of an element that can be seen."""
        return self.page.inner_text(selector)


@contextmanager
def visit(browser: Any, base: str, *, width: int = 1400, **context: Any) -> Iterator[Visit]:
    """Open the page; what goes wrong in it is collected, requests elsewhere included."""
    opened = browser.new_context(viewport={"width": width, "height": 900}, **context)
    page = opened.new_page()
    found = Visit(page, base)
    page.on("console", lambda said: found.wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: found.wrong.append(str(error)))
    page.on("dialog", lambda dialog: found.wrong.append(f"dialog {dialog.message}"))

    def noted(request: Any) -> None:
        if not request.url.startswith(base):
            found.wrong.append(request.url)
        path = request.url.removeprefix(f"{base}/").partition("?")[0]
        kind = request.headers.get("content-type", "")
        found.asked.append((request.method, path, request.post_data_json if "json" in kind else request.post_data))

    page.on("request", noted)
    page.goto(base)
    page.wait_for_selector("#some-users button, #key-form:not([hidden]), #alert:not(:empty)")
    yield found
    opened.close()


READ = """of => [...document.querySelectorAll(`${of} > li[data-item]`)].map(row => {
  const text = selector => row.querySelector(selector)?.innerText.trim() ?? null;
  const bars = [...row.querySelectorAll(".body .bars > div")].map(bar => {
    const drawn = bar.querySelector(".track i");
    return {
      group: bar.querySelector("dt").innerText.trim(), value: bar.querySelector("dd").innerText.trim(),
      side: drawn.className, share: parseFloat(drawn.style.width) / 50,
      width: drawn.getBoundingClientRect().width / bar.querySelector(".track").getBoundingClientRect().width,
    };
  });
  return {
    rank: Number(row.querySelector(".rank").lastChild.data), title: text(".title"), move: text(".move"),
    state: text(".state"), probability: text(".probability b"), score: text(".score"), reason: text(".reason"),
    just: text(".just"), changed: row.classList.contains("changed"), cut: row.classList.contains("dropped"), bars,
  };
})"""


FAULTS = """() => {
  const width = document.documentElement.clientWidth, problems = [];
  const parts = colour => (colour.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => {
    const part = value => { value /= 255; return value <= .03928 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4; };
    return .2126 * part(r) + .7152 * part(g) + .0722 * part(b);
  };
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
      if (colour[3] > 0) problems.push(`half-clear ground under ${element.tagName}`);
    }
    return [255, 255, 255];
  };
  const wide = document.documentElement.scrollWidth;
  if (wide > width) problems.push(`page is ${wide} wide`);
  let looked = 0;
  for (const element of document.querySelectorAll("body *")) {
    const box = element.getBoundingClientRect(), style = getComputedStyle(element);
    const name = `${element.tagName}.${element.className} ${element.textContent.trim().slice(0, 40)}`;
    if (!box.width || element.closest(".unseen, .skip, noscript")) continue;
    if (box.right > width + 1 || box.left < -1) problems.push(`outside the page: ${name}`);
    if (element.scrollWidth > element.clientWidth + 1 && style.overflowX !== "visible" && element.clientWidth)
      problems.push(`cut off: ${name}`);
    const says = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    const field = element.matches("input:not([type=range]):not([type=checkbox]):not([type=radio])");
    if (!says && !field) continue;
    looked += 1;
    const [one, other] = [light(parts(style.color)), light(ground(element))].sort((a, b) => b - a);
    const contrast = (one + .05) / (other + .05);
    if (contrast < 4.5) problems.push(`contrast ${contrast.toFixed(2)}: ${name}`);
    if (parseFloat(style.fontSize) < 12) problems.push(`${style.fontSize}: ${name}`);
  }
  for (const control of document.querySelectorAll("button, input, select")) {
    const shown = control.closest("label, button") ?? control, box = shown.getBoundingClientRect();
    if (box.width && (box.height < 24 || box.width < 24))
      problems.push(`small to hit: ${control.outerHTML.slice(0, 60)}`);
  }
  return {problems, looked};
}"""
