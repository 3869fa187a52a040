"""The whole road by keyboard alone, in one go, on a phone in dark colours: from a folder to ten pictures with seeds.

`make proofs` runs it. SHOTS=FOLDER keeps a picture of each step.
"""

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import CHROMIUM, browser_page, ready, served, tab_to, until
from small import write_pictures

from calotype.files import read_json

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
PHONE = {"width": 390, "height": 800}
BRIGHTNESS = """() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"""


@pytest.fixture
def page(tmp_path, browser):
    """Of a server without runs. No dialog of the browser opens, and the console stays empty."""
    (tmp_path / "runs").mkdir()
    with (
        served(tmp_path / "runs", "--device", "cpu") as (address, token, _),
        browser_page(address, token, browser, viewport=PHONE, color_scheme="dark") as page,
    ):
        dialogs = []
        page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
        yield ready(page)
        assert not dialogs


def press(page, what, key="Enter", way="Tab"):
    tab_to(page, what, way)
    page.keyboard.press(key)


def fill(page, what, text):
    tab_to(page, what)
    page.keyboard.press("Control+A")
    page.keyboard.type(text)


def seen(page, name):
    """What holds for every step: nothing is wider than the phone, and it is dark."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    assert max(page.evaluate(BRIGHTNESS)) < 80, name
    if shots := os.environ.get("SHOTS"):
        page.screenshot(path=Path(shots) / f"road-{name}.png", full_page=True)


def test_from_a_folder_to_ten_pictures_with_their_seeds(page, tmp_path):
    start(page, write_pictures(tmp_path / "my pets", 60, 32))
    read_the_plan(page, tmp_path / "runs" / "my pets")
    watch_stop_and_go_on(page)
    sample_and_download(page, tmp_path / "all.zip")


def start(page, pictures):
    seen(page, "empty")
    press(page, "a.button")
    page.wait_for_url("**/new")
    ready(page)
    tab_to(page, "#files")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(str(pictures))
    page.get_by_text("60 pictures are here.").wait_for()
    assert page.get_by_label("Name of the run").input_value() == "my pets"
    tab_to(page, "[data-field=size]")
    page.keyboard.type("32")
    fill(page, "[data-field=budget]", "90s")
    seen(page, "new")
    press(page, "[type=submit]")
    page.wait_for_url("**/runs/*")
    page.get_by_role("heading", name="my pets").wait_for()


def read_the_plan(page, run):
    """Every choice stands there with its reason."""
    plan = page.locator("section:has(> h2:text-is('Plan'))")
    plan.wait_for()
    choices = read_json(run / "plan.json")["choices"]
    text = " ".join(plan.inner_text().split())
    assert len(choices) > 5
    for choice in choices:
        for part in ("what", "value", "why"):
            assert " ".join(choice[part].split()) in text, choice


def watch_stop_and_go_on(page):
    ready(page).get_by_role("button", name="Stop", exact=True).wait_for()
    bars = page.locator(".legs progress")
    until(lambda: sum(bars.evaluate_all("bars => bars.map(bar => bar.value)")) > 0.02)  # it moves by itself
    assert "so far; about" in page.locator("[data-part=status] .lede").inner_text()
    seen(page, "training")
    press(page, "[data-post$=stop]")
    page.get_by_text("It was asked to stop after").first.wait_for()
    assert "Why it has stopped" in page.locator("[data-part=status]").inner_text()
    assert "It was asked to stop after" in page.locator("#news").text_content()  # what a screen reader reads out
    seen(page, "stopped")
    until(lambda: page.evaluate("document.activeElement.matches('[data-post$=resume]')"))  # where Stop was is Resume
    page.keyboard.press("Enter")
    page.get_by_text("Finished after").first.wait_for(timeout=400_000)
    seen(page, "finished")


def sample_and_download(page, file):
    press(page, "a[href$=gallery]")
    page.wait_for_url("**/gallery")
    ready(page)
    fill(page, "#sampling [data-field=seed]", "7")
    fill(page, "#sampling [data-field=count]", "10")
    page.keyboard.press("Enter")
    until(lambda: page.locator("#gallery figure").count() == 10)
    captions = page.locator("#gallery figcaption span").all_inner_texts()
    assert [text.split(" · ")[0] for text in captions] == ["seed 7", *(f"seed 7, no. {n}" for n in range(2, 11))]
    page.get_by_text("10 pictures are below.").wait_for()
    seen(page, "gallery")
    tab_to(page, "a[href$='gallery.zip']")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    download.value.save_as(file)
    with zipfile.ZipFile(file) as archive:
        notes = json.loads(archive.read("pictures.json"))
        pictures = [name for name in archive.namelist() if name != "pictures.json"]
    assert len(pictures) == 10 and all(name.startswith("7-") for name in pictures)
    assert sorted((notes[name]["seed"], notes[name]["index"]) for name in pictures) == [
        (7, index) for index in range(10)
    ]
