"""An open page follows what happens, in Chromium: the list of runs, a plan that is cancelled, pictures that moved.

`make proofs` runs it.
"""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import CHROMIUM, RUN, browser_page, ready, served, tab_to, until
from small import write_pictures
from test_report import facts, fake_run, flat

from calotype.files import read_json, write_json
from calotype.serve.library import id_of
from calotype.serve.words import TERMS

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
    page.get_by_text("6 of 8 shown").wait_for()
    for name in ("run 10", "5x", "10", "9"):
        add(folder, name)
    page.get_by_text("12 runs.").wait_for()
    page.get_by_label("Filter").fill("")
    assert names(page)[:4] == ["5x", "9", "10", "another"] and names(page)[-3:] == ["run", "run 2", "run 10"]


@pytest.mark.parametrize("width", [1280, 390])
def test_a_screen_reader_gets_the_list_as_a_table(page, folder, width):
    """Its rows are laid out as grids, also those far below the screen; columns that are not shown are in no row."""
    for index in range(30):
        add(folder, f"run-{index}")
    page.set_viewport_size({"width": width, "height": 800})
    page.get_by_text("30 runs.").wait_for()
    session = page.context.new_cdp_session(ready(page))
    session.send("Accessibility.enable")
    columns = 10 if width == 1280 else 6
    until(lambda: [len(cells) for cells in rows_of(session)] == [columns] * 31, 30)
    assert rows_of(session)[0][:3] == ["Mark", "Run", "State"]


def test_a_screen_reader_gets_tables_of_words_as_tables_where_a_phone_shows_blocks(page):
    page.set_viewport_size({"width": 390, "height": 800})
    session = page.context.new_cdp_session(ready(page.goto(page.url + "words") and page))
    session.send("Accessibility.enable")
    assert page.locator("td").first.evaluate("cell => getComputedStyle(cell).display") == "block"
    heads, *rows = rows_of(session)
    assert heads == ["Term", "English", "Tiếng Việt"]
    assert rows == [[term, *explained] for term, explained in TERMS.items()]


def rows_of(session):
    """The names of cells and heads in each row, as Chromium gives them to screen readers."""
    nodes = {node["nodeId"]: node for node in session.send("Accessibility.getFullAXTree")["nodes"]}

    def below(node, *roles):
        for child in (nodes[place] for place in node.get("childIds", ()) if place in nodes):
            yield from [child] if child["role"]["value"] in roles else below(child, *roles)

    table = next(node for node in nodes.values() if node["role"]["value"] == "table")
    return [[cell["name"]["value"] for cell in below(row, "cell", "columnheader")] for row in below(table, "row")]


def test_that_a_server_does_not_answer_is_announced_once(page, folder):
    """Screen readers read out what comes into the page."""
    add(folder, "run")
    page.locator("#list").wait_for()
    ready(page).evaluate("() => { window.real = fetch; window.fetch = () => Promise.reject(new Error()); }")
    page.get_by_text("the server does not answer").wait_for()
    page.evaluate("() => { window.mark = document.querySelector('#stale'); }")
    page.wait_for_timeout(7000)  # two more attempts
    assert page.evaluate("mark.isConnected")
    page.evaluate("() => { window.fetch = real; }")
    page.locator("#stale").wait_for(state="detached")


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
    other.get_by_text("Failed after").first.wait_for()


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
def test_by_the_keyboard_a_finished_run_is_trained_further(page, folder):
    """What is wrong stands beside the field; its name is explained in both languages."""
    add(folder, "run")
    page.goto(page.url + f"runs/{RUN}")
    ready(page).get_by_text("Finished after").first.wait_for()
    tab_to(page, "[data-part=status] summary")
    page.keyboard.press("Enter")
    tab_to(page, "[data-part=status] .field .term")
    page.keyboard.press("Enter")
    assert [line for line in page.locator("#explained").inner_text().split("\n") if line] == [
        "budget",
        *TERMS["budget"],
    ]
    page.keyboard.press("Escape")
    tab_to(page, "[data-field=budget]")
    page.keyboard.press("Control+A")
    page.keyboard.type("soon")
    page.keyboard.press("Enter")
    box = page.locator("[data-field=budget]")
    until(lambda: page.evaluate("document.activeElement.matches('[data-field=budget][aria-invalid=true]')"))
    wrong = page.locator("#" + box.get_attribute("aria-describedby"))
    assert "'soon' is not a time such as 20s, 10m or 1h30m" in wrong.inner_text()
    below = wrong.bounding_box()["y"] - box.bounding_box()["y"]
    assert 0 < below < 80
    page.keyboard.press("Control+A")
    page.keyboard.type("20s")
    page.keyboard.press("Enter")
    page.get_by_text("It goes on in a moment").first.wait_for()
    about = folder / ".calotype" / f"{RUN}.json"
    until(lambda: "code" in read_json(about))  # its pictures are none


def test_a_training_waits_for_its_pictures_and_takes_no_others(page, folder, tmp_path):
    """Without pictures the embedded portraits are taken: not where a folder was dropped."""
    pictures = write_pictures(tmp_path / "cats & dogs", 6, 32)
    page.goto(page.url + "new")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no picture")
    ready(page).set_input_files("#files", str(tmp_path / "texts"))
    page.get_by_text("0 pictures are here.").wait_for()
    page.get_by_role("button", name="Start training").click()
    page.get_by_text("None of the files that were dropped is a picture").wait_for()
    page.get_by_label("Name of the run").fill("")
    held, released = [], []
    page.route("**/api/uploads/**", lambda route: route.continue_() if released else held.append(route))
    page.set_input_files("#files", str(pictures))
    until(lambda: page.evaluate("1") and held)
    assert page.get_by_label("Name of the run").input_value() == "cats - dogs"
    page.get_by_role("button", name="Start training").click()
    page.get_by_text("It starts when the pictures are copied").wait_for()
    released.append(True)
    held[0].continue_()
    page.wait_for_url("**/runs/*")
    assert len(list((folder / ".calotype" / "uploads" / "cats - dogs").rglob("*.png"))) == 6
    press(page, "Cancel")
    page.get_by_text("It was cancelled before training began").wait_for()


@pytest.mark.parametrize("page", [1], indirect=True)
def test_by_the_keyboard_the_new_folder_of_pictures_that_have_moved_is_given(page, folder, tmp_path):
    add(folder, "run", status="interrupted", data=str(tmp_path / "gone"))
    page.goto(page.url + f"runs/{RUN}")
    page.get_by_text("Its pictures were in").wait_for()
    box = ready(page).get_by_label("Folder of its pictures")
    for place, answer in (
        (tmp_path / "nowhere", "must be the whole path of a folder"),
        (tmp_path, "It goes on in a moment"),
    ):
        box.focus()
        page.keyboard.press("Control+A")
        page.keyboard.type(str(place))
        page.keyboard.press("Enter")
        page.get_by_text(answer).first.wait_for()
    page.get_by_text("Why it has stopped").first.wait_for()
    about = folder / ".calotype" / f"{RUN}.json"
    assert until(lambda: read_json(about).get("code")) == 2 and id_of("run") == RUN
