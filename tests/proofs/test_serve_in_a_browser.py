"""The page in Chromium, as people use it: a folder is dropped, trained on, stopped, resumed and sampled.

`make proofs` runs it. SHOTS=FOLDER keeps pictures of every page at two widths, light and dark.
"""

import contextlib
import csv
import os
import shlex
import signal
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import CHROMIUM, browser_page, ready, served, tab_to, traced, until
from small import write_pictures
from test_report import facts, fake_run, flat

from calotype.cli.commands.serving import listen
from calotype.files import write_json
from calotype.serve.library import id_of
from calotype.serve.safety import Guarded, gate_for
from calotype.serve.server import server as server_of
from calotype.serve.words import TERMS
from calotype.training.process import owner_of

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}
EVIL = "<img src=x onerror=alert(1)>'\"&"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of runs; empty at the beginning."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def server(folder):
    with served(folder, "--device", "cpu") as (address, token, _):
        yield address, token


@pytest.fixture(scope="module")
def trained(server, browser, folder, tmp_path_factory):
    """A person who reads nothing but the page trains on a folder, finds out twice why it stopped, and resumes."""
    address, token = server
    pictures = write_pictures(tmp_path_factory.mktemp("pictures") / "my pets", 60, 32)
    with browser_page(address, token, browser, viewport=WIDE) as page:
        page.get_by_text("There are none yet.").wait_for()
        page.click("text=Train on a folder of pictures")
        ready(page).set_input_files("#files", str(pictures))
        page.get_by_text("60 pictures are here.").wait_for()
        assert page.get_by_label("Name of the run").input_value() == "my pets"
        page.get_by_label("Side of the pictures").select_option("32")
        page.get_by_label("Time for all of it").fill("60s")
        page.get_by_role("button", name="Start training").click()
        page.wait_for_url(f"{address}/runs/*")
        page.get_by_role("button", name="Stop", exact=True).click(timeout=180_000)
        page.get_by_text("It was asked to stop after").first.wait_for(timeout=120_000)
        page.get_by_role("button", name="Resume", exact=True).click()
        page.get_by_role("button", name="Stop", exact=True).wait_for(timeout=180_000)
        os.kill(until(lambda: owner_of(folder / "my pets")), signal.SIGKILL)
        page.get_by_text("The operating system has killed it").first.wait_for(timeout=60_000)
        page.get_by_role("button", name="Resume", exact=True).click()
        page.get_by_text("Finished after").first.wait_for(timeout=400_000)
        page.get_by_text("each with its reconstruction to the right").wait_for()
        page.get_by_role("link", name="Make pictures").wait_for()
    return id_of("my pets")


@pytest.fixture(scope="module")
def many(trained, folder):
    """200 more runs, one with a hostile name."""
    for index in range(199):
        made = fake_run(folder / f"run-{index:03d}", flat, steps=20)
        write_json(made / "run.json", facts(name=made.name, created=f"2026-11-{1 + index % 28:02d}T10:00:00+00:00"))
    write_json(fake_run(folder / EVIL, flat) / "run.json", facts(name=EVIL, classes=[EVIL]))


def test_ten_pictures_are_downloaded_with_their_seeds(server, browser, trained, tmp_path):
    address, token = server
    with browser_page(address, token, browser, viewport=WIDE) as page:
        ready(page.goto(f"{address}/runs/{trained}/gallery") and page)
        before = page.locator("#gallery figure").count()
        page.locator("#sampling [data-field=seed]").fill("7")
        page.locator("#sampling [data-field=count]").fill("10")
        page.get_by_role("button", name="Make pictures").click()
        until(lambda: page.locator("#gallery figure").count() == before + 10)
        with page.expect_download() as download:
            page.click("text=Download all")
        download.value.save_as(tmp_path / "all.zip")
        names = zipfile.ZipFile(tmp_path / "all.zip").namelist()
        assert len(names) == before + 11 and sum(name.startswith("7-") for name in names) == 10


def test_the_brush_changes_what_is_painted_and_nothing_else(server, browser, trained):
    address, token = server
    with browser_page(address, token, browser, viewport=WIDE) as page:
        ready(page.goto(f"{address}/runs/{trained}/gallery") and page)
        before = page.locator("#gallery figure").count()
        page.locator("#sampling [data-field=count]").fill("1")
        page.get_by_role("button", name="Make pictures").click()
        until(lambda: page.locator("#gallery figure").count() == before + 1)
        original = page.locator("#gallery figure").first.get_attribute("data-picture")
        page.locator(f"[data-picture='{original}'] [data-vary]").click()
        box = page.locator("#brush").bounding_box()
        page.mouse.move(box["x"] + 4, box["y"] + 4)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 3, box["y"] + 4, steps=5)
        page.mouse.up()
        page.locator("#editing [data-field=count]").fill("1")
        page.get_by_role("button", name="Make variations").click()
        until(lambda: page.locator("#gallery figure").count() == before + 2)
        draw = """([image]) => { const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const pen = canvas.getContext("2d"); pen.drawImage(image, 0, 0);
            return [...pen.getImageData(0, 0, canvas.width, canvas.height).data]; }"""
        images = [page.locator("#gallery .sheet").first, page.locator(f"[data-picture='{original}'] .sheet").first]
        until(lambda: all(image.evaluate("image => image.complete && image.naturalWidth > 0") for image in images))
        new, old = (page.evaluate(draw, [image.element_handle()]) for image in images)
        half = len(new) // 2
        assert new[:half] != old[:half] and new[half:] == old[half:]


def test_steps_are_under_a_slider_and_films_play(server, browser, trained):
    address, token = server
    with browser_page(address, token, browser, viewport=WIDE) as page:
        ready(page.goto(f"{address}/runs/{trained}/gallery") and page)
        for kind, shown in (("develop", ".steps"), ("interpolate", "figcaption:has-text('film')")):
            page.locator("#sampling [data-field=kind]").select_option(kind)
            page.get_by_role("button", name="Make pictures").click()
            page.locator(f"#gallery {shown}").first.wait_for(timeout=60_000)
        ruler = page.locator("#gallery input[type=range]").first
        ruler.focus()
        page.keyboard.press("Home")
        assert page.locator("#gallery .steps").first.evaluate("image => image.style.objectPosition") == "50% 0%"


def test_the_list_of_200_runs_sorts_and_filters(server, browser, many):
    address, token = server
    with browser_page(address, token, browser, viewport=WIDE) as page:
        ready(page.goto(f"{address}/") and page)
        rows = page.locator("#list tbody tr")
        assert rows.count() >= 200
        page.get_by_role("button", name="Run", exact=True).click()
        assert "run-000" in "".join(page.locator("#list tbody tr").all_inner_texts()[:3])
        page.get_by_label("Filter").fill("run-01")
        assert page.locator("#list tbody tr:visible").count() == 10
        page.locator("#list tbody tr:visible input").first.focus()
        for _ in range(2):
            page.keyboard.press("Space")
            page.keyboard.press("Tab")
            page.keyboard.press("Tab")
        page.get_by_role("button", name="Compare the marked").click()
        page.get_by_role("heading", name="2 runs").wait_for()


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_the_screen(server, browser, trained, many, viewport, scheme):
    """Hostile names, too, are text: their scripts would open a dialog, or write into the console."""
    address, token = server
    places = {
        "list": "/", "new": "/new", "words": "/words", "run": f"/runs/{trained}", "gallery": f"/runs/{trained}/gallery",
        "evil": f"/runs/{id_of(EVIL)}", "compare": f"/compare?runs={trained}&runs={id_of(EVIL)}",
    }  # fmt: skip
    with browser_page(address, token, browser, viewport=viewport, color_scheme=scheme) as page:
        dialogs = []
        page.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
        for name, place in places.items():
            ready(page.goto(f"{address}{place}") and page)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            if shots := os.environ.get("SHOTS"):
                page.wait_for_timeout(500)
                page.screenshot(path=Path(shots) / f"{name}-{viewport['width']}-{scheme}.png", full_page=True)
        assert not dialogs


def test_curves_show_their_values_and_previews_their_time(server, browser, many):
    address, token = server
    with browser_page(address, token, browser, viewport=WIDE) as page:
        ready(page.goto(f"{address}/runs/{id_of('run-000')}") and page)
        ruler = page.locator(".over-time input").first
        ruler.focus()
        first = page.locator(".over-time figcaption").first.inner_text()
        page.keyboard.press("Home")
        assert page.locator(".over-time figcaption").first.inner_text() != first
        page.locator(".plot svg").first.hover()
        assert "at " in page.locator(".reading").inner_text() and "edges" in page.locator(".reading").inner_text()


SHOWN = """() => { window.shown = new Promise(done => { const gallery = document.querySelector("#gallery");
    new MutationObserver(() => gallery.querySelector("img").decode().then(() => done(Date.now())))
        .observe(gallery, {childList: true}); }); }"""
"""Keeps the moment at which the next picture is in the page, decoded; in milliseconds."""


def test_a_sample_is_shown_within_two_seconds_of_being_made(server, browser, trained, folder):
    """From the time of its file on; browser and server have one clock."""
    address, token = server
    with browser_page(address, token, browser, viewport=WIDE) as page:
        ready(page.goto(f"{address}/runs/{trained}/gallery") and page)
        before = page.locator("#gallery figure").count()
        page.evaluate(SHOWN)
        page.locator("#sampling [data-field=count]").fill("1")
        page.get_by_role("button", name="Make pictures").click()
        until(lambda: page.locator("#gallery figure").count() > before)
        moment, picture = (
            page.evaluate("shown") / 1000,
            page.locator("#gallery figure").first.get_attribute("data-picture"),
        )
    made = (folder / "my pets" / "gallery" / f"{picture}.png").stat().st_mtime
    print(f"shown {moment - made:.2f} s after it was made")
    assert -0.1 < moment - made < 2


def test_a_picture_is_enlarged_and_stands_beside_its_nearest_training_picture(server, browser, trained):
    address, token = server
    with browser_page(address, token, browser, viewport=WIDE) as page:
        ready(page.goto(f"{address}/runs/{trained}/gallery") and page)
        page.locator("#sampling [data-field=count]").fill("1")
        before = page.locator("#gallery figure").count()
        page.get_by_role("button", name="Make pictures").click()
        until(lambda: page.locator("#gallery figure").count() == before + 1)
        page.locator("[data-enlarge]").first.click()
        until(lambda: page.locator("#gallery figure").count() == before + 2)
        large = page.locator("#gallery figure").first
        assert "enlarged" in large.locator("figcaption").inner_text()
        until(lambda: large.locator("img.sheet").first.evaluate("image => image.naturalWidth") == 64)
        page.get_by_role("button", name="Nearest training pictures").click()
        beside = large.locator(".beside")
        beside.wait_for(timeout=60_000)
        assert ".png" in beside.inner_text()
        until(lambda: beside.locator("img").evaluate("image => image.naturalWidth") == 32)


def test_by_the_keyboard_alone_a_picture_is_made_starred_and_downloaded(server, browser, trained, tmp_path):
    address, token = server
    with browser_page(address, token, browser, viewport=PHONE) as page:
        ready(page.goto(f"{address}/runs/{trained}/gallery") and page)
        before = page.locator("#gallery figure").count()
        tab_to(page, "[data-field=seed]")
        page.keyboard.type("41")
        tab_to(page, "[data-field=count]")
        page.keyboard.press("Control+A")
        page.keyboard.type("1")
        tab_to(page, "[type=submit]")
        page.keyboard.press("Enter")
        until(lambda: page.locator("#gallery figure").count() == before + 1)
        tab_to(page, "[data-star]")
        page.keyboard.press("Space")
        page.locator("#gallery figure").first.locator("[data-star][aria-pressed=true]").wait_for()
        tab_to(page, "[href*=starred]", "Shift+Tab")
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        download.value.save_as(tmp_path / "starred.zip")
        names = zipfile.ZipFile(tmp_path / "starred.zip").namelist()
        starred = page.locator("[data-star][aria-pressed=true]").count()
        assert names[0].startswith("41-000-") and len(names) == starred + 1  # and pictures.json


def test_terms_are_explained_in_place_in_two_languages(server, browser, many, trained):
    """Every term that stands in a text, and those that name a field."""
    address, token = server
    with browser_page(address, token, browser, viewport=PHONE) as page:
        for place in ("/", "/new", f"/runs/{trained}", f"/runs/{trained}/gallery"):
            ready(page.goto(f"{address}{place}") and page)
            page.locator(".term:visible").first.wait_for()
            assert page.locator(".term:visible").count() >= 2, place
            for term in page.locator(".term:visible").all()[:8]:
                term.click()
                english, vietnamese = TERMS[term.get_attribute("data-term")]
                assert page.locator("#explained").inner_text().split("\n")[-1] == vietnamese
                assert english in page.locator("#explained").inner_text()
                page.keyboard.press("Escape")
        names = page.locator(".field .term").all_inner_texts()
        assert {"Seed", "Label"} <= set(names)


def test_commands_files_and_differences_of_runs(server, browser, many, trained, folder, tmp_path):
    address, token = server
    with browser_page(
        address, token, browser, viewport=WIDE, permissions=["clipboard-read", "clipboard-write"]
    ) as page:
        ready(page.goto(f"{address}/runs/{trained}") and page)
        page.get_by_role("button", name="Copy as command").click()
        command = shlex.split(until(lambda: page.evaluate("navigator.clipboard.readText()")))
        assert command[:2] == ["calotype", "train"] and Path(command[2]).is_dir() and str(folder / "my pets") in command
        ready(page.goto(f"{address}/compare?runs={trained}&runs={id_of('run-000')}") and page)
        assert page.locator("section:has(h2:text('Recipes')) tr:has-text('size')").count()
        for name in ("CSV", "JSON"):
            link = page.get_by_role("link", name=name, exact=True)
            answer = page.request.get(f"{address}{link.get_attribute('href')}")
            assert answer.ok and "denoiser." in answer.text()
        ready(page.goto(f"{address}/") and page)
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV", exact=True).click()
        download.value.save_as(tmp_path / "runs.csv")
        with (tmp_path / "runs.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == 201


def test_two_servers_on_one_host_keep_their_cookies_apart(server, browser, tmp_path):
    """Browsers share the cookies of all ports of a host."""
    address, token = server
    with served(tmp_path) as (other, its_token, _), browser_page(address, token, browser) as page:
        for place in (f"{other}/?token={its_token}", address, other):
            page.goto(place)
            page.get_by_role("heading", name="Runs", exact=True).wait_for()


def test_no_other_server_on_this_machine_gets_the_cookie(browser):
    """At the address that is printed; under 127.0.0.1 all ports get it."""
    cookies = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            cookies.append(self.headers.get("cookie", ""))
            self.send_error(404)

    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(each) for each in listen("127.0.0.1", 0)]
        port = listening[0].getsockname()[1]
        gate = gate_for("127.0.0.1", port)
        ours = server_of(Guarded(Starlette(routes=[Route("/", lambda request: Response("ours"))]), gate), "", port)
        theirs = stack.enter_context(HTTPServer(("127.0.0.1", 0), Other))
        for run in (theirs.serve_forever, lambda: ours.run(listening)):
            threading.Thread(target=run, daemon=True).start()
        until(lambda: ours.started)
        page = stack.enter_context(browser.new_context()).new_page()
        for host, gets in ((gate.own_name, False), ("127.0.0.1", True)):
            page.goto(f"http://{host}:{port}/?token={gate.token}")
            assert page.inner_text("body") == "ours"
            del cookies[:]
            for other in ("127.0.0.1", "localhost", "other.localhost"):
                page.goto(f"http://{other}:{theirs.server_port}/")
            assert any(gate.token in cookie for cookie in cookies) == gets
        ours.should_exit = True
        theirs.shutdown()


PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"


def first_paint(page, address, server):
    """Medians of five loads in milliseconds: by the clock, and of processor time of Chromium and the server."""
    clock, processor = [], []
    for _ in range(5):
        page.goto("about:blank")
        before = sum(server.cpu_times()[:2])
        with traced(page) as tasks:
            page.goto(address)
            clock.append(until(lambda: page.evaluate(PAINTED), pause=0.1))
        paint, *tasks = tasks
        ours = 1000 * (sum(server.cpu_times()[:2]) - before)
        processor.append(ours + sum(took for _, end, took in tasks if end <= paint))
    return sorted(clock)[2], sorted(processor)[2]


def is_idle():
    """Whether other programs leave this machine alone."""
    return psutil.cpu_percent(1.0) < 20


def test_the_first_paint_is_below_300_milliseconds(server, browser, many, trained):
    """By the clock on an idle machine; on a busy one twice as much processor time, all threads added.

    Programs that share a core's caches and units slow each other down.
    """
    address, token = server
    process = psutil.Process(next(each.pid for each in psutil.net_connections() if each.status == "LISTEN"
                                  and each.laddr.port == int(address.rsplit(":", 1)[1])))  # fmt: skip
    with browser_page(address, token, browser, viewport=WIDE) as page:
        for place in ("/", "/new", f"/runs/{trained}", f"/runs/{trained}/gallery"):
            page.goto("about:blank")
            idle = is_idle()
            clock, processor = first_paint(page, f"{address}{place}", process)
            idle = idle and is_idle()
            load = "idle" if idle else "busy"
            print(f"first paint of {place}: {clock:.0f} ms by the clock ({load}), {processor:.0f} of processor time")
            assert clock < 300 if idle else processor < 600, place


SCROLL = """() => new Promise(done => {
    let frames = 0;
    const step = () => { scrollBy(0, 120); frames++ < 120 ? requestAnimationFrame(step) : done(scrollY); };
    requestAnimationFrame(step);
})"""


def test_the_list_of_200_runs_scrolls_without_a_stutter(server, browser, many):
    """No task of the page takes 50 ms of processor time, and a frame less than half of its 16 ms."""
    address, token = server
    with browser_page(address, token, browser, viewport=WIDE) as page:
        ready(page.goto(f"{address}/") and page)
        page.evaluate("document.fonts.ready")
        page.wait_for_timeout(1000)
        with traced(page) as tasks:
            end = page.evaluate(SCROLL)
        took = [took for thread, _, took in tasks[1:] if thread == "CrRendererMain"]
        print(
            f"scrolled to {end} px: {sum(took) / 120:.1f} ms a frame of processor time, longest task {max(took):.1f} ms"
        )
        assert end > 8000 and max(took) < 50 and sum(took) / 120 < 8
        arrived = "[...document.querySelectorAll('.run img')].some(cover => cover.naturalWidth > 0)"
        until(lambda: page.evaluate(arrived))  # when it rests
