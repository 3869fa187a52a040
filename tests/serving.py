"""A server for tests: without a socket, or as a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

from starlette.testclient import TestClient

from calotype.serve.library import id_of
from calotype.serve.safety import gate_for
from calotype.serve.server import application

SOURCES = Path(__file__).resolve().parents[1] / "src"
PORT = 8737
ADDRESS = f"http://127.0.0.1:{PORT}"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
RUN = id_of("run")
OPENED = re.compile(r"programs: (http://[^/]+)/\?token=(\S+)")
"""In what the server prints: its address for programs, and its token."""


def client_of(folder, host="127.0.0.1", **more):
    """A client and the gate; the client has no token."""
    gate = gate_for(host, PORT)
    app = application(folder, gate, "cpu")
    settings = {"raise_server_exceptions": False, **more}
    return TestClient(app, base_url=ADDRESS, follow_redirects=False, **settings), gate


def bearer(gate):
    return {"Authorization": f"Bearer {gate.token}"}


def until(true, seconds=180.0, pause=0.05):
    """Waits for what `true` returns; the default is long enough for a core that others share."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "it has not come true"
        time.sleep(pause)
    return value


@contextmanager
def served(folder, *options):
    """A server as its users start it: its address for programs, its token and its process, which has `page`, the
    address that people open.
    """
    places = os.pathsep.join([str(SOURCES), os.environ["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": places, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "calotype", "serve", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            for line in process.stdout:
                if printed := re.match(r"open (http://[^/]+)/", line):
                    process.page = printed[1]
                if opened := OPENED.search(line):
                    yield opened[1], opened[2], process
                    break
        finally:
            process.terminate()
            process.wait(120)


@contextmanager
def chromium():
    """A browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def browser_page(address, token, browser=None, refused=0, **settings):
    """A page of Chromium that has the cookie, in a new browser if none is given; the console stays empty, but for so
    many requests that are refused with status 400.
    """
    lines = []
    with nullcontext(browser) if browser else chromium() as opened:
        context = opened.new_context(**settings)
        context.set_default_timeout(180_000)
        page = context.new_page()
        page.on("console", lambda message: lines.append(message.text))
        page.on("pageerror", lambda error: lines.append(str(error)))
        page.goto(f"{address}/?token={token}")
        try:
            yield page
        finally:
            context.close()
    assert len(lines) == refused and all("status of 400" in line for line in lines), lines


@contextmanager
def traced(page):
    """A list that afterwards has the tasks of Chromium: thread, end in microseconds, milliseconds of processor time.

    Processor time does not depend on what else the machine does, as the clock does. The first element is the moment of
    the first contentful paint, or None.
    """
    seen = []
    page.context.browser.start_tracing(page=page, categories=["toplevel", "loading"])
    yield seen
    events = json.loads(page.context.browser.stop_tracing())["traceEvents"]
    threads = {(each["pid"], each["tid"]): each["args"]["name"] for each in events if each["name"] == "thread_name"}
    paints = [each["ts"] for each in events if each["name"] == "firstContentfulPaint"]
    seen.append(max(paints, default=None))
    for each in events:
        thread = threads.get((each["pid"], each["tid"]), "")
        if each["name"] == "ThreadControllerImpl::RunTask" and "tdur" in each and "Perfetto" not in thread:
            seen.append((thread, each["ts"] + each["dur"], each["tdur"] / 1000))


def ready(page):
    """Waits until the script of a page has begun."""
    page.wait_for_selector("body[data-ready]")
    return page


def tab_to(page, what, key="Tab"):
    """Leads the focus to an element by the keyboard; wherever it rests, it is seen."""
    for _ in range(150):
        page.keyboard.press(key)
        if page.evaluate("what => document.activeElement.matches(what)", what):
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            assert page.evaluate(f"{outline} !== 'none' || document.activeElement.type === 'range'"), what
            return
    raise AssertionError(f"the keyboard does not lead to {what}")
