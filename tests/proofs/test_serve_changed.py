"""An open page when what it shows has changed: pictures that are removed, a server that ends or starts anew, a run that
goes. In Chromium, without a dialog of the browser. `make proofs` runs it.
"""

import io
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import CHROMIUM, RUN, ready, served, tab_to, until
from test_report import facts, fake_run, flat

from calotype.files import write_json
from calotype.serve.gallery import Gallery

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")


@pytest.fixture
def folder(tmp_path):
    """A run with three pictures in its gallery, of the seeds 2, 1, 0 from the newest on."""
    run = fake_run(tmp_path / "runs" / "run", flat, steps=3)
    write_json(run / "run.json", facts(name="run", status="interrupted"))
    Image.new("RGB", (16, 16)).save(content := io.BytesIO(), "PNG")
    for seed in range(3):
        Gallery(run).add([content.getvalue()], {"kind": "sample", "seed": seed, "order": seed})
    return tmp_path / "runs"


@contextmanager
def opened(browser, address, token):
    """Makes pages of one browser, which have the cookie. Requests may fail; scripts do not, and no dialog opens."""
    context, wrong = browser.new_context(), []
    context.set_default_timeout(60_000)

    def page(place):
        made = context.new_page()
        made.on("pageerror", lambda error: wrong.append(str(error)))
        made.on("dialog", lambda dialog: wrong.append(dialog.message) or dialog.dismiss())
        return ready(made.goto(f"{address}{place}") and made)

    context.new_page().goto(f"{address}/?token={token}")
    try:
        yield page
    finally:
        context.close()
    assert not wrong


def seeds(page):
    return page.locator("#gallery figcaption span").all_inner_texts()


def test_by_the_keyboard_a_picture_is_removed_or_kept(folder, browser):
    with served(folder, "--device", "cpu") as (address, token, _), opened(browser, address, token) as open_page:
        page = open_page(f"/runs/{RUN}/gallery")
        focused = "document.activeElement.closest('figure')?.querySelector('figcaption span').textContent"
        tab_to(page, "figure:nth-of-type(2) [data-remove]")
        page.keyboard.press("Enter")
        page.get_by_role("dialog", name="Remove this picture?").get_by_text("seed 1").wait_for()
        assert page.evaluate("document.activeElement.closest('#removal') !== null")
        page.keyboard.press("Escape")
        page.locator("#removal").wait_for(state="hidden")
        assert seeds(page) == ["seed 2", "seed 1", "seed 0"] and page.evaluate(focused) == "seed 1"
        page.keyboard.press("Enter")
        tab_to(page, "#removal [value=remove]", "Shift+Tab")
        page.keyboard.press("Enter")
        until(lambda: seeds(page) == ["seed 2", "seed 0"])
        assert page.evaluate(focused) == "seed 0"
        assert page.locator("#news").text_content() == "Removed: seed 1"  # what a screen reader reads out
        assert len(Gallery(folder / "run").entries()) == 2
        for left in (["seed 2"], []):
            page.keyboard.press("Enter")
            page.locator("#removal[open]").wait_for()
            page.keyboard.press("Enter")
            until(lambda left=left: seeds(page) == left)
        assert page.evaluate("document.activeElement.matches('#sampling [type=submit]')")


def test_in_two_windows_a_picture_is_removed_twice_and_no_longer_starred(folder, browser):
    with served(folder, "--device", "cpu") as (address, token, _), opened(browser, address, token) as open_page:
        pages = [open_page(f"/runs/{RUN}/gallery") for _ in range(2)]
        for page in pages:
            page.locator("[data-remove]").first.click()
            page.get_by_role("button", name="Remove", exact=True).last.click()
            until(lambda: seeds(page) == ["seed 1", "seed 0"])  # noqa: B023
        for entry in Gallery(folder / "run").entries():
            Gallery(folder / "run").remove(entry["id"])
        star = pages[0].locator("figure:has-text('seed 0') [data-star]")
        star.click()
        problem = pages[0].locator("figure:has-text('seed 0')").get_by_role("alert")
        problem.get_by_text("there is no such picture here; it may have been removed").wait_for()
        assert star.get_attribute("aria-pressed") == "false"


def test_pages_say_that_the_server_has_ended_and_that_another_one_has_begun(folder, browser):
    """Which has another name, too."""
    with (
        served(folder, "--device", "cpu") as (address, token, process),
        opened(browser, process.page, token) as open_page,
    ):
        index, run, gallery = (open_page(place) for place in ("/", f"/runs/{RUN}", f"/runs/{RUN}/gallery"))
        process.terminate()
        process.wait(60)
        for page in (index, run):
            page.get_by_role("alert").get_by_text("the server does not answer").wait_for()
        gallery.locator("[data-star]").first.click()
        gallery.locator("figure").first.get_by_role("alert").get_by_text("The server does not answer").wait_for()
        gallery.get_by_role("button", name="Make pictures").click()
        gallery.locator("#sampling output").get_by_text("The server does not answer").wait_for()
        with served(folder, "--device", "cpu", "--port", address.rpartition(":")[2]):
            for page in (index, run):
                page.get_by_role("alert").get_by_text("open the address that it has printed").wait_for()
            gallery.locator("[data-star]").first.click()
            problem = gallery.locator("figure").first.get_by_role("alert")
            problem.get_by_text("open the address that it has printed").wait_for()
            assert problem.count() == 1


def test_pages_say_that_their_run_has_gone(folder, browser):
    with served(folder, "--device", "cpu") as (address, token, _), opened(browser, address, token) as open_page:
        run, gallery = (open_page(place) for place in (f"/runs/{RUN}", f"/runs/{RUN}/gallery"))
        shutil.rmtree(folder / "run")
        run.get_by_role("alert").get_by_text("there is no such run here").wait_for()
        gallery.get_by_role("button", name="Make pictures").click()
        gallery.locator("#sampling output.wrong").get_by_text("there is no such run here").wait_for()


def test_a_command_is_there_to_be_copied_where_a_page_may_not_copy(folder, browser):
    """As on a page that comes from another machine."""
    with served(folder, "--device", "cpu") as (address, token, _), opened(browser, address, token) as open_page:
        page = open_page(f"/runs/{RUN}")
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        tab_to(page, "[data-copy]")
        page.keyboard.press("Enter")
        page.get_by_role("textbox", name="To copy").wait_for()
        marked, command = page.evaluate("getSelection().toString()"), page.locator("[data-copy]").first
        assert marked.startswith("calotype demo") and marked == command.get_attribute("data-copy")
        page.keyboard.press("Escape")
        page.locator("#explained").wait_for(state="hidden")
        assert page.evaluate("document.activeElement.matches('[data-copy]')")


def test_a_picture_of_ones_own_that_is_too_large_is_refused_before_anybody_paints(folder, browser, tmp_path):
    """By its pixels, by its bytes, and where the browser has no memory for the mask."""
    Image.new("1", (8000, 2200)).save(tmp_path / "wide.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "small.png")
    (tmp_path / "heavy.png").write_bytes((tmp_path / "small.png").read_bytes() + bytes(2**25))
    with served(folder, "--device", "cpu") as (address, token, _), opened(browser, address, token) as open_page:
        page = open_page(f"/runs/{RUN}/gallery")
        page.locator("#own").set_input_files(tmp_path / "wide.png")
        page.get_by_text("The picture has 8000x2200 pixels, but at most 16,777,216 are taken").wait_for()
        page.locator("#own").set_input_files(tmp_path / "heavy.png")
        page.get_by_text("The file has 33 MB, but at most 31 MB are taken").wait_for()
        assert not page.locator("#editor[open]").count()
        page.locator("#own").set_input_files(tmp_path / "small.png")
        page.locator("#editor[open]").wait_for()
        page.evaluate("() => { HTMLCanvasElement.prototype.toBlob = done => done(null); }")
        page.locator("#brush").click()
        page.get_by_role("button", name="Make variations").click()
        page.get_by_text("The mask cannot be made (it is too large for this browser)").wait_for()
        assert not page.locator("#editor[open]").count()
