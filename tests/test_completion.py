"""The shell asks the command line for completions, before torch could be imported."""

import sys

import pytest

from calotype.cli import app as cli
from calotype.cli.options import app

SHELLS = ("bash", "zsh", "fish", "powershell")


@pytest.fixture
def complete(capsys, monkeypatch):
    """What bash gets for a line, whose last word is being typed."""

    def complete(line):
        monkeypatch.setenv("_CALOTYPE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        monkeypatch.setattr(sys, "argv", ["calotype"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return capsys.readouterr().out.split()

    return complete


def test_commands_are_completed(complete):
    assert complete("calotype ev") == ["evaluate"]
    assert complete("calotype data ") == ["portraits", "check", "shards"]
    assert {command.name for command in app.registered_commands} < {*complete("calotype ")}


def test_options_and_their_values_are_completed(complete):
    assert complete("calotype train --bu") == ["--budget"]
    assert complete("calotype export run --to ") == ["onnx", "web", "diffusers"]
    assert complete("calotype train pictures --kind c") == ["cascade"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_its_script(capsys, monkeypatch, shell):
    monkeypatch.setenv("_CALOTYPE_COMPLETE", f"source_{shell}")
    monkeypatch.setattr(sys, "argv", ["calotype"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "_CALOTYPE_COMPLETE" in capsys.readouterr().out


def test_it_is_installed_from_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["calotype", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "--install-completion" in capsys.readouterr().out
