"""An audit hook (PEP 578) on what could run code from data: unpickling, unmarshalling, and executing.

The interpreter calls it whenever one of them happens, in whatever package. What happens below a frame of calotype must
have one of the known reasons, none of which reads data from outside:
modules are imported (from .pyc files, by marshal), annotations are evaluated, and classes are made by `exec`.
"""

import sys
from pathlib import Path

SOURCES = str(Path(__file__).resolve().parents[1] / "src" / "calotype")
WATCHED = {"pickle.find_class", "marshal.load", "marshal.loads", "exec", "code.__new__"}
REASONS = (
    "<frozen importlib.", "<frozen zipimport>", "/importlib/", "/jaxtyping/", "/beartype/", "/pydantic/",
    "/dataclasses.py", "/typing.py", "/typing_extensions.py", "/collections/__init__.py", "/enum.py", "/inspect.py",
    "/_pytest/", "/multiprocessing/", "/functools.py", "/typer/",
    "/torch/onnx/", "/torch/fx/",
)  # fmt: skip
"""Who imports modules, evaluates annotations, and makes classes; multiprocessing, which talks to itself; and
the exporter of torch, which makes functions of the graphs that it has traced."""
tests_run_here = False
"""Set by `conftest`, which has a hook of its own: processes of pytest-xdist are started by one that has it, too."""
seen = []
"""What happened without such a reason: event, and the files from there down to calotype."""


def watch(event, arguments):
    if event not in WATCHED:
        return
    files, frame = [], sys._getframe(1)
    while frame is not None:
        files.append(frame.f_code.co_filename)
        if files[-1].startswith(SOURCES):
            break
        frame = frame.f_back
    if frame is None or any(reason in file for file in files for reason in REASONS):
        return
    seen.append((event, files, str(arguments)[:200]))
