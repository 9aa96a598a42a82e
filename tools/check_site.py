"""Checks the pages of a built site: links, anchors, pictures, and where they come from.

python tools/check_site.py site      # part of: make docs
"""

import html.parser
import pathlib
import sys
import urllib.parse

#: Tags by which a browser loads something without being asked to.
LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(html.parser.HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        elif tag in LOADED and attrs.get(LOADED[tag]):
            self.loads.append(attrs[LOADED[tag]])


def problems_of(site):
    """What is wrong, a line each, and how many links and files were looked at."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    found, count = [], 0
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        if name.name == "404.html":  # its links start at the root of a server
            continue
        for target in [*page.links, *page.loads]:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loads:
                    found.append(f"{name} loads {target}")
                continue
            count += 1
            file = (path.parent / urllib.parse.unquote(parts.path)) if parts.path else path
            file = file.resolve()
            if not file.is_file():
                found.append(f"{name}: no file {target}")
            elif parts.fragment and file in pages:
                if urllib.parse.unquote(parts.fragment) not in pages[file].anchors:
                    found.append(f"{name}: no anchor {target}")
    return found, count, len(pages)


def main():
    found, count, pages = problems_of(pathlib.Path(sys.argv[1]))
    print("\n".join(found) if found else f"{count} links of {pages} pages lead somewhere")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
