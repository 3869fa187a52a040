"""Names and settings from outside never steer the terminal or a page, and end nothing."""

import io
import sys
import unicodedata

import pytest
from small import SETTINGS, as_overrides, be_quick, write_pictures

from calotype.cli import app as cli
from calotype.cli.console import Terminal
from calotype.escaping import STEERING, plain
from calotype.report.card import escaped
from calotype.report.html import tag

WILD = (
    "\x1b]0;title\x07",
    "\x1b[31mred",
    "\u202eevil",
    "\u2066x\u2069",
    "a\nb",
    "a\rb",
    "\x9b2J",
    "\ud8ff",
    "\u2028",
    "\x00",
)
SMALL = ["--size", "16", "--budget", "1s", *(word for one in as_overrides(SETTINGS) for word in ("--set", one))]


def harmless(text, kept="\n"):
    return all(unicodedata.category(letter) not in STEERING or letter in kept for letter in text)


@pytest.mark.parametrize("text", WILD)
def test_what_steers_is_escaped_wherever_it_is_shown(text, capsys):
    assert harmless(plain(text), "") and plain(text) != text
    console = Terminal()
    console.say(f"name {text}")
    with console.bar(text) as progress:
        progress(1, 1, text)
    printed = capsys.readouterr().out
    assert harmless(printed) and len(printed.splitlines()) == 2
    assert harmless(tag("p", text, title=text).code) and harmless(escaped(text))


def test_letters_of_all_scripts_stay():
    for text in ("", "ảnh 猫", "می‌خواهم", "👨‍👩‍👧", "a\u00a0b", "é", "עברית"):
        assert plain(text) == text
    assert plain("a\nb\tc\x1b", kept="\n\t") == "a\nb\tc\\x1b"


@pytest.fixture
def run(monkeypatch):
    """Calls the command line with these words on a console of this encoding: exit code, and all that was printed."""

    def run(*words, encoding="utf-8", errors="strict"):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding, errors, write_through=True) for _ in range(2)]
        monkeypatch.setattr(sys, "argv", ["calotype", *map(str, words)])
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, "".join(stream.buffer.getvalue().decode(encoding) for stream in streams)

    return run


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_no_name_of_a_class_ends_anything(tmp_path, run, monkeypatch, encoding):
    """Also not those whose bytes are no UTF-8."""
    be_quick(monkeypatch)
    classes = ("ảnh", "猫", "\x1b[31mred", "\u202eevil", "caf\udce9", "two\nlines")
    folder = write_pictures(tmp_path / "pictures", 12, classes=classes)
    for words in (("data", "check", folder, "--size", "16"), ("plan", folder, *SMALL)):
        code, printed = run(*words, encoding=encoding)
        assert code == 0 and harmless(printed), printed
        assert "31mred" in printed and "evil" in printed


@pytest.mark.parametrize(
    "words",
    [
        ("--set", "\x1b[31m=1"), ("--set", "denoiser.batch=\x1b]0;x\x07"), ("--set", "\u202esize=1"),
        ("--set", "a\nb=1"),
        ("--recipe", "\x1b[31m.toml"), ("--device", "\x1b[31m"), ("--space", "\x1b[31m"), ("--size", "\x1b[31m"),
        ("--budget", "\x1b[31m"), ("--budget", "9" * 5000), ("--budget", "9999999d"), ("--size", "1000000"),
        ("--size", "9" * 5000), ("--kind", "\u202e"), ("--set", "x" * 100_000), ("--set", f"size={'[' * 5000}"),
    ],
)  # fmt: skip
def test_no_setting_ends_in_more_than_a_line(tmp_path, run, words):
    folder = write_pictures(tmp_path / "pictures")
    code, printed = run("plan", folder, *words)
    lines = [line for line in printed.splitlines() if not line.startswith("pictures: ")]
    assert code == 2 and harmless(printed) and len(lines) == 1 and len(lines[0]) < 6000


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "--steps", "1000000000"), ("sample", "--count", "1000000000"), ("sample", "--guidance", "nan"),
        ("sample", "--guidance", "inf"), ("sample", "--seed", "9" * 30), ("sample", "--size", "999999x16"),
        ("sample", "--label", "\x1b[31m"), ("sample", "--prompt", "\x1b[31m"), ("sample", "--sampler", "\x1b[31m"),
        ("interpolate", "--out", "a.png", "--frames", "1000000000"),
        ("interpolate", "--out", "a.png", "--seeds", "1,2\x1b"),
        ("interpolate", "--out", "a.png", "--seeds", f"1,{'9' * 5000}"), ("evaluate", "--count", "1000000000"),
        ("sweep", "--steps", "1000000000"), ("sweep", "--guidance", "9" * 400), ("sample", "--strength", "nan"),
    ],
)  # fmt: skip
def test_no_option_of_sampling_is_without_bounds(finished, run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    command, *options = words
    code, printed = run(command, finished, *options)
    assert code == 2 and harmless(printed) and len(printed.splitlines()) == 1
