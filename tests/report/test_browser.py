"""The page in a real browser, where there is one: nothing fetched, nothing logged, everything reached by keys."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from gradscope.report import build_report
from gradscope.report.page import _asset
from tests.made_runs import make_run

sync_api = pytest.importorskip("playwright.sync_api", exc_type=ImportError)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

RATES = {"falls": -0.1, "stays": -0.01}


def falling(rate):
    return lambda record: np.broadcast_to(10.0 ** (rate * np.arange(40)), (6, 40)).copy()


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    runs = [
        make_run(root / name, (0, 0, 0), norms=falling(rate), threshold=threshold, seed=i)
        for i, ((name, rate), threshold) in enumerate(zip(RATES.items(), (0.5, None), strict=True))
    ]
    return build_report(runs, root / "out", shown=("decay", "training", "norms")).index


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser, index):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.goto(index.as_uri())
    yield opened
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_quiet_self_contained_and_free_of_known_barriers(browser, index, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened, messages, requests = context.new_page(), [], []
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(index.as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(opened).response["violations"]
    context.close()
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    assert messages == []
    assert requests == [index.as_uri()]


def test_the_first_screen_holds_a_sentence_a_figure_and_a_table(page):
    tops = [page.locator(what).first.bounding_box()["y"] for what in ("p.lead", ".cover figure", "table.sortable")]
    assert tops == sorted(tops)
    assert tops[-1] < 900


def test_without_script_the_page_says_the_same(browser, index):
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(index.as_uri())
    assert opened.locator("figcaption").first.is_visible()
    assert opened.locator("table.sortable").first.locator("tbody tr").count() == 2
    assert [box.is_visible() for box in opened.locator("#figure-1 [data-view]").all()] == [True, False]
    context.close()


def test_a_table_is_sorted_by_a_click_and_by_keys(page):
    rows = page.locator("table.sortable").first.locator("tbody tr th")
    page.get_by_role("button", name="left at last lag").click()
    assert rows.all_inner_texts() == ["falls", "stays"]
    page.keyboard.press("Enter")
    assert rows.all_inner_texts() == ["stays", "falls"]
    assert page.locator("th[aria-sort=descending]").count() == 1


def test_hovering_reads_the_value_off_the_line(page):
    svg = page.locator("#figure-1 svg").first
    svg.scroll_into_view_if_needed()
    frame = svg.bounding_box()
    page.mouse.move(frame["x"] + 0.5 * frame["width"], frame["y"] + 0.9 * frame["height"])
    page.mouse.move(frame["x"] + 0.5 * frame["width"], frame["y"] + 0.7 * frame["height"])
    said = page.locator("#figure-1 .tip").first.inner_text()
    name, value, lag = re.fullmatch(r"(\w+): (\S+) at lag (\d+)", said).groups()
    # The lag is printed as a whole number, the value is that at the pointer: half a lag apart at most.
    assert float(value) == pytest.approx(10 ** (RATES[name] * int(lag)), rel=0.15)


def test_a_run_is_faded_in_every_figure_and_back(page):
    chip = page.locator("#figure-1").get_by_role("button", name="falls", exact=True)
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    faded = page.evaluate("[...document.querySelectorAll('svg g')].filter((g) => g.style.opacity === '0.06').length")
    assert faded >= 2
    bands = page.evaluate("[...document.querySelectorAll('#figure-1 [id$=-band]')].map((g) => g.style.opacity)")
    assert sorted(bands) == ["", "", "0.06", "0.06"]  # of two runs, in two views
    chip.click()
    assert page.evaluate("[...document.querySelectorAll('svg g')].every((g) => g.style.opacity !== '0.06')")


def test_relative_values_give_way_to_absolute_ones(page):
    page.locator("#figure-1").get_by_role("button", name="show absolute values").click()
    assert [box.is_visible() for box in page.locator("#figure-1 [data-view]").all()] == [False, True]
    assert page.locator("#figure-1").get_by_role("button", name="show relative values").is_visible()


def test_a_slider_leaves_one_training_step(page):
    slider = page.locator("input[type=range]")
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("output").inner_text() == "step 0"
    page.keyboard.press("End")
    assert page.locator("output").inner_text() == "all steps"


def test_the_first_key_skips_to_the_answer_and_tab_reaches_every_control(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reachable = "a[href], button, summary, input, [tabindex='0']"
    wanted = page.evaluate(f'[...document.querySelectorAll("{reachable}")].filter((e) => e.checkVisibility()).length')
    seen = set()
    for _ in range(wanted + 5):
        seen.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
        page.keyboard.press("Tab")
    assert len(seen) >= wanted


def test_printing_opens_what_is_folded(page):
    assert page.locator("details:not([open])").count() > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0


def test_what_is_too_long_for_paper_stays_folded_in_print(page):
    page.set_content(
        f"<style>{_asset('style.css')}</style><div class='long'><table><tbody>{'<tr><td>1</td></tr>' * 70}</tbody>"
        "</table><p class='printed'>10 more</p></div>"
        "<details class='unprinted'><summary>each site</summary><p>l0</p></details>"
    )
    shown = "[...document.querySelectorAll('{}')].filter((e) => e.checkVisibility()).length"
    seen = {what: page.evaluate(shown.format(what)) for what in ("tr", ".printed", "details > p")}
    page.emulate_media(media="print")
    printed = {what: page.evaluate(shown.format(what)) for what in seen}
    assert seen == {"tr": 70, ".printed": 0, "details > p": 0}
    assert printed == {"tr": 60, ".printed": 1, "details > p": 0}


def test_a_statement_is_not_left_alone_at_the_foot_of_a_printed_page(page):
    page.set_content(
        f"<style>{_asset('style.css')}</style><ul class='answers'><li><p><b>It vanishes.</b></p><p>It does.</p>"
        "<details><summary>What was measured</summary><table><tr><td>1</td></tr></table></details></li></ul>"
    )
    page.emulate_media(media="print")
    kept = "[...document.querySelectorAll('.answers p, summary')].map((e) => getComputedStyle(e).breakAfter)"
    assert page.evaluate(kept) == ["avoid"] * 3


def test_a_printed_page_opens_everything_and_cuts_nothing_off(page):
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 680, "height": 1000})  # A4 between its margins
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    cut = "(e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible'"
    assert page.evaluate(f"[...document.querySelectorAll('pre, .scroll, figure')].filter({cut}).length") == 0
    assert page.evaluate("[...document.querySelectorAll('pre')].every((e) => e.scrollWidth <= e.clientWidth + 1)")
    assert page.evaluate("[...document.querySelectorAll('details > :not(summary)')].every((e) => e.checkVisibility())")
    arrows = "getComputedStyle(document.querySelector('th button'), '::after').content"
    assert page.evaluate(arrows) == "none"
    # A button is painted on the first page only: the head of a table over several pages would be empty on the others.
    assert page.evaluate("getComputedStyle(document.querySelector('th button')).display") == "contents"
