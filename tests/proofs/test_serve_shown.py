"""What the pages show, in Chromium: measures, films, steps, previews over time, words, hostile text; by keyboard alone.

`make proofs` runs it.
"""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import CHROMIUM, RUN, browser_page, ready, served, tab_to, until
from small import write_pictures
from test_report import facts, fake_run, flat
from test_results import CURRENT, MEASURE, SET

from calotype.files import read_json, write_json
from calotype.serve.gallery import Gallery
from calotype.serve.launching import HIDDEN
from calotype.serve.library import id_of
from calotype.serve.words import TERMS

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}
HOSTILE = {
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'&amp;": "\"><img src=x onerror=alert(1)>'&amp;",
    "\x1b[31mred": "\\x1b[31mred",
    "\u202egnp.exe": "\\u202egnp.exe",
    "</figcaption><a href='javascript:alert(1)'>": "</figcaption><a href='javascript:alert(1)'>",
}
"""Prompts, and how the page shows them."""
CHOICES = (
    ("enlarge to 128", "UNet of width 8, patches of 2", "seeds, prompts and checkpoints"),
    ("schedule", "flow", "labels"), ("text", "none", "right at a gap"), ("mirrored", "none", "a mixture of Gaussians"),
)  # fmt: skip
"""Of a plan."""


def measured(value):
    return {**SET, "fd_lite0": {**MEASURE, "value": value, "low": value - 1, "high": value + 1}}


def shade(what, images_seen):
    """A preview whose colour says when it was made."""
    return Image.new("RGB", (30, 20), (int(min(255_000, images_seen)) // 1000, 90, 40))


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    """A trained run, and one that was made up, with an evaluation and hostile captions."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished, folder / "run")
    fake = fake_run(folder / "fake", shade, steps=20)
    columns = {"samples": measured(31), "floor": measured(11), "ceiling": measured(701)}
    plan = read_json(fake / "plan.json")
    more = [{"what": name, "value": value, "why": why} for name, value, why in CHOICES]
    write_json(fake / "plan.json", {**plan, "choices": [*plan["choices"], *more]})
    write_json(fake / "evaluation.json", {**CURRENT, "measures": columns, "autoencoder": columns})
    content = io.BytesIO()
    flat("", 0).save(content, "PNG")
    for order, prompt in enumerate(HOSTILE):
        Gallery(fake).add(
            [content.getvalue()], {"kind": "sample", "seed": 1, "label": prompt, "prompt": prompt, "order": order}
        )
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with served(folder, "--device", "cpu") as (address, token, _):
        yield address, token


@pytest.fixture
def page(request, server, browser):
    viewport = getattr(request, "param", WIDE)
    with browser_page(*server, browser, viewport=viewport) as page:
        dialogs = []
        page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
        yield page
        assert not dialogs


def gallery_of_run(page, server):
    ready(page.goto(f"{server[0]}/runs/{RUN}/gallery") and page)
    return page.locator("#gallery figure")


def make(page, figures, **fields):
    """Asks for a picture, and returns its figure."""
    before = figures.count()
    for name, value in fields.items():
        box = page.locator(f"#sampling [data-field={name}]")
        (box.select_option if name in ("kind", "label") else box.fill)(value)
    page.get_by_role("button", name="Make pictures").click()
    until(lambda: figures.count() > before, 120)
    return figures.first


def pixels_of(page, server, figure):
    """Frames of the picture, as arrays."""
    place = f"{server[0]}/runs/{RUN}/pictures/{figure.get_attribute('data-picture')}"
    with Image.open(io.BytesIO(page.request.get(place).body())) as image:
        frames = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
        return frames


# -- Measures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [WIDE, PHONE], ids=["desktop", "phone"], indirect=True)
def test_measures_stand_with_n_interval_floor_and_ceiling(page, server):
    ready(page.goto(f"{server[0]}/runs/{id_of('fake')}") and page)
    tables = page.locator("section:has(h2:text('Evaluation')) table")
    for table, heads in ((tables.nth(0), ["Samples", "Other real pictures", "Noise"]),
                         (tables.nth(1), ["Reconstructions", "Other real pictures", "Before training"])):  # fmt: skip
        assert table.locator("th").all_inner_texts()[1:] == heads
        row = table.locator("tr:has-text('FD-Lite0') td:not(:first-child)")
        values = [" ".join(text.split()) for text in row.all_inner_texts()]
        assert values == ["31 [30, 32]", "11 [10, 12]", "701 [700, 702]"]
        counts = table.locator("tr:has-text('n, as many') td:not(:first-child)").all_inner_texts()
        assert counts == ["24"] * 3
        for cell in row.all():
            cell.scroll_into_view_if_needed()
            box = cell.bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"]
    for term in ("interval", "floor", "ceiling"):
        page.locator(f"section:has(h2:text('Evaluation')) .term[data-term='{term}']").click()
        assert page.locator("#explained").inner_text().split("\n")[0] == term
        page.keyboard.press("Escape")


# -- Pictures that move ------------------------------------------------------------------------------------------------


def test_a_film_leads_from_the_picture_of_one_seed_to_that_of_another_and_back(page, server):
    figures = gallery_of_run(page, server)
    one, other = (
        pixels_of(page, server, make(page, figures, kind="sample", label="a", seed=seed, count="1"))[0]
        for seed in ("3", "5")
    )
    film = make(page, figures, kind="interpolate", seed="3", seed_after="5", count="4")
    frames = pixels_of(page, server, film)
    assert len(frames) == 6
    assert np.array_equal(frames[0], one) and np.array_equal(frames[3], other)
    assert all(np.array_equal(frames[3 - step], frames[(3 + step) % 6]) for step in (1, 2, 3))
    assert "seed 3 to 5 · film · a" in film.locator("figcaption").inner_text()
    image = film.locator("img")
    first = image.screenshot()
    until(lambda: image.screenshot() != first)


def test_a_picture_is_followed_from_noise_to_clean_step_by_step(page, server):
    figures = gallery_of_run(page, server)
    sample = pixels_of(page, server, make(page, figures, kind="sample", label="a", seed="7", count="1"))[0]
    steps = make(page, figures, kind="develop", label="a", seed="7")
    sheet = pixels_of(page, server, steps)[0]
    rows = np.stack(np.split(sheet, len(sheet) // 16))
    assert sheet.shape[1] == 32 and len(rows) >= 3
    errors = np.square(rows[:, :, :16].astype(float) - sample).mean((1, 2, 3))
    assert errors[0] > errors[-1] and np.array_equal(rows[-1, :, 16:], sample)
    image, ruler = steps.locator("img"), steps.locator("input[type=range]")
    until(lambda: image.evaluate("image => image.complete && image.naturalWidth === 32"))
    ruler.focus()
    seen = []
    for key in ("End", "Home"):
        page.keyboard.press(key)
        seen.append(np.asarray(Image.open(io.BytesIO(image.screenshot())).convert("RGB")).astype(float))
    assert np.abs(seen[0] - seen[1]).mean() > 3


def test_the_same_seeds_are_followed_over_time(page, server):
    ready(page.goto(f"{server[0]}/runs/{id_of('fake')}") and page)
    figure = page.locator(".over-time").first
    ruler, image, caption = figure.locator("input"), figure.locator("img"), figure.locator("figcaption")
    read = """image => { const pen = document.createElement("canvas").getContext("2d");
        pen.drawImage(image, 0, 0);
        return image.complete && image.naturalWidth ? pen.getImageData(0, 0, 1, 1).data[0] : -1; }"""
    ruler.focus()
    page.keyboard.press("Home")
    shown = []
    for _ in range(int(ruler.get_attribute("max")) + 1):
        seen = int(caption.inner_text().split()[1].replace(",", ""))
        until(lambda: image.evaluate(read) == min(255, seen // 1000))  # noqa: B023
        shown.append(seen)
        page.keyboard.press("ArrowRight")
    assert shown == sorted(set(shown)) and len(shown) == 6


# -- Words -------------------------------------------------------------------------------------------------------------


def test_all_terms_are_explained_in_vietnamese(page, server):
    ready(page.goto(f"{server[0]}/words") and page)
    rows = page.locator("main tbody tr")
    shown = {row.locator("td").first.inner_text(): row.locator("[lang=vi]").inner_text() for row in rows.all()}
    assert shown == {term: vietnamese for term, (_, vietnamese) in TERMS.items()}
    ready(page.goto(f"{server[0]}/runs/{id_of('fake')}") and page)
    page.locator(".term:visible").first.wait_for()
    for term in {each.get_attribute("data-term"): each for each in page.locator(".term:visible").all()}.values():
        term.click()
        assert page.locator("#explained [lang=vi]").inner_text() == TERMS[term.get_attribute("data-term")][1]
        page.keyboard.press("Escape")


def terms_in(page, section):
    """By the words that are underlined in a section, the terms that explain them."""
    page.locator(".term:visible").first.wait_for()
    marked = page.locator(f"section:has(> h2:text-is('{section}')) .term").all()
    return {each.inner_text(): each.get_attribute("data-term") for each in marked}


def test_settings_curves_and_plurals_are_explained_in_place(page, server):
    """A name that is another word in a sentence only where it stands alone."""
    ready(page.goto(f"{server[0]}/runs/{id_of('fake')}") and page)
    expected = {
        "enlarge to 128": "stage that enlarges", "UNet": "UNet", "patches": "patch", "flow": "rectified flow",
        "text": "text encoder", "seeds": "seed", "prompts": "prompt", "checkpoints": "checkpoint", "labels": "label",
        "Gaussians": "Gaussian", "mixture": "mixture",
    }  # fmt: skip
    found = terms_in(page, "Plan")
    assert expected.items() <= found.items() and not {"right", "gap"} & {*found}
    expected = {
        "l1": "L1", "edges": "edge loss", "perceptual": "perceptual distance", "kl": "KL", "hinge": "hinge loss",
        "right": "accuracy of the critic", "gap": "gap of the critic", "adversarial": "adversarial loss",
        "Gradient norms": "gradient norm", "Denoising loss": "denoising loss",
    }  # fmt: skip
    assert expected.items() <= terms_in(page, "Training curves").items()


# -- Curves ------------------------------------------------------------------------------------------------------------

PLACES = f"/runs/{id_of('fake')}", f"/compare?runs={RUN}&runs={id_of('fake')}"


@pytest.mark.parametrize("place", PLACES, ids=["run", "compare"])
def test_values_of_a_curve_are_read_by_the_keyboard_alone(page, server, place):
    ready(page.goto(f"{server[0]}{place}") and page)
    tab_to(page, ".plot")
    reading, seen = page.locator(".reading"), []
    assert (
        reading.get_attribute("aria-live") == "polite" and page.locator(".plot:focus[aria-label*=arrow]").count() == 1
    )
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "ArrowLeft", "Home"):
        page.keyboard.press(key)
        where, *values = reading.inner_text().split("\n")
        assert values and all(float(value.split()[-1]) > 0 for value in values)
        seen.append(int(where.removeprefix("at ").replace(",", "")))
    first, second, back, last, beyond, before, home = seen
    assert first == back == home < second <= before < last == beyond
    page.keyboard.press("Tab")
    assert not page.locator(".plot:not(:focus) .reading").count()


@pytest.mark.parametrize("place", PLACES, ids=["run", "compare"])
def test_values_of_a_curve_are_read_by_a_tap(server, browser, place):
    with browser_page(*server, browser, viewport=PHONE, has_touch=True, is_mobile=True) as page:
        ready(page.goto(f"{server[0]}{place}") and page)
        page.locator(".plot svg").first.tap()
        assert page.locator(".reading").inner_text().startswith("at ")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator("h1").tap()
        assert not page.locator(".reading").count()


# -- Hostile text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [WIDE, PHONE], ids=["desktop", "phone"], indirect=True)
def test_hostile_captions_and_notes_are_text(page, server, folder):
    """Also in what arrives while the page is open, which the script puts into it."""
    ready(page.goto(f"{server[0]}/runs/{id_of('fake')}/gallery") and page)
    shown = page.locator("#gallery figcaption span").all_inner_texts()
    assert shown == [f"seed 1 · {text} · {text}" for text in reversed(HOSTILE.values())]
    assert page.locator("#gallery").evaluate("box => box.querySelectorAll('script, a:not([download])').length") == 0
    ready(page.goto(f"{server[0]}/runs/{id_of('fake')}") and page)
    note = f"{page.viewport_size['width']} <img src=x onerror=alert(2)><b>bold</b> \x1b[2J"
    with (folder / "fake" / "log.jsonl").open("a") as log:
        log.write(json.dumps({"event": "note", "text": note}) + "\n")
    page.get_by_text(note.replace("\x1b", "\\x1b")).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_run_with_a_hostile_name_is_text_everywhere(page, server, folder):
    name = "<b onmouseover=alert(3)>x'\"&"
    write_json(fake_run(folder / name, flat, steps=3) / "run.json", facts(name=name, classes=[name]))
    try:
        for place in ("/", f"/runs/{id_of(name)}", f"/runs/{id_of(name)}/gallery",
                      f"/compare?runs={RUN}&runs={id_of(name)}"):  # fmt: skip
            ready(page.goto(f"{server[0]}{place}") and page)
            assert name in page.locator("main").inner_text() or name.upper() in page.locator("main").inner_text()
            assert page.locator("main b[onmouseover]").count() == 0
    finally:
        shutil.rmtree(folder / name)


def test_names_of_runs_stand_apart_from_what_is_around_them(page, server, folder):
    """Letters that run from right to left turn nothing around them, and no term is explained inside of a name."""
    name = "قطة cascade-2"
    write_json(fake_run(folder / name, flat, steps=3) / "run.json", facts(name=name))
    try:
        ready(page.goto(f"{server[0]}/compare?runs={RUN}&runs={id_of(name)}") and page)
        page.locator(".term:visible").first.wait_for()
        link = page.get_by_role("link", name=name)
        assert link.evaluate("link => getComputedStyle(link).unicodeBidi") == "isolate"
        assert page.locator("figcaption").get_by_text(f"B: {name}").locator(".term").count() == 0
        assert page.locator("td", has_text="denoiser.batch").count() and not page.locator(".setting .term").count()
    finally:
        shutil.rmtree(folder / name)


# -- What people drop and cancel ---------------------------------------------------------------------------------------


def test_a_folder_is_dropped(page, server, folder, tmp_path):
    """With its subfolders, as a browser gets it from the desktop."""
    pictures = write_pictures(tmp_path / "my pets", 20, 32)
    ready(page.goto(f"{server[0]}/new") and page)
    box, session = page.locator("#drop").bounding_box(), page.context.new_cdp_session(page)
    dropped = {"items": [], "files": [str(pictures)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": box["x"] + 9, "y": box["y"] + 9, "data": dropped})
    page.get_by_text("20 pictures are here.").wait_for()
    assert page.get_by_label("Name of the run").input_value() == "my pets"
    (batch,) = (place for place in (folder / HIDDEN / "uploads").iterdir() if place.is_dir())
    sent = {file.relative_to(pictures): file.read_bytes() for file in pictures.rglob("*.png")}
    assert {file.relative_to(batch): file.read_bytes() for file in batch.rglob("*.png")} == sent
    shutil.rmtree(folder / HIDDEN)


def test_a_sampling_is_cancelled_by_its_button(page, server):
    figures = gallery_of_run(page, server)
    page.locator("#sampling summary").click()
    for name, value in (("count", "64"), ("steps", "250")):
        page.locator(f"#sampling [data-field={name}]").fill(value)
    assert page.locator("#cancel").is_hidden()
    page.get_by_role("button", name="Make pictures").click()
    page.get_by_text("Sampling …").wait_for()
    page.locator("#cancel").click()
    page.locator("#sampling output:text-is('Cancelled.')").wait_for()
    assert page.locator("#cancel").is_hidden()
    page.locator("#sampling [data-field=steps]").fill("")
    make(page, figures, kind="sample", label="a", seed="3", count="1")  # the process goes on


# -- The keyboard alone ------------------------------------------------------------------------------------------------


def test_by_the_keyboard_alone_a_run_is_started_and_stopped(page, server, tmp_path):
    pictures = write_pictures(tmp_path / "cats", 20, 32)
    ready(page.goto(f"{server[0]}/") and page)
    tab_to(page, "a.button")
    page.keyboard.press("Enter")
    page.wait_for_url("**/new")
    ready(page)
    tab_to(page, "[data-field=path]")
    page.keyboard.type(str(pictures))
    tab_to(page, "[data-field=size]")
    page.keyboard.type("32")
    tab_to(page, "[data-field=budget]")
    page.keyboard.press("Control+A")
    page.keyboard.type("10m")
    tab_to(page, "[type=submit]")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/*")
    page.get_by_role("heading", name="cats").wait_for()
    page.get_by_role("button", name="Stop", exact=True).wait_for(timeout=180_000)
    tab_to(page, "[data-post$=stop]")
    page.keyboard.press("Enter")
    page.get_by_text("It was asked to stop after").first.wait_for(timeout=120_000)


def test_by_the_keyboard_alone_a_part_of_a_picture_is_painted_over(page, server):
    figures = gallery_of_run(page, server)
    make(page, figures, kind="sample", label="a", seed="11", count="1")
    before = figures.count()
    page.locator("#sampling [type=submit]").focus()
    tab_to(page, "[data-vary]")
    page.keyboard.press("Enter")
    page.locator("#editor[open]").wait_for()
    page.keyboard.press("Escape")
    assert not page.locator("#editor[open]").count()
    page.keyboard.press("Enter")
    tab_to(page, "#editing [data-field=width]")
    page.keyboard.press("End")
    tab_to(page, "#brush", "Shift+Tab")
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")  # in the upper left corner
    tab_to(page, "#editing [data-field=count]")
    page.keyboard.press("Control+A")
    page.keyboard.type("1")
    tab_to(page, "#editing [type=submit]")
    page.keyboard.press("Enter")
    until(lambda: figures.count() == before + 1, 120)
    new, old = (pixels_of(page, server, figures.nth(index))[0] for index in (0, 1))
    assert np.array_equal(new[8:, 8:], old[8:, 8:]) and not np.array_equal(new[:2, :2], old[:2, :2])


@pytest.mark.parametrize("page", [WIDE, PHONE], ids=["desktop", "phone"], indirect=True)
def test_a_picture_of_ones_own_is_varied_and_enlarged(page, server, tmp_path):
    figures, own = gallery_of_run(page, server), tmp_path / "own.png"
    before, noise = figures.count(), np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(own)
    (tmp_path / "none.png").write_bytes(b"no picture")
    page.locator("#own").set_input_files(tmp_path / "none.png")
    page.get_by_text("The browser cannot show this file").wait_for()
    page.locator("#own").set_input_files(own)
    page.locator("#editing [data-field=count]").fill("1")
    page.get_by_role("button", name="Make variations").click()
    until(lambda: figures.count() == before + 1, 120)
    page.locator("#own").set_input_files(own)
    page.get_by_role("button", name="Enlarge it").click()
    until(lambda: figures.count() == before + 2, 120)
    large = np.asarray(Image.fromarray(noise).resize((40, 24), Image.Resampling.LANCZOS))
    assert np.array_equal(pixels_of(page, server, figures.first)[0], large)
    assert not figures.first.locator("[data-again]").count()  # the form would make another picture
    figures.nth(1).locator("[data-vary]").click()
    page.locator("#editor[open]").wait_for()
    assert page.locator("#enlarge").is_hidden()  # it has a button of its own in the gallery


def test_again_makes_the_same_picture(page, server):
    """Also of another size and with other steps."""
    figures = gallery_of_run(page, server)
    page.locator("#sampling summary").click()
    make(page, figures, kind="sample", label="", seed="5", count="2", size="32x16", steps="3")
    first, before = pixels_of(page, server, figures.nth(1))[0], figures.count()
    for name in ("size", "steps", "seed"):
        page.locator(f"#sampling [data-field={name}]").fill("")
    figure = figures.nth(1)
    assert "steps 3 · 32x16 px" in figure.locator("figcaption").inner_text()
    figure.locator("[data-again]").click()
    page.get_by_role("button", name="Make pictures").click()
    until(lambda: figures.count() == before + 2, 120)
    assert np.array_equal(pixels_of(page, server, figures.nth(1))[0], first)
