"""HTML reports as a browser would take them."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a page would make a browser do."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [name for name, _ in attrs if name in ("src", "href", "action") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def self_contained(text: str) -> Page:
    """The page, which fetches nothing and runs nothing."""
    page = Page(text)
    assert not {"script", "img", "iframe", "link", "object"} & set(page.tags)
    assert not page.outside
    # In a hostile name of a test it may stand, as text.
    assert "http://" not in text.replace("src=http://x", "")
    assert "https://" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    return page
