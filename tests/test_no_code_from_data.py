"""Nothing that calotype reads can run: the audit hook of `auditing` sees all that could, in every test of the suite."""

import ast
import marshal
import os
import pickle
import sys
from pathlib import Path

import auditing
import pytest
from conftest import SEEN
from test_cli import python

from calotype.cli.process import start_ranks

SOURCES = sorted(Path(auditing.SOURCES).rglob("*.py"))
PINNED = "perceptual.py"
"""Its weights are a pickle with a known hash, read with `weights_only`."""
RUNNING = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "runpy", "code", "codeop", "imp"}


def as_calotype(text, **names):
    """Runs a text as if it stood in a file of calotype."""
    made = compile(text, f"{auditing.SOURCES}/reader.py", "exec")
    auditing.seen.clear()
    exec(made, names)
    events = [event for event, _, _ in auditing.seen]
    auditing.seen.clear()
    return events


@pytest.mark.parametrize(
    ("text", "event"),
    [
        ("import pickle; pickle.loads(content)", "pickle.find_class"),
        ("import io, pickle; pickle._Unpickler(io.BytesIO(content)).load()", "pickle.find_class"),
        ("import numpy, io; numpy.load(io.BytesIO(content), allow_pickle=True)", "pickle.find_class"),
        ("import marshal; marshal.loads(code)", "marshal.loads"),
        ("exec('1')", "exec"),
        ("eval('1')", "exec"),
        ("import torch, io; torch.load(io.BytesIO(content), weights_only=False)", "pickle.find_class"),
    ],
)
def test_the_hook_sees_whatever_could_run_data(text, event):
    content, code = pickle.dumps(Path), marshal.dumps(compile("1", "data", "exec"))
    try:
        events = as_calotype(text, content=content, code=code)
    except Exception:  # torch expects more than a class
        events = [event for event, _, _ in auditing.seen]
        auditing.seen.clear()
    assert event in events


def test_the_hook_lets_imports_and_classes_be():
    text = ["import wave", "from dataclasses import dataclass", "@dataclass", "class Named:", "    name: int"]
    assert as_calotype("\n".join(text)) == []
    pickle.loads(pickle.dumps(Path))
    assert not auditing.seen


def test_the_hook_sees_the_processes_that_a_test_starts():
    process = python("import auditing", "exec(compile('exec(chr(49))', auditing.SOURCES + '/reader.py', 'exec'))")
    assert process.wait() == 0
    assert "exec" in SEEN.read_text()
    SEEN.unlink()


def test_processes_import_nothing_from_the_current_folder(monkeypatch):
    """`python -m` would: a stray psutil.py among downloads would run."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            words = node.elts if isinstance(node, ast.List) else node.args if isinstance(node, ast.Call) else []
            if len(words) > 1 and ast.unparse(words[0]) == "sys.executable" and path.name != "process.py":
                assert ast.unparse(words[1]) == "'-P'", f"{path}, line {node.lineno}"
    monkeypatch.setattr(os, "execv", lambda *command: sys.exit(os.environ["PYTHONSAFEPATH"]))
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    with pytest.raises(SystemExit, match="1"):
        start_ranks(1)


def test_no_module_reads_what_could_run():
    """By its text, so in branches that no test takes, too."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = {alias.name.partition(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()
            assert not names & RUNNING, f"{path}, line {node.lineno}: imports {names & RUNNING}"
            if isinstance(node, ast.Call):
                check_call(path, node)


def check_call(path, node):
    called = ast.unparse(node.func)
    where = f"{path}, line {node.lineno}: calls {called}"
    assert called not in ("exec", "eval", "compile", "__import__"), where
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if called == "torch.load":
        assert path.name == PINNED and options["weights_only"] == "True", where
    for option in ("allow_pickle", "trust_remote_code"):
        assert options.get(option, "False") == "False", where
