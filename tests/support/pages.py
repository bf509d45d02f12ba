"""HTML reports as a browser would take them."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser
from importlib import resources

#: The one script that a page may have.
SCRIPT = resources.files("kedge.report").joinpath("templates/page.js").read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a page would make a browser do. text: what it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.scripts: list[str] = []
        self.policy = ""
        self.text = ""
        self._hidden = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            inside = name == "href" and (value or "").startswith("#")
            if (name in ("src", "href", "action") and not inside) or name.startswith("on"):
                self.outside.append(name)
        if dict(attrs).get("http-equiv") == "Content-Security-Policy":
            self.policy = dict(attrs)["content"] or ""
        if tag in ("script", "style"):
            self._hidden = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden:
            self._hidden = ""

    def handle_data(self, data: str) -> None:
        if self._hidden == "script":
            self.scripts.append(data)
        elif not self._hidden:
            self.text += data


def self_contained(text: str) -> Page:
    """The page, which fetches nothing, and runs nothing but the script of every page."""
    page = Page(text)
    assert not {"img", "iframe", "link", "object", "embed", "base", "form"} & set(page.tags)
    assert not page.outside
    # In a hostile name of a test it may stand, as text.
    assert "http://" not in text.replace("src=http://x", "").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "https://" not in text
    assert page.scripts == [SCRIPT]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert "default-src 'none'" in page.policy
    assert f"script-src 'sha256-{digest}'" in page.policy
    return page
