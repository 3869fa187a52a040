"""What commands write outside a run: whole files, and never over one that another call or a person has made."""

import errno
import os
import shutil
import signal
import threading
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import Keeper, be_quick
from test_cli import SMALL, tell
from test_editing import a_mask, a_picture, pixels
from test_files import contents

from calotype.cli import commands
from calotype.cli.commands.reading import new_folder
from calotype.cli.options import (
    EvaluateOptions,
    InspectOptions,
    InterpolateOptions,
    PreviewOptions,
    ReportOptions,
    SampleOptions,
)
from calotype.data.images import read_mask
from calotype.export.bundle import SETTINGS
from calotype.export.diffusers_folder import PIPELINE
from calotype.files import is_whole, whole_file, whole_folder, write_json, write_png, write_whole
from calotype.model import load
from calotype.types import UserError

__all__ = ["tell"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    be_quick(monkeypatch)


def transparent(mask, hidden):
    """Its white on a transparent layer, whose colour there is `hidden`."""
    layer = Image.new("RGBA", mask.size, (*hidden, 0))
    layer.paste("white", mask=mask)
    return layer


@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (250, 20, 20)])
def test_a_mask_on_a_transparent_layer_is_white_where_it_is_opaque(finished, tmp_path, hidden):
    model, layer = load(finished), transparent(a_mask(), hidden)
    layer.save(tmp_path / "mask.png")
    expected = pixels(model.redraw(a_picture(), mask=a_mask())[0])
    for mask in (layer, read_mask(tmp_path / "mask.png")):
        assert np.array_equal(pixels(model.redraw(a_picture(), mask=mask)[0]), expected)
    with pytest.raises(UserError, match=r"no white, .* paint opaque white"):
        model.redraw(a_picture(), mask=Image.new("RGBA", (16, 16), (*hidden, 0)))


def albums(tmp_path):
    """Folders with a file that `sample` would write, or any other."""
    for name in ("grid.png", "samples.json", "note.txt"):
        (tmp_path / name.partition(".")[0]).mkdir()
        (tmp_path / name.partition(".")[0] / name).write_text("mine")
        yield tmp_path / name.partition(".")[0]


PLACES = ["/proc/here", "/proc/deep/er/run", "/sys/here", "{0}/file/run", f"{{0}}/made/{'x' * 300}"]
OTHERS = ["sample", "evaluate", "compare", "data portraits", "data shards"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has /proc")
@pytest.mark.parametrize(("command", "place"), [*product(["train"], PLACES), *product(OTHERS, PLACES[::3])])
def test_a_place_where_no_folder_can_be_made_is_one_line(finished, tmp_path, tell, place, command):
    (tmp_path / "file").touch()
    run, pictures = finished, finished.parent / "pictures"
    words = {
        "train": [pictures, *SMALL], "sample": [run], "evaluate": [run, "--count", 4],
        "compare": [run, run], "data portraits": ["--size", 16, "--count", 6], "data shards": [pictures],
    }[command]  # fmt: skip
    place = place.format(tmp_path)
    code, _, wrong = tell(*command.split(), *words, "--out", place)
    assert code == 2 and len(wrong) == 1 and wrong[0].startswith("calotype: "), wrong
    assert place[:9] in wrong[0] and any(advice in wrong[0] for advice in ("choose a folder", "choose another"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # and none of the folders above it


def test_what_is_in_a_folder_is_never_written_over(finished, tmp_path, tell):
    for album in albums(tmp_path):
        code, _, wrong = tell("sample", finished, "--count", 1, "--out", album)
        assert code == 2 and len(wrong) == 1 and "is not an empty folder" in wrong[0]
        assert list(contents(album).values()) == [b"mine"]
        for command, options in ((commands.evaluate, EvaluateOptions), (commands.inspect, InspectOptions)):
            with pytest.raises(UserError, match="is not an empty folder"):
                command(options(finished, out=album), Keeper())
        assert list(contents(album).values()) == [b"mine"]


def test_the_same_call_twice_is_refused_and_without_out_each_gets_its_own_folder(finished, tmp_path, tell):
    words = ["sample", finished, "--count", 1, "--out", tmp_path / "made"]
    assert tell(*words)[0] == 0
    before = contents(tmp_path / "made")
    assert tell(*words, "--guidance", 3)[0] == 2 and contents(tmp_path / "made") == before
    names = {new_folder(tmp_path / "samples").name for _ in range(3)}
    assert names == {"samples-1", "samples-2", "samples-3"}


def test_a_file_that_appears_while_samples_are_made_stays(finished, tmp_path, tell, monkeypatch):
    def late(path, image, new):
        path.parent.mkdir(exist_ok=True)
        if path.name == "grid.png":
            path.write_text("mine")
        write_png(path, image, new)

    monkeypatch.setattr(commands.sampling, "write_png", late)
    code, _, wrong = tell("sample", finished, "--count", 1, "--out", tmp_path / "made")
    assert code == 2 and len(wrong) == 1 and "grid.png; nothing was overwritten" in wrong[0]
    assert (tmp_path / "made" / "grid.png").read_text() == "mine"


def test_an_animation_and_a_page_of_others_stay(finished, tmp_path):
    (tmp_path / "my.gif").write_text("mine")
    (tmp_path / "my.html").write_text("<title>mine</title>")
    with pytest.raises(UserError, match="already exists"):
        commands.interpolate(InterpolateOptions(finished, tmp_path / "my.gif"), Keeper())
    with pytest.raises(UserError, match="is not a page of calotype"):
        commands.report(ReportOptions([finished], tmp_path / "my.html"), Keeper())
    with pytest.raises(UserError, match="already exists"):
        commands.preview(PreviewOptions(finished, out=tmp_path / "my.gif"), Keeper())
    for _ in range(2):  # its own page and picture it may renew
        commands.report(ReportOptions([finished], tmp_path / "page.html"), Keeper())
        commands.preview(PreviewOptions(finished, count=1), Keeper())
    assert (tmp_path / "my.gif").read_text() == "mine" and "mine" in (tmp_path / "my.html").read_text()


def test_the_page_of_several_runs_is_not_written_over_one_that_is_beside_them(finished, tmp_path):
    (tmp_path / "report.html").write_text("<title>mine</title>")
    for name in "ab":
        shutil.copytree(finished, tmp_path / name)
    with pytest.raises(UserError, match=r"report.html is not a page of calotype .* choose another name with --out"):
        commands.report(ReportOptions([tmp_path / "a", tmp_path / "b"]), Keeper())
    assert (tmp_path / "report.html").read_text() == "<title>mine</title>"


@pytest.mark.parametrize("kind", ["onnx", "diffusers"])
def test_an_export_is_not_replaced_with_what_others_have_put_into_it(tmp_path, tell, kind):
    out = tmp_path / "export"
    with whole_folder(out) as path:
        write_json(path / {"onnx": SETTINGS, "diffusers": PIPELINE}[kind], {})
    words = "export", tmp_path / "nothing", "--to", kind, "--out", out
    assert "expected the folder of a run" in tell(*words)[2][0]  # what an export has written may be replaced
    (out / ".git").mkdir()
    (out / "notes.txt").write_text("mine")
    code, _, wrong = tell(*words)
    assert code == 2 and "has what no export has put there: .git, notes.txt; move it away" in wrong[0]
    assert (out / "notes.txt").read_text() == "mine"


def failing(number):
    def call(*paths, **options):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_is_written_again_after_an_error_and_never_over_another(tmp_path, monkeypatch, links):
    if not links:  # as on FAT
        monkeypatch.setattr(os, "link", failing(errno.EPERM))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output error"):
        patch.setattr(os, "link" if links else "replace", failing(errno.EIO))
        write_whole(tmp_path / "file", "lost", new=True)
    assert not any(tmp_path.iterdir())
    write_whole(tmp_path / "file", "whole", new=True)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "file", "other", new=True)
    assert (tmp_path / "file").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1


def test_writers_with_one_process_number_do_not_take_one_another_s_file(tmp_path):
    """Two containers that share a folder: the process of each is number 1."""
    file, folder = tmp_path / "file", tmp_path / "folder"
    with whole_file(file) as one:
        one.write_text("one")
        with whole_file(file) as other:
            other.write_text("other")
        assert file.read_text() == "other"
    assert file.read_text() == "one"
    with whole_folder(folder) as one:
        (one / "a").write_text("one")
        with whole_folder(folder) as other:
            (other / "b").write_text("other")
    assert is_whole(folder) and (folder / "a").read_text() == "one" and not [*tmp_path.glob(".*")]


def test_of_threads_that_write_one_new_file_one_does(tmp_path):
    wrote, start = [], threading.Barrier(8)

    def write(number):
        path = tmp_path / "file"
        start.wait()
        try:
            path.open("xb").close() if number else write_whole(path, "whole", new=True)
            wrote.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrote) == 1


@pytest.mark.parametrize("fails_at", range(1, 5))
def test_samples_are_whole_files_wherever_they_stop(finished, tmp_path, monkeypatch, fails_at):
    calls, real = [], os.fsync

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 2 * fails_at:
            signal.raise_signal(signal.SIGINT)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(KeyboardInterrupt):
        commands.sample(SampleOptions(finished, 4, out=tmp_path / "made"), Keeper())
    for path in (tmp_path / "made").iterdir():
        Image.open(path).load()
