"""`calotype push`, on a hub that is not there, and with the real package on a server of the test."""

import base64
import json
import shutil
import sys
import threading
import types
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from exporting import GOLDEN
from small import Keeper

from calotype.cli.commands import push_folder
from calotype.cli.options import PushOptions
from calotype.export import bundle
from calotype.export.bundle import CARD_COPY, write_readme
from calotype.report.card import card_lines
from calotype.run import Run
from calotype.types import UserError


class RefusedError(Exception):
    """As the hub's own errors."""


class NoTokenError(Exception):
    """As the hub's own errors."""


@pytest.fixture
def hub(monkeypatch):
    """A package that keeps what it is asked."""
    asked, hub, errors = [], types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")

    class HfApi:
        def __init__(self, library_name):
            self.refuses = None

        def create_repo(self, name, private, exist_ok):
            if name == "nobody/model":
                raise NoTokenError
            if name == "other/model":
                raise RefusedError("403: this is not yours\nmore")
            asked.append((name, private, exist_ok))
            return f"https://hub/{name}"

        def upload_folder(self, repo_id, folder_path, commit_message, allow_patterns):
            asked.append((repo_id, folder_path))

    hub.HfApi, errors.HfHubHTTPError, errors.LocalTokenNotFoundError = HfApi, RefusedError, NoTokenError
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    monkeypatch.setattr(bundle.importlib.util, "find_spec", lambda name: name)
    return asked


@contextmanager
def hub_server():
    """The three requests of an upload, as the hub answers them: its address, and what was asked, by path."""
    asked = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked[self.path] = lines = [json.loads(line) for line in body.splitlines()]
            address = f"http://{self.headers['Host']}/me/faces"
            answer = {"url": address}
            if self.path.endswith("/preupload/main"):
                kind = {"uploadMode": "regular", "shouldIgnore": False}
                answer = {"files": [{"path": file["path"], **kind} for file in lines[0]["files"]]}
            if self.path.endswith("/commit/main"):
                answer = {"commitUrl": f"{address}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_the_real_package_uploads_the_files_and_the_tags_of_the_card(finished, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    with hub_server() as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert push_folder(PushOptions(finished, "me/faces"), Keeper()) == f"{address}/me/faces"
    assert asked["/api/repos/create"][0]["visibility"] == "private"
    sent = [line["value"] for line in asked["/api/models/me/faces/commit/main"] if line["key"] == "file"]
    files = {each["path"]: base64.b64decode(each["content"]) for each in sent}
    assert files == {file.name: file.read_bytes() for file in (finished / "model").iterdir()}
    front = files["README.md"].decode().split("---")[1]
    assert "pipeline_tag: unconditional-image-generation" in front and "- latent-diffusion" in front


def test_what_was_put_into_a_folder_is_not_uploaded(tmp_path, monkeypatch):
    """The text encoder of a model has its own licence; the samples of a script may be private."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    folder = shutil.copytree(GOLDEN / "labels", tmp_path / "model")
    for name in (
        "encoder/model.safetensors",
        "grid.png",
        "__pycache__/sample.cpython-311.pyc",
        "README.md",
        "samples.png",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"mine")
    with hub_server() as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        push_folder(PushOptions(folder, "me/faces"), Keeper())
    sent = {line["value"]["path"] for line in asked["/api/models/me/faces/commit/main"] if line["key"] == "file"}
    assert sent == {*(file.name for file in (GOLDEN / "labels").iterdir()), "README.md", "samples.png"}


@pytest.mark.parametrize("name, message", [
    ("me/faces", "the hub cannot be reached .*check the connection"),
    ("me--you/faces", "the hub refused me--you/faces"), ("me/faces.git", "the hub refused me/faces.git"),
])  # fmt: skip
def test_the_real_package_without_a_hub_is_one_line(name, message, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=message) as error:
        push_folder(PushOptions(GOLDEN / "labels", name), Keeper())
    assert "\n" not in str(error.value)


def test_a_mistake_of_ours_does_not_blame_the_connection(hub, monkeypatch):
    monkeypatch.setattr(sys.modules["huggingface_hub"].HfApi, "create_repo", lambda *_, **__: {}["address"])
    with pytest.raises(KeyError, match="address"):
        push_folder(PushOptions(GOLDEN / "labels", "me/faces"), Keeper())


@pytest.mark.parametrize("public", [False, True])
def test_a_whole_model_is_uploaded_private_unless_asked(hub, public):
    keeper = Keeper()
    assert push_folder(PushOptions(GOLDEN / "labels", "me/faces", public), keeper) == "https://hub/me/faces"
    assert hub == [("me/faces", not public, True), ("me/faces", GOLDEN / "labels")]
    assert "https://hub/me/faces" in keeper.printed[-1]


@pytest.mark.parametrize("name, message", [
    ("faces", "expected OWNER/NAME"), ("../x/y", "expected OWNER/NAME"), ("nobody/model", "hf auth login"),
    ("other/model", "403: this is not yours$"),
])  # fmt: skip
def test_what_is_wrong_is_one_line(hub, name, message):
    with pytest.raises(UserError, match=message) as error:
        push_folder(PushOptions(GOLDEN / "labels", name), Keeper())
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_whole_is_not_uploaded(hub, tmp_path):
    (tmp_path / "private.txt").write_text("mine")
    with pytest.raises(UserError, match="not a model or an export that is whole"):
        push_folder(PushOptions(tmp_path, "me/faces"), Keeper())
    assert not hub


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(bundle.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "calotype\[hub\]"'):
        push_folder(PushOptions(GOLDEN / "labels", "me/faces"), Keeper())


def test_a_card_has_tags_and_a_bundle_takes_them_over(finished, tmp_path):
    lines = list(card_lines(Run.open(finished), None))
    front = lines[: lines.index("---", 1) + 1]
    assert "pipeline_tag: unconditional-image-generation" in front and "- latent-diffusion" in front
    (card := tmp_path / "card.md").write_text("\n".join(lines))
    (out := tmp_path / "out").mkdir()
    write_readme(out, "# Text\n", card)
    assert (out / "README.md").read_text() == "\n".join(front) + "\n\n# Text\n"
    assert (out / CARD_COPY).read_text() == card.read_text()
