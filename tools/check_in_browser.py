"""Opens each page of the built site in Chromium, as on a desktop and as on a phone.

    python tools/check_in_browser.py --screenshots out/site      # or: make docs-test

needs playwright and Chromium or Chrome (`apt-get install chromium`, or `--browser PATH`). It fails
where a page logs an error, asks another host for something, or is wider than the screen; where the
search does not find `ODELayer`, with a server or without; where mathematics is not set, or colours
can't be changed.
"""

import argparse
import functools
import http.server
import pathlib
import shutil
import sys
import threading

from playwright.sync_api import sync_playwright

ROOT = pathlib.Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def serve(folder):
    """A server of the folder at a free port, and its address."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


class Watched:
    """A page of the browser that notes what goes wrong."""

    def __init__(self, context, address):
        self.page, self.problems, self.now = context.new_page(), [], ""
        self.page.on("console", lambda m: m.type == "error" and self.note(f"console: {m.text}"))
        self.page.on("pageerror", lambda error: self.note(f"error: {error}"))
        self.page.on("requestfailed", lambda r: self.note(f"not loaded: {r.url}"))
        self.page.on("response", lambda r: r.status >= 400 and self.note(f"{r.status}: {r.url}"))
        own = (address, "data:", "blob:", "about:")
        self.page.on("request", lambda r: r.url.startswith(own) or self.note(f"asks {r.url}"))

    def note(self, text):
        self.problems.append(f"{self.now}: {text}")

    def open(self, url, name):
        self.now = name
        self.page.goto(url, wait_until="load")
        self.page.wait_for_selector("article h1", state="attached")


def check_width(watched):
    """What sticks out of the screen, if anything does."""
    width, screen = watched.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    if width > screen:
        watched.note(f"{width} pixels wide on a screen of {screen}")


def check_mathematics(watched):
    page = watched.page
    if page.locator(".arithmatex").count():
        page.wait_for_function(
            "document.querySelectorAll('.arithmatex').length <= "
            "document.querySelectorAll('.MathJax .math').length",
            timeout=20_000,
        )
        if page.locator(".MathJax_Error, .merror, .noError").count():
            watched.note("mathematics that can't be set")


def check_search(watched):
    page = watched.page
    button = page.locator("label[for=__search].md-header__button")  # where there is no room
    (button if button.is_visible() else page.locator(".md-search__input")).click()
    page.wait_for_function("document.activeElement.matches('.md-search__input')")
    page.keyboard.type("ODELayer")  # it listens to keys
    page.wait_for_selector(".md-search-result__link", timeout=20_000)
    links = [x.get_attribute("href") for x in page.locator(".md-search-result__link").all()]
    if not any("api/layers" in link for link in links):
        watched.note(f"the search finds {links}")


def check_colours(watched):
    page = watched.page
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(colour)
    page.locator("form[data-md-component=palette] label:visible").first.click()
    page.wait_for_function(f"{colour} != '{before}'")


def check(site, browser, screenshots):
    names = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html"))
    names.remove("404.html")
    server, address = serve(site)
    problems = []
    for size, (width, height) in SIZES.items():
        context = browser.new_context(viewport={"width": width, "height": height})
        watched = Watched(context, address)
        for name in names:
            watched.open(f"{address}/{name}", f"{name}, {size}")
            check_width(watched)
            check_mathematics(watched)
            if screenshots:
                picture = screenshots / size / f"{name.replace('/', '_')}.png"
                watched.page.screenshot(path=picture, full_page=True)
        watched.open(f"{address}/index.html", f"search, {size}")
        if not watched.page.locator("button.md-code__button, .md-clipboard").count():
            watched.note("no button to copy code")
        check_search(watched)
        if screenshots:
            watched.page.screenshot(path=screenshots / size / "search.png")
        watched.open(f"{address}/gradients.html", f"colours, {size}")
        check_colours(watched)
        if screenshots:
            watched.page.screenshot(path=screenshots / size / "dark.png")
        problems += watched.problems
        context.close()
    server.shutdown()

    context = browser.new_context()
    watched = Watched(context, site.as_uri())
    watched.open((site / "index.html").as_uri(), "without a server")
    check_search(watched)
    watched.open((site / "theory.html").as_uri(), "without a server")
    check_mathematics(watched)
    return problems + watched.problems, len(names)


def browser_of(playwright):
    """The program of a browser on the path, or of the one that playwright has downloaded."""
    for name in BROWSERS:
        if shutil.which(name):
            return shutil.which(name)
    own = playwright.chromium.executable_path
    if pathlib.Path(own).exists():
        return own
    sys.exit(
        "No browser was found. Install Chromium (`apt-get install chromium`, `brew install "
        "chromium`), let playwright do it (`.docs/bin/playwright install chromium`), or name one: "
        "`.docs/bin/python tools/check_in_browser.py --browser PATH`."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=pathlib.Path, default=ROOT / "site")
    parser.add_argument("--browser", help="its program; by default the one that is found")
    parser.add_argument("--screenshots", type=pathlib.Path, help="the folder to write them to")
    arguments = parser.parse_args()

    if not (arguments.site / "index.html").exists():
        sys.exit(f"There is no site in {arguments.site}: run `make docs` first.")
    with sync_playwright() as playwright:
        program = arguments.browser or browser_of(playwright)
        # As root, in containers, there is no sandbox.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        problems, count = check(arguments.site.resolve(), browser, arguments.screenshots)
        browser.close()
    if problems:
        sys.exit("\n".join(problems))
    print(f"{count} pages are fine on {' and '.join(SIZES)}")


if __name__ == "__main__":
    main()
