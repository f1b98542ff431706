"""Fails if a page of the built site fetches anything from another host: python check_site.py build/site.

Links that a reader may click are none: only what a browser loads by itself, in HTML, CSS and the pages' scripts.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

LOADING = {"src", "srcset", "poster", "data"}  # attributes that a browser follows by itself, on any element
OUTSIDE = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", re.I)


class Loads(HTMLParser):
    """Addresses that a page loads, and those of its inline style and scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.within = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.within = tag
        relation = given.get("rel", "").split()
        follows = LOADING | ({"href", "xlink:href"} if tag in ("image", "use") else set())
        if tag == "link" and not {"canonical", "author", "license", "next", "prev", "search", "index"} & set(relation):
            follows = follows | {"href"}
        self.found += [given[name] for name in follows & set(given)]
        self.found += in_style(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self.within == "style":
            self.found += in_style(data)
        elif self.within == "script":
            self.found += in_script(data)


def in_style(text: str) -> list[str]:
    return [first or second for first, second in re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)]


def in_script(text: str) -> list[str]:
    """What a script might ask: addresses given to fetch, import and the like."""
    return re.findall(r"(?:fetch|import|importScripts|open|sendBeacon)\s*\(\s*['\"`]((?:https?:)?//[^'\"`]+)", text)


def asked(site: Path) -> list[str]:
    """`page: address` of everything that is loaded from elsewhere."""
    found = []
    for path in sorted(site.rglob("*")):
        kind = path.suffix
        if kind not in (".html", ".css", ".js", ".svg"):
            continue
        text = path.read_text(encoding="utf-8")
        if kind in (".html", ".svg"):
            page = Loads()
            page.feed(text)
            addresses = page.found
        else:
            addresses = in_style(text) if kind == ".css" else in_script(text)
        found += [f"{path.relative_to(site)}: {address}" for address in addresses if OUTSIDE.match(address)]
    return found


def main(site: str) -> None:
    pages = list(Path(site).rglob("*.html"))
    if not pages:
        sys.exit(f"{site} holds no pages; run make site")
    if found := asked(Path(site)):
        sys.exit(f"{site} asks other hosts {len(found)} times, first {found[0]}")
    print(f"{site}: {len(pages)} pages that ask no other host")


if __name__ == "__main__":
    main(sys.argv[1])
