"""The book in a real browser, opened from disk: what a reader sees, and what one hears."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from axe_playwright_python.sync_playwright import Axe
from book_build import Book, chapters_in_toc, shared_book
from playwright.sync_api import Browser, Page, expect

from companion.claims import CATALOGUE

pytestmark = pytest.mark.browser

COLOURS = ["color-contrast", "link-in-text-block"]
VIOLATIONS = {"preload": False, "resultTypes": ["violations"]}
BUT_COLOURS = {**VIOLATIONS, "rules": {rule: {"enabled": False} for rule in COLOURS}}
ONLY_COLOURS = {**VIOLATIONS, "runOnly": COLOURS}
# A page has thousands of words in about a hundred shades: colour, size and weight of the letters,
# and the colours behind them. axe-core takes its time for each element, so one a shade is marked.
MARK_SHADES = """() => {
    document.querySelectorAll('[data-shade]').forEach(node => delete node.dataset.shade);
    const seen = new Set();
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const node = texts.currentNode.parentElement;
        if (!texts.currentNode.textContent.trim() || node.closest('script, style, noscript'))
            continue;
        if (!node.checkVisibility({checkVisibilityCSS: true}))
            continue;
        const own = getComputedStyle(node);
        const shade = [node.localName === 'a', own.color, own.fontSize, own.fontWeight,
                       own.textShadow, own.textDecorationLine];
        for (let around = node; around; around = around.parentElement) {
            const style = getComputedStyle(around);
            shade.push(style.backgroundColor, style.backgroundImage, style.opacity);
        }
        if (!seen.has(shade.join())) {
            seen.add(shade.join());
            node.dataset.shade = seen.size;
        }
    }
    return seen.size;
}"""
LOCAL = ("file://", "http://127.0.0.1:", "data:", "blob:")
WIDE, TELEPHONE = 1280, 390
PATIENCE = 180_000  # milliseconds: a machine at work on other tests is slow, not wrong
SERIOUS = ("serious", "critical")
# A word of chapter 3, "Differentiate through a solver without storing it".
SEARCHED, FOUND = ("costate", "03_adjoint")


@pytest.fixture(scope="session")
def book(tmp_path_factory, worker_id) -> Book:
    return shared_book(tmp_path_factory, worker_id)


@contextmanager
def opened(browser: Browser, url: str, theme: str = "light") -> Iterator[Page]:
    """Open a page, let it settle, and fail on any error it reports or anything it fetches."""
    problems: list[str] = []
    page = browser.new_page(viewport={"width": WIDE, "height": 900}, reduced_motion="reduce")
    page.set_default_timeout(PATIENCE)
    page.add_init_script(
        f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')"
    )
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
    page.on("request", lambda r: None if r.url.startswith(LOCAL) else problems.append(r.url))
    page.goto(url)
    page.evaluate("window.MathJax ? MathJax.startup.promise : null")
    yield page
    page.close()
    assert not problems, problems


def address(book, name: str) -> str:
    return (book.html / f"{name}.html").as_uri()


def faults_of_text(page: Page) -> Iterator[str]:
    """Yield what is wrong with formulas and images."""
    yield from page.evaluate(
        """() => [...document.querySelectorAll('.math')].filter(node =>
               !node.querySelector('mjx-container') || node.querySelector('mjx-merror'))
               .map(node => 'not rendered: ' + node.textContent.slice(0, 100))"""
    )
    text = page.evaluate(
        """() => {const copy = document.querySelector('main').cloneNode(true);
           copy.querySelectorAll('pre, code, script, mjx-container').forEach(n => n.remove());
           return copy.textContent}"""
    )
    yield from (f"{mark} is shown as text" for mark in ("\\(", "\\[") if mark in text)
    page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    yield from page.evaluate(
        """async () => {const images = [...document.images];
           await Promise.all(images.map(i => i.decode().catch(() => null)));
           return images.filter(i => i.naturalWidth === 0).map(i => 'no image: ' + i.src)}"""
    )


def faults_of_access(page: Page) -> Iterator[str]:
    """Yield what axe-core finds on a page besides its colours."""
    yield from serious(Axe().run(page, options=BUT_COLOURS).response["violations"])


def faults_of_colours(page: Page, theme: str) -> Iterator[str]:
    """Yield what axe-core finds among the colours of a theme."""
    page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    page.wait_for_function(  # colours that still change would be measured half-way
        "() => !document.getAnimations().some(a => a instanceof CSSTransition)"
    )
    assert page.evaluate(MARK_SHADES) > 5
    marked = {"include": [["[data-shade]"]]}
    found = Axe().run(page, context=marked, options=ONLY_COLOURS).response["violations"]
    yield from (f"{theme}: {fault}" for fault in serious(found))


def serious(violations: list[dict]) -> Iterator[str]:
    """Yield the violations that keep somebody from reading."""
    for violation in violations:
        if violation["impact"] in SERIOUS:
            for node in violation["nodes"]:
                shown = f"{node['target']} {node['html'][:120]} {node['failureSummary']}"
                yield f"{violation['id']}: {shown}"


def faults_of_width(page: Page) -> Iterator[str]:
    """Yield what does not fit the screen of a telephone."""
    page.set_viewport_size({"width": TELEPHONE, "height": 900})
    page.wait_for_function("wide => window.innerWidth === wide", arg=TELEPHONE)
    width, seen = page.evaluate(
        "() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    if width > seen:
        wide = page.evaluate(
            """seen => [...document.querySelectorAll('main *')]
                .filter(n => n.getBoundingClientRect().right > seen + 1 && !n.closest('pre'))
                .slice(0, 5).map(n => n.outerHTML.slice(0, 100))""",
            seen,
        )
        yield f"{width} px wide on {seen}: {wide}"


@pytest.mark.parametrize("name", chapters_in_toc())
def test_page_in_four_views(browser, book, name):
    """Its formulas, its two themes, and the width of a telephone, after one load."""
    with opened(browser, address(book, name)) as page:
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        found = [*faults_of_text(page), *faults_of_width(page)]
        page.set_viewport_size({"width": WIDE, "height": 900})
        page.wait_for_function("wide => window.innerWidth === wide", arg=WIDE)
        # Folded solutions are part of the page.
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found += faults_of_access(page)
        found += [*faults_of_colours(page, "light"), *faults_of_colours(page, "dark")]
        assert not found, "\n".join(found)


def test_faults_are_found(browser, book):
    """One pale word among many, in one theme; a picture without words; what is too wide."""
    with opened(browser, address(book, "book/notation")) as page:
        page.evaluate(
            """() => {
                const main = document.querySelector('article');
                main.querySelector('p').innerHTML += ' <b style="color: #aaa">pale</b>';
                main.innerHTML += '<img src="data:,"><p style="width: 2000px">wide</p>'}"""
        )
        assert any("image-alt" in fault for fault in faults_of_access(page))
        assert any("pale" in fault for fault in faults_of_colours(page, "light"))
        assert not [fault for fault in faults_of_colours(page, "dark") if "pale" in fault]
        assert any("no image" in fault for fault in faults_of_text(page))
        assert any("wide" in fault for fault in faults_of_width(page))


def test_light_and_dark_have_their_own_picture(browser, book):
    for theme in ("light", "dark"):
        with opened(browser, address(book, "book/index"), theme) as page:
            assert page.locator(f"img.only-{theme}").is_visible()
            other = "dark" if theme == "light" else "light"
            assert not page.locator(f"img.only-{other}").is_visible()


def test_an_animation_has_the_ground_of_the_page(browser, book):
    with opened(browser, address(book, "notebooks/01_residual_steps"), "dark") as page:
        card = page.locator(".text_html:has(.moving-points)").first
        assert card.evaluate("e => getComputedStyle(e).backgroundColor") == "rgba(0, 0, 0, 0)"


def test_theme_button_switches(browser, book):
    with opened(browser, address(book, "book/notation"), "dark") as page:
        page.locator(".theme-switch-button:visible").first.click()
        assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_ledger_rows_are_filtered_with_the_keyboard_and_found_by_links(browser, book):
    with opened(browser, address(book, "book/ledger")) as page:
        rows, row = page.locator(".claim:visible"), page.locator("#claim-cl24")
        assert rows.count() == len(CATALOGUE)
        page.locator("select[name=verdict]").focus()
        page.keyboard.press("ArrowDown")
        verdict = page.locator("select[name=verdict]").input_value()
        assert {node.get_attribute("data-verdict") for node in rows.all()} == {verdict}
        assert f"{rows.count()} of {len(CATALOGUE)}" in page.locator("output").inner_text()
        page.locator("select[name=chapter]").select_option("16")
        assert not row.is_visible()
        page.evaluate("location.hash = '#claim-cl24'")
        expect(row).to_be_visible()
        assert rows.count() == len(CATALOGUE)
        page.locator("select[name=chapter]").select_option("16")
        page.get_by_role("button", name="Show all").focus()
        page.keyboard.press("Enter")
        expect(row).to_be_visible()


def test_the_first_page_shows_a_network_that_leaves_the_truth(browser, book):
    with opened(browser, address(book, "book/index")) as page:
        trailer = page.locator(".trailer")
        assert trailer.locator("svg:visible").count() == 1  # one message
        assert not trailer.locator("img").is_visible()
        error = trailer.locator(".pendulum-error")
        own = float(error.inner_text().split(":")[1].replace("\u2212", "-"))
        slider = trailer.get_by_role("slider")
        slider.focus()
        while "64 steps" not in trailer.locator("output").inner_text():
            slider.press("ArrowLeft")
        half = float(error.inner_text().split(":")[1].replace("\u2212", "-"))
        assert half > 100 * own


def test_what_is_cut_fades_out_at_that_end(browser, book):
    with opened(browser, address(book, "book/index")) as page:
        page.set_viewport_size({"width": TELEPHONE, "height": 900})
        listing = page.locator("div.highlight pre").first
        expect(listing).to_have_attribute("data-cut", "after")
        listing.evaluate("node => { node.scrollLeft = node.scrollWidth }")
        expect(listing).to_have_attribute("data-cut", "before")
        assert listing.evaluate("node => getComputedStyle(node).maskImage") != "none"


def test_formulas_that_are_cut_fade_out_too(browser, book):
    with opened(browser, address(book, "notebooks/03_adjoint")) as page:
        page.set_viewport_size({"width": TELEPHONE, "height": 900})
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        expect(page.locator("div.math mjx-container[data-cut=after]").first).to_be_attached()
        page.wait_for_function(
            """() => [...document.querySelectorAll('.bd-article div.math mjx-container')]
                .every(n => n.scrollWidth <= n.clientWidth + 1 || n.dataset.cut)"""
        )


@pytest.fixture
def served(book) -> Iterator[str]:
    """The book behind a server: the search page reads other pages, which a file may not."""
    handler = partial(QuietHandler, directory=book.html)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_search_finds_a_word_of_a_chapter(browser, served):
    with opened(browser, f"{served}/search.html?q={SEARCHED}") as page:
        page.wait_for_selector("#search-results li a")
        links = page.eval_on_selector_all("#search-results li a", "nodes => nodes.map(n => n.href)")
        assert any(FOUND in link for link in links), links
        page.wait_for_selector("#search-results li p.context")  # a snippet of the page found
