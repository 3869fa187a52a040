"""An open page follows what happens, in Chromium: the list of runs, a plan that is cancelled, pictures that moved.

`make proofs` runs it.
"""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import CHROMIUM, RUN, browser_page, ready, served, until
from small import write_pictures
from test_report import facts, fake_run, flat

from calotype.files import read_json, write_json
from calotype.serve.library import id_of

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
WIDE = {"width": 1280, "height": 900}
REPLACED = """() => { window.moved = []; new MutationObserver(changes => { for (const change of changes) moved.push(
    [...change.addedNodes, ...change.removedNodes].map(node => node.nodeName)); })
    .observe(document.querySelector("#list tbody"), {childList: true, subtree: true}); }"""
"""Keeps the names of the nodes of the list that come and go."""


@pytest.fixture
def folder(tmp_path):
    """Of runs; empty at the beginning."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def page(request, folder, browser):
    """Its parameter is how many requests are refused."""
    refused = getattr(request, "param", 0)
    with (
        served(folder, "--device", "cpu") as (address, token, _),
        browser_page(address, token, browser, refused, viewport=WIDE) as page,
    ):
        yield ready(page)


def add(folder, name, **values):
    """The folder of a run comes as a whole."""
    made = fake_run(folder.parent / f"made-{name}", flat)
    write_json(made / "run.json", facts(name=name, **values))
    made.rename(folder / name)


def names(page):
    return page.locator("#list tbody tr:visible .run span").all_inner_texts()


def test_an_open_list_follows_its_runs_and_keeps_marks_order_filter_and_focus(page, folder):
    add(folder, "run")
    page.locator("#list").wait_for()  # the empty page has become a list
    for index in range(6):
        add(folder, f"other-{index}", created=f"2026-11-{index + 1:02d}T10:00:00+00:00")
    page.get_by_text("7 runs.").wait_for()
    ready(page).get_by_role("button", name="Run", exact=True).click()
    page.get_by_label("Filter").fill("other")
    mark = page.get_by_label("Mark other-3")
    mark.check()
    page.locator(".run img[src]").first.wait_for(state="attached")
    page.evaluate(REPLACED)
    run = read_json(folder / "other-3" / "run.json")
    write_json(folder / "other-3" / "run.json", {**run, "status": "interrupted"})
    row = page.locator("tr:has-text('other-3')")
    row.get_by_text("interrupted").wait_for()
    assert page.evaluate("moved") == [["TD", "TD"]]  # one cell, and nothing else, was replaced
    assert mark.is_checked() and mark.evaluate("box => box === document.activeElement")
    add(folder, "another")
    page.get_by_text("8 runs.").wait_for()
    assert names(page) == ["another", *(f"other-{index}" for index in range(6))]
    shutil.rmtree(folder / "other-0")
    page.get_by_text("7 runs.").wait_for()
    add(folder, "run 2")  # the filter keeps it away
    page.get_by_text("8 runs.").wait_for()
    assert names(page) == ["another", *(f"other-{index}" for index in range(1, 6))]
    assert mark.is_checked() and mark.evaluate("box => box === document.activeElement")


HIDE = """hidden => { Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
    document.dispatchEvent(new Event("visibilitychange")); }"""


def test_more_pages_of_runs_are_open_than_a_browser_keeps_connections(page, folder):
    add(folder, "run", status="interrupted")
    place = f"{page.url}runs/{RUN}"
    for _ in range(8):
        other = page.context.new_page()
        ready(other.goto(place) and other).evaluate(HIDE, True)
    run = read_json(folder / "run" / "run.json")
    write_json(folder / "run" / "run.json", {**run, "status": "failed"})
    other.wait_for_timeout(1500)
    assert other.get_by_text("Interrupted after").count()
    other.evaluate(HIDE, False)
    other.get_by_text("Failed after").wait_for()


def press(page, words, role="button"):
    """By the keyboard."""
    page.get_by_role(role, name=words, exact=True).focus()
    page.keyboard.press("Enter")


def test_by_the_keyboard_a_plan_is_cancelled_and_taken_off_the_list(page, folder, tmp_path):
    pictures = write_pictures(tmp_path / "cats", 40, 32)
    press(page, "Train on a folder of pictures", "link")
    page.wait_for_url("**/new")
    ready(page).get_by_label("Or a folder on this machine").focus()
    page.keyboard.type(str(pictures))
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/*")
    press(page, "Cancel")
    page.get_by_text("It was cancelled before training began").wait_for()
    until(lambda: not (folder / "cats").exists())
    press(page, "Runs", "link")
    page.get_by_text("cancelled").wait_for()
    press(page, "cats", "link")
    press(ready(page), "Take off the list")
    page.get_by_text("There are none yet.").wait_for()


@pytest.mark.parametrize("page", [1], indirect=True)
def test_by_the_keyboard_the_new_folder_of_pictures_that_have_moved_is_given(page, folder, tmp_path):
    add(folder, "run", status="interrupted", data=str(tmp_path / "gone"))
    page.goto(page.url + f"runs/{RUN}")
    page.get_by_text("Its pictures were in").wait_for()
    box = ready(page).get_by_label("Folder of its pictures")
    for place, answer in ((tmp_path / "nowhere", "must be the whole path of a folder"), (tmp_path, "Asked …")):
        box.focus()
        page.keyboard.press("Control+A")
        page.keyboard.type(str(place))
        page.keyboard.press("Enter")
        page.get_by_text(answer).wait_for()
    page.get_by_text("Why it has stopped").wait_for()
    about = folder / ".calotype" / f"{RUN}.json"
    assert until(lambda: read_json(about).get("code")) == 2 and id_of("run") == RUN
