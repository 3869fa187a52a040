"""Who may ask the server, what may be sent to it, and that whatever comes from outside is text."""

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import socket
import threading
import time
import unicodedata
import zipfile
from html.parser import HTMLParser

import pytest
from serving import ADDRESS, PORT, RUN, bearer, client_of, until
from small import Keeper
from starlette.applications import Starlette
from starlette.routing import Route
from test_report import facts, fake_run, flat

from calotype.cli.commands import serve
from calotype.cli.commands.serving import has_ipv6, listen
from calotype.cli.options import ServeOptions
from calotype.files import write_json
from calotype.serve import safety
from calotype.serve.answers import RefusedRequest, static_files
from calotype.serve.gallery import Gallery
from calotype.serve.launching import is_run_name
from calotype.serve.library import id_of
from calotype.serve.safety import gate_for
from calotype.serve.server import routes
from calotype.serve.uploading import safe_parts
from calotype.types import UserError

EVIL = "<img src=x onerror=alert(1)>\"'&\u202e"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    fake_run(folder / "run", flat)
    fake_run(folder / EVIL.replace("/", ""), flat)
    evil = facts(name=EVIL, classes=[EVIL, "b"], data=EVIL, status="training")
    write_json(folder / EVIL / "run.json", evil)
    (folder / EVIL / "recipe.toml").write_text(f"size = 64\n# {EVIL}\n")
    with (folder / EVIL / "log.jsonl").open("a") as log:
        log.write(json.dumps({"event": "note", "text": EVIL}) + "\n")
    write_json(folder / EVIL / "plan.json", {"kind": EVIL, "choices": [{"what": EVIL, "value": EVIL, "why": EVIL}]})
    (folder / "outside").symlink_to("/etc")
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    return client_of(folder)


@pytest.fixture(scope="module")
def client(opened):
    return opened[0]


@pytest.fixture(scope="module")
def token(opened):
    return bearer(opened[1])


class Page(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))


def paths():
    """Every address of the server, with something in its holes."""
    holes = {"run": RUN, "leg": "denoiser", "picture": "0" * 20, "job": "x", "upload": "0" * 16, "name": "x"}
    for route in routes():
        assert isinstance(route, Route)
        path = re.sub(r"{(\w+)(:int)?}", lambda hole: holes.get(hole[1], "0"), route.path)
        yield from ((method, path) for method in route.methods - {"HEAD"})


@pytest.mark.parametrize(("method", "path"), [pair for pair in paths() if not pair[1].startswith("/static/")])
def test_nothing_is_answered_without_the_token(client, method, path):
    for headers in ({}, {"Authorization": "Bearer x"}, {"Cookie": f"calotype-{PORT}=x"}, {"Authorization": "Basic x"}):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 401 and "token" in answer.json()["error"]["message"]


def test_the_address_with_the_token_sets_a_cookie_and_leads_to_one_without(opened):
    client, gate = opened
    answer = client.get(f"/new?token={gate.token}&a=1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/new?a=1")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and f"calotype-{PORT}=" in cookie
    assert client.get(f"{ADDRESS}//evil.example/?token={gate.token}").headers["location"] == "/evil.example/"
    client.cookies.clear()
    given = {"Cookie": f"calotype-{PORT}={gate.token}"}
    assert client.get("/new", headers=given).status_code == 200
    assert gate_for("127.0.0.1", PORT).token != gate.token and gate.token not in repr(gate)


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1.evil.example:{PORT}", "",
     f"127.0.0.1:{PORT}@evil.example", f"localhost.:{PORT}", f"0.0.0.0:{PORT}"],
)  # fmt: skip
def test_other_hosts_are_refused(client, token, host):
    assert client.get("/new", headers={**token, "Host": host}).status_code == 421


@pytest.mark.parametrize(
    "other",
    ['prefs={"theme":"dark"}', "user@app=1", "x[0]=1", "name=José", 'a="unterminated', "list=a, b", "flag",
     f"calotype-{PORT}=x"],
)  # fmt: skip
def test_cookies_of_other_servers_at_this_host_lock_nobody_out(opened, other):
    client, gate = opened
    for name, status in ((gate.cookie, 200), (f"x-{gate.cookie}", 401)):
        given = {"Cookie": f"{other}; {name}={gate.token}".encode()}
        assert client.get("/new", headers=given).status_code == status


def test_the_address_of_the_page_is_of_no_other_server(opened):
    """Browsers give a cookie to all ports of a host, so that its name is new at each start."""
    client, gate = opened
    own = {"Host": f"{gate.own_name}:{PORT}"}
    assert client.get(f"/new?token={gate.token}", headers=own).status_code == 303
    another = gate_for("127.0.0.1", PORT)
    assert another.own_name != gate.own_name and not gate_for("0.0.0.0", PORT).own_name
    assert client.get("/new", headers={"Host": f"{another.own_name}:{PORT}", **bearer(gate)}).status_code == 421


@pytest.mark.skipif(not has_ipv6(), reason="there is one loopback address")
def test_nobody_else_listens_at_the_other_loopback_address():
    """Which browsers take for a name that ends with `.localhost`."""
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(each) for each in listen("127.0.0.1", 0))
        assert {first.getsockname()[0], second.getsockname()[0]} == {"127.0.0.1", "::1"}
        assert first.getsockname()[1] == second.getsockname()[1]
        strange = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        with pytest.raises(UserError, match="cannot listen at ::1"):
            listen("127.0.0.1", strange.getsockname()[1])


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"LOCALHOST:{PORT}", f"[::1]:{PORT}"])
def test_own_hosts_are_taken(client, token, host):
    assert client.get("/new", headers={**token, "Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", f"{ADDRESS}.evil.example", f"https://127.0.0.1:{PORT}", "http://127.0.0.1",
     f"http://localhost:{PORT}", f"{ADDRESS}/", "", f"http://127.0.0.1:{PORT + 1}"],
)  # fmt: skip
def test_other_origins_are_refused_even_with_the_token(client, token, origin):
    for method in ("GET", "POST"):
        answer = client.request(method, "/v1/models", headers={**token, "Origin": origin})
        assert answer.status_code == 403 and "Origin" in answer.json()["error"]["message"]
        assert "access-control-allow-origin" not in answer.headers


def test_with_a_cookie_a_change_needs_the_origin(opened):
    client, gate = opened
    cookie = {"Cookie": f"calotype-{PORT}={gate.token}"}
    asked = f"/api/runs/{id_of('none')}/stop"
    assert client.post(asked, headers=cookie).status_code == 403
    assert client.post(asked, headers={**cookie, "Origin": ADDRESS}).status_code == 404
    assert client.options("/v1/models", headers={**cookie, "Origin": ADDRESS}).status_code == 405


def test_every_answer_has_a_strict_policy_and_pages_need_nothing_inline(client, token):
    for path in ("/", "/new", "/words", f"/runs/{RUN}", f"/runs/{RUN}/gallery", "/none", static_files()["serve.js"][0]):
        answer = client.get(path, headers={**token, "Accept": "text/html"})
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        if path.startswith("/static/"):
            continue
        elements = Page(answer.text).elements
        assert not [name for name, _ in elements if name == "style"]
        assert [given for name, given in elements if name == "script"] == [
            {"type": "module", "src": static_files()["serve.js"][0]}
        ]
        names = {attribute for _, given in elements for attribute in given}
        assert "style" not in names and not [name for name in names if name.startswith("on")]
        links = [given[key] for _, given in elements for key in ("src", "href", "action") if key in given]
        assert links and all(place.startswith(("/", "#")) and not place.startswith("//") for place in links)


def test_hostile_names_are_text_everywhere(client, token, folder):
    run = id_of(EVIL)
    for path in ("/", f"/runs/{run}", f"/runs/{run}/parts", f"/runs/{run}/gallery", f"/compare?runs={run}&runs={RUN}"):
        text = client.get(path, headers=token).text
        assert "<img src=x" not in text and "\u202e" not in text
        assert "&lt;img src=x" in text, path
    listed = client.get("/api/runs.csv", headers=token)
    assert listed.status_code == 200 and "onerror" in listed.text


def test_ids_lead_to_runs_and_nothing_else(client, token):
    for run in ("..", "run", "%2e%2e", "outside", id_of("outside"), id_of(".."), "x" * 4000):
        assert client.get(f"/runs/{run}/gallery", headers=token).status_code == 404
    for path in (
        f"/runs/{RUN}/pictures/..%2f..%2frun.json", f"/runs/{RUN}/pictures/{'a' * 20}", "/static/..%2fserver.py",
        f"/runs/{RUN}/previews/denoiser/99", f"/runs/{RUN}/previews/..%2f/0", "/static/server.py",
    ):  # fmt: skip
        assert client.get(path, headers=token).status_code == 404


def test_answers_have_no_paths_in_them(client, token, folder):
    for path in ("/api/runs", f"/api/runs/{RUN}", "/v1/models", "/"):
        assert str(folder.parent) not in client.get(path, headers=token).text


@pytest.mark.parametrize("ending", ["9" * 5000, f"0?at={'9' * 5000}"])
def test_long_addresses_are_refused(client, token, ending):
    """Python makes no number of so many digits, and starlette does not expect that."""
    assert client.get(f"/runs/{RUN}/previews/denoiser/{ending}", headers=token).status_code == 414


@pytest.mark.parametrize(
    ("path", "most"), [("/v1/images/generations", safety.MAX_JSON), ("/v1/images/edits", safety.MAX_EDIT)]
)
def test_large_bodies_are_refused(client, token, path, most):
    def pieces():
        for _ in range(most // 2**20 + 1):
            yield b" " * 2**20

    kind = "multipart/form-data; boundary=x" if "edits" in path else "application/json"
    headers = {**token, "Content-Type": kind}
    assert client.post(path, content=b" " * (most + 1), headers=headers).status_code == 413
    assert client.post(path, content=pieces(), headers=headers).status_code == 413  # without a length


def test_a_body_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(safety, "BODY_SECONDS", 0.01)

    async def read():
        await safety.bounded({"type": "http", "path": "/", "headers": []}, lambda: asyncio.sleep(60))()

    with pytest.raises(RefusedRequest) as caught:
        asyncio.run(read())
    assert caught.value.status == 408


@pytest.fixture
def listening(monkeypatch):
    """Opens connections to a server at a socket that waits a moment for headers, and has one page without a token."""
    from calotype.serve import server as module

    monkeypatch.setattr(module, "HEADER_SECONDS", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        app = Starlette(routes=[Route("/static/{name}", module.static)])
        running = module.server(module.Guarded(app, gate_for("127.0.0.1", port)), "127.0.0.1", port)
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        until(lambda: running.started)

        def connect(text=""):
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            connection.sendall(text.replace("HOST", f"Host: 127.0.0.1:{port}").encode())
            return connection

        yield connect
        running.should_exit = True
        thread.join()


def rest_of(connection):
    """What the server still sends before it closes."""
    parts = []
    with connection, contextlib.suppress(ConnectionError):
        while part := connection.recv(2**16):
            parts.append(part)
    return b"".join(parts)


SHEET = f"GET {static_files()['serve.css'][0]} HTTP/1.1\r\nHOST\r\n"


@pytest.mark.parametrize("endless", ["X: " + "a" * 2**20, "X: a\r\n" * 2**18], ids=["one line", "many lines"])
def test_endless_headers_are_refused(listening, endless):
    connection = listening(SHEET)
    with contextlib.suppress(ConnectionError):
        connection.sendall(endless.encode())
    assert b" 200 " not in rest_of(connection)
    assert b" 200 " in rest_of(listening(SHEET + "Connection: close\r\n\r\n"))


@pytest.mark.parametrize("sent", ["", SHEET], ids=["nothing", "half of the headers"])
def test_headers_that_come_too_slowly_end_the_connection(listening, sent):
    """Also those that trickle, a byte now and then."""
    connection, began = listening(sent), time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < 2:
            connection.sendall(b"X")
            time.sleep(0.05)
    assert rest_of(connection) == b"" and time.monotonic() - began < 1.5


def test_a_body_that_trickles_on_after_its_refusal_ends_the_connection(listening):
    connection, began = listening("POST /x HTTP/1.1\r\nHOST\r\nContent-Length: 1000\r\n\r\n"), time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - began < 2:
            connection.sendall(b"X")
            time.sleep(0.05)
    rest_of(connection)
    assert time.monotonic() - began < 1.5


def test_an_answer_does_not_wait_for_the_other_side_to_have_read_a_part_of_it(listening):
    """Without TCP_NODELAY headers and body are two packets, of which the second waits for some 40 ms."""
    took = []
    with listening() as connection:
        address = f"Host: 127.0.0.1:{connection.getpeername()[1]}"
        for _ in range(20):
            began = time.monotonic()
            connection.sendall(f"GET {static_files()['icon.svg'][0]} HTTP/1.1\r\n{address}\r\n\r\n".encode())
            while b"</svg>" not in connection.recv(2**16):
                pass
            took.append(time.monotonic() - began)
    assert min(took[5:]) < 0.03  # the first answers do not wait


def test_a_connection_that_is_kept_is_used_again_after_longer_than_headers_may_take(listening):
    connection = listening(SHEET + "\r\n")
    assert b" 200 " in connection.recv(2**16)
    time.sleep(0.6)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: another\r\nConnection: close\r\n\r\n")
    assert b" 421 " in rest_of(connection)


BAD_NAMES = (
    "../a.png", "/a.png", "a/../../b.png", "a\\..\\..\\b.png", ".ssh/a.png", "a/.b.png", "a.py", "a", "", "a\0.png",
    "x/" * 9 + "a.png", "a" * 300 + ".png", "\u202eevil.png",
)  # fmt: skip


@pytest.mark.parametrize("path", BAD_NAMES)
def test_uploads_stay_in_their_folder(path):
    with pytest.raises(RefusedRequest):
        safe_parts(path)


NAMES = ("mèo con", unicodedata.normalize("NFD", "mèo con"), "गिटार", "แม่", "گربه\u200cها", "قطة", "2nd (b)_-.c")


def test_runs_have_names_in_every_script():
    """With the marks and joiners that letters of these scripts need, which count as no letters."""
    assert all(map(is_run_name, NAMES))
    for name in ("", "a/b", "..", ".a", "-a", "a.", "a ", " ", "a\0", "\u200da", "a\u202eb", 'a"b', "😀", "a" * 81):
        assert not is_run_name(name), name


@pytest.mark.skipif(os.name == "nt", reason="names have fewer letters there")
@pytest.mark.parametrize("name", [*NAMES, "\"quoted\" 'name' <b>&amp;", "🏳️\u200d🌈", "what? *: |", "ends. "])
def test_folders_of_pictures_have_any_name_that_a_disk_takes(name):
    assert safe_parts(f"{name}/{name}.png") == [name, f"{name}.png"]


def test_a_good_upload_is_where_it_belongs(client, token, folder):
    batch = "0123456789abcdef"
    place = folder / ".calotype" / "uploads" / batch / "mèo" / "a 1.PNG"
    assert client.post(f"/api/uploads/{batch}?path=mèo/a 1.PNG", content=b"x", headers=token).status_code == 201
    assert place.read_bytes() == b"x"
    assert client.post(f"/api/uploads/{batch}?path=mèo/a 1.PNG", content=b"y", headers=token).status_code == 409
    assert client.post("/api/uploads/../../x?path=a.png", content=b"y", headers=token).status_code == 404


def test_unknown_fields_are_refused_by_name(client, token):
    address, sent = "/v1/images/generations", {"model": "run", "prompt": "", "quality": "hd"}
    error = client.post(address, json=sent, headers=token).json()["error"]
    assert error["param"] == "quality" and "unknown field 'quality'; known are label" in error["message"]
    wrong = {"n": 1000, "size": "9x", "steps": 10**9, "seed": "x", "response_format": "url", "guidance": -1}
    for name, value in wrong.items():
        answer = client.post("/v1/images/generations", json={"model": "run", name: value}, headers=token)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    for body, kind in ((b"{", "application/json"), (b"[" * 10**5, "application/json"), (b"a=1", "text/plain")):
        answer = client.post("/v1/images/generations", content=body, headers={**token, "Content-Type": kind})
        assert answer.status_code == 400


def test_another_host_is_warned_of_and_named(monkeypatch):
    from calotype.serve import server as module

    monkeypatch.setattr(module, "server", lambda app, host, port: Silent())
    console = Keeper()
    serve(ServeOptions(port=0, host="0.0.0.0"), console)
    assert "anyone on the network" in console.printed[0] and "?token=" in console.printed[1]
    console = Keeper()
    serve(ServeOptions(port=0), console)
    assert all("?token=" in line for line in console.printed[:2]) and "http://127.0.0.1:" in console.printed[1]
    assert re.match(r"open http://[0-9a-f]{16}\.localhost:", console.printed[0])
    assert "0.0.0.0:1" not in gate_for("0.0.0.0", 1).hosts and "127.0.0.1:1" in gate_for("0.0.0.0", 1).hosts
    with pytest.raises(UserError, match="choose another with --port"):
        serve(ServeOptions(port=1, host="192.0.2.1"), console)


class Silent:
    def run(self, sockets):
        """No server."""


# -- Damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    """A folder of runs with one that is sound, and a client with the token."""
    fake_run(tmp_path / "run", flat)
    client, gate = client_of(tmp_path)
    client.headers.update(bearer(gate))
    return tmp_path, client


def test_a_damaged_run_costs_neither_the_list_nor_a_riddle(damaged):
    folder, client = damaged
    write_json(fake_run(folder / "endless", flat) / "run.json", facts(seconds={"denoiser": 1e999}))
    (fake_run(folder / "broken", flat) / "run.json").write_text("{")
    os.mkfifo(fake_run(folder / "pipe", flat) / "lock")
    (fake_run(folder / "below", flat) / "lock").mkdir()
    assert client.get("/").status_code == 200
    listed = client.get("/api/runs").text
    assert "Infinity" not in listed and "run.json is not JSON" in listed and str(folder) not in listed
    for run in ("endless", "broken", "pipe", "below"):
        assert client.get(f"/runs/{id_of(run)}").status_code == 200
        assert client.get(f"/compare?runs={id_of(run)}&runs={RUN}").status_code == 200
    (folder / "run" / "plan.json").write_text('{"choices": [{"what": "width", "value": NaN, "why": "-Infinity"}]}')
    choices = client.get(f"/api/runs/{RUN}").json()["plan"]
    assert choices == [{"what": "width", "value": None, "why": "-Infinity"}]
    page = client.get(f"/runs/{id_of('broken')}").text
    assert "What is damaged" in page, page[page.index("data-part") :][:900]
    answer = client.post("/v1/images/generations", json={"model": "broken"})
    assert answer.status_code == 409 and str(folder) not in answer.text


def test_damaged_notes_of_pictures_are_left_out(damaged):
    folder, client = damaged
    gallery = folder / "run" / "gallery"
    wrong = ({"index": "x"}, {"index": 1.5}, {"seed": "<b>"}, {"label": ["a"]}, {"prompt": {}}, {"order": float("nan")})
    for place, notes in enumerate(({}, *wrong)):
        write_json(gallery / f"{place:020x}.json", {"order": 1, **notes})
        flat("sample", 0).save(gallery / f"{place:020x}.png")
    assert client.get(f"/runs/{RUN}/gallery").text.count("data-picture=") == 1
    assert len(zipfile.ZipFile(io.BytesIO(client.get(f"/runs/{RUN}/gallery.zip").content)).namelist()) == 2


def test_links_do_not_lead_out_of_a_run(damaged, tmp_path_factory):
    folder, client = damaged
    outside, run = tmp_path_factory.mktemp("outside"), folder / "run"
    flat("sample", 0).save(outside / "grid.png")
    (outside / "secret").write_text("secret")
    shutil.rmtree(run / "samples")
    (run / "samples").symlink_to(outside)
    (run / "report.html").symlink_to(outside / "secret")
    (run / "gallery").symlink_to(outside)
    assert client.get(f"/runs/{RUN}/grid").status_code == 404
    assert client.get(f"/runs/{RUN}/report").status_code == 404
    with pytest.raises(RefusedRequest, match="is a link"):
        Gallery(run).add([b"x"], {})
    assert {file.name for file in outside.iterdir()} == {"grid.png", "secret"}


def test_pictures_of_a_run_that_was_removed_bring_no_folder_back(tmp_path):
    with pytest.raises(RefusedRequest, match="removed"):
        Gallery(tmp_path / "gone").add([b"x"], {})
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "/" + "a" * 4000, "/nul\0", "relative"])
def test_a_folder_that_cannot_be_is_refused_by_name(client, token, path):
    answer = client.post("/api/runs", json={"name": "new", "path": path}, headers=token)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "path")


def test_a_folder_with_the_name_of_a_file_is_not_taken(client, token):
    address = f"/api/uploads/{'ab' * 8}"
    assert client.post(f"{address}?path=a.png", content=b"x", headers=token).status_code == 201
    assert client.post(f"{address}?path=a.png/b.png", content=b"x", headers=token).status_code == 409
