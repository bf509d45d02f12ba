"""Check a folder of HTML pages: every link leads somewhere, every page can be reached, none fetches from elsewhere."""

from __future__ import annotations

import posixpath
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Fault", "Page", "check", "external", "read_pages", "unreachable"]

#: Attributes by which a page makes a browser fetch something, by element; `link` only of these kinds.
_FETCHED = {
    **dict.fromkeys(("img", "source"), ("src", "srcset")),
    **dict.fromkeys(("script", "iframe", "frame", "audio", "embed", "track", "input"), ("src",)),
    **dict.fromkeys(("image", "use", "feimage"), ("href", "xlink:href")),
    **dict.fromkeys(("video",), ("src", "poster")),
    **dict.fromkeys(("link",), ("href", "imagesrcset")),
    **dict.fromkeys(("object",), ("data",)),
}
_FETCHED_LINKS = frozenset({"stylesheet", "preload", "icon", "shortcut", "manifest", "modulepreload", "search"})
_FOLLOWED = {"a": ("href", "xlink:href"), "area": ("href",), "form": ("action",)}
_LISTS = ("srcset", "imagesrcset")
_CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_CSS_URL = re.compile(
    r"""url\(\s*(?:"([^"]*)"|'([^']*)'|([^'")\s]*))\s*\)|@import\s+(?:"([^"]*)"|'([^']*)')""", re.IGNORECASE
)
_REFRESH = re.compile(r"^\s*[\d.]+\s*[;,]\s*(?:url\s*=\s*)?['\"]?([^'\"]+)", re.IGNORECASE)
#: What a browser makes of nothing but the link itself.
_IN_ITSELF = ("data", "blob", "javascript", "about")
#: Schemes and hosts that mean the reader's own machine, or the one on which the site was built.
_OWN_SCHEME = "file"
_OWN_HOST = re.compile(r"localhost|.*\.localhost|127(\.\d+){3}|0\.0\.0\.0|::1", re.IGNORECASE)
_TIMEOUT_S = 20


@dataclass(frozen=True)
class Fault:
    """What is wrong, and on which page."""

    page: str
    what: str

    def __str__(self) -> str:
        return f"{self.page}: {self.what}"


@dataclass
class Page:
    """What a page has for links to lead to, and where its own lead, as they are written."""

    anchors: set[str] = field(default_factory=set)
    followed: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        self.page.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.page.fetched += _css_urls(given.get("style", ""))
        self.page.followed += [given[name] for name in _FOLLOWED.get(tag, ()) if name in given]
        if tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
            self.page.followed += _REFRESH.findall(given.get("content", ""))
        if tag == "link" and not _FETCHED_LINKS & set(given.get("rel", "").lower().split()):
            return
        for name in _FETCHED.get(tag, ()):
            if name in given:
                self.page.fetched += _candidates(given[name]) if name in _LISTS else [given[name]]

    def handle_endtag(self, tag: str) -> None:
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.page.fetched += _css_urls(data)


def _css_urls(text: str) -> list[str]:
    return [next(filter(None, found), "") for found in _CSS_URL.findall(_CSS_COMMENT.sub("", text))]


def _candidates(text: str) -> list[str]:
    """The links of a srcset, without the width or density behind each."""
    return [words[0] for each in re.split(r",\s+|(?<=\d[wxh]),", text) if (words := each.split())]


def read_pages(folder: Path) -> dict[str, Page]:
    """Every page of a folder, by its path in it."""
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        if path.is_relative_to(folder / "_static"):  # templates that the theme leaves there
            continue
        reader = _Reader()
        reader.feed(path.read_text("utf-8"))
        reader.close()
        pages[path.relative_to(folder).as_posix()] = reader.page
    return pages


def check(folder: Path, pages: Mapping[str, Page], start: str = "index.html") -> list[Fault]:
    """Every fault of a site that begins at a page, in order of the pages."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    faults = [fault for name, page in pages.items() for fault in _faults_of(name, page, pages, files)]
    for name in sorted(each for each in files if each.endswith(".css")):
        faults += _faults_of(name, Page(fetched=_css_urls((folder / name).read_text("utf-8"))), pages, files)
    reached = _reached(pages, start)
    return faults + [Fault(name, "no page leads to it") for name in pages if name not in reached]


def external(pages: Mapping[str, Page]) -> dict[str, list[str]]:
    """Links to other sites without their fragments, each with the pages that have it."""
    found: dict[str, list[str]] = {}
    for name, page in pages.items():
        for link in dict.fromkeys(each.partition("#")[0] for each in page.followed if _is_elsewhere(each)):
            found.setdefault(link, []).append(name)
    return found


def unreachable(urls: list[str]) -> dict[str, str]:
    """Which of these do not answer, and why; asks each site, so it needs a network."""
    with ThreadPoolExecutor(max_workers=8) as executor:
        return {url: why for url, why in zip(urls, executor.map(_asked, urls), strict=True) if why}


def _faults_of(name: str, page: Page, pages: Mapping[str, Page], files: set[str]) -> Iterator[Fault]:
    for link in dict.fromkeys(link.strip() for link in (*page.followed, *page.fetched)):
        parts = urlsplit(link)
        if parts.scheme in _IN_ITSELF:
            continue
        if parts.scheme == _OWN_SCHEME or _OWN_HOST.fullmatch(parts.hostname or ""):
            yield Fault(name, f"{link} leads to the reader's own machine")
        elif _is_elsewhere(link):
            if link in page.fetched:
                yield Fault(name, f"fetches {link}")
        elif link.startswith("/"):
            yield Fault(name, f"{link} leads outside where the site does not lie at the root of its host")
        else:
            target, anchor = _target(name, link)
            if target not in files:
                yield Fault(name, f"{link} leads nowhere")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                yield Fault(name, f"{link}: {target} has no such anchor")


def _reached(pages: Mapping[str, Page], start: str) -> set[str]:
    seen, coming = {start}, [start]
    while coming:
        name = coming.pop()
        for link in pages[name].followed:
            target = "" if urlsplit(link).scheme or _is_elsewhere(link) else _target(name, link)[0]
            if target in pages and target not in seen:
                seen.add(target)
                coming.append(target)
    return seen


def _target(page: str, link: str) -> tuple[str, str]:
    """The file in the folder that a link of a page means, and the anchor in it."""
    parts = urlsplit(link)
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(parts.path))) if parts.path else page
    return path, unquote(parts.fragment)


def _is_elsewhere(link: str) -> bool:
    parts = urlsplit(link)
    return bool(parts.scheme or parts.netloc) and parts.scheme not in _IN_ITSELF


def _asked(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        return ""
    try:
        asked = urllib.request.Request(url, headers={"User-Agent": "kedge-docs"})  # noqa: S310 - of the two above
        with urllib.request.urlopen(asked, timeout=_TIMEOUT_S):  # noqa: S310
            return ""
    except (OSError, ValueError) as error:
        return str(error)
