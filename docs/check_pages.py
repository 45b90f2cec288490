"""Look at the built pages: ``make docs-check``.

Two looks. The first reads every page: a link that leads nowhere, a picture that is not there, an
anchor that no page has. The second opens every page in a browser, at the widths of a desk and of a
telephone, light and dark: an error in the console, a file that does not come, a request to another
host, a page or a line wider than its place. The second needs Chromium (``CHROMIUM=/path/to/it``
where it is not found by name) and the extra ``docs-check``; without them it says so and is left
out.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

WIDTHS, SCHEMES = (1300, 400), ("light", "dark")
# What the browser says of a file that still came while the page was left.
LEFT = "net::ERR_ABORTED"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# What is wider than its place. A code box or a table may scroll inside itself: that is no finding.
OVERFLOW = """() => {
  const found = [], wide = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > wide + 1)
    found.push(`the page is ${document.documentElement.scrollWidth} wide`);
  const scrolls = e => {
    for (; e && e !== document.body; e = e.parentElement)
      if (/auto|scroll/.test(getComputedStyle(e).overflowX)
          && !e.matches('.bd-sidebar-secondary, .bd-sidebar-primary, .bd-article-container'))
        return true;
    return false;
  };
  for (const box of document.querySelectorAll('.bd-sidebar-secondary, .bd-article')) {
    const right = box.getBoundingClientRect().right;
    if (!box.offsetParent) continue;
    for (const e of box.querySelectorAll('a, p, code, h1, h2, dt, img, mjx-container')) {
      // Of a formula what is seen: beside it stands, unseen, what is read aloud.
      const shown = e.matches('mjx-container') ? e.querySelector('mjx-math') || e : e;
      // A word too long for its line leaves the box as wide as it was.
      const seen = getComputedStyle(e).overflowX === 'visible' && e.clientWidth && shown === e;
      const inside = seen ? e.scrollWidth - e.clientWidth : 0;
      const over = Math.max(shown.getBoundingClientRect().right - right, inside);
      if (over > 2 && e.getBoundingClientRect().width && !scrolls(e))
        found.push(`${e.tagName.toLowerCase()} sticks out by ${Math.round(over)}: `
                   + (e.textContent || e.src || '').trim().slice(0, 60));
    }
  }
  for (const image of document.images)
    if (image.complete && !image.naturalWidth && image.offsetParent)
      found.push(`no picture: ${image.src}`);
  return found;
}"""


class Page(HTMLParser):
    """The links, pictures and anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.without_alt: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what a tag leads to, and what it may be led to by."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.links |= {given[name] for name in ("href", "src") if given.get(name)}
        if tag == "img" and "alt" not in given:
            self.without_alt.append(given.get("src", "?"))


def read_pages(root: Path) -> dict[Path, Page]:
    """Every page below a folder."""
    files = sorted(root.rglob("*.html"))
    return {f: Page(f.read_text(encoding="utf-8")) for f in files if "_static" not in f.parts}


def has_anchor(page: Page, name: str) -> bool:
    """Whether a fragment leads anywhere; the empty one and "top" lead to the page's beginning."""
    return name in page.anchors | {"", "top"}


def dead_links(root: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """What leads to no file, or to no anchor of a page."""
    for path, page in pages.items():
        yield from (f"{path.relative_to(root)}: no words for {src}" for src in page.without_alt)
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            if not there.exists():
                yield f"{path.relative_to(root)}: {link} leads nowhere"
            elif there in pages and not has_anchor(pages[there], unquote(parts.fragment)):
                yield f"{path.relative_to(root)}: {link} has no such anchor"


class Quiet(SimpleHTTPRequestHandler):
    """A server that does not tell of every file."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def serve(root: Path) -> ThreadingHTTPServer:
    """The folder on a free port of this computer."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def seen_in(tab: Any, url: str) -> list[str]:
    """What a tab finds wrong with one page."""
    found: list[str] = []
    said = lambda m: found.append(f"console: {m.text}") if m.type == "error" else None  # noqa: E731
    broke = lambda error: found.append(f"script: {error}")  # noqa: E731
    missed = lambda r: found.append(f"did not come: {r.url}") if r.failure != LEFT else None  # noqa: E731
    tab.on("console", said)
    tab.on("pageerror", broke)
    tab.on("requestfailed", missed)
    tab.goto(url, wait_until="load")
    # Formulas are set after the page has come.
    tab.evaluate("() => window.MathJax?.startup?.promise")
    found += tab.evaluate(OVERFLOW)
    for event, listener in (("console", said), ("pageerror", broke), ("requestfailed", missed)):
        tab.remove_listener(event, listener)
    return found


def answer(root: Path, route: Any) -> None:
    """From the build, where pages ask at the address that they are built for; refused elsewhere.

    Pages stand by themselves: what they ask of another host is an error that the console tells of.
    """
    address = os.environ.get("SK_DNN2GP_DOCS", "").rstrip("/") + "/"
    file = root / route.request.url.removeprefix(address)
    if address != "/" and route.request.url.startswith(address) and file.is_file():
        route.fulfill(path=file, headers={"Access-Control-Allow-Origin": "*"})
    else:
        route.abort()


def open_pages(root: Path, pages: dict[Path, Page], chromium: str, shots: str) -> Iterator[str]:
    """Every page in a browser, at every width and scheme; screenshots where a folder is named."""
    from playwright.sync_api import sync_playwright

    server = serve(root)
    home = f"http://127.0.0.1:{server.server_port}"
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for width in WIDTHS:
            for scheme in SCHEMES:
                size = {"width": width, "height": 900}
                context = browser.new_context(viewport=size, color_scheme=scheme)
                context.route(lambda url: not url.startswith(home), partial(answer, root))
                tab = context.new_page()
                for path in pages:
                    name = path.relative_to(root).as_posix()
                    for what in seen_in(tab, f"{home}/{name}"):
                        yield f"{name} ({width}, {scheme}): {what}"
                    if shots:
                        file = f"{name.replace('/', '-')[:-5]}-{width}-{scheme}.png"
                        tab.screenshot(path=Path(shots) / file)
                context.close()
        browser.close()
    server.shutdown()
    server.server_close()


def find_chromium() -> str | None:
    """The browser by its variable, or by its names."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--shots", default="", help="folder for a screenshot of every page")
    parser.add_argument("--only", default="", help="pages with this in their name")
    given = parser.parse_args()
    root = given.root.resolve()
    pages = read_pages(root)
    if not pages:
        print(f"no pages in {root}: make docs")
        return 1
    found = list(dead_links(root, pages))
    chromium = find_chromium()
    if chromium is None:
        print("no browser: links, pictures and anchors were read, the pages were not opened")
    else:
        chosen = {p: page for p, page in pages.items() if given.only in str(p.relative_to(root))}
        found += open_pages(root, chosen, chromium, given.shots)
    print(*found, f"{len(pages)} pages, {len(found)} findings", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
